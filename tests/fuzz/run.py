"""Fuzz every parser of foreign bytes: ``python -m tests.fuzz.run`` mutates the inputs of the corpus for a while.

Atheris (libFuzzer) mutates, guided by the branches of sidelight that an input reaches. A crash is written to
``crashes/`` in the current folder; copy it to the corpus of its target, and mend the parser.

    python -m tests.fuzz.run --seconds 60 --jobs 2            # every target for a minute
    python -m tests.fuzz.run --runs 20000                     # from a fixed seed, nearly the same inputs, as in .ci/run
    python -m tests.fuzz.run --seconds 3600 table nal         # two targets for an hour
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
MOST_SECONDS = 25
"""For one input; a parser that takes longer hangs."""


def main() -> int:
    """Fuzz the named targets, all unless any is named, and return 1 if one crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--runs", type=int, help="most inputs of each target, from a fixed seed")
    parser.add_argument("--jobs", type=int, default=2, help="targets at once (default: 2)")
    parser.add_argument("--in-this-process", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if find_spec("atheris") is None:
        print("Atheris is not installed (it has wheels for Linux on x86_64 only): nothing is fuzzed")
        return 0
    if arguments.in_this_process:
        fuzz(arguments.targets[0], arguments.seconds, arguments.runs, arguments.in_this_process)
    from tests.fuzz.targets import TARGETS

    names = arguments.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; known are {', '.join(TARGETS)}")
    print(f"{'target':<16}{'seconds':>8}{'executions':>12}{'inputs kept':>12}{'crashes':>9}")
    with ThreadPoolExecutor(arguments.jobs) as pool:
        return 0 if all(list(pool.map(lambda name: report(name, arguments.seconds, arguments.runs), names))) else 1


def report(name: str, seconds: int, runs: int | None) -> bool:
    """Fuzz a target in another process, print a row of the table, and say whether it did not crash."""
    start = time.monotonic()
    # A folder in memory where there is one: each input is a file. libFuzzer ends its process without cleaning up.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        command = [sys.executable, "-m", "tests.fuzz.run", name, "--seconds", str(seconds), "--in-this-process", folder]
        command += ["--runs", str(runs)] if runs else []
        same = {**os.environ, "PYTHONHASHSEED": "0"}  # the branches that an input reaches steer the mutations
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=same)
    patterns = (r"number_of_executed_units: (\d+)", r"corp: (\d+)")
    executions, inputs = ((re.findall(pattern, done.stderr) or ["?"])[-1] for pattern in patterns)
    crashed = done.returncode != 0
    print(f"{name:<16}{time.monotonic() - start:>8.0f}{executions:>12}{inputs:>12}{int(crashed):>9}", flush=True)
    if crashed:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith(("INFO", "WARNING"))]
        print("\n".join(lines[-40:]), flush=True)
    return not crashed


def fuzz(name: str, seconds: int, runs: int | None, folder: Path) -> None:
    """Fuzz a target in this process, which ends with it; files go to the folder."""
    import atheris

    with atheris.instrument_imports(include=["sidelight"]):
        from tests.fuzz import targets

    crashes = Path("crashes")
    crashes.mkdir(exist_ok=True)
    target = targets.TARGETS[name]
    new, work = folder / "new", folder / "work"
    new.mkdir()
    work.mkdir()
    limits = [f"-max_total_time={seconds}", f"-timeout={MOST_SECONDS}", "-rss_limit_mb=4096", "-max_len=4096"]
    if runs:
        limits += [f"-runs={runs}", "-seed=1"]
    output = [f"-artifact_prefix={crashes}/{name}-", "-print_final_stats=1"]
    inputs = [str(new), str(CORPUS / name)]
    atheris.Setup([sys.argv[0], *limits, *output, *inputs], lambda data: targets.run(target, data, work))
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
