"""Tell which packets of a video hold a frame that no other frame refers to, so that a decoder can skip them.

The encoder states it in the first bytes of each unit of the stream (*NAL unit*): H.264 in ``nal_ref_idc`` (ITU-T H.264,
7.4.1), HEVC in the type of the unit (ITU-T H.265, table 7-1: sub-layer non-reference pictures). Without such a packet a
decoder returns every other frame unchanged. Other codecs do not state it as simply, and VP9 and AV1 hardly have such
frames.
"""

from __future__ import annotations

from av.packet import Packet
from av.video.stream import VideoStream

_START_CODE = b"\0\0\1"
_HEAD = 64  # bytes of a unit that are read; the fields of a parameter set that are needed come early
_NO_SLICES = {"h264": (6, 9, 12), "hevc": (35, 38, 39, 40)}  # units beside a frame's slices: remarks, marks, filling
_SEQUENCE_SETS = {"h264": 7, "hevc": 33}  # sequence parameter sets
_WITH_CHROMA = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)  # profiles of H.264 with chroma fields


class NalReader:
    """Reads the packets of one stream, in the order of the file.

    Args:
        stream: of any codec; only packets of H.264 and HEVC can be disposable.
    """

    def __init__(self, stream: VideoStream) -> None:
        header = stream.codec_context.extradata or b""
        self._codec = stream.codec_context.codec.canonical_name
        self.can_tell = self._codec in _NO_SLICES  # until a parameter set shows that it cannot
        self._sub_layers = 0  # temporal sub-layers of the stream; 0 before a parameter set was read
        self._size = _length_size(self._codec, header)
        if self.can_tell:
            self._read_parameter_sets(_in_header(self._codec, header) if self._size else _by_start_code(header))

    def is_disposable(self, packet: Packet[VideoStream]) -> bool:
        """Check whether no other frame needs the packet; read its parameter sets on the way."""
        if not self.can_tell:
            return False
        if packet.has_sidedata("new_extradata"):
            self.can_tell = False
            return False
        data = bytes(packet)
        units = _by_length(data, self._size) if self._size else _by_start_code(data)
        known = self._read_parameter_sets(units)
        if not known or packet.is_keyframe or packet.is_discard or packet.is_corrupt:
            return False
        slices = [unit for unit in units if _kind(self._codec, unit) not in _NO_SLICES[self._codec]]
        return bool(slices) and all(map(self._is_unreferenced, slices))

    def _is_unreferenced(self, unit: bytes) -> bool:
        """Check whether a unit is a slice of a frame that no other frame refers to."""
        if self._codec == "h264":
            return unit[0] & 0b11111 == 1 and unit[0] >> 5 & 0b11 == 0
        layer, sub_layer = (unit[0] & 1) << 5 | unit[1] >> 3, unit[1] & 0b111  # nuh_layer_id, nuh_temporal_id_plus1
        # Frames of a higher temporal sub-layer may refer to this one, so it must be of the highest.
        return _kind("hevc", unit) in (0, 2, 4, 6, 8) and layer == 0 and sub_layer == self._sub_layers

    def _read_parameter_sets(self, units: list[bytes]) -> bool:
        """Read the parameter sets among the units, and return whether enough is known to tell."""
        for unit in units:
            if _kind(self._codec, unit) == _SEQUENCE_SETS[self._codec] and len(unit) > 2:
                if self._codec == "hevc":
                    self._sub_layers = max(self._sub_layers, (unit[2] >> 1 & 0b111) + 1)
                else:
                    self._sub_layers = 1
                    # Without the flag, a frame may be two fields, each in a packet of its own.
                    self.can_tell &= _frames_only(unit)
        return self.can_tell and self._sub_layers > 0


def _kind(codec: str, unit: bytes) -> int:
    return unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63


def _length_size(codec: str, header: bytes) -> int:
    """Return how many bytes state a unit's length, as in MP4 and Matroska; 0 where start codes separate the units."""
    if codec == "h264" and len(header) > 6 and header[0] == 1:
        return (header[4] & 3) + 1
    if codec == "hevc" and len(header) > 22 and (header[0] or header[1] or header[2] > 1):
        return (header[21] & 3) + 1
    return 0


def _in_header(codec: str, header: bytes) -> list[bytes]:
    """Return the parameter sets in a file's header (ISO/IEC 14496-15, 5.3 and 8.3): of H.264 only the sequence sets."""
    if codec == "h264":
        return _by_length(header[6:], 2, most=header[5] & 31)
    units, at = list[bytes](), 23
    for _ in range(header[22]):
        for _ in range(int.from_bytes(header[at + 1 : at + 3], "big")):
            if at + 5 > len(header):  # a damaged header may state more units than it has
                return units
            length = int.from_bytes(header[at + 3 : at + 5], "big")
            units += _by_length(header[at + 3 :], 2, most=1)
            at += 2 + length
        at += 3
    return units


def _by_length(data: bytes, size: int, most: int | None = None) -> list[bytes]:
    """Return the head of each unit; no units where lengths do not add up, as in a damaged packet."""
    units, at = list[bytes](), 0
    while at < len(data) and (most is None or len(units) < most):
        begin = at + size
        at = begin + int.from_bytes(data[at:begin], "big")
        if at < begin + 2 or at > len(data):
            return []
        units.append(data[begin : min(at, begin + _HEAD)])
    return units


def _by_start_code(data: bytes) -> list[bytes]:
    """Return the head of each unit; no units where one is too short."""
    units, at = list[bytes](), data.find(_START_CODE)
    while at >= 0:
        begin, at = at + 3, data.find(_START_CODE, at + 3)
        end = at if at >= 0 else len(data)
        if end < begin + 2:
            return []
        units.append(data[begin : min(end, begin + _HEAD)])
    return units


def _frames_only(sequence: bytes) -> bool:
    """Return ``frame_mbs_only_flag`` of a sequence parameter set (H.264, 7.3.2.1.1); False for its rare forms."""
    payload = sequence.replace(b"\0\0\3", b"\0\0")  # the 3 keeps start codes out
    bits = _Bits(payload[4:])
    try:
        bits.golomb()  # number of the set
        if payload[1] in _WITH_CHROMA:
            if bits.golomb() == 3:
                bits.take(1)
            bits.golomb(), bits.golomb(), bits.take(1)  # depths, bypass
            if bits.take(1):
                return False  # scaling matrices
        bits.golomb()  # longest frame_num
        order_type = bits.golomb()  # pic_order_cnt_type
        if order_type == 0:
            bits.golomb()
        elif order_type == 1:
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
        """Read an unsigned number of ``count`` bits; ValueError at the end of the data."""
        self._at += count
        return int(self._text[self._at - count : self._at] or "-", 2)

    def golomb(self) -> int:
        """Read an unsigned Exp-Golomb code (H.264, 9.1)."""
        zeros = self._text.index("1", self._at) - self._at
        self._at += zeros
        return self.take(zeros + 1) - 1
