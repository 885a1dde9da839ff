"""JSON lines: a text file with one JSON object per line. All files of that form are read and written here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sidelight.io.files import replacing, utf8_lines


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a file."""

    number: int
    """Number of the line in its file, from 1; blank lines count."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The JSON object; empty if the line cannot be read."""
    problem: str = ""
    """Why the line cannot be read; empty if it can."""


def read_json_lines(path: str | Path, *, lenient: bool = False) -> Iterator[Line]:
    """Yield the lines of a file in UTF-8, except blank ones.

    Only a line feed ends a line: a sentence may contain other line separators, such as U+2028. A byte order mark at
    the start of the file is skipped; one of UTF-16, which PowerShell writes, makes the file be read as UTF-16.

    Args:
        path: the file.
        lenient: yield a line that cannot be read with its problem, instead of raising an error.

    Raises:
        ValueError: if a line is not a JSON object, unless ``lenient``; names file and line.
        OSError: if the file cannot be read.
    """
    for number, content in enumerate(utf8_lines(path), start=1):
        if not content.strip():
            continue
        line = _parse(number, content.rstrip(b"\r\n"))
        if line.problem and not lenient:
            raise ValueError(f"{path}:{number}: {line.problem}; correct this line")
        yield line


def _parse(number: int, content: bytes) -> Line:
    try:
        values = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        problem = "this line is not text in UTF-8"
    except json.JSONDecodeError as error:
        problem = f"this line is not valid JSON ({error.msg} at column {error.colno}); was the file cut short?"
        if b"\r" in content:
            problem = "this line holds several rows, parted by CR alone; save the file with LF as its line ends"
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
        problem = "this line is not readable JSON"
    else:
        if isinstance(values, dict):
            return Line(number=number, values=values)
        problem = f"expected a JSON object with named fields, got {shown(values)}"
    return Line(number=number, problem=problem)


def write_json_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line. The file appears complete or not at all.

    Raises:
        TypeError: if a row contains a value that JSON does not know.
        OSError: if the file cannot be written.
    """
    with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def append_json_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add lines at the end of a file, which is made if missing, and wait until they are on the disk.

    A last line without a line feed, which a killed process left, is removed first.

    Raises:
        TypeError: if a row contains a value that JSON does not know.
        OSError: if the file cannot be written.
    """
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with open(path, "ab+") as file:
        end = _end_of_lines(file)
        file.seek(end)
        if _parse(0, tail := file.read()).problem or not tail:
            file.truncate(end)
        else:
            text = f"\n{text}"  # the last line is whole
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _end_of_lines(file: BinaryIO) -> int:
    """Return the place after the last line feed of an open file."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - 65536)
        file.seek(begin)
        place = file.read(end - begin).rfind(b"\n")
        if place >= 0:
            return begin + place + 1
        end = begin
    return 0


def shown(value: object) -> str:
    """Return a value as text for a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
