"""Peak memory of this process."""

from __future__ import annotations

import resource
import sys


def peak_mib() -> float:
    """Return the largest memory that this process has used so far, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
