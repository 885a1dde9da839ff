"""Open the training and validation data of a recipe, and check that they fit it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch.nn.utils.rnn import pad_sequence

from sidelight.backbones.protocol import FeatureSpec, FrameSpec
from sidelight.core.messages import count_of
from sidelight.data.annotations import USUAL_CLIP_SECONDS, Annotation, Submission
from sidelight.features.frames import FrameCache
from sidelight.features.open import FeatureSource, open_features_for, require_durations
from sidelight.features.sources import find_videos
from sidelight.io.cache import parse_size
from sidelight.io.files import cache_folder
from sidelight.models.registry import build_model, side_tuner
from sidelight.models.scada import Scada
from sidelight.training.checkpoint import Checkpoint, PixelCheckpoint, load_trained, trained_state
from sidelight.training.dataset import GroundingDataset, epoch_batches
from sidelight.training.frames import FrameDataset, encode_chunks, encode_sentences, epoch_videos, frame_sampling
from sidelight.training.named import named_checkpoint
from sidelight.training.predict import predict, predict_frames
from sidelight.training.recipe import Recipe
from sidelight.training.samples import Split, TrainingData, raise_missing, read_split
from sidelight.training.tower import PixelBackbones

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor, nn

    from sidelight.core.batch import Batch, FrameBatch


class FeatureData(TrainingData):
    """Samples with features of a frozen backbone."""

    where_to_look = "check their features with `sidelight data check --features`"
    train: GroundingDataset
    val: GroundingDataset | None

    def check(self) -> None:
        """Check that features and validation data fit the recipe."""
        _check_spec(self.recipe, self.train)
        if self.val is not None:
            self.spec.require(self.val.store.spec, what="the validation features")
        self.check_metric()

    @property
    def spec(self) -> FeatureSpec:
        """Return the spec of the training features."""
        return self.train.store.spec

    def digest(self) -> str:
        """Return the digest of the feature spec."""
        return self.spec.digest()

    def build_model(self) -> nn.Module:
        """Return the side-tuner with random weights."""
        return build_model(self.recipe.side_tuner, self.recipe.to_dict()["model"])

    def load_start(self, model: nn.Module) -> None:
        """Load the weights of a checkpoint for features of the same spec."""
        name = self.recipe.train.init
        checkpoint = Checkpoint.from_pretrained(named_checkpoint(name, backbone=False) or name)
        checkpoint.features.require(self.spec, what="the training features")
        _load_same(model, checkpoint.model, name)

    def batches(self, epoch: int, *, rank: int = 0, world: int = 1) -> list[list[int]]:
        """Return batches of equally many samples."""
        config = self.recipe.train
        return epoch_batches(
            self.train.num_clips(),
            epoch=epoch,
            batch_size=config.batch_size // world,
            last_batch=config.last_batch,
            seed=config.seed,
            rank=rank,
            world=world,
        )

    def steps_per_epoch(self, world: int = 1) -> list[int]:
        """Return the number of steps of each epoch, which all have as many."""
        return [len(self.batches(0, world=world))] * self.recipe.train.epochs

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """Return training samples as one batch of features."""
        return self.train.batch(indices, epoch)

    def predict(self, model: nn.Module, samples: GroundingDataset) -> list[Submission]:
        """Return a prediction for every annotation."""
        return predict(model, samples, self.recipe.decoding, window_clips=self.recipe.window_clips)

    def checkpoint(self, model: nn.Module, metrics: Mapping[str, Any]) -> Checkpoint:
        """Return the side-tuner with the spec of its features."""
        values = self.recipe.to_dict()
        return Checkpoint(
            model=model,
            model_name=self.recipe.side_tuner,
            model_config=values["model"],
            features=self.spec,
            decode=self.recipe.decoding,
            window_clips=self.recipe.window_clips,
            round_clips=self.recipe.data.round_clips,
            metrics=dict(metrics),
            recipe=values,
        )

    def description(self) -> str:
        """Return backbone, levels, pooling, clips and widths."""
        spec = self.spec
        pooling = "all tokens" if spec.pooling == "tokens" else f"pooling {spec.pooling}"
        return (
            f"{spec.backbone} ({spec.weights}), levels {', '.join(map(str, spec.levels))}, {pooling}, "
            f"{spec.frames_per_clip} frames per clip of {spec.clip_seconds:g} s; widths {spec.video_dim} and "
            f"{spec.text_dim}"
        )


class FrameData(TrainingData):
    """Samples with frames of videos, the video backbone that is trained from them, and the sentence encoder.

    Args:
        recipe: the run.
        train: the training samples.
        val: the validation samples, if there are some.
        backbones: the two, loaded.
    """

    where_to_look = "look at these videos in a player"
    train: FrameDataset
    val: FrameDataset | None

    def __init__(
        self, recipe: Recipe, train: FrameDataset, val: FrameDataset | None, backbones: PixelBackbones
    ) -> None:
        super().__init__(recipe, train, val)
        self.backbones = backbones
        self._encoded: dict[str, Tensor] = {}

    @property
    def spec(self) -> FrameSpec:
        """Return what the model reads."""
        return self.backbones.spec

    def check(self) -> None:
        """Check that the validation data fits the recipe; frames and sentences were made for it."""
        self.check_metric()

    def digest(self) -> str:
        """Return the digest of backbones and sampling."""
        return self.spec.digest()

    def build_model(self) -> nn.Module:
        """Return the model around the backbone."""
        recipe, tower = self.recipe, self.backbones.tower
        return build_model(recipe.side_tuner, recipe.to_dict()["model"], tower=tower, memory=recipe.memory)

    def load_start(self, model: nn.Module) -> None:
        """Load the trained weights of a checkpoint with the same backbones."""
        name, backbone = self.recipe.train.init, self.recipe.backbone
        checkpoint = PixelCheckpoint.from_pretrained(
            name, backbone_weights=backbone.weights or None, sentence_weights=backbone.sentence_weights or None
        )
        checkpoint.frames.require(self.spec)
        _load_same(model, checkpoint.model, name)

    def batches(self, epoch: int, *, rank: int = 0, world: int = 1) -> list[list[int]]:
        """Return batches of whole videos, by the budget of frames."""
        config = self.recipe.train
        steps = epoch_videos(
            self.train.frames_of_videos(),
            epoch=epoch,
            frames_per_step=config.frames_per_step,
            videos_per_step=config.batch_size,
            seed=config.seed,
            rank=rank,
            world=world,
        )
        rows = list(self.train.rows_of_videos().values())
        return [[row for video in step for row in rows[video]] for step in steps]

    def batch(self, indices: Sequence[int], epoch: int) -> FrameBatch:
        """Return training samples as one batch of frames; a frozen backbone's output of each video is kept.

        The output is computed video by video, so that it does not depend on the batches.
        """
        batch = self.train.batch(indices, epoch)
        if self.recipe.model.mode != "frozen" or not self.recipe.augment.changes_nothing:
            return batch
        vids = list(dict.fromkeys(self.train.annotations[i].vid for i in indices))
        for v, vid in enumerate(vids):
            if vid not in self._encoded:
                real_C = batch.video_mask_VT[v].unflatten(0, (batch.frames_VCFSS3.shape[1], -1)).any(1)
                self._encoded[vid] = encode_chunks(self.backbones.tower, batch.frames_VCFSS3[v, real_C])
        encoded_VND = pad_sequence([self._encoded[vid] for vid in vids], batch_first=True)
        return replace(batch, encoded_VND=encoded_VND)

    def predict(self, model: nn.Module, samples: FrameDataset) -> list[Submission]:
        """Return a prediction for every annotation."""
        recipe = self.recipe
        return predict_frames(cast(Scada, model), samples, recipe.decoding, window_clips=recipe.window_clips)

    def checkpoint(self, model: nn.Module, metrics: Mapping[str, Any]) -> PixelCheckpoint:
        """Return the model with the specs of its backbones."""
        values = self.recipe.to_dict()
        return PixelCheckpoint(
            model=cast(Scada, model),
            model_name=self.recipe.side_tuner,
            model_config=values["model"],
            frames=self.spec,
            sentences=self.backbones.sentences,
            decode=self.recipe.decoding,
            window_clips=self.recipe.window_clips,
            metrics=dict(metrics),
            recipe=values,
        )

    def description(self) -> str:
        """Return backbone, sampling and sentence encoder."""
        spec, tower = self.spec, self.spec.tower
        return (
            f"{tower.backbone} ({tower.weights}), chunks of {tower.frames} frames of {tower.resolution} pixels, "
            f"{spec.frames_per_second:g} frames/s, clips of {self.train.timeline(0).clip_seconds:g} s; sentences by "
            f"{spec.sentences.encoder} ({spec.sentences.weights}), width {spec.sentences.width}"
        )


def _load_same(model: nn.Module, start: nn.Module, name: str) -> None:
    """Load the weights of a model into another one of the same sizes."""
    state = trained_state(start)
    if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in trained_state(model).items()}:
        raise ValueError(f"train.init: {name} is a model of other sizes than the recipe's")
    load_trained(model, state)


def open_data(recipe: Recipe, fabric: Fabric, *, quiet: bool = False) -> TrainingData:
    """Open the data of a run. The main process first makes what is missing: features, or decoded frames.

    Args:
        recipe: the run.
        fabric: launched; its device extracts.
        quiet: show no progress bar.

    Raises:
        ValueError: if annotations, features or videos are missing or do not fit the recipe.
    """
    opener = {"features": _open_features, "frames": _open_frames}[side_tuner(recipe.side_tuner).reads]
    return opener(recipe, fabric, quiet=quiet)


def _open_features(recipe: Recipe, fabric: Fabric, *, quiet: bool) -> TrainingData:
    def open_split(split: Split) -> GroundingDataset:
        annotations = read_split(recipe, split)
        store = open_features_for(
            annotations,
            feature_source(recipe, split),
            device=fabric.device,
            progress=not quiet,
            extracts=fabric.is_global_zero,
            barrier=fabric.barrier,
        )
        data = recipe.data
        return GroundingDataset(
            annotations,
            store,
            in_memory=data.in_memory,
            seed=recipe.train.seed,
            binding=data.binding,
            round_clips=data.round_clips,
        )

    return FeatureData(recipe, open_split("train"), open_split("val") if recipe.data.val else None)


def _open_frames(recipe: Recipe, fabric: Fabric, *, quiet: bool) -> TrainingData:
    splits: tuple[Split, ...] = ("train", "val") if recipe.data.val else ("train",)
    parts = [(rows, video_files(recipe, split, rows)) for split in splits for rows in [read_split(recipe, split)]]
    backbones = PixelBackbones.load(recipe.backbone, recipe.model.sentence_dim)
    cache = FrameCache(frames_folder(recipe), frame_sampling(backbones.spec))
    if fabric.is_global_zero:
        for rows, files in parts:
            require_durations(rows, {vid: files[vid] for vid in cache.missing(files)}, USUAL_CLIP_SECONDS)
        # Both splits at once, so that the size of all frames is compared with the limit before the work. A video of
        # both splits is named by the file.
        all_files = {str(file): file for _, files in parts for file in files.values()}
        seconds = {str(files[a.vid]): a.duration for rows, files in parts for a in rows}
        limit = parse_size(recipe.data.frames_cache_limit, name="data.frames_cache_limit")
        cache.fill(all_files, seconds, limit=limit, progress=not quiet)
    fabric.barrier()
    datasets = [frame_dataset(recipe, rows, files, cache, backbones) for rows, files in parts]
    return FrameData(recipe, datasets[0], datasets[1] if len(datasets) > 1 else None, backbones)


def model_of(recipe: Recipe) -> tuple[nn.Module, str]:
    """Return the model of a recipe with random weights, without its data, and in one line what it reads.

    Raises:
        ValueError: if the weights of a backbone that is trained from pixels are missing.
    """
    builder = {"features": _feature_model, "frames": _frame_model}[side_tuner(recipe.side_tuner).reads]
    return builder(recipe)


def _feature_model(recipe: Recipe) -> tuple[nn.Module, str]:
    values, backbone = recipe.to_dict()["model"], recipe.backbone
    reads = (
        f"{count_of(values['levels'], 'level')} of {backbone.name}, {backbone.pooling}, "
        f"widths {values['video_dim']} (video) and {values['text_dim']} (query)"
    )
    return build_model(recipe.side_tuner, values), reads


def _frame_model(recipe: Recipe) -> tuple[nn.Module, str]:
    backbones = PixelBackbones.load(recipe.backbone, recipe.model.sentence_dim)
    tower, spec = backbones.tower, backbones.spec
    model = build_model(recipe.side_tuner, recipe.to_dict()["model"], tower=tower, memory=recipe.memory)
    return model, (
        f"{spec.frames_per_second:g} frames a second of {spec.tower.resolution} pixels, through {spec.tower.backbone} "
        f"of {spec.tower.depth} blocks; sentences of {spec.sentences.encoder}, width {spec.sentences.width}"
    )


def frame_dataset(
    recipe: Recipe,
    annotations: Sequence[Annotation],
    files: Mapping[str, Path],
    cache: FrameCache,
    backbones: PixelBackbones,
) -> FrameDataset:
    """Return samples whose frames are in a cache.

    Args:
        recipe: the run.
        annotations: one sample each.
        files: id -> file of each video.
        cache: has the frames.
        backbones: encode the sentences.
    """
    per_chunk = recipe.model.clips_per_chunk
    return FrameDataset(
        annotations,
        cache,
        files,
        encode_sentences([a.query for a in annotations], backbones.sentences),
        clips_per_chunk=backbones.spec.tower.grid[0] if per_chunk is None else per_chunk,
        seed=recipe.train.seed,
        binding=recipe.data.binding,
        augmentation=recipe.augment,
    )


def frames_folder(recipe: Recipe) -> Path:
    """Return the folder of decoded frames."""
    return Path(recipe.data.frames_cache) if recipe.data.frames_cache else cache_folder("frames")


def video_files(recipe: Recipe, split: Split, annotations: Sequence[Annotation]) -> dict[str, Path]:
    """Return id -> file of the videos of annotations of a split.

    Raises:
        ValueError: if the recipe names no folder, or a file is missing.
    """
    folder = getattr(recipe.data, f"{split}_videos") or recipe.data.train_videos
    return find_videos(folder or raise_missing(f"data.{split}_videos"), (a.vid for a in annotations))


def feature_source(recipe: Recipe, split: Split) -> FeatureSource:
    """Return where the features and the videos of a split are.

    Raises:
        ValueError: if the recipe names no features.
    """
    data = recipe.data
    return FeatureSource(
        folder=getattr(data, f"{split}_features") or data.train_features or raise_missing("data.train_features"),
        videos=getattr(data, f"{split}_videos"),
        layout=data.layout or "",
        normalise=data.normalise,
        backbone=recipe.backbone.name,
        **recipe.backbone.options(),
    )


def _check_spec(recipe: Recipe, train: GroundingDataset) -> None:
    """Check that the features are those that the recipe describes, and that the model can read them."""
    spec, backbone, model = train.store.spec, recipe.backbone, recipe.model
    stored: Mapping[str, Any] = {
        "name": spec.backbone,
        "pooling": spec.pooling,
        "levels": spec.levels,
        "clip_seconds": spec.clip_seconds,
        "frames_per_clip": spec.frames_per_clip,
    }
    for name, stored_value in stored.items():
        value = backbone.chosen if name == "levels" else getattr(backbone, name)
        if value is not None and not _same(value, stored_value):
            raise ValueError(
                f"recipe: backbone.{name} says {value!r}, but the features in {train.store.folder} were made "
                f"with {stored_value!r}; correct the recipe or give other features"
            )
    widths = {"video_dim": spec.video_dim, "text_dim": spec.text_dim, "levels": len(spec.levels)}
    for name, width in widths.items():
        if name == "levels" and width != model.levels and backbone.chosen is not None:
            raise ValueError(
                f"recipe: model.levels is {model.levels}, but backbone.levels chooses {width}; make both equal"
            )
        if getattr(model, name) != width:
            raise ValueError(
                f"recipe: model.{name} is {getattr(model, name)}, but the features in {train.store.folder} have "
                f"{width}; set model.{name}={width} or give other features"
            )


def _same(value: Any, stored: Any) -> bool:
    # Lengths of clips are often fractions, such as 50/30 s, and a recipe has few decimals of them.
    return math.isclose(value, stored, rel_tol=1e-4) if isinstance(value, float) else bool(value == stored)
