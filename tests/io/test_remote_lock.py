"""One process at a time writes into a folder of object storage."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

from sidelight.io import remote_lock
from sidelight.io.remote_lock import RemoteLock, only_remote_writer
from sidelight.io.storage import StorageError, create_object, read_object, write_object

FOLDER = "memory://bucket/films.lib"
OBJECT = f"{FOLDER}/.lock"


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(remote_lock, "_SETTLE", 0.0)
    storage = fsspec.filesystem("memory")
    storage.store.clear()
    yield storage
    storage.store.clear()


def holder() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(read_object(OBJECT) or b"{}")
    return values


def change(**values: object) -> None:
    write_object(OBJECT, json.dumps({**holder(), **values}).encode())


def test_a_lock_exists_while_it_is_held() -> None:
    with only_remote_writer(FOLDER) as lock:
        assert holder()["process"] > 0 and holder()["machine"] and holder()["user"]
        lock.check()
    assert read_object(OBJECT) is None
    with pytest.raises(RuntimeError), only_remote_writer(FOLDER):
        raise RuntimeError
    assert read_object(OBJECT) is None


def test_a_second_writer_is_told_who_holds_it() -> None:
    with only_remote_writer(FOLDER):
        change(machine="render-7", process=12, user="ann")
        with pytest.raises(ValueError) as refused, only_remote_writer(FOLDER):
            pytest.fail("two writers")
    message = str(refused.value)
    assert f"another process writes into {FOLDER}: number 12 of ann on render-7, since 20" in message
    assert f"last seen 0 s ago; wait until it ends; if it was killed, delete {OBJECT}" in message
    assert "10 minutes" in message and "\n" not in message


@pytest.mark.parametrize("left", [{"renewed": 0.0}, {"renewed": "?"}, None, b"\xff", b"[]"])
def test_a_lock_that_was_left_behind_is_taken_over(left: dict[str, object] | bytes | None) -> None:
    old = RemoteLock(FOLDER)
    old.take()
    if isinstance(left, bytes):
        write_object(OBJECT, left)
    else:
        change(**(left or {"renewed": time.time() - remote_lock.LEFT_BEHIND_AFTER - 1}))
    with only_remote_writer(FOLDER) as new:
        new.check()
        old._renew()
        with pytest.raises(ValueError, match="no longer holds the lock"):
            old.check()
        old.release()
        assert read_object(OBJECT) is not None  # it is the other's
        new.check()


def test_a_lock_that_somebody_deleted_is_lost(memory: Any) -> None:
    with only_remote_writer(FOLDER) as lock:
        memory.rm(OBJECT)
        lock._renewed -= remote_lock.LEFT_BEHIND_AFTER  # the process was stopped for long
        with pytest.raises(ValueError, match=r"no longer holds the lock .*; run the command again"):
            lock.check()
    assert read_object(OBJECT) is None


def test_a_lock_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_lock, "RENEW_EVERY", 0.01)
    with only_remote_writer(FOLDER):
        before, until = holder()["renewed"], time.monotonic() + 30
        while holder()["renewed"] == before and time.monotonic() < until:
            time.sleep(0.01)
        assert holder()["renewed"] > before


def test_a_renewal_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_lock, "RENEW_EVERY", 0.01)
    failures: list[int] = []

    def fail(address: str, content: bytes) -> None:
        failures.append(1)
        if len(failures) < 3:
            raise StorageError("the network is down")
        write_object(address, content)

    with only_remote_writer(FOLDER) as lock:
        before = lock._renewed
        monkeypatch.setattr(remote_lock, "write_object", fail)
        until = time.monotonic() + 30
        while lock._renewed == before and time.monotonic() < until:
            time.sleep(0.01)
        assert len(failures) >= 3
        lock.check()
        # Without a renewal for long, the writer stops, because nobody knows who else writes.
        monkeypatch.setattr(remote_lock, "RENEW_EVERY", 60.0)
        failures.clear()
        lock._renewed -= remote_lock.LEFT_BEHIND_AFTER
        with pytest.raises(StorageError, match="the network is down"):
            lock.check()


def test_only_the_first_call_creates_an_object() -> None:
    assert create_object(OBJECT, b"first") and not create_object(OBJECT, b"second")
    assert read_object(OBJECT) == b"first"
