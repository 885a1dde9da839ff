"""Check that HDR becomes the colours of the standard range, against a plain forward calculation by ITU-R BT.2100."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from sidelight.video.hdr import HLG, PQ, to_sdr
from sidelight.video.read import frames_at, probe

# R, G and B of BT.2020 from those of BT.709 (ITU-R BT.2087, table 1).
TO_BT2020 = ((0.6274, 0.3293, 0.0433), (0.0691, 0.9195, 0.0114), (0.0164, 0.0880, 0.8956))


def hdr_signal(srgb: Sequence[float], transfer: int) -> list[float]:
    """Return the HDR signal (0 to 1) of an sRGB colour whose white is 203 cd/m2."""
    linear = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in srgb]
    light = [203 * sum(a * b for a, b in zip(row, linear, strict=True)) for row in TO_BT2020]
    return signal_of(light, transfer)


def signal_of(light: Sequence[float], transfer: int) -> list[float]:
    """Return the HDR signal of R, G and B in cd/m2."""
    if transfer == PQ:
        powers = [(v / 10000) ** 0.1593017578125 for v in light]
        return [((0.8359375 + 18.8515625 * p) / (1 + 18.6875 * p)) ** 78.84375 for p in powers]
    luminance = sum(a * b for a, b in zip((0.2627, 0.6780, 0.0593), light, strict=True)) / 1000
    scene = [v / 1000 * luminance ** (1 / 1.2 - 1) if luminance else 0.0 for v in light]
    return [math.sqrt(3 * e) if e <= 1 / 12 else 0.17883277 * math.log(12 * e - 0.28466892) + 0.55991073 for e in scene]


def mapped(signal: Sequence[float], transfer: int) -> list[int]:
    pixels = np.rint(np.array(signal)[None, None] * 65535).clip(0, 65535).astype(np.uint16)
    colour: list[int] = to_sdr(pixels, transfer, 9)[0, 0].tolist()
    return colour


@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize("colour", [(0, 0, 0), (220, 30, 30), (40, 140, 60), (30, 60, 170), (128, 128, 128), (9, 5, 2)])
def test_colours_of_the_standard_range_return(colour: tuple[int, int, int], transfer: int) -> None:
    np.testing.assert_allclose(mapped(hdr_signal(colour, transfer), transfer), colour, atol=2)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_highlights_are_rolled_off_in_order(transfer: int) -> None:
    levels = [mapped(signal_of([light] * 3, transfer), transfer) for light in (0, 50, 100, 203, 400, 1000)]
    assert all(max(level) - min(level) <= 1 for level in levels)  # grey stays grey
    greys = [level[0] for level in levels]
    assert greys == sorted(set(greys)) and greys[0] == 0 and greys[-1] == 255
    assert 220 < greys[3] < 240  # white leaves room for highlights
    if transfer == PQ:
        assert mapped(signal_of([4000.0] * 3, PQ), PQ) == [255, 255, 255]


@pytest.mark.parametrize(("transfer", "as_read_before"), [(PQ, (127, 81, 63)), (HLG, (166, 66, 41))])
def test_a_file_in_hdr(tmp_path: Path, transfer: int, as_read_before: tuple[int, int, int]) -> None:
    red, path = (220, 30, 30), tmp_path / "hdr.mp4"
    signal = hdr_signal(red, transfer)
    np.testing.assert_allclose(np.array(signal) * 255, as_read_before, atol=1)
    luma = 0.2627 * signal[0] + 0.6780 * signal[1] + 0.0593 * signal[2]
    chroma = (signal[2] - luma) / 1.8814, (signal[0] - luma) / 1.4746
    levels = [64 + 876 * luma, *(512 + 896 * value for value in chroma)]
    source = av.VideoFrame(64, 48, "yuv420p10le")
    for plane, level in zip(source.planes, levels, strict=True):
        plane.update(np.full(plane.buffer_size // 2, round(level), np.uint16).tobytes())
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, 9, transfer, 1
        source.pts, source.time_base = 0, Fraction(1, 10)
        container.mux([*stream.encode(source), *stream.encode(None)])
    assert probe(path).hdr == {PQ: "pq", HLG: "hlg"}[transfer]
    for size in (None, (20, 30)):
        (frame,) = frames_at(path, [0.0], size=size)
        np.testing.assert_allclose(frame.image.mean(axis=(0, 1)), red, atol=3)
