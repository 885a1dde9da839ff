"""From a video file to moments: published R2-Tuning weights on CLIP, against the same steps done by hand.

The weights are the golden checkpoint of ``shared/golden/r2/tiny`` (published code, published format, random numbers).
CLIP comes from transformers, with random weights and the sizes of the checkpoint: 48 and 32 wide, 2 x 2 patches and CLS
of each frame.

By hand: our decoder's frames, normalised in plain NumPy; ``CLIPModel`` and ``CLIPTokenizer`` of transformers; the
checkpoint's tensors in our model; decoding of its predictions.

Features are float16 on the way, so numbers that differ in the last bit of float32 may differ by the last bit of float16
(1e-3 of a value). The tolerance is 2e-3 for scores, saliency and seconds (of windows that are not rounded).
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sidelight import Grounder, Grounding
from sidelight.backbones.clip.model import CLIPBackbone
from sidelight.backbones.clip.released import CLIP_MEAN, CLIP_STD
from sidelight.cli.main import main
from sidelight.core.batch import Batch
from sidelight.core.timeline import Timeline
from sidelight.models.decode.r2_tuning import R2DecodeConfig
from sidelight.models.r2_tuning import R2Tuning, R2TuningConfig, from_published
from sidelight.video.read import frames_at, probe
from tests.backbones.test_clip import write_vocabulary

transformers: Any = import_module("transformers")  # the towers of CLIP are not in its types
SIDE, PATCH, VIDEO, TEXT = 224, 112, 48, 32
QUERIES = ["a person opens the door", "someone is drinking water"]
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder as on the hub: a tiny CLIP of transformers with a vocabulary of bytes."""
    folder = tmp_path_factory.mktemp("clip")
    vocabulary = write_vocabulary(folder)
    both = {"num_attention_heads": 4, "hidden_act": "quick_gelu", "projection_dim": 16}
    config = transformers.CLIPConfig(
        vision_config=both
        | {"hidden_size": VIDEO, "intermediate_size": 96, "num_hidden_layers": 6, "image_size": SIDE}
        | {"patch_size": PATCH},
        text_config=both
        | {"hidden_size": TEXT, "intermediate_size": 64, "num_hidden_layers": 5, "vocab_size": vocabulary}
        | {"max_position_embeddings": 77, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(config)
    with torch.no_grad():  # so that the answer depends on the video and the query
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(clip: Path, goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert the golden checkpoint with the command."""
    out = tmp_path_factory.mktemp("converted") / "r2"
    sizes = ["--video-dim", str(VIDEO), "--text-dim", str(TEXT), "--hidden", "64", "--weights", str(clip)]
    golden = goldens / "r2" / "tiny" / "checkpoint.pth"
    assert main(["convert", "r2-tuning", str(golden), "--run", "qvhighlights", "--out", str(out), *sizes]) == 0
    return out


@pytest.fixture(scope="module", params=["charades_indoor.mp4", "internvideo_example.mp4"])
def video(request: pytest.FixtureRequest, shared: Path) -> Path:
    return shared / "videos" / str(request.param)


@torch.inference_mode()
def by_hand(video: Path, query: str, clip: Path, golden: Path) -> Grounding:
    """Ground without a backbone, a feature store, a checkpoint or a grounder of ours."""
    duration = probe(video).duration
    clips = int(duration / 2 + 0.5)  # FFmpeg's filter fps, which the published extraction uses, rounds
    seconds = [min(2.0 * i + 1.0, np.nextafter(duration, 0)) for i in range(clips)]
    frames = np.stack([f.image for f in frames_at(video, seconds, size=(SIDE, SIDE), resize="crop")])
    pixels = ((frames / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).transpose(0, 3, 1, 2)

    model = transformers.CLIPModel.from_pretrained(clip).eval()
    video_states = model.vision_model(
        torch.tensor(pixels, dtype=torch.float32), output_hidden_states=True
    ).hidden_states
    ids = torch.tensor([transformers.CLIPTokenizer.from_pretrained(clip)(query)["input_ids"]])
    text_states = model.text_model(ids, output_hidden_states=True).hidden_states
    assert len(video_states) == 7 and len(text_states) == 6  # input of the first block, output of each block
    video_KTPD, text_KLD = (
        torch.stack(last[-4:]).half().float() for last in (video_states, [x[0] for x in text_states])
    )

    side_tuner = R2Tuning(R2TuningConfig(video_dim=VIDEO, text_dim=TEXT, hidden=64)).eval()
    side_tuner.load_state_dict(from_published(torch.load(golden, weights_only=True)["state_dict"]))

    def real(length: int) -> Tensor:
        return torch.ones(1, length, dtype=torch.bool)

    batch = Batch(
        video_KBTD=video_KTPD[:, None],
        video_mask_BT=real(clips),
        text_KBLD=text_KLD[:, None],
        text_mask_BL=real(ids.shape[1]),
    )
    timeline = Timeline(duration=duration, clip_seconds=2.0, clips=clips)
    config = R2DecodeConfig(nms="hard", nms_threshold=0.7, round_to=2.0)
    return config.decode(side_tuner(batch), [timeline], [query])[0]


def assert_same(grounding: Grounding, expected: Grounding) -> None:
    assert grounding.query == expected.query and grounding.timeline == expected.timeline
    assert len(grounding.moments) == len(expected.moments) >= 3
    np.testing.assert_allclose(grounding.saliency, expected.saliency, atol=TOLERANCE)
    ours, theirs = (np.array([(m.start, m.end, m.score) for m in g.moments]) for g in (grounding, expected))
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


def test_a_video_file_becomes_the_same_moments(video: Path, clip: Path, checkpoint: Path, goldens: Path) -> None:
    golden = goldens / "r2" / "tiny" / "checkpoint.pth"
    grounder = Grounder.from_pretrained(checkpoint, device="cpu", backbone_weights=clip)
    groundings = grounder.ground(video, QUERIES)
    for grounding, query in zip(groundings, QUERIES, strict=True):
        assert_same(grounding, by_hand(video, query, clip, golden))
    # The answer depends on the video and on the query.
    assert np.ptp(groundings[0].saliency) > 10 * TOLERANCE
    assert np.abs(groundings[0].saliency - groundings[1].saliency).max() > 10 * TOLERANCE


def test_the_command_gives_the_same_moments(
    video: Path,
    clip: Path,
    checkpoint: Path,
    goldens: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.json"
    options = ["--model", str(checkpoint), "--backbone-weights", str(clip), "--device", "cpu", "--json", str(out)]
    assert main(["ground", str(video), QUERIES[0], *options]) == 0
    (grounding,) = (Grounding.from_dict(values) for values in json.loads(out.read_text()))
    assert_same(grounding, by_hand(video, QUERIES[0], clip, goldens / "r2" / "tiny" / "checkpoint.pth"))
    # The checkpoint has only the digest of the weights, so the command needs their folder.
    assert main(["ground", str(video), QUERIES[0], "--model", str(checkpoint), "--device", "cpu"]) == 2
    assert "--backbone-weights FOLDER" in capsys.readouterr().err


@torch.inference_mode()
def test_hidden_states_are_outputs_of_the_blocks(clip: Path) -> None:
    """Compare with the hidden states of transformers, which contain no last LayerNorm in either tower."""
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    backbone = CLIPBackbone(weights=clip, levels=4, pooling="tokens")
    ids = torch.tensor(backbone.token_ids(["a red star"]))
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for tower, model_tower, inputs in (
        (backbone.video, model.vision_model, pixels),
        (backbone.text, model.text_model, ids),
    ):
        theirs = model_tower(inputs, output_hidden_states=True).hidden_states[-4:]
        torch.testing.assert_close(tower(inputs), torch.stack(theirs), atol=3e-5, rtol=1e-5)
