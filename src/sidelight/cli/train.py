"""`sidelight train`, `pretrain`, `recipes`, `summary` and `predict`: run recipes and use their checkpoints."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidelight.cli.shared import BackboneWeights, Device, File, Folder, Model, OutFile, Store
from sidelight.core.messages import count_of
from sidelight.io.files import require_outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidelight.backbones.shapes.pretrain import PretrainConfig
    from sidelight.data.annotations import Annotation, Submission
    from sidelight.training.checkpoint import PixelCheckpoint
    from sidelight.training.recipe import Recipe


_PARTS_OF_RUN = {"--train.out": "", "--train.out (best)": "best", "--train.out (last)": "last"}
"""The folders that a run writes, by their names in messages -> path below ``train.out``."""


def train(recipe: Recipe, *, resume: bool = False, check: bool = False) -> None:
    """Train a side-tuner by a recipe.

    Args:
        recipe: a YAML file, or a name that `sidelight recipes` lists.
        resume: continue an interrupted run.
        check: check paths, features and shapes, do two steps and two batches of validation, and estimate the time;
            nothing is written.
    """
    from sidelight.training import loop
    from sidelight.training.check import check_run
    from sidelight.training.state import STATE

    out, data = recipe.train.out, recipe.data
    inputs = [data.train, data.val, data.train_features, data.val_features, data.train_videos, data.val_videos]
    inputs += [recipe.train.init, recipe.backbone.weights, data.frames_cache]
    require_outputs({name: os.path.join(out, part) for name, part in _PARTS_OF_RUN.items()}, inputs, folders=True)
    state = Path(out) / STATE
    if resume and not state.exists() and _is_first_process():
        print(f"there is no saved state in {out}, so the run starts anew", file=sys.stderr)
    if check:
        for name, text in check_run(recipe, resume=resume).lines():
            print(f"{name:<12}{text}")
        print(f"ready; nothing was written to {out}")
        return
    try:
        progress = loop.train(recipe, resume=resume)
    except KeyboardInterrupt:
        if _is_first_process():
            advice = (
                f"continue with --resume and the same options; see {out}"
                if state.exists()
                else "no state was saved yet; the same command starts anew, and keeps features and frames"
            )
            print(advice, file=sys.stderr)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS):
            raise
        again = "go on with --resume and the same options" if state.exists() else "start anew"
        raise ValueError(
            f"{error.filename or out} cannot be written: {error.strerror}; make room, then {again}"
        ) from None
    if not _is_first_process():
        return  # the first process prints for all processes
    if recipe.data.val:
        print(f"best epoch {progress.best_epoch}: {recipe.train.best_by} {progress.best:.2f}; see {out}")
    else:
        print(f"trained {count_of(progress.step, 'step')} without validation; see {out}/last")


def _is_first_process() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def pretrain(config: PretrainConfig) -> None:
    """Train the embedded backbone on the shapes world."""
    from sidelight.backbones.shapes import pretrain as pretraining

    require_outputs({"--out": config.out}, [config.init], folders=True)
    pretraining.pretrain(config)


def recipes() -> None:
    """List the recipes that ship with sidelight."""
    from sidelight.recipes import command_of, recipe_names, summary_of

    width = max(map(len, recipe_names()))
    for name in recipe_names():
        print(f"{command_of(name):<8}  {name:<{width}}  {summary_of(name)}")


def summary(recipe: Recipe) -> None:
    """Print the parameters of a recipe's model, by module."""
    from sidelight.models.layers import parameter_table
    from sidelight.training.data import model_of

    model, reads = model_of(recipe)
    rows = [(name, count) for name, count in parameter_table(model) if count]
    print(f"{recipe.side_tuner}: reads {reads}")
    for name, count in rows:
        print(f"{name:<32}{count:>12,}")
    total = sum(count for _, count in rows)
    print(f"{'trainable parameters':<32}{total:>12,}  = {total / 2**20:.2f} x 2^20")


def predict(
    *,
    model: Model | None = None,
    device: Device | None = None,
    backbone_weights: BackboneWeights | None = None,
    annotations: File,
    videos: Folder | None = None,
    features: Store | None = None,
    out: OutFile,
    offline: bool = False,
) -> None:
    """Predict for annotations, in the QVHighlights submission form.

    Args:
        annotations: JSONL in the QVHighlights form.
        videos: folder with the video files, named by their ids.
        features: feature store, or features in a layout that a paper released; with --videos, the features that a
            store lacks are extracted into it. A model that was trained from pixels needs --videos alone.
        out: JSONL in the QVHighlights submission form.
        offline: use no network, only what is on this machine.
    """
    import tempfile

    from sidelight.backbones import LIMITED, SpecMismatchError, default_weights
    from sidelight.data.annotations import read_annotations, write_submissions
    from sidelight.features.open import FeatureSource, open_features_for
    from sidelight.io.download import offline as without_network
    from sidelight.io.runtime import usable_device
    from sidelight.models.zero_shot import ZERO_SHOT
    from sidelight.training import predict as predicting
    from sidelight.training.checkpoint import Checkpoint, PixelCheckpoint, reads_frames
    from sidelight.training.dataset import GroundingDataset
    from sidelight.training.named import DEFAULT_MODEL, named_checkpoint

    if not videos and not features:
        raise ValueError("give --videos (a folder with the files) or --features (a feature store), or both")
    rows = read_annotations(annotations)
    target_device = usable_device(device)
    model = model or DEFAULT_MODEL
    with without_network(offline), tempfile.TemporaryDirectory() as temporary:
        folder = named_checkpoint(model, backbone=False) or model
        if not model.startswith(ZERO_SHOT) and reads_frames(folder):
            pixels = PixelCheckpoint.from_pretrained(folder, backbone_weights=backbone_weights).to(target_device)
            submissions = _predict_frames(pixels, rows, videos, features, Path(temporary))
            write_submissions(out, submissions)
            print(f"wrote {count_of(len(submissions), 'prediction')} to {out}")
            return
        checkpoint = Checkpoint.from_pretrained(folder, backbone_weights=backbone_weights).to(target_device)
        # The digest in the spec of zero-shot/BACKBONE does not say where the backbone's own weights are.
        kind, _, backbone = model.partition("/")
        weights = backbone_weights or (default_weights(backbone) if kind == ZERO_SHOT else None)
        source = FeatureSource.of_spec(checkpoint.features, features or temporary, videos=videos, weights=weights)
        store = open_features_for(rows, source, device=target_device, progress=True)
        submissions = predicting.predict(
            checkpoint.model,
            GroundingDataset(rows, store, targets=False, round_clips=checkpoint.round_clips),
            checkpoint.decode,
            window_clips=checkpoint.window_clips,
            progress=True,
        )
    write_submissions(out, submissions)
    print(f"wrote {count_of(len(submissions), 'prediction')} to {out}")
    if checkpoint.features.backbone in LIMITED:
        with contextlib.suppress(SpecMismatchError):  # other weights made the features, and their world is not known
            _print_doubts(source.load_backbone(), rows, videos, model)


def _predict_frames(
    checkpoint: PixelCheckpoint,
    rows: Sequence[Annotation],
    videos: str | None,
    features: str | None,
    temporary: Path,
) -> list[Submission]:
    """Predict by a model that reads frames; they are decoded into a temporary folder."""
    from sidelight.features.frames import FrameCache
    from sidelight.features.open import require_durations
    from sidelight.features.sources import find_videos
    from sidelight.training.frames import FrameDataset, encode_sentences, frame_sampling
    from sidelight.training.predict import predict_frames

    if features or not videos:
        raise ValueError(
            f"{checkpoint.model_name} reads the frames of videos: give --videos (a folder with the files) and no "
            "--features"
        )
    files = find_videos(videos, (row.vid for row in rows))
    require_durations(rows, files, checkpoint.clip_seconds)
    cache = FrameCache(temporary, frame_sampling(checkpoint.frames))
    cache.fill(files, {row.vid: row.duration for row in rows}, limit=sys.maxsize, progress=True)
    dataset = FrameDataset(
        rows,
        cache,
        files,
        encode_sentences([row.query for row in rows], checkpoint.sentences),
        clips_per_chunk=checkpoint.model.clips_per_chunk,
        targets=False,
    )
    return predict_frames(
        checkpoint.model, dataset, checkpoint.decode, window_clips=checkpoint.window_clips, progress=True
    )


def _print_doubts(backbone: Any, rows: Sequence[Annotation], videos: str | None, model: str) -> None:
    """Say on stderr how many predictions may mean nothing, because the backbone knows one world only.

    Args:
        backbone: a :class:`~sidelight.backbones.protocol.LimitedBackbone`.
        rows: the annotations.
        videos: folder of the videos, which are looked at; None where only features are given.
        model: name of the model.
    """
    from sidelight.features.sources import chosen_videos, videos_of
    from sidelight.video.read import VideoError

    queries = dict.fromkeys(row.query for row in rows)
    of_queries = [doubt for query in queries if (doubt := backbone.query_doubt(query, model))]
    of_videos = []
    if videos:
        files, _ = chosen_videos(videos_of([videos]), [row.vid for row in rows])
        for file in files.values():
            with contextlib.suppress(VideoError):  # a file that cannot be read is reported where it is extracted
                of_videos.append(backbone.video_doubt(file, model))
    for doubts, kind in ((of_queries, "query"), ([doubt for doubt in of_videos if doubt], "video")):
        if doubts:
            print(f"sidelight: warning: {count_of(len(doubts), kind)}: {doubts[0]}", file=sys.stderr)
