"""Measure the service under mixed requests of several clients: errors, times, and memory.

    python benchmarks/service.py                          # 8 clients for 10 minutes
    python benchmarks/service.py --minutes 1 --clients 4

The service runs as its own process, with the model ``shapes``, on synthetic videos. Each client sends one request after
the other: new and repeated queries, jobs with their events, thumbnails, ranges of files, lists, exports, cuts and
uploads.
Prints a row for each kind of request, then the memory of the service after a warm-up of a quarter of the time (30 s at
most) and at the end. The exit code is 1 if a request failed (503, "come later", is counted apart).
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from sidelight.shapes.generate import make_world

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
ACTIONS = ("moving", "growing", "spinning", "flickering on and off")
VIDEOS = 6


class Client:
    """Sends requests and notes how long each one took.

    Args:
        address: host and port.
        seed: of the choice of requests.
        videos: names of the videos.
        upload: a video to upload.
    """

    def __init__(self, address: tuple[str, int], seed: int, videos: list[str], upload: bytes) -> None:
        self.connection = http.client.HTTPConnection(*address, timeout=120)
        self.random, self.videos, self.upload = random.Random(seed), videos, upload
        self.answers: list[dict[str, object]] = []
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.failures: list[str] = []
        self.busy = 0

    def request(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> bytes:
        """Send one request and return the body of the answer."""
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        sent = headers or ({"Content-Type": "application/json"} if content else {})
        self.connection.request(method, path, content, sent)
        response = self.connection.getresponse()
        answer = response.read()
        if response.status == 503:
            self.busy += 1
        elif response.status >= 400:
            self.failures.append(f"{method} {path}: {response.status} {answer[:200]!r}")
        return answer if response.status < 400 else b""

    def query(self) -> dict[str, object]:
        """Return a random request about a random video."""
        query = f"a {self.random.choice(COLOURS)} ball is {self.random.choice(ACTIONS)}"
        return {"video": self.random.choice(self.videos), "query": query}

    def ground(self) -> None:
        """Ask about a video."""
        answer = self.request("POST", "/v1/ground", self.query())
        if answer:
            self.answers = [json.loads(answer)["answers"][0], *self.answers[:4]]

    def job(self) -> None:
        """Ask about a video by a job, and read its events."""
        answer = self.request("POST", "/v1/ground", {**self.query(), "async": True})
        if answer and b"event: end" not in self.request("GET", f"/v1/jobs/{json.loads(answer)['id']}/events"):
            self.failures.append("the events of a job had no end")

    def thumbnail(self) -> None:
        """Get a frame."""
        at = self.random.uniform(0, 19)
        self.request("GET", f"/v1/videos/{self.random.choice(self.videos)}/thumbnail?at={at:.1f}")

    def file(self) -> None:
        """Get a part of a file."""
        start = self.random.randrange(1000)
        path = f"/v1/videos/{self.random.choice(self.videos)}/file"
        self.request("GET", path, headers={"Range": f"bytes={start}-{start + 65535}"})

    def list(self) -> None:
        """Get the list of videos, and facts about one."""
        self.request("GET", "/v1/videos?limit=50")
        self.request("GET", f"/v1/videos/{self.random.choice(self.videos)}")

    def export(self) -> None:
        """Export earlier answers."""
        if self.answers:
            form = self.random.choice(("csv", "edl", "fcpxml", "ffmpeg"))
            self.request("POST", "/v1/export", {"format": form, "answers": self.answers[:1], "top": 3})

    def cut(self) -> None:
        """Cut a second of a video, wait for the file, and download it."""
        answer = {"video": self.random.choice(self.videos), "query": "x", "moments": [{"start": 3, "end": 4}]}
        job = self.request("POST", "/v1/cuts", {"answers": [answer]})
        if job:
            name = json.loads(job)["id"]
            self.request("GET", f"/v1/jobs/{name}/events")
            self.request("GET", f"/v1/cuts/{name}/1")

    def send(self) -> None:
        """Upload a video."""
        head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="film.mp4"\r\n\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        self.request("POST", "/v1/videos", head + self.upload + b"\r\n--x--\r\n", headers)

    def run(self, until: float) -> None:
        """Send requests until a time of ``time.monotonic``."""
        kinds: list[tuple[str, Callable[[], None], int]] = [
            ("ground", self.ground, 30), ("job and events", self.job, 10), ("thumbnail", self.thumbnail, 25),
            ("part of a file", self.file, 20), ("list and facts", self.list, 10), ("export", self.export, 10),
            ("upload", self.send, 1), ("cut and download", self.cut, 3),
        ]  # fmt: skip
        while time.monotonic() < until:
            name, action, _ = self.random.choices(kinds, [kind[2] for kind in kinds])[0]
            start = time.perf_counter()
            try:
                action()
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failures.append(f"{name}: {error!r}")
                self.connection.close()
            self.seconds[name].append(time.perf_counter() - start)


def main() -> int:
    """Run the measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_world(Path(folder) / "world", videos=VIDEOS, seed=5, seconds=(20, 40), side=224)
        films = Path(folder) / "world" / "videos"
        command = [sys.executable, "-m", "sidelight", "serve", str(films), "--model", "shapes", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                port = int(line.partition("http://127.0.0.1:")[2].partition("/")[0])
                return measure(("127.0.0.1", port), psutil.Process(process.pid), films, args.clients, args.minutes * 60)
            finally:
                process.terminate()


def measure(address: tuple[str, int], process: psutil.Process, films: Path, clients: int, seconds: float) -> int:
    """Run the clients for some seconds, and print times and memory; return the exit code."""
    files = sorted(films.iterdir())
    videos = [path.name for path in files]
    workers = [Client(address, seed, videos, files[0].read_bytes()) for seed in range(clients)]
    start = time.monotonic()
    threads = [threading.Thread(target=worker.run, args=(start + seconds,)) for worker in workers]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append((time.monotonic() - start, process.memory_info().rss / 1e6))
        time.sleep(0.5)
    print(f"{'request':<18}{'number':>8}{'p50 ms':>9}{'p95 ms':>9}{'max ms':>9}")
    for name in sorted({name for worker in workers for name in worker.seconds}):
        times = 1000 * np.array([value for worker in workers for value in worker.seconds[name]])
        p50, p95 = np.percentile(times, [50, 95])
        print(f"{name:<18}{len(times):>8}{p50:>9.0f}{p95:>9.0f}{times.max():>9.0f}")
    failures = [failure for worker in workers for failure in worker.failures]
    warm = min(30, seconds / 4)
    after = next(megabytes for second, megabytes in memory if second >= warm)
    peak = max(megabytes for _, megabytes in memory)
    print(f"{len(failures)} failures, {sum(worker.busy for worker in workers)} answers 503")
    print(f"memory: {after:.0f} MB after {warm:.0f} s, {memory[-1][1]:.0f} MB at the end, {peak:.0f} MB at most")
    for failure in failures[:5]:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
