"""Open a video file, or say in one sentence why it is no video that can be read."""

from __future__ import annotations

import os
from typing import Any

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from sidelight.io.storage import is_address
from sidelight.video.clock import Part
from sidelight.video.damage import VideoError
from sidelight.video.playlist import Opener, are_allowed, is_playlist

_WHOLE = Part()

# FFmpeg may open these formats only, because formats such as concat, dash and sdp make it open other files and
# addresses. Each of these reads its own file; sound and still images are there for the sake of messages.
_VIDEO_FORMATS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "asf", "asf_o", "flv", "live_flv", "kux", "ogg", "nut", "rm", "ivr"),
    *("wtv", "mxf", "gxf", "lxf", "dv", "dhav", "nsv", "nuv", "swf", "ty", "vivo", "ivf", "yuv4mpegpipe", "gif"),
    *("apng", "webp", "webp_anim", "mpegvideo", "m4v", "h261", "h263", "h264", "hevc", "vvc", "evc", "av1", "obu"),
    *("vc1", "vc1test", "mjpeg", "mjpeg_2000", "mpjpeg", "smjpeg", "dirac", "dnxhd", "cavsvideo", "avs2", "avs3"),
    *("apv", "simbiosis_imx", "ipu", "pva", "pmp", "mtv", "mlv", "cine", "r3d", "ser", "flic", "film_cpk", "roq"),
)
_SOUND_FORMATS = (
    *("aac", "ac3", "ac4", "aiff", "amr", "amrnb", "amrwb", "ape", "au", "caf", "dsf", "dts", "dtshd", "eac3", "flac"),
    *("loas", "mlp", "mp3", "mpc", "mpc8", "oma", "qcp", "tak", "truehd", "tta", "voc", "w64", "wav", "wv", "xwma"),
)
_IMAGE_KINDS = (
    *("bmp", "dds", "dpx", "exr", "gif", "hdr", "j2k", "jpeg", "jpegls", "jpegxl", "jpegxs", "pam", "pbm", "pcx"),
    *("pfm", "pgm", "pgmyuv", "pgx", "phm", "photocd", "png", "ppm", "psd", "qoi", "sgi", "sunrast", "svg", "tiff"),
    *("webp", "xbm", "xpm", "xwd"),
)
_JPEG = b"\xff\xd8\xff"
"""The first bytes of a JPEG."""
_FORMATS = ",".join((*_VIDEO_FORMATS, *_SOUND_FORMATS, "ico", *(f"{kind}_pipe" for kind in _IMAGE_KINDS)))


def options_for_any_metadata(version: str) -> dict[str, Any]:
    """Return the options with which a version of PyAV opens a file whose metadata are not UTF-8; 19 needs none."""
    return {"metadata_errors": "replace"} if int(version.split(".")[0]) < 19 else {}


def open_video(path: str, part: Part = _WHOLE) -> tuple[InputContainer, VideoStream]:
    """Open a file and return it with its main video stream.

    Raises:
        VideoError: if the file is no video; one sentence says what the file is and what to do.
    """
    beginning = b""
    if is_address(path):
        raise VideoError(f"{path} is an address; expected a file of this machine, so download it first")
    if path == "-":
        problem = "means standard input, and a video is read more than once"
        raise VideoError(f"{path} {problem}; expected a file, so save the video to a file first")
    if os.path.isdir(path):
        raise VideoError(f"{path} is a folder; expected one video file, so add the file's name")
    if os.path.exists(path) and not os.path.isfile(path):
        problem = "is a pipe or a device, and a video is read more than once"
        raise VideoError(f"{path} {problem}; expected a file, so save the video to a file first")
    try:
        with open(path, "rb") as file:
            beginning = file.read(256)
        if not beginning:
            raise VideoError(f"{path} is empty (0 bytes); expected a video file, so copy or download it again")
        if is_playlist(path) and not are_allowed():
            problem = "is a playlist (HLS), which makes the decoder open other files; expected one video file"
            raise VideoError(f"{path} {problem}, so join it, or allow it if you trust it (--allow-playlists)")
        container = _open(path, part)
    except FileNotFoundError:
        raise VideoError(f"{path} does not exist; expected a video file, so check the path") from None
    except OSError as error:
        reason = error.strerror or "unknown reason"
        raise VideoError(f"{path} cannot be read ({reason}); expected a video file that you may read") from None
    except FFmpegError:
        if beginning[4:8] in (b"ftyp", b"mdat", b"wide", b"free", b"skip", b"moov"):
            problem = "is an MP4 or MOV file that was cut off: its index (moov), which is written last, is missing"
            raise VideoError(f"{path} {problem}; expected a whole file, so copy or record it again") from None
        if beginning.startswith(b"#EXTM3U"):
            problem = "is a playlist whose segments cannot be read"
            raise VideoError(f"{path} {problem}; check that a video player shows it, or give one video file") from None
        if beginning.lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise VideoError(f"{path} is a web page; expected a video file, so give the file itself") from None
        problem = "is not a video; expected MP4, MKV, MOV, WebM or the like"
        raise VideoError(f"{path} {problem}, so check that a video player shows it") from None
    try:
        # In WebP, the header VP8X has a bit for animations. FFmpeg reads them from PyAV 19 on.
        if container.format.name == "webp_pipe" and beginning[8:16] == b"WEBPVP8X" and beginning[20] & 2:
            problem = f"is an animated WebP, which PyAV {av.__version__} cannot read; expected a video file"
            raise VideoError(f"{path} {problem}, so convert it to MP4 or install PyAV 19 or newer")
        return container, _main_stream(container, path)
    except VideoError:
        container.close()
        raise


def open_image(path: str) -> tuple[InputContainer, VideoStream]:
    """Open a still image and return it with its stream.

    Raises:
        VideoError: if the file is no still image; one sentence says what to do.
    """
    expected = "expected an image such as JPEG or PNG"
    if is_address(path) or not os.path.isfile(path):
        raise VideoError(f"{path} is no file of this machine; {expected}, so check the path")
    try:
        with open(path, "rb") as file:
            is_jpeg = file.read(len(_JPEG)) == _JPEG
        # FFmpeg would open a file that is named .jpg as a series of images, which is not allowed.
        container = _open(path, _WHOLE, kind="jpeg_pipe" if is_jpeg else None)
    except OSError as error:
        raise VideoError(f"{path} cannot be read ({error.strerror}); {expected} that you may read") from None
    except FFmpegError:
        raise VideoError(f"{path} is no image; {expected}, so check that a viewer shows it") from None
    stream: Any = next(iter(container.streams.video), None)
    if stream is not None and stream.codec_context is None:  # such as SVG, which FFmpeg recognises and cannot draw
        container.close()
        raise VideoError(f"{path} is of a kind that cannot be read; {expected}")
    if not _is_still(container) or stream is None:
        container.close()
        raise VideoError(f"{path} is no still image; {expected}, or name a moment of a video (FILE@START-END)")
    return container, container.streams.video[0]


def _is_still(container: InputContainer) -> bool:
    kind, brand = container.format.name, container.metadata.get("major_brand", "").strip()
    return kind in ("image2", "ico") or kind.endswith("_pipe") or brand in ("avif", "heic", "heix", "mif1")


def _open(path: str, part: Part, *, kind: str | None = None) -> InputContainer:
    """Open a file with FFmpeg, which may open no other file, or the files beside an allowed playlist.

    Args:
        path: the file.
        part: of the file.
        kind: FFmpeg's format, where the name of the file would mislead it.
    """
    settings = options_for_any_metadata(av.__version__)
    settings["options"] = {"format_whitelist": _FORMATS, "protocol_whitelist": "file,subfile"}
    address = part.address(path)
    if is_playlist(path):
        settings["options"] = {"format_whitelist": f"hls,{_FORMATS}", "protocol_whitelist": "file"}
        address, settings["io_open"] = os.path.realpath(path), Opener(path)
    container: InputContainer = av.open(address, format=kind, **settings)
    return container


def _main_stream(container: InputContainer, path: str) -> VideoStream:
    """Return the stream that a player shows: no cover, no thumbnail, no still image."""
    if _is_still(container):
        raise VideoError(f"{path} is a still image; expected a video file, so give one with several frames")
    stills = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = (
        [] if container.format.name == "tty" else [s for s in container.streams.video if not s.disposition & stills]
    )
    if not streams:
        content = "only audio" if container.streams.audio else "no video stream"
        raise VideoError(f"{path} holds {content}; expected a video file such as MP4, MKV or WebM, so check the path")
    # PyAV's types say that there always is a codec context; where FFmpeg knows no decoder, there is none.
    decodable = [stream for stream in streams if stream.codec_context is not None]  # type: ignore[redundant-expr]
    if not decodable:
        raise VideoError(
            f"{path} has a video codec that FFmpeg does not know; expected one such as H.264, so convert it"
        )
    for stream in decodable:
        stream.thread_type = "AUTO"
    best = container.streams.best("video")
    return next((stream for stream in decodable if best is not None and stream.index == best.index), decodable[0])
