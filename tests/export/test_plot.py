from __future__ import annotations

import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidelight.core.grounding import Grounding, Moment
from sidelight.core.timeline import Timeline
from sidelight.export import plot
from sidelight.export.plot import plot_grounding, plot_groundings

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def grounding(
    query: str = "a red square spins",
    *spans: tuple[float, float, float],
    duration: float = 60.0,
    video: str | None = None,
) -> Grounding:
    timeline = Timeline(duration=duration, clip_seconds=2.0)
    moments = tuple(Moment(*span) for span in sorted(spans, key=lambda s: -s[2]))
    saliency = np.linspace(0, 1, timeline.num_clips, dtype=np.float32)
    return Grounding(query=query, timeline=timeline, moments=moments, saliency=saliency, video=video)


def frames(count: int, duration: float = 60.0) -> list[tuple[float, npt.NDArray[np.uint8]]]:
    """Return frames of 30 x 40 pixels, each of one colour; red is 10 times the frame's index."""
    return [((i + 0.5) / count * duration, np.full((30, 40, 3), (10 * i, 0, 200), np.uint8)) for i in range(count)]


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def rgb(color: str) -> list[int]:
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]


def has_color(image: npt.NDArray[np.uint8], color: str) -> bool:
    return bool((image == rgb(color)).all(axis=2).any())


@pytest.mark.parametrize(
    ("answers", "options"),
    [
        ([grounding("")], {}),
        ([grounding("no moments", duration=0.4)], {"frames": [], "truth": [[]]}),
        ([grounding("one", (10, 20, 0.9))], {"frames": frames(8), "truth": [[(9, 21)]], "title": "a title"}),
        ([grounding("no truth", (10, 20, 0.9))] * 3, {"frames": frames(1), "truth": [None, [], [(0, 60)]]}),
        ([grounding("whole", (0, 60, 1.0))], {"truth": [[(0, 60.9)]]}),
        ([grounding("$5 and $6 \\frac{", (10, 20, 0.9))], {"title": "$a_$"}),
        ([grounding("红色方块在旋转\n\x00 x" * 80, (10, 20, -3.0))], {"title": "long " * 80}),
        ([grounding("hours", (9000, 9004, 40.0), duration=36000.0)] * 7, {"frames": frames(40, 36000.0)}),
    ],
    ids=["empty", "nothing", "one", "three", "whole", "mathematics", "long", "hours"],
)
def test_draws(tmp_path: Path, answers: list[Grounding], options: dict[str, Any]) -> None:
    path = plot_groundings(answers, tmp_path / "plot.png", **options)
    image = pixels(path)
    assert image.shape[1] == 1440
    assert (image[:, -1] == 255).all() and (image[0] == 255).all() and (image[-1] == 255).all(), "cut off"
    assert has_color(image, plot.TRUE) == any(t is not None for t in options.get("truth", []))
    assert [p.name for p in tmp_path.iterdir()] == ["plot.png"], "nothing is left beside it"


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".jpg", ".PNG"])
def test_the_ending_decides_the_format(tmp_path: Path, suffix: str) -> None:
    magic = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".jpg": b"\xff\xd8"}[suffix.lower()]
    path = plot_grounding(grounding(), str(tmp_path / f"plot{suffix}"))
    assert path.read_bytes().startswith(magic)


def test_a_moment_is_drawn_where_it_is(tmp_path: Path) -> None:
    image = pixels(plot_grounding(grounding("x", (15, 45, 1.0)), tmp_path / "p.png", title=""))
    left, width = round(plot.LEFT * plot.DPI), (plot.WIDTH - plot.LEFT - plot.RIGHT) * plot.DPI
    columns = np.flatnonzero((image[100:, left:] == rgb(plot.PREDICTED)).all(axis=2).any(axis=0))  # below the legend
    assert columns[0] == pytest.approx(0.25 * width, abs=2)
    assert columns[-1] == pytest.approx(0.75 * width, abs=2)


def test_strip_has_no_gaps_and_runs_with_time() -> None:
    shuffled = [frames(10)[i] for i in (3, 1, 0, 2, 9, 8, 7, 5, 4, 6)]
    strip, seams = plot._strip(shuffled, 60.0, 400, 30)
    assert strip.shape == (30, 400, 3)
    assert seams == [40 * i for i in range(1, 10)]
    assert strip[15, 20::40, 0].tolist() == [10 * i for i in range(10)]
    assert (strip[..., 2] == 200).all()


def test_strip_takes_fewer_frames_where_there_is_no_room() -> None:
    strip, seams = plot._strip(frames(10), 60.0, 160, 30)
    assert seams == [40, 80, 120]
    assert strip[15, 20::40, 0].tolist() == [10, 30, 60, 80]


@pytest.mark.parametrize(
    ("duration", "labels"),
    [
        (0.5, ["0:00"]),
        (8, ["0:00", "0:01", "0:02", "0:03", "0:04", "0:05", "0:06", "0:07", "0:08"]),
        (150, ["0:00", "0:15", "0:30", "0:45", "1:00", "1:15", "1:30", "1:45", "2:00", "2:15", "2:30"]),
        (3725, ["0:00", "10:00", "20:00", "30:00", "40:00", "50:00", "1:00:00"]),
    ],
)
def test_ticks(duration: float, labels: list[str]) -> None:
    assert [plot._clock(t) for t in plot._ticks(duration)] == labels


@given(duration=st.floats(0.01, 1e6))
def test_ticks_are_few_and_inside(duration: float) -> None:
    ticks = plot._ticks(duration)
    assert 1 <= len(ticks) <= 12
    assert ticks[0] == 0
    assert ticks[-1] <= duration + 1e-6


def page(duration: float) -> plot.Page:
    return plot.Page(plot.new_page()[0], duration, ["DejaVu Sans"])


@settings(max_examples=15, deadline=None)
@given(
    duration=st.floats(1, 20000),
    spans=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), max_size=6),
)
def test_bars_and_labels_never_overlap(duration: float, spans: list[tuple[float, float, float]]) -> None:
    moments = [Moment(min(a, b) * duration, max(a, b) * duration, score) for a, b, score in spans]
    drawn = page(duration)
    lanes = drawn.pack(moments)
    assert sorted(map(id, moments)) == sorted(id(m) for lane in lanes for m in lane)
    for lane in lanes:
        boxes = []
        for moment in lane:
            left, right = drawn.bar(moment.start, moment.end)
            assert 0 <= left <= right <= drawn.width
            x, align, text = drawn.score(moment)
            width = drawn.text_width(text, plot.SCORE_SIZE, "bold")
            label = {
                "left": (x, x + width),
                "right": (x - width, x),
                "center": (x - width / 2, x + width / 2),
            }[align]
            assert label[0] >= 0
            assert label[1] <= drawn.width
            boxes.append((min(left, label[0]), max(right, label[1])))
        boxes.sort()
        assert all(a[1] < b[0] for a, b in itertools.pairwise(boxes))


@settings(max_examples=15, deadline=None)
@given(text=st.text(max_size=300), max_lines=st.integers(1, 3), width=st.floats(0.8, 6))
def test_wrapped_lines_fit(text: str, max_lines: int, width: float) -> None:
    text = plot._one_line(text)
    drawn = page(60)
    lines = drawn.wrap(text, 8.0, width, max_lines)
    assert len(lines) <= max_lines
    assert all(drawn.text_width(line, 8.0, "bold") <= width for line in lines)
    if lines and not lines[-1].endswith("…"):
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_faint_moments_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = grounding("x", (0, 10, 0.8), (20, 30, 0.21), (40, 50, 0.19))
    assert [m.score for m in answer.without_faint()] == [0.8, 0.21]
    drawn: list[list[Moment]] = []
    monkeypatch.setattr(plot.Page, "panel", lambda self, grounding, truth, moments, panels: drawn.append(list(moments)))
    for faint in (False, True):
        with pytest.raises(AttributeError):  # nothing is drawn
            plot_grounding(answer, tmp_path / "x.png", faint=faint, top=3)
    assert [[m.score for m in moments] for moments in drawn] == [[0.8, 0.21], [0.8, 0.21, 0.19]]


@pytest.mark.parametrize(
    ("answers", "options", "message"),
    [
        ([], {}, "at least one grounding"),
        ([grounding(), grounding(duration=70.0)], {}, "durations of 60, 70 s"),
        ([grounding()], {"top": 0}, "at least 1; got 0"),
        ([grounding()], {"truth": []}, "one entry per grounding"),
        ([grounding()], {"truth": [[(20, 10)]]}, r"got \(20, 10\)"),
        ([grounding()], {"truth": [[(20, 100)]]}, r"<= 60 s.*got \(20, 100\)"),
        ([grounding()], {"truth": [[(float("nan"), 10)]]}, r"got \(nan, 10\)"),
        ([grounding()], {"frames": [(3.0, np.zeros((4, 4), np.uint8))]}, r"at 3 s is \(4, 4\), uint8"),
        ([grounding()], {"frames": [(3.0, np.zeros((4, 4, 3)))]}, "float64"),
        ([grounding()], {"frames": [(3.0, np.zeros((0, 4, 3), np.uint8))]}, r"\(0, 4, 3\)"),
    ],
)
def test_wrong_arguments(tmp_path: Path, answers: list[Grounding], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_groundings(answers, tmp_path / "plot.png", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "must end in .png"),
        ("a.gif", "must end in .png"),
        ("no/a.png", "no folder"),
        ("d.png", "is a folder"),
    ],
)
def test_paths_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "d.png").mkdir()
    with pytest.raises(ValueError, match=message):
        plot_grounding(grounding(), tmp_path / name)


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r'pip install "sidelight\[plot\]"'):
        plot_grounding(grounding(), tmp_path / "plot.png")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plot_grounding(grounding(), tmp_path / "plot.png")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        plot_grounding(grounding("another"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["plot.png"]


def test_the_plot_states_the_model_and_the_notes(tmp_path: Path) -> None:
    plain = grounding("x", (15, 45, 1.0), video="film.mp4")
    with_model = replace(plain, model="shapes")
    notes = ("the model shapes knows drawn shapes only", "never saw the word 'dog' " * 20)
    noted = [replace(with_model, notes=notes), replace(with_model, notes=notes[:1])]
    pictures = {
        name: pixels(plot_groundings(answers, tmp_path / f"{name}.png"))
        for name, answers in (("plain", [plain]), ("model", [with_model]), ("noted", noted), ("two", [with_model] * 2))
    }
    assert pictures["plain"].shape == pictures["model"].shape
    changed = (pictures["plain"] != pictures["model"]).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert len(rows) and rows.max() < plot.TITLE_HEIGHT * plot.DPI and columns.max() < pictures["plain"].shape[1] / 2
    # A line for the first note, three for the long one, each once for both queries.
    taller = (pictures["noted"].shape[0] - pictures["two"].shape[0]) / plot.DPI
    assert taller == pytest.approx(4 * plot.NOTE_LINE, abs=0.02)
    assert has_color(pictures["noted"], plot.TRUE) and not has_color(pictures["two"], plot.TRUE)
