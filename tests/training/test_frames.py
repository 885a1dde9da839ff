"""A model is trained from the pixels of videos by a recipe, and grounds with its checkpoint."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sidelight import Grounder
from sidelight.backbones import SpecMismatchError, TrainableTower
from sidelight.backbones.shapes.model import ShapesBackboneConfig, TwoTowers
from sidelight.cli.main import main
from sidelight.data.annotations import Annotation, read_submissions, write_annotations
from sidelight.metrics import evaluate_qvhighlights
from sidelight.models.scada import Scada
from sidelight.training.augment import AugmentConfig, augment
from sidelight.training.check import check_run
from sidelight.training.checkpoint import Checkpoint, PixelCheckpoint
from sidelight.training.data import FrameData, open_data
from sidelight.training.frames import epoch_videos
from sidelight.training.loop import Trainer, make_fabric, train
from sidelight.training.recipe import Recipe, read_recipe

TINY = """
side_tuner: scada
model: {sentence_dim: 16, mode: both, first_adapter: 1, clips_per_chunk: 1, hidden: 16, head_layers: 1, pair_hidden: 8}
backbone: {name: shapes, weights: BACKBONE, sentence_weights: BACKBONE, frames_per_second: 2, resize: stretch}
data:
  train: WORLD/annotations.jsonl
  val: WORLD/annotations.jsonl
  train_videos: WORLD/videos
  frames_cache: CACHE
train:
  {epochs: 2, batch_size: 2, frames_per_step: 104, lr: 1.0e-2, warmup_steps: 2, ema: 0.5, save_every: 1,
  accelerator: cpu, out: OUT}
"""

Write = Callable[[str], Path]


@pytest.fixture(scope="session")
def frames_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for frames, which the first test fills."""
    return tmp_path_factory.mktemp("frames")


@pytest.fixture
def write(tiny_world: Path, tiny_backbone: Path, frames_cache: Path, tmp_path: Path) -> Write:
    """Return a function that writes the tiny recipe for an output folder of the given name."""

    def write_recipe(out: str) -> Path:
        path, text = tmp_path / f"{out}.yaml", TINY
        places = {"WORLD": tiny_world, "BACKBONE": tiny_backbone, "CACHE": frames_cache, "OUT": tmp_path / out}
        for name, folder in places.items():
            text = text.replace(name, str(folder))
        path.write_text(text)
        return path

    return write_recipe


def losses(recipe: Recipe) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(recipe.train.out) / "losses.jsonl").read_text().splitlines()]


def opened(recipe: Recipe) -> FrameData:
    """Return the data of a run."""
    return cast(FrameData, open_data(recipe, make_fabric(recipe.train), quiet=True))


def test_a_run_learns_and_its_checkpoint_grounds(
    write: Write,
    tiny_world: Path,
    tiny_annotations: list[Annotation],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = read_recipe(write("run"), ["--train.epochs=6"])
    progress = train(recipe, quiet=True)
    rows = losses(recipe)
    assert [row["step"] for row in rows] == list(range(12)) and all(math.isfinite(row["total"]) for row in rows)
    assert sum(row["total"] for row in rows[-3:]) < sum(row["total"] for row in rows[:3]) - 0.2
    best = f"{recipe.train.out}/best"
    checkpoint = PixelCheckpoint.from_pretrained(best)
    assert checkpoint.metrics["brief"]["MR-full-mAP"] == progress.best
    assert checkpoint.clip_seconds == 2 and checkpoint.frames.frames_per_second == 2

    # Only what was trained is stored, and it differs from the start.
    stored = load_file(f"{best}/model.safetensors")
    assert {name.partition(".")[0] for name in stored} == {"inner", "outer", "norm", "head"}
    assert stored["inner.1.up.weight"].abs().max() > 0

    # The answers of the command, of Python and of prediction agree.
    row = tiny_annotations[0]
    file = tiny_world / "videos" / f"{row.vid}.mp4"
    queries = [a.query for a in tiny_annotations if a.vid == row.vid][:3]
    grounder = Grounder.from_pretrained(best)
    together = grounder.ground(file, queries)
    alone = grounder.ground(file, queries[0])
    assert alone.model == best and len(alone.saliency) == math.ceil(row.duration / 2)
    assert [m.score for m in alone.moments] == pytest.approx([m.score for m in together[0].moments], rel=1e-4)
    assert together[0].moments != together[1].moments
    assert main(["ground", str(file), *queries, "--model", best, "--json", str(tmp_path / "answers.json")]) == 0
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert [a["query"] for a in answers] == queries
    assert answers[0]["moments"][0]["start"] == pytest.approx(together[0].moments[0].start)
    predicted = tmp_path / "predicted.jsonl"
    options = ["--model", best, "--annotations", f"{tiny_world}/annotations.jsonl", "--out", str(predicted)]
    assert main(["predict", *options, "--videos", f"{tiny_world}/videos"]) == 0
    submissions = read_submissions(predicted)
    assert evaluate_qvhighlights(submissions, tiny_annotations)["brief"] == checkpoint.metrics["brief"]
    capsys.readouterr()
    assert main(["predict", *options, "--features", str(tiny_world)]) == 2
    assert "reads the frames of videos: give --videos" in capsys.readouterr().err


def test_a_checkpoint_refuses_another_backbone(
    write: Write, tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = read_recipe(write("run"), ["--train.epochs=1", "--data.val="])
    train(recipe, quiet=True)
    sizes = {"resolution": 32, "frames_per_clip": 4, "width": 32, "depth": 4, "heads": 2, "text_width": 32}
    torch.manual_seed(5)
    TwoTowers(ShapesBackboneConfig(**sizes, text_depth=4, text_heads=2, joint=16)).save(tmp_path / "other")
    last, file = f"{recipe.train.out}/last", next((tiny_world / "videos").iterdir())
    options = ["--model", last, "--backbone-weights", str(tmp_path / "other")]
    capsys.readouterr()  # the first test to run fills the cache, and says so
    assert main(["ground", str(file), "a star spins", *options]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "the video backbone is not the one that this model was trained with" in message
    with pytest.raises(SpecMismatchError, match="the sentence encoder is not the one"):
        PixelCheckpoint.from_pretrained(last, sentence_weights=tmp_path / "other")
    with pytest.raises(ValueError, match="is a scada model, which reads videos and no features"):
        Checkpoint.from_pretrained(last)
    with pytest.raises(ValueError, match="shapes is a sdst model, which reads features"):
        PixelCheckpoint.from_pretrained("shapes")
    grounder = Grounder.from_pretrained(last)
    with pytest.raises(ValueError, match="reads the frames of a video"):
        grounder.features(file)
    with pytest.raises(ValueError, match="reads the frames of a video"):
        grounder.encode(["a star spins"])


def test_full_fine_tuning_stores_the_backbone(write: Write) -> None:
    recipe = read_recipe(write("full"), ["--train.epochs=1", "--model.mode=full", "--model.first_adapter=0"])
    train(recipe, quiet=True)
    stored = load_file(f"{recipe.train.out}/last/model.safetensors")
    assert any(name.startswith("tower.") for name in stored)
    model = PixelCheckpoint.from_pretrained(f"{recipe.train.out}/last").model
    for name, value in stored.items():
        assert torch.equal(model.state_dict()[name], value)


def test_training_can_start_from_a_checkpoint(write: Write) -> None:
    first = read_recipe(write("first"), ["--train.epochs=1"])
    train(first, quiet=True)
    start = f"--train.init={first.train.out}/last"
    still = read_recipe(write("second"), [start, "--train.epochs=1", "--train.lr=1e-12", "--train.ema=0"])
    train(still, quiet=True)
    before, after = (load_file(f"{r.train.out}/last/model.safetensors") for r in (first, still))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match=r"train.init: .* is a model of other sizes"):
        train(read_recipe(write("third"), [start, "--model.hidden=32"]), quiet=True)


def test_killed_in_mid_epoch_it_goes_on_with_the_same_losses(write: Write) -> None:
    whole, broken = write("whole"), write("broken")
    code = "import sys, sidelight.training.loop as t, sidelight.training.recipe as r\n"
    code += "t.train(r.read_recipe(sys.argv[1]), resume=len(sys.argv) > 2, quiet=True)"
    subprocess.run([sys.executable, "-c", code, str(whole)], check=True, timeout=240)
    expected = losses(read_recipe(whole))
    out = Path(read_recipe(broken).train.out)
    slow_code = (
        "import sys, time, sidelight.training.loop as t, sidelight.training.recipe as r\n"
        "step = t.Trainer.train_step\n"
        "t.Trainer.train_step = lambda *a: (time.sleep(0.5), step(*a))[1]\n"
        "t.train(r.read_recipe(sys.argv[1]), quiet=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", slow_code, str(broken)], env={**os.environ})
    log, deadline = out / "losses.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= 1:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= len(losses(read_recipe(broken))) < len(expected) == 4
    subprocess.run([sys.executable, "-c", code, str(broken), "--resume"], check=True, timeout=240)
    assert losses(read_recipe(broken)) == expected


@pytest.mark.parametrize(
    "options",
    [
        ["--memory.checkpoint_blocks=1", "--memory.chunks_at_once=3"],
        ["--train.accumulate=5"],
    ],
)
def test_less_memory_changes_no_loss(write: Write, options: list[str]) -> None:
    plain, saving = read_recipe(write("plain")), read_recipe(write("saving"), options)
    first: list[list[float]] = []
    for recipe in (plain, saving):
        trainer = Trainer(recipe, make_fabric(recipe.train), opened(recipe), quiet=True)
        batches = trainer.data.batches(0)
        first.append([trainer.train_step(indices).values["total"] for indices in batches])
    assert first[1] == pytest.approx(first[0], rel=1e-4)


def test_half_precision_and_augmentation_train(write: Write) -> None:
    options = ["--train.precision=bf16-mixed", "--augment.crop=0.8", "--augment.jitter=0.2", "--augment.flip=true"]
    recipe = read_recipe(write("half"), [*options, "--train.epochs=1"])
    train(recipe, quiet=True)
    assert all(math.isfinite(row["total"]) for row in losses(recipe))


@pytest.mark.slow
def test_two_processes_train_alike(write: Write) -> None:
    """Train in two processes, whose parts of a step have different numbers of queries; also with less memory."""
    options = ["--train.devices=2", "--train.batch_size=2", "--train.accumulate=7", "--train.epochs=2"]
    totals = []
    for name, saving in (("two", []), ("saving", ["--memory.chunks_at_once=2", "--memory.checkpoint_blocks=1"])):
        recipe = write(name)
        subprocess.run(
            [sys.executable, "-m", "sidelight", "train", str(recipe), *options, *saving], check=True, timeout=300
        )
        totals.append([row["total"] for row in losses(read_recipe(recipe))])
    assert len(totals[0]) == 2 and all(map(math.isfinite, totals[0]))
    assert totals[1] == pytest.approx(totals[0], rel=1e-5)


def test_check_describes_the_run_and_writes_nothing(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("run")
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", str(path), "--check", f"--data.frames_cache={tmp_path / 'new'}"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert "3 videos, 0.0 h; frames of 0 videos are in the cache, the run first decodes" in shown["train"]
    assert shown["frames"].startswith("shapes (") and "chunks of 4 frames of 32 pixels, 2 frames/s" in shown["frames"]
    assert "frames (" in shown["largest"] and "a step reads up to 104" in shown["largest"]
    assert "MiB" in shown["arithmetic"] and "decoded" in shown and "2 steps an epoch" in shown["speed"]
    assert not [p for p in sorted(tmp_path.rglob("*")) if p not in before and p.suffix in (".rgb", ".pt")]
    assert main(["train", str(path), "--check", f"--data.frames_cache={tmp_path / 'new'}", *SMALL_LIMIT]) == 2
    assert "raise data.frames_cache_limit" in capsys.readouterr().err


SMALL_LIMIT = ["--data.frames_cache_limit=1KB"]


def test_the_losses_of_a_check_are_those_of_the_run(write: Write) -> None:
    recipe = read_recipe(write("run"), ["--train.epochs=1"])
    check = check_run(recipe)
    train(recipe, quiet=True)
    assert check.losses == pytest.approx([row["total"] for row in losses(recipe)[:2]], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SMALL_LIMIT, "of at most 0.0 MB: raise data.frames_cache_limit, set data.frames_cache"),
        (["--data.frames_cache_limit=much"], "data.frames_cache_limit must be a size such as 20GB"),
        (["--data.train_videos="], "no data.train_videos"),
        (["--data.train_videos=nowhere"], "nowhere is not a folder"),
        (["--data.train_features=store"], "scada reads videos, not features"),
        (["--data.round_clips=true"], "scada needs moments and all clips"),
        (["--model.sentence_dim=8"], "model.sentence_dim is 8, but the sentence encoder shapes makes vectors of 16"),
        (["--backbone.name=other"], "backbone.name must be one of shapes, videomae, i3d"),
        (["--backbone.sentences=other"], "backbone.sentences must be one of shapes, distilbert"),
        (["--backbone.resolution=64"], "shapes does not have all of backbone.resolution; leave out"),
        (["--backbone.sentence_pooling=cls"], "shapes does not have all of backbone.sentence_pooling"),
        (["--backbone.sentence_weights=nowhere"], "nowhere is no shapes backbone"),
        (["--model.head=sdst", "--train.accumulate=2"], "those of the head sdst compare queries"),
        (["--backbone.frames_per_second=0"], "backbone.frames_per_second must be above 0"),
        (["--memory.chunk_share=0.5"], r"memory.chunk_share must be 1 where inner branches convolve across chunks"),
        (["--augment.crop=2"], r"augment.crop must be in \(0, 1\]"),
        (["--train.best_by=nothing"], "best_by must be one of"),
    ],
)
def test_mistakes_are_named(
    write: Write, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    new = [] if options != SMALL_LIMIT else [f"--data.frames_cache={tmp_path / 'new'}"]
    assert main(["train", str(write("wrong")), *new, *options]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("sidelight: ") == 1 and "Traceback" not in error, error
    assert not [path for path in (tmp_path / "wrong").rglob("*") if path.suffix in (".pt", ".jsonl", ".safetensors")]


@pytest.mark.parametrize("section", ["memory", "augment"])
def test_sections_of_pixels_belong_to_models_of_pixels(section: str) -> None:
    recipe, other = read_recipe("shapes"), read_recipe("shapes-scada")
    with pytest.raises(ValueError, match=f"has no section {section}"):
        replace(recipe, **{section: getattr(other, section)})
    assert section in other.to_dict() and section not in recipe.to_dict()
    with pytest.raises(ValueError, match=r"train\.accumulate is for models that are trained from pixels"):
        replace(recipe, train=replace(recipe.train, accumulate=2))


# batches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "budget", "most", "expected"),
    [([8], 4, 9, [1]), ([8, 8, 8], 16, 9, [1, 2]), ([8] * 5, 100, 2, [1, 2, 2]), ([30, 8, 8], 16, 9, [1, 2])],
)
def test_videos_fill_the_budget_of_a_step(frames: list[int], budget: int, most: int, expected: list[int]) -> None:
    steps = epoch_videos(np.array(frames), epoch=0, frames_per_step=budget, videos_per_step=most)
    assert sorted(video for step in steps for video in step) == list(range(len(frames)))
    assert all(len(step) == 1 or sum(frames[video] for video in step) <= budget for step in steps)
    if 30 not in frames:
        assert sorted(map(len, steps)) == expected


def test_processes_share_the_steps_of_an_epoch() -> None:
    frames = np.random.default_rng(0).integers(10, 60, 101)
    ranks = [
        epoch_videos(frames, epoch=3, frames_per_step=200, videos_per_step=12, seed=1, rank=rank, world=3)
        for rank in range(3)
    ]
    assert len({len(steps) for steps in ranks}) == 1
    videos = [video for steps in ranks for step in steps for video in step]
    assert len(set(videos)) == len(videos) > 90
    assert all(frames[step].sum() <= 200 / 3 and len(step) <= 4 for steps in ranks for step in steps)
    again = epoch_videos(frames, epoch=4, frames_per_step=200, videos_per_step=12, seed=1, world=3)
    assert again != ranks[0]
    with pytest.raises(ValueError, match="2 videos are too few for 3 processes"):
        epoch_videos(frames[:2], epoch=0, frames_per_step=200, videos_per_step=12, world=3)


def test_a_batch_holds_each_video_once_with_all_its_queries(write: Write, tiny_annotations: list[Annotation]) -> None:
    data = opened(read_recipe(write("run")))
    (first, *_) = data.batches(0)
    batch = data.batch(first, 0)
    vids = list(dict.fromkeys(tiny_annotations[row].vid for row in first))
    assert len(batch.frames_VCFSS3) == len(vids) == 2
    assert sorted(first) == [row for row, a in enumerate(tiny_annotations) if a.vid in vids]
    assert [vids[v] for v in batch.video_of_B.tolist()] == [tiny_annotations[row].vid for row in first]
    for v, vid in enumerate(vids):
        clips = math.ceil(next(a.duration for a in tiny_annotations if a.vid == vid) / 2)
        assert batch.video_mask_VT[v].tolist() == [True] * clips + [False] * (batch.video_mask_VT.shape[1] - clips)
        assert not batch.frames_VCFSS3[v, clips:].any()
    assert batch.targets is not None and batch.targets.spans_mask_BG.any(1).all()
    sentences = {a.query: s for a, s in zip((tiny_annotations[row] for row in first), batch.sentences_BE, strict=True)}
    one, two = list(sentences)[:2]
    assert not torch.equal(sentences[one], sentences[two])


def test_windows_of_a_long_video_are_merged(write: Write, tiny_annotations: list[Annotation]) -> None:
    data = opened(read_recipe(write("run"), ["--window_clips=6"]))
    assert data.val is not None
    submissions = data.predict(data.build_model(), data.val)
    for annotation, submission in zip(tiny_annotations, submissions, strict=True):
        assert len(submission.pred_saliency_scores) == math.ceil(annotation.duration / 2) > 9
        assert submission.pred_relevant_windows[:, 1].max() > 14  # also of windows after the first


def test_queries_share_the_blocks_below_the_first_adapter(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the chunks that pass each block: queries multiply those above the first adapter only."""
    data = opened(read_recipe(write("run")))
    model = cast(Scada, data.build_model())
    assert data.val is not None
    counts = [0] * model.spec.depth
    for number, block in enumerate(cast(TrainableTower, model.tower).blocks):

        def count(module: object, inputs: tuple[torch.Tensor], number: int = number) -> None:
            counts[number] += len(inputs[0])

        block.register_forward_pre_hook(count)
    data.predict(model, data.val)
    chunks = [data.val.timeline(rows[0]).num_clips for rows in data.val.rows_of_videos().values()]
    queries = [len(rows) for rows in data.val.rows_of_videos().values()]
    per_query = sum(c * q for c, q in zip(chunks, queries, strict=True))
    assert counts == [sum(chunks), sum(chunks), per_query, per_query]


def test_a_frozen_backbone_reads_each_video_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read_recipe(write("frozen"), ["--model.mode=frozen", "--model.first_adapter=0", "--train.ema=0"])
    data = opened(recipe)
    model = cast(Scada, data.build_model())
    chunks = 0

    def count(module: object, inputs: tuple[torch.Tensor]) -> None:
        nonlocal chunks
        chunks += len(inputs[0])

    cast(TrainableTower, model.tower).blocks[0].register_forward_pre_hook(count)
    for epoch in range(2):
        for indices in data.batches(epoch):
            batch = data.batch(indices, epoch)
            clips_BTD = model.encode(batch)
            assert batch.encoded_VND is not None
            read = chunks
            torch.testing.assert_close(clips_BTD, model.encode(replace(batch, encoded_VND=None)), atol=1e-5, rtol=1e-5)
            chunks = read
    assert chunks == sum(data.train.timeline(rows[0]).num_clips for rows in data.train.rows_of_videos().values())
    train(recipe, quiet=True)
    assert losses(recipe)[-1]["total"] < losses(recipe)[0]["total"]


def test_labels_outside_a_video_are_refused(write: Write, tiny_annotations: list[Annotation], tmp_path: Path) -> None:
    late = replace(tiny_annotations[0], relevant_windows=((0, 500),), relevant_clip_ids=(), saliency_scores=())
    write_annotations(tmp_path / "late.jsonl", [late])
    with pytest.raises(ValueError, match=r"the window \[0.*500.*\] ends after its video"):
        opened(read_recipe(write("run"), [f"--data.train={tmp_path / 'late.jsonl'}", "--data.val="]))
    other = [replace(a, duration=a.duration + 60) for a in tiny_annotations[:1]]
    write_annotations(tmp_path / "other.jsonl", other)
    new = f"--data.frames_cache={tmp_path / 'new'}"
    with pytest.raises(ValueError, match=r"lasts .* s, but the annotations of .* say"):
        opened(read_recipe(write("run"), [f"--data.train={tmp_path / 'other.jsonl'}", "--data.val=", new]))


# augmentation --------------------------------------------------------------------------------------------------------


def video(chunks: int = 2) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (chunks, 3, 16, 16, 3), dtype=np.uint8)


def test_augmentation_depends_on_seed_epoch_and_video_alone() -> None:
    config = AugmentConfig(crop=0.7, jitter=0.3, flip=True)
    first, *others = (
        augment(video(), config, seed=seed, epoch=epoch, vid=vid, queries=["a star spins"])
        for seed, epoch, vid in ((1, 2, "v"), (1, 2, "v"), (2, 2, "v"), (1, 3, "v"), (1, 2, "w"))
    )
    assert first.shape == video().shape
    assert [np.array_equal(first, other) for other in others] == [True, False, False, False]
    assert np.array_equal(augment(video(), AugmentConfig(), seed=1, epoch=2, vid="v", queries=[]), video())


@pytest.mark.parametrize(("query", "mirrored"), [("a star", True), ("a star on the Left", False), ("rightmost", False)])
def test_a_video_with_a_query_about_sides_is_never_mirrored(query: str, mirrored: bool) -> None:
    flips = [
        augment(video(), AugmentConfig(flip=True), seed=0, epoch=epoch, vid="v", queries=["a circle", query])
        for epoch in range(12)
    ]
    changed = [not np.array_equal(flipped, video()) for flipped in flips]
    assert any(changed) == mirrored and not all(changed)
    if mirrored:
        assert np.array_equal(flips[changed.index(True)], video()[:, :, :, ::-1])


def test_a_crop_and_a_jitter_are_alike_in_all_frames() -> None:
    still = np.repeat(video(1)[:, :1], 3, axis=1)
    for config in (AugmentConfig(crop=0.5), AugmentConfig(jitter=0.4)):
        (changed,) = augment(still, config, seed=0, epoch=0, vid="v", queries=[])
        assert np.array_equal(changed[0], changed[2]) and not np.array_equal(changed[0], still[0, 0])
