"""Check times where a file's own statements about them break, end too early or count from another place."""

from __future__ import annotations

import re
import struct
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from sidelight.core.timeline import Timeline
from sidelight.video.clock import Part, parts_of, read_clock
from sidelight.video.read import VideoError, VideoInfo, VideoWarning, frames_at, probe
from tests.films import Encoding, encode, encode_silence, number_of, numbered, steady

COUNT = 20
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
_TS = Encoding(steady(COUNT), gop=10)
_MPEG2 = Encoding([n / 25 for n in range(COUNT)], "mpeg2video", tick=Fraction(1, 25), gop=10)
JOINED = {
    "joined.ts": _TS,
    "joined.mpg": _MPEG2,
    "joined.vob": _MPEG2,
    "joined.mkv": _TS,
    "joined.webm": replace(_TS, codec="libvpx", options={"deadline": "realtime", "cpu-used": "8"}),
    "joined.flv": _TS,
    "fragments.mp4": replace(_TS, mux=FRAGMENTS),
    "joined.mp4": _TS,
    "joined.avi": Encoding(steady(COUNT), "mpeg4", tick=Fraction(1, 10)),
}


def read(path: Path, seconds: Sequence[float]) -> tuple[list[int], list[float]]:
    """Return the number and the time of each frame; damage is an error, a note is none."""
    notes = probe(path).notes
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames = list(frames_at(path, seconds))
    assert [str(warning.message) for warning in caught] == list(notes)
    return [number_of(frame.image) for frame in frames], [frame.seconds for frame in frames]


def check(path: Path, length: float, rate: int, count: int, *, first: float = 0.0) -> VideoInfo:
    """Check the duration, and the number and time of each frame, when reading all of them and when reading few."""
    info = probe(path)
    assert info.duration == pytest.approx(length, abs=0.002)
    seconds = [first + number / rate for number in range(count)]
    numbers, times = read(path, [second + 0.02 for second in seconds])
    assert numbers == list(range(count))
    assert times == pytest.approx(seconds, abs=0.002)
    few = [1, count // 2 - 1, count // 2, count - 1]
    assert read(path, [seconds[number] + 0.02 for number in few])[0] == few
    return info


def join(tmp_path: Path, name: str, *, offset: float = 0.0, parts: int = 2) -> Path:
    """Write recordings one after the other into one file, the later ones with timestamps from ``offset`` on."""
    encoding, path = JOINED[name], tmp_path / name
    data = b""
    for part in range(parts):
        first, start = part * COUNT, offset if part else 0.0
        times = [time + start for time in encoding.times]
        one = tmp_path / f"{part}_{name}"
        encode(one, replace(encoding, times=times), lambda number, first=first: numbered(first + number))  # type: ignore[misc]
        data += one.read_bytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("offset", [0.0, 5000.0])
@pytest.mark.parametrize("name", JOINED)
def test_the_clock_goes_on_where_recordings_are_joined(tmp_path: Path, name: str, offset: float) -> None:
    if name.endswith("avi") and offset:
        pytest.skip("AVI has no timestamps")
    rate = 25 if JOINED[name] is _MPEG2 else 10
    info = check(join(tmp_path, name, offset=offset), 2 * COUNT / rate, rate, 2 * COUNT)
    assert len(info.notes) == 1 and "join" in info.notes[0]


@pytest.mark.parametrize("name", ["joined.ts", "joined.mkv"])
def test_three_recordings(tmp_path: Path, name: str) -> None:
    check(join(tmp_path, name, parts=3), 6.0, 10, 60)


def test_a_joined_recording_that_breaks_off_is_followed_by_the_next(tmp_path: Path) -> None:
    whole = join(tmp_path, "joined.mkv").read_bytes()
    first = (tmp_path / "0_joined.mkv").read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(first[:-600] + whole[len(first) :])
    length = probe(path).duration
    assert 2.5 < length < 3.9
    with pytest.warns(VideoWarning, match="joins 2 recordings"):
        frames = list(frames_at(path, [0.0, length - 0.05]))
    assert [number_of(frame.image) for frame in frames] == [0, 39]


@pytest.mark.parametrize("name", ["pause.mkv", "pause.mp4", "sound.ts"])
def test_a_long_pause_is_no_break(tmp_path: Path, name: str) -> None:
    """Frames 14 s apart: the screen did not change, or, in a broadcast, the sound went on."""
    path, times = tmp_path / name, [*steady(10), *steady(10, 15.0)]
    sound, mux = (16.0, {"max_interleave_delta": "0"}) if name == "sound.ts" else (0.0, {})
    encode(path, Encoding(times, sound=sound, mux=mux), numbered)
    info = probe(path)
    assert info.duration == pytest.approx(16.0, abs=0.11)
    assert info.notes == ()
    assert read(path, [0.95, 14.9, 15.05])[0] == [9, 9, 10]


class _Container:
    """A broadcast with one stream, of packets with these timestamps."""

    def __init__(self, times: Sequence[int]) -> None:
        self.format = SimpleNamespace(name="mpegts", flags=512)
        self.times = times

    def demux(self) -> Iterator[Any]:
        for time in self.times:
            yield SimpleNamespace(stream_index=0, pts=time, dts=time, duration=1, size=9, is_discard=False)


@pytest.mark.parametrize(
    ("times", "breaks", "end"),
    [
        ([], (), None),
        ([0, 1, 2], (), 3),
        ([5, 6, 0, 1, 2], ((2, 7),), 10),
        ([5, 6, 900, 901, 2, 3], ((2, -893), (4, 7)), 11),
        ([5, 6, 900, 7, 8], (), 9),  # a single wrong timestamp
        ([5, 6, 0, 7, 8], (), 9),
        ([5, 6, 80, 81], (), 82),  # a pause of less than 10 s
    ],
)
def test_breaks(times: Sequence[int], breaks: tuple[tuple[int, int], ...], end: int | None) -> None:
    stream: Any = SimpleNamespace(index=0, time_base=Fraction(1, 10))
    container: Any = _Container(times)
    assert read_clock(container, stream, 1) == (breaks, end)


def test_segments_with_a_file_type_are_one_recording(tmp_path: Path) -> None:
    path = tmp_path / "segments.mp4"
    encode(path, Encoding(steady(COUNT), gop=10, mux=FRAGMENTS), numbered)
    kinds = [(kind, data) for kind, data in boxes(path.read_bytes())]
    (file_type,) = [data for kind, data in kinds if kind == b"ftyp"]
    path.write_bytes(b"".join((file_type if kind == b"moof" else b"") + data for kind, data in kinds))
    assert parts_of(path) == (Part(),)


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return kind and bytes of each box of an MP4 file."""
    parts, place = [], 0
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        parts.append((data[place + 4 : place + 8], data[place : place + length]))
        place += length
    return parts


# --- durations -------------------------------------------------------------------------------------------


def shorten_mp4(data: bytearray) -> None:
    """State a duration of 1 s in the media header."""
    place = data.index(b"mdhd")
    data[place + 20 : place + 24] = data[place + 16 : place + 20]


def shorten_mkv(data: bytearray) -> None:
    place = data.index(b"\x44\x89\x88")
    data[place + 3 : place + 11] = struct.pack(">d", 1000.0)
    place = data.index(b"00:00:0", data.index(b"DURATION"))
    data[place + 7 : place + 8] = b"1"


def shorten_flv(data: bytearray) -> None:
    place = data.index(b"duration")
    data[place + 9 : place + 17] = struct.pack(">d", 1.0)


@pytest.mark.parametrize(
    ("name", "shorten"), [("short.mp4", shorten_mp4), ("short.mkv", shorten_mkv), ("short.flv", shorten_flv)]
)
def test_a_stated_duration_that_is_too_short(tmp_path: Path, name: str, shorten: Callable[[bytearray], None]) -> None:
    path = tmp_path / name
    encode(path, Encoding(steady(60)), numbered)
    data = bytearray(path.read_bytes())
    shorten(data)
    path.write_bytes(data)
    (note,) = check(path, 6.0, 10, 60).notes
    assert "states a duration of 1." in note


def test_the_last_segments_of_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "tail.mp4"
    encode(path, Encoding(steady(80), gop=10, mux=FRAGMENTS), lambda number: numbered(max(0, number - 60)))
    kinds = boxes(path.read_bytes())
    fragments = [place for place, (kind, _) in enumerate(kinds) if kind == b"moof"]
    kept = kinds[: fragments[0]] + kinds[fragments[6] :]
    path.write_bytes(b"".join(data for kind, data in kept if kind != b"mfra"))
    info = check_tail(path)
    assert info.start == pytest.approx(6.0, abs=0.3)


def check_tail(path: Path) -> VideoInfo:
    info = probe(path)
    assert info.duration == pytest.approx(2.0, abs=0.01)
    assert read(path, [number / 10 + 0.02 for number in range(COUNT)])[0] == list(range(COUNT))
    return info


def test_an_empty_edit_before_trimmed_media(tmp_path: Path) -> None:
    path = tmp_path / "edited.mp4"
    encode(path, Encoding(steady(60, 8.0), gop=10, reordered=0), numbered)
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 24  # the second edit: its length in ms, and where it begins in the media
    begin, scale = struct.unpack(">i", data[place + 4 : place + 8])[0], data.index(b"mdhd") + 16
    ticks = struct.unpack(">I", data[scale : scale + 4])[0]
    data[place : place + 8] = struct.pack(">Ii", 3000, begin + 2 * ticks)
    path.write_bytes(data)
    info = probe(path)
    assert info.duration == pytest.approx(3.0, abs=0.11)
    assert info.start == pytest.approx(8.0)
    assert read(path, [number / 10 + 0.02 for number in range(30)])[0] == list(range(20, 50))


# --- where second 0 is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.ts"])
def test_a_video_that_starts_after_the_sound(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    encode(path, Encoding(steady(COUNT, 2.0), gop=10, sound=4.0), numbered)
    info = probe(path)
    first = read(path, [0.0])[1][0]
    assert first == pytest.approx(2.0, abs=0.05)
    numbers, times = read(path, [0.0, 1.9, first + 0.02, first + 1.02, first + 1.92])
    assert numbers == [0, 0, 0, 10, 19]
    assert times == pytest.approx([first, first, first, first + 1, first + 1.9])
    assert info.duration == pytest.approx(first + 2.0, abs=0.11)
    assert len(info.notes) == 1 and "after the sound" in info.notes[0]


@pytest.mark.parametrize("name", ["soon.mp4", "soon.mkv", "soon.ts"])
def test_times_count_from_the_first_frame_if_sound_starts_a_little_earlier(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    encode(path, Encoding(steady(COUNT, 0.3), gop=10, sound=2.0), numbered)
    assert probe(path).notes == ()
    assert read(path, [0.0, 0.12])[1] == pytest.approx([0.0, 0.1], abs=0.002)


# --- AVI, which states only when a frame is decoded ----------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(("codec", "reordered"), [("libx264", 0), ("libx264", 3), ("mpeg4", 0), ("mpeg4", 2)])
def test_avi_with_frames_out_of_order(tmp_path: Path, codec: str, reordered: int, threads: int) -> None:
    path = tmp_path / "reordered.avi"
    encode(path, Encoding(steady(60), codec, tick=Fraction(1, 10), reordered=reordered), numbered)
    assert check(path, 6.0, 10, 60).notes == ()
    few = [3, 21, 39, 57]
    frames = list(frames_at(path, [number / 10 for number in few], threads=threads))
    assert [number_of(frame.image) for frame in frames] == few


def test_a_packed_bitstream(tmp_path: Path) -> None:
    """DivX put a frame and the earlier one that refers to it into one packet, and an empty frame into the next."""
    plain, path = tmp_path / "plain.avi", tmp_path / "packed.avi"
    encode(plain, Encoding(steady(40), "mpeg4", {"b_strategy": "0"}, tick=Fraction(1, 10), reordered=1), numbered)
    with av.open(str(plain)) as source, av.open(str(path), "w") as container:
        encoded = source.streams.video[0]
        packets = [bytes(packet) for packet in source.demux(encoded) if packet.size]
        packets = [re.sub(rb"Lavc[\d.]+", b"DivX503b1393p", packet) for packet in packets]  # p: packed
        kinds = [packet[packet.index(b"\0\0\1\xb6") + 4] >> 6 for packet in packets]  # 0: I, 1: P, 2: B
        packed, place = list[bytes](), 0
        while place < len(packets):
            if kinds[place : place + 2] == [1, 2]:
                packed += [packets[place] + packets[place + 1], b"\0\0\1\xb6\x50\x00\x7f"]
                place += 2
            else:
                packed.append(packets[place])
                place += 1
        assert 2 in kinds and len(packed) == 40
        stream = container.add_stream_from_template(encoded)
        stream.codec_context.extradata = None
        for number, data in enumerate(packed):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 10), number, number
            packet.is_keyframe = number == 0
            container.mux(packet)
    check(path, 4.0, 10, 40)


def test_sound_is_needed_for_nothing(tmp_path: Path) -> None:
    """Check a file whose sound has no packet."""
    path = tmp_path / "silent.mkv"
    with av.open(str(path), "w") as container:
        stream, sound = container.add_stream("mpeg4", rate=10), container.add_stream("aac", rate=48000)
        assert isinstance(stream, VideoStream) and isinstance(sound, AudioStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64), 9, np.uint8), format="gray")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
        encode_silence(container, sound, 0.0)
    assert probe(path).duration == pytest.approx(0.5)


def write_frames_at(path: Path, seconds: list[float], *, noise: int = 0) -> Path:
    """Write a Matroska file with a frame at each of the seconds; with noise, frames have about so many bytes."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for second in seconds:
            image = rng.integers(0, 256 if noise else 1, (32, 32, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(second * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (3e8, "lasts 3,472 days by its timestamps, and at most 30 days are read; cut it into shorter files"),
        (1e6, r"lasts 277\.8 hours by its timestamps, but has only .* read as 1\.\d hours at most"),
    ],
)
def test_an_absurd_duration_is_refused(second: float, message: str, tmp_path: Path) -> None:
    """Check a file of two frames: its clips would take gigabytes and days."""
    path = write_frames_at(tmp_path / "v.mkv", [0.0, second])
    assert path.stat().st_size < 5000
    with pytest.raises(VideoError, match=message):
        probe(path)


def test_a_recording_of_several_days_is_read_without_a_list_of_its_times(tmp_path: Path) -> None:
    """Check four days of a camera that keeps a frame every minute, as it is sampled: four times a clip of 2 seconds."""
    days = 4 * 86400
    path = write_frames_at(tmp_path / "v.mkv", [60.0 * n for n in range(days // 60)], noise=1000)
    info = probe(path)
    assert info.duration == pytest.approx(days, abs=61)
    times = Timeline(duration=info.duration, clip_seconds=2.0).frame_times(4)
    tracemalloc.start()
    frames = frames_at(path, times, size=(16, 16))
    assert [frame.seconds for frame in islice(frames, 0, 2000, 400)] == [0.0, 180.0, 360.0, 600.0, 780.0]
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(times) > 690_000 and used < 2 << 20
