"""Read tensor files of other programs without running code in them; check and write tensors.

A ``.pt`` or ``.pth`` file is a pickle, and a pickle may run any code when it is read. Here only PyTorch's reader of
tensors and plain values (``weights_only=True``) reads such a file, and it refuses everything else. Its error message
tells people to switch this safety off, so the message is replaced.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sidelight.io.files import replacing

_PLAIN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_RANDOM_FILLS, _RANDOM_TENSORS = (Tensor.normal_, Tensor.uniform_), (torch.randn, torch.rand)


class _Unfilled(TorchFunctionMode):
    """Compute no first values of tensors that have no memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = kwargs or {}
        if func in _RANDOM_TENSORS:
            return torch.empty(*args, **values)
        is_fill = func in _RANDOM_FILLS or getattr(func, "__module__", "") == "torch.nn.init"
        if is_fill or (func is Tensor.mul and not isinstance(args[1], Tensor)):
            tensor: Tensor = args[0] if args else values["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **values)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build models whose tensors have shapes but no memory.

    ``torch.device("meta")`` alone computes first values without memory, for which PyTorch imports its compiler: 2 s of
    CPU.
    """
    with torch.device("meta"), _Unfilled():
        yield


def existing_file(file: str | Path, *, expected: str) -> Path:
    """Return the path of a file, after checking that the file exists.

    Args:
        file: the path.
        expected: the expected kind of file, for the message: "a checkpoint that ... saved (.pth)".

    Raises:
        ValueError: if it is a folder or does not exist.
    """
    file = Path(file)
    if file.is_dir():
        raise ValueError(f"{file} is a folder; give the file in it: {expected}")
    if not file.is_file():
        raise ValueError(f"there is no file {file}; give {expected}")
    return file


def check_archive(data: bytes, file: str | Path) -> None:
    """Compare every part of a PyTorch checkpoint with its checksum, which PyTorch's reader does not do.

    Checkpoints of PyTorch before 1.6 are no archives and have no checksums; they pass.

    Args:
        data: content of the file.
        file: the name of the file in messages.

    Raises:
        ValueError: if a part has another checksum.
    """
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        wrong = str(error)
    if wrong:
        raise ValueError(
            f"{file} is damaged or was changed after it was saved: its part {shown(wrong)} does not fit its checksum; "
            "nothing in it was run; download it again"
        )


def read_tensors(source: bytes | Path, file: str | Path, *, allowed: Sequence[type] = ()) -> Any:
    """Read the content of a PyTorch checkpoint: tensors and plain values.

    Args:
        source: the bytes of the file, or its path; a file is mapped into memory where its format allows.
        file: the name of the file in messages.
        allowed: classes that it may hold besides; reading them must run no code of the file, and the caller must check
            what is in them.

    Raises:
        ValueError: if it is no PyTorch checkpoint, or holds other things than tensors and plain values.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")  # about the format of a file that is not ours
            if isinstance(source, Path):
                mapped = zipfile.is_zipfile(source)
                return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
            return torch.load(io.BytesIO(source), map_location="cpu", weights_only=True)
    except Exception as error:  # for a damaged or hostile file, the reader raises any kind of exception
        message = str(error)
        if isinstance(error, pickle.UnpicklingError) and (code := re.search(r"GLOBAL ([\w.]+)", message)):
            raise ValueError(
                f"{file} is refused: besides tensors it holds {code[1]}, and reading that would run code from the "
                "file; none was run; a published checkpoint does not need this: download it again from where it was "
                "published, and do not open this file by other means"
            ) from None
        # The reader's first line tells people to switch this safety off, so only a known cause is quoted.
        reason = re.search(
            r"(Unsupported operand \d+|invalid load key|PytorchStreamReader failed|TorchScript)", message
        )
        raise ValueError(
            f"{file} cannot be read as a PyTorch checkpoint{f' ({reason[1]})' if reason else ''}: it is damaged, was "
            "cut short, or is another kind of file; nothing in it was run; download it again"
        ) from None


def named_tensors(content: Any, file: str | Path, *, expected: str) -> dict[str, Tensor]:
    """Return content of a checkpoint as names and tensors, after checking each entry.

    Args:
        content: a part of the value of :func:`read_tensors`.
        file: the name of the file in messages.
        expected: the expected content, for the message: "names and tensors, bare or inside 'module'".

    Raises:
        ValueError: if the content is no mapping, is empty, or has an entry that is no tensor.
    """
    if not isinstance(content, Mapping) or not content:
        kind = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise ValueError(f"{file} does not hold {expected} (it holds: {kind}); give another file")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(
                f"{file} does not hold {expected}: its entry {shown(name)} is no tensor; give another file"
            )
    return dict(content)


def check_values(tensors: Mapping[str, Tensor], file: str | Path) -> None:
    """Refuse tensors that are not plain floating-point numbers, or hold numbers that are not finite.

    Raises:
        ValueError: naming the first such tensor.
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
    shapes: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]], file: object, *, what: str, advice: str
) -> None:
    """Compare every name and every shape of a file with those of a model.

    Args:
        shapes: name to shape, of the file.
        expected: name to shape, of the model.
        file: the name of the file in messages.
        what: the model, in words.
        advice: what to do about a difference.

    Raises:
        ValueError: if there is any difference; names missing tensors, unknown tensors and tensors of another shape.
    """
    problems = []
    if missing := [name for name in expected if name not in shapes]:
        problems.append(f"lacks {counted(missing, 3)}")
    if unknown := [name for name in shapes if name not in expected]:
        problems.append(f"has the unknown {counted(unknown, 3)}")
    if wrong := [name for name in expected if name in shapes and tuple(shapes[name]) != tuple(expected[name])]:
        name, more = wrong[0], f", and {len(wrong) - 1} more" if wrong[1:] else ""
        problems.append(f"has other shapes ({name} is {tuple(shapes[name])}, expected {tuple(expected[name])}{more})")
    if problems:
        raise ValueError(f"{file} does not hold {what}: it {', and '.join(problems)}; {advice}")


def own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors contiguous, none sharing memory with another: safetensors refuses shared memory."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.contiguous()
        storage = copy.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != copy.numel() * copy.element_size():
            copy = copy.clone()
        seen.add(copy.untyped_storage().data_ptr())
        separate[name] = copy
    return separate


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(own_memory(tensors), path, dict(metadata))
    except SafetensorError as error:  # raised when the disk is full
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise OSError(f"{path} could not be written ({error}); make room, or choose another folder") from None
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


def require_finite(tensors: Iterable[Tensor], what: object) -> None:
    """Refuse to save numbers that are not finite; copies one number from each device.

    Args:
        tensors: numbers of any type.
        what: the file that would hold them, for the message.

    Raises:
        ValueError: if a number is NaN or infinite.
    """
    checks = [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    by_device = {device: [check for check in checks if check.device == device] for device in {c.device for c in checks}}
    if not all(torch.stack(on_device).all() for on_device in by_device.values()):
        raise ValueError(f"{what} is not written: the weights are not finite (NaN or infinity); the older file stays")


def write_state(values: Mapping[str, Any], path: Path) -> None:
    """Write the state of a run, whole or not at all.

    Raises:
        OSError: if it cannot be written, such as when the disk is full.
    """
    with replacing(path) as beside:
        try:
            # Where PyTorch opens the file itself, its error does not say that the disk is full.
            with open(beside, "wb") as file:
                torch.save(dict(values), file)
        except (OSError, RuntimeError) as error:
            cause: BaseException | None = error  # PyTorch raises a RuntimeError in the course of an OSError
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            if cause is None:
                raise
            raise OSError(cause.errno, cause.strerror, str(path)) from None


def read_state(path: Path, names: Iterable[str], *, advice: str) -> dict[str, Any]:
    """Read the state of a run that :func:`write_state` wrote, on the CPU.

    Args:
        path: the file.
        names: the entries that it must have.
        advice: what to do if it is damaged.

    Raises:
        ValueError: if the file is damaged, cut short, or of another kind.
    """
    problem = f"{path} is damaged, was cut short, or is no saved state of this kind of run; {advice}"
    content = path.read_bytes()  # not mapped: a run's numbers must not depend on where its tensors lie
    try:
        check_archive(content, path)
        values = read_tensors(content, path)
    except ValueError:
        raise ValueError(problem) from None
    if not isinstance(values, dict) or not set(names) <= values.keys():
        raise ValueError(problem)
    return values


def shown(name: object) -> str:
    """Return a name from a file, which may be any text, in a form that fits a message."""
    text = name if isinstance(name, str) and name.isprintable() else repr(name)
    return text if len(text) <= 80 else f"{text[:77]}..."


def counted(names: Sequence[object], most: int = 1) -> str:
    """Return the first names, and the number of the rest, for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more
