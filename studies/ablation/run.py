"""Train the runs of a table. All runs share features; each run has its own folder; interrupted runs are resumed.

    OUT/features/SPLIT-BACKBONE-POOLING   a feature store for each pooling, with all levels that any table reads
    OUT/frames/                           decoded frames, for runs that train from pixels
    OUT/DIGEST-SEED/                      recipe.yaml, result.json; last/ (the scored weights) if the table "offsets"
                                          reads them; everything else only with ``keep``

A run with a result.json is finished and never trained again. A lock prevents two processes from training the same run.
result.json alone is enough to make a table, because it has the score of each query in each tested metric. It can be
copied to another machine without data, features or weights.
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
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidelight.core.messages import count_of
from sidelight.io.files import write_text
from sidelight.io.processes import end_with_parent
from sidelight.models.registry import side_tuner
from sidelight.training.recipe import BackboneConfig, Recipe, read_recipe
from studies.ablation.variants import ABLATIONS, TESTED, Ablation, Variant, chosen_levels, digest, overridden

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

    from torch import nn

    from sidelight.data.annotations import Submission
    from sidelight.metrics.evaluate import QueryScores

FORMAT = "sidelight.ablation-run/2"
ALL_LEVELS = 4
"""Number of last layers that features keep: all layers that the embedded backbone has in both towers."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: the recipe of a variant, and a seed."""

    variants: tuple[str, ...]
    """Names of the variants that share this run."""
    recipe: Mapping[str, Any]
    """Resolved recipe (``Recipe.to_dict``) with this seed and the data paths of the base."""
    folder: Path
    for_offsets: bool = False
    """Whether the weights are kept, because the table "offsets" reads them."""

    @property
    def seed(self) -> int:
        """Return the seed of weights, order and dropout."""
        return int(self.recipe["train"]["seed"])

    @property
    def from_pixels(self) -> bool:
        """Check whether the run reads frames instead of features."""
        return side_tuner(self.recipe["side_tuner"]).reads == "frames"

    @property
    def finished(self) -> bool:
        """Check whether the run has its scores."""
        return (self.folder / "result.json").is_file()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that failed, and the reason in one sentence."""

    run: Run
    reason: str


def checked(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe of plain values, checked as if read from a file.

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
    """Return the resolved recipe of a variant: every field, with the defaults of its side-tuner.

    Raises:
        ValueError: if the variant does not fit the base; names the variant.
    """
    try:
        return checked(overridden(base, variant)).to_dict()
    except ValueError as error:
        raise ValueError(f"variant {variant.name!r}: {error}") from None


def plan(
    ablation: Ablation, recipe: str | Path, out: str | Path, seeds: Sequence[int], *, world: str | None = None
) -> list[Run]:
    """Return the runs of a table without repetition, all variants of one seed before the next seed.

    Args:
        ablation: the table.
        recipe: the base recipe.
        out: folder of features and runs.
        seeds: one run of each variant for each.
        world: folder with train/ and val/ of ``sidelight shapes``, instead of the data that the recipe names.

    Raises:
        ValueError: if the recipe is missing, its benchmark has other metrics than the tables, or a variant does not
            fit it.
    """
    base = read_recipe(recipe).to_dict()
    _check_form(base, recipe)
    if world is not None:
        for part in ("train", "val"):
            base["data"][part] = str(Path(world, part, "annotations.jsonl"))
            base["data"][f"{part}_videos"] = str(Path(world, part, "videos"))
    # The base is resolved, and a copy with another attention is too: it need not be read again.
    offsets = [v for v in ABLATIONS["offsets"].variants if "attention" in base["model"]]
    for_offsets = {digest(overridden(base, variant)) for variant in offsets}
    names: dict[str, list[str]] = {}
    resolved: dict[str, dict[str, Any]] = {}
    for variant in ablation.variants:
        if variant.overrides is not None:
            values = resolve(base, variant)
            key = digest(values)
            names.setdefault(key, []).append(variant.name)
            resolved[key] = values
    runs = []
    for seed in seeds:
        for key, values in resolved.items():
            seeded = {**values, "train": {**values["train"], "seed": seed}}
            folder = Path(out) / f"{key}-{seed}"
            runs.append(Run(variants=tuple(names[key]), recipe=seeded, folder=folder, for_offsets=key in for_offsets))
    return runs


def _check_form(base: Mapping[str, Any], recipe: str | Path) -> None:
    """Refuse other benchmarks, whose metrics are not the columns of the tables."""
    data = base["data"]
    fields = [name for name in ("benchmark", "domain") if data[name]]
    if data["binding"] not in ("plain", "r2-tuning"):
        fields.append("binding")
    if fields:
        raise ValueError(
            f"python -m studies.ablation runs on annotations in the QVHighlights form, but recipe {recipe} sets "
            f"data.{fields[0]}={data[fields[0]]}; leave that out"
        )


# features ----------------------------------------------------------------------------------------------------------


def store_folder(out: Path, part: str, recipe: Mapping[str, Any]) -> Path:
    """Return the folder of the features of a split; it has all levels, and the recipe reads some of them."""
    backbone = recipe["backbone"]
    return out / "features" / f"{part}-{backbone['name']}-{backbone['pooling']}"


def prepare(runs: Iterable[Run], out: str | Path, *, say: Callable[[str], None] = print) -> None:
    """Extract the features that these runs lack, into one store for each split and pooling.

    Runs that train from pixels need none; the first of them decodes the frames.

    Args:
        runs: the runs to train; finished runs need no features.
        out: folder of features and runs.
        say: gets a line before each extraction.

    Raises:
        ValueError: if annotations or videos are missing, or a store has features of another backbone's weights.
    """
    recipes_by_store: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        if run.from_pixels:
            continue
        backbone = run.recipe["backbone"]
        recipes_by_store.setdefault((backbone["name"], backbone["pooling"]), []).append(run.recipe)
    for recipes in recipes_by_store.values():
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
    """Return the recipe of a run with the paths of its features and results."""
    out = run.folder.parent
    if run.from_pixels:
        data = {**run.recipe["data"], "frames_cache": str(out / "frames")}
    else:
        data = {**run.recipe["data"], "train_videos": "", "val_videos": ""}
        for part in ("train", "val"):
            data[f"{part}_features"] = str(store_folder(out, part, run.recipe))
    train = {**run.recipe["train"], "out": str(run.folder)}
    if threads is not None:
        train["threads"] = threads
    return {**run.recipe, "data": data, "train": train}


# runs --------------------------------------------------------------------------------------------------------------


def data_of(recipe: Mapping[str, Any], *, skip_missing: bool = False) -> dict[str, str]:
    """Return digests of the annotations and of the feature specs of both splits.

    Args:
        recipe: result of :func:`located`.
        skip_missing: leave out data that is not on this machine, instead of raising an error.
    """
    from sidelight.features.store import FeatureStore

    digests = {}
    for part in ("train", "val"):
        annotations = Path(recipe["data"][part])
        if not skip_missing or annotations.is_file():
            digests[part] = hashlib.sha256(annotations.read_bytes()).hexdigest()[:16]
        if not recipe["data"][f"{part}_features"]:  # from pixels
            continue
        features = Path(recipe["data"][f"{part}_features"])
        if not skip_missing or (features / "manifest.json").is_file():
            store = FeatureStore(features, levels=chosen_levels(recipe))
            digests[f"{part}_features"] = store.spec.digest()
    return digests


def read_result(run: Run, data: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Read the result of a finished run.

    Args:
        run: a finished run.
        data: digests (see :func:`data_of`) that the result must have; other digests are not compared.

    Raises:
        ValueError: if the result is damaged, or was trained on other data.
    """
    path = run.folder / "result.json"
    try:
        result: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete {run.folder} to train it again") from None
    form = result.get("format") if isinstance(result, dict) else None
    if not isinstance(result, dict) or form != FORMAT:
        raise ValueError(
            f"{path}: expected format {FORMAT!r}, got {form!r}; give another --out, or delete {run.folder} to train "
            "it again"
        )
    if changed := ", ".join(name for name, value in (data or {}).items() if result["data"].get(name) != value):
        raise ValueError(f"{run.folder} was trained on other data ({changed} differ); give another --out")
    return result


def train_run(run: Run, *, keep: bool = False, threads: int | None = None, quiet: bool = False) -> dict[str, Any]:
    """Train, predict and score one run, resuming where an earlier process stopped; return its result.

    The weights after the last epoch are scored, not the weights of the best epoch: choosing an epoch by the scored
    queries would favour variants that vary more.

    Args:
        run: a run whose features are prepared.
        keep: keep weights, predictions and logs in its folder; by default only the files that tables read.
        threads: number of CPU threads; the recipe's by default.
        quiet: print nothing.

    Raises:
        ValueError: if the run does not fit its data, or diverged.
    """
    from sidelight.training.loop import train

    values = located(run, threads=threads)
    data = data_of(values)
    run.folder.mkdir(parents=True, exist_ok=True)
    with _locked(run.folder):
        if run.finished:  # by another process, while this process waited
            return read_result(run, data)
        write_text(run.folder / "recipe.yaml", json.dumps(values, indent=2) + "\n")
        start, resumed = time.perf_counter(), (run.folder / "state.pt").exists()
        progress = train(read_recipe(run.folder / "recipe.yaml"), resume=True, quiet=quiet)
        seconds = None if resumed else round(time.perf_counter() - start, 1)
        result = {
            "format": FORMAT,
            "variants": list(run.variants),
            "seed": run.seed,
            **_scored(run.folder, values),
            "curve": [[scores["epoch"], scores["MR-full-mAP"]] for scores in progress.history],
            "seconds": seconds,
            "data": data,
            "recipe": values,
        }
        write_text(run.folder / "result.json", _lines(result))
        (run.folder / "state.pt").unlink(missing_ok=True)  # no longer needed, and several times the size of the weights
        if not keep:
            _tidy(run)
    return result


def _lines(result: Mapping[str, Any]) -> str:
    """Return JSON with one line per field: short, and easy to compare."""
    fields = (
        f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':') if name == 'each' else None, allow_nan=False)}"
        for name, value in result.items()
    )
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _tidy(run: Run) -> None:
    """Remove the files that no table reads. The run is already finished, so an interruption here loses nothing."""
    kept = {"result.json", "recipe.yaml", *(["last"] if run.for_offsets else [])}
    for path in run.folder.iterdir():
        if path.name in kept:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _scored(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    from sidelight.data.annotations import write_submissions
    from sidelight.metrics.evaluate import evaluate_files, query_scores

    predicted = _predict_frames if recipe["data"]["frames_cache"] else _predict_features
    model, submissions = predicted(folder, recipe)
    write_submissions(folder / "predictions.jsonl", submissions)
    brief = evaluate_files(folder / "predictions.jsonl", recipe["data"]["val"])["brief"]
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    each = _each(query_scores(folder / "predictions.jsonl", recipe["data"]["val"]))
    return {"brief": brief, "each": each, "parameters": count}


def _predict_features(folder: Path, recipe: Mapping[str, Any]) -> tuple[nn.Module, list[Submission]]:
    from sidelight.data.annotations import read_annotations
    from sidelight.features.store import FeatureStore
    from sidelight.io.runtime import usable_device
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
    return checkpoint.model, submissions


def _predict_frames(folder: Path, recipe: Mapping[str, Any]) -> tuple[nn.Module, list[Submission]]:
    from sidelight.training.data import open_data
    from sidelight.training.loop import make_fabric

    last = {**recipe, "train": {**recipe["train"], "init": str(folder / "last")}}
    resolved = checked(last)
    fabric = make_fabric(resolved.train)
    data = open_data(resolved, fabric, quiet=True)
    model = data.build_model()
    data.load_start(model)
    assert data.val is not None  # every table is scored
    return model, data.predict(model.to(fabric.device), data.val)


def _each(scored: QueryScores) -> dict[str, Any]:
    """Return the score of each query in compact form: five decimals, and videos as indices into a list."""
    videos = list(dict.fromkeys(scored.videos))
    index = {vid: i for i, vid in enumerate(videos)}
    return {
        "shares": {
            metric: [None if math.isnan(value) else round(value, 5) for value in scored.each[metric].tolist()]
            for metric in TESTED
            if metric in scored.each
        },
        "videos": videos,
        "video_of_query": [index[vid] for vid in scored.videos],
    }


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process works in the folder, then lock it. The system frees the lock of a dead process."""
    if find_spec("fcntl") is None:
        # Windows has no such locks. The processes of one command never share a run, but two commands in one folder may.
        yield
        return
    import fcntl

    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def execute(
    runs: Sequence[Run], *, jobs: int = 1, keep: bool = False, say: Callable[[str], None] = print
) -> list[Failure]:
    """Train the unfinished runs and return the failures. A failed run does not stop the others.

    Args:
        runs: runs; the features of the unfinished ones must be prepared.
        jobs: number of processes; each trains one run at a time, with one thread if there are several processes.
        keep: keep weights, predictions and logs of trained runs; see :func:`train_run`.
        say: gets a line for each run.

    Raises:
        ValueError: for fewer than one job, or if runs are to be trained on other data than the finished ones.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be 1 or more, got {jobs}")
    unfinished = [run for run in runs if not run.finished]
    for run in runs:
        if run.finished:
            # Finished runs alone need no data: the data may have been made again, smaller or for something else.
            read_result(run, data_of(located(run), skip_missing=True) if unfinished else None)
    if not unfinished:
        return []
    total = len(unfinished)
    say(f"{total} of {count_of(len(runs), 'run')} to train, {min(jobs, total)} at once")
    failures, start = [], time.perf_counter()
    in_turn = ((run, _attempt(run, keep=keep)) for run in unfinished)
    results = in_turn if jobs == 1 else _in_parallel(unfinished, jobs, keep)
    for done, (run, result) in enumerate(results, 1):
        name = f"{done}/{total} {' = '.join(run.variants)}, seed {run.seed} ({run.folder.name})"
        if isinstance(result, str):
            failures.append(Failure(run=run, reason=result))
            say(f"{name}: failed: {result}")
            continue
        minutes_left = (time.perf_counter() - start) / done * (total - done) / 60
        duration = "resumed" if result["seconds"] is None else f"{result['seconds']:.0f} s"
        say(f"{name}: {_score(result['brief'])}, {duration}; about {minutes_left:.0f} min left")
    return failures


def _score(brief: Mapping[str, float]) -> str:
    """Return the main metric of a run as text: moments, or highlights if the annotations have no moments."""
    for title, metric in (("MR mAP", "MR-full-mAP"), ("HL mAP", "HL-min-VeryGood-mAP")):
        if metric in brief:
            return f"{title} {brief[metric]:.2f}"
    return "scored"


def _attempt(run: Run, **options: Any) -> dict[str, Any] | str:
    """Train a run and return its result, or the reason of its failure in one sentence.

    Errors that concern only this run are caught: data that does not fit, too little memory, a full disk. The reason is
    a text, because not every exception can be sent to another process.
    """
    try:
        return train_run(run, **options)
    except ValueError as error:
        return " ".join(str(error).split())
    except (MemoryError, OSError, RuntimeError) as error:
        message = str(error).strip().partition("\n")[0]  # PyTorch adds traces and advice in further lines
        if isinstance(error, MemoryError) or "out of memory" in message or "allocate memory" in message:
            return "out of memory; run fewer at once (--jobs), or lower train.batch_size"
        return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _in_parallel(runs: Sequence[Run], jobs: int, keep: bool) -> Iterator[tuple[Run, dict[str, Any] | str]]:
    from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    # One pool per process: when a process of a larger pool dies, all runs of the pool fail, and the cause is unknown.
    # Processes are spawned, because a forked child of a process in which PyTorch has run threads may hang.
    context = get_context("spawn")
    waiting, pools, idle = deque(runs), list[ProcessPoolExecutor](), list[ProcessPoolExecutor]()
    working: dict[Future[dict[str, Any] | str], tuple[Run, ProcessPoolExecutor]] = {}
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                if not idle:
                    pools.append(ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent))
                    idle.append(pools[-1])
                pool = idle.pop()
                run = waiting.popleft()
                working[pool.submit(_attempt, run, keep=keep, threads=1, quiet=True)] = run, pool
            finished, _ = wait(working, return_when=FIRST_COMPLETED)
            for future in finished:
                run, pool = working.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:  # killed, most often because memory ran out
                    result = "the process that trained it died, perhaps for lack of memory; run the command again"
                if isinstance(result, str):  # a failure may leave its process in a bad state, as on an accelerator
                    pool.shutdown()
                else:
                    idle.append(pool)
                yield run, result
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)
