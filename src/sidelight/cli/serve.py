"""`sidelight serve` and `sidelight mcp`: answer the requests of browsers, programs and language models."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sidelight.cli.parser import Option
from sidelight.cli.shared import (
    BackboneWeights,
    Count,
    Device,
    Folder,
    Model,
    OutFolder,
    require_package,
    require_range,
)

if TYPE_CHECKING:
    from sidelight.grounder import Grounder
    from sidelight.library import Library

Host = Annotated[str, Option("ADDRESS")]
HostNames = Annotated[list[str], Option("NAME")]
Token = Annotated[str, Option("SECRET")]
Megabytes = Annotated[int, Option("MB")]
LibraryFolder = Annotated[
    str,
    Option("LIB", "library to search; its folders are served too, and its model answers unless --model", "input"),
]


def serve(
    folder: list[Folder] = [],  # noqa: B006  # is read only
    *,
    model: Model | None = None,
    device: Device | None = None,
    backbone_weights: BackboneWeights | None = None,
    library: LibraryFolder | None = None,
    offline: bool = False,
    host: Host = "127.0.0.1",
    port: Count = 8000,
    token: Token | None = None,
    allow_host: HostNames | None = None,
    uploads: OutFolder | None = None,
    no_uploads: bool = False,
    max_upload: Megabytes = 2000,
    queue: Count = 32,
    workers: Count = 2,
) -> None:
    """Serve a web page and a REST interface that find moments in the videos of folders.

    Only this machine can connect, unless --host names another address; then --token is needed. docs/service.md
    describes the page, the endpoints and the limits.

    Args:
        folder: folders of videos, with the folders in them; without one, only uploaded videos can be asked about.
        offline: use no network, only what is on this machine.
        host: address to listen at; 0.0.0.0 lets other machines connect.
        port: port to listen at; 0 takes a free one.
        token: secret of 16 characters or more that each request must carry; the variable SIDELIGHT_TOKEN of the
            environment unless given, which other users of this machine cannot see.
        allow_host: further names of this service, such as that of a proxy before it.
        uploads: folder in which uploaded videos stay; a temporary one unless given.
        no_uploads: take no uploads.
        max_upload: largest uploaded file.
        queue: requests that may wait for the model; one more is told to come later.
        workers: videos that are read at once.
    """
    require_package("fastapi", "serve", "the service needs FastAPI")
    require_package("python_multipart", "serve", "the service needs python-multipart")
    require_package("prometheus_client", "serve", "the service needs prometheus-client")
    require_package("uvicorn", "serve", "the service needs uvicorn")
    from sidelight.server.settings import Settings

    require_range(1, queue=queue, workers=workers, max_upload=max_upload)
    require_range(0, 65535, port=port)
    if uploads is not None and no_uploads:
        raise ValueError("--uploads and --no-uploads exclude each other; give one of them")
    if not (folder or library) and no_uploads:
        raise ValueError("there is no video to ask about; give a folder, or leave out --no-uploads")
    settings = Settings(
        host=host,
        port=port,
        token=token or os.environ.get("SIDELIGHT_TOKEN") or None,
        allow_hosts=tuple(allow_host or ()),
        queue=queue,
        workers=workers,
        upload_bytes=max_upload * 10**6,
        uploads_bytes=10 * max_upload * 10**6,
    )
    for name in folder:
        if not Path(name).is_dir():
            raise ValueError(f"{name} is not a folder; expected folders with video files")
    from sidelight.server.app import bind, create_app, run

    bound = bind(settings)
    with bound, _ended_like_ctrl_c(), _uploads_folder(uploads, wanted=not no_uploads) as place:
        grounder, opened, folders = _parts(library, folder, model, device, backbone_weights, offline=offline)
        app = create_app(grounder, folders=folders, uploads=place, library=opened, settings=settings)
        shown_host = f"[{host}]" if ":" in host else host
        print(
            f"sidelight serves {grounder.name} at http://{shown_host}:{bound.getsockname()[1]}/ (Ctrl+C ends it)",
            flush=True,
        )
        try:
            run(app, bound, settings)
        except KeyboardInterrupt:
            print("the service has ended")


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, by which containers end a process, end the service as Ctrl+C does, so that it can tidy up."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _uploads_folder(folder: str | None, *, wanted: bool) -> Iterator[Path | None]:
    """Yield the folder of uploads: the given one, or a temporary one that is removed at the end."""
    if not wanted:
        yield None
        return
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        yield Path(folder)
        return
    place = tempfile.mkdtemp(prefix="sidelight-uploads-")
    try:
        yield Path(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _parts(
    library: str | None,
    folders: Sequence[str],
    model: str | None,
    device: str | None,
    backbone_weights: str | None,
    *,
    offline: bool,
) -> tuple[Grounder, Library | None, list[str]]:
    """Return the model, the library if there is one, and the folders to serve."""
    from sidelight.grounder import Grounder, default_cache

    if library is None:
        grounder = Grounder.from_pretrained(model, device=device, backbone_weights=backbone_weights, offline=offline)
        return grounder, None, list(folders)
    from sidelight.io.download import offline as without_network
    from sidelight.library import Library

    require_package("lancedb", "library", "a library needs LanceDB")
    with without_network(offline):
        opened = Library.open(library, model=model, device=device, backbone_weights=backbone_weights)
        opened.joint  # noqa: B018  # loads both backbones before the first request
    opened.grounder.cache = default_cache()  # for queries about one video
    return opened.grounder, opened, list(dict.fromkeys([*folders, *opened.folders]))


def mcp(
    folder: list[Folder] = [],  # noqa: B006  # is read only
    *,
    model: Model | None = None,
    device: Device | None = None,
    backbone_weights: BackboneWeights | None = None,
    library: LibraryFolder | None = None,
    offline: bool = False,
) -> None:
    """Give language models tools that find moments in the videos of folders (MCP).

    A program with a language model starts this command itself, and talks with it over standard input and output:
    `sidelight mcp FOLDER` is what to enter there. The tools can read the videos of the folders and nothing else.

    Args:
        folder: folders of videos, with the folders in them.
        offline: use no network, only what is on this machine.
    """
    require_package("mcp", "mcp", "the tools need the MCP SDK")
    from sidelight.server.mcp import tools

    if not (folder or library):
        raise ValueError("there is no video to ask about; give a folder, or --library")
    for name in folder:
        if not Path(name).is_dir():
            raise ValueError(f"{name} is not a folder; expected folders with video files")
    grounder, opened, folders = _parts(library, folder, model, device, backbone_weights, offline=offline)
    tools(grounder, folders=folders, library=opened).run("stdio")
