"""Hold the features of one video: in memory while they are small, on the disk when they are large.

An hour of video has 553 MB of features if all tokens of CLIP ViT-B/32 are kept. Large features are written to a file
while they are made, and mapped into memory where they are read, so that only the part in use takes memory.

Legend: K levels, C clips of a part, T clips of the video, P tokens of a clip where all were kept, D width.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

LARGE = 64 << 20
"""Bytes from which the features of one video stay on the disk."""
_BLOCK = 4 << 20
"""Bytes of large features that are checked and written at once."""


class FeatureValuesError(ValueError):
    """Features have numbers that are not finite, or that float16 cannot hold."""


class GrowingFeatures:
    """The features of one video while its clips are encoded.

    Large features go to a file without a name, which the system removes when this process no longer uses it, however
    the process ends.

    Args:
        folder: where the file lies; the system's folder for temporary files unless given.
        spare: if that folder has no room, use the system's folder for temporary files.
    """

    def __init__(self, folder: str | Path | None = None, *, spare: bool = False) -> None:
        self.clips = 0
        """Number of clips so far."""
        self._folder, self._spare = folder, spare and folder is not None
        self._parts: list[tuple[int, npt.NDArray[np.float16]]] = []
        self._file: IO[bytes] | None = None
        self._clip_shape: tuple[int, ...] = ()

    def put(self, features_KCD: npt.NDArray[np.float16], first: int | None = None) -> None:
        """Add consecutive clips, (K, C, D) or (K, C, P, D).

        Args:
            features_KCD: their features.
            first: number of the first of these clips; unless given, they follow the clips before.

        Raises:
            OSError: if the disk is full.
        """
        self._parts.append((self.clips if first is None else first, features_KCD))
        self.clips += features_KCD.shape[1]
        if self._file is not None or self.clips * features_KCD[:, 0].nbytes > LARGE:
            self._write_parts()

    def finish(self) -> npt.NDArray[np.float16]:
        """Return the features of all clips, (K, T, D) or (K, T, P, D); large ones are mapped from their file."""
        if self._file is None:
            self._parts.sort(key=lambda part: part[0])
            return np.concatenate([part_KCD for _, part_KCD in self._parts], axis=1)
        self._write_parts()
        # Mapped with the right to write, which nobody uses: PyTorch warns about arrays that are read-only.
        mapped_TKD = np.memmap(self._file, np.float16, "c", shape=(self.clips, *self._clip_shape))
        self._file.close()  # the map keeps the file
        video_KTD: npt.NDArray[np.float16] = np.asarray(mapped_TKD).swapaxes(0, 1)
        return video_KTD

    def __del__(self) -> None:
        """Close the file of a video that was given up."""
        if self._file is not None:
            with suppress(OSError):  # of a full disk
                self._file.close()

    def _write_parts(self) -> None:
        """Move the parts from memory to the file: clip after clip, as they come."""
        try:
            self._file = self._file or tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  # closed in __del__
            for first, part_KCD in self._parts:
                clips_CKD = np.ascontiguousarray(part_KCD.swapaxes(0, 1))
                self._clip_shape = clips_CKD.shape[1:]
                self._file.seek(first * clips_CKD[0].nbytes)
                self._file.write(clips_CKD.data)
            self._file.flush()  # before the parts are forgotten, so that a full disk loses none
            self._parts.clear()
        except OSError as error:
            if self._spare:
                self._move()
                self._write_parts()
                return
            folder = self._folder or tempfile.gettempdir()
            raise OSError(
                f"{folder} cannot hold the features of a long video ({error.strerror}): make room, or let TMPDIR or "
                "SIDELIGHT_CACHE name a folder with room"
            ) from None

    def _move(self) -> None:
        """Go on in the system's folder for temporary files."""
        full, self._file = self._file, None
        self._folder, self._spare = None, False
        if full is None:
            return
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __del__
            with open(os.dup(full.fileno()), "rb", buffering=0) as written:
                written.seek(0)
                shutil.copyfileobj(written, self._file, _BLOCK)
        finally:
            with suppress(OSError):  # what it could not write
                full.close()


def mapping_of(array: npt.NDArray[np.generic]) -> mmap.mmap | None:
    """Return the memory map that an array views; None if its numbers lie in memory."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def drop_pages(array: npt.NDArray[np.generic]) -> None:
    """Give back the memory into which parts of a mapped file were read; they are read again when they are needed."""
    mapping = mapping_of(array)
    if mapping is not None and hasattr(mapping, "madvise"):
        mapping.madvise(mmap.MADV_DONTNEED)


def blocks(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.float16]]:
    """Yield the numbers of an array in the order of C, a few megabytes at a time, as float16."""
    if values.nbytes <= _BLOCK or values.ndim < 2:
        yield np.ascontiguousarray(values, dtype=np.float16)
    elif values[0].nbytes > _BLOCK:
        for row in values:
            yield from blocks(row)
    else:
        step = _BLOCK // values[0].nbytes
        for first in range(0, len(values), step):
            yield np.ascontiguousarray(values[first : first + step], dtype=np.float16)
            drop_pages(values)


def all_finite(values: npt.NDArray[Any]) -> bool:
    """Check whether all numbers of an array are finite, as float16 too.

    The bits are compared as integers, which reads 9 GB a second; ``np.isfinite`` reads 1 GB.
    """
    with np.errstate(over="ignore"):
        return all(_finite_block(block) for block in blocks(values))


def _finite_block(block: npt.NDArray[np.float16]) -> bool:
    if not block.size:
        return True
    # Infinity and NaN have the largest exponent, so they are the largest integers of their sign.
    return bool(block.view(np.int16).max() < 0x7C00 and block.view(np.uint16).max() < 0xFC00)


def require_finite(
    values_K: npt.NDArray[Any], levels: Sequence[int], *, store: object, what: str, file: object
) -> None:
    """Refuse features with numbers that are not finite.

    Args:
        values_K: the features; the first axis is the level.
        levels: the name of each level.
        store: the folder of the features, for the message.
        what: whose features they are, for the message: "video 'v1'".
        file: the file to make again.

    Raises:
        FeatureValuesError: naming store, video or query, and level.
    """
    for level, values in zip(levels, values_K, strict=True):
        if not all_finite(values):
            raise FeatureValuesError(
                f"the features in {store} are damaged: level {level} of {what} has numbers that are not finite (NaN or "
                f"infinity) or that float16 cannot hold; delete {file} and make the features again"
            )


def map_video(path: Path) -> npt.NDArray[np.float16]:
    """Map the features in a store's file of a video, (K, T, D) or (K, T, P, D), into memory; the file must be whole.

    Raises:
        ValueError: if the numbers are of another type than float16.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))["video"]
    if entry["dtype"] != "F16":
        raise ValueError(f"{path} is damaged (its numbers are {entry['dtype']}, not F16); delete it and extract again")
    offset = 8 + length + entry["data_offsets"][0]
    return np.asarray(np.memmap(path, np.float16, "c", offset, shape=tuple(entry["shape"])))
