"""Peak memory of this process."""

from __future__ import annotations

from sidelight.io.runtime import peak_memory


def peak_mib() -> float:
    """Return the largest memory that this process has used so far, in MiB."""
    return peak_memory() / 2**20
