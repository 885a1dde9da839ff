"""Receive a video as multipart/form-data, straight to the disk."""

from __future__ import annotations

import io
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from sidelight.core.messages import size_of
from sidelight.io.files import USUAL_SUFFIXES, VIDEO_SUFFIXES, sweep
from sidelight.server.errors import ServiceError, busy
from sidelight.server.settings import Settings
from sidelight.server.videos import UPLOADS, Video, Videos

FIELD = "file"
"""Name of the form's field with the video."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif")
_LONGEST_NAME = 150
_MOST_FILES = 10_000


_Check = Callable[[str], str]


def checked_name(name: str, *, suffixes: Iterable[str] = VIDEO_SUFFIXES, kind: str = "a video", usual: str = "") -> str:
    """Return the name of an uploaded file.

    Args:
        name: the name.
        suffixes: those that are allowed.
        kind: what the file must be.
        usual: some of the suffixes, for the message.

    Raises:
        ServiceError: 422 if it is a path, hidden, too long, unprintable, or has not the suffix.
    """
    problem = ""
    if not name:
        problem = "is empty"
    elif "/" in name or "\\" in name or ":" in name or name.startswith("."):
        problem = "is a path or the name of a hidden file"
    elif not name.isprintable() or name != name.strip():
        problem = "has a character that cannot be printed, or spaces around it"
    elif len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
        problem = f"is longer than {_LONGEST_NAME} bytes"
    elif Path(name).suffix.lower() not in suffixes:
        problem = f"has not the suffix of {kind} ({usual or USUAL_SUFFIXES})"
    if problem:
        example = "film.mp4" if kind == "a video" else "frame.jpg"
        shown = name if len(name) <= 80 else f"{name[:77]}..."
        raise ServiceError(422, "invalid_upload", f"the file's name {shown!r} {problem}; give a name such as {example}")
    return name


def checked_image_name(name: str) -> str:
    """Return the name of an uploaded image; errors as :func:`checked_name`."""
    return checked_name(name, suffixes=IMAGE_SUFFIXES, kind="an image", usual=", ".join(IMAGE_SUFFIXES))


async def receive_image(content_type: str, body: AsyncIterator[bytes]) -> tuple[bytes, str]:
    """Return the content and the name of the image in a body, whose size is that of any request.

    Args:
        content_type: the header of the request, with the boundary.
        body: the parts of the body.

    Raises:
        ServiceError: if the body is no form with one file, or its name is not that of an image.
    """
    file = io.BytesIO()
    form = _Form(content_type, file, checked_image_name)
    async for part in body:
        form.write(part)
    return file.getvalue(), form.name()


class Uploads:
    """Keep uploaded videos in the folder of uploads. A file never replaces another one.

    Args:
        videos: the videos; their folder of uploads is used.
        settings: the limits.
    """

    def __init__(self, videos: Videos, settings: Settings) -> None:
        self._videos, self._settings = videos, settings
        self._lock = threading.Lock()
        self._arriving: dict[Path, int] = {}
        """Bytes of the uploads that run now, by the file that they are written to."""
        if videos.uploads is not None:
            sweep(videos.uploads)  # of a killed process

    async def receive(self, content_type: str, body: AsyncIterator[bytes]) -> Video:
        """Write the video in a body to the disk and return it.

        Args:
            content_type: the header of the request, with the boundary.
            body: the parts of the body.

        Raises:
            ServiceError: if the body is no form with one video, a limit is passed, or the file is no video.
        """
        folder = self._videos.uploads
        if folder is None:
            raise ServiceError(404, "no_uploads", "this service takes no uploads (it was started with --no-uploads)")
        try:
            with self._one_more(folder) as (beside, stored):
                with open(beside, "xb") as file:
                    form = _Form(content_type, file)
                    async for part in body:
                        self._count(beside, len(part), stored)
                        await to_thread.run_sync(form.write, part)
                    name = form.name()
                return await to_thread.run_sync(self._keep, beside, name, folder)
        except OSError as error:
            message = f"the upload cannot be written ({error.strerror or 'unknown reason'}); is the disk full?"
            raise ServiceError(507, "no_space", message) from None

    @contextmanager
    def _one_more(self, folder: Path) -> Iterator[tuple[Path, int]]:
        """Yield the file to write an upload to, which is removed at the end, and the bytes of earlier uploads."""
        beside = folder / f".{secrets.token_hex(8)}.partial"
        entries = [entry for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")]
        if len(entries) >= _MOST_FILES:
            raise ServiceError(507, "no_space", f"the folder of uploads holds {_MOST_FILES:,} files; remove some")
        with self._lock:
            if len(self._arriving) >= self._settings.uploads_at_once:
                raise busy(f"{len(self._arriving)} uploads run", 10)
            self._arriving[beside] = 0
        try:
            yield beside, sum(entry.stat().st_size for entry in entries)
        finally:
            beside.unlink(missing_ok=True)
            with self._lock:
                del self._arriving[beside]

    def _count(self, beside: Path, new: int, stored: int) -> None:
        """Count new bytes of one upload, and refuse more than the limits."""
        with self._lock:
            self._arriving[beside] += new
            size, total = self._arriving[beside], stored + sum(self._arriving.values())
        limits = self._settings
        if size > limits.upload_bytes:
            message = f"the upload is larger than {size_of(limits.upload_bytes)}, which is the limit (--max-upload)"
            raise ServiceError(413, "too_large", message)
        if total > limits.uploads_bytes:
            message = f"all uploads would be larger than {size_of(limits.uploads_bytes)}; remove some files"
            raise ServiceError(507, "no_space", message)

    def _keep(self, beside: Path, name: str, folder: Path) -> Video:
        """Check that a file is a video, and give it its name, or the next free one."""
        from sidelight.video.damage import VideoError
        from sidelight.video.read import probe

        try:
            probe(beside)
        except VideoError as error:
            raise ServiceError(422, "unreadable_video", str(error).replace(str(beside), name)) from None
        stem, suffix = Path(name).stem, Path(name).suffix
        for number in range(1, _MOST_FILES):
            path = folder / (name if number == 1 else f"{stem}-{number}{suffix}")
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o644))  # fails where a file has the name
            except FileExistsError:
                continue
            try:
                beside.replace(path)
            except OSError:
                path.unlink()
                raise
            self._videos.forget_list()
            return self._videos.find(f"{UPLOADS}/{path.name}")
        raise ServiceError(409, "name_taken", f"{_MOST_FILES:,} files are named like {name}; give another name")


class _Form:
    """Writes the file of a form, part by part; the form must hold one file and nothing else.

    Args:
        content_type: the header of the request.
        file: where to write.
        check: returns the name of the file, or raises a ServiceError.
    """

    def __init__(self, content_type: str, file: IO[bytes], check: _Check = checked_name) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise _not_a_form("expected multipart/form-data")
        self._file, self._check, self._name = file, check, ""
        self._files, self._ended = 0, False
        self._header = self._value = b""
        self._disposition = b""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._data,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise _not_a_form("the boundary is too long") from None

    def write(self, part: bytes) -> None:
        """Read the next bytes of the body."""
        try:
            self._parser.write(part)
        except FormParserError:
            raise _not_a_form("the form cannot be read") from None

    def name(self) -> str:
        """Return the name of the file, after the last bytes of the body."""
        if not self._ended or not self._files:
            raise _not_a_form("the form ended early or has no file")
        return self._name

    def _begin(self) -> None:
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") != FIELD.encode() or b"filename" not in options or self._files:
            raise _not_a_form("the form has another field or several files")
        self._files += 1
        # The parser takes the last part of some paths, so the header itself is looked at too.
        if b"\\" in self._disposition or b"/" in self._disposition:
            self._check("/")
        self._name = self._check(options[b"filename"].decode("utf-8", "replace"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._file.write(data[start:end])

    def _end(self) -> None:
        self._ended = True


def _not_a_form(problem: str) -> ServiceError:
    message = f"{problem}; send a form (multipart/form-data) with one file in the field {FIELD!r}"
    return ServiceError(422, "invalid_upload", message)
