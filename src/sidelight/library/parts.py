"""Ground the parts of a long video that are near to a query, instead of all of it.

A model reads a limited number of clips at once, so the work for a video grows with its length: one hour in clips of 2 s
is 47 windows. The embeddings already say which clips are near to the query. So only windows around the nearest clips
are read; the rest of the video has no moments and the lowest saliency, and a note says so.

Legend: T clips of a video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sidelight.core.display import clock
from sidelight.core.grounding import Grounding, Moment
from sidelight.features.store import VideoFeatures

WINDOWS = 6
"""Windows that are read of a long video."""


def near_parts(cosine_T: npt.NDArray[np.float32], window_clips: int, windows: int = WINDOWS) -> list[range]:
    """Return the clips of a video to read: windows around the clips nearest to a query, joined where they touch.

    Args:
        cosine_T: cosine of the query and each clip.
        window_clips: clips of a window.
        windows: most windows. A video of up to as many windows without overlaps is read as a whole: with overlaps it
            takes twice as many.
    """
    clips = len(cosine_T)
    if clips <= windows * window_clips:
        return [range(clips)]
    starts: list[int] = []
    is_read_T, is_inner_T = np.zeros(clips, bool), np.zeros(clips, bool)
    margin = window_clips // 4
    for clip in np.argsort(-cosine_T, kind="stable").tolist():
        if len(starts) == windows:
            break
        if not is_inner_T[clip]:  # else a window has it already, and not at its edge
            start = min(max(0, clip - window_clips // 2), clips - window_clips)
            starts.append(start)
            is_read_T[start : start + window_clips] = True
            is_inner_T[start + margin : start + window_clips - margin] = True
    edges = np.flatnonzero(np.diff(is_read_T.astype(np.int8), prepend=0, append=0))
    return [range(first, last) for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]


def ground_parts(
    features: VideoFeatures, parts: Sequence[range], ground: Callable[[VideoFeatures], Grounding]
) -> Grounding:
    """Return the grounding of a whole video from the groundings of its parts.

    Args:
        features: of the whole video.
        parts: clips of each part, in order, without overlaps.
        ground: returns the grounding of a part as if it were a video.
    """
    timeline, unit = features.timeline, features.timeline.clip_seconds
    if parts == [range(timeline.num_clips)]:
        return ground(features)
    moments: list[Moment] = []
    saliency_T = np.full(timeline.num_clips, np.nan, np.float32)
    for part in parts:
        start = part.start * unit
        end = timeline.duration if part.stop == timeline.num_clips else part.stop * unit
        of_part = replace(timeline, duration=end - start, clips=len(part))
        answer = ground(VideoFeatures(video_KTD=features.video_KTD[:, part.start : part.stop], timeline=of_part))
        for moment in answer.moments:
            moments.append(Moment(start + moment.start, min(start + moment.end, timeline.duration), moment.score))
        # A model may read some clips less at the end of a video.
        saliency_T[part.start : part.start + len(answer.saliency)] = answer.saliency
    saliency_T[np.isnan(saliency_T)] = np.nanmin(saliency_T)
    note = f"the model read {clock(sum(map(len, parts)) * unit)} of {clock(timeline.duration)}, near to the query"
    notes = (*answer.notes, note)
    return replace(answer, timeline=timeline, moments=tuple(moments), saliency=saliency_T, notes=notes)
