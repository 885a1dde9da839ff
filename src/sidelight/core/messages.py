"""Parts of messages that every part of sidelight writes: counts, and suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun: "1 query", "2 queries", "1,200 damaged files".

    Args:
        number: how many.
        noun: what is counted, in the singular.
    """
    if number != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun}"


def and_list(parts: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)


def duration_of(seconds: float) -> str:
    """Return a duration with two digits and its unit: "0.05 s", "8.7 s", "12 min", "1.5 h"."""
    if seconds < 9.95:
        return f"{max(seconds, 0.001):.2g} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def size_of(size: float) -> str:
    """Return a number of bytes with two or three digits and a decimal unit: "512 bytes", "1.3 MB", "605 MB"."""
    unit = "bytes"
    for larger in ("kB", "MB", "GB"):
        if abs(size) < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.1f} {unit}" if unit != "bytes" and abs(size) < 9.95 else f"{size:.0f} {unit}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, without its period; the error's kind if it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'ground'?" for a misspelt name, or nothing where no known name is similar."""
    similar = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {similar[0]!r}?" if similar else ""


def no_such(kind: str, name: str, known: Iterable[str]) -> str:
    """Return "there is no model 'shaeps'; did you mean 'shapes'? Known are shapes, ...".

    Args:
        kind: what the name should name.
        name: the unknown name.
        known: the names that exist.
    """
    known = list(known)
    suggestion = did_you_mean(name, known)
    return f"there is no {kind} {name!r}{f'{suggestion} Known' if suggestion else '; known'} are {', '.join(known)}"
