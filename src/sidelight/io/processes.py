"""Let worker processes end with the process that started them, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from multiprocessing import parent_process

_PR_SET_PDEATHSIG = 1
_WATCH_SECONDS = 0.5


def end_with_parent(parent: int | None = None) -> None:
    """Let this process be killed as soon as its parent is gone, also by ``kill -9``.

    Linux does so itself, whatever this process is doing, when the thread that started this process ends. Elsewhere, and
    where another process is in between, a thread looks every half second.

    Args:
        parent: process id of the parent; asked from the system unless given.
    """
    parent = os.getppid() if parent is None else parent
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we could ask
        os._exit(1)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    starter = parent_process()  # not our parent where multiprocessing's "forkserver" is in between
    while os.getppid() == parent and (starter is None or starter.is_alive()):
        time.sleep(_WATCH_SECONDS)
    os._exit(1)
