"""Check that freed memory is returned to the system."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from sidelight.io.runtime import release_memory


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="other allocators do it alone")
def test_memory_between_kept_pieces_is_returned() -> None:
    def resident_pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    pieces = [bytes(100_000) for _ in range(400)]  # below glibc's first limit for memory of its own
    full = resident_pages()
    pieces = pieces[::40]
    release_memory()
    assert (full - resident_pages()) * 4096 > 20e6
    assert len(pieces) == 10
