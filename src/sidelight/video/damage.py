"""Damage of a video file: the error and the warning that report it, and the time for which no good frame was decoded.

*Ticks* are timestamps as the file has them, in units of the stream's time base.
"""

from __future__ import annotations

import sys
import warnings
from fractions import Fraction
from typing import Any

from av.packet import Packet

_MAX_GAP = 4096  # bytes between two packets; what a container puts between them is far smaller
_MAX_PENDING = 4096  # packets remembered whose frame was not decoded yet; a healthy file needs far fewer


class VideoError(ValueError):
    """A file cannot be read as a video; the message says what was expected and what to do."""


class VideoWarning(UserWarning):
    """A video is damaged and only a part of it could be decoded; the message says how much was lost."""


class DamageLog:
    """The ticks for which a damaged file gave no frame, or a wrong one.

    A gap between two frames counts as damage only if a packet for it was read or is known to be missing, because a
    variable frame rate leaves gaps too.

    Args:
        tick: seconds per tick.
        step: ticks from frame to frame, for packets that do not state their duration.
    """

    def __init__(self, tick: Fraction, step: int) -> None:
        self._tick, self._step = tick, step
        self.pending: set[int] = set()  # presentation ticks of packets whose frame was not decoded yet
        self.lost = 0  # ticks
        self.whole_frames = 0  # frames that were decoded without errors
        self.missing: float | None = None  # s that should follow the last frame; None before the last frame was read
        self.unreadable = False  # whether a part of the file could not be read
        self.packets_end: int | None = None  # ticks at which the last packet ends
        self._lost_until = 0
        self.restart()

    def restart(self) -> None:
        """Forget the packets and the frame before: reading goes on at another place of the file."""
        self.pending.clear()
        self._previous: tuple[int, int] | None = None  # start and end of the frame before
        self._suspect_packets = 0  # packets to come around which a packet may be missing
        self._place = 0  # byte of the file after the last packet

    def check_place(self, packet: Packet[Any]) -> None:
        """Notice bytes of the file that belong to no packet; FFmpeg skips damaged bytes of Matroska silently."""
        if packet.pos is not None and packet.pos - self._place > _MAX_GAP and self._place > 0:
            self.packet_lost()
        self._place = (packet.pos or 0) + packet.size

    def packet_read(self, packet: Packet[Any]) -> None:
        """Expect a frame of the packet, unless the packet is made to have none."""
        if packet.pts is None or not packet.size or packet.is_discard:
            return
        self._suspect_packets = 3 if packet.is_corrupt else self._suspect_packets - 1  # MPEG-TS flags a packet early
        if self._suspect_packets > 0:
            self.packet_lost()
        end = packet.pts + max(packet.duration or 0, self._step)
        self.packets_end = end if self.packets_end is None else max(self.packets_end, end)
        if self._suspect_packets > 0:
            self.packet_lost()
        if len(self.pending) < _MAX_PENDING:
            self.pending.add(packet.pts)

    def packet_lost(self) -> None:
        """Expect a frame after the last packet: the packet for it could not be read."""
        self.unreadable = True
        if self.packets_end is not None and len(self.pending) < _MAX_PENDING:
            self.pending.add(self.packets_end)

    def frame_decoded(self, start: int, end: int, *, corrupt: bool) -> None:
        """Count a gap before a frame if packets lie in it, and the frame itself if it is corrupt."""
        if self._previous is not None and start - self._previous[1] > self._step // 2:
            previous_start, previous_end = self._previous
            if any(previous_start < ticks < start for ticks in self.pending):
                self.add(previous_end, start)
        if corrupt:
            self.add(start, end)
        else:
            self.whole_frames += 1
        self.pending = {ticks for ticks in self.pending if ticks > start}
        self._previous = start, end

    def add(self, start: int, end: int) -> None:
        """Count a loss from one tick to another, once: after a jump a part of it may be met again."""
        start = max(start, self._lost_until) if self.lost else start
        self.lost += max(0, end - start)
        self._lost_until = max(self._lost_until, end)

    def is_total(self, end: float) -> bool:
        """Check whether all frames up to a second, at least a few, were lost or corrupt."""
        return self.whole_frames == 0 and self.lost > 2 * self._step and self.lost * self._tick >= 0.99 * end

    def message(self, path: str, *, end: float, stated_end: float) -> str:
        """Return a sentence about the damage; empty if there is none.

        Args:
            path: the file.
            end: second at which the last decoded frame ends.
            stated_end: second at which the file states that it ends; 0 if it does not state it.
        """
        lost, missing = float(self.lost * self._tick), self.missing or 0.0
        if not lost + missing:
            return ""
        duration = max(stated_end, end + missing)
        share = min(1.0, (lost + missing) / duration)
        text = f"{path} is damaged: {lost + missing:.2f} s of {duration:.2f} s ({share:.1%}) could not be decoded"
        text += " or only with errors" * (lost > 0)
        text += f"; the file breaks off after {end:.2f} s" if missing else "; the last good frame is shown instead"
        return f"{text}; get a fresh copy if you can"


def warn(message: str, category: type[Warning] = VideoWarning) -> None:
    """Issue a warning that points at the caller outside of this package, whoever drives the iterator."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "sidelight":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
