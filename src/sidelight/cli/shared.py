"""Options that several commands share, and the checks and the writing of their outputs."""

from __future__ import annotations

import io
import json
import logging
import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

from sidelight.cli.parser import Option
from sidelight.io.files import write_text

File = Annotated[str, Option("FILE", path="input")]
Folder = Annotated[str, Option("DIR", path="input")]
Store = Annotated[str, Option("STORE", path="input")]
Weights = Annotated[str, Option("NAME|DIR", path="input")]
OutFile = Annotated[str, Option("FILE", path="output file")]
OutFolder = Annotated[str, Option("DIR", path="output folder")]
OutStore = Annotated[str, Option("STORE", path="output folder")]
Name = Annotated[str, Option("NAME")]
Count = Annotated[int, Option("N")]
Score = Annotated[float, Option("SCORE")]
Seconds = Annotated[float, Option("SECONDS")]

Model = Annotated[
    str,
    Option(
        "NAME|DIR",
        "a name that `sidelight models` lists, a checkpoint's folder, or a hub id; r2-tuning/qvhighlights, a model for "
        "real videos, unless given",
        "input",
    ),
]
Device = Annotated[str, Option("DEVICE", "cpu, cuda or mps; the best available one unless given")]
BackboneWeights = Annotated[
    str, Option("DIR", "folder of the backbone's weights, where they do not come with the model", "input")
]
Engine = Literal["local", "ray"]
"""Where videos are read: on this machine, or on a Ray cluster."""
Benchmark = Annotated[str, Option("NAME", "the annotations are released files of this benchmark; JSONL unless given")]
JsonFile = Annotated[str, Option("FILE", "write all results as JSON; - for standard output", "output file")]
ExportFile = Annotated[str, Option("FILE", path="output file")]
ExportFormat = Annotated[
    Literal[
        "csv", "json", "srt", "vtt", "youtube", "otio", "edl", "fcpxml", "xmeml", "resolve", "ffconcat", "ffmpeg",
        "losslesscut",
    ],
    Option("NAME", "format of the export, where the suffix of its file does not say it: the suffix's own format, or "
           "resolve (markers, EDL) or losslesscut (CSV)"),
]  # fmt: skip
ClipsFolder = Annotated[
    str,
    Option(
        "DIR",
        "cut the moments into files in this folder: exactly, encoded again; a file of an earlier run that holds the "
        "same clip is kept, and no other file is replaced",
        "output folder",
    ),
]
ThumbnailsFolder = Annotated[
    str,
    Option(
        "DIR",
        "write a frame of each moment as JPEG into this folder; a thumbnail of an earlier run is replaced, and no "
        "other file",
        "output folder",
    ),
]
JoinFile = Annotated[
    str,
    Option(
        "FILE.mp4",
        "make one film of the moments, in the order of time, each part once (.mp4, .mov, .m4v or .mkv)",
        "output file",
    ),
]
SheetFile = Annotated[
    str, Option("FILE.png", "draw a frame of each moment with its times (.png, .pdf, .svg or .jpg)", "output file")
]
ReportFile = Annotated[
    str,
    Option("FILE.html", "write a page that plays the moments in the video; it needs no network", "output file"),
]
PlotFile = Annotated[str, Option("FILE.png", "draw the results (.png, .pdf, .svg or .jpg)", "output file")]


def require_range(low: float, high: float = math.inf, **options: float | None) -> None:
    """Check that the values of options lie between ``low`` and ``high``; an option that was not given passes.

    Raises:
        ValueError: if a value lies outside; names the option.
    """
    for name, value in options.items():
        if value is not None and not low <= value <= high:
            expected = f"{low:g} or more" if high == math.inf else f"between {low:g} and {high:g}"
            raise ValueError(f"--{name.replace('_', '-')} must be {expected}, got {value}")


def require_above_zero(**options: float | None) -> None:
    """Check that the values of options are above 0; an option that was not given passes.

    Raises:
        ValueError: if a value is 0 or less; names the option.
    """
    for name, value in options.items():
        if value is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {value}")


def require_plot(path: str | None, *, option: str = "plot") -> None:
    """Check that a plot has a suffix that can be drawn.

    Args:
        path: the file.
        option: the option that names it.

    Raises:
        ValueError: if not, or Matplotlib is missing.
    """
    from sidelight.export.plot import SUFFIXES

    if path and Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"--{option} must end in .png, .pdf, .svg or .jpg, got {path}")
    if path:
        require_package("matplotlib", "plot", "plots need Matplotlib")


def require_package(name: str, extra: str, purpose: str) -> None:
    """Check, before slow work begins, that an optional package is installed.

    Args:
        name: the package, as it is imported.
        extra: the extra of sidelight that installs it.
        purpose: the beginning of the message, such as "plots need Matplotlib".

    Raises:
        ValueError: if the package is missing.
    """
    from importlib.util import find_spec

    if find_spec(name) is None:
        raise ValueError(f'{purpose}: pip install "sidelight[{extra}]"')


@contextmanager
def announced(work: str, *, has_bar: bool = False, delay: float = 1.5) -> Iterator[None]:
    """Print a line on stderr if the work inside the context takes long, so that nobody waits without a word.

    Args:
        work: what is done, such as "loading the model".
        has_bar: whether a bar shows the work on a terminal, where no line is printed then.
        delay: seconds after which the line is printed.
    """
    if has_bar and sys.stderr.isatty():
        yield
        return
    timer = threading.Timer(delay, logging.getLogger("sidelight").info, [f"{work} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def report_to(json_file: str | None) -> Iterator[None]:
    """Print nothing inside the context if JSON goes to standard output."""
    with redirect_stdout(io.StringIO()) if json_file == "-" else nullcontext():
        yield


def to_json(values: Any) -> str:
    """Return values as JSON, as all commands write it."""
    return json.dumps(values, indent=2)


def write_json(path: str | None, values: Any) -> None:
    """Write JSON to a file, or to standard output for -."""
    if path == "-":
        print(to_json(values))
    elif path:
        write_text(path, to_json(values) + "\n")
        print(f"wrote {path}")


def require_engine(engine: str, actors: int | None, device: str | None) -> None:
    """Check that the options of Ray, and of this machine, are given with their engine."""
    require_range(1, actors=actors)
    if engine == "ray":
        require_package("ray", "ray", "--engine ray needs Ray")
    if actors is not None and engine != "ray":
        raise ValueError("--actors says how many backbones a Ray cluster runs; give --engine ray too")
    if device is not None and engine == "ray":
        raise ValueError("--device is for --engine local: on a Ray cluster each backbone takes a GPU if there are any")
