"""A disk that fails: every n-th write, rename or sync of files below a folder raises an error, as SQLite's tests do.

Python's own operations are replaced while the disk is watched. Packages that write files in native code (safetensors,
PyAV) get a stand-in that writes half of a file and raises the error that the package raises for a full disk.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_open, _os_open = io.open, os.open
_WRITING = os.O_WRONLY | os.O_RDWR


class FailingDisk:
    """Counts what is written below a folder, and fails once, or from a point on.

    Args:
        folder: the folder.
        at: number of the operation that fails, from 1; none if 0.
        code: the error, such as ``errno.ENOSPC``.
        stays: all later operations fail too, as on a full disk; otherwise only this one, as on a bad block.
    """

    def __init__(self, folder: Path, at: int = 0, code: int = errno.ENOSPC, *, stays: bool = True) -> None:
        self.folder, self.at, self.code, self.stays = str(folder.resolve()), at, code, stays
        self.count, self.failures = 0, 0
        self._lock = threading.RLock()

    def holds(self, path: object) -> bool:
        """Check whether a path, or the number of an open file, is of this disk."""
        try:
            text = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fsdecode(path)  # type: ignore[arg-type]
        except (OSError, TypeError):
            return False
        return os.path.abspath(text).startswith(self.folder + os.sep)

    def strike(self, path: object = None) -> None:
        """Count an operation, and raise the error if it is the one that fails."""
        with self._lock:
            self.count += 1
            if self.at and (self.count == self.at or (self.stays and self.count > self.at)):
                self.failures += 1
                named = (None,) if path is None else (os.fsdecode(path),)  # type: ignore[arg-type]
                raise OSError(self.code, os.strerror(self.code), *named)

    @contextmanager
    def watched(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingDisk]:
        """Replace the operations while the block runs."""
        with monkeypatch.context() as patch:
            disk = self

            class File(io.FileIO):
                def write(self, data: Any) -> int:
                    try:
                        disk.strike()
                    except OSError:
                        super().write(bytes(data)[: len(data) // 2])
                        raise
                    return super().write(data)

            def opened(file: Any, mode: str = "r", buffering: int = -1, *text: Any, **options: Any) -> Any:
                if not set(mode) & set("wax+") or not disk.holds(file):
                    return _open(file, mode, buffering, *text, **options)
                disk.strike(file if not isinstance(file, int) else None)
                raw_options = {k: options.pop(k) for k in ("closefd", "opener") if k in options}
                raw = File(file, mode.replace("b", "").replace("t", ""), **raw_options)
                if buffering == 0:
                    return raw
                buffer: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
                return buffer if "b" in mode else io.TextIOWrapper(buffer, *text, **options)

            def counted(function: Callable[..., Any], *, place: int = 0) -> Callable[..., Any]:
                def call(*values: Any, **options: Any) -> Any:
                    if disk.holds(values[place]):
                        disk.strike(None if isinstance(values[place], int) else values[place])
                    return function(*values, **options)

                return call

            def os_opened(path: Any, flags: int, *values: Any, **options: Any) -> int:
                if flags & _WRITING and disk.holds(path):
                    disk.strike(path)
                return _os_open(path, flags, *values, **options)

            patch.setattr(builtins, "open", opened)
            patch.setattr(io, "open", opened)
            patch.setattr(os, "open", os_opened)
            for name in ("write", "fsync", "mkdir", "sendfile"):
                patch.setattr(os, name, counted(getattr(os, name)))
            for name in ("replace", "rename"):
                patch.setattr(os, name, counted(getattr(os, name), place=1))
            _watch_native_writers(patch, disk)
            yield self


def _watch_native_writers(patch: pytest.MonkeyPatch, disk: FailingDisk) -> None:
    import av
    import safetensors.numpy
    import safetensors.torch
    from safetensors import SafetensorError

    def saving(save: Callable[..., None]) -> Callable[..., None]:
        def call(tensors: Any, filename: Any, *values: Any, **options: Any) -> None:
            try:
                if disk.holds(filename):
                    disk.strike()
            except OSError as error:
                with _open(filename, "wb") as file:
                    file.write(b"half of a file")
                message = f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
                raise SafetensorError(message) from None
            save(tensors, filename, *values, **options)

        return call

    patch.setattr(safetensors.torch, "save_file", saving(safetensors.torch.save_file))
    patch.setattr(safetensors.numpy, "save_file", saving(safetensors.numpy.save_file))
    av_open: Any = av.open

    class Container:
        """A container that is written; every fiftieth packet counts."""

        def __init__(self, container: Any) -> None:
            self.container, self.packets = container, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.container, name)

        def __enter__(self) -> Container:
            return self

        def __exit__(self, *error: object) -> None:
            self.container.close()
            if error[0] is None:
                disk.strike()

        def mux(self, packets: Any) -> None:
            self.packets += 1
            if self.packets % 50 == 1:
                disk.strike()
            self.container.mux(packets)

    def container_opened(file: Any, mode: str = "r", *values: Any, **options: Any) -> Any:
        if mode != "w" or not disk.holds(file):
            return av_open(file, mode, *values, **options)
        disk.strike(file)
        return Container(av_open(file, mode, *values, **options))

    patch.setattr(av, "open", container_opened)
