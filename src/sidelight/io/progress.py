"""Report how far a long call is: by a bar on a terminal, or to a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = bool | Callable[[float], None]
"""True shows a bar, if stderr is a terminal and the call takes longer than 2 s. A function is called with the part that
is done, 0 to 1; an exception that it raises ends the call.
"""
_BAR_AFTER_SECONDS = 2


@contextmanager
def reporting(progress: Progress, *, total: int | None, what: str, unit: str) -> Iterator[Callable[[int], object]]:
    """Yield a function that takes the number of units that were done since its last call.

    Args:
        progress: a bar, a function, or neither.
        total: number of all units; None if unknown.
        what: what is done, in front of the bar.
        unit: name of a unit.
    """
    if callable(progress):
        report, done = progress, 0

        def add(units: int) -> None:
            nonlocal done
            done += units
            report(min(1.0, done / total) if total else 0.0)

        yield add
        return
    from tqdm import tqdm

    hidden = None if progress else True
    with tqdm(total=total, desc=what, unit=unit, delay=_BAR_AFTER_SECONDS, leave=False, disable=hidden) as bar:
        yield bar.update
