"""Measure how long models take for a minute of video on this machine, and keep the result."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sidelight.core.messages import count_of
from sidelight.io.files import write_text
from sidelight.io.pinned import models_cache

if TYPE_CHECKING:
    import torch

    from sidelight.grounder import Grounder

_FILM_SECONDS = 20


def measured_speeds(
    names: Sequence[str], *, measure: bool, device: str | torch.device | None = None
) -> dict[str, float]:
    """Return how many seconds each model takes for one minute of video on this machine.

    One query is measured on a film of 20 seconds (720p, H.264, 25 frames a second), without loading the model.
    Results are kept in ``speeds.json`` in the folder of models of the cache, by model and device.

    Args:
        names: models whose files are here. A model that cannot be loaded, for want of a package, is left out.
        measure: measure each model again; otherwise return only what an earlier call measured.
        device: where to compute; the best device here unless given.
    """
    path = models_cache() / "speeds.json"
    try:
        known: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if not (known or measure or device):
        return {}
    from sidelight.grounder import Grounder
    from sidelight.io.runtime import usable_device

    target = usable_device(device)
    place = f"{target.type}, {_processor(target)}"
    for name in names if measure else ():
        print(f"measuring {name} on {place} ...", file=sys.stderr, flush=True)
        try:
            grounder = Grounder.from_pretrained(name, cache=None, device=target, offline=True)
        except ValueError as error:
            print(f"{name} is not measured: {error}", file=sys.stderr)
            continue
        known.setdefault(name, {})[place] = round(_seconds_per_minute(grounder), 3)
        with contextlib.suppress(OSError):  # a cache that cannot be written keeps nothing
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(known, indent=2) + "\n")
    return {name: known[name][place] for name in names if place in known.get(name, {})}


def _processor(device: torch.device) -> str:
    """Return the device's name for people."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return count_of(os.cpu_count() or 1, "core")


def _seconds_per_minute(grounder: Grounder) -> float:
    """Measure one query on a film, per minute of the film."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the film is of no model's world
        film = Path(folder) / "film.mp4"
        _write_film(film)
        grounder.ground(film, "a red square spins")  # the first call is slower than all others
        start = time.perf_counter()
        grounder.ground(film, "a red square spins")
        return (time.perf_counter() - start) * 60 / _FILM_SECONDS


def _write_film(path: Path) -> None:
    """Write a film of moving blocks: 720p, H.264, 25 frames a second, a keyframe every 2 seconds."""
    import av
    import numpy as np

    blocks = np.random.default_rng(0).integers(0, 255, (45, 80, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for number in range(25 * _FILM_SECONDS):
            image = np.ascontiguousarray(np.roll(blocks, 4 * number, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
