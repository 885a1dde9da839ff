"""Read the summaries that people made of the videos of SumMe and TVSum: for each frame, who kept it.

Two forms are read:

- The HDF5 files that papers share since Zhang et al. (ECCV 2016), ``eccv16_dataset_summe_google_pool5.h5`` and the one
  of TVSum: a group per video, with ``user_summary`` (R, F), ``n_frames``, and for SumMe ``video_name``. They are read
  with h5py.
- JSON lines: ``{"vid": "Air_Force_One", "user_summary": [[0, 1, ...], ...]}``, a list per person with 0 or 1 per frame.

Legend: R persons, F frames of the video.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sidelight.data.annotations import AnnotationError
from sidelight.io.jsonl import read_json_lines, shown

HDF5_SUFFIXES = (".h5", ".hdf5")
"""Suffixes of the HDF5 form."""
_HDF5_START = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True, eq=False)
class UserSummaries:
    """The summaries of one video.

    Raises:
        AnnotationError: if there is no person or no frame, or a value is neither 0 nor 1.
    """

    vid: str
    """Name of the video."""
    names: tuple[str, ...]
    """Further names of the video, such as its key in the file."""
    kept_RF: npt.NDArray[np.bool_]
    """Whether each person kept each frame."""

    def __post_init__(self) -> None:
        kept_RF = np.asarray(self.kept_RF)
        is_table = kept_RF.ndim == 2 and kept_RF.size > 0 and kept_RF.dtype.kind in "biuf"
        if not is_table or not np.isin(kept_RF, (0, 1)).all():
            raise AnnotationError(
                f"user_summary of {self.vid!r} must have one row per person with 0 or 1 per frame, got "
                f"{kept_RF.dtype} of shape {kept_RF.shape}"
            )
        object.__setattr__(self, "kept_RF", kept_RF.astype(bool))

    def is_called(self, name: str) -> bool:
        """Check whether this is the video of that name; case, spaces and punctuation do not matter."""
        return _plain(name) in {_plain(known) for known in (self.vid, *self.names)}


def holds_user_summaries(path: str | Path) -> bool:
    """Check whether a file looks like one of the two forms, by its beginning.

    Raises:
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        if file.read(len(_HDF5_START)) == _HDF5_START:
            return True
    first = next(iter(read_json_lines(path, lenient=True)), None)
    return first is not None and "user_summary" in first.values


def read_user_summaries(path: str | Path) -> list[UserSummaries]:
    """Return the summaries of each video, in the order of the file.

    Args:
        path: a file of one of the two forms.

    Raises:
        AnnotationError: if the file is missing, is none of them, or h5py is needed and missing; names what is wrong.
    """
    if not Path(path).is_file():
        raise AnnotationError(f"there is no file {path}; expected summaries by people, as HDF5 or JSON lines")
    rows = list(_hdf5_rows(path) if _is_hdf5(path) else _json_rows(path))
    if not rows:
        raise AnnotationError(f"{path} holds no video; expected summaries by people")
    names: dict[str, str] = {}
    for row in rows:
        if (other := names.get(_plain(row.vid))) is not None:
            raise AnnotationError(f"{path}: the video {row.vid!r} is in it twice, also as {other!r}; remove one")
        names[_plain(row.vid)] = row.vid
    return rows


def _is_hdf5(path: str | Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(_HDF5_START)) == _HDF5_START or Path(path).suffix.lower() in HDF5_SUFFIXES


def _json_rows(path: str | Path) -> Iterator[UserSummaries]:
    for line in read_json_lines(path, lenient=True):
        place = f"{path}:{line.number}"
        if line.problem:
            raise AnnotationError(f"{place}: {line.problem}; correct this line")
        vid, rows = line.values.get("vid"), line.values.get("user_summary")
        if not isinstance(vid, str) or not vid.strip():
            raise AnnotationError(f"{place}: vid must be the name of a video, got {shown(vid)}")
        try:
            kept_RF = np.array(rows)
        except ValueError:  # rows of different lengths
            kept_RF = np.array(None)
        try:
            yield UserSummaries(vid=vid, names=(), kept_RF=kept_RF)
        except AnnotationError as error:
            raise AnnotationError(f"{place}: {error}; all rows must be equally long") from None


def _hdf5_rows(path: str | Path) -> Iterator[UserSummaries]:
    try:
        import h5py
    except ImportError:
        raise AnnotationError(f'{path} is HDF5, which needs h5py: pip install "sidelight[summaries]"') from None
    try:
        with h5py.File(path, "r") as file:
            for key in sorted(file, key=lambda name: [int(n) for n in re.findall(r"\d+", name)] or [0]):
                yield _hdf5_row(path, key, file[key])
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise AnnotationError(f"{path} is no readable HDF5 file ({error}); download it again") from None


def _hdf5_row(path: str | Path, key: str, group: Mapping[str, Any]) -> UserSummaries:
    """Return the summaries of one group of an HDF5 file."""
    if not hasattr(group, "keys") or "user_summary" not in group:
        raise AnnotationError(f"{path}: {key} has no user_summary; expected the layout of eccv16_dataset_summe")
    kept_RF = group["user_summary"][()]
    name = group["video_name"][()] if "video_name" in group else key
    vid = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    if "n_frames" in group and np.shape(kept_RF)[-1:] != (frames := int(np.asarray(group["n_frames"][()]).flat[0]),):
        raise AnnotationError(f"{path}: user_summary of {key} has shape {np.shape(kept_RF)}, but n_frames is {frames}")
    try:
        return UserSummaries(vid=vid, names=(key,), kept_RF=kept_RF)
    except AnnotationError as error:
        raise AnnotationError(f"{path}: {error}") from None


def _plain(name: str) -> str:
    """Return the letters and digits of a name, in lower case: files replace spaces by underscores."""
    return "".join(re.findall(r"[^\W_]", name.casefold()))
