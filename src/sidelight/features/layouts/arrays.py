"""Arrays from files of others, of which nothing is believed: no pickles, no strange types, no way out of the folder."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_EPSILON = 1e-5  # of Moment-DETR's normalisation


def safe_name(name: str, what: str = "id") -> str:
    """The name, if it names a file of its folder and no other."""
    if not name or name in (".", "..") or "\0" in name or PureWindowsPath(f"{name}.npz").name != f"{name}.npz":
        raise ValueError(f"the {what} {name!r} cannot be the name of a file: it must have no / and no \\; change it")
    return name


def find(folder: Path, names: Iterable[str], suffix: str) -> Path | None:
    """The file of a folder that has one of these names, the first that is there."""
    paths = (folder / f"{safe_name(name)}{suffix}" for name in names)
    return next((path for path in paths if path.is_file()), None)


def _unreadable(path: Path, error: Exception) -> ValueError:
    why = " ".join(str(error).split()) or type(error).__name__
    if "pickle" in why.lower() or "Python objects" in why:
        why = "it holds pickled objects, which can run code"
    return ValueError(f"{path} cannot be read as an array of numbers: {why}; get it or write it again")


def _require_floats(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise _unreadable(path, ValueError("pickle"))
    if dtype.kind != "f":
        raise ValueError(f"{path} must hold floating-point numbers, got {dtype}")


def mapped(path: Path) -> Array:
    """A ``.npy`` through a memory map."""
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} must be one array, not an archive of several")
    _require_floats(path, array.dtype)
    return array


_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
)


def members(path: Path) -> list[str]:
    """The names of the arrays in a ``.npz``."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except _DAMAGED as error:
        raise _unreadable(path, error) from None


def _require_member(path: Path, key: str) -> None:
    if key not in (held := members(path)):
        raise ValueError(f"{path} must hold an array {key!r}, got {', '.join(held) or 'none'}; is it of this layout?")


def packed(path: Path, key: str) -> Array:
    """An array of a ``.npz``."""
    _require_member(path, key)
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            # What a header claims is asked for at once: a small file must not ask for all memory there is.
            shape, dtype = _header(file)
            held = archive.getinfo(f"{key}.npy").file_size
            if math.prod(shape) * dtype.itemsize > held:
                raise ValueError(f"it claims {shape} numbers, and holds {held} bytes")
            file.seek(0)
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
    except _DAMAGED as error:
        raise _unreadable(path, error) from None
    return array


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array that begins here."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def packed_shape(path: Path, key: str, expected: str) -> tuple[tuple[int, ...], str]:
    """Shape and type of an array of a ``.npz``, from its header alone."""
    _require_member(path, key)
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            shape, dtype = _header(file)
    except _DAMAGED as error:
        raise _unreadable(path, error) from None
    _require_floats(path, dtype)
    if len(shape) != expected.count(",") + 1 or 0 in shape:
        raise ValueError(f"{path}: {key} must be an array {expected}, got {shape}")
    return shape, str(dtype)


def unit(array: Array) -> Array:
    """Every vector divided by its length, as Moment-DETR's loader does."""
    values = array.astype(np.float32)
    scaled: Array = values / (np.linalg.norm(values, axis=-1, keepdims=True) + _EPSILON)
    return scaled


def halves(path: Path, array: Array) -> npt.NDArray[np.float16]:
    """float16; an error if that changes what a number is."""
    if array.dtype == np.float16:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):
        kept = array.astype(np.float16)
    if not np.isfinite(kept).all():
        raise ValueError(f"{path} has values that float16 cannot hold, or that are no numbers; write it again")
    return kept
