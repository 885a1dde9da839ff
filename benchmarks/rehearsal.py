"""Rehearse the first use of each model at real size: download, load, seconds per minute of video, peak memory.

    python benchmarks/rehearsal.py --videos FOLDER     # the table; needs 8 GB of disk, and half an hour on 2 cores
    python benchmarks/rehearsal.py --checks            # broken, doubled and changed downloads, with the same files
    python benchmarks/rehearsal.py --serve             # only the hub, to try every command by hand

The weights have the published names and sizes, and random numbers inside; so have the vocabularies. They are written
once, into ``--out``. A hub on this machine serves them by the protocol of the Hugging Face hub. Each number is of the
``sidelight`` command in a fresh process with an empty cache, as a newcomer runs it, except that
``SIDELIGHT_ANY_DIGEST`` switches the comparison with the known digests off. Answers mean nothing.

Columns:

- download: what the hub sent, and the seconds in which it sent it, from this machine to itself;
- first: from the command to the answer about a video of 2 s, with the download; for UniVTG with its conversion;
- again: the same command once more: Python, packages, weights, the sentence, and features from the cache;
- videos, film: seconds per minute of video, on the files of a folder and on a film of 720p H.264, without the seconds
  of "again"; a model that is too slow for the whole film answers about its first seconds;
- peak: largest resident memory of one process.

Each is in wall-clock seconds and, after the slash, CPU seconds of all threads and processes. Wall-clock seconds also
depend on other programs.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

if TYPE_CHECKING:
    from tests.hub import Hub

QUERY = "a person opens the door"
CLIP, R2_TUNING = "openai/clip-vit-base-patch32", "yeliudev/R2-Tuning"
SIGLIP2, VIDEOPRISM = "google/siglip2-base-patch32-256", "google/videoprism-lvt-base-f16r288"
LOOP_SECONDS = 20
"""Seconds of the film that are drawn; then they repeat, because drawing is slow."""
FIRST_SECONDS = 2


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """A model of the rehearsal."""

    name: str
    film_seconds: float | None = None
    """Seconds of the film that it reads, and it reads no other video; all unless given."""
    converts: str = ""
    """File in ``--out`` that a person brings, and the command converts."""


MODELS = (
    Rehearsed(name="r2-tuning/qvhighlights"),
    Rehearsed(name="univtg/omni", converts="model_best.ckpt"),
    Rehearsed(name="zero-shot/clip"),
    Rehearsed(name="zero-shot/siglip2"),
    Rehearsed(name="zero-shot/videoprism", film_seconds=8),  # 16 frames a clip at 288 pixels: 20 CPU seconds a clip
    Rehearsed(name="shapes"),
)


# weights of published sizes, with random numbers ----------------------------------------------------------------------


def merged_tokens(
    symbols: Sequence[str], count: int, *, ends: Sequence[str] = ()
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return new tokens, each an earlier token and a symbol, and these pairs, as a byte-pair encoding has them.

    Args:
        symbols: the tokens to begin with.
        count: number of new tokens.
        ends: symbols after which no other stands.
    """
    generator = random.Random(0)
    all_symbols = [*symbols, *ends]
    begins, known = list(symbols), {*symbols, *ends}
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        left, right = generator.choice(begins), generator.choice(all_symbols)
        if left + right not in known:
            known.add(left + right)
            pairs.append((left, right))
            if right not in ends:
                begins.append(left + right)
    return [left + right for left, right in pairs], pairs


def write_clip(folder: Path) -> None:
    """Write CLIP ViT-B/32 with the files that its repository has: 151 million parameters, 49,408 tokens."""
    import transformers

    from tests.backbones.test_clip import byte_symbols

    symbols = byte_symbols()
    ends = [f"{symbol}</w>" for symbol in symbols]
    words, pairs = merged_tokens(symbols, 49408 - 2 - 512, ends=ends)
    tokens = [*symbols, *ends, *words, "<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    merges = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    config = transformers.CLIPConfig(text_config={"bos_token_id": len(ids) - 2, "eos_token_id": len(ids) - 1})
    config.save_pretrained(folder)
    torch.save(transformers.CLIPModel(config).state_dict(), folder / "pytorch_model.bin")


def write_siglip2(folder: Path) -> None:
    """Write SigLIP 2 B/32-256: 376 million parameters, 256,000 tokens in the form of Gemma's."""
    from backbone_parity import write_siglip2 as write_model
    from tokenizers import Tokenizer, models, normalizers

    from tests.tiny_models import LETTERS

    write_model("b32-256", folder)
    symbols = ["\u2581", *LETTERS]
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    words, pairs = merged_tokens(symbols, 256000 - len(special) - len(symbols))
    ids = {token: i for i, token in enumerate([*special, *symbols, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=pairs, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.save(str(folder / "tokenizer.json"))


def write_videoprism(folder: Path) -> None:
    """Write VideoPrism-LvT-B: 247 million parameters, 16 frames a clip, 32,000 pieces of words."""
    from backbone_parity import write_videoprism as write_model
    from tokenizers import Tokenizer, models, pre_tokenizers

    from tests.tiny_models import LETTERS

    write_model("lvt-base", folder, frames=16)
    special, symbols = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], ["\u2581", *LETTERS]
    words, _ = merged_tokens(symbols, 32000 - len(special) - len(symbols))
    pieces = [*special, *((piece, -3.0 - i / 5000) for i, piece in enumerate([*symbols, *words]))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.save(str(folder / "tokenizer.json"))


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}


def write_r2_tuning(folder: Path) -> None:
    """Write R2-Tuning's checkpoint of QVHighlights under its published name."""
    from sidelight.training.convert import published_shapes
    from sidelight.training.published import R2_TUNING as RUNS

    run = RUNS["qvhighlights"]
    tensors = random_tensors(published_shapes(run.model))
    tensors["coef"] = torch.ones_like(tensors["coef"])  # lengths of moments are multiples of it
    (folder / run.file).parent.mkdir()
    torch.save({"state_dict": tensors}, folder / run.file)


def write_univtg(file: Path) -> None:
    """Write a checkpoint of UniVTG with the sizes of "omni", in the form that its code saves."""
    from sidelight.models.univtg import UniVTGConfig, published_shapes
    from sidelight.training.convert_univtg import OMNI_WIDTHS

    config = UniVTGConfig(video_dim=OMNI_WIDTHS[0], text_dim=OMNI_WIDTHS[1])
    tensors = random_tensors(published_shapes(config))
    torch.save({"model": {f"module.{name}": tensor for name, tensor in tensors.items()}, "epoch": 0}, file)


REPOSITORIES: dict[str, Callable[[Path], None]] = {
    CLIP: write_clip,
    SIGLIP2: write_siglip2,
    VIDEOPRISM: write_videoprism,
    R2_TUNING: write_r2_tuning,
}
"""What the hub serves: OWNER/NAME -> the function that writes its files into a new folder."""


def write_files(out: Path) -> None:
    """Write the repositories of the hub and the file of UniVTG, unless they exist."""
    torch.manual_seed(0)
    for name, write in REPOSITORIES.items():
        folder, part = out / "hub" / name, out / "part"
        if not folder.is_dir():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            print(f"writing {name} with random weights", file=sys.stderr, flush=True)
            write(part)
            part.rename(folder)
    for model in MODELS:
        if model.converts and not (out / model.converts).exists():
            write_univtg(out / model.converts)


def film_of(out: Path, seconds: float) -> Path:
    """Return a film of 720p H.264 of this length, drawn if it is not here."""
    from extraction import make_video

    path = out / f"film-{seconds:g}.mp4"
    if not path.exists():
        drawn = min(seconds, LOOP_SECONDS)
        make_video(path, seconds=drawn, times=max(1, round(seconds / drawn)))
    return path


# the hub and the command ----------------------------------------------------------------------------------------------


@contextmanager
def local_hub(out: Path) -> Iterator[Hub]:
    """Serve every repository below ``out/hub``."""
    from tests.hub import Hub, serving

    repositories: dict[str, dict[str, bytes | Path]] = {}
    for folder in (out / "hub").glob("*/*"):
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        repositories["/".join(folder.parts[-2:])] = dict(files)
    hub = Hub("", others=repositories)
    for content in itertools.chain.from_iterable(files.values() for files in repositories.values()):
        hub.digest(content)  # not during a download
    with serving(hub):
        yield hub


def settings(hub: Hub, cache: Path) -> dict[str, str]:
    """Return the variables by which sidelight, and the hub's client, use this hub and an empty cache."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(cache / "hf"),
        "SIDELIGHT_CACHE": str(cache),
        "SIDELIGHT_ANY_DIGEST": "1",
    }


@dataclass(frozen=True)
class Run:
    """What a command cost and printed."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    code: int
    printed: str


def command(arguments: Sequence[str | Path]) -> list[str]:
    return [sys.executable, "-m", "sidelight", *map(str, arguments)]


def environment(variables: dict[str, str]) -> dict[str, str]:
    """Return the variables of this process without those that keep it from the hub, and these ones."""
    return {k: v for k, v in os.environ.items() if k not in ("SIDELIGHT_OFFLINE", "HF_HUB_OFFLINE")} | variables


def sidelight(arguments: Sequence[str | Path], variables: dict[str, str], *, may_fail: bool = False) -> Run:
    """Run the command in a fresh process.

    Raises:
        SystemExit: if it fails.
    """
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command(arguments), stdout=output, stderr=output, env=environment(variables), cwd=ROOT
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        printed = output.read()
    if process.returncode and not may_fail:
        raise SystemExit(f"{' '.join(command(arguments)[2:])} failed with {process.returncode}:\n{printed}")
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    run = Run(seconds, usage.ru_utime + usage.ru_stime, peak, process.returncode, printed)
    about = " ".join(map(str, arguments[:2])) + f": {seconds:.1f} s, {run.cpu_seconds:.1f} CPU s, {peak:.0f} MiB"
    print(about, file=sys.stderr, flush=True)
    return run


# the table ------------------------------------------------------------------------------------------------------------


def ground(video: Path, model: Rehearsed, variables: dict[str, str]) -> Run:
    """Run `sidelight ground`; check that the model answered.

    Raises:
        SystemExit: if another model answered, or none.
    """
    answer = Path(variables["SIDELIGHT_CACHE"]) / "answer.json"
    run = sidelight(["ground", video, QUERY, "--model", model.name, "--json", answer], variables)
    (grounding,) = json.loads(answer.read_text())
    if grounding["model"] != model.name or not grounding["saliency"]:
        raise SystemExit(f"{model.name} gave no answer, or another model answered: {grounding['model']}")
    return run


def predict(videos: Path, model: Rehearsed, variables: dict[str, str]) -> tuple[Run, float]:
    """Run `sidelight predict` on the files of a folder; return the minutes of video too."""
    from sidelight.video.read import probe

    folder = Path(variables["SIDELIGHT_CACHE"])
    paths = [path for path in sorted(videos.iterdir()) if path.is_file() and not path.name.startswith(".")]
    durations = {path.stem: probe(path).duration for path in paths}
    rows = [
        {"qid": i, "query": QUERY, "vid": vid, "duration": seconds}
        for i, (vid, seconds) in enumerate(durations.items())
    ]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--annotations", folder / "queries.jsonl", "--out", folder / "answers.jsonl"]
    run = sidelight(["predict", "--model", model.name, "--videos", videos, *files], variables)
    return run, sum(durations.values()) / 60


def rehearse(model: Rehearsed, out: Path, *, hub: Hub, film: Path, minutes: float, videos: Path | None) -> str:
    """Return the row of a model: an empty cache, then a first answer, then all others."""
    first_video = film_of(out, FIRST_SECONDS)
    if model.film_seconds:
        film, minutes = film_of(out, model.film_seconds), model.film_seconds / 60
    with tempfile.TemporaryDirectory(dir=out) as cache:
        variables = settings(hub, Path(cache))
        hub.served, hub.spans = 0, []
        first = [sidelight(["convert", "univtg", out / model.converts], variables)] if model.converts else []
        first.append(ground(first_video, model, variables))
        downloaded, seconds = hub.served, sum(end - start for start, end in hub.spans)
        again = ground(first_video, model, variables)
        runs = [*first, again]

        def per_minute(run: Run, length: float) -> str:
            runs.append(run)
            wall, cpu = run.seconds - again.seconds, run.cpu_seconds - again.cpu_seconds
            return f"{wall / length:.1f} / {cpu / length:.1f}"

        on_film = per_minute(ground(film, model, variables), minutes)
        on_videos = per_minute(*predict(videos, model, variables)) if videos and not model.film_seconds else "-"
    if hub.served != downloaded:
        raise SystemExit(f"{model.name} downloaded {hub.served - downloaded} bytes again")
    cells = [
        model.name + (f" ({model.film_seconds:g} s)" if model.film_seconds else ""),
        f"{downloaded / 1e6:.0f}" if downloaded else "-",
        f"{seconds:.1f}" if downloaded else "-",
        f"{sum(run.seconds for run in first):.1f} / {sum(run.cpu_seconds for run in first):.1f}",
        f"{again.seconds:.1f} / {again.cpu_seconds:.1f}",
        on_videos,
        on_film,
        f"{max(run.peak_mib for run in runs):.0f}",
    ]
    return row_of(cells)


HEADS = ("model", "MB", "s", "first", "again", "videos, per min", "film, per min", "peak MiB")
WIDTHS = (28, 6, 7, 14, 14, 17, 17, 10)


def row_of(cells: Sequence[str]) -> str:
    """Return cells as a line of the table."""
    return "".join(
        cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, WIDTHS, strict=True))
    )


# downloads that go wrong ----------------------------------------------------------------------------------------------


def check_downloads(out: Path, hub: Hub, *, name: str = "r2-tuning/qvhighlights") -> None:
    """Print what `sidelight models pull` says of a known digest, a broken, a doubled and a changed download.

    Raises:
        SystemExit: if one of them ends in another way than it should.
    """
    pull = ["models", "pull", name]
    total = sum(size_of_file(content) for files in used_files(hub, name) for content in files.values())
    with tempfile.TemporaryDirectory(dir=out) as cache:
        variables = settings(hub, Path(cache) / "a")
        known = {key: value for key, value in variables.items() if key != "SIDELIGHT_ANY_DIGEST"}
        show("random weights against the known digest", sidelight(pull, known, may_fail=True), code=2)
        hub.served, hub.cut_after = 0, total // 3
        show("the connection breaks off after a third", sidelight(pull, variables, may_fail=True), code=2)
        before, hub.cut_after = hub.served, None
        show("the same command again", sidelight(pull, variables), code=0)
        print(f"sent before {before:,} bytes, now {hub.served - before:,}; the files have {total:,}\n")
        require(hub.served == total, "bytes were sent twice")
        hub.served, variables = 0, settings(hub, Path(cache) / "b")
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        two = [subprocess.Popen(command(pull), env=environment(variables), cwd=ROOT, **pipes) for _ in range(2)]
        for number, (process, printed) in enumerate([(p, p.communicate()[0]) for p in two], start=1):
            show(f"process {number} of two at once", Run(0, 0, 0, process.returncode, printed), code=0)
        print(f"sent {hub.served:,} bytes; the files have {total:,}\n")
        require(hub.served == total, "bytes were sent twice")
        largest = max((Path(cache) / "b").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
        with open(largest, "r+b") as file:
            file.seek(-1, io.SEEK_END)
            byte = file.read(1)[0]
            file.seek(-1, io.SEEK_END)
            file.write(bytes([byte ^ 1]))
        show("one bit of the weights changed on this machine", sidelight(pull, variables, may_fail=True), code=2)
        sidelight(["models", "remove", name], variables)
        files = next(files for files in used_files(hub, name) if "config.json" in files)
        path = files["config.json"]
        files["config.json"] = path.read_bytes() + b"\n" if isinstance(path, Path) else path + b"\n"
        show("a file changed on the hub", sidelight(pull, variables, may_fail=True), code=2)
        files["config.json"] = path


def used_files(hub: Hub, name: str) -> list[dict[str, bytes | Path]]:
    """Return the files on the hub of each repository that a model needs."""
    from sidelight.training.named import NAMED_MODELS

    return [hub.others[download.repository] for download in NAMED_MODELS[name].downloads]


def size_of_file(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def show(title: str, run: Run, *, code: int) -> None:
    """Print what a command printed; SystemExit if its exit code is another."""
    print(f"== {title} (exit code {run.code})\n{run.printed.strip()}\n", flush=True)
    require(run.code == code, f"the exit code must be {code}")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(message)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names; all of the table unless given")
    parser.add_argument("--out", type=Path, default=Path("data/rehearsal"), help="folder for weights and films")
    parser.add_argument("--videos", type=Path, help="folder of videos")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the film")
    parser.add_argument("--checks", action="store_true")
    parser.add_argument("--serve", action="store_true")
    args = parser.parse_args(arguments)
    if unknown := set(args.models) - {model.name for model in MODELS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose of {', '.join(model.name for model in MODELS)}")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    write_files(out)
    with local_hub(out) as hub:
        if args.serve:
            print("\n".join(f"export {k}={v}" for k, v in settings(hub, out / "cache").items()), flush=True)
            while True:
                time.sleep(3600)
        if args.checks:
            check_downloads(out, hub)
            return
        film = film_of(out, 60 * args.minutes)
        print(f"{os.cpu_count()} cores, film of {args.minutes:g} minutes, random weights; wall / CPU seconds")
        print(row_of(HEADS), flush=True)
        for model in MODELS:
            if not args.models or model.name in args.models:
                options: dict[str, Any] = {"film": film, "minutes": args.minutes, "videos": args.videos}
                print(rehearse(model, out, hub=hub, **options), flush=True)


if __name__ == "__main__":
    main()
