"""A recipe trains every side-tuner; a killed run goes on with exactly the losses that it would have had."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sidelight import recipes
from sidelight.cli.main import main
from sidelight.data.annotations import read_annotations
from sidelight.data.datasets import BENCHMARKS
from sidelight.features.store import FeatureStore, VideoFeatures
from sidelight.metrics import evaluate_qvhighlights
from sidelight.models.registry import SIDE_TUNERS, build_model
from sidelight.training.checkpoint import Checkpoint
from sidelight.training.data import open_data
from sidelight.training.dataset import GroundingDataset
from sidelight.training.loop import NotFiniteError, Trainer, learning_rate, make_fabric, train
from sidelight.training.predict import predict
from sidelight.training.published import R2_TUNING
from sidelight.training.recipe import Recipe, read_recipe

TINY = """
model: {video_dim: 32, text_dim: 32, hidden: 32, heads: 4, moment_queries: 6, roi_bins: 4}
data:
  train: WORLD/annotations.jsonl
  val: WORLD/annotations.jsonl
  train_features: STORE
train: {epochs: 2, batch_size: 8, lr: 1.0e-3, warmup_steps: 5, ema: 0.9, save_every: 2, accelerator: cpu, out: OUT}
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tiny_world: Path, tiny_store: Path, tmp_path: Path) -> Write:
    """Return a function that writes the tiny recipe for an output folder of the given name."""

    def write_recipe(out: str) -> Path:
        path = tmp_path / f"{out}.yaml"
        text = TINY.replace("WORLD", str(tiny_world)).replace("STORE", str(tiny_store))
        path.write_text(text.replace("OUT", str(tmp_path / out)))
        return path

    return write_recipe


def losses(recipe: Recipe) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(recipe.train.out) / "losses.jsonl").read_text().splitlines()]


def test_a_run_learns_and_leaves_its_files(write: Write) -> None:
    recipe = read_recipe(write("run"), ["--train.epochs=5"])
    progress = train(recipe, quiet=True)
    out = Path(recipe.train.out)
    rows = losses(recipe)
    assert [r["step"] for r in rows] == list(range(len(rows))) and progress.epoch == 5
    assert rows[-1]["total"] < rows[0]["total"] and all(math.isfinite(r["total"]) for r in rows)
    assert any((out / "tensorboard").iterdir())
    best = Checkpoint.from_pretrained(out / "best")
    brief = best.metrics["brief"]
    assert brief["MR-full-mAP"] == progress.best == max(h["MR-full-mAP"] for h in progress.history)
    assert best.recipe["train"]["lr"] == 1e-3 and (out / "last" / "model.safetensors").is_file()
    # The saved model has the saved scores.
    annotations = read_annotations(recipe.data.val)
    dataset = GroundingDataset(annotations, FeatureStore(recipe.data.train_features))
    assert evaluate_qvhighlights(predict(best.model, dataset, best.decode), annotations)["brief"] == brief


def test_training_can_start_from_a_checkpoint(write: Write) -> None:
    first = read_recipe(write("first"), ["--train.epochs=1"])
    train(first, quiet=True)
    start = f"--train.init={first.train.out}/last"
    still = read_recipe(write("second"), [start, "--train.epochs=1", "--train.lr=1e-12", "--train.ema=0"])
    train(still, quiet=True)
    before, after = (Checkpoint.from_pretrained(f"{r.train.out}/last").model.state_dict() for r in (first, still))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=1e-5)
    smaller = read_recipe(write("third"), [start, "--model.hidden=16"])
    with pytest.raises(ValueError, match=r"train.init: .* is a model of other sizes"):
        train(smaller, quiet=True)


def test_killed_in_mid_epoch_it_goes_on_with_the_same_losses(write: Write) -> None:
    whole, broken = write("whole"), write("broken")
    # Each run has a process of its own, as for a user. Within one process, earlier runs move tensors to other
    # addresses; sums may then be taken in another order, which changes the last bit of a loss.
    code = "import sys, sidelight.training.loop as t, sidelight.training.recipe as r\n"
    code += "t.train(r.read_recipe(sys.argv[1]), resume=len(sys.argv) > 2, quiet=True)"
    subprocess.run([sys.executable, "-c", code, str(whole)], check=True, timeout=240)
    expected = losses(read_recipe(whole))
    out = Path(read_recipe(broken).train.out)
    # Slowed down, so that the kill comes in mid-epoch; the numbers do not depend on the speed.
    slow_code = (
        "import sys, time, sidelight.training.loop as t, sidelight.training.recipe as r\n"
        "step = t.Trainer.train_step\n"
        "t.Trainer.train_step = lambda *a: (time.sleep(0.3), step(*a))[1]\n"
        "t.train(r.read_recipe(sys.argv[1]), quiet=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", slow_code, str(broken)], env={**os.environ})
    log, deadline = out / "losses.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at = len(losses(read_recipe(broken)))
    assert 3 <= killed_at < len(expected)
    subprocess.run([sys.executable, "-c", code, str(broken), "--resume"], check=True, timeout=240)
    assert losses(read_recipe(broken)) == expected


def test_a_finished_run_is_not_overwritten(write: Write) -> None:
    recipe = read_recipe(write("run"), ["--train.epochs=1"])
    train(recipe, quiet=True)
    with pytest.raises(ValueError, match="holds a run already"):
        train(recipe, quiet=True)
    with pytest.raises(ValueError, match=r"another recipe .train.lr was 0.001 and is 0.5"):
        train(replace(recipe, train=replace(recipe.train, lr=0.5)), resume=True, quiet=True)
    # More epochs of the same run are fine.
    longer = replace(recipe, train=replace(recipe.train, epochs=2))
    assert train(longer, resume=True, quiet=True).epoch == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--train.lr=fast"], "train.lr"),
        (["--train.epochs=0"], "epochs must be at least 1"),
        (["--train.nothing=1"], "train.nothing"),
        (["--model.video_dim=64"], "features in .* have 32; set model.video_dim=32"),
        (["--model.levels=2"], "model.levels is 2"),
        (["--backbone.pooling=mean"], "backbone.pooling says 'mean'"),
        (["--backbone.name=other"], "backbone.name says 'other'"),
        (["--data.train="], "no data.train"),
        (["--data.train=nowhere.jsonl"], "nowhere.jsonl"),
        (["--data.train_features=nowhere"], "no feature store"),
        (["--train.best_by=nothing", "--train.epochs=1"], "best_by must be one of"),
        (["--data.min_duration=1000"], "no video of .* is 1000 s long"),
        (["--data.domain=dog"], "data.domain needs data.benchmark"),
        (["--data.benchmark=other"], "there is no benchmark 'other'"),
        (["--backbone.levels=[-9,-1]"], r"lack \[-9\]"),
        (["--backbone.levels=[-1,-2]"], "levels must be"),
        (["--side_tuner=other"], "no side-tuner 'other'"),
        (["--backbone.pooling=tokens"], "sdst reads one vector a clip"),
        (["--backbone.clip_seconds=1.0"], "backbone.clip_seconds says 1.0, but the features in .* with 2.0"),
        (["--backbone.frames_per_clip=3"], "backbone.frames_per_clip says 3"),
        (["--data.benchmark=tvsum"], "needs data.binding: tvsum"),
        (["--data.binding=tvsum"], "it needs losses.class_loss: bce"),
        (["--train.warmup_steps=-1"], "warmup_steps must be at least 0"),
        (["--train.accelerator=tpu"], "'tpu' with train.devices 1 cannot be used here"),
    ],
)
def test_mistakes_are_named(write: Write, overrides: list[str], message: str) -> None:
    path = write("wrong")
    with pytest.raises(ValueError, match=message):
        train(read_recipe(path, overrides), quiet=True)
    with pytest.raises(ValueError, match="there is no recipe"):
        read_recipe("nowhere.yaml")


@pytest.mark.parametrize(
    ("step", "epoch", "expected"),
    [(0, 0, 1e-4 * 0.001), (1000, 0, 1e-4 * 0.5005), (2000, 0, 1e-4), (9000, 20, 1e-5), (9000, 45, 1e-6)],
)
def test_learning_rate(step: int, epoch: int, expected: float) -> None:
    recipe = Recipe(model=read_recipe("shapes").model)
    assert learning_rate(step, epoch, recipe.train) == pytest.approx(expected)


def test_every_recipe_of_the_repository_can_be_read() -> None:
    paths = [p for p in sorted(recipes.FOLDER.glob("*.yaml")) if "backbone" not in p.name]
    assert paths
    for path in paths:
        recipe = read_recipe(path)
        if recipe.parts.reads == "frames":
            continue  # such a model is built around its backbone, whose weights are not here
        with torch.device("meta"):
            build_model(recipe.side_tuner, recipe.to_dict()["model"])


@pytest.mark.parametrize("name", [n for n, kind in SIDE_TUNERS.items() if kind.reads == "features" and n != "sdst"])
def test_every_side_tuner_trains_by_a_recipe(write: Write, name: str) -> None:
    path = write(name)
    own = "{video_dim: 32, text_dim: 32, hidden: 32, heads: 4, strides: [1, 2, 4]}"
    if name == "univtg":
        own = "{video_dim: 32, text_dim: 32, levels: 4, hidden: 32, heads: 4, layers: 1, ffn: 32, anchor: 0.5}"
    text = path.read_text().replace(
        "{video_dim: 32, text_dim: 32, hidden: 32, heads: 4, moment_queries: 6, roi_bins: 4}", own
    )
    path.write_text(f"side_tuner: {name}\n{text}")
    recipe = read_recipe(path, ["--train.epochs=1", "--model.droppath=0"])
    assert recipe.side_tuner == name and type(recipe.model) is SIDE_TUNERS[name].config
    progress = train(recipe, quiet=True)
    rows = losses(recipe)
    assert len(rows) == progress.step and all(math.isfinite(row["total"]) for row in rows)
    best = Checkpoint.from_pretrained(f"{recipe.train.out}/best")
    assert best.model_name == name and best.decode == recipe.decode
    dataset = GroundingDataset(read_annotations(recipe.data.val), FeatureStore(recipe.data.train_features))
    again = evaluate_qvhighlights(predict(best.model, dataset, best.decode), dataset.annotations)
    assert again["brief"]["MR-full-mAP"] == pytest.approx(progress.best, abs=0.01)


def test_fewer_levels_than_a_store_has(write: Write) -> None:
    recipe = read_recipe(write("some"), ["--model.levels=2", "--backbone.levels=[-3,-1]", "--train.epochs=1"])
    train(recipe, quiet=True)
    assert Checkpoint.from_pretrained(f"{recipe.train.out}/best").features.levels == (-3, -1)


@pytest.mark.parametrize("name", [p.stem for p in sorted(recipes.FOLDER.glob("r2-tuning-*.yaml"))])
def test_published_recipes_are_what_was_published(name: str) -> None:
    """Check that a recipe and the conversion of the published file agree."""
    recipe = read_recipe(f"{name}")
    run = R2_TUNING[name.removeprefix("r2-tuning-") + (f"-{recipe.data.domain}" if recipe.data.domain else "")]
    assert (recipe.model, recipe.losses, recipe.decode) == (run.model, run.losses, run.decode)
    assert recipe.window_clips == run.window_clips and recipe.data.benchmark in BENCHMARKS
    backbone, features = recipe.backbone, run.features()
    assert (backbone.name, backbone.chosen, backbone.pooling) == (features.backbone, features.levels, features.pooling)
    assert backbone.clip_seconds == pytest.approx(features.clip_seconds, rel=1e-4)
    assert backbone.frames_per_clip == features.frames_per_clip
    splits = BENCHMARKS[recipe.data.benchmark].splits
    for file in (recipe.data.train, recipe.data.val):
        assert any(Path(file).name in split.files for split in splits.values()), file


def test_bce_needs_saliency_between_0_and_1(write: Write) -> None:
    path = write("bce")
    text = path.read_text().replace("moment_queries: 6, roi_bins: 4", "strides: [1]")
    path.write_text(f"side_tuner: r2-tuning\nlosses: {{class_loss: bce}}\n{text}")
    with pytest.raises(ValueError, match=r"bce needs saliency in \[0, 1\]"):
        read_recipe(path)
    with pytest.raises(ValueError, match="bce trains no boundaries"):
        read_recipe(path, ["--data.binding=r2-tuning"])
    read_recipe(path, ["--data.binding=r2-tuning", "--model.boundary_head=false"])


def test_offsets_and_references_can_learn_more_slowly(write: Write) -> None:
    recipe = read_recipe(write("slow"), ["--train.offset_lr=0.1", "--train.warmup_steps=0"])
    fabric = make_fabric(recipe.train)
    fabric.launch()
    trainer = Trainer(recipe, fabric, open_data(recipe, fabric, quiet=True), quiet=True)
    first = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train_step([0, 1, 2, 3])
    fast, slow = (group["lr"] for group in trainer.optimiser.param_groups)
    assert slow == pytest.approx(0.1 * fast)
    # AdamW's first step is the learning rate itself wherever there is a gradient, here less a little weight decay.
    steps = {name: float((p.detach() - first[name]).abs().max()) for name, p in trainer.model.named_parameters()}
    assert steps["references_M2"] == pytest.approx(slow, rel=0.01)
    assert steps["levels.0.sparse.blocks.rdsa.attention.offsets.bias"] == pytest.approx(slow, rel=0.01)
    assert steps["class_head.bias"] == pytest.approx(fast, rel=0.01)


def test_offset_lr_is_refused_for_a_model_without_offsets(write: Write) -> None:
    path = write("no-offsets")
    text = path.read_text().replace("moment_queries: 6, roi_bins: 4", "strides: [1]")
    path.write_text(f"side_tuner: r2-tuning\n{text}")
    read_recipe(path)
    with pytest.raises(ValueError, match=r"no-offsets.yaml: train.offset_lr is for the offsets of sdst, and r2-tuning"):
        read_recipe(path, ["--train.offset_lr=0.1"])


def test_options_newer_than_a_state_count_as_their_defaults(write: Write) -> None:
    path = write("older")
    first = train(read_recipe(path, ["--train.epochs=1"]), quiet=True)
    state = Path(read_recipe(path).train.out) / "state.pt"
    values = torch.load(state, weights_only=True)
    fixed = json.loads(values["recipe"])
    del fixed["model"]["saliency_cue"], fixed["losses"]["class_target"], fixed["backbone"]["frames_per_clip"]
    del fixed["train"]["last_batch"], fixed["data"]["round_clips"]
    torch.save({**values, "recipe": json.dumps(fixed)}, state)
    with pytest.raises(ValueError, match=r"another recipe .model.saliency_cue was False and is True"):
        train(read_recipe(path, ["--train.epochs=2", "--model.saliency_cue=true"]), resume=True, quiet=True)
    with pytest.raises(ValueError, match=r"another recipe .train.last_batch was 'drop' and is 'keep'"):
        train(read_recipe(path, ["--train.epochs=2", "--train.last_batch=keep"]), resume=True, quiet=True)
    with pytest.raises(ValueError, match=r"another recipe .data.round_clips was False and is True"):
        train(read_recipe(path, ["--train.epochs=2", "--data.round_clips=true"]), resume=True, quiet=True)
    again = train(read_recipe(path, ["--train.epochs=2"]), resume=True, quiet=True)
    assert again.epoch == 2 and again.history[0] == first.history[0]


def test_other_ratings_are_another_run_and_another_metric_starts_anew(write: Write, tmp_path: Path) -> None:
    path = write("rated")
    first = train(read_recipe(path, ["--train.epochs=1"]), quiet=True)
    longer = ["--train.epochs=2", "--train.best_by=HL-min-VeryGood-Hit1"]
    again = train(read_recipe(path, longer), resume=True, quiet=True)
    assert again.best_epoch == 2 and again.best == again.history[1]["HL-min-VeryGood-Hit1"]
    assert again.history[0]["MR-full-mAP"] == first.best
    rows = [json.loads(line) for line in Path(read_recipe(path).data.train).read_text().splitlines()]
    rated = next(row for row in rows if row["saliency_scores"])
    rated["saliency_scores"][0] = [0, 0, 0]
    (changed := tmp_path / "changed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"another recipe .data.annotations differ"):
        train(read_recipe(path, [f"--data.train={changed}", "--train.epochs=3"]), resume=True, quiet=True)


def test_highlight_benchmarks_train_without_moments(write: Write, tmp_path: Path) -> None:
    """Train on TVSum as released: ratings of every clip, no windows, a metric of its own."""
    recipe = read_recipe(write("tvsum"))
    store = FeatureStore(recipe.data.train_features)
    by_vid = {a.vid: a for a in read_annotations(recipe.data.train)}
    rows = []
    for i, (vid, a) in enumerate(by_vid.items()):
        clips = store.timeline(vid).num_clips
        label = [[(i + clip + rater) % 5 + 1 for rater in range(20)] for clip in range(clips)]
        rows.append({"qid": i, "query": a.query, "vid": vid, "duration": clips, "domain": "BK", "label": label})
    released = tmp_path / "tvsum_train.jsonl"
    released.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = "{video_dim: 32, text_dim: 32, hidden: 32, heads: 4, strides: [1], boundary_head: false}"
    (path := tmp_path / "tvsum.yaml").write_text(
        f"side_tuner: r2-tuning\nmodel: {own}\nlosses: {{class_loss: bce, nce_directions: [row]}}\n"
        f"data: {{benchmark: tvsum, domain: BK, binding: tvsum, train: {released}, val: {released}, "
        f"train_features: {recipe.data.train_features}}}\n"
        f"train: {{epochs: 2, batch_size: 2, best_by: mAP@top5, accelerator: cpu, out: {tmp_path / 'highlights'}}}\n"
    )
    progress = train(read_recipe(path), quiet=True)
    assert set(progress.history[0]) >= {"mAP@top5", "mAP@top15", "mAP@top5 BK"} and progress.best > 0
    best = Checkpoint.from_pretrained(tmp_path / "highlights" / "best")
    assert best.metrics["brief"]["mAP@top5"] == progress.best


@pytest.mark.slow
def test_two_processes_train_together(write: Write) -> None:
    path = write("pair")
    code = (
        "import sys, sidelight.training.recipe as r, sidelight.training.loop as t\n"
        "if __name__ == '__main__':\n"
        "    t.train(r.read_recipe(sys.argv[1], ['--train.devices=2', '--train.epochs=1']), quiet=True)"
    )
    script = path.with_suffix(".py")
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script), str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = losses(read_recipe(path))
    assert rows and all(math.isfinite(r["total"]) for r in rows)


class Poisoned(FeatureStore):
    """A store that does not check numbers, with one number of one video changed."""

    value, vid = math.nan, ""

    def video(self, vid: str, *, check: bool = False) -> VideoFeatures:
        features = super().video(vid)
        if vid == self.vid:
            features.video_KTD[0, 0, 0] = self.value
        return features


@pytest.mark.parametrize("average", [0, 0.9])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_training_stops_before_a_loss_that_is_not_finite_changes_the_weights(
    write: Write, monkeypatch: pytest.MonkeyPatch, value: float, average: float
) -> None:
    path = write("poisoned")
    overrides = ["--data.val=", "--train.batch_size=2", "--train.save_every=1", f"--train.ema={average}"]
    recipe = read_recipe(path, [*overrides, "--train.epochs=1"])
    rows = read_annotations(recipe.data.train)
    monkeypatch.setattr(Poisoned, "value", value)
    monkeypatch.setattr(Poisoned, "vid", rows[-1].vid)
    with monkeypatch.context() as context:
        context.setattr("sidelight.features.open.FeatureStore", Poisoned)
        with pytest.raises(NotFiniteError) as stopped:
            train(recipe, quiet=True)
    message = str(stopped.value)
    finished = losses(recipe)
    assert re.match(rf"the loss \w+ of step {len(finished)} is (nan|inf), so training stopped", message)
    assert rows[-1].vid in message and any(row.query in message for row in rows if row.vid == rows[-1].vid)
    out = Path(recipe.train.out)
    assert f"the state before this step is in {out / 'state.pt'}" in message
    assert all(math.isfinite(value) for row in finished for value in row.values())
    assert not (out / "last").exists() and not (out / "best").exists()
    # With healthy features, the run goes on from there, and ends as a run that was never stopped.
    train(recipe, resume=True, quiet=True)
    never_stopped = read_recipe(write("healthy"), [*overrides, "--train.epochs=1"])
    train(never_stopped, quiet=True)
    for one, other in zip(losses(recipe), losses(never_stopped), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_the_command_names_videos_and_queries_of_a_poisoned_store(
    write: Write, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FeatureStore(shutil.copytree(tiny_store, tmp_path / "poisoned"))
    vid = store.videos()[1]
    file = store.video_file(vid)
    values = store.video(vid)
    content = bytearray(file.read_bytes())
    content[-2:] = b"\x00\x7e"  # NaN
    file.write_bytes(content)
    arguments = ["train", str(write("run")), f"--data.train_features={store.folder}"]
    for check in (["--check"], []):
        assert main([*arguments, *check]) == 2
        message = (
            f"the features in {store.folder} are damaged: level -1 of video {vid!r} has numbers that are not finite"
        )
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    annotations = read_recipe(write("run")).data.train
    assert main(["data", "check", annotations, "--features", str(store.folder)]) == 1
    assert f"level -1 of video {vid!r}" in capsys.readouterr().out
    store.put_video(vid, values)
    assert main(["data", "check", annotations, "--features", str(store.folder)]) == 0


def test_weights_that_are_not_finite_are_never_saved(write: Write) -> None:
    recipe = read_recipe(write("run"), ["--train.epochs=1", "--train.ema=0"])
    train(recipe, quiet=True)
    out = Path(recipe.train.out)
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.suffix in (".pt", ".safetensors", ".json")}
    fabric = make_fabric(recipe.train)
    fabric.launch()
    trainer = Trainer(recipe, fabric, open_data(recipe, fabric, quiet=True), quiet=True)
    with torch.no_grad():
        next(trainer.model.parameters()).view(-1)[0] = math.nan
    with pytest.raises(ValueError, match=r"state\.pt is not written: the weights are not finite"):
        trainer._save()
    with pytest.raises(ValueError, match=r"best is not written: the weights are not finite"):
        trainer.data.checkpoint(trainer.model, {}).save_pretrained(out / "best")
    assert {path: path.read_bytes() for path in before} == before
