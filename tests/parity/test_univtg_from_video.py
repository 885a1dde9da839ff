"""From a video file to moments: UniVTG's weights on CLIP, against the same steps done by hand; and released features.

The weights are those of ``tests/data/golden/univtg`` (published code, random numbers). CLIP comes from transformers,
with random weights and the sizes of the checkpoint: a joint space of 16, a text tower 12 wide.

By hand, as the published extractor does: our decoder's frames, normalised in plain NumPy; image embeddings after the
visual projection; the text tower's states after its last LayerNorm, at most 32 tokens; each row divided by its length
plus 1e-5.

Features are float16 on the way. The tolerance is 2e-3 for scores and saliency, and 2e-3 of the video for seconds.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sidelight import Grounder, Grounding
from sidelight.backbones.clip.model import CLIPBackbone
from sidelight.backbones.clip.released import CLIP_B32, CLIP_MEAN, CLIP_STD
from sidelight.backbones.common import QueryWarning
from sidelight.cli.main import main
from sidelight.core.batch import Batch
from sidelight.core.timeline import Timeline
from sidelight.data.annotations import Annotation
from sidelight.features.layouts import open_layout
from sidelight.models.decode.univtg import UniVTGDecodeConfig
from sidelight.models.univtg import UniVTG, UniVTGConfig, from_published
from sidelight.training.convert_univtg import convert_univtg
from sidelight.video.read import frames_at, probe
from tests.backbones.test_clip import write_vocabulary
from tests.training.test_convert_univtg import omni_like

transformers: Any = import_module("transformers")  # the towers of CLIP are not in its types
DATA = Path(__file__).resolve().parents[1] / "data" / "golden" / "univtg"
SIDE, PATCH, JOINT, TEXT = 224, 112, 16, 12
QUERIES = ["a person opens the door", "someone is drinking water"]
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder as on the hub: a tiny CLIP of transformers with a vocabulary of bytes."""
    folder = tmp_path_factory.mktemp("clip")
    vocabulary = write_vocabulary(folder)
    both = {"hidden_act": "quick_gelu", "projection_dim": JOINT, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.CLIPConfig(
        vision_config=both | {"hidden_size": 24, "num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH},
        text_config=both
        | {"hidden_size": TEXT, "num_attention_heads": 2, "vocab_size": vocabulary, "max_position_embeddings": 77}
        | {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1},
        projection_dim=JOINT,
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = transformers.CLIPModel(config)
        for parameter in model.parameters():  # the default weights are so small that all frames look alike
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert the golden weights, for the features of that CLIP."""
    folder = tmp_path_factory.mktemp("univtg")
    torch.save({"model": load_file(DATA / "weights.safetensors"), "epoch": 0}, folder / "model.ckpt")
    out, digest = folder / "out", CLIPBackbone(weights=clip, pooling="joint-video").spec.weights
    convert_univtg(folder / "model.ckpt", out, weights=digest)
    return out


@pytest.fixture(scope="module")
def video(tiny_world: Path) -> Path:
    return sorted((tiny_world / "videos").iterdir())[0]


def divided(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / (lengths + 1e-5)


@torch.inference_mode()
def by_hand(video: Path, query: str, clip: Path) -> Grounding:
    """Return the grounding by the steps that the docstring of this module names."""
    duration = probe(video).duration
    clips = int(duration / 2 + 0.5)  # FFmpeg's filter fps, which the published extraction uses, rounds
    seconds = [min(2.0 * i + 1.0, np.nextafter(duration, 0)) for i in range(clips)]
    frames = np.stack([f.image for f in frames_at(video, seconds, size=(SIDE, SIDE), resize="crop")])
    pixels = ((frames / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).transpose(0, 3, 1, 2)
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    summary = model.vision_model(torch.tensor(pixels, dtype=torch.float32)).pooler_output
    video_TD = divided(model.visual_projection(summary))
    ids = torch.tensor([transformers.CLIPTokenizer.from_pretrained(clip)(query)["input_ids"]])
    text_LD = divided(model.text_model(ids).last_hidden_state[0])
    side_tuner = UniVTG(UniVTGConfig(video_dim=JOINT, text_dim=TEXT, hidden=32, layers=3, ffn=48)).eval()
    side_tuner.load_state_dict(from_published(load_file(DATA / "weights.safetensors")))
    batch = Batch(
        video_KBTD=video_TD[None, None],
        video_mask_BT=torch.ones(1, clips, dtype=torch.bool),
        text_KBLD=text_LD[None, None],
        text_mask_BL=torch.ones(1, len(text_LD), dtype=torch.bool),
    )
    timeline = Timeline(duration=duration, clip_seconds=2.0, clips=clips)
    return UniVTGDecodeConfig().decode(side_tuner(batch), [timeline], [query])[0]


def assert_same(grounding: Grounding, expected: Grounding) -> None:
    assert grounding.query == expected.query and grounding.timeline == expected.timeline
    assert len(grounding.moments) == len(expected.moments) >= 3
    np.testing.assert_allclose(grounding.saliency, expected.saliency, atol=TOLERANCE)
    unit = np.array([expected.timeline.duration, expected.timeline.duration, 1.0])
    ours, theirs = (np.array([(m.start, m.end, m.score) for m in g.moments]) / unit for g in (grounding, expected))
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


def test_a_video_file_becomes_the_same_moments(video: Path, clip: Path, checkpoint: Path) -> None:
    grounder = Grounder.from_pretrained(checkpoint, device="cpu", backbone_weights=clip)
    groundings = grounder.ground(video, QUERIES)
    for grounding, query in zip(groundings, QUERIES, strict=True):
        assert_same(grounding, by_hand(video, query, clip))
    # The answer depends on the video and on the query.
    assert np.ptp(groundings[0].saliency) > 10 * TOLERANCE
    assert np.abs(groundings[0].saliency - groundings[1].saliency).max() > 10 * TOLERANCE


def test_the_command_gives_the_same_moments(video: Path, clip: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ["--model", str(checkpoint), "--backbone-weights", str(clip), "--device", "cpu", "--json", str(out)]
    assert main(["ground", str(video), QUERIES[0], *options]) == 0
    (grounding,) = (Grounding.from_dict(values) for values in json.loads(out.read_text()))
    assert_same(grounding, by_hand(video, QUERIES[0], clip))


@torch.inference_mode()
def test_features_are_those_of_transformers(clip: Path) -> None:
    backbone = CLIPBackbone(weights=clip, pooling="joint-video")
    spec = backbone.spec
    assert (spec.levels, spec.video_dim, spec.text_dim, spec.pooling) == ((-1,), JOINT, TEXT, "joint-video")
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    frames = torch.randint(0, 256, (3, 1, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = (frames[:, 0] / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    summary = model.vision_model(pixels.permute(0, 3, 1, 2)).pooler_output
    expected = divided(model.visual_projection(summary))
    torch.testing.assert_close(backbone.encode_video(frames)[0], expected, atol=3e-5, rtol=1e-4)
    for query, text in zip(QUERIES, backbone.encode_text(QUERIES), strict=True):
        states = model.text_model(torch.tensor(backbone.token_ids([query]))).last_hidden_state
        torch.testing.assert_close(text, divided(states), atol=3e-5, rtol=1e-4)
    # Other weights of the projection are other features: a digest of the towers alone would not tell.
    assert spec.weights != CLIPBackbone(weights=clip, levels=1).spec.weights


def test_a_sentence_has_at_most_32_tokens(clip: Path) -> None:
    backbone = CLIPBackbone(weights=clip, pooling="joint-video")
    with pytest.warns(QueryWarning, match="longer than the 32 tokens"):
        (text,) = backbone.encode_text(["x" * 50])
    assert text.shape == (1, 32, TEXT)
    ids = backbone.token_ids(["x"])[0]
    with pytest.warns(QueryWarning):
        assert backbone.token_ids(["x" * 50])[0][-1] == ids[-1]  # the end token stays


def test_frames_of_a_clip_are_averaged_as_unit_vectors(clip: Path) -> None:
    one = CLIPBackbone(weights=clip, pooling="joint-video")
    two = CLIPBackbone(weights=clip, pooling="joint-video", frames_per_clip=2)
    frames = torch.randint(0, 256, (2, 2, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    each = one.encode_video(frames.flatten(0, 1)[:, None])[0].unflatten(0, (2, 2))
    mean = torch.nn.functional.normalize(each.mean(1), dim=-1)
    torch.testing.assert_close(two.encode_video(frames)[0], mean, atol=1e-5, rtol=1e-4)


def test_one_level_alone(clip: Path) -> None:
    with pytest.raises(ValueError, match="the pooling joint-video has the level -1 alone, got"):
        CLIPBackbone(weights=clip, pooling="joint-video", levels=2)


# features that the authors released ----------------------------------------------------------------------------------


@pytest.fixture
def example(shared: Path, tmp_path: Path) -> Path:
    """Copy the example features of the published demo into the folders that UniVTG's loader reads."""
    arrays = {"vid_clip/v.npz": ("vid", "features"), "txt_clip/qid1.npz": ("txt", "last_hidden_state")}
    for name, (kind, key) in arrays.items():
        path = shared / "golden" / "univtg" / f"published_example_{kind}.npz"
        if not path.is_file():
            pytest.skip(f"needs {path}, an example of the authors' features")
        with np.load(path) as stored:
            (array,) = stored.values()
        (tmp_path / name).parent.mkdir()
        np.savez(tmp_path / name, **{key: array})
    return tmp_path


def test_the_published_example_has_the_spec_of_omni(example: Path) -> None:
    """Read the example as features of omni's spec, and compare the vectors with the published division."""
    key = Annotation(qid=1, vid="v", query="q", duration=30.7)
    checkpoint = convert_univtg(omni_like(example / "model.ckpt"), example / "out")
    spec = checkpoint.features
    assert (spec.backbone, spec.weights, spec.pooling) == ("clip", CLIP_B32, "joint-video")
    features = open_layout(example, keys=[key], durations={"v": 30.7}, spec=spec)
    assert features.spec == spec
    stated = open_layout(example, keys=[key], backbone="clip", weights=CLIP_B32, pooling="joint-video")
    assert stated.spec == spec
    raw = {name: next(iter(np.load(example / name).values())) for name in ("vid_clip/v.npz", "txt_clip/qid1.npz")}
    video = features.video("v")
    (text,) = features.texts([key])
    # 30.70 s make 15 clips of 2 s: a last clip of which less than half lies in the video has no frame.
    assert video.timeline.rounded().num_clips == len(raw["vid_clip/v.npz"]) == 15
    for ours, published in ((video.video_KTD[0], raw["vid_clip/v.npz"]), (text[0], raw["txt_clip/qid1.npz"])):
        rows = published.astype(np.float32)
        assert np.linalg.norm(rows, axis=-1).min() > 9  # the released vectors are not divided yet
        divided_rows = rows / (np.linalg.norm(rows, axis=-1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(np.asarray(ours, np.float32), divided_rows, atol=5e-4)  # stored as float16
    assert text.shape[1] <= 32
    batch = Batch(
        video_KBTD=torch.tensor(np.asarray(video.video_KTD, np.float32))[:, None],
        video_mask_BT=torch.ones(1, 15, dtype=torch.bool),
        text_KBLD=torch.tensor(np.asarray(text, np.float32))[:, None],
        text_mask_BL=torch.ones(1, text.shape[1], dtype=torch.bool),
    )
    (answer,) = checkpoint.decode.decode(checkpoint.model(batch), [video.timeline.rounded()], ["q"])
    assert len(answer.saliency) == 15 and answer.moments
