"""Let one process at a time write into a folder of object storage, by an object that names the writer.

The storage creates the object only if it does not exist, so of two processes one gets it. The writer renews it, since
nothing removes it when the process is killed. A lock that was not renewed for long counts as left behind, and the next
writer takes it over. The old writer notices before its next step (:meth:`RemoteLock.check`).
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone

from sidelight.io.files import LOCK
from sidelight.io.storage import create_object, delete_object, read_object, write_object

RENEW_EVERY = 30.0
"""Seconds between two renewals."""
LEFT_BEHIND_AFTER = 600.0
"""Seconds without renewal after which another process may take the lock over; clocks may differ by less."""
_SETTLE = 2.0
"""Seconds between taking a lock over and looking whether another process did so at the same time."""


class RemoteLock:
    """The lock of one folder, held by this process.

    Args:
        address: the folder.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._object = f"{self.address}/{LOCK}"
        self._token = secrets.token_hex(8)
        self._since = time.time()
        self._renewed = time.time()  # the wall clock goes on while a machine sleeps
        self._ended = threading.Event()
        self._lost = False
        self._mutex = threading.Lock()

    def check(self) -> None:
        """Check that this process still holds the lock.

        Raises:
            ValueError: if another process took it over, or somebody deleted it.
            StorageError: if the storage cannot be reached, and it was last renewed too long ago to be sure.
        """
        if not self._lost and abs(time.time() - self._renewed) > LEFT_BEHIND_AFTER / 2:
            self._renew()  # this process was stopped for long, or could not renew the lock
        if self._lost:
            raise ValueError(
                f"this process no longer holds the lock {self._object}: another process took it over, or somebody "
                "deleted it; run the command again, it continues where it stopped"
            )

    def take(self) -> None:
        """Create the object, or take over one that was left behind.

        Raises:
            ValueError: if another process holds the lock.
            StorageError: if the storage cannot be reached, or this process may not write there.
        """
        if create_object(self._object, self._content()):
            return
        content = read_object(self._object)
        holder = _values(content)
        if content is not None:  # else it was released at this moment
            if time.time() - _number(holder, "renewed") < LEFT_BEHIND_AFTER:
                raise ValueError(self._held_by(holder))
            delete_object(self._object)
        taken = create_object(self._object, self._content())
        time.sleep(_SETTLE)
        holder = self._holder()
        if not taken or holder.get("token") != self._token:  # another process took it over at the same time
            raise ValueError(self._held_by(holder))

    def keep(self) -> None:
        """Renew the lock until :meth:`release`, or until it is lost."""
        while not self._lost and not self._ended.wait(RENEW_EVERY):
            try:
                self._renew()
            except (OSError, ValueError):
                continue  # tried again; check() raises it once the last renewal is too long ago

    def release(self) -> None:
        """Delete the object, if it is still that of this process."""
        self._ended.set()
        with self._mutex:
            if not self._lost and self._holder().get("token") == self._token:
                delete_object(self._object)

    def _renew(self) -> None:
        with self._mutex:
            if self._ended.is_set():
                return
            if self._holder().get("token") != self._token:
                self._lost = True
                return
            write_object(self._object, self._content())
            self._renewed = time.time()

    def _holder(self) -> dict[str, object]:
        """Return what the lock says about its holder; empty if it does not exist or is damaged."""
        return _values(read_object(self._object))

    def _content(self) -> bytes:
        owner = {"machine": platform.node(), "process": os.getpid(), "user": _user(), "token": self._token}
        return (json.dumps({**owner, "since": self._since, "renewed": time.time()}) + "\n").encode()

    def _held_by(self, holder: dict[str, object]) -> str:
        """Return the message for a folder that another process holds."""
        since = datetime.fromtimestamp(_number(holder, "since"), tz=timezone.utc)
        age = max(0.0, time.time() - _number(holder, "renewed"))
        return (
            f"another process writes into {self.address}: number {holder.get('process')} of {holder.get('user')} on "
            f"{holder.get('machine')}, since {since:%Y-%m-%d %H:%M:%S} UTC, last seen {age:.0f} s ago; wait until it "
            f"ends; if it was killed, delete {self._object}, or try again when it was not seen for "
            f"{LEFT_BEHIND_AFTER / 60:.0f} minutes"
        )


@contextmanager
def only_remote_writer(address: str) -> Iterator[RemoteLock]:
    """Hold the lock of a folder in object storage inside the block.

    Args:
        address: the folder.

    Raises:
        ValueError: if another process writes there.
        StorageError: if the storage cannot be reached, or this process may not write there.
    """
    lock = RemoteLock(address)
    lock.take()
    thread = threading.Thread(target=lock.keep, name="sidelight-lock", daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        with suppress(OSError):  # without a network the lock stays, and counts as left behind later
            lock.release()


def _values(content: bytes | None) -> dict[str, object]:
    """Return what a lock says; empty if it does not exist or is damaged."""
    try:
        values = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _number(values: dict[str, object], name: str) -> float:
    """Return a time of a lock; 0 if it is damaged."""
    value = values.get(name)
    return float(value) if isinstance(value, (int, float)) else 0.0


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may have no name for its user
        return "unknown"
