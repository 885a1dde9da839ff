"""Which packets of a video hold a picture that no other refers to, so that others do not need it.

The encoder says so in the first bytes of each unit of the stream (*NAL unit*): H.264 in ``nal_ref_idc`` (ITU-T H.264,
7.4.1), HEVC in the type of the unit (ITU-T H.265, table 7-1: sub-layer non-reference pictures). Without such a packet
a decoder gives every other picture as it would with it. Other codecs do not tell as simply, and VP9 and AV1 hardly
have such pictures.
"""

from __future__ import annotations

from av.packet import Packet
from av.video.stream import VideoStream

_START = b"\0\0\1"
_BEGINNING = 64  # bytes of a unit that are looked at; what we want of a parameter set comes early
_BESIDE = {"h264": (6, 9, 12), "hevc": (35, 38, 39, 40)}  # units that only go with a picture: remarks, marks, filling
_SETS = {"h264": 7, "hevc": 33}  # sequence parameter sets
_WITH_CHROMA = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)  # profiles of H.264 that tell theirs


class References:
    """Reads the packets of one stream, in the order of the file.

    Args:
        stream: of any codec; only of H.264 and HEVC may a packet be disposable.
    """

    def __init__(self, stream: VideoStream) -> None:
        header = stream.codec_context.extradata or b""
        self.codec = stream.codec_context.codec.canonical_name
        self.possible = self.codec in _BESIDE  # until something speaks against it
        self._layers = 0  # temporal sub-layers; 0 before a parameter set told
        self._size = _length_size(self.codec, header)
        if self.possible:
            self._learn(_in_header(self.codec, header) if self._size else _by_start_code(header))

    def disposable(self, packet: Packet[VideoStream]) -> bool:
        """Whether no other picture needs the packet."""
        if not self.possible:
            return False
        if packet.has_sidedata("new_extradata"):
            self.possible = False
            return False
        data = bytes(packet)
        units = _by_length(data, self._size) if self._size else _by_start_code(data)
        known = self._learn(units)
        if not known or packet.is_keyframe or packet.is_discard or packet.is_corrupt:
            return False
        slices = [unit for unit in units if _kind(self.codec, unit) not in _BESIDE[self.codec]]
        return bool(slices) and all(map(self._spare, slices))

    def _spare(self, unit: bytes) -> bool:
        """Whether it is a slice of a picture to which no other refers."""
        if self.codec == "h264":
            return unit[0] & 0b11111 == 1 and unit[0] >> 5 & 0b11 == 0
        layer, sub_layer = (unit[0] & 1) << 5 | unit[1] >> 3, unit[1] & 0b111
        # Pictures of a higher temporal sub-layer may refer to it, so it must be of the highest.
        return _kind("hevc", unit) in (0, 2, 4, 6, 8) and layer == 0 and sub_layer == self._layers

    def _learn(self, units: list[bytes]) -> bool:
        """Look for parameter sets; whether enough is known to tell."""
        for unit in units:
            if _kind(self.codec, unit) == _SETS[self.codec] and len(unit) > 2:
                if self.codec == "hevc":
                    self._layers = max(self._layers, (unit[2] >> 1 & 0b111) + 1)
                else:
                    self._layers = 1
                    # Else a picture may be two fields, each in a packet of its own.
                    self.possible &= _frames_only(unit)
        return self.possible and self._layers > 0


def _kind(codec: str, unit: bytes) -> int:
    return unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63


def _length_size(codec: str, header: bytes) -> int:
    """Bytes that tell a unit's length, as in MP4 and Matroska; 0 where start codes come between units."""
    if codec == "h264" and len(header) > 6 and header[0] == 1:
        return (header[4] & 3) + 1
    if codec == "hevc" and len(header) > 22 and (header[0] or header[1] or header[2] > 1):
        return (header[21] & 3) + 1
    return 0


def _in_header(codec: str, header: bytes) -> list[bytes]:
    """The parameter sets in the header of a file (ISO/IEC 14496-15, 5.3 and 8.3): of H.264 the sequences' alone."""
    if codec == "h264":
        return _by_length(header[6:], 2, most=header[5] & 31)
    units, at = list[bytes](), 23
    for _ in range(header[22]):
        for _ in range(int.from_bytes(header[at + 1 : at + 3], "big")):
            length = int.from_bytes(header[at + 3 : at + 5], "big")
            units += _by_length(header[at + 3 :], 2, most=1)
            at += 2 + length
        at += 3
    return units


def _by_length(data: bytes, size: int, most: int | None = None) -> list[bytes]:
    """The beginnings of the units; none at all where lengths do not add up, as in a damaged packet."""
    units, at = list[bytes](), 0
    while at < len(data) and (most is None or len(units) < most):
        begin = at + size
        at = begin + int.from_bytes(data[at:begin], "big")
        if at < begin + 2 or at > len(data):
            return []
        units.append(data[begin : min(at, begin + _BEGINNING)])
    return units


def _by_start_code(data: bytes) -> list[bytes]:
    """The beginnings of the units; none at all where one is too short."""
    units, at = list[bytes](), data.find(_START)
    while at >= 0:
        begin, at = at + 3, data.find(_START, at + 3)
        end = at if at >= 0 else len(data)
        if end < begin + 2:
            return []
        units.append(data[begin : min(end, begin + _BEGINNING)])
    return units


def _frames_only(sequence: bytes) -> bool:
    """``frame_mbs_only_flag`` of a sequence parameter set (H.264, 7.3.2.1.1); False where it is too rare a one."""
    payload = sequence.replace(b"\0\0\3", b"\0\0")  # the 3 keeps start codes out
    bits = _Bits(payload[4:])
    try:
        bits.golomb()  # its number
        if payload[1] in _WITH_CHROMA:
            if bits.golomb() == 3:
                bits.take(1)
            bits.golomb(), bits.golomb(), bits.take(1)  # depths, bypass
            if bits.take(1):
                return False  # scaling matrices
        bits.golomb()  # longest frame_num
        kind = bits.golomb()  # of picture order count
        if kind == 0:
            bits.golomb()
        elif kind == 1:
            bits.take(1), bits.golomb(), bits.golomb()
            for _ in range(bits.golomb()):
                bits.golomb()
        bits.golomb(), bits.take(1), bits.golomb(), bits.golomb()  # reference frames, gaps, width, height
        return bool(bits.take(1))
    except ValueError:
        return False


class _Bits:
    """Reads bits, the highest of a byte first."""

    def __init__(self, data: bytes) -> None:
        self._text, self._at = "".join(f"{byte:08b}" for byte in data), 0

    def take(self, count: int) -> int:
        """An unsigned number of so many bits; ValueError at the end."""
        self._at += count
        return int(self._text[self._at - count : self._at] or "-", 2)

    def golomb(self) -> int:
        """An Exp-Golomb code (9.1), read as unsigned."""
        zeros = self._text.index("1", self._at) - self._at
        self._at += zeros
        return self.take(zeros + 1) - 1
