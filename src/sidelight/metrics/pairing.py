"""The pairing of predictions with annotations by qid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sidelight.data.annotations import Annotation, AnnotationError, Submission


def pair(submissions: Sequence[Submission], annotations: Sequence[Annotation]) -> list[Submission]:
    """Return the submission of each annotation, in the order of the annotations.

    Raises:
        AnnotationError: if the two are not of the same queries and videos.
    """
    if not annotations:
        raise AnnotationError("there are no annotations to score against; expected at least one")
    for rows, side in ((submissions, "predictions"), (annotations, "annotations")):
        counts = Counter(row.qid for row in rows)
        if len(counts) < len(rows):
            repeated = [qid for qid, count in counts.items() if count > 1]
            raise AnnotationError(
                f"each qid must appear once in the {side}; {named(repeated)} appear more often; remove the others",
                side=side,
                qid=repeated[0],
            )
    by_qid = {s.qid: s for s in submissions}
    annotated = {a.qid for a in annotations}
    missing = [a.qid for a in annotations if a.qid not in by_qid]
    surplus = [s.qid for s in submissions if s.qid not in annotated]
    if missing or surplus:
        parts = [
            f"{len(qids)} of {total} {text} ({named(qids)})"
            for qids, total, text in (
                (missing, len(annotations), "annotations have no prediction"),
                (surplus, len(submissions), "predictions have no annotation"),
            )
            if qids
        ]
        raise AnnotationError(
            f"predictions and annotations must be of the same queries: {', and '.join(parts)}; "
            "predict for exactly the annotations of this file",
            side="annotations" if missing else "predictions",
            qid=(missing or surplus)[0],
        )
    if others := [a.qid for a in annotations if by_qid[a.qid].vid != a.vid]:
        raise AnnotationError(
            f"{len(others)} of {len(annotations)} predictions are of another video (vid) than the annotation "
            f"of the same qid ({named(others)}); give the annotations that were predicted for",
            side="predictions",
            qid=others[0],
        )
    return [by_qid[a.qid] for a in annotations]


def named(qids: Sequence[int | str]) -> str:
    """Return the first three qids, and how many more there are, as text for a message."""
    few = ", ".join(repr(qid) for qid in qids[:3])
    return f"qid {few}" + (f" and {len(qids) - 3} more" if len(qids) > 3 else "")
