"""Train what a table needs: features shared by all runs, each run in a folder of its own, interrupted ones resumed.

    OUT/features/SPLIT-BACKBONE-POOLING   a store for each pooling, of all levels that any table reads
    OUT/DIGEST-SEED/                      recipe.yaml, result.json; last/ (the weights that were scored) where the
                                          table "offsets" reads them; everything else only if it is to be kept

A run with a result.json is finished and never trained again; a lock keeps two processes from training the same one.
That file alone is enough for a table: it holds what each query adds to the metrics that are tested. So it can be
carried to another machine, where there are neither data nor features nor weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidelight.io.files import write_text
from sidelight.training.recipe import BackboneConfig, Recipe, read_recipe
from studies.ablation.variants import ABLATIONS, TESTED, Ablation, Variant, chosen_levels, digest, overridden

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

    from sidelight.metrics.evaluate import QueryScores

FORMAT = "sidelight.ablation-run/2"
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
    for_offsets: bool = False
    """Whether the table "offsets" reads its weights, so that they are kept."""

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
        ValueError: if the recipe is missing, is of other data than the tables' metrics know, or a variant does not
            fit it.
    """
    base = read_recipe(recipe).to_dict()
    _check_form(base, recipe)
    # The base is resolved, and so is a copy with another attention: no need to read it again.
    offsets = [v for v in ABLATIONS["offsets"].variants if "attention" in base["model"]]
    for_offsets = {digest(overridden(base, variant)) for variant in offsets}
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
            folder = Path(out) / f"{key}-{seed}"
            found.append(Run(variants=tuple(named[key]), recipe=seeded, folder=folder, for_offsets=key in for_offsets))
    return found


def _check_form(base: Mapping[str, Any], recipe: str | Path) -> None:
    """Other benchmarks have other metrics than the tables' columns."""
    data = base["data"]
    odd = [name for name in ("benchmark", "domain") if data[name]]
    if data["binding"] not in ("plain", "r2-tuning"):
        odd.append("binding")
    if odd:
        raise ValueError(
            f"python -m studies.ablation runs on annotations in the QVHighlights form, but recipe {recipe} sets "
            f"data.{odd[0]}={data[odd[0]]}; leave that out"
        )


# features ----------------------------------------------------------------------------------------------------------


def store_folder(out: Path, part: str, recipe: Mapping[str, Any]) -> Path:
    """Where the features of a split lie that a recipe reads: at all levels, of which it chooses."""
    backbone = recipe["backbone"]
    return out / "features" / f"{part}-{backbone['name']}-{backbone['pooling']}"


def prepare(runs: Iterable[Run], out: str | Path, *, say: Callable[[str], None] = print) -> None:
    """Extract, into one store for each split and pooling, the features that these runs lack.

    Give it the runs that are to be trained: a finished one needs no features.

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
    from sidelight.data.annotations import read_annotations
    from sidelight.features.open import FeatureSource, open_features_for
    from sidelight.io.runtime import usable_device

    data = recipe["data"]
    for name in (part, f"{part}_videos"):
        if not data[name]:
            raise ValueError(f"the recipe of an ablation needs data.{name}; set it in the YAML")
    annotations = read_annotations(data[part])
    config = BackboneConfig(**{**recipe["backbone"], "levels": levels})
    folder = store_folder(out, part, recipe)
    source = FeatureSource(folder=folder, videos=data[f"{part}_videos"], backbone=config.name, **config.options())
    if source.lacks_features(annotations):
        say(f"extracting features into {folder}")
    # With the backbone loaded, a complete store of other weights is refused too.
    open_features_for(annotations, source, backbone=source.load_backbone(), device=usable_device(None), progress=True)


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


def data_of(recipe: Mapping[str, Any], *, if_there: bool = False) -> dict[str, str]:
    """What a located recipe's data is: digests of both annotations and of the feature spec.

    Args:
        recipe: of :func:`located`.
        if_there: leave out what is not on this machine, instead of raising an error.
    """
    from sidelight.features.store import FeatureStore

    found = {}
    for part in ("train", "val"):
        annotations, features = Path(recipe["data"][part]), Path(recipe["data"][f"{part}_features"])
        if not if_there or annotations.is_file():
            found[part] = hashlib.sha256(annotations.read_bytes()).hexdigest()[:16]
        if not if_there or (features / "manifest.json").is_file():
            store = FeatureStore(features, levels=chosen_levels(recipe))
            found[f"{part}_features"] = store.spec.digest()
    return found


def read_result(run: Run, data: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The result of a finished run; only what ``data`` names is compared.

    Raises:
        ValueError: if it is damaged, or of other data than ``data``.
    """
    path = run.folder / "result.json"
    try:
        result: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete {run.folder} to train it again") from None
    got = result.get("format") if isinstance(result, dict) else None
    if not isinstance(result, dict) or got != FORMAT:
        raise ValueError(
            f"{path}: expected format {FORMAT!r}, got {got!r}; give another --out, or delete {run.folder} to train "
            "it again"
        )
    if odd := ", ".join(name for name, value in (data or {}).items() if result["data"].get(name) != value):
        raise ValueError(f"{run.folder} was trained on other data ({odd} differ); give another --out")
    return result


def train_run(run: Run, *, keep: bool = False, threads: int | None = None, quiet: bool = False) -> dict[str, Any]:
    """Train, predict and score one run, going on where an earlier process stopped; returns its result.

    The weights after the last epoch are scored, not those of the best epoch: choosing by the queries that are
    scored would favour variants that vary more.

    Args:
        run: with its features prepared.
        keep: leave weights, predictions and logs in its folder; else only what tables read.
        threads: of the CPU; the recipe's unless given.
        quiet: print nothing.

    Raises:
        ValueError: if the run does not fit its data, or diverged.
    """
    from sidelight.training.loop import train

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
        write_text(run.folder / "result.json", _lines(result))
        (run.folder / "state.pt").unlink(missing_ok=True)  # several times the size of the weights, and of no more use
        if not keep:
            _tidy(run)
    return result


def _lines(result: Mapping[str, Any]) -> str:
    """JSON with a line for each field: short, and what differs between two results is seen."""
    fields = (
        f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':') if name == 'each' else None, allow_nan=False)}"
        for name, value in result.items()
    )
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _tidy(run: Run) -> None:
    """Remove what no table reads. The run is finished by now, so that nothing more is lost if this is interrupted."""
    kept = {"result.json", "recipe.yaml", *(["last"] if run.for_offsets else [])}
    for path in run.folder.iterdir():
        if path.name in kept:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _scored(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    from sidelight.data.annotations import read_annotations, write_submissions
    from sidelight.features.store import FeatureStore
    from sidelight.io.runtime import usable_device
    from sidelight.metrics.evaluate import evaluate_files, query_scores
    from sidelight.training.checkpoint import Checkpoint
    from sidelight.training.dataset import GroundingDataset
    from sidelight.training.predict import predict

    accelerator = recipe["train"]["accelerator"]
    checkpoint = Checkpoint.from_pretrained(folder / "last")
    checkpoint.to(usable_device(None if accelerator == "auto" else accelerator))
    store = FeatureStore(recipe["data"]["val_features"], levels=chosen_levels(recipe))
    checkpoint.features.require(store.spec, what=f"the features in {store.folder}")
    dataset = GroundingDataset(read_annotations(recipe["data"]["val"]), store, targets=False)
    submissions = predict(checkpoint.model, dataset, checkpoint.decode, window_clips=checkpoint.window_clips)
    write_submissions(folder / "predictions.jsonl", submissions)
    brief = evaluate_files(folder / "predictions.jsonl", recipe["data"]["val"])["brief"]
    count = sum(p.numel() for p in checkpoint.model.parameters() if p.requires_grad)
    each = _each(query_scores(folder / "predictions.jsonl", recipe["data"]["val"]))
    return {"brief": brief, "each": each, "parameters": count}


def _each(scored: QueryScores) -> dict[str, Any]:
    """What tests need of each query, small: shares to five decimals, the video as a place in a list of videos."""
    videos = list(dict.fromkeys(scored.videos))
    place = {vid: i for i, vid in enumerate(videos)}
    return {
        "shares": {
            metric: [None if math.isnan(value) else round(value, 5) for value in scored.each[metric].tolist()]
            for metric in TESTED
            if metric in scored.each
        },
        "videos": videos,
        "video_of_query": [place[vid] for vid in scored.videos],
    }


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process works in the folder. The system frees the lock of a process that dies."""
    try:
        import fcntl
    except ImportError:
        # Windows has no such locks. The processes of one command never share a run; only two commands that are at
        # work in one folder would.
        there_are_locks = False
    else:
        there_are_locks = True
    if not there_are_locks:
        yield
        return
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def execute(
    runs: Sequence[Run], *, jobs: int = 1, keep: bool = False, say: Callable[[str], None] = print
) -> list[Failure]:
    """Train what is not finished; returns what failed. The other runs go on.

    Args:
        runs: those that are not finished with their features prepared.
        jobs: processes; each trains another run, with one thread if there are several.
        keep: leave weights, predictions and logs of what is trained; see :func:`train_run`.
        say: gets a line for each finished run.

    Raises:
        ValueError: for fewer than one job, or a finished run of other data than there is on this machine.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be 1 or more, got {jobs}")
    for run in runs:
        if run.finished:
            read_result(run, data_of(located(run), if_there=True))
    todo = [run for run in runs if not run.finished]
    if not todo:
        return []
    say(f"{len(todo)} of {len(runs)} runs to train, {min(jobs, len(todo))} at once")
    failures, began = [], time.perf_counter()
    for done, (run, result) in enumerate(_in_turn(todo, keep) if jobs == 1 else _at_once(todo, jobs, keep), 1):
        name = f"{done}/{len(todo)} {' = '.join(run.variants)}, seed {run.seed} ({run.folder.name})"
        if isinstance(result, str):
            failures.append(Failure(run=run, reason=result))
            say(f"{name}: failed: {result}")
            continue
        left = (time.perf_counter() - began) / done * (len(todo) - done) / 60
        took = "resumed" if result["seconds"] is None else f"{result['seconds']:.0f} s"
        say(f"{name}: {_score(result['brief'])}, {took}; about {left:.0f} min left")
    return failures


def _score(brief: Mapping[str, float]) -> str:
    """The first of a run's main metrics: annotations may have highlights and no moments."""
    for title, metric in (("MR mAP", "MR-full-mAP"), ("HL mAP", "HL-min-VeryGood-mAP")):
        if metric in brief:
            return f"{title} {brief[metric]:.2f}"
    return "scored"


def _in_turn(runs: Sequence[Run], keep: bool) -> Iterator[tuple[Run, dict[str, Any] | str]]:
    for run in runs:
        yield run, _attempt(run, keep=keep)


def _attempt(run: Run, **options: Any) -> dict[str, Any] | str:
    """The result of a run, or why there is none, in one sentence.

    What one run alone may meet is caught: data that does not fit, no memory, a full disk. The reason is a text
    before it leaves the process, because not every exception can be sent to another one.
    """
    try:
        return train_run(run, **options)
    except ValueError as error:
        return " ".join(str(error).split())
    except (MemoryError, OSError, RuntimeError) as error:
        said = str(error).strip().partition("\n")[0]  # PyTorch adds traces and advice in further lines
        if isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said:
            return "out of memory; run fewer at once (--jobs), or lower train.batch_size"
        return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _at_once(runs: Sequence[Run], jobs: int, keep: bool) -> Iterator[tuple[Run, dict[str, Any] | str]]:
    from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    # A pool for each process. When a process of a larger pool dies, all its runs fail, and nobody knows whose fault
    # it was. Spawned: a forked child of a process in which PyTorch has run threads may hang.
    context = get_context("spawn")
    waiting, pools, idle = deque(runs), list[ProcessPoolExecutor](), list[ProcessPoolExecutor]()
    working: dict[Future[dict[str, Any] | str], tuple[Run, ProcessPoolExecutor]] = {}
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                if not idle:
                    pools.append(ProcessPoolExecutor(1, mp_context=context))
                    idle.append(pools[-1])
                pool = idle.pop()
                run = waiting.popleft()
                working[pool.submit(_attempt, run, keep=keep, threads=1, quiet=True)] = run, pool
            finished, _ = wait(working, return_when=FIRST_COMPLETED)
            for future in finished:
                run, pool = working.pop(future)
                try:
                    found = future.result()
                except BrokenProcessPool:  # killed, most often because memory ran out
                    found = "the process that trained it died, perhaps for want of memory; run it again to go on"
                if isinstance(found, str):  # what a failure leaves in a process, as on an accelerator, is not reused
                    pool.shutdown()
                else:
                    idle.append(pool)
                yield run, found
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)
