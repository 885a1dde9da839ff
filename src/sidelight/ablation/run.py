"""Train what a table needs: features shared by all runs, each run in a folder of its own, interrupted ones resumed.

    OUT/features/SPLIT-BACKBONE-POOLING   a store for each pooling, of all levels that any table reads
    OUT/DIGEST-SEED/                      recipe.yaml, last/ (the weights that are scored), predictions.jsonl,
                                          result.json

A run with a result.json is finished and never trained again; a lock keeps two processes from
training the same one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidelight.ablation.variants import Ablation, Variant, chosen_levels, digest, overridden
from sidelight.files import write_text
from sidelight.recipe import Recipe, read_recipe

FORMAT = "sidelight.ablation-run/1"
ALL_LEVELS = 4
"""How many last layers a first extraction keeps: all that the embedded backbone has in both towers."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: a variant's recipe and a seed."""

    variants: tuple[str, ...]
    """The rows that it stands for."""
    recipe: Mapping[str, Any]
    """Resolved (``Recipe.to_dict``), with this seed; where its data lies is the base's."""
    folder: Path

    @property
    def seed(self) -> int:
        """Of weights, order and dropout."""
        return int(self.recipe["train"]["seed"])

    @property
    def finished(self) -> bool:
        """Whether its scores are there."""
        return (self.folder / "result.json").is_file()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that could not be finished, and why."""

    run: Run
    reason: str


def checked(values: Mapping[str, Any]) -> Recipe:
    """A recipe of plain values, as if read from a file.

    Raises:
        ValueError: if a field is unknown, of the wrong type or out of its range.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(json.dumps(values))  # JSON is YAML
        try:
            return read_recipe(path)
        except ValueError as error:
            raise ValueError(str(error).replace(f"recipe {path}: ", "")) from None


def resolve(base: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """The resolved recipe of a variant: every field, with the defaults of its side-tuner.

    Raises:
        ValueError: naming the variant, if it does not fit the base.
    """
    try:
        return checked(overridden(base, variant)).to_dict()
    except ValueError as error:
        raise ValueError(f"variant {variant.name!r}: {error}") from None


def plan(ablation: Ablation, recipe: str | Path, out: str | Path, seeds: Sequence[int]) -> list[Run]:
    """The runs of a table, each once, all variants of one seed before the next.

    Raises:
        ValueError: if the recipe is missing, or a variant does not fit it.
    """
    base = read_recipe(recipe).to_dict()
    named: dict[str, list[str]] = {}
    resolved: dict[str, dict[str, Any]] = {}
    for variant in ablation.variants:
        if variant.overrides is not None:
            values = resolve(base, variant)
            key = digest(values)
            named.setdefault(key, []).append(variant.name)
            resolved[key] = values
    found = []
    for seed in seeds:
        for key, values in resolved.items():
            seeded = {**values, "train": {**values["train"], "seed": seed}}
            found.append(Run(variants=tuple(named[key]), recipe=seeded, folder=Path(out) / f"{key}-{seed}"))
    return found


# features ----------------------------------------------------------------------------------------------------------


def store_folder(out: Path, part: str, recipe: Mapping[str, Any]) -> Path:
    """Where the features of a split lie that a recipe reads: at all levels, of which it chooses."""
    backbone = recipe["backbone"]
    return out / "features" / f"{part}-{backbone['name']}-{backbone['pooling']}"


def prepare(runs: Iterable[Run], out: str | Path, *, say: Callable[[str], None] = print) -> None:
    """Extract, into one store for each split and pooling, the features that these runs lack.

    Raises:
        ValueError: if annotations or videos are missing, or a store there is of another backbone's weights.
    """
    wanted: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        backbone = run.recipe["backbone"]
        wanted.setdefault((backbone["name"], backbone["pooling"]), []).append(run.recipe)
    for recipes in wanted.values():
        deepest = max(ALL_LEVELS, *(-min(chosen_levels(recipe)) for recipe in recipes))
        for part in ("train", "val"):
            _prepare_part(Path(out), part, recipes[0], deepest, say)


def _prepare_part(out: Path, part: str, recipe: Mapping[str, Any], levels: int, say: Callable[[str], None]) -> None:
    from sidelight.annotations import read_annotations
    from sidelight.backbones import load_backbone
    from sidelight.extract import extract, find_videos
    from sidelight.features import FeatureStore
    from sidelight.grounder import usable_device

    data = recipe["data"]
    for name in (part, f"{part}_videos"):
        if not data[name]:
            raise ValueError(f"the recipe of an ablation needs data.{name}; set it in the YAML")
    annotations = read_annotations(data[part])
    vids, queries = dict.fromkeys(a.vid for a in annotations), [a.query for a in annotations]
    folder = store_folder(out, part, recipe)
    made = load_backbone(recipe["backbone"]["name"], levels=levels, pooling=recipe["backbone"]["pooling"])
    there = FeatureStore.create(folder, made.recipe)
    missing = sum(not there.has_video(vid) for vid in vids)
    if not missing and not there.missing_queries(queries):
        return
    say(f"extracting {missing} videos into {folder}")
    files = find_videos(data[f"{part}_videos"], vids)
    _, failures = extract(files, queries, made.to(usable_device(None)), folder, progress=True)
    if failures:
        vid, reason = next(iter(failures.items()))
        raise ValueError(f"{len(failures)} videos could not be read; the first: {vid}: {reason}")


def located(run: Run, *, threads: int | None = None) -> dict[str, Any]:
    """The recipe of a run with the places of its features and of its results."""
    out = run.folder.parent
    data = {**run.recipe["data"], "train_videos": "", "val_videos": ""}
    for part in ("train", "val"):
        data[f"{part}_features"] = str(store_folder(out, part, run.recipe))
    train = {**run.recipe["train"], "out": str(run.folder)}
    if threads is not None:
        train["threads"] = threads
    return {**run.recipe, "data": data, "train": train}


# runs --------------------------------------------------------------------------------------------------------------


def data_of(recipe: Mapping[str, Any]) -> dict[str, str]:
    """What a located recipe's data is: digests of both annotations and of the feature recipe."""
    from sidelight.features import FeatureStore

    found = {}
    for part in ("train", "val"):
        found[part] = hashlib.sha256(Path(recipe["data"][part]).read_bytes()).hexdigest()[:16]
        store = FeatureStore(recipe["data"][f"{part}_features"], levels=chosen_levels(recipe))
        found[f"{part}_features"] = store.recipe.digest()
    return found


def read_result(run: Run, data: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The result of a finished run.

    Raises:
        ValueError: if it is damaged, or of other data than ``data``.
    """
    path = run.folder / "result.json"
    try:
        result: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete {run.folder} to train it again") from None
    if result.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT!r}, got {result.get('format')!r}; give another --out")
    if data is not None and result["data"] != data:
        odd = ", ".join(name for name in data if result["data"].get(name) != data[name])
        raise ValueError(f"{run.folder} was trained on other data ({odd} differ); give another --out")
    return result


def train_run(run: Run, *, threads: int | None = None, quiet: bool = False) -> dict[str, Any]:
    """Train, predict and score one run, going on where an earlier process stopped; returns its result.

    The weights after the last epoch are scored, not those of the best epoch: choosing by the queries that are
    scored would favour variants that vary more.

    Raises:
        ValueError: if the run does not fit its data, or diverged.
    """
    from sidelight.train import train

    values = located(run, threads=threads)
    data = data_of(values)
    run.folder.mkdir(parents=True, exist_ok=True)
    with _locked(run.folder):
        if run.finished:  # by another process, while this one waited
            return read_result(run, data)
        write_text(run.folder / "recipe.yaml", json.dumps(values, indent=2) + "\n")
        began, resumed = time.perf_counter(), (run.folder / "state.pt").exists()
        train(read_recipe(run.folder / "recipe.yaml"), resume=True, quiet=quiet)
        seconds = None if resumed else round(time.perf_counter() - began, 1)
        result = {
            "format": FORMAT,
            "variants": list(run.variants),
            "seed": run.seed,
            **_scored(run.folder, values),
            "seconds": seconds,
            "data": data,
            "recipe": values,
        }
        write_text(run.folder / "result.json", json.dumps(result, indent=2) + "\n")
        (run.folder / "state.pt").unlink(missing_ok=True)  # several times the size of the weights
    return result


def _scored(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    from sidelight.annotations import read_annotations, write_submissions
    from sidelight.checkpoint import Checkpoint
    from sidelight.dataset import GroundingDataset
    from sidelight.evaluate import evaluate_files
    from sidelight.features import FeatureStore
    from sidelight.grounder import usable_device
    from sidelight.predict import predict

    accelerator = recipe["train"]["accelerator"]
    checkpoint = Checkpoint.from_pretrained(folder / "last")
    checkpoint.to(usable_device(None if accelerator == "auto" else accelerator))
    store = FeatureStore(recipe["data"]["val_features"], levels=chosen_levels(recipe))
    checkpoint.features.require(store.recipe, what=f"the features in {store.folder}")
    dataset = GroundingDataset(read_annotations(recipe["data"]["val"]), store, targets=False)
    submissions = predict(checkpoint.model, dataset, checkpoint.decode, window_clips=checkpoint.window_clips)
    write_submissions(folder / "predictions.jsonl", submissions)
    brief = evaluate_files(folder / "predictions.jsonl", recipe["data"]["val"])["brief"]
    count = sum(p.numel() for p in checkpoint.model.parameters() if p.requires_grad)
    return {"brief": brief, "parameters": count}


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process works in the folder. The system frees the lock of a process that dies."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def execute(runs: Sequence[Run], *, jobs: int = 1, say: Callable[[str], None] = print) -> list[Failure]:
    """Train what is not finished; returns what failed. The other runs go on.

    Args:
        runs: with their features prepared.
        jobs: processes; each trains another run, with one thread if there are several.
        say: gets a line for each finished run.

    Raises:
        ValueError: for fewer than one job, or a finished run of other data.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be 1 or more, got {jobs}")
    for run in runs:
        if run.finished:
            read_result(run, data_of(located(run)))
    todo = [run for run in runs if not run.finished]
    if not todo:
        return []
    say(f"{len(todo)} of {len(runs)} runs to train, {min(jobs, len(todo))} at once")
    failures, began = [], time.perf_counter()
    for done, (run, result) in enumerate(_in_turn(todo) if jobs == 1 else _at_once(todo, jobs), 1):
        name = f"{done}/{len(todo)} {' = '.join(run.variants)}, seed {run.seed} ({run.folder.name})"
        if isinstance(result, str):
            failures.append(Failure(run=run, reason=result))
            say(f"{name}: failed: {result}")
            continue
        left = (time.perf_counter() - began) / done * (len(todo) - done) / 60
        score = result["brief"].get("MR-full-mAP")
        took = "resumed" if result["seconds"] is None else f"{result['seconds']:.0f} s"
        say(f"{name}: MR mAP {score:.2f}, {took}; about {left:.0f} min left")
    return failures


def _in_turn(runs: Sequence[Run]) -> Iterator[tuple[Run, dict[str, Any] | str]]:
    for run in runs:
        try:
            yield run, train_run(run)
        except ValueError as error:
            yield run, str(error)


def _at_once(runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, dict[str, Any] | str]]:
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    # Spawned: a forked child of a process in which PyTorch has run threads may hang.
    with ProcessPoolExecutor(min(jobs, len(runs)), mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(train_run, run, threads=1, quiet=True): run for run in runs}
        try:
            for future in as_completed(waiting):
                try:
                    yield waiting[future], future.result()
                except ValueError as error:
                    yield waiting[future], str(error)
        finally:
            pool.shutdown(cancel_futures=True)
