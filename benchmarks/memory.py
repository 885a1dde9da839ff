"""Peak memory of a process, and of a video with very many queries.

python benchmarks/memory.py --queries 10000 --minutes 10

prints a table with the model ``shapes``: after each tenth of the queries, the seconds so far and the peak.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

from sidelight.io.runtime import peak_memory


def peak_mib() -> float:
    """Return the largest memory that this process has used so far, in MiB."""
    return peak_memory() / 2**20


def write_film(path: Path, seconds: int) -> None:
    """Write a film of a grey square that moves: 96 x 96 pixels, 10 frames a second."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for number in range(10 * seconds):
            image = np.full((96, 96, 3), 90, np.uint8)
            image[30:60, number % 66 : number % 66 + 30] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def sentences(count: int) -> list[str]:
    """Return different sentences of 4 to 16 words."""
    from sidelight.shapes.language import ACTION_WORDS, COLOUR_WORDS

    words = [*COLOUR_WORDS, *ACTION_WORDS]
    return [
        " ".join(f"a {words[(number + 7 * part) % len(words)]} thing moves" for part in range(1 + number % 4))
        + f" {number}"
        for number in range(count)
    ]


def main() -> None:
    from sidelight import Grounder

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # the film and the numbers are not of the model's world
    grounder = Grounder.from_pretrained("shapes", device="cpu", cache=None)
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        write_film(film, round(60 * arguments.minutes))
        grounder.ground(film, "a red star spins")
        print(f"one query: peak {peak_mib():.0f} MiB", flush=True)
        queries, done, start = sentences(arguments.queries), 0, time.perf_counter()
        step = max(1, len(queries) // 10)

        def count(*_: object) -> None:
            nonlocal done
            done += 1
            if done % step == 0:
                print(f"{done:>8} {time.perf_counter() - start:>8.0f} s {peak_mib():>8.0f} MiB", flush=True)

        from sidelight.training import predict

        merge = predict.merge_windows
        predict.merge_windows = lambda *values: (count(), merge(*values))[1]  # called once for each query
        groundings = grounder.ground(film, queries)
    assert [grounding.query for grounding in groundings] == queries
    moments = sum(len(grounding) for grounding in groundings) / len(groundings)
    print(f"{len(queries)} queries, {moments:.0f} moments each: {time.perf_counter() - start:.0f} s")
    print(f"peak {peak_mib():.0f} MiB")


if __name__ == "__main__":
    main()
