"""The published runs of R2-Tuning, with the spec of their features: facts only, no code that reads a file.

R2-Tuning (Liu et al., ECCV 2024, arXiv 2404.00801). File names come from the model zoo in its README, everything else
from its configurations, github.com/yeliudev/R2-Tuning. ``convert.py`` converts the files into checkpoints of sidelight.

The published configurations leave three values open. Here they are:

- ``window_clips``. The published code always reads a whole video, up to 1024 clips. Here it is the length of the
  longest video of the benchmark (all splits), so that no video is cut in two. On Ego4D-NLQ, whose
  files were not at hand, it is 1024.
- ``clip_seconds`` on YouTube Highlights. R2-Tuning took one frame per labelled clip, and clips begin about 50 frames
  apart: 1.7 s or more, depending on the frame rate. Here it is 50 frames at 30 frames a second.
- The instant of a clip. The published extraction reduces the frame rate with ffmpeg, which takes the last frame before
  the middle of each clip; sidelight takes the frame at the middle. (The published *inference script* takes the first
  frame of the clip, crops before it scales, and rounds mean and deviation; the models were not trained that way.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sidelight.backbones.clip.released import CLIP_B32, CLIP_MEAN, CLIP_MODELS, CLIP_STD
from sidelight.backbones.protocol import FeatureSpec
from sidelight.models.decode.r2_tuning import R2DecodeConfig
from sidelight.models.losses.r2_tuning import R2LossConfig
from sidelight.models.r2_tuning import R2TuningConfig

R2_REPOSITORY = "yeliudev/R2-Tuning"
"""Model repository on the Hugging Face hub."""

CLIP_BACKBONE = "clip"
CLIP_WEIGHTS = CLIP_B32
"""The field ``weights`` in the feature spec of converted checkpoints: the hub id of CLIP ViT-B/32 instead of a digest,
because the weights are not at hand during the conversion. A backbone that reads these weights uses the same name.
"""
CLIP_WIDTHS = CLIP_MODELS["b32"][1:]
"""Widths of the layers of ViT-B/32: video side, text side."""


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """One published run of R2-Tuning."""

    file: str
    """Path in the model repository; the name ends in the first 8 hex digits of the file's SHA-256."""
    model: R2TuningConfig
    """The model, with the dropout of its training."""
    losses: R2LossConfig
    """The losses that it was trained with."""
    decode: R2DecodeConfig
    """How predictions become moments."""
    clip_seconds: float
    """Length of a clip in seconds; one frame was taken of each."""
    window_clips: int
    """Longest video in clips that is not cut into windows."""
    round_clips: bool = True
    """Whether the number of clips is rounded: the frames were extracted by FFmpeg's filter fps, which rounds."""

    def features(self, weights: str = CLIP_WEIGHTS) -> FeatureSpec:
        """Return the spec of the features: every token of every frame, from CLIP's last K blocks, before the last
        LayerNorm.

        Frames are scaled by their shorter side to 224 pixels and cropped in the middle
        (``tools/extract_frames.py``), then normalised as CLIP's (``tools/extract_feat.py``).
        """
        return FeatureSpec(
            backbone=CLIP_BACKBONE,
            weights=weights,
            levels=tuple(range(-self.model.levels, 0)),
            pooling="tokens",
            clip_seconds=self.clip_seconds,
            frames_per_clip=1,
            resolution=224,
            resize="crop",
            mean=CLIP_MEAN,
            std=CLIP_STD,
            video_dim=self.model.video_dim,
            text_dim=self.model.text_dim,
        )


_MODEL = R2TuningConfig(video_dim=CLIP_WIDTHS[0], text_dim=CLIP_WIDTHS[1])
_SOFT = R2DecodeConfig(nms="soft-linear", round_to=None, keep_all=True)

_MOMENTS = {
    "qvhighlights": PublishedRun(
        file="checkpoints/r2_tuning_qvhighlights-ed516355.pth",
        model=_MODEL,
        losses=R2LossConfig(),
        decode=R2DecodeConfig(nms="hard", nms_threshold=0.7, round_to=2.0, keep_all=True),
        clip_seconds=2.0,
        window_clips=75,
    ),
    "charades-sta": PublishedRun(
        file="checkpoints/r2_tuning_charades-1de02112.pth",
        model=replace(_MODEL, dropout=0.35),
        losses=R2LossConfig(weight_saliency=0.01),
        decode=replace(_SOFT, round_to=0.1),
        clip_seconds=1.0,
        window_clips=195,
    ),
    "tacos": PublishedRun(
        file="checkpoints/r2_tuning_tacos-81759b55.pth",
        model=_MODEL,
        losses=R2LossConfig(weight_saliency=0.05),
        decode=_SOFT,
        clip_seconds=2.0,
        window_clips=702,
    ),
    "ego4d-nlq": PublishedRun(
        file="checkpoints/r2_tuning_ego4d-6a6f5754.pth",
        model=replace(_MODEL, dropout=0.3),
        losses=R2LossConfig(),
        decode=_SOFT,
        clip_seconds=2.0,
        window_clips=1024,
    ),
}

# Domain -> the file's name after "r2_tuning_youtube_" or "r2_tuning_tvsum_".
_YOUTUBE = {
    "dog": "dog-702bd293",
    "gymnastics": "gym-ff68b1b3",
    "parkour": "par-27442af0",
    "skating": "ska-dad28398",
    "skiing": "ski-df2edc4c",
    "surfing": "sur-d384d8b2",
}
_TVSUM = {
    "BK": "bk-45b59440",
    "BT": "bt-13683fdf",
    "DS": "ds-d11b33d3",
    "FM": "fm-2c8c119d",
    "GA": "ga-58e79858",
    "MS": "ms-d9b4f8fa",
    "PK": "pk-1830ce03",
    "PR": "pr-51d78fc9",
    "VT": "vt-0069d8d3",
    "VU": "vu-6f8ebb4b",
}


def _highlights(file: str, clip_seconds: float, window_clips: int) -> PublishedRun:
    """Return a run that predicts only a highlight curve: nothing is rounded or suppressed."""
    return PublishedRun(
        file=f"checkpoints/r2_tuning_{file}.pth",
        model=replace(_MODEL, strides=(1,), endpoint_features=False, boundary_head=False),
        losses=R2LossConfig(class_loss="bce", nce_directions=("row",)),
        decode=R2DecodeConfig(nms="none", round_to=None),
        clip_seconds=clip_seconds,
        window_clips=window_clips,
    )


R2_TUNING: dict[str, PublishedRun] = {
    **_MOMENTS,
    **{
        f"youtube-highlights-{domain}": _highlights(f"youtube_{file}", 50 / 30, 741)
        for domain, file in _YOUTUBE.items()
    },
    **{f"tvsum-{domain}": _highlights(f"tvsum_{file}", 2.0, 323) for domain, file in _TVSUM.items()},
}
"""The published runs, by the name after ``r2-tuning/``."""
