"""Arrays in files of others. The files are not trusted: no pickles, no other types, no names outside the folder."""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from sidelight.core.messages import size_of
from sidelight.io.files import replacing

Array = npt.NDArray[Any]
_EPSILON = 1e-5  # of Moment-DETR's normalisation
_SMALL = 64 << 20
"""Bytes that any archive may hold."""
_MOST_COMPRESSED = 100
"""Bytes that an archive may hold for each byte of its file; floating-point features compress to a half or a third."""
_DAMAGED = (
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    # NumPy reads the header of an array with Python's own tokenizer and parser.
    SyntaxError,
    TokenError,
    TypeError,
    KeyError,
)
"""What NumPy and zipfile raise for a damaged array or archive."""


def safe_name(name: str, what: str = "id") -> str:
    """Return the name; ValueError if it could name a file outside the folder."""
    if not name or name in (".", "..") or "\0" in name or PureWindowsPath(f"{name}.npz").name != f"{name}.npz":
        raise ValueError(f"the {what} {name!r} cannot be the name of a file: it must have no / and no \\; change it")
    return name


def find(folder: Path, names: Iterable[str], suffix: str) -> Path | None:
    """Return the first file of a folder that has one of these names; None if there is none."""
    paths = (folder / f"{safe_name(name)}{suffix}" for name in names)
    return next((path for path in paths if path.is_file()), None)


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if "pickle" in reason.lower() or "Python objects" in reason:
        reason = "it holds pickled objects, which can run code"
    return ValueError(f"{path} cannot be read as an array of numbers: {reason}; download or write it again")


def _require_floats(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise _unreadable(path, ValueError("pickle"))
    if dtype.kind != "f":
        raise ValueError(f"{path} must hold floating-point numbers, got {dtype}")


def mapped(path: Path) -> Array:
    """Map a ``.npy`` into memory; ValueError if it is damaged or holds no floating-point numbers."""
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _DAMAGED as error:
        raise _unreadable(path, error) from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} must be one array, not an archive of several")
    _require_floats(path, array.dtype)
    return array


def members(path: Path) -> list[str]:
    """Return the names of the arrays in a ``.npz``; ValueError if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except _DAMAGED as error:
        raise _unreadable(path, error) from None


@contextlib.contextmanager
def _opened(path: Path, key: str) -> Iterator[tuple[IO[bytes], int]]:
    """Open an array of a ``.npz``, and give its size in bytes; ValueError if it is missing or damaged."""
    if key not in (names := members(path)):
        raise ValueError(
            f"{path} must hold an array {key!r}, got {', '.join(names) or 'none'}; check that it is of this layout"
        )
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            size = archive.getinfo(f"{key}.npy").file_size
            if size > (most := max(_SMALL, _MOST_COMPRESSED * path.stat().st_size)):
                raise ValueError(
                    f"its {size_of(path.stat().st_size)} would become {size_of(size)}; the limit is {size_of(most)}, "
                    f"as real features are never {_MOST_COMPRESSED} times smaller when they are compressed"
                )
            yield file, size
    except _DAMAGED as error:
        raise _unreadable(path, error) from None


def packed(path: Path, key: str) -> Array:
    """Read an array of a ``.npz``; ValueError if it is missing or damaged."""
    with _opened(path, key) as (file, size):
        # NumPy allocates as much memory as the header claims: a small file must not claim a huge array.
        shape, dtype = _header(file)
        if math.prod(shape) * dtype.itemsize > size:
            raise ValueError(f"its header claims {shape} numbers, but it has {size} bytes")
        file.seek(0)
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of the array that begins at the file's position."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def packed_shape(path: Path, key: str, expected: str) -> tuple[tuple[int, ...], str]:
    """Read shape and type of an array of a ``.npz`` from its header.

    Args:
        path: the archive.
        key: name of the array.
        expected: the form in a message, such as "(clips, width)"; it sets the number of dimensions.

    Raises:
        ValueError: if the array is missing, damaged, empty, or has another number of dimensions or type.
    """
    with _opened(path, key) as (file, _):
        shape, dtype = _header(file)
    _require_floats(path, dtype)
    if len(shape) != expected.count(",") + 1 or 0 in shape:
        raise ValueError(f"{path}: {key} must be an array {expected}, got {shape}")
    return shape, str(dtype)


def unit(array: Array) -> Array:
    """Divide every vector by its length, as Moment-DETR's loader does; returns float32."""
    values = array.astype(np.float32)
    scaled: Array = values / (np.linalg.norm(values, axis=-1, keepdims=True) + _EPSILON)
    return scaled


def save_npy(path: Path, array: Array) -> None:
    """Write an array as ``.npy``."""
    with replacing(path) as beside, beside.open("wb") as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)


def save_npz(path: Path, key: str, array: Array) -> None:
    """Write an array as the only one of a ``.npz``."""
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez(file, **{key: np.ascontiguousarray(array)})  # type: ignore[arg-type]  # stubs take names for options
