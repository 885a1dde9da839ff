"""Checkpoints that others published -> checkpoints of ours.

A published checkpoint of R2-Tuning is a pickle, and a pickle may run any code when it is read: ``foreign.py`` reads it
without. Then every name and every shape is compared with what the recipe says, and only then is anything written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sidelight.io.files import cache_folder, replacing_folder, require_new_folder
from sidelight.io.tensors import check_values, counted, existing_file, read_tensors, shown
from sidelight.models.r2_tuning import R2Tuning, R2TuningConfig, from_published, our_name
from sidelight.training.checkpoint import FORMAT, Checkpoint
from sidelight.training.published import CLIP_WEIGHTS, CLIP_WIDTHS, R2_REPOSITORY, R2_TUNING, PublishedRun

FAMILY = "r2-tuning"
"""What the names of published runs begin with, and the model's name in our checkpoints."""
FILES = ("config.json", "model.safetensors")
_HASHED = re.compile(r"-([0-9a-f]{8})\.pth$")
_ALWAYS_THERE = {"loss._loss_sal.scale": (1,)}
"""What published files hold beside the model: the temperature of a loss."""


def convert_r2_tuning(
    file: str | Path,
    out: str | Path,
    *,
    recipe: str,
    video_dim: int | None = None,
    text_dim: int | None = None,
    hidden: int | None = None,
    weights: str | None = None,
    padding: Literal["independent", "exact"] = "independent",
) -> Checkpoint:
    """Turn a checkpoint that R2-Tuning's own code saved into a folder that :class:`Checkpoint` loads.

    Args:
        file: the ``.pth``. Nothing in it is executed.
        out: folder to make; appears whole or not at all.
        recipe: which published run it is, or is like: a key of :data:`sidelight.training.published.R2_TUNING`.
        video_dim: width of the backbone's video features, for a run of one's own; the recipe's unless given.
        text_dim: width of its text features.
        hidden: width inside the model.
        weights: which weights of CLIP made the features; CLIP ViT-B/32's unless given. Must be given where the
            widths are others.
        padding: what padding does to a sample (see ``R2TuningConfig``): nothing, or what it does in the published code.

    Returns:
        The checkpoint that was written.

    Raises:
        ValueError: if the file cannot be read, holds more than tensors and plain values, or is not what the recipe
            says; if ``out`` is there already and not empty.
    """
    file, out = Path(file), Path(out)
    run = own_run(run_of(recipe), video_dim, text_dim, hidden, padding)
    if weights is None and (run.model.video_dim, run.model.text_dim) != CLIP_WIDTHS:
        raise ValueError(
            f"features of widths {run.model.video_dim} and {run.model.text_dim} are not those of {CLIP_WEIGHTS} "
            f"({CLIP_WIDTHS[0]} and {CLIP_WIDTHS[1]}): say which weights made them by --weights NAME"
        )
    require_new_folder(out)
    data = existing_file(file, expected="a checkpoint that R2-Tuning's own code saved (.pth)").read_bytes()
    _check_identity(file, digest := hashlib.sha256(data).hexdigest(), recipe)
    known = digest.startswith(_digits(run.file))
    tensors = published_tensors(data, file)
    _check(tensors, run.model, file, recipe)
    model = R2Tuning(run.model)
    model.load_state_dict({name: tensor.float() for name, tensor in from_published(tensors).items()})
    checkpoint = Checkpoint(
        model=model.eval(),
        model_name=FAMILY,
        model_config=asdict(run.model),
        features=run.features(weights or CLIP_WEIGHTS),
        decode=run.decode,
        window_clips=run.window_clips,
        metrics={},
        recipe={
            "name": f"{FAMILY}/{recipe}",
            "converted_from": {
                "file": file.name,
                "sha256": digest,
                "published": f"{R2_REPOSITORY}/{run.file}" if known else None,
            },
            "model": asdict(run.model),
            "losses": asdict(run.losses),
        },
    )
    with replacing_folder(out) as beside:
        checkpoint.save_pretrained(beside)
    return checkpoint


def run_of(recipe: str) -> PublishedRun:
    """The published run of that name.

    Raises:
        ValueError: if there is none.
    """
    if recipe not in R2_TUNING:
        raise ValueError(f"there is no published run {recipe!r} of R2-Tuning; known are {', '.join(R2_TUNING)}")
    return R2_TUNING[recipe]


def own_run(
    run: PublishedRun,
    video_dim: int | None = None,
    text_dim: int | None = None,
    hidden: int | None = None,
    padding: Literal["independent", "exact"] = "independent",
) -> PublishedRun:
    """The run with the widths that are given."""
    given = {"video_dim": video_dim, "text_dim": text_dim, "hidden": hidden}
    changed: dict[str, Any] = {name: width for name, width in given.items() if width is not None}
    return replace(run, model=replace(run.model, padding=padding, **changed))


def published_tensors(data: bytes, file: str | Path) -> dict[str, Tensor]:
    """The entry "state_dict" of a published checkpoint, read without executing anything.

    Args:
        data: the file's content.
        file: how to call it in messages.

    Raises:
        ValueError: if it is no PyTorch checkpoint, holds anything but tensors and plain values, or has no such entry.
    """
    found = read_tensors(data, file)
    tensors = found.get("state_dict") if isinstance(found, dict) else None
    if not isinstance(tensors, Mapping) or not tensors:
        entries = ", ".join(map(shown, list(found)[:5])) if isinstance(found, dict) else f"a {type(found).__name__}"
        raise ValueError(
            f"{file} has no entry 'state_dict' with tensors, as R2-Tuning saves them (it has: {entries or 'nothing'}); "
            "give a checkpoint that R2-Tuning's own code saved"
        )
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{file}: the entry {shown(name)} of its state_dict is no tensor; download the file again")
    return dict(tensors)


def published_shapes(config: R2TuningConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a published checkpoint of this model, by its published name, and its shape."""
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
    with torch.device("meta"):
        ours = {name: tuple(tensor.shape) for name, tensor in R2Tuning(config).state_dict().items()}
    # One coefficient per stride, also where no head makes use of it.
    return {"coef": (len(config.strides),), **{name: ours[our_name(name)] for name in names}, **_ALWAYS_THERE}


def _check(tensors: Mapping[str, Tensor], config: R2TuningConfig, file: Path, recipe: str) -> None:
    """Compare every name, shape, type and value with what the recipe says; the first difference is the message."""
    expected = published_shapes(config)
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    if missing or extra:
        parts = {f"lacks {counted(missing)}": missing, f"has {counted(extra)} too many": extra}
        wrong = " and ".join(part for part, names in parts.items() if names)
        # The names alone tell moments from highlights, not one benchmark from another.
        like = [name for name, run in R2_TUNING.items() if set(published_shapes(run.model)) == set(tensors)]
        advice = (
            f"its tensors are those of {like[0]}{' and others' if like[1:] else ''}: give the recipe it was trained by"
            if like
            else "download it again, or give the recipe that it was trained by"
        )
        raise ValueError(f"{file} does not fit the recipe {recipe!r}: it {wrong}; {advice}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{file} does not fit the recipe {recipe!r}: {name} has shape {tuple(tensors[name].shape)}, "
                f"expected {shape}; {_widths_advice(tensors, config)}"
            )
    check_values(tensors, file)


def _widths_advice(tensors: Mapping[str, Tensor], config: R2TuningConfig) -> str:
    """What to do about a shape: the options that fit, if widths are all that differs."""
    video, text, inner = (
        tensors[f"adapter.{name}"] for name in ("video_map.0.weight", "query_map.0.weight", "q_map.bias")
    )
    if all(tensor.ndim == 1 for tensor in (video, text, inner)):
        found: dict[str, Any] = {
            "video_dim": len(video) - 2 * config.endpoint_features,
            "text_dim": len(text),
            "hidden": len(inner),
        }
        try:
            own = published_shapes(replace(config, **found))
        except ValueError:  # widths that no model can have
            own = {}
        if own == {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
            options = " ".join(f"--{name.replace('_', '-')} {width}" for name, width in found.items())
            return f"this is another model; if it is a run of your own, give its widths: {options}"
    return "download it again, or give the recipe that it was trained by"


def _check_identity(file: Path, digest: str, recipe: str) -> None:
    """Refuse a file that is not what its name says, or is another run's by its content."""
    said = _digits(file.name)
    if said and not digest.startswith(said):
        raise ValueError(
            f"{file} is not the file of that name: by its name its SHA-256 begins with {said[0]}, but it begins with "
            f"{digest[:8]}; download it again (or rename it, if you changed it yourself)"
        )
    for name, run in R2_TUNING.items():
        if name != recipe and digest.startswith(_digits(run.file)):
            raise ValueError(f"{file} is the published file of {name}, not of {recipe}: give --run {name}")


def _digits(name: str) -> tuple[str, ...]:
    """The first digits of a file's SHA-256 by its name, for ``startswith``; nothing if it names none."""
    return tuple(_HASHED.findall(name))


# published runs by name --------------------------------------------------------------------------------------------


def published_checkpoint(name: str | Path, *, revision: str | None = None) -> Path | None:
    """The folder of a published run as a checkpoint of ours, such as of ``r2-tuning/qvhighlights``.

    The first time, its file is downloaded by ``huggingface_hub`` (which keeps it in its own cache), compared with the
    digits of its SHA-256 that its name ends in, and converted into :func:`models_cache`; from then on, nothing is
    asked of the hub.

    Args:
        name: ``r2-tuning/`` and a key of :data:`sidelight.training.published.R2_TUNING`.
        revision: of the model repository. The same file is meant by any: its name tells its content.

    Returns:
        The folder, or None if the name is not of this kind.

    Raises:
        ValueError: for an unknown run; if the file cannot be had, or is not what it should be; if the cache cannot be
            written.
    """
    # As it was written: ./r2-tuning/qvhighlights is a folder of the user's.
    family, _, recipe = str(name).partition("/")
    if isinstance(name, Path) or family != FAMILY or not recipe or (recipe not in R2_TUNING and Path(name).is_dir()):
        return None
    run = run_of(recipe)
    # A later sidelight that says something else of the same file must not find this one's answer.
    said = json.dumps([FORMAT, asdict(run), run.features().to_dict()], sort_keys=True)
    folder = models_cache() / f"{FAMILY}-{recipe}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    if _whole(folder):
        return folder
    file = _download(run.file, recipe, revision)
    if _whole(folder):  # another process was first
        return folder
    if folder.is_dir():
        shutil.rmtree(folder, ignore_errors=True)  # somebody removed a file of it
    try:
        convert_r2_tuning(file, folder, recipe=recipe)
    except ValueError:
        if _whole(folder):
            return folder
        # The hub's client would give us the same file again.
        file.resolve().unlink(missing_ok=True)
        file.unlink(missing_ok=True)
        raise
    except OSError as error:
        if not _whole(folder):  # another process may have been first
            raise ValueError(
                f"{name} cannot be kept in {folder.parent} ({error.strerror or error}); make room there, or set "
                "SIDELIGHT_CACHE to a folder that can be written"
            ) from None
    return folder


def models_cache() -> Path:
    """Where converted checkpoints are kept: beside the features (:func:`sidelight.grounder.default_cache`)."""
    return cache_folder("models")


def _whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _download(path: str, recipe: str, revision: str | None) -> Path:
    """A file of the model repository, from the hub or from what its client keeps."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    by_hand = f"download it yourself and run: sidelight convert {FAMILY} FILE.pth --run {recipe} --out DIR"
    where = f"{R2_REPOSITORY}{f' at {revision}' if revision else ''}"
    try:
        with _quiet("huggingface_hub"):
            return Path(hf_hub_download(R2_REPOSITORY, path, revision=revision))
    except LocalEntryNotFoundError:  # before EntryNotFoundError, which it is a kind of
        problem = f"the hub cannot be reached; check the connection and try again, or {by_hand}"
    except EntryNotFoundError:
        problem = f"{where} has no such file on the hub; look there for its name today, {by_hand}"
    except (RepositoryNotFoundError, RevisionNotFoundError):
        problem = f"{where} is not on the hub, or not for everybody; look where it is today, {by_hand}"
    except Exception as error:  # the client's versions use different HTTP libraries, each with its own exceptions
        first = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        problem = f"the download broke off ({first}); nothing of it is used: try again, or {by_hand}"
    raise ValueError(f"{FAMILY}/{recipe}: {path} could not be downloaded: {problem}")


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Without a package's warnings: of each try of the hub's client, where one sentence at the end is enough."""
    found = logging.getLogger(logger)
    before = found.level
    found.setLevel(logging.ERROR)
    try:
        yield
    finally:
        found.setLevel(before)
