"""Read every export back with another program's reader: each boundary is the frame of the moment."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse
from xml.etree import ElementTree as ET

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidelight.cli.main import main
from sidelight.core.grounding import Grounding, Moment
from sidelight.core.timeline import Timeline
from sidelight.export import editors, lists
from sidelight.export.formats import FORMATS, as_text, export, format_of
from sidelight.export.source import Cut, Source, cuts_of, read_source
from sidelight.export.timecode import can_drop, end_frame, first_frame, frames_of, standard_rate, timecode

RATES = [Fraction(*pair) for pair in ((24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (50, 1), (60000, 1001))]
STARTS = ["00:00:00:00", "01:00:00:00", "23:59:50:00"]
MOMENTS = (Moment(3.5, 7.25, 0.9), Moment(0.0, 2.0, 0.4), Moment(10.01, 10.02, 0.3), Moment(18.0, 20.0, 0.2))


def answer(moments: tuple[Moment, ...] = MOMENTS, **changes: Any) -> Grounding:
    values: dict[str, Any] = {
        "query": "a red & <blue> star\nspins",
        "timeline": Timeline(duration=20.0, clip_seconds=2.0),
        "moments": moments,
        "saliency": np.zeros(10, np.float32),
        "video": "v.mp4",
        "model": "shapes",
    }
    return Grounding(**{**values, **changes})


def source_of(rate: Fraction, start: str = "00:00:00:00", *, drop: bool = False, channels: int = 2) -> Source:
    start = start.replace(":", ";") if drop else start
    text = f"{start[:8].replace(';', ':')}{';' if drop else ':'}{start[9:]}"
    return Source(
        path="/films/my film's #1.mp4", rate=rate, frames=end_frame(20.0, rate), width=64, height=48,
        start=frames_of(text, rate), drop=drop, channels=channels, sample_rate=48000 if channels else 0,
    )  # fmt: skip


def sources() -> list[tuple[Fraction, str, bool]]:
    cases = [(rate, start, False) for rate in RATES for start in STARTS]
    return cases + [(rate, start, True) for rate in RATES if can_drop(rate) for start in STARTS]


@pytest.fixture(params=sources(), ids=lambda case: f"{float(case[0]):.5g}-{case[1]}{'-drop' if case[2] else ''}")
def cuts(request: pytest.FixtureRequest) -> list[Cut]:
    rate, start, drop = request.param
    return cuts_of([(answer(), source_of(rate, start, drop=drop))])


# frames and timecodes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_a_cut_holds_the_frames_that_begin_within_the_moment(rate: Fraction) -> None:
    (cut,) = cuts_of([(answer((Moment(3.5, 7.25, 0.9),)), source_of(rate))])
    times = [number / rate for number in range(600)]
    shown_at_start = max(number for number, time in enumerate(times) if time <= 3.5)
    assert (cut.start, cut.end) == (shown_at_start, sum(time < 7.25 for time in times))


@pytest.mark.parametrize("rate", RATES)
def test_times_of_frames_are_these_frames(rate: Fraction) -> None:
    for number in range(20_000):
        seconds = float(np.float32(float(number / rate)))
        assert first_frame(seconds, rate) == end_frame(seconds, rate) == number


@pytest.mark.parametrize(
    ("frame", "rate", "drop", "text"),
    [
        (0, Fraction(25), False, "00:00:00:00"),
        (1799, Fraction(30000, 1001), True, "00:00:59;29"),
        (1800, Fraction(30000, 1001), True, "00:01:00;02"),
        (17982, Fraction(30000, 1001), True, "00:10:00;00"),
        (107892, Fraction(30000, 1001), True, "01:00:00;00"),
        (3600, Fraction(60000, 1001), True, "00:01:00;04"),
        (2589408, Fraction(30000, 1001), True, "00:00:00;00"),
        (86400 * 24, Fraction(24000, 1001), False, "00:00:00:00"),
    ],
)
def test_timecodes(frame: int, rate: Fraction, drop: bool, text: str) -> None:
    assert timecode(frame, rate, drop=drop) == text


@given(st.integers(0, 10**7), st.sampled_from(RATES), st.booleans())
def test_timecodes_are_read_back(frame: int, rate: Fraction, drop: bool) -> None:
    drop = can_drop(rate) and drop
    day = len_of_day(rate, drop)
    assert frames_of(timecode(frame, rate, drop=drop), rate) == frame % day


def len_of_day(rate: Fraction, drop: bool) -> int:
    return frames_of(f"23:59:59;{round(rate) - 1}", rate) + 1 if drop else 86400 * round(rate)


@pytest.mark.parametrize("text", ["", "1:2:3:4", "00:60:00:00", "00:00:00:25", "24:00:00:00", "00:01:00;00"])
def test_other_timecodes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no timecode|has no drop-frame timecode"):
        frames_of(text, Fraction(25))
    with pytest.raises(ValueError, match=r"drop-frame counting leaves out|is no timecode"):
        frames_of("00:01:00;01", Fraction(30000, 1001))


@pytest.mark.parametrize(
    ("average", "standard"),
    [
        (Fraction(19001, 634), Fraction(30000, 1001)),  # 29.97 in Matroska, whose times are milliseconds
        (Fraction(2997, 100), Fraction(30000, 1001)),
        (Fraction(24), Fraction(24)),
        (Fraction(2398, 100), Fraction(24000, 1001)),
        (Fraction(15), Fraction(15)),
        (Fraction(277, 10), Fraction(277, 10)),
    ],
)
def test_standard_rates(average: Fraction, standard: Fraction) -> None:
    assert standard_rate(average) == standard


# read back -----------------------------------------------------------------------------------------------------------


def test_otio_is_read_by_opentimelineio(cuts: list[Cut]) -> None:
    library = pytest.importorskip("opentimelineio")
    timeline = library.adapters.read_from_string(editors.otio(cuts, "t"), "otio_json")
    clips = list(timeline.find_clips())
    assert len(clips) == len(cuts)
    for clip, cut in zip(clips, cuts, strict=True):
        assert clip.source_range.start_time.value == cut.source.start + cut.start
        assert clip.source_range.end_time_exclusive().value == cut.source.start + cut.end
        assert clip.source_range.start_time.rate == float(cut.source.rate)
        assert clip.media_reference.available_range.start_time.value == cut.source.start
        assert unquote(urlparse(clip.media_reference.target_url).path) == cut.source.path
        assert clip.metadata["sidelight"]["query"] == cut.query


def test_edl_is_read_by_pycmx(cuts: list[Cut]) -> None:
    pycmx = pytest.importorskip("pycmx")
    text = editors.edl(cuts, "t")
    edits = [edit for event in pycmx.parse_cmx3600(io.StringIO(text)).events for edit in event.edits]
    assert len(edits) == len(cuts) and all(len(line) <= 80 or line.startswith("*") for line in text.splitlines())
    rate, drop = cuts[0].source.rate, cuts[0].source.drop
    assert f"FCM: {'DROP' if drop else 'NON-DROP'} FRAME" in text
    day, place = len_of_day(rate, drop), frames_of("01:00:00;00" if drop else "01:00:00:00", rate)
    for edit, cut in zip(edits, cuts, strict=True):
        begin, end = frames_of(edit.source_in, rate), frames_of(edit.source_out, rate)
        assert (begin, end) == ((cut.source.start + cut.start) % day, (cut.source.start + cut.end) % day)
        assert frames_of(edit.record_in, rate) == place and frames_of(edit.record_out, rate) == place + cut.length
        assert edit.clip_name == cut.source.name and edit.channels.video
        place += cut.length


def seconds(text: str) -> Fraction:
    assert re.fullmatch(r"\d+(/\d+)?s", text), text
    return Fraction(text.removesuffix("s"))


def test_fcpxml_is_read_back(cuts: list[Cut]) -> None:
    text = editors.fcpxml(cuts, "t")
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE fcpxml>\n')
    root, rate = ET.fromstring(text), cuts[0].source.rate
    (form,), (asset,) = root.findall("resources/format"), root.findall("resources/asset")
    assert seconds(form.attrib["frameDuration"]) == 1 / rate
    assert [child.tag for child in root] == ["resources", "library"]
    clips = root.findall("library/event/project/sequence/spine/asset-clip")
    place = 0
    for clip, cut in zip(clips, cuts, strict=True):
        assert clip.attrib["ref"] == asset.attrib["id"] and asset.attrib["format"] == form.attrib["id"]
        assert seconds(clip.attrib["start"]) * rate == cut.source.start + cut.start
        assert (seconds(clip.attrib["start"]) + seconds(clip.attrib["duration"])) * rate == cut.source.start + cut.end
        assert seconds(clip.attrib["offset"]) * rate == place
        begin, end = seconds(asset.attrib["start"]), seconds(asset.attrib["duration"])
        assert begin <= seconds(clip.attrib["start"]) < begin + end
        assert seconds(clip[0].attrib["start"]) == seconds(clip.attrib["start"])
        place += cut.length
    (media,) = asset.findall("media-rep")
    assert unquote(urlparse(media.attrib["src"]).path) == cuts[0].source.path


def test_xmeml_is_read_back(cuts: list[Cut]) -> None:
    text = editors.xmeml(cuts, "t")
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE xmeml>\n<xmeml version="4">')
    root, rate = ET.fromstring(text), cuts[0].source.rate
    for element in root.iter("rate"):
        base, ntsc = int(element.findtext("timebase", "")), element.findtext("ntsc") == "TRUE"
        assert Fraction(base * 1000, 1001 if ntsc else 1000) == rate
    for kind in ("video", "audio"):
        place = 0
        for clip, cut in zip(root.findall(f"sequence/media/{kind}/track/clipitem"), cuts, strict=True):
            numbers = [int(clip.findtext(name, "")) for name in ("start", "end", "in", "out", "duration")]
            assert numbers == [place, place + cut.length, cut.start, cut.end, cut.source.frames]
            place += cut.length
    files = root.findall(".//clipitem/file")
    assert {file.attrib["id"] for file in files} == {"file-1"} and len([file for file in files if len(file)]) == 1
    path, code = root.findtext(".//pathurl", ""), root.find(".//clipitem/file/timecode")
    assert unquote(urlparse(path).path) == cuts[0].source.path and code is not None
    drop = code.findtext("displayformat") == "DF"
    assert drop == cuts[0].source.drop
    assert frames_of(code.findtext("string", ""), rate) == int(code.findtext("frame", "")) == cuts[0].source.start


def test_markers_are_read_back(cuts: list[Cut]) -> None:
    text = editors.resolve_markers(cuts, "t")
    lines = re.findall(
        r"^\d{3}  001 +V +C +(\S+) (\S+) (\S+) (\S+)\n \|C:(\w+) \|M:(.*) \|D:(\d+)$", text, re.MULTILINE
    )
    begin = frames_of("01:00:00;00" if cuts[0].source.drop else "01:00:00:00", cuts[0].source.rate)
    for line, cut in zip(lines, cuts, strict=True):
        assert [frames_of(code, cut.source.rate) - begin for code in line[:4]] == [cut.start, cut.start + 1] * 2
        assert int(line[6]) == cut.length and "a red & <blue> star spins" in line[5]


def test_concat_lists_and_losslesscut_name_whole_frames(cuts: list[Cut]) -> None:
    text = lists.ffconcat(cuts)
    assert text.startswith("ffconcat version 1.0\nfile '/films/my film'\\''s #1.mp4'\n")
    points = [float(number) for number in re.findall(r"^(?:in|out)point (\S+)$", text, re.MULTILINE)]
    rows = list(csv.reader(io.StringIO(lists.losslesscut(cuts))))
    expected = [frame for cut in cuts for frame in (cut.start, cut.end)]
    rate = cuts[0].source.rate
    assert [first_frame(point, rate) for point in points] == expected
    assert [first_frame(float(cell), rate) for row in rows for cell in row[:2]] == expected
    assert rows[0][2] == "a red & <blue> star spins"


# tables, subtitles, chapters -----------------------------------------------------------------------------------------


def test_csv_and_json_are_read_back() -> None:
    rows = list(csv.DictReader(io.StringIO(lists.as_csv([answer(), answer(query="=1+1", moments=())]))))
    assert [(float(row["start"]), float(row["end"])) for row in rows] == [(m.start, m.end) for m in answer().moments]
    assert rows[0]["query"] == answer().query and rows[0]["model"] == "shapes"
    assert "'=1+1" in lists.as_csv([answer(query="=1+1")])  # a spreadsheet would compute it
    assert [Grounding.from_dict(values) for values in json.loads(lists.as_json([answer()]))] == [answer()]


@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_subtitles_are_read_back(kind: str) -> None:
    pysubs2 = pytest.importorskip("pysubs2")
    events = pysubs2.SSAFile.from_string(lists.subtitles([answer(query="a red & blue\nstar")], kind), format_=kind)
    assert [(event.start, event.end) for event in events] == [(0, 2000), (3500, 7250), (10010, 10020), (18000, 20000)]
    assert {event.plaintext for event in events} == {"a red &amp; blue star" if kind == "vtt" else "a red & blue star"}
    assert "&lt;" in lists.subtitles([answer()], "vtt")
    empty = lists.subtitles([answer(moments=())], kind)
    assert empty.strip() in ("", "WEBVTT")


def require_youtubes_rules(text: str, duration: float) -> list[int]:
    """Check chapters against YouTube's rules, and return their seconds."""
    lines = [re.fullmatch(r"(?:(\d+):)?(\d?\d):(\d\d) (\S.*)", line) for line in text.splitlines()]
    places = [int(m[1] or 0) * 3600 + int(m[2]) * 60 + int(m[3]) for m in lines if m]
    assert len(places) == len(lines) >= 3 and places[0] == 0
    assert all(b - a >= 10 for a, b in zip(places, [*places[1:], int(duration)], strict=True))
    return places


@settings(max_examples=300)
@given(
    st.floats(30, 9000),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12),
)
def test_chapters_keep_the_rules_of_youtube(duration: float, moments: list[tuple[float, float, float]]) -> None:
    timeline = Timeline(duration=duration, clip_seconds=duration)
    kept = tuple(Moment(min(a, b) * duration, max(a, b) * duration, score) for a, b, score in moments)
    grounding = Grounding(query="x", timeline=timeline, moments=kept, saliency=np.zeros(1, np.float32))
    require_youtubes_rules(lists.chapters([grounding]), duration)


def test_chapters_begin_where_the_moments_do() -> None:
    timeline = Timeline(duration=120.0, clip_seconds=2.0)
    moments = (Moment(20.4, 45, 0.9), Moment(30, 50, 0.8), Moment(80, 90, 0.7), Moment(84, 95, 0.6))
    text = lists.chapters([answer(moments, timeline=timeline, saliency=np.zeros(60), query="a star")])
    assert text == "0:00 More\n0:20 a star\n0:45 More\n1:20 a star\n1:30 More\n"
    with pytest.raises(ValueError, match="need a video of at least 30 s, got 20 s"):
        lists.chapters([answer()])


# files and commands --------------------------------------------------------------------------------------------------


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Write 20 s at 29.97 frames a second with sound, whose first frame has a drop-frame timecode of one hour."""
    path = tmp_path / "v.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30000, 1001), options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=48000)
        container.metadata["timecode"] = "01:00:00;00"
        for number in range(600):
            image = np.full((48, 64, 3), number % 250, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for _ in range(20 * 48):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 48000
            container.mux(sound.encode(frame))
        container.mux(stream.encode())
        container.mux(sound.encode())
    return path


def test_a_source_is_read(film: Path, tmp_path: Path) -> None:
    source = read_source(film)
    assert (source.rate, source.frames, source.width, source.height) == (Fraction(30000, 1001), 600, 64, 48)
    assert (source.start, source.drop, source.channels, source.sample_rate) == (107892, True, 2, 48000)
    assert source.notes == () and source.path == str(film)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_written_by_the_command(
    name: str, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = Timeline(duration=40.0, clip_seconds=2.0) if name == "youtube" else Timeline(duration=20.0, clip_seconds=2.0)
    given = answer(video=str(film), timeline=long, saliency=np.zeros(long.num_clips))
    (tmp_path / "a.json").write_text(json.dumps([given.to_dict()]))
    out = tmp_path / f"out{FORMATS[name].suffix or '.edl'}"
    options = [] if FORMATS[name].suffix else ["--format", name]
    assert main(["export", str(tmp_path / "a.json"), str(out), *options, "--min-score", "0"]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    expected, notes = as_text([given], name, title="out")
    assert out.read_text() == expected and notes == ()
    export(given, out, format=name)
    assert out.read_text() == expected
    given.export(out, format=name)
    assert out.read_text() == expected


def test_the_shell_script_cuts_whole_frames(film: Path, tmp_path: Path) -> None:
    if subprocess.run(["sh", "-c", "command -v ffmpeg"], capture_output=True).returncode:
        pytest.skip("needs ffmpeg")
    export(answer((Moment(1.0, 2.0, 0.9),), video=str(film)), tmp_path / "cut.sh")
    subprocess.run(["sh", "cut.sh"], cwd=tmp_path, check=True, capture_output=True)
    with av.open(str(tmp_path / "v-001.mp4")) as container:
        assert len(list(container.decode(video=0))) == end_frame(2.0, Fraction(30000, 1001)) - 29


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("a.json out.abc", "cannot tell the format of out.abc by its suffix; expected one of .csv, .json"),
        ("a.json out.edl --format xyz", "--format must be one of csv, json"),
        ("missing.json out.edl", "missing.json does not exist"),
        ("bad.json out.csv", "bad.json is not valid JSON"),
        ("other.json out.csv", "expected a grounding of format"),
        ("none.json out.edl", "there is no moment to export"),
        ("nameless.json out.edl", "names no video; give the file (--video FILE)"),
        ("two.json out.srt", "the format srt holds one video, got 2"),
        ("a.json a.json --format json", "cannot write a.json: it is read by the same command"),
        ("a.json out.edl --padding -1", "--padding must be 0 or more, got -1.0"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: str,
    message: str,
    film: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "a": [answer(video=str(film))],
        "none": [answer((), video=str(film))],
        "nameless": [answer(video=None)],
        "two": [answer(video="a.mp4"), answer(video="b.mp4")],
    }
    for name, answers in files.items():
        Path(f"{name}.json").write_text(json.dumps([grounding.to_dict() for grounding in answers]))
    Path("bad.json").write_text("{")
    Path("other.json").write_text('[{"a": 1}]')
    assert main(["export", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.glob("out*"))


def test_a_variable_frame_rate_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.films import Encoding, encode, numbered, unsteady

    encode(tmp_path / "v.mkv", Encoding(unsteady(60)), numbered)
    given = answer((Moment(1.0, 2.0, 0.5),), video=str(tmp_path / "v.mkv"))
    (tmp_path / "a.json").write_text(json.dumps(given.to_dict()))  # one answer, not in a list
    assert main(["export", str(tmp_path / "a.json"), str(tmp_path / "o.edl")]) == 0
    assert "has a variable frame rate; cuts are counted in its average of" in capsys.readouterr().err


def test_padding_and_top_stay_within_the_video() -> None:
    source = source_of(Fraction(25))
    padded = cuts_of([(answer(), source)], top=2, padding=1.0)
    assert [(cut.start, cut.end) for cut in padded] == [(0, 75), (62, 207)]
    assert cuts_of([(answer((Moment(19.5, 20.0, 1.0),)), source)], padding=5)[0].end == 500


def test_different_rates_do_not_share_a_timeline() -> None:
    cuts = [Cut(source=source_of(Fraction(rate)), start=0, end=5, query="x", score=0.1) for rate in (25, 24)]
    with pytest.raises(ValueError, match=r"a timeline has one frame rate, got .* \(25\) and .* \(24\)"):
        editors.edl(cuts, "t")


@pytest.mark.parametrize(
    ("path", "name"), [(f"x{form.suffix.upper()}", name) for name, form in FORMATS.items() if form.suffix]
)
def test_suffixes_choose_formats(path: str, name: str) -> None:
    assert format_of(path) == name
