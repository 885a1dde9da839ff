"""Stress one Grounder with many threads, with good and damaged files mixed.

python benchmarks/threads.py --threads 64 --seconds 300

compares every answer with the one of a single thread, counts the warnings, and prints the memory of the process each
tenth of the time. The exit code is 1 if an answer or a warning is wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import psutil


def make_files(folder: Path) -> list[Path]:
    """Make three videos of the shapes world and two damaged copies: one with zeros in it, and one cut short."""
    import av

    from sidelight.shapes import make_world

    make_world(folder, videos=3, seed=11, seconds=(20, 26), side=128)
    videos = sorted((folder / "videos").iterdir())
    with av.open(str(videos[0])) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    packet = max(packets[len(packets) // 2 :], key=len)
    zeros, cut = folder / "zeros.mp4", folder / "cut.ts"
    zeros.write_bytes(videos[0].read_bytes().replace(packet, bytes(len(packet))))
    with av.open(str(videos[1])) as source, av.open(str(cut), "w", format="mpegts") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for read in source.demux(video=0):
            if read.dts is not None:
                read.stream = stream
                target.mux(read)
    data = bytearray(cut.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 4000] = bytes(4000)
    cut.write_bytes(data)
    return [*videos, zeros, cut]


def main() -> int:
    from sidelight import Grounder
    from sidelight.core.messages import count_of

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    arguments = parser.parse_args()
    queries = ["a red star spins", "a ring"]
    warned: list[tuple[int, str]] = []

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        warned.append((threading.get_ident(), str(message)))

    warnings.simplefilter("always")
    warnings.showwarning = show
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder))
        alone = Grounder.from_pretrained("shapes", cache=None, device="cpu")
        expected, messages = [], []
        for file in files:
            warned.clear()
            expected.append(alone.ground(file, queries))
            messages.append([message for _, message in warned])
        damaged = sum(map(bool, messages))
        print(f"{count_of(len(files), 'file')}, {damaged} of them damaged; {count_of(arguments.threads, 'thread')}")
        warned.clear()
        shared = Grounder.from_pretrained("shapes", cache=Path(folder) / "cache", device="cpu")
        calls, wrong = Counter[tuple[int, str]](), list[str]()
        done, process, start = Counter[int](), psutil.Process(), time.monotonic()
        end = start + arguments.seconds

        def work(number: int) -> None:
            turn = number
            while time.monotonic() < end:
                which = turn % len(files)
                turn += 1
                try:
                    if shared.ground(files[which], queries) != expected[which]:
                        wrong.append(f"another answer for {files[which].name}")
                except Exception as error:  # any failure of a thread is a result of this benchmark
                    wrong.append(f"{type(error).__name__}: {error}")
                for message in messages[which]:
                    calls[threading.get_ident(), message] += 1
                done[number] += 1

        threads = [threading.Thread(target=work, args=(number,)) for number in range(arguments.threads)]
        for thread in threads:
            thread.start()
        for part in range(1, 11):
            time.sleep(max(0.0, start + part * arguments.seconds / 10 - time.monotonic()))
            memory = process.memory_info().rss / 2**20
            print(f"{time.monotonic() - start:>6.0f} s {sum(done.values()):>7} calls {memory:>7.0f} MiB", flush=True)
        for thread in threads:
            thread.join()
    surplus = Counter(warned) - calls, calls - Counter(warned)
    print(f"{sum(done.values())} calls, {count_of(len(wrong), 'wrong answer')}, {len(warned)} warnings, of which")
    print(f"{sum(surplus[0].values())} too many and {sum(surplus[1].values())} too few")
    print(f"the host's showwarning is {'untouched' if warnings.showwarning is show else 'CHANGED'}")
    for problem in wrong[:5]:
        print(problem, file=sys.stderr)
    return 1 if wrong or any(surplus) or warnings.showwarning is not show else 0


if __name__ == "__main__":
    sys.exit(main())
