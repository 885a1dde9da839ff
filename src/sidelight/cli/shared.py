"""What several commands have in common: options, and where results are written."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidelight.io.files import write_text

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def add_model(parser: ArgumentParser) -> None:
    parser.add_argument("--model", default="shapes", help="a packaged model, a checkpoint's folder, or a hub id")
    parser.add_argument("--device", help="cpu, cuda, mps; the best there is unless given")


def add_backbone_weights(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--backbone-weights", help="folder of the backbone's weights, where they do not come with the model"
    )


def check_writable(path: str | None, *inputs: str | None) -> None:
    """Say so before the work, not after it, if a result cannot be written, or would replace what it is made of."""
    if path and path != "-":
        if any(i and Path(i).exists() and Path(path).resolve() == Path(i).resolve() for i in inputs):
            raise ValueError(f"cannot write {path}: it is read by the same command; give another file name")
        folder = Path(path).resolve().parent
        if not folder.is_dir():
            raise ValueError(f"cannot write {path}: there is no folder {folder}; make it first")
        if Path(path).is_dir():
            raise ValueError(f"cannot write {path}: it is a folder; give a file name")


def check_picture(path: str | None, *inputs: str | None) -> None:
    check_writable(path, *inputs)
    if path and Path(path).suffix.lower() not in (".png", ".pdf", ".svg", ".jpg", ".jpeg"):
        raise ValueError(f"--plot must end in .png, .pdf, .svg or .jpg, got {path}")


@contextmanager
def report_to(json_file: str | None) -> Iterator[None]:
    """What is printed is for people: not if JSON goes to standard output."""
    with redirect_stdout(io.StringIO()) if json_file == "-" else nullcontext():
        yield


def write_json(path: str | None, values: Any) -> None:
    """Write JSON to a file, or to standard output for -."""
    if path == "-":
        print(json.dumps(values, indent=2))
    elif path:
        write_text(path, json.dumps(values, indent=2) + "\n")
        print(f"wrote {path}")
