"""Check which packets of HEVC are disposable, with units written by hand (ITU-T H.265, 7.3.1.2 and 7.3.2.2.1)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from av.packet import Packet

from sidelight.video.nal import NalReader

TRAIL_N, TRAIL_R, TSA_N, KEYFRAME, SEQUENCE_SET, REMARK = 0, 1, 2, 19, 33, 39


def unit(kind: int, *, sub_layer: int = 1, layer: int = 0, content: bytes = b"\xff\xff") -> bytes:
    """Return a unit after its start code; ``sub_layer`` counts from 1."""
    return b"\0\0\1" + bytes([kind << 1 | layer >> 5, (layer & 31) << 3 | sub_layer]) + content


def packet(data: bytes) -> Any:
    return Packet(data)


def sequence_set(sub_layers: int) -> bytes:
    return unit(SEQUENCE_SET, content=bytes([sub_layers - 1 << 1, 1]))


@pytest.mark.parametrize(
    ("sub_layers", "units", "expected"),
    [
        (1, b"", False),
        (1, unit(TRAIL_N), True),
        (1, unit(TRAIL_R), False),
        (1, unit(KEYFRAME), False),
        (1, unit(REMARK), False),  # no slice
        (1, unit(REMARK) + unit(TRAIL_N), True),
        (1, unit(TRAIL_N) + unit(TRAIL_R), False),
        (1, unit(TRAIL_N, layer=1), False),
        (1, unit(TRAIL_N, layer=32), False),
        # Frames of a higher sub-layer may refer to a "non-reference" frame of a lower one.
        (3, unit(TRAIL_N, sub_layer=1), False),
        (3, unit(TSA_N, sub_layer=2), False),
        (3, unit(TSA_N, sub_layer=3), True),
        (3, unit(TRAIL_N, sub_layer=3) + unit(TRAIL_N, sub_layer=2), False),
        (0, unit(TRAIL_N), False),  # no parameter set was read
    ],
)
def test_only_unreferenced_frames_of_the_highest_sub_layer_are_disposable(
    sub_layers: int, units: bytes, expected: bool
) -> None:
    codec = SimpleNamespace(canonical_name="hevc")
    header = sequence_set(sub_layers) if sub_layers else b""
    stream: Any = SimpleNamespace(codec_context=SimpleNamespace(codec=codec, extradata=header))
    assert NalReader(stream).is_disposable(packet(units)) is expected


def test_a_parameter_set_in_a_packet_counts() -> None:
    codec = SimpleNamespace(canonical_name="hevc")
    stream: Any = SimpleNamespace(codec_context=SimpleNamespace(codec=codec, extradata=sequence_set(1)))
    reader = NalReader(stream)
    assert reader.is_disposable(packet(unit(TRAIL_N)))
    assert not reader.is_disposable(packet(sequence_set(2) + unit(TRAIL_N)))
    assert not reader.is_disposable(packet(unit(TRAIL_N)))
