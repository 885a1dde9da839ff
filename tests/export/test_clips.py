"""Cut clips from drawn videos and decode them: each frame shows its number, each half second has a click."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from sidelight.core.grounding import Grounding, Moment
from sidelight.core.timeline import Timeline
from sidelight.export.clips import Clip, cut_clips, join_clips, slug
from sidelight.export.source import cuts_of, read_source
from sidelight.video.damage import VideoError
from sidelight.video.read import frames_at, probe
from tests.films import ENCODINGS, Encoding, Pixels, corner, encode, number_of, numbered

RATES = {"24": Fraction(24), "25": Fraction(25), "29.97": Fraction(30000, 1001), "60": Fraction(60)}
SECONDS, CLICK = 6.0, 0.5
SAMPLE_RATE = 48000


def draw_film(path: Path, rate: Fraction, *, sound: bool, size: tuple[int, int] = (64, 48), gop: int = 20) -> Path:
    """Write a film whose frames show their numbers, with a click of 5 ms at each half second."""
    with av.open(str(path), "w") as container:
        options = {"threads": "1", "preset": "veryfast", "x264-params": "scenecut=0"}
        video: Any = container.add_stream("libx264", rate=rate, options=options)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.codec_context.time_base, video.codec_context.gop_size = 1 / rate, gop
        audio: Any = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if sound else None
        for number in range(round(SECONDS * rate)):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="gray").reformat(*size, format="yuv420p")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            times = np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
            wave = np.where(times % CLICK < 0.005, np.sin(2 * np.pi * 3000 * times), 0).astype(np.float32)
            for at in range(0, len(wave), 1024):
                block = av.AudioFrame.from_ndarray(wave[None, at : at + 1024], format="fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, at, Fraction(1, SAMPLE_RATE)
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a film of each rate, with sound (.mp4, .mkv) and without."""
    folder = tmp_path_factory.mktemp("films")
    for name, rate in RATES.items():
        draw_film(folder / f"{name}.mp4", rate, sound=False)
        draw_film(folder / f"{name}-sound.mp4", rate, sound=True)
    draw_film(folder / "29.97-sound.mkv", RATES["29.97"], sound=True)
    draw_film(folder / "large.mp4", Fraction(25), sound=False, size=(160, 120))
    return folder


def answer(video: Path, *moments: tuple[float, float, float], query: str = "a star: spins/blinks") -> Grounding:
    timeline = Timeline(duration=probe(video).duration, clip_seconds=2.0)
    return Grounding(
        query=query,
        timeline=timeline,
        moments=tuple(Moment(*moment) for moment in moments),
        saliency=np.linspace(0, 1, timeline.num_clips, dtype=np.float32),
        video=str(video),
        model="test",
    )


def decoded(path: Path) -> list[tuple[float, Pixels]]:
    """Decode a film in the plainest way: seconds and image of each frame."""
    with av.open(str(path)) as container:
        return [(float(f.time or 0.0), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


def clicks(path: Path) -> list[float]:
    """Return the seconds at which the clicks of a film begin."""
    with av.open(str(path)) as container:
        blocks = [(frame.time, frame.to_ndarray()) for frame in container.decode(audio=0)]
    start = blocks[0][0] or 0.0
    wave = np.abs(np.concatenate([block[0] for _, block in blocks]))
    loud = np.flatnonzero(wave > 0.3)
    firsts = loud[np.insert(np.diff(loud) > 0.1 * SAMPLE_RATE, 0, True)] if len(loud) else loud
    return [start + float(first) / SAMPLE_RATE for first in firsts]


def sound_seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        return float(sum(frame.samples for frame in container.decode(audio=0))) / SAMPLE_RATE


CLIPS = [
    ("24.mp4", 0.0, 1.0),
    ("24.mp4", 1.37, 2.9),
    ("24-sound.mp4", 0.7, 3.3),
    ("24-sound.mp4", 4.01, 6.0),
    ("24-sound.mp4", 2.0, 2.01),
    ("25.mp4", 0.04, 0.08),
    ("25.mp4", 2.5, 5.5),
    ("25-sound.mp4", 1.99, 4.0),
    ("25-sound.mp4", 0.0, 6.0),
    ("25-sound.mp4", 5.9, 6.0),
    ("29.97.mp4", 1001 / 30000 * 31, 1001 / 30000 * 61),
    ("29.97.mp4", 3.333, 4.444),
    ("29.97-sound.mp4", 0.5, 2.5),
    ("29.97-sound.mkv", 1001 / 30000 * 47, 1001 / 30000 * 99),
    ("29.97-sound.mkv", 1.234, 5.678),
    ("60.mp4", 0.999, 2.001),
    ("60.mp4", 5.0, 5.5),
    ("60-sound.mp4", 1.25, 1.75),
    ("60-sound.mp4", 3.1, 5.9),
    ("60-sound.mp4", 0.008, 0.5),
]


@pytest.mark.parametrize(("name", "start", "end"), CLIPS, ids=[f"{n}-{s:.2f}" for n, s, _ in CLIPS])
def test_an_exact_clip_holds_the_frames_of_the_moment(
    name: str, start: float, end: float, films: Path, tmp_path: Path
) -> None:
    source = films / name
    (cut,) = cuts_of([(answer(source, (start, end, 0.9)), read_source(source))])
    (clip,) = cut_clips(answer(source, (start, end, 0.9)), tmp_path)
    frames, rate = decoded(clip.path), cut.source.rate
    assert clip.frames == len(frames) == cut.length
    assert [number_of(image) for _, image in frames] == list(range(cut.start, cut.end))
    assert [time for time, _ in frames] == pytest.approx([n / float(rate) for n in range(cut.length)], abs=1e-4)
    first = next(frames_at(source, [start + 1e-5])).image
    assert np.abs(frames[0][1].astype(int) - first).mean() < 2
    assert clip.start == pytest.approx(cut.start / float(rate), abs=6e-4)
    if "sound" in name:
        assert sound_seconds(clip.path) >= cut.length / float(rate) - 1e-3
        shift = cut.start / float(rate)
        expected = [n * CLICK - shift for n in range(12) if 0.02 < n * CLICK - shift < cut.length / float(rate) - 0.02]
        heard = [time for time in clicks(clip.path) if 0.02 < time < cut.length / float(rate) - 0.02]
        assert heard == pytest.approx(expected, abs=0.003)
    else:
        assert not av.open(str(clip.path)).streams.audio


@pytest.mark.parametrize("name", ["24.mp4", "25-sound.mp4", "29.97-sound.mkv", "60-sound.mp4"])
def test_a_copied_clip_starts_at_the_keyframe_that_is_told(name: str, films: Path, tmp_path: Path) -> None:
    source = films / name
    rate = float(read_source(source).rate)
    (clip,) = cut_clips(answer(source, (2.3, 4.1, 0.9)), tmp_path, copy=True)
    numbers = [number_of(image) for _, image in decoded(clip.path)]
    first = round(clip.start * rate)
    assert first % 20 == 0 and first <= 2.3 * rate < first + 20  # a keyframe every 20 frames
    assert numbers == list(range(first, first + clip.frames))
    assert round(clip.end * rate) == first + clip.frames and 4.1 <= clip.end + 1e-3 < 4.1 + 4 / rate
    assert clip.path.suffix == source.suffix
    if "sound" in name:
        heard = [time for time in clicks(clip.path) if 0.05 < time < clip.end - clip.start - 0.05]
        expected = [n * CLICK - clip.start for n in range(12)]
        assert len(heard) >= 3 and all(min(abs(h - e) for e in expected) < 0.004 for h in heard)


def test_padding_stays_within_the_video(films: Path, tmp_path: Path) -> None:
    clips = cut_clips(answer(films / "25.mp4", (0.2, 1.0, 0.9), (5.0, 5.8, 0.5)), tmp_path, padding=0.4)
    assert [clip.start for clip in clips] == pytest.approx([0.0, 4.6])
    assert [clip.end for clip in clips] == pytest.approx([1.4, 6.0])


def test_variable_rates_keep_the_times_of_frames(tmp_path: Path) -> None:
    for name in ("unsteady.mp4", "unsteady.mkv"):
        source = tmp_path / name
        encode(source, ENCODINGS[name], numbered)
        times = [time for time, _ in decoded(source)]
        zero = times[0]
        times = [time - zero for time in times]
        (clip,) = cut_clips(answer(source, (3.0, 7.0, 0.9)), tmp_path / f"clips of {name}")
        shown = [
            n for n, time in enumerate(times) if (times[n + 1] if n + 1 < len(times) else 1e9) > 3.0 and time < 7.0
        ]
        frames = decoded(clip.path)
        assert [number_of(image) for _, image in frames] == shown
        assert [time for time, _ in frames] == pytest.approx([max(0.0, times[n] - 3.0) for n in shown], abs=1e-3)
        assert any("variable frame rate" in note for note in read_source(source).notes)


def test_turn_aspect_and_odd_names_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "-ein Mädchen: 1%.mp4"
    encode(source, Encoding([n / 10 for n in range(30)], turn=90, aspect=Fraction(4, 3)), corner)
    (clip,) = cut_clips(answer(source, (1.0, 2.0, 0.5), query="../../x\n<b>"), tmp_path / "out")
    assert clip.path == tmp_path / "out" / "ein-mädchen-1-x-b-00001.00-00002.00.mp4"
    before, after = probe(source), probe(clip.path)
    assert (after.rotation, after.width, after.height) == (before.rotation, before.width, before.height)
    images = [next(frames_at(path, [0.5])).image.astype(int) for path in (source, clip.path)]
    assert np.abs(images[0] - images[1]).mean() < 2


def test_colours_are_kept(tmp_path: Path, shared: Path) -> None:
    source = shared / "videos" / "bt709_full_range.mp4"
    (clip,) = cut_clips(answer(source, (0.2, 0.4, 0.5)), tmp_path)
    with av.open(str(clip.path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.color_range, context.colorspace, context.color_primaries, context.color_trc) == (2, 1, 1, 1)
    images = [next(frames_at(path, [at])).image.astype(int) for path, at in ((source, 0.2), (clip.path, 0.0))]
    assert np.abs(images[0] - images[1]).mean() < 2


def test_names_are_stable_and_files_are_kept(films: Path, tmp_path: Path) -> None:
    grounding = answer(films / "25.mp4", (1.0, 2.0, 0.9), (3.0, 4.0, 0.5))
    first = cut_clips(grounding, tmp_path, top=1)
    written = first[0].path.stat().st_mtime_ns
    again = cut_clips(grounding, tmp_path)
    assert [clip.is_new for clip in again] == [False, True] and again[0].path == first[0].path
    assert again[0].path.stat().st_mtime_ns == written
    again[1].path.write_text("mine")
    with pytest.raises(ValueError, match="exists and is not the clip to write"):
        cut_clips(grounding, tmp_path)
    assert again[1].path.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [clip.path.name for clip in again]


def test_equal_names_get_numbers(films: Path, tmp_path: Path) -> None:
    twice = [answer(films / "25.mp4", (1.0, 1.2, 0.9), query=query) for query in ("a star", "a  star!")]
    names = [clip.path.stem for clip in cut_clips(twice, tmp_path)]
    assert names == ["25-a-star-00001.00-00001.20", "25-a-star-00001.00-00001.20-2"]


@pytest.mark.parametrize(
    ("text", "name"),
    [("", ""), ("  ../.. ", ""), ("A person, opens_the door", "a-person-opens-the-door"), ("门打开了", "门打开了"),
     ("é" * 80, "é" * 30), ("\0\n", "")],
)  # fmt: skip
def test_slugs(text: str, name: str) -> None:
    assert slug(text) == name


def test_a_film_shows_each_moment_once_in_time(films: Path, tmp_path: Path) -> None:
    source = films / "25-sound.mp4"
    grounding = answer(source, (4.0, 5.0, 0.9), (1.0, 2.0, 0.5), (1.52, 2.52, 0.4))
    assert join_clips(grounding, tmp_path / "film.mp4") == ()
    numbers = [number_of(image) for _, image in decoded(tmp_path / "film.mp4")]
    assert numbers == [*range(25, 63), *range(100, 125)]
    heard = clicks(tmp_path / "film.mp4")
    assert all(min(abs(h - e) for e in (0.0, 0.5, 1.0, 1.5, 1.52, 2.02)) < 0.004 for h in heard) and len(heard) >= 5


def test_a_copied_film(films: Path, tmp_path: Path) -> None:
    source = films / "25-sound.mp4"
    grounding = answer(source, (4.9, 5.5, 0.9), (1.0, 2.0, 0.5))
    join_clips(grounding, tmp_path / "film.mp4", copy=True)
    numbers = [number_of(image) for _, image in decoded(tmp_path / "film.mp4")]
    assert numbers[0] == 20 and 120 in numbers and numbers == sorted(numbers)
    assert set(range(25, 50)) | set(range(123, 138)) <= set(numbers)
    with pytest.raises(ValueError, match="a film of 2 videos must be encoded; leave out --copy"):
        join_clips([grounding, answer(films / "24.mp4", (1, 2, 0.5))], tmp_path / "two.mp4", copy=True)


def test_videos_of_different_size_and_rate_are_joined(films: Path, tmp_path: Path) -> None:
    parts = [answer(films / name, (1.0, 2.0, 0.9)) for name in ("large.mp4", "60.mp4", "24-sound.mp4")]
    turned = tmp_path / "turned.mp4"
    encode(turned, Encoding([n / 10 for n in range(30)], turn=90), corner)
    notes = join_clips([*parts, answer(turned, (1.0, 2.0, 0.9))], tmp_path / "film.mp4")
    assert "all are scaled into 160x120 pixels" in notes[0] and "different frame rates (25, 60, 24, 10)" in notes[1]
    frames = decoded(tmp_path / "film.mp4")
    assert len(frames) == 25 + 60 + 24 + 10
    numbers = [number_of(image) for _, image in frames[:-10]]
    assert numbers == [*range(25, 50), *range(60, 120), *range(24, 48)]
    assert [frames[i][0] for i in (0, 25, 85, 109)] == pytest.approx([0, 1, 2, 3], abs=2e-3)
    upright = next(frames_at(turned, [1.0], size=(90, 120))).image
    assert np.abs(frames[-10][1][:, 35:125].astype(int) - upright).mean() < 6
    assert not frames[-10][1][:, :30].any()  # black bars
    assert all(1.98 < time < 3.0 for time in clicks(tmp_path / "film.mp4"))


def test_mistakes_are_told(films: Path, tmp_path: Path) -> None:
    source = films / "25.mp4"
    grounding = answer(source, (1.0, 2.0, 0.9))
    with pytest.raises(ValueError, match="there is no moment"):
        cut_clips(answer(source), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="is read by the same command"):
        join_clips(grounding, source)
    with pytest.raises(ValueError, match=r"a film must end in \.mp4"):
        join_clips(grounding, tmp_path / "film.avi")
    (tmp_path / "broken.mp4").write_bytes(source.read_bytes()[:300])
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        cut_clips(grounding, tmp_path / "none", video=tmp_path / "broken.mp4")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give another place"):
        cut_clips(grounding, tmp_path / "file")


def test_a_failure_leaves_no_file(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sidelight.export.cutting.FilmWriter.close", fail)
    with pytest.raises(KeyboardInterrupt):
        cut_clips(answer(films / "25.mp4", (1.0, 2.0, 0.9)), tmp_path / "out")
    assert not os.listdir(tmp_path / "out")


def test_an_answer_cuts_itself(films: Path, tmp_path: Path) -> None:
    clips: list[Clip] = answer(films / "25.mp4", (1.0, 2.0, 0.9), (3.0, 4.0, 0.5)).clips(tmp_path, top=1)
    assert [clip.frames for clip in clips] == [25]


@pytest.mark.parametrize(
    "name", ["open.mp4", "vp9.webm", "mpeg4.avi", "h265.mkv", "stream.ts", "fragments.mp4", "late.mkv", "sound.webm"]
)
def test_every_format_is_cut_and_copied(name: str, tmp_path: Path) -> None:
    source = tmp_path / name
    encode(source, ENCODINGS[name], numbered)
    duration = probe(source).duration
    start, end = 0.37 * duration, 0.8 * duration
    first, last = (number_of(frame.image) for frame in frames_at(source, [start + 1e-4, end - 1e-3]))
    (exact,) = cut_clips(answer(source, (start, end, 0.9)), tmp_path / "exact")
    assert [number_of(image) for _, image in decoded(exact.path)] == list(range(first, last + 1))
    (copied,) = cut_clips(answer(source, (start, end, 0.9)), tmp_path / "copied", copy=True)
    numbers = [number_of(image) for _, image in decoded(copied.path)]
    shown = number_of(next(frames_at(source, [copied.start + 1e-3])).image)
    assert numbers == list(range(shown, shown + copied.frames)) and shown <= first and numbers[-1] >= last


def test_what_cannot_be_copied_is_told(tmp_path: Path) -> None:
    source = tmp_path / "small.gif"
    with av.open(str(source), "w") as container:
        stream: Any = container.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 65, 49, "rgb8"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="gray").reformat(65, 49, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="rgb8")))
        container.mux(stream.encode(None))
    (clip,) = cut_clips(answer(source, (0.5, 1.5, 0.9)), tmp_path / "exact")
    assert [number_of(image) for _, image in decoded(clip.path)] == list(range(5, 15))
    assert decoded(clip.path)[0][1].shape == (48, 64, 3)  # H.264 needs even sides
    with pytest.raises(VideoError, match="gif cannot be copied into matroska; leave out --copy"):
        cut_clips(answer(source, (0.5, 1.5, 0.9)), tmp_path / "copied", copy=True)
    assert not os.listdir(tmp_path / "copied")


@pytest.mark.parametrize("copy", [False, True], ids=["exact", "copied"])
def test_progress_is_the_part_of_the_frames_and_can_end_the_cut(films: Path, tmp_path: Path, copy: bool) -> None:
    grounding = answer(films / "25.mp4", (0.5, 1.5, 0.9), (2.0, 3.0, 0.5))
    parts: list[float] = []
    cut_clips(grounding, tmp_path / "clips", copy=copy, progress=parts.append)
    assert len(parts) > 10 and parts == sorted(parts) and parts[-1] == 1
    parts.clear()
    join_clips(grounding, tmp_path / "film.mp4", copy=copy, progress=parts.append)
    assert len(parts) > 10 and parts == sorted(parts) and parts[-1] == 1

    def stop(part: float) -> None:
        if part > 0.3:
            raise RuntimeError

    for cut in (lambda: cut_clips(grounding, tmp_path / "new", copy=copy, progress=stop),
                lambda: join_clips(grounding, tmp_path / "new" / "film.mp4", copy=copy, progress=stop)):  # fmt: skip
        with pytest.raises(RuntimeError):
            cut()
    assert not os.listdir(tmp_path / "new"), "nothing half-written stays"
