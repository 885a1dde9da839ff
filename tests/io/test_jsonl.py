from __future__ import annotations

from pathlib import Path

import pytest

from sidelight.io.jsonl import Line, append_json_lines, read_json_lines, shown, write_json_lines


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n \r\n", []),
        (b'{"a": 1}', [Line(number=1, values={"a": 1})]),
        (b'\n{"a": 1}\r\n\n{}\n', [Line(number=2, values={"a": 1}), Line(number=4)]),
        (b'\xef\xbb\xbf{"a": 1}\n', [Line(number=1, values={"a": 1})]),
        ('{"a": "x\u2028y\x85z"}\n'.encode(), [Line(number=1, values={"a": "x\u2028y\x85z"})]),
        ('{"a": "x\u2028é"}\r\n{}\n'.encode("utf-16"), [Line(number=1, values={"a": "x\u2028é"}), Line(number=2)]),
        (b"\xff\xfe", []),
    ],
)
def test_readable_files(tmp_path: Path, content: bytes, expected: list[Line]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert list(read_json_lines(path)) == list(read_json_lines(path, lenient=True)) == expected


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"a": "b\n', r"this line is not valid JSON (Unterminated string starting at at column 7); was the file cut"),
        (b'{"a": "b\r\n', "this line is not valid JSON (Unterminated string"),
        (b"\xff\n", "this line is not text in UTF-8"),
        (b"[1, 2]\n", "expected a JSON object with named fields, got [1, 2]"),
        (b"[" * 100_000, "this line is not readable JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "this line is not readable JSON"),
    ],
)
def test_unreadable_lines(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n" + content + b'\n{"a": 1}')
    first, unreadable, last = read_json_lines(path, lenient=True)
    assert (first.problem, last.problem, last.values) == ("", "", {"a": 1})
    assert unreadable.number == 2 and unreadable.problem.startswith(problem)
    with pytest.raises(ValueError, match="correct this line") as error:
        list(read_json_lines(path))
    assert str(error.value).startswith(f"{path}:2: {problem}")


def test_a_damaged_file_in_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes("{}\n".encode("utf-16") + b"\x00\xd8\x00\x00")  # half of a surrogate pair
    assert [line.problem for line in read_json_lines(path, lenient=True)][-1] == "this line is not text in UTF-8"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = [{"a": "un été\u2028"}, {}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    assert [line.values for line in read_json_lines(tmp_path / "rows.jsonl")] == rows
    write_json_lines(tmp_path / "rows.jsonl", [])
    assert (tmp_path / "rows.jsonl").read_bytes() == b""


def test_shown() -> None:
    assert shown("a") == "'a'"
    assert shown([0] * 100) == f"{[0] * 100!r}"[:77] + "..."


@pytest.mark.parametrize("before", [b"", b'{"a": 1}\n', b'{"a": 1}\n{"b', b'{"b', b"x" * 70_000, b"{}"])
def test_lines_are_appended_after_the_last_whole_line(before: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    if before:
        path.write_bytes(before)
    append_json_lines(path, [{"c": 3}, {"d": "\u2028"}])
    kept = b"{}\n" if before == b"{}" else before[: before.rfind(b"\n") + 1]
    assert path.read_bytes() == kept + b'{"c": 3}\n{"d": "\\u2028"}\n'
