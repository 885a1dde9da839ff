"""Statistics of the annotations of a shapes world."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sidelight.core.messages import duration_of
from sidelight.data.annotations import Annotation


def describe(annotations: Sequence[Annotation]) -> list[tuple[str, str]]:
    """Return rows (name, value) that describe the annotations of a world; no rows for no annotations."""
    if not annotations:
        return []
    durations = {a.vid: a.duration for a in annotations}
    lengths = np.array([end - start for a in annotations for start, end in a.relevant_windows])
    windows = np.array([len(a.relevant_windows) for a in annotations])
    ratings = np.array([v for a in annotations for scores in a.saliency_scores for v in scores])
    share = [np.mean(lengths < 10), np.mean((lengths >= 10) & (lengths <= 30)), np.mean(lengths > 30)]
    best = [max(max(s) for s in a.saliency_scores) for a in annotations]
    left_out = [a.extra.get("colour") is None or a.extra.get("shape") is None for a in annotations]
    covered = [sum(e - s for s, e in a.relevant_windows) / a.duration for a in annotations]
    return [
        ("videos", f"{len(durations)}, {duration_of(sum(durations.values()))}"),
        ("queries", f"{len(annotations)}, {len({a.query for a in annotations})} different sentences"),
        ("queries that leave colour or shape out", f"{np.mean(left_out):.0%}"),
        (
            "queries for unseen combinations",
            f"{np.mean([bool(a.extra.get('unseen')) for a in annotations]):.0%}",
        ),
        ("windows per query: 1, 2, 3", ", ".join(f"{np.mean(windows == n):.0%}" for n in (1, 2, 3))),
        ("windows < 10 s, 10 to 30 s, > 30 s", ", ".join(f"{v:.0%}" for v in share)),
        (
            "shortest, median, longest window",
            " s, ".join(f"{v:g}" for v in np.quantile(lengths, (0, 0.5, 1))) + " s",
        ),
        ("share of the video that is relevant", f"{np.mean(covered):.0%}"),
        ("ratings 0, 1, 2, 3, 4", ", ".join(f"{np.mean(ratings == n):.0%}" for n in range(5))),
        ("queries with a clip that some rater gave 4", f"{np.mean(np.array(best) == 4):.0%}"),
    ]
