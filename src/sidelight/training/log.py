"""The log of a run: losses.jsonl, TensorBoard, and lines for people by ``logging``."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sidelight.core.messages import duration_of
from sidelight.io.files import write_text
from sidelight.io.jsonl import read_json_lines

_LOGGER = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 10
_PRINTED_METRICS = (
    "MR-full-mAP",
    "MR-full-R1@0.5",
    "MR-full-R1@0.7",
    "HL-min-VeryGood-mAP",
    "HL-min-VeryGood-Hit1",
)


class RunLog:
    """The log of one run, written by its main process.

    Args:
        out: folder of the run; made if need be.
        first_step: steps that are finished. Rows of later steps, from before an interruption, are removed.
        resume: keep the rows of earlier steps.
        quiet: log nothing for people.
    """

    def __init__(self, out: Path, *, first_step: int, resume: bool, quiet: bool) -> None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / "losses.jsonl"
        kept = []
        if path.exists() and resume:
            rows = (line for line in read_json_lines(path, lenient=True) if not line.problem)
            kept = [json.dumps(row.values) for row in rows if row.values.get("step", first_step) < first_step]
        write_text(path, "".join(f"{line}\n" for line in kept))
        self._losses = path.open("a")
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=first_step)
        except ImportError:
            pass  # losses.jsonl has the losses too
        self._quiet, self._first_step = quiet, first_step
        self._start = self._last_line = time.perf_counter()

    def log_step(self, step: int, epoch: int, lr: float, values: Mapping[str, float], total_steps: int) -> None:
        """Write the losses and the gradient norm of a step; every ten seconds, log the speed and the time left.

        Both count the seconds of validations too.
        """
        with _naming(self._losses.name):
            self._losses.write(json.dumps({"step": step, "epoch": epoch, "lr": lr, **values}) + "\n")
            self._losses.flush()
        self._add_scalars("train", {**values, "lr": lr}, step)
        now = time.perf_counter()
        if self._quiet or now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        rate = (step + 1 - self._first_step) / (now - self._start)
        seconds_left = (total_steps - step - 1) / rate
        _LOGGER.info(
            f"epoch {epoch}  step {step + 1}/{total_steps}  loss {values['total']:.3f}  {rate:.2f} steps/s  "
            f"{duration_of(seconds_left)} left"
        )

    def log_validation(self, step: int, epoch: int, metrics: Mapping[str, float], best_by: str, *, best: bool) -> None:
        """Write the scores of a validation, and log the main ones."""
        self._add_scalars("val", metrics, step)
        if not self._quiet:
            names = [name for name in _PRINTED_METRICS if name in metrics] or [best_by]
            scores = "  ".join(f"{name} {metrics[name]:.2f}" for name in names)
            _LOGGER.info(f"epoch {epoch}: {scores}{'  (best)' if best else ''}")

    def _add_scalars(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        if self._board is not None:
            with _naming(self._board.log_dir):
                for name, value in values.items():
                    self._board.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        """Close the files; what cannot be written any more was reported by the step before."""
        with contextlib.suppress(OSError):
            self._losses.close()
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()


@contextlib.contextmanager
def _naming(path: object) -> Iterator[None]:
    """Name the file in an error of writing; Python names no file where a write fails."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
