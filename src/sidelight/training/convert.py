"""Convert checkpoints that others published into checkpoints of sidelight.

A published checkpoint of R2-Tuning is a pickle, and reading a pickle may run any code. ``io/tensors.py`` reads it
without running any. Then every name and every shape is compared with the published run, and only then is a file
written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from sidelight.core.messages import no_such
from sidelight.io.files import replacing_folder, require_new_folder
from sidelight.io.pinned import compares_digests
from sidelight.io.tensors import check_values, counted, existing_file, read_tensors, shapes_only, shown
from sidelight.models.r2_tuning import R2Tuning, R2TuningConfig, from_published, our_name
from sidelight.training.checkpoint import Checkpoint
from sidelight.training.published import CLIP_WEIGHTS, CLIP_WIDTHS, R2_REPOSITORY, R2_TUNING, PublishedRun

FAMILY = "r2-tuning"
"""First part of the names of published runs, and the model's name in checkpoints of sidelight."""
_DIGITS_IN_NAME = re.compile(r"-([0-9a-f]{8})\.pth$")
_LOSS_SHAPES = {"loss._loss_sal.scale": (1,)}
"""Published files hold the temperature of a loss beside the model."""
_OTHER_FILE = "download it again, or give the --run that it was trained by"


def convert_r2_tuning(
    file: str | Path,
    out: str | Path,
    *,
    run: str,
    video_dim: int | None = None,
    text_dim: int | None = None,
    hidden: int | None = None,
    weights: str | None = None,
    padding: Literal["independent", "exact"] = "independent",
) -> Checkpoint:
    """Convert a checkpoint that R2-Tuning's own code saved into a folder that :class:`Checkpoint` loads.

    Args:
        file: the ``.pth``. Nothing in it is executed.
        out: folder to make; appears whole or not at all.
        run: the published run that the checkpoint is from, or was trained like: a key of
            :data:`sidelight.training.published.R2_TUNING`.
        video_dim: width of the backbone's video features, if it differs from the published run's.
        text_dim: width of its text features, if it differs.
        hidden: width inside the model, if it differs.
        weights: name of the CLIP weights that made the features; CLIP ViT-B/32's if None. Required where the widths
            are not those of ViT-B/32.
        padding: whether padding changes a sample (see ``R2TuningConfig``): "exact" as in the published code,
            "independent" never.

    Returns:
        The checkpoint that was written.

    Raises:
        ValueError: if the file cannot be read, holds more than tensors and plain values, or does not fit the run;
            if ``out`` exists and is not empty.
    """
    file, out = Path(file), Path(out)
    published = with_widths(published_run(run), video_dim, text_dim, hidden, padding)
    weights = weights or _weights_by_widths(published.model)
    require_new_folder(out)
    data = existing_file(file, expected="a checkpoint that R2-Tuning's own code saved (.pth)").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    _check_digest(file, digest, run)
    tensors = published_tensors(data, file)
    _check_tensors(tensors, published.model, file, run)
    model = R2Tuning(published.model)
    model.load_state_dict({name: tensor.float() for name, tensor in from_published(tensors).items()})
    checkpoint = Checkpoint(
        model=model.eval(),
        model_name=FAMILY,
        model_config=asdict(published.model),
        features=published.features(weights),
        decode=published.decode,
        window_clips=published.window_clips,
        round_clips=published.round_clips,
        metrics={},
        recipe={
            "name": f"{FAMILY}/{run}",
            "converted_from": _origin(file, digest, published),
            "model": asdict(published.model),
            "losses": asdict(published.losses),
        },
    )
    with replacing_folder(out) as beside:
        checkpoint.save_pretrained(beside)
    return checkpoint


def _weights_by_widths(model: R2TuningConfig) -> str:
    """Return the name of the published CLIP weights; ValueError if the features' widths are not theirs."""
    if (model.video_dim, model.text_dim) != CLIP_WIDTHS:
        raise ValueError(
            f"features of widths {model.video_dim} and {model.text_dim} are not those of "
            f"{CLIP_WEIGHTS} ({CLIP_WIDTHS[0]} and {CLIP_WIDTHS[1]}): say which weights made them by --weights NAME"
        )
    return CLIP_WEIGHTS


def _origin(file: Path, digest: str, published: PublishedRun) -> dict[str, str | None]:
    """Return from which file a checkpoint was converted, and its address if it is the published file itself."""
    is_published_file = digest.startswith(_digits_in(published.file))
    address = f"{R2_REPOSITORY}/{published.file}" if is_published_file else None
    return {"file": file.name, "sha256": digest, "published": address}


def published_run(run: str) -> PublishedRun:
    """Return the published run of a name.

    Raises:
        ValueError: if there is none.
    """
    if run not in R2_TUNING:
        raise ValueError(no_such("published run of R2-Tuning", run, R2_TUNING))
    return R2_TUNING[run]


def with_widths(
    run: PublishedRun,
    video_dim: int | None = None,
    text_dim: int | None = None,
    hidden: int | None = None,
    padding: Literal["independent", "exact"] = "independent",
) -> PublishedRun:
    """Return a run with other widths; a width that is None stays."""
    widths = {"video_dim": video_dim, "text_dim": text_dim, "hidden": hidden}
    changed: dict[str, Any] = {name: width for name, width in widths.items() if width is not None}
    return replace(run, model=replace(run.model, padding=padding, **changed))


def published_tensors(data: bytes, file: str | Path) -> dict[str, Tensor]:
    """Return the entry "state_dict" of a published checkpoint, without executing anything.

    Args:
        data: content of the file.
        file: name of the file, for messages.

    Raises:
        ValueError: if it is no PyTorch checkpoint, holds anything but tensors and plain values, or has no such entry.
    """
    content = read_tensors(data, file)
    tensors = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(tensors, Mapping) or not tensors:
        entries = (
            ", ".join(map(shown, list(content)[:5])) if isinstance(content, dict) else f"a {type(content).__name__}"
        )
        raise ValueError(
            f"{file} has no entry 'state_dict' with tensors, as R2-Tuning saves them (it has: {entries or 'nothing'}); "
            "give a checkpoint that R2-Tuning's own code saved"
        )
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{file}: the entry {shown(name)} of its state_dict is no tensor; download the file again")
    return dict(tensors)


def published_shapes(config: R2TuningConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a published checkpoint of this model, by published name."""
    both = ("weight", "bias")
    layers = [f"adapter.{side}_map.{i}" for side in ("video", "query") for i in (0, 2, 4, 6)]
    layers += [f"adapter.{name}_map" for name in "vq"]
    layers += [f"adapter.tem.{kind}_att.{name}" for kind in ("cross", "self") for name in "qkvm"]
    layers += [f"adapter.tem.{name}_norm" for name in ("cross_att", "self_att", "ffn")]
    layers += [f"adapter.tem.ffn.mapping.{i}" for i in (0, 2)]
    # Level i halves i times; each halving is five modules, the second a convolution and the fourth a norm.
    places = [(i, 5 * step + inner) for i in range(len(config.strides)) for step in range(i) for inner in (1, 3)]
    layers += [f"pyramid.blocks.{i}.{place}" for i, place in places]
    heads = ("class_head", "coord_head") if config.boundary_head else ("class_head",)
    layers += [f"{head}.module.{i}" for head in heads for i in (1, 3)]
    names = ["adapter.gate", "adapter.scale", *(f"{layer}.{part}" for layer in layers for part in both)]
    names.append("pooling.att.weight")
    with shapes_only():
        ours = {name: tuple(tensor.shape) for name, tensor in R2Tuning(config).state_dict().items()}
    # One coefficient per stride, also where no head uses it.
    return {"coef": (len(config.strides),), **{name: ours[our_name(name)] for name in names}, **_LOSS_SHAPES}


def _check_tensors(tensors: Mapping[str, Tensor], config: R2TuningConfig, file: Path, run: str) -> None:
    """Compare every name, shape, type and value with the model; the first difference is the message."""
    expected = published_shapes(config)
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    if missing or extra:
        parts = {f"lacks {counted(missing)}": missing, f"has {counted(extra)} too many": extra}
        wrong = " and ".join(part for part, names in parts.items() if names)
        # The names alone tell moments from highlights, not one benchmark from another.
        similar = [name for name, known in R2_TUNING.items() if set(published_shapes(known.model)) == set(tensors)]
        others = " and others" if similar[1:] else ""
        advice = f"its tensors are those of {similar[0]}{others}: give the right --run" if similar else _OTHER_FILE
        raise ValueError(f"{file} does not fit the published run {run!r}: it {wrong}; {advice}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{file} does not fit the published run {run!r}: {name} has shape {tuple(tensors[name].shape)}, "
                f"expected {shape}; {_widths_advice(tensors, config)}"
            )
    check_values(tensors, file)


def _widths_advice(tensors: Mapping[str, Tensor], config: R2TuningConfig) -> str:
    """Return what to do about a wrong shape: which options fit, if only widths differ."""
    video, text, inner = (
        tensors[f"adapter.{name}"] for name in ("video_map.0.weight", "query_map.0.weight", "q_map.bias")
    )
    if all(tensor.ndim == 1 for tensor in (video, text, inner)):
        widths: dict[str, Any] = {
            "video_dim": len(video) - 2 * config.endpoint_features,
            "text_dim": len(text),
            "hidden": len(inner),
        }
        try:
            shapes = published_shapes(replace(config, **widths))
        except ValueError:  # widths that no model can have
            shapes = {}
        if shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
            options = " ".join(f"--{name.replace('_', '-')} {width}" for name, width in widths.items())
            return f"this is another model; if it is a run of your own, give its widths: {options}"
    return _OTHER_FILE


def _check_digest(file: Path, digest: str, run: str) -> None:
    """Refuse a file whose SHA-256 is not the one in its name, or is that of another published run."""
    digits = _digits_in(file.name)
    if digits and compares_digests() and not digest.startswith(digits):
        raise ValueError(
            f"{file} is not the file of that name: by its name its SHA-256 begins with {digits[0]}, but it begins with "
            f"{digest[:8]}; download it again (or rename it, if you changed it yourself)"
        )
    for name, published in R2_TUNING.items():
        if name != run and digest.startswith(_digits_in(published.file)):
            raise ValueError(f"{file} is the published file of {name}, not of {run}: give --run {name}")


def _digits_in(name: str) -> tuple[str, ...]:
    """Return the first digits of the SHA-256 that a file's name ends in, for ``startswith``; () if there are none."""
    return tuple(_DIGITS_IN_NAME.findall(name))
