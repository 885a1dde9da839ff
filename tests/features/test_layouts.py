"""Features in the layouts of papers: exported features are read back, and training starts from each layout.

Tolerance: stores and exported files are float16, so every comparison of a round trip is exact.
"""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sidelight.backbones import SpecMismatchError
from sidelight.cli.main import main
from sidelight.core.batch import Predictions
from sidelight.core.grounding import Grounding
from sidelight.core.timeline import Timeline
from sidelight.data.annotations import Annotation, read_annotations, write_annotations
from sidelight.data.labels import Binding
from sidelight.features.check import check
from sidelight.features.layouts import (
    CLIPS_OFF,
    LAYOUTS,
    NORMALISED,
    SPEC_FILE,
    ForeignFeatures,
    durations_of,
    export_features,
    fitted_timeline,
    import_features,
    open_layout,
    recognise,
)
from sidelight.features.store import FeatureStore
from sidelight.models.decode.sdst import DecodeConfig
from sidelight.training.checkpoint import Checkpoint
from sidelight.training.dataset import GroundingDataset
from sidelight.training.loop import train
from sidelight.training.published import R2_TUNING
from sidelight.training.recipe import read_recipe

K, P, L, CLIPS = 4, 3, 5, 10
ROWS = [
    Annotation(
        qid=7,
        query="a dog runs",
        vid="v_1",
        duration=20,
        relevant_windows=((2, 8),),
        relevant_clip_ids=(1, 2, 3),
        saliency_scores=((3, 3, 4), (4, 4, 4), (2, 3, 3)),
    ),
    Annotation(qid="val_2", query="a cat sleeps", vid="v 2,+é", duration=19.5, relevant_windows=((10, 19.5),)),
    Annotation(qid=9, query="a dog runs", vid="v 2,+é", duration=19.5, relevant_windows=((0, 4),)),
]
VIDS = list(dict.fromkeys(row.vid for row in ROWS))


def numbers(*shape: int, seed: int = 0, dtype: str = "float16") -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def save_npy(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def save_npz(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def released_r2(folder: Path, *, clips: int = CLIPS, tokens: int = P, widths: tuple[int, int] = (12, 8)) -> Path:
    for i, vid in enumerate(VIDS):
        save_npy(folder / "clip_b32_vid_k4" / f"{vid}.npy", numbers(clips, K, tokens, widths[0], seed=i))
    for row in ROWS:
        save_npy(folder / "clip_b32_txt_k4" / f"{row.qid}.npy", numbers(L, K, widths[1], seed=len(row.query)))
    return folder


def released_sdst(folder: Path, *, clips: int = CLIPS, levels: int = 5) -> Path:
    for i, vid in enumerate(VIDS):
        video = numbers(clips, levels, 12, seed=i, dtype="float32")
        save_npz(folder / "vid_feats" / f"{vid}.npz", visual_feats_interm_pooled=video)
    for row in ROWS:
        save_npz(folder / "txt_feats" / f"{row.qid}.npz", text_feats=numbers(levels, L, 8, seed=len(row.query)))
    return folder


def released_moment_detr(folder: Path, *, clips: int = CLIPS) -> Path:
    for i, vid in enumerate(VIDS):
        # SlowFast's are often a clip longer.
        slowfast, clip = numbers(clips + 1, 9, seed=i, dtype="float32") * 50, numbers(clips, 6, seed=i)
        save_npz(folder / "slowfast_features" / f"{vid}.npz", features=slowfast)
        save_npz(folder / "clip_features" / f"{vid}.npz", features=clip)
    for row in ROWS:
        state = numbers(L, 8, seed=len(row.query), dtype="float32")
        save_npz(folder / "clip_text_features" / f"qid{row.qid}.npz", last_hidden_state=state, pooler_output=state[0])
    return folder


RELEASED: dict[str, Callable[[Path], Path]] = {
    "r2-tuning": released_r2,
    "sdst": released_sdst,
    "moment-detr": released_moment_detr,
}


def opened(where: Path | str, rows: list[Annotation] = ROWS, **options: object) -> ForeignFeatures:
    features = open_layout(where, durations=durations_of(rows), keys=rows, **options)  # type: ignore[arg-type]
    assert isinstance(features, ForeignFeatures)
    return features


# --- reading ------------------------------------------------------------------------------------------------------


def test_r2_tunings_files(tmp_path: Path) -> None:
    released_r2(tmp_path)
    features = opened(tmp_path)
    assert features.spec == replace(R2_TUNING["qvhighlights"].features(), video_dim=12, text_dim=8)
    assert features.videos() == sorted(VIDS) and features.has_video("v_1") and not features.has_video("v_3")
    video = features.video("v_1")
    assert video.video_KTD.shape == (K, CLIPS, P, 12) and video.timeline.duration == 20
    assert np.array_equal(video.video_KTD[2, 4], numbers(CLIPS, K, P, 12)[4, 2])
    (text, first_text) = features.texts(ROWS[1::-1])
    assert text.shape == first_text.shape == (K, L, 8)
    assert np.array_equal(text, numbers(L, K, 8, seed=len(ROWS[1].query)).transpose(1, 0, 2))
    some = opened(tmp_path, levels=(-3, -1), pooling="cls")
    assert some.spec == replace(features.spec, levels=(-3, -1), pooling="cls")
    assert np.array_equal(some.video("v_1").video_KTD, video.video_KTD[[1, 3], :, 0])
    assert np.array_equal(some.texts(ROWS[:1])[0], features.texts(ROWS[:1])[0][[1, 3]])
    assert not isinstance(video.video_KTD, np.memmap), "a map keeps its file open, thousands of them are too many"


def test_r2_tunings_files_may_be_flat_and_named_otherwise(tmp_path: Path) -> None:
    """Check flattened arrays, TACoS's camera, sentences named by video, and CLIP's size in the folder's name."""
    row = replace(ROWS[0], vid="s13-d21")
    save_npy(tmp_path / "clip_l14_vid_k2" / "s13-d21-cam-002.npy", numbers(CLIPS, 2 * 3 * 1024))
    save_npy(tmp_path / "clip_l14_txt_k2" / "s13-d21.npy", numbers(L, 2 * 768))
    features = opened(tmp_path, [row])
    assert features.spec.weights == "openai/clip-vit-large-patch14" and features.spec.levels == (-2, -1)
    expected = numbers(CLIPS, 2 * 3 * 1024).reshape(CLIPS, 2, 3, 1024).transpose(1, 0, 2, 3)
    assert np.array_equal(features.video("s13-d21").video_KTD, expected)
    assert features.texts([row])[0].shape == (2, L, 768)


def test_sdsts_files(tmp_path: Path) -> None:
    released_sdst(tmp_path)
    features = opened(tmp_path, levels=(-4, -3, -2, -1))
    spec = features.spec
    assert (spec.backbone, spec.pooling, spec.frames_per_clip) == ("internvideo2", "attention", 4)
    assert spec.weights == "OpenGVLab/InternVideo2-Stage2_1B-224p-f4" and opened(tmp_path).spec.levels[0] == -5
    array = numbers(CLIPS, 5, 12, dtype="float32").astype(np.float16)
    assert np.array_equal(features.video("v_1").video_KTD, array.transpose(1, 0, 2)[1:])
    assert np.array_equal(features.texts(ROWS[:1])[0], numbers(5, L, 8, seed=10)[1:])


def test_moment_detrs_files_are_normalised_each_then_put_together(tmp_path: Path) -> None:
    released_moment_detr(tmp_path)
    features = opened(tmp_path)
    assert features.spec.backbone == "slowfast+clip" and features.spec.weights == "moment-detr" + NORMALISED
    video = features.video("v_1").video_KTD.astype(np.float32)
    assert video.shape == (1, CLIPS, 15) and features.texts(ROWS[:1])[0].shape == (1, L, 8)
    for part in (video[..., :9], video[..., 9:], features.texts(ROWS[:1])[0].astype(np.float32)):
        np.testing.assert_allclose(np.linalg.norm(part, axis=-1), 1, atol=2e-3)
    raw = opened(tmp_path, normalise=False)
    assert raw.spec.weights == "moment-detr"
    clip = numbers(CLIPS, 6)
    assert np.array_equal(raw.video("v_1").video_KTD[0, :, 9:], clip)
    np.testing.assert_allclose(video[0, :, 9:], clip / np.linalg.norm(clip.astype(float), axis=1)[:, None], atol=1e-3)
    # Other folders, or another order, are given as VIDEO+VIDEO,TEXT.
    (tmp_path / "clip_text_features").rename(tmp_path / "text")
    where = f"{tmp_path / 'clip_features'}+{tmp_path / 'slowfast_features'},{tmp_path / 'text'}"
    assert recognise(where) == "moment-detr" and recognise(tmp_path) is None
    assert np.array_equal(opened(where, normalise=False).video("v_1").video_KTD[0, :, :6], clip)


def test_missing_levels_of_a_model_advise_no_option_of_another_command(tmp_path: Path) -> None:
    released_sdst(tmp_path)
    spec = replace(opened(tmp_path).spec, levels=(-9, -1))
    with pytest.raises(
        ValueError, match=r"lack \[-9\]; extract them again with all levels that the model reads"
    ) as error:
        opened(tmp_path, spec=spec)
    assert "--levels" not in str(error.value)


def test_layouts_have_the_names_of_their_keys() -> None:
    assert [kind.name for kind in LAYOUTS.values()] == [*LAYOUTS]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ([], None),
        (["clip_b32_vid_k4"], None),
        (["clip_b32_vid_k4", "clip_b32_txt_k4"], "r2-tuning"),
        (["clip_b32_vid_k4", "clip_b32_txt_k2"], None),
        (["vid_feats", "txt_feats"], "sdst"),
        (["clip_features", "clip_text_features"], "moment-detr"),
        (["slowfast_features", "clip_features", "clip_sub_features", "clip_text_features"], "moment-detr"),
        (["vid_slowfast", "vid_clip", "txt_clip"], "moment-detr"),
        (["clip_features"], None),
    ],
)
def test_a_folder_is_recognised_by_what_is_in_it(tmp_path: Path, folders: list[str], expected: str | None) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    assert recognise(tmp_path) == expected


def test_two_layouts_in_one_folder_are_an_error(tmp_path: Path) -> None:
    released_sdst(released_r2(tmp_path))
    with pytest.raises(ValueError, match="folders of the layouts r2-tuning and sdst; give VIDEO"):
        recognise(tmp_path)
    assert opened(tmp_path, layout="sdst").spec.backbone == "internvideo2"
    assert recognise(f"{tmp_path / 'vid_feats'},{tmp_path / 'txt_feats'}") == "sdst"


@pytest.mark.parametrize(
    ("clips", "duration", "expected"),
    [
        (1, None, (2, 1)),
        (10, None, (20, 10)),
        (10, 20, (20, 10)),
        (10, 19.5, (19.5, 10)),
        (11, 20, (20, 10)),
        (14, 20, (20, 10)),
        (9, 20, (20, 9)),
        (6, 20, (20, 6)),
        (15, 20, None),
        (5, 20, None),
    ],
)
def test_a_few_clips_more_or_fewer_are_accepted(
    clips: int, duration: float | None, expected: tuple[float, int] | None
) -> None:
    if expected is None:
        with pytest.raises(
            ValueError, match=rf"have {clips} clips of 2 s, but its 20 s make 10; up to 4 more or fewer"
        ):
            fitted_timeline("v", clips, duration, 2.0)
        return
    timeline = fitted_timeline("v", clips, duration, 2.0)
    assert (timeline.duration, timeline.num_clips) == expected


def test_moments_may_end_after_the_features_at_the_annotated_duration(tmp_path: Path) -> None:
    """Check that a moment in a video of 19.5 s with 9 clips of 2 s may end at 19.5 s, as in the published code."""
    released_r2(tmp_path, clips=CLIPS - 1)
    row = ROWS[1]
    dataset = GroundingDataset([row], opened(tmp_path, [row]), targets=False)
    timeline = dataset.timeline(0)
    assert (timeline.duration, timeline.num_clips, timeline.extent) == (19.5, 9, 18)
    store = import_features(opened(tmp_path, [row]), tmp_path / "store", [row])
    assert store.timeline(row.vid) == timeline == store.video(row.vid).timeline
    predictions = Predictions(
        logits_KBM=torch.full((1, 1, 1), 4.0),
        spans_KBM2=torch.tensor([[[[0.9, 0.5]]]]),  # 11.7 to 20.7 s
        actionness_BM=torch.ones(1, 1),
        saliency_BT=torch.zeros(1, 9),
        video_KBTF=torch.zeros(1, 1, 9, 2),
        text_KBF=torch.zeros(1, 1, 2),
        video_mask_BT=torch.ones(1, 9, dtype=torch.bool),
        saliency_video_BTF=torch.zeros(1, 9, 2),
        saliency_text_BF=torch.zeros(1, 2),
    )
    (grounding,) = DecodeConfig().decode(predictions, [timeline], ["a dog"])
    assert grounding.moments[0].end == 19.5 and grounding.moments[0].start == pytest.approx(11.7, abs=1e-5)
    assert Grounding.from_json(grounding.to_json()) == grounding


@pytest.mark.parametrize(
    ("file", "clip_seconds", "share"),
    [("charades-sta/charades_test.jsonl", 1.0, 45.4), ("tacos/tacos_test.jsonl", 2.0, 60.2)],
)
def test_published_extractions_end_before_many_videos(
    shared: Path, file: str, clip_seconds: float, share: float
) -> None:
    """Check that with rounded numbers of clips, answers may reach the annotated duration of every test query."""
    durations = [row.duration for row in read_annotations(shared / "data" / file)]
    clips = [Timeline(duration=d, clip_seconds=clip_seconds).rounded().num_clips for d in durations]
    timelines = [fitted_timeline("v", n, d, clip_seconds) for n, d in zip(clips, durations, strict=True)]
    assert [t.duration for t in timelines] == durations
    early = np.mean([t.extent < t.duration for t in timelines])
    assert round(100 * float(early), 1) == share


def test_labels_in_missing_clips_are_cut(tmp_path: Path) -> None:
    released_r2(tmp_path, clips=CLIPS - CLIPS_OFF)
    late = replace(ROWS[0], relevant_windows=((10, 20), (14, 18)), relevant_clip_ids=(5, 7, 9))
    bindings: tuple[Binding, ...] = ("plain", "r2-tuning")
    for binding in bindings:
        dataset = GroundingDataset([late], opened(tmp_path), binding=binding)
        sample = dataset.sample(0)
        assert sample.video_KTD.shape[1] == 6 and np.flatnonzero(sample.saliency_T).tolist() == [5]
        center, width = sample.spans_G2.T
        np.testing.assert_allclose(12 * (center + width / 2), [12], atol=1e-5)
        np.testing.assert_allclose(12 * (center - width / 2), [10], atol=1e-5)
    far = replace(late, relevant_windows=((10, 20.5),), duration=19)
    with pytest.raises(ValueError, match="ends after its video"):
        GroundingDataset([far], opened(tmp_path, [far]))


# --- faults -------------------------------------------------------------------------------------------------------


def _pickled(folder: Path) -> None:
    np.save(folder / "clip_b32_vid_k4" / "v_1.npy", np.array([{"a": 1}], dtype=object))


def _code(folder: Path) -> None:
    (folder / "clip_b32_vid_k4" / "v_1.npy").write_bytes(b"cos\nsystem\n(S'touch /tmp/x'\ntR.")


def _whole_numbers(folder: Path) -> None:
    np.save(folder / "clip_b32_vid_k4" / "v_1.npy", np.zeros((CLIPS, K, P, 12), np.int64))


def _half_a_file(folder: Path) -> None:
    path = folder / "clip_b32_vid_k4" / "v_1.npy"
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "clip_b32_vid_k4" / "v_1.npy").write_bytes(b""), "cannot be read as an array"),
        (lambda f: (f / "clip_b32_vid_k4" / "v_1.npy").unlink(), r"v_1\.npy is missing; check the annotations' vid"),
        (_pickled, "v_1.npy cannot be read as an array of numbers: it holds pickled objects"),
        (_code, "it holds pickled objects"),
        (_whole_numbers, "must hold floating-point numbers, got int64"),
        (_half_a_file, "cannot be read as an array"),
        (lambda f: np.save(f / "clip_b32_vid_k4/v_1.npy", numbers(CLIPS, 7)), r"\(clips, levels, tokens, width\), got"),
        (
            lambda f: np.save(f / "clip_b32_vid_k4/v_1.npy", numbers(K, CLIPS, P, 12)),
            "10 levels, but its folder says 4",
        ),
        (
            lambda f: np.save(f / "clip_b32_vid_k4/v_1.npy", numbers(CLIPS, K, P, 13)),
            "13 wide, the feature spec says",
        ),
        (lambda f: np.save(f / "clip_b32_vid_k4/v_1.npy", numbers(30, K, P, 12)), "30 clips of 2 s, but its 20 s make"),
        (lambda f: (f / "clip_b32_txt_k4" / "7.npy").unlink(), r"7\.npy is missing, the features of 'a dog runs'"),
        (lambda f: np.save(f / "clip_b32_txt_k4/7.npy", numbers(L, 3, 8)), "has 3 levels, but its folder says 4"),
    ],
)
def test_a_fault_in_a_file_is_one_sentence(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    features = opened(released_r2(tmp_path))
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        features.video("v_1"), features.texts(ROWS[:1])
    assert str(tmp_path) in str(caught.value) or "v_1" in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "must hold an array 'visual_feats_interm_pooled', got none"),
        (
            {"features": numbers(CLIPS, 12)},
            "got features; check that it is of this layout",
        ),
        ({"visual_feats_interm_pooled": numbers(CLIPS, 12)}, r"\(clips, levels, width\), got \(10, 12\)"),
        ({"visual_feats_interm_pooled": numbers(0, 5, 12)}, r"got \(0, 5, 12\)"),
        ({"visual_feats_interm_pooled": numbers(CLIPS, 4, 12)}, "has 4 levels, the other files have 5"),
        ({"visual_feats_interm_pooled": np.array([None] * 3)}, "it holds pickled objects"),
        ({"visual_feats_interm_pooled": np.full((CLIPS, 5, 12), 1e9)}, "float16 cannot hold"),
        (
            {"visual_feats_interm_pooled": np.full((CLIPS, 5, 12), np.nan)},
            r"level -5 of video .v_1. has numbers that are not finite",
        ),
    ],
)
def test_a_fault_in_an_archive_is_one_sentence(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    features = opened(released_sdst(tmp_path))
    save_npz(tmp_path / "vid_feats" / "v_1.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        features.video("v_1")
    (tmp_path / "vid_feats" / "v_1.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match="cannot be read as an array"):
        features.video("v_1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "umt"}, "no feature layout 'umt'; known are sidelight, r2-tuning, sdst, moment-detr"),
        ({"layout": "sidelight"}, "no feature store"),
        ({"layout": "sdst"}, "expected the folders vid_feats and txt_feats"),
        ({"levels": (-5, -1)}, r"have the levels \(-4, -3, -2, -1\) and lack \[-5\]; choose among those"),
        ({"backbone": "internvideo2"}, "backbone.weights must name the weights of 'internvideo2'"),
        ({"backbone": "shapes"}, "are not of the backbone 'shapes'"),
        (
            {"rows": [replace(ROWS[0], qid="nobody")]},
            r"annotations' sentences; expected files such as nobody\.npy",
        ),
        ({"rows": [replace(ROWS[0], vid="../v_1")]}, "the id '../v_1' cannot be the name of a file"),
    ],
)
def test_options_that_contradict_the_files_are_errors(tmp_path: Path, options: dict[str, object], message: str) -> None:
    released_r2(tmp_path)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", ".", "..", "../v_1", "a/b", "a\\b", "/etc/passwd", "C:x", "a\0b"])
def test_no_id_leads_outside_the_folder(tmp_path: Path, name: str) -> None:
    features = opened(released_r2(tmp_path / "inside"))
    save_npy(tmp_path / "v_1.npy", numbers(1))
    with pytest.raises(ValueError, match="cannot be the name of a file"):
        features.video(name)
    if name:
        with pytest.raises(ValueError, match="cannot be the name of a file"):
            features.texts([replace(ROWS[0], qid=name)])


def test_all_tokens_can_only_become_cls(tmp_path: Path) -> None:
    features = opened(released_r2(tmp_path), pooling="mean")
    with pytest.raises(ValueError, match="keeps all 3 tokens of a clip: pooling must be tokens, or cls"):
        features.video("v_1")
    with pytest.raises(ValueError, match="keeps one vector a clip: pooling must not be tokens"):
        opened(released_sdst(tmp_path / "sdst"), pooling="tokens")


def test_folders_of_different_lengths_are_refused(tmp_path: Path) -> None:
    released_moment_detr(tmp_path)
    save_npz(tmp_path / "slowfast_features" / "v_1.npz", features=numbers(CLIPS + 5, 9))
    with pytest.raises(
        ValueError, match=r"'v_1' have different lengths \(slowfast_features 15, clip_features 10 clips\)"
    ):
        opened(tmp_path)
    for where in (f"{tmp_path / 'a'}+,{tmp_path}", f",{tmp_path}", f"{tmp_path / 'a'},"):
        with pytest.raises(ValueError, match=r"expected a folder, or VIDEO\[\+VIDEO"):
            open_layout(where)


# --- a published model ------------------------------------------------------------------------------------------


def test_a_published_model_takes_the_published_features_and_no_others(tmp_path: Path) -> None:
    published = R2_TUNING["qvhighlights"].features()
    save_npy(tmp_path / "clip_b32_vid_k4" / "v_1.npy", numbers(CLIPS, K, P, 768))
    save_npy(tmp_path / "clip_b32_txt_k4" / "7.npy", numbers(L, K, 512))
    published.require(opened(tmp_path, ROWS[:1]).spec)
    with pytest.raises(SpecMismatchError, match=r"clip_seconds is 1\.0, expected 2\.0"):
        published.require(opened(tmp_path, ROWS[:1], clip_seconds=1.0).spec)
    with pytest.raises(SpecMismatchError, match="weights is 'mine', expected 'openai/clip-vit-base-patch32'"):
        published.require(opened(tmp_path, ROWS[:1], weights="mine").spec)


# --- writing ------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path, tiny_annotations: list[Annotation]) -> Path:
    """Return a file with two queries each of two videos."""
    vids = list(dict.fromkeys(a.vid for a in tiny_annotations))[:2]
    rows = [a for vid in vids for a in [b for b in tiny_annotations if b.vid == vid][:2]]
    path = tmp_path / "annotations.jsonl"
    write_annotations(path, rows)
    return path


LEVEL = {"r2-tuning": None, "sdst": None, "moment-detr": -1}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_and_import_give_the_same_store(layout: str, tmp_path: Path, world: Path, tiny_store: Path) -> None:
    rows, store = read_annotations(world), FeatureStore(tiny_store)
    level = LEVEL[layout]
    out = tmp_path / "exported"
    assert export_features(store, out, rows, layout=layout, level=level) == (2, len(rows))
    assert recognise(out) == layout and not list(tmp_path.glob(".*partial"))
    kept = store if level is None else FeatureStore(tiny_store, levels=(level,))
    features = opened(out, rows, normalise=False)
    assert features.spec == kept.spec
    back = import_features(features, tmp_path / "back", rows)
    for vid in {row.vid for row in rows}:
        for copied in (features, back):
            assert np.array_equal(copied.video(vid).video_KTD, kept.video(vid).video_KTD)
            assert copied.timeline(vid).num_clips == kept.timeline(vid).num_clips
    for ours, theirs, again in zip(kept.texts(rows), features.texts(rows), back.texts(rows), strict=True):
        assert np.array_equal(ours, theirs) and np.array_equal(ours, again)


def test_every_token_is_imported_and_exported(tmp_path: Path) -> None:
    rows = ROWS[:1]
    features = opened(released_r2(tmp_path / "r2"), rows)
    store = import_features(features, tmp_path / "store", rows)
    assert store.spec == features.spec and import_features(features, tmp_path / "store", rows).videos() == ["v_1"]
    export_features(store, tmp_path / "again", rows, layout="r2-tuning")
    first, again = (tmp_path / folder / "clip_b32_vid_k4" / "v_1.npy" for folder in ("r2", "again"))
    assert first.read_bytes() == again.read_bytes()
    assert np.array_equal(
        np.load(tmp_path / "again/clip_b32_txt_k4/7.npy"), np.load(tmp_path / "r2/clip_b32_txt_k4/7.npy")
    )
    for layout in ("sdst", "moment-detr"):
        with pytest.raises(ValueError, match="one vector a clip, the store every token"):
            export_features(store, tmp_path / layout, rows, layout=layout)


def test_normalised_features_stay_normalised(tmp_path: Path) -> None:
    features = opened(released_moment_detr(tmp_path / "released"))
    store = import_features(features, tmp_path / "store", ROWS)
    export_features(store, tmp_path / "again", ROWS, layout="moment-detr")
    again = opened(tmp_path / "again")
    assert again.spec == store.spec == features.spec
    assert np.array_equal(again.video("v_1").video_KTD, features.video("v_1").video_KTD)


def test_an_exported_folder_has_its_feature_spec(tmp_path: Path, world: Path, tiny_store: Path) -> None:
    rows = read_annotations(world)
    export_features(FeatureStore(tiny_store), tmp_path / "out", rows, layout="sdst")
    assert opened(tmp_path / "out", rows, backbone="shapes", weights="anything").spec.pooling == "attention"
    with pytest.raises(ValueError, match=r"feature-spec\.json says pooling 'attention', got 'mean'"):
        opened(tmp_path / "out", rows, pooling="mean")
    # Folders of before the first release.
    old_file = (tmp_path / "out" / SPEC_FILE).rename(tmp_path / "out" / "feature-recipe.json")
    assert opened(tmp_path / "out", rows).spec == FeatureStore(tiny_store).spec
    old_file.write_text("[]")
    with pytest.raises(ValueError, match="is no feature spec"):
        opened(tmp_path / "out", rows)


def test_export_refuses_features_that_do_not_fit(tmp_path: Path, world: Path, tiny_store: Path) -> None:
    rows, store, out = read_annotations(world), FeatureStore(tiny_store), tmp_path / "out"

    def refused(message: str, rows: list[Annotation] = rows, store: FeatureStore = store, **options: object) -> None:
        with pytest.raises(ValueError, match=message):
            export_features(store, out, rows, **{"layout": "sdst", **options})  # type: ignore[arg-type]

    refused("there are no annotations", rows=[])
    refused("no feature layout 'umt'; known are r2-tuning", layout="umt")
    refused(r"has one level, the store 4 \(-4, -3, -2, -1\); choose one with --level", layout="moment-detr")
    refused("lack", level=-9, layout="moment-detr")
    refused("holds the last levels of a backbone", store=FeatureStore(tiny_store, levels=(-3, -1)))
    refused("lacks 1 of 1 videos, such as 'v_1'", rows=ROWS[:1])
    refused("cannot be the name of a file", rows=[replace(rows[0], vid="a/b")])
    refused("stands for two sentences", rows=[rows[0], replace(rows[1], qid=rows[0].qid)])
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").touch()
    refused("already exists")
    assert [p.name for p in out.iterdir()] == ["mine.txt"]


def test_an_interrupted_export_is_continued(
    tmp_path: Path, world: Path, tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, store = read_annotations(world), FeatureStore(tiny_store)
    read: list[str] = []
    read_video = FeatureStore.video

    def stop_at_second(self: FeatureStore, vid: str) -> object:
        read.append(vid)
        if len(read) == 2:
            raise KeyboardInterrupt
        return read_video(self, vid)

    monkeypatch.setattr(FeatureStore, "video", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        export_features(store, tmp_path / "out", rows, layout="sdst")
    assert not (tmp_path / "out").exists()
    export_features(store, tmp_path / "out", rows, layout="sdst")
    assert len(read) == 3 and read[1] == read[2] and opened(tmp_path / "out", rows).videos() == sorted(set(read))


def test_a_sentence_with_two_features_is_not_imported(tmp_path: Path) -> None:
    released_r2(tmp_path / "r2")
    import_features(opened(tmp_path / "r2"), tmp_path / "store", ROWS)
    save_npy(tmp_path / "r2" / "clip_b32_txt_k4" / "9.npy", numbers(L + 1, K, 8))
    with pytest.raises(ValueError, match=r"features of the same sentence, 'a dog runs', and differ"):
        import_features(opened(tmp_path / "r2"), tmp_path / "other", ROWS)


# --- training, prediction, data check, commands -------------------------------------------------------------------

RECIPES = {
    "r2-tuning": """
side_tuner: r2-tuning
model: {video_dim: 12, text_dim: 8, hidden: 16, heads: 2}
backbone: {name: clip, levels: 4, pooling: tokens, clip_seconds: 2.0, frames_per_clip: 1}
""",
    "sdst": """
model: {video_dim: 12, text_dim: 8, hidden: 16, heads: 2, moment_queries: 4, roi_bins: 4}
backbone: {name: internvideo2, levels: 4, pooling: attention}
""",
    "moment-detr": """
model: {video_dim: 15, text_dim: 8, levels: 1, hidden: 16, heads: 2, moment_queries: 4, roi_bins: 4}
backbone: {name: slowfast+clip, levels: 1, pooling: cls}
""",
}


def written_recipe(folder: Path, layout: str, features: Path | str) -> Path:
    # Metrics want ratings of all or of none.
    write_annotations(folder / "rows.jsonl", [replace(row, saliency_scores=()) for row in ROWS])
    path = folder / "recipe.yaml"
    data = f"data: {{train: {folder / 'rows.jsonl'}, val: {folder / 'rows.jsonl'}, train_features: '{features}'}}\n"
    steps = f"train: {{epochs: 2, batch_size: 3, accelerator: cpu, out: {folder / 'run'}}}\n"
    path.write_text(RECIPES[layout] + data + steps)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_starts_from_each_and_predict_reads_it(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = RELEASED[layout](tmp_path / "features")
    spec = read_recipe(written_recipe(tmp_path, layout, features))
    progress = train(spec, quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    assert progress.step == len(rows) == 2 and all(np.isfinite(row["total"]) for row in rows)
    # The store that features import makes is what was trained on, and gives the same first step.
    opened_as_trained = opened(features, levels=spec.backbone.chosen)
    store = import_features(opened_as_trained, tmp_path / "store", ROWS)
    assert Checkpoint.from_pretrained(tmp_path / "run" / "last").features == store.spec
    again = replace(spec, train=replace(spec.train, out=str(tmp_path / "again")))
    train(replace(again, data=replace(spec.data, train_features=str(store.folder))), quiet=True)
    first_step = json.loads((tmp_path / "again" / "losses.jsonl").read_text().splitlines()[0])
    assert first_step["total"] == pytest.approx(rows[0]["total"], rel=1e-6)
    for source in (features, store.folder):
        command = ["predict", "--model", str(tmp_path / "run" / "last"), "--annotations", str(tmp_path / "rows.jsonl")]
        assert main([*command, "--features", str(source), "--out", str(tmp_path / "predicted.jsonl")]) == 0
        assert "wrote 3 predictions" in capsys.readouterr().out


def test_features_that_contradict_a_recipe_are_an_error(tmp_path: Path) -> None:
    path = written_recipe(tmp_path, "r2-tuning", released_r2(tmp_path / "features"))
    for options, message in (
        (["--data.layout=sdst"], "expected the folders vid_feats and txt_feats"),
        (["--data.layout=umt"], "layout"),
        (["--backbone.levels=5"], r"lack \[-5\]"),
        (["--model.video_dim=13"], "model.video_dim is 13, but the features in .* have 12"),
        (["--data.train_videos=videos"], "which are not added to; leave out data.train_videos"),
        (["--backbone.clip_seconds=1"], "have 10 clips of 1 s, but its 20 s make 20"),
    ):
        with pytest.raises(ValueError, match=message):
            train(read_recipe(path, options), quiet=True)


def test_the_check_of_data_reads_every_layout(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    write_annotations(rows, ROWS)
    for layout, released in RELEASED.items():
        (finding,) = (f for f in check(rows, features=released(tmp_path / layout)).findings if f.kind != "no-labels")
        assert finding.kind == "features-layout" and finding.rows == 2
        assert (
            finding.examples[0].startswith(f"{layout}: 2 of 2 videos; ") and "3 of 3 sentences" in finding.examples[1]
        )
    assert finding.examples[0] == "moment-detr: 2 of 2 videos; 1 level, 15 wide, float32"
    folder = tmp_path / "r2-tuning"
    bad = numbers(CLIPS - 2, K, P, 12)
    bad[3, 2, 1, 0] = np.nan
    save_npy(folder / "clip_b32_vid_k4" / "v_1.npy", bad)
    save_npy(folder / "clip_b32_vid_k4" / "more.npy", numbers(CLIPS, K, P, 12))
    (folder / "clip_b32_txt_k4" / "9.npy").unlink()
    save_npy(folder / "clip_b32_txt_k4" / "7.npy", numbers(L, K, 9))
    findings = {f.kind: f.examples for f in check(rows, features=folder).findings}
    assert findings.pop("features-layout")[1].startswith("r2-tuning: 2 of 3 sentences")
    assert findings == {
        "features-values": ("video v_1",),
        "features-few": ("v_1: 8 clips, its duration makes 10",),
        "surplus-features": ("more",),
        "missing-query-features": ("qid 9: 'a dog runs'",),
        "features-shape": ("sentence val_2: 4 levels, 8 wide, float16",),
    }
    _pickled(folder)
    save_npy(folder / "clip_b32_vid_k4" / f"{VIDS[1]}.npy", numbers(30, K, P, 12))
    findings = {f.kind: f.examples for f in check(rows, features=folder).findings}
    assert "pickled" in findings["features-unreadable"][0] and "30 clips" in findings["features-length"][0]


def test_the_commands(tmp_path: Path, world: Path, tiny_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = len(read_annotations(world))
    for layout in LAYOUTS:
        out, back = tmp_path / layout, tmp_path / f"back-{layout}"
        export = ["features", "export", str(tiny_store), "--layout", layout, "--annotations", str(world)]
        level = ["--level", "-1"] if layout == "moment-detr" else []
        assert main([*export, "--out", str(out), *level]) == 0
        assert f"wrote 2 videos and {count} queries to {out} (" in capsys.readouterr().out
        assert main([*export, "--out", str(out), *level]) == 2 and "already exists" in capsys.readouterr().err
        command = ["features", "import", str(out), "--annotations", str(world), "--out", str(back), "--as-is"]
        assert main(command) == 0
        shown = capsys.readouterr().out
        assert f"{back}: 2 videos" in shown and "made by shapes (" in shown
        assert main(["data", "check", str(world), "--features", str(out)]) == 0
        assert "features in the layout of a paper (2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one of verify, export, import"),
        (["export", "STORE"], "--layout"),
        (["export", "STORE", "--layout", "umt", "--annotations", "ROWS", "--out", "OUT"], "umt"),
        (["export", "nowhere", "--layout", "sdst", "--annotations", "ROWS", "--out", "OUT"], "no feature store"),
        (["export", "STORE", "--layout", "moment-detr", "--annotations", "ROWS", "--out", "OUT"], "with --level"),
        (["import", "nowhere", "--annotations", "ROWS", "--out", "OUT"], "not a folder"),
        (["import", "STORE", "--annotations", "ROWS", "--out", "s3://b/out"], "is an address"),
        (["import", "STORE", "--annotations", "ROWS", "--out", "OUT"], "is a feature store of sidelight"),
        (["import", "STORE", "--annotations", "ROWS", "--out", "OUT", "--levels", "0"], "--levels must be above 0"),
        (["import", "a,b", "--layout", "sdst", "--annotations", "ROWS", "--out", "OUT"], "there is no folder a"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    world: Path,
    tiny_store: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = {"STORE": str(tiny_store), "ROWS": str(world), "OUT": str(tmp_path / "out")}
    assert main(["features", *(named.get(a, a) for a in arguments)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("sidelight: ") and message in printed and len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_archive_that_would_fill_the_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    features = opened(released_sdst(tmp_path))
    path = tmp_path / "txt_feats" / "7.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("text_feats.npy", "w", force_zip64=True) as file,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (5, 1 << 16, 1 << 10)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(5 << 8):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"7\.npz cannot be read .* would become 1\.3 GB; the limit is 1\d\d MB"):
        features.texts(ROWS[:1])
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
