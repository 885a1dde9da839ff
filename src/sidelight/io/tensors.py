"""Files of tensors that others saved, read without running anything in them.

A ``.pt`` or ``.pth`` is a pickle, and a pickle may run any code when it is read. Here only PyTorch's own reader of
tensors and plain values reads one (``weights_only=True``), which refuses everything else, and what it says is told in
one sentence: the reader's own message teaches people to switch that safety off.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def existing_file(file: str | Path, *, expected: str) -> Path:
    """The path of a file that is there.

    Args:
        file: the path.
        expected: what to give, for the message: "a checkpoint that ... saved (.pth)".

    Raises:
        ValueError: if it is a folder, or not there.
    """
    file = Path(file)
    if file.is_dir():
        raise ValueError(f"{file} is a folder; give the file in it: {expected}")
    if not file.is_file():
        raise ValueError(f"there is no file {file}; give {expected}")
    return file


def read_tensors(source: bytes | Path, file: str | Path) -> Any:
    """What a PyTorch checkpoint holds, tensors and plain values.

    Args:
        source: its content; or its path, and then it is mapped into memory where its form allows.
        file: how to call it in messages.

    Raises:
        ValueError: if it is no PyTorch checkpoint, or holds anything but tensors and plain values.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the form of a file that is not ours
            if isinstance(source, Path):
                mapped = zipfile.is_zipfile(source)
                return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
            return torch.load(io.BytesIO(source), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file: the reader's exceptions are of every kind
        said = str(error)
        if isinstance(error, pickle.UnpicklingError) and (asked := re.search(r"GLOBAL ([\w.]+)", said)):
            raise ValueError(
                f"{file} is refused: besides tensors it holds {asked[1]}, and to read that is to run code out of the "
                "file; none was run; a published checkpoint needs nothing of the kind: download it again from where it "
                "was published, and do not open this one by other means"
            ) from None
        # The reader's first line tells people to switch this safety off.
        reason = re.search(r"(Unsupported operand \d+|invalid load key|PytorchStreamReader failed|TorchScript)", said)
        raise ValueError(
            f"{file} cannot be read as a PyTorch checkpoint{f' ({reason[1]})' if reason else ''}: it is damaged, was "
            "cut short, or is another kind of file; nothing in it was run; download it again"
        ) from None


def named_tensors(found: Any, file: str | Path, *, expected: str) -> dict[str, Tensor]:
    """Names and tensors out of what was read, each checked to be one.

    Args:
        found: a part of what :func:`read_tensors` returned.
        file: how to call it in messages.
        expected: what stands where the tensors should be: "names and tensors, bare or inside 'module'".

    Raises:
        ValueError: if it is nothing of the kind, is empty, or a value is no tensor.
    """
    if not isinstance(found, Mapping) or not found:
        has = "nothing" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise ValueError(f"{file} does not hold {expected} (it holds: {has}); give another file")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(
                f"{file} does not hold {expected}: its entry {shown(name)} is no tensor; give another file"
            )
    return dict(found)


def check_values(tensors: Mapping[str, Tensor], file: str | Path) -> None:
    """Refuse tensors that are not plain floating-point numbers, or hold any that are not finite.

    Raises:
        ValueError: naming the first.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.dtype not in _PLAIN:
            kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
            raise ValueError(f"{file}: {shown(name)} is of type {kind}, expected plain floating-point numbers")
        if not tensor.isfinite().all():
            raise ValueError(
                f"{file}: {shown(name)} holds numbers that are not finite (NaN or infinity): the file is damaged or "
                "its run had diverged; download it again, or take an earlier checkpoint"
            )


def check_shapes(
    found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]], file: object, *, what: str, advice: str
) -> None:
    """Compare every name and every shape; one sentence names what is missing, too much, or of another shape.

    Args:
        found: name to shape, of the file.
        wanted: name to shape, of the model.
        file: how to call it in messages.
        what: the model, in words.
        advice: what to do about a difference.

    Raises:
        ValueError: if there is any difference.
    """
    wrong = []
    if missing := [name for name in wanted if name not in found]:
        wrong.append(f"lacks {counted(missing, 3)}")
    if extra := [name for name in found if name not in wanted]:
        wrong.append(f"has the unknown {counted(extra, 3)}")
    if other := [name for name in wanted if name in found and tuple(found[name]) != tuple(wanted[name])]:
        first = other[0]
        more = f", and {len(other) - 1} more" if other[1:] else ""
        wrong.append(f"has other shapes ({first} is {tuple(found[first])}, expected {tuple(wanted[first])}{more})")
    if wrong:
        raise ValueError(f"{file} does not hold {what}: it {', and '.join(wrong)}; {advice}")


def own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, contiguous, none a part of another's memory: safetensors refuses such."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.contiguous()
        storage = whole.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != whole.numel() * whole.element_size():
            whole = whole.clone()
        seen.add(whole.untyped_storage().data_ptr())
        found[name] = whole
    return found


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(own_memory(tensors), path, dict(metadata))
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(f"{path} could not be written ({error}); make room, or choose another folder") from None


def shown(name: object) -> str:
    """A name out of a file, which may be anything, for a message."""
    text = name if isinstance(name, str) and name.isprintable() else repr(name)
    return text if len(text) <= 80 else f"{text[:77]}..."


def counted(names: Sequence[object], most: int = 1) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more
