"""Convert the checkpoints of UniVTG's own code, such as "omni", into checkpoints of sidelight.

Such a file is a pickle. ``io/tensors.py`` reads it without running anything; of all classes, only the options of the
run (``argparse.Namespace``) are allowed in it, and their values must be plain. Then the checksums of the file, every
name, every shape and every value are compared, and only then is a checkpoint written.

Facts about "omni", the model that was trained on all benchmarks together, are from ``scripts/cotrain.sh`` and
``main_gradio.py`` of github.com/showlab/UniVTG. The file itself was not at hand: the converter accepts it with and
without options, and with and without the prefix ``module.`` of distributed training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from sidelight.backbones.clip.released import CLIP_B32, CLIP_MEAN, CLIP_STD
from sidelight.backbones.conversion import DOWNLOAD_AGAIN, count_blocks, shapes_of, sizes_of
from sidelight.backbones.protocol import FeatureSpec
from sidelight.core.options import is_finite_number
from sidelight.features.layouts import NORMALISED
from sidelight.io.files import read_text, replacing_folder, require_new_folder
from sidelight.io.pinned import models_cache
from sidelight.io.tensors import check_archive, check_shapes, check_values, existing_file, named_tensors, read_tensors
from sidelight.models.decode.univtg import UniVTGDecodeConfig
from sidelight.models.losses.univtg import UniVTGLossConfig
from sidelight.models.univtg import UniVTG, UniVTGConfig, from_published, published_shapes
from sidelight.training.checkpoint import Checkpoint, is_complete

OMNI = "univtg/omni"
"""Name of the model that was trained on QVHighlights, Charades-STA, Ego4D-NLQ, TACoS, ActivityNet and DiDeMo."""
OMNI_PAGE = "https://drive.google.com/drive/folders/1l6RyjGuqkzfZryCC6xwTZsvjWaIMVxIO"
"""Where its authors publish it (README of the repository). No digest of it is known."""
OMNI_WIDTHS = (512, 512)
"""Widths of its features: CLIP ViT-B/32's joint space, and its text tower."""
WINDOW_CLIPS = 702
"""Longest input in clips. The published code reads whole videos; the longest that omni was trained on are TACoS's."""
_FIXED: Mapping[str, Any] = {
    "use_txt_pos": False,
    "pre_norm": False,
    "position_embedding": "sine",
    "span_loss_type": "l1",
    "ctx_mode": "video_tef",
    "no_norm_vfeat": False,
    "no_norm_tfeat": False,
}
"""Options with one value that is supported; it is the one of all published scripts."""


def convert_univtg(
    file: str | Path,
    out: str | Path | None = None,
    *,
    options: str | Path | None = None,
    weights: str | None = None,
    padding: Literal["independent", "exact"] = "independent",
) -> Checkpoint:
    """Convert a checkpoint that UniVTG's own code saved into a folder that :class:`Checkpoint` loads.

    Widths are read from the tensors. The number of heads and the length of a clip are read from the options of the
    run: in ``options``, else in the file, else in ``opt.json`` beside it, else they are omni's.

    Args:
        file: the ``.ckpt``. Nothing in it is executed.
        out: folder to make; appears whole or not at all. None for the cache, where the name ``univtg/omni`` finds it.
        options: the ``opt.json`` of the run.
        weights: name of the CLIP weights that made the features; CLIP ViT-B/32's if None. Required for other widths
            than ViT-B/32's, unless the options say that other features were put beside CLIP's.
        padding: whether padding changes a sample (see ``UniVTGConfig``).

    Returns:
        The checkpoint that was written.

    Raises:
        ValueError: if the file cannot be read, was changed, holds more than tensors, plain values and options, or is no
            model of UniVTG; if the options do not fit it; if ``out`` exists and is not empty.
    """
    file = existing_file(file, expected="a checkpoint that UniVTG's own code saved (.ckpt)")
    folder = _new_folder(out)
    data = file.read_bytes()
    check_archive(data, file)
    content = read_tensors(data, file, allowed=(argparse.Namespace,))
    tensors = _model_tensors(content, file)
    run = _run_options(content, file, options)
    model_config = _model_config(tensors, run, file, padding)
    check_values(tensors, file)
    widths = (model_config.video_dim, model_config.text_dim)
    if out is None:
        _require_omni(widths, run, file)
    model = UniVTG(model_config)
    model.load_state_dict({name: tensor.float() for name, tensor in from_published(tensors).items()})
    checkpoint = Checkpoint(
        model=model.eval(),
        model_name="univtg",
        model_config=asdict(model_config),
        features=_feature_spec(model_config, run, file, weights),
        decode=UniVTGDecodeConfig(saliency="sum" if run.values.get("eval_mode") == "add" else "cosine"),
        window_clips=WINDOW_CLIPS,
        round_clips=True,  # the frames were extracted by FFmpeg's filter fps, which rounds
        metrics={},
        recipe={
            "name": OMNI if widths == OMNI_WIDTHS else "univtg",
            "converted_from": {
                "file": file.name,
                "sha256": hashlib.sha256(data).hexdigest(),
                "options": run.source,
            },
            "model": asdict(model_config),
            "losses": asdict(run.losses()),
        },
    )
    with replacing_folder(folder) as beside:
        checkpoint.save_pretrained(beside)
    return checkpoint


def _new_folder(out: str | Path | None) -> Path:
    """Return the folder to make; ValueError if it is in use."""
    folder = imported_folder() if out is None else Path(out)
    if out is None and is_complete(folder):
        raise ValueError(
            f"{OMNI} is here already, in {folder}; remove it (sidelight models remove {OMNI}) to import another file, "
            "or give --out"
        )
    require_new_folder(folder)
    return folder


def _require_omni(widths: tuple[int, int], run: _RunOptions, file: Path) -> None:
    """Refuse another model of UniVTG under the name of omni."""
    if widths != OMNI_WIDTHS or run.kind != "clip":
        raise ValueError(
            f"{file} is not {OMNI}, which reads features of CLIP of the widths {OMNI_WIDTHS[0]} and {OMNI_WIDTHS[1]}; "
            f"this model reads the widths {widths[0]} and {widths[1]}: give --out DIR, and name DIR where you use it"
        )


def imported_folder() -> Path:
    """Return the folder of the cache that the name ``univtg/omni`` stands for."""
    return models_cache() / OMNI.replace("/", "-")


def imported_omni() -> Path:
    """Return the folder of the imported "omni".

    Raises:
        ValueError: if nobody imported it; says how to.
    """
    folder = imported_folder()
    if not is_complete(folder):
        raise ValueError(
            f"{OMNI} is not on this machine, and sidelight cannot download it: its authors publish it on Google Drive. "
            f"Get the checkpoint (and opt.json) from {OMNI_PAGE} and run: sidelight convert univtg FILE.ckpt"
        )
    return folder


# the options of the run ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _RunOptions:
    """The options of a published run, checked to be plain values."""

    source: str
    """Where they were found."""
    values: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """Return the kinds of video features, joined by _, such as slowfast_clip."""
        return str(self.values.get("v_feat_types", "clip"))

    def number(self, name: str, default: float) -> float:
        """Return a number that is at least 0."""
        value = self.values.get(name, default)
        if not is_finite_number(value) or value < 0:
            raise ValueError(f"{self.source}: {name} must be a number, at least 0; got {value!r}")
        return float(value)

    def losses(self) -> UniVTGLossConfig:
        """Return the weights of the losses."""
        names = {
            "weight_l1": "b_loss_coef",
            "weight_giou": "g_loss_coef",
            "weight_class": "f_loss_coef",
            "weight_saliency": "s_loss_intra_coef",
            "weight_alignment_batch": "s_loss_inter_coef",
            "background_weight": "eos_coef",
        }
        known: dict[str, Any] = {ours: self.number(name, 0) for ours, name in names.items() if name in self.values}
        return UniVTGLossConfig(**known)


def _run_options(content: Any, file: Path, path: str | Path | None) -> _RunOptions:
    """Return the options in a JSON file, in the checkpoint, or beside it; no options if there are none."""
    beside = file.parent / "opt.json"
    stored = content.get("opt")
    if path is None and stored is not None:
        source, values = (
            f"the options in {file.name}",
            vars(stored) if isinstance(stored, argparse.Namespace) else stored,
        )
    elif path is not None or beside.is_file():
        path = existing_file(path or beside, expected="the opt.json of the run")
        source = str(path) if path != beside else f"{path}, beside the checkpoint"
        try:
            values = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON ({error}); give the opt.json of the run") from None
    else:
        return _RunOptions(source="none; those of omni were taken", values={})
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{source} must be names and values, got a {type(values).__name__}; give the opt.json of the run"
        )
    plain = (int, float, str, bool, type(None))
    for name, value in values.items():
        parts = value if isinstance(value, list) else [value]
        if not isinstance(name, str) or not all(type(part) in plain for part in parts):
            raise ValueError(
                f"{source}: {name!s:.80} must be a plain value or a list of them; give the opt.json of the run"
            )
    return _RunOptions(source=source, values=dict(values))


# the tensors ---------------------------------------------------------------------------------------------------------


def _model_tensors(content: Any, file: Path) -> dict[str, Tensor]:
    """Return the entry "model", without the prefix of distributed training."""
    if not isinstance(content, Mapping) or "model" not in content:
        kind = f"a {type(content).__name__}" if not isinstance(content, Mapping) else ", ".join(map(str, content))[:80]
        raise ValueError(
            f"{file} has no entry 'model', as UniVTG saves it (it has: {kind or 'nothing'}); give a checkpoint that "
            "UniVTG's own code saved"
        )
    tensors = named_tensors(content["model"], file, expected="names and tensors inside 'model'")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _model_config(
    tensors: Mapping[str, Tensor], run: _RunOptions, file: Path, padding: Literal["independent", "exact"]
) -> UniVTGConfig:
    """Return the configuration that the shapes and the options tell; ValueError if a tensor does not fit it."""
    shapes = shapes_of(tensors)
    try:
        layers = count_blocks(shapes, "transformer.encoder.layers")
        ffn, hidden = sizes_of(shapes, "transformer.encoder.layers.0.linear1.weight", 2)
        (video_dim,) = sizes_of(shapes, "input_vid_proj.0.LayerNorm.weight", 1)
        (text_dim,) = sizes_of(shapes, "input_txt_proj.0.LayerNorm.weight", 1)
        query_places, _ = sizes_of(shapes, "txt_position_embed.position_embeddings.weight", 2)
        config = UniVTGConfig(
            video_dim=video_dim - 2,  # the start and end of each clip are put beside its features
            text_dim=text_dim,
            hidden=hidden,
            heads=round(run.number("nheads", UniVTGConfig.heads)),
            layers=layers,
            ffn=ffn,
            anchor=run.number("clip_length", 2.0) / 2,
            dropout=run.number("input_dropout", UniVTGConfig.dropout),
            droppath=run.number("droppath", UniVTGConfig.droppath),
            padding=padding,
        )
    except ValueError as error:
        raise ValueError(f"{file} is no model of UniVTG that can be converted: {error}") from None
    expected = published_shapes(config, query_places)
    check_shapes(shapes, expected, file, what="a model of UniVTG", advice=DOWNLOAD_AGAIN)
    _check_options(config, run, file)
    return config


def _check_options(config: UniVTGConfig, run: _RunOptions, file: Path) -> None:
    """Refuse options of another model, and options that this model does not have."""
    sizes: Mapping[str, tuple[int, ...]] = {
        "hidden_dim": (config.hidden,),
        "enc_layers": (config.layers,),
        "dim_feedforward": (config.ffn,),
        "t_feat_dim": (config.text_dim,),
        # opt.json is written before the start and end of each clip are counted, the options in the file after that.
        "v_feat_dim": (config.video_dim, config.video_dim + 2),
    }
    for name, allowed in sizes.items():
        if name in run.values and run.values[name] not in allowed:
            raise ValueError(
                f"{run.source} is of another model than {file.name}: {name} is {run.values[name]!r}, the tensors say "
                f"{allowed[0]}; give the opt.json of its run by --options"
            )
    for name, supported in _FIXED.items():
        if run.values.get(name, supported) != supported:
            raise ValueError(
                f"{run.source}: {name} is {run.values[name]!r}, sidelight's UniVTG knows {supported!r} only, which all "
                "published scripts have; give another checkpoint"
            )


def _feature_spec(config: UniVTGConfig, run: _RunOptions, file: Path, weights: str | None) -> FeatureSpec:
    """Return the spec of the features that the model reads."""
    clip_only = run.kind == "clip"
    if weights is None and clip_only and (config.video_dim, config.text_dim) != OMNI_WIDTHS:
        raise ValueError(
            f"{file} reads features of widths {config.video_dim} and {config.text_dim}, which are not those of "
            f"{CLIP_B32} ({OMNI_WIDTHS[0]} and {OMNI_WIDTHS[1]}): say which weights made them by --weights NAME"
        )
    return FeatureSpec(
        # Features of several backbones are named as the layout moment-detr names them.
        backbone="clip" if clip_only else run.kind.replace("_", "+"),
        weights=weights or (CLIP_B32 if clip_only else f"moment-detr{NORMALISED}"),
        levels=(-1,),
        pooling="joint-video" if clip_only else "cls",
        clip_seconds=run.number("clip_length", 2.0),
        frames_per_clip=1,
        resolution=224,
        resize="crop",
        mean=CLIP_MEAN,
        std=CLIP_STD,
        video_dim=config.video_dim,
        text_dim=config.text_dim,
    )
