"""Check that the right frames are read, from files whose frames show their numbers and from real files."""

from __future__ import annotations

import gc
import warnings
import wave
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.stream import Disposition
from av.video.stream import VideoStream
from hypothesis import given, settings
from hypothesis import strategies as st

from sidelight.video.read import Frame, VideoError, VideoInfo, VideoWarning, frames_at, probe
from tests.films import (
    ENCODINGS,
    HEIGHT,
    WIDTH,
    Encoding,
    Film,
    MakeFilm,
    Pixels,
    corner,
    encode,
    encode_silence,
    full_decode,
    number_of,
    numbered,
    steady,
)


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> MakeFilm:
    folder, films = tmp_path_factory.mktemp("films"), dict[str, Film]()

    def make(name: str, encoding: Encoding | None = None) -> Film:
        if name not in films:
            encoding = encoding or ENCODINGS[name]
            try:
                encode(folder / name, encoding, numbered)
            except av.codec.codec.UnknownCodecError:
                pytest.skip(f"this FFmpeg has no encoder {encoding.codec}")
            films[name] = Film(folder / name, encoding.times)
        return films[name]

    return make


def read(path: Path, seconds: Sequence[float], **options: Any) -> list[Frame]:
    """Return all frames; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return list(frames_at(path, seconds, **options))


def check(film: Film, seconds: Sequence[float], frames: Sequence[Frame]) -> None:
    """Check that each frame shows the right number and has the right time."""
    expected = [film.shown_at(second) for second in seconds]
    assert [number_of(frame.image) for frame in frames] == expected
    times = [film.times[number] - film.times[0] for number in expected]
    assert [frame.seconds for frame in frames] == pytest.approx(times, abs=1e-9)


# --- films made for the tests --------------------------------------------------------------------------------------


def test_a_number_can_be_read_from_its_image() -> None:
    assert [number_of(numbered(n)[..., None].repeat(3, -1)) for n in range(512)] == list(range(512))


@pytest.mark.parametrize("name", ENCODINGS)
def test_each_frame_comes_at_its_time(film: MakeFilm, name: str) -> None:
    source = film(name)
    assert [number_of(image) for _, image in full_decode(source.path)] == list(range(len(source.times)))
    info = probe(source.path)
    first, last = source.times[0], source.times[-1] - source.times[0]
    assert info.path == str(source.path)
    assert (info.width, info.height, info.rotation) == (WIDTH, HEIGHT, 0)
    # MP4 sums up decoding times, which for reordered frames at unsteady times may be a little less.
    assert last - (0.1 if name == "unsteady.mp4" else 0) < info.duration <= last + 0.41
    if not name.endswith(("ts", "fragments.mp4")):  # these formats have a delay of their own
        assert info.start == pytest.approx(first)
    own = [t - first for t in source.times]
    between = [t + 0.007 for t in own]
    check(source, own, read(source.path, own))
    check(source, between, read(source.path, between))


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("plain.mp4", "h264", "mp4"),
        ("vp9.webm", "vp9", "webm"),
        ("av1.mkv", "av1", "matroska"),
        ("mpeg4.mp4", "mpeg4", "mp4"),
        ("mpeg4.avi", "mpeg4", "avi"),
        ("h265.mp4", "hevc", "mp4"),
        ("stream.ts", "h264", "mpegts"),
    ],
)
def test_probe_names_codec_and_container(film: MakeFilm, name: str, codec: str, container: str) -> None:
    info = probe(film(name).path)
    assert info.codec == codec
    assert container in info.container.split(",")
    assert info.pixel_format.startswith("yuv420p")
    assert info.fps == 10


@pytest.mark.parametrize(
    "seconds",
    [
        [],
        [0.0],
        [-5.0, -0.001, 0.0],  # before the first frame: the first
        [1.0, 1.0, 1.0],
        [29.9, 29.95, 29.999],
        [29.95, 30.0, 100.0],  # after the last frame: the last
        [0.05, 27.3],
        [2.4, 2.5, 2.6, 12.4, 22.5, 24.99],  # around keyframes
        np.linspace(0, 29, 7),
    ],
)
@pytest.mark.parametrize("name", ["near.mp4", "far.mp4", "open.mp4", "open.mkv"])
def test_wanted_times(film: MakeFilm, name: str, seconds: Sequence[float]) -> None:
    source = film(name)
    check(source, seconds, read(source.path, seconds))


MANY = [
    "near.mp4",
    "far.mp4",
    "open.mp4",
    "open.mkv",
    "unsteady.mkv",
    "late.mp4",
    "late.mkv",
    "h265.mkv",
    "stream.ts",
]


@pytest.mark.parametrize("name", MANY)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_times_give_the_frames_shown(film: MakeFilm, name: str, data: st.DataObject) -> None:
    source = film(name)
    own = [t - source.times[0] for t in source.times]
    moments = st.one_of(st.sampled_from(own), st.floats(0, own[-1]), st.floats(0.75 * own[-1], own[-1]))
    seconds = sorted(data.draw(st.lists(moments, max_size=7)))
    check(source, seconds, read(source.path, seconds))


@pytest.mark.parametrize("name", ["near.mp4", "open.mp4", "open.mkv"])
def test_stretches_without_wanted_times_are_skipped(film: MakeFilm, tmp_path: Path, name: str) -> None:
    """Wipe out frames between keyframes; a caller that does not read there does not notice."""
    source, path = film(name), tmp_path / name
    data = bytearray(source.path.read_bytes())
    with av.open(str(source.path)) as container:
        for packet in container.demux(video=0):
            if packet.pts is not None and 12 <= packet.pts * packet.time_base < 17:
                at = data.index(bytes(packet), packet.pos)
                data[at : at + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    seconds = [0.0, 9.3, 19.3, 29.3]
    check(source, seconds, read(path, seconds))
    with pytest.warns(VideoWarning, match=r"damaged: \d\.\d\d s of 30\.00 s \(\d\d\.\d%\)") as caught:
        frames = list(frames_at(path, steady(300)))
    assert len(caught) == 1
    seen = [number_of(frame.image) for frame in frames]
    assert seen[:118] == [*range(118)]
    assert len(set(seen[120:170])) == 1  # the last good one stays
    assert seen[185:] == [*range(185, 300)]


def test_frames_are_freed_without_the_garbage_collector(film: MakeFilm) -> None:
    """Check that memory does not grow with every video until the garbage collector runs."""
    path = film("near.mp4").path
    read(path, steady(20))
    gc.collect()
    gc.disable()
    try:
        read(path, steady(20))
        assert sum(type(thing) is av.VideoFrame for thing in gc.get_objects()) <= 2
    finally:
        gc.enable()


def test_frames_are_not_kept(film: MakeFilm) -> None:
    images: list[weakref.ref[Pixels]] = []
    most = 0
    for frame in frames_at(film("near.mp4").path, np.arange(0, 30, 0.05).tolist()):
        images.append(weakref.ref(frame.image))
        most = max(most, sum(image() is not None for image in images[-20:]))
    assert len(images) == 600
    assert most <= 3
    assert sum(image() is not None for image in images[:-1]) <= 1


@pytest.mark.parametrize("name", ["bare.h264", "bare.m4v"])
def test_a_bare_stream_gets_its_times_from_its_rate(film: MakeFilm, name: str) -> None:
    codec = "libx264" if name.endswith("h264") else "mpeg4"
    source = film(name, Encoding(steady(50), codec, tick=Fraction(1, 10)))
    assert probe(source.path).duration == pytest.approx(5.0)
    seconds = [number / 10 + 0.001 for number in range(0, 50, 3)]
    check(source, seconds, read(source.path, seconds))


def test_an_iterator_may_be_left_early(film: MakeFilm) -> None:
    source = film("near.mp4")
    frames = frames_at(source.path, steady(300))
    assert isinstance(frames, Iterator)
    check(source, [0.0], [next(frames)])
    del frames
    check(source, [3.0], read(source.path, [3.0]))


@pytest.mark.parametrize("name", ["sound.mp4", "sound.mkv", "sound.ts", "sound.webm"])
def test_sound_that_lasts_longer_is_no_damage(film: MakeFilm, name: str) -> None:
    source = film(name)
    assert probe(source.path).duration == pytest.approx(2.0, abs=0.11)
    seconds = [0.0, 1.85, 1.95, 4.0]
    check(source, seconds, read(source.path, seconds))


# --- sizes and rotation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 48), (32, 32), (1, 1), (100, 20), (48, 64)])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_sizes(film: MakeFilm, size: tuple[int, int], resize: str) -> None:
    for frame in read(film("plain.mp4").path, [0.0, 1.0], size=size, resize=resize):
        assert frame.image.shape == (size[1], size[0], 3)
        assert frame.image.dtype == np.uint8
        assert frame.image.flags.c_contiguous


def test_stretch_keeps_all_and_crop_the_middle(film: MakeFilm) -> None:
    source = film("plain.mp4")
    stretched, cropped = (read(source.path, [2.9], size=(24, 48), resize=kind)[0].image for kind in ("stretch", "crop"))
    assert number_of(stretched[:, :, :]) == 29
    np.testing.assert_allclose(cropped, read(source.path, [2.9])[0].image[:, 20:44], atol=3)


@pytest.mark.skipif(not hasattr(VideoStream, "set_display_rotation"), reason="this PyAV cannot write rotations")
@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_rotation(tmp_path: Path, clockwise: int, resize: str) -> None:
    path = tmp_path / "turned.mp4"
    encode(path, Encoding(steady(3), turn=-clockwise), corner)
    info = probe(path)
    assert info.rotation == clockwise
    assert (info.width, info.height) == ((HEIGHT, WIDTH) if clockwise % 180 else (WIDTH, HEIGHT))
    for size in (None, (40, 40)):
        (frame,) = read(path, [0.1], size=size, resize=resize)
        width, height = size or (info.width, info.height)
        assert frame.image.shape == (height, width, 3)
        quarters = [frame.image[: height // 2, : width // 2], frame.image[: height // 2, -(width // 2) :]]
        quarters += [
            frame.image[-(height // 2) :, -(width // 2) :],
            frame.image[-(height // 2) :, : width // 2],
        ]
        assert int(np.argmax([quarter.mean() for quarter in quarters])) == clockwise // 90  # clockwise from top left


@pytest.mark.parametrize(
    ("layout", "matrix", "full", "expected"),  # by the formulas of H.273 from (Y, Cb, Cr) = (120, 100, 160)
    [
        ("yuv420p", 1, False, (178.5, 110.0, 61.9)),
        ("yuv420p", 1, True, (170.4, 110.3, 68.0)),
        ("yuv420p", 6, False, (172.2, 106.1, 64.6)),
        ("yuv420p", 2, False, (172.2, 106.1, 64.6)),  # untagged and small
        ("yuv420p10le", 9, False, (174.8, 105.5, 61.1)),
    ],
)
def test_colours(tmp_path: Path, layout: str, matrix: int, full: bool, expected: tuple[float, ...]) -> None:
    scale, kind = (4, np.uint16) if layout.endswith("10le") else (1, np.uint8)
    source = av.VideoFrame(WIDTH, HEIGHT, layout)
    for plane, level in zip(source.planes, (120, 100, 160), strict=True):
        plane.update(np.full(plane.buffer_size, level * scale, kind).tobytes()[: plane.buffer_size])
    with av.open(str(tmp_path / "colour.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, layout
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        container.mux([*stream.encode(source), *stream.encode(None)])
    (frame,) = read(tmp_path / "colour.mp4", [0.0])
    np.testing.assert_allclose(frame.image.mean(axis=(0, 1)), expected, atol=1)


def test_wide_pixels_are_shown_wide(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    encode(path, Encoding(steady(3), aspect=Fraction(4, 3)), numbered)
    assert (probe(path).width, probe(path).height) == (85, HEIGHT)
    assert [frame.image.shape for frame in read(path, [0.0])] == [(HEIGHT, 85, 3)]
    assert [frame.image.shape for frame in read(path, [0.0], size=(10, 10))] == [(10, 10, 3)]


@pytest.mark.parametrize(
    ("seconds", "options", "message"),
    [
        ([], {"resize": "fit"}, "resize must be"),
        ([], {"size": (0, 10)}, "size must be"),
        ([], {"size": (10,)}, "size must be"),
        ([], {"size": (10.5, 10)}, "size must be"),
        ([2.0, 1.0], {}, "ascend"),
        ([0.0, float("nan")], {}, "finite"),
        ([float("inf")], {}, "finite"),
        (["a"], {}, "seconds must be a sequence of numbers"),
        ([None], {}, "seconds must be a sequence of numbers"),
        (3.0, {}, "seconds must be a sequence of numbers"),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    film: MakeFilm, seconds: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        frames_at(film("plain.mp4").path, seconds, **options)


# --- damaged files, and files that are no videos ----------------------------------------------------------


@pytest.mark.parametrize("name", ["original.mkv", "faststart.mp4"])
@pytest.mark.parametrize("step", [0.1, 1.0, 7.0])
def test_a_video_that_was_cut_short(film: MakeFilm, tmp_path: Path, name: str, step: float) -> None:
    original, path = film(name), tmp_path / name
    data = original.path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    assert probe(path).duration == pytest.approx(30.0)
    seconds = np.arange(0, 30, step).tolist()
    with pytest.warns(VideoWarning, match=f"{name}.*of 30") as caught:
        frames = list(frames_at(path, seconds))
    assert len(caught) == 1
    assert 0.2 * len(seconds) < len(frames) < len(seconds)
    # Damage at the very end may spoil the last frames, but no earlier frame.
    sound = [frame for frame in frames if frame.seconds < frames[-1].seconds - 0.5]
    check(Film(path, original.times), seconds[: len(sound)], sound)


def test_frames_before_a_cut_are_sound(film: MakeFilm, tmp_path: Path) -> None:
    original, path = film("original.mkv"), tmp_path / "cut.mkv"
    data = original.path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    seconds = [0.0, 1.0, 5.0]
    check(Film(path, original.times), seconds, read(path, seconds))


def _cut(path: Path, film: MakeFilm) -> None:
    data = film("plain.mp4").path.read_bytes()
    path.write_bytes(data[: len(data) // 2])  # the index of the frames is written last


def _encrypted(path: Path, film: MakeFilm) -> None:
    keys = {"encryption_key": "76a6c65c5ea762046bd749a2e632ccbb", "encryption_kid": "a7e61c373e219033c21091fa607bf3b8"}
    encode(path, Encoding(steady(30), mux={"encryption_scheme": "cenc-aes-ctr", **keys}), numbered)


def _sound_only(path: Path, film: MakeFilm) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        assert isinstance(stream, AudioStream)
        encode_silence(container, stream, 0.5)


def _cover(path: Path, film: MakeFilm) -> None:
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("aac", rate=48000), container.add_stream("mjpeg", rate=1)
        assert isinstance(sound, AudioStream) and isinstance(cover, VideoStream)
        cover.pix_fmt, cover.disposition = "yuvj420p", Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame(640, 480, "yuvj420p")))
        encode_silence(container, sound, 0.5)


def _wave(path: Path, film: MakeFilm) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1600))


def _still_image(path: Path, film: MakeFilm) -> None:
    codec, layout = ("png", "rgb24") if path.suffix == ".png" else ("mjpeg", "yuvj420p")
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream(codec, rate=1)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, layout
        frame = av.VideoFrame.from_ndarray(corner(0), format="gray").reformat(format=layout)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("empty.mp4", lambda path, film: path.touch(), "empty"),
        ("missing.mp4", lambda path, film: None, "does not exist"),
        ("under/missing.mp4", lambda path, film: None, "does not exist"),
        ("a" * 300 + ".mp4", lambda path, film: None, "cannot be read|does not exist"),
        ("folder", lambda path, film: path.mkdir(), "is a folder"),
        ("letter.mp4", lambda path, film: path.write_text("Dear all,\n" * 50), "is not a video"),
        (
            "letter.txt",
            lambda path, film: path.write_text("Dear all,\n" * 50),
            "not a video|no video stream",
        ),
        (
            "rows.json",
            lambda path, film: path.write_text('{"a": 1}\n' * 50),
            "not a video|no video stream",
        ),
        ("zeros.mkv", lambda path, film: path.write_bytes(bytes(5000)), "is not a video"),
        (
            "head.mp4",
            lambda path, film: path.write_bytes(film("plain.mp4").path.read_bytes()[:40]),
            "MP4|video",
        ),
        ("cut.mp4", _cut, "moov|index"),
        ("encrypted.mp4", _encrypted, "is encrypted"),
        ("sound.m4a", _sound_only, "only audio"),
        ("sound.wav", _wave, "only audio"),
        ("cover.mp4", _cover, "only audio"),
        ("image.png", _still_image, "image"),
        ("image.jpg", _still_image, "image"),
    ],
)
def test_files_that_are_no_videos(
    tmp_path: Path, film: MakeFilm, name: str, make: Callable[[Path, MakeFilm], object], message: str
) -> None:
    path = tmp_path / name
    make(path, film)
    for use in (probe, lambda p: frames_at(p, []), lambda p: frames_at(p, [0.0]), lambda p: probe(str(p))):
        with pytest.raises(VideoError, match=message) as caught:
            use(path)
        text = str(caught.value)
        assert text.startswith(str(path))
        assert "\n" not in text
        assert ". " not in text  # one sentence
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


# --- real files -------------------------------------------------------------------------------------------

REAL = {
    "av1_video.mkv": (640, 360, 5.0),
    "bt709_full_range.mp4": (1280, 720, 1.0),
    "charades_indoor.mp4": (480, 270, 30.697),
    "corrupted.mp4": (1280, 720, 5.0),
    "flipping_a_pancake.mkv": (426, 240, 10.333),
    "h264_10bits.mp4": (200, 200, 1.0),
    "h265_video.mp4": (128, 128, 1.0),
    "internvideo_example.mp4": (640, 480, 8.0),
    "nasa_13013.mp4": (480, 270, 13.013),
    "unordered.mov": (50, 50, 0.125),
    "video_0.mov": (568, 320, 0.1),
    "video_90.mov": (320, 568, 0.1),
    "video_180.mov": (568, 320, 0.1),
    "video_270.mov": (320, 568, 0.1),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(shared: Path, name: str) -> None:
    path, (width, height, duration) = shared / "videos" / name, REAL[name]
    info = probe(path)
    assert isinstance(info, VideoInfo)
    assert (info.width, info.height) == (width, height)
    assert info.duration == pytest.approx(duration, abs=0.01)
    assert info.start == 0
    assert info.rotation == (int(path.stem[6:]) if path.stem.startswith("video_") else 0)
    seconds = (np.arange(8) / 8 * info.duration).tolist()
    if name == "corrupted.mp4":
        with pytest.warns(VideoWarning, match="corrupted"):
            frames = list(frames_at(path, seconds, size=(32, 24)))
    else:
        frames = read(path, seconds, size=(32, 24))
    assert len(frames) == len(seconds)
    assert all(frame.seconds <= second + 1e-6 for frame, second in zip(frames, seconds, strict=True))
    assert all(frame.image.shape == (24, 32, 3) for frame in frames)
    assert name == "unordered.mov" or all(frame.image.std() > 5 for frame in frames)  # this file is plain grey


def test_a_real_file_against_a_full_decode(shared: Path) -> None:
    path, seconds = shared / "videos" / "nasa_13013.mp4", [6.0, 6.1, 10.0, 12.979633]
    all_frames = full_decode(path)
    times = [time for time, _ in all_frames]
    expected = [all_frames[bisect_right(times, second + 5e-7) - 1] for second in seconds]
    frames = read(path, seconds)
    assert [frame.seconds for frame in frames] == [time for time, _ in expected]
    # As printed by `ffprobe -select_streams 3 -show_entries frame=best_effort_timestamp_time`. Stream 0 is a smaller
    # copy at 25 frames a second. The last wanted time is a frame's time as printed, just below the exact time.
    assert [f"{frame.seconds:.6f}" for frame in frames] == ["5.972633", "6.072733", "9.976633", "12.979633"]
    for frame, (_, image) in zip(frames, expected, strict=True):
        difference = np.abs(frame.image.astype(int) - image)
        assert difference.mean() < 2  # scalers differ in how they round; the next frame differs by more


@pytest.mark.parametrize("name", ["charades_indoor.mp4", "flipping_a_pancake.mkv", "internvideo_example.mp4"])
def test_jumps_change_no_pixel(shared: Path, name: str) -> None:
    """Compare dense times, which are decoded one after the other, with sparse times, which are reached by jumps."""
    path = shared / "videos" / name
    dense = np.arange(0, probe(path).duration, 0.05)
    expected = read(path, dense.tolist(), size=(40, 30))
    for seed in range(4):
        chosen = np.sort(np.random.default_rng(seed).choice(len(dense), 4))
        for index, frame in zip(chosen, read(path, dense[chosen].tolist(), size=(40, 30)), strict=True):
            assert frame.seconds == expected[index].seconds
            np.testing.assert_array_equal(frame.image, expected[index].image)
