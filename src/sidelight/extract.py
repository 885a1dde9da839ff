"""Videos and queries to features: the one way there is, for training and for inference alike.

Legend: K levels, C clips of a chunk, T clips of a video, F frames per clip, S side, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sidelight.features import FeatureStore, Halves, VideoFeatures
from sidelight.files import VIDEO_SUFFIXES
from sidelight.timeline import Timeline
from sidelight.video import VideoError, frames_at, probe

if TYPE_CHECKING:
    from sidelight.backbones.protocol import Backbone, FeatureRecipe

CHUNK_CLIPS = 32
_QUERIES_PER_FILE = 4096


def clips_of(path: str | Path, recipe: FeatureRecipe, *, chunk: int = CHUNK_CLIPS) -> Iterator[npt.NDArray[np.uint8]]:
    """The pictures that a backbone wants of a video, in chunks of at most ``chunk`` clips.

    Where the video ends early the last clip is filled up with its last picture, and the clips after it are not
    there.

    Yields:
        uint8 (C, F, S, S, 3).

    Raises:
        VideoError: if the file cannot be read as a video.
    """
    timeline = Timeline(duration=probe(path).duration, clip_seconds=recipe.clip_seconds)
    wanted = timeline.frame_seconds(recipe.frames_per_clip).reshape(-1)
    size = (recipe.resolution, recipe.resolution)
    room, pictures = chunk * recipe.frames_per_clip, []
    for frame in frames_at(path, wanted.tolist(), size=size, resize=recipe.resize):
        pictures.append(frame.image)
        if len(pictures) == room:
            yield np.stack(pictures).reshape(-1, recipe.frames_per_clip, *pictures[0].shape)
            pictures = []
    if pictures:
        pictures += [pictures[-1]] * (-len(pictures) % recipe.frames_per_clip)
        yield np.stack(pictures).reshape(-1, recipe.frames_per_clip, *pictures[0].shape)


def encode_video_file(path: str | Path, backbone: Backbone) -> VideoFeatures:
    """The features of one file. Pixels never pile up: one chunk is decoded while another is encoded.

    Returns:
        (K, T, D_v) float16 as a store would keep them, and the timeline of what could be decoded.

    Raises:
        VideoError: if the file cannot be read as a video or has no picture.
    """
    import torch

    parts = []
    with ThreadPoolExecutor(1) as ahead:
        chunks = clips_of(path, backbone.recipe)
        waiting = ahead.submit(next, chunks, None)
        while (pixels := waiting.result()) is not None:
            waiting = ahead.submit(next, chunks, None)
            encoded = backbone.encode_video(torch.from_numpy(pixels))
            parts.append(encoded.to(torch.float16).cpu().numpy())
    if not parts:
        raise VideoError(f"{path}: no picture could be decoded; check that the file plays in a video player")
    video_KTD = np.concatenate(parts, axis=1)
    seconds = backbone.recipe.clip_seconds
    duration = min(probe(path).duration, video_KTD.shape[1] * seconds)
    return VideoFeatures(video_KTD=video_KTD, timeline=Timeline(duration=duration, clip_seconds=seconds))


def encode_queries(queries: Sequence[str], backbone: Backbone, *, batch: int = 256) -> dict[str, Halves]:
    """The features of sentences: sentence -> (K, L, D_t) float16."""
    import torch

    wanted = list(dict.fromkeys(queries))
    found: dict[str, Halves] = {}
    for first in range(0, len(wanted), batch):
        part = wanted[first : first + batch]
        for query, encoded in zip(part, backbone.encode_text(part), strict=True):
            found[query] = encoded.to(torch.float16).cpu().numpy()
    return found


def extract(
    videos: Mapping[str, Path],
    queries: Iterable[str],
    backbone: Backbone,
    out: str | Path,
    *,
    progress: bool = False,
) -> tuple[FeatureStore, dict[str, str]]:
    """Fill a feature store. What it already holds is not done again, so an interrupted run goes on.

    Args:
        videos: id -> file.
        queries: sentences; duplicates cost nothing.
        backbone: what to encode with.
        out: folder of the store; made if need be.
        progress: show a bar with rate and time left.

    Returns:
        The store, and id -> reason for each video that could not be read; the others are done all the same.

    Raises:
        RecipeMismatchError: if ``out`` holds features of another recipe.
    """
    from tqdm import tqdm

    store = FeatureStore.create(out, backbone.recipe)
    missing = store.missing_queries(queries)
    for first in range(0, len(missing), _QUERIES_PER_FILE):
        store.put_queries(encode_queries(missing[first : first + _QUERIES_PER_FILE], backbone))
    failures: dict[str, str] = {}
    todo = [vid for vid in videos if not store.has_video(vid)]
    for vid in tqdm(todo, unit="video", desc="extracting", disable=not (progress and todo)):
        try:
            store.put_video(vid, encode_video_file(videos[vid], backbone))
        except VideoError as error:
            failures[vid] = str(error)
    return store, failures


def content_digest(path: str | Path) -> str:
    """32 hex digits of a file's content: a key that a copy or a new name does not change.

    Raises:
        VideoError: if the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise VideoError(f"{path} cannot be read ({error.strerror}); check the path") from None
    return digest.hexdigest()


def find_videos(folder: str | Path, vids: Iterable[str]) -> dict[str, Path]:
    """The file of each video id in a folder: ``VID`` with any usual suffix.

    Raises:
        ValueError: if the folder or some file is missing; names up to three of the missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected the folder with the video files")
    there = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in VIDEO_SUFFIXES}
    wanted = list(dict.fromkeys(vids))
    if missing := [vid for vid in wanted if vid not in there]:
        some = ", ".join(missing[:3])
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(wanted)} videos, such as {some}; "
            f"expected files named VID with one of {', '.join(VIDEO_SUFFIXES)}"
        )
    return {vid: there[vid] for vid in wanted}
