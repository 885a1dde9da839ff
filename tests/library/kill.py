"""Run one `sidelight library add` and die at the N-th write; see test_kill.py."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from sidelight.cli.main import main
from sidelight.features.store import FeatureStore
from sidelight.library import manifest
from sidelight.library.tables import Tables


def die_at(write: int) -> None:
    """Kill this process, as ``kill -9`` does, in front of the N-th step that writes, or right behind it."""
    steps = [0]

    def dying(function: Any) -> Any:
        def step(*arguments: Any, **options: Any) -> Any:
            steps[0] += 1
            if steps[0] == write:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **options)
            steps[0] += 1
            if steps[0] == write:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return step

    for owner, names in (
        (FeatureStore, ("put_video",)),
        (Tables, ("put_clips", "put_videos", "drop_clips", "drop_videos", "finish")),
        (manifest.Manifest, ("write",)),
    ):
        for name in names:
            setattr(owner, name, dying(getattr(owner, name)))


if __name__ == "__main__":
    die_at(int(sys.argv[1]))
    raise SystemExit(main(sys.argv[2:]))
