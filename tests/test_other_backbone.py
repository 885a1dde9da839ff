"""Check that a model trained on features of one backbone refuses the other's features: InternVideo2 and CLIP."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sidelight import Grounder
from sidelight.backbones import SpecMismatchError, load_backbone
from sidelight.backbones.clip.convert import convert_clip
from sidelight.backbones.internvideo2.convert import convert_internvideo2
from sidelight.cli.main import main
from sidelight.data.annotations import Annotation
from sidelight.features.extract import extract
from sidelight.features.sources import find_videos
from sidelight.features.store import FeatureStore
from sidelight.training.checkpoint import Checkpoint
from sidelight.training.loop import train
from sidelight.training.recipe import read_recipe
from tests.backbones import test_clip as tiny_clip
from tests.backbones import test_internvideo2 as tiny_internvideo2

KINDS = ("internvideo2", "clip")
OTHER = {"internvideo2": "clip", "clip": "internvideo2"}
QUERIES = ("a red star", "the dog", "run", "a blue ring")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a folder of weights for each backbone."""
    folder = tmp_path_factory.mktemp("weights")
    tiny_clip.write_vocabulary(folder)
    (folder / "vocab.txt").write_text("\n".join(tiny_internvideo2.VOCABULARY) + "\n", encoding="utf-8")
    torch.save(tiny_internvideo2.published_model(), folder / "internvideo2.pt")
    torch.save(tiny_clip.openai_tensors(516), folder / "clip.pt")
    return {
        "internvideo2": convert_internvideo2(
            folder / "internvideo2.pt", folder / "internvideo2", config=tiny_internvideo2.CONFIG
        ),
        "clip": convert_clip(folder / "clip.pt", folder / "clip", heads=tiny_clip.HEADS, vocabulary=folder),
    }


@pytest.fixture(scope="module")
def truth(tiny_annotations: list[Annotation], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the annotations of the tiny world, with sentences of words in both tiny vocabularies."""
    path = tmp_path_factory.mktemp("annotations") / "short.jsonl"
    rows = [replace(a, query=QUERIES[i % len(QUERIES)]).to_dict() for i, a in enumerate(tiny_annotations)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def stores(weights: dict[str, Path], tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Extract features of the same videos and sentences with each backbone."""
    files = {path.stem: path for path in sorted((tiny_world / "videos").iterdir())}
    folders = {}
    for kind in KINDS:
        folders[kind] = tmp_path_factory.mktemp("stores") / kind
        backbone = load_backbone(kind, weights=weights[kind], levels=3, pooling="cls")
        _, failures = extract(find_videos(tiny_world / "videos", files), QUERIES, backbone, folders[kind], workers=0)
        assert not failures
    return folders


@pytest.fixture(scope="module")
def models(
    weights: dict[str, Path], stores: dict[str, Path], truth: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Train a checkpoint on the features of each backbone."""
    checkpoints = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp("models")
        (folder / "recipe.yaml").write_text(
            f"model: {{video_dim: 32, text_dim: {24 if kind == 'internvideo2' else 16}, levels: 3, hidden: 16, "
            "heads: 2, moment_queries: 4, roi_bins: 4}\n"
            f"backbone: {{name: {kind}, levels: 3, pooling: cls, weights: {weights[kind]}}}\n"
            f"data: {{train: {truth}, train_features: {stores[kind]}}}\n"
            f"train: {{epochs: 1, batch_size: 8, accelerator: cpu, out: {folder / 'run'}}}\n"
        )
        train(read_recipe(folder / "recipe.yaml"), quiet=True)
        checkpoints[kind] = folder / "run" / "last"
    return checkpoints


def differences(kind: str) -> list[str]:
    """Return the differences that the message must name."""
    text, frames = {"internvideo2": (24, 4), "clip": (16, 1)}, {"internvideo2": 4, "clip": 1}
    other = OTHER[kind]
    return [
        f"backbone is '{other}', expected '{kind}'",
        "weights is",
        f"frames_per_clip is {frames[other]}, expected {frames[kind]}",
        "resize is",
        f"text_dim is {text[other][0]}, expected {text[kind][0]}",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_answers_with_its_own_backbone(
    kind: str, models: dict[str, Path], weights: dict[str, Path], tiny_world: Path
) -> None:
    video = next((tiny_world / "videos").iterdir())
    grounder = Grounder.from_pretrained(models[kind], device="cpu", backbone_weights=weights[kind])
    assert grounder.ground(video, "the dog").moments


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_backbone_is_refused(kind: str, models: dict[str, Path], weights: dict[str, Path]) -> None:
    other = load_backbone(OTHER[kind], weights=weights[OTHER[kind]], levels=3, pooling="cls")
    with pytest.raises(SpecMismatchError) as refusal:
        Grounder(Checkpoint.from_pretrained(models[kind]), backbone=other, device="cpu")
    message = str(refusal.value)
    assert message.startswith(
        "the backbone's features were made by another feature spec than this model was trained on"
    )
    assert all(difference in message for difference in differences(kind)), message


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_the_other_are_refused(
    kind: str,
    models: dict[str, Path],
    stores: dict[str, Path],
    truth: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--model", str(models[kind]), "--annotations", str(truth), "--out", str(tmp_path / "out.jsonl")]
    assert main(["predict", *options, "--features", str(stores[kind]), "--device", "cpu"]) == 0
    (tmp_path / "out.jsonl").unlink()
    capsys.readouterr()
    assert main(["predict", *options, "--features", str(stores[OTHER[kind]]), "--device", "cpu"]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and f"the features in {stores[OTHER[kind]]}" in shown.err
    assert all(difference in shown.err for difference in differences(kind)), shown.err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_the_other_are_refused(
    kind: str,
    models: dict[str, Path],
    weights: dict[str, Path],
    tiny_world: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video = str(next((tiny_world / "videos").iterdir()))
    options = ["--model", str(models[kind]), "--backbone-weights", str(weights[OTHER[kind]]), "--device", "cpu"]
    assert main(["ground", video, "the dog", *options]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and str(weights[OTHER[kind]]) in shown and "Traceback" not in shown
    assert {"internvideo2": "it holds weights of clip", "clip": "is not CLIP: its config.json"}[kind] in shown


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_of_the_other_is_refused(
    kind: str, models: dict[str, Path], stores: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = models[kind].parent.parent / "recipe.yaml"
    before = sorted(recipe.parent.rglob("*"))
    overrides = [f"--data.train_features={stores[OTHER[kind]]}", f"--train.out={recipe.parent / 'new'}"]
    for check in ([], ["--check"]):
        assert main(["train", str(recipe), *overrides, *check]) == 2
        message = (
            f"recipe {recipe}: backbone.name says '{kind}', but the features in {stores[OTHER[kind]]} were made with"
        )
        assert message in capsys.readouterr().err and sorted(recipe.parent.rglob("*")) == before


@pytest.mark.parametrize("kind", KINDS)
def test_the_store_of_the_other_is_not_filled(
    kind: str, weights: dict[str, Path], stores: dict[str, Path], tiny_world: Path
) -> None:
    backbone = load_backbone(kind, weights=weights[kind], levels=3, pooling="cls")
    with pytest.raises(SpecMismatchError, match=f"backbone is '{OTHER[kind]}', expected '{kind}'"):
        extract({}, ["run"], backbone, stores[OTHER[kind]], workers=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_types_are_no_difference(
    kind: str, dtype: str, weights: dict[str, Path], stores: dict[str, Path], tiny_world: Path, tmp_path: Path
) -> None:
    """Check that the spec is the same, that features are near, and that a store can be filled with another type."""
    half = load_backbone(kind, weights=weights[kind], levels=3, pooling="cls", dtype=dtype)
    spec, allowed = half.spec, {"bfloat16": 0.03, "float16": 0.004}[dtype]
    store = FeatureStore(shutil.copytree(stores[kind], tmp_path / "store"))
    assert spec == store.spec
    stored = {vid: store.video(vid).video_KTD.astype(np.float32) for vid in store.videos()}
    (removed, *_), text = stored, store.queries(QUERIES)
    (tmp_path / "store" / "videos" / f"{removed}.safetensors").unlink()
    filled, failures = extract(
        find_videos(tiny_world / "videos", stored), ["the dog run"], half, store.folder, workers=0
    )
    assert not failures and set(filled.videos()) == set(stored)
    refilled = filled.video(removed).video_KTD.astype(np.float32)
    assert 0 < np.linalg.norm(refilled - stored[removed]) < allowed * np.linalg.norm(stored[removed])
    for query, encoded in zip(QUERIES, half.encode_text(QUERIES), strict=True):
        full = text[query].astype(np.float32)
        assert 0 < np.linalg.norm(encoded.numpy() - full) < allowed * np.linalg.norm(full)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_and_company_change_no_bit(
    kind: str, weights: dict[str, Path], tiny_world: Path, tmp_path: Path
) -> None:
    videos = {path.stem: path for path in sorted((tiny_world / "videos").iterdir())}
    backbone = load_backbone(kind, weights=weights[kind], levels=3, pooling="tokens")
    for batch_clips in (5, 16):
        out = tmp_path / str(batch_clips)
        store, _ = extract(videos, [], backbone, out / "all", workers=2, batch_clips=batch_clips)
        for vid, path in videos.items():
            alone, _ = extract({vid: path}, [], backbone, out / vid, workers=0, batch_clips=batch_clips)
            assert np.array_equal(alone.video(vid).video_KTD, store.video(vid).video_KTD)
