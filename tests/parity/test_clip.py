"""Compare CLIP with OpenAI's model: every golden array of ``shared/golden/clip`` (tiny, random weights, CPU, float32).

The same weights are read in two forms: directly by Hugging Face's names, and by OpenAI's names with ``convert_clip``.
``pytest -s`` prints a table of the largest differences. Tolerance: 3e-5, absolute and relative to the largest value.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from sidelight.backbones.clip.convert import convert_clip
from sidelight.backbones.clip.model import CLIPBackbone

TOLERANCE = 3e-5
DEPTH = 6
HEADS = (4, 4)
DIFFERENCES: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Print the largest differences once all tests have run."""
    yield
    for weights, rows in DIFFERENCES.items():
        print(f"\n{weights:<28}{'absolute':>12}{'relative':>12}")
        for name, (absolute, relative) in rows.items():
            print(f"  {name:<26}{absolute:>12.1e}{relative:>12.1e}")


def close(weights: str, name: str, ours: Tensor, golden: Any, tolerance: float = TOLERANCE) -> None:
    """Compare two arrays, and keep the difference for the table."""
    result, expected = ours.double().numpy(), np.asarray(golden, dtype=np.float64)
    assert result.shape == expected.shape, (name, result.shape, expected.shape)
    absolute = float(np.abs(result - expected).max())
    relative = absolute / float(np.abs(expected).max())
    DIFFERENCES[weights][name] = (absolute, relative)
    assert max(absolute, relative) <= tolerance, f"{weights}, {name}: {absolute:.1e}, at most {tolerance:.0e}"


@pytest.fixture(scope="module")
def golden(goldens: Path) -> Path:
    return goldens / "clip"


@pytest.fixture(scope="module")
def inputs(golden: Path) -> Mapping[str, Any]:
    with np.load(golden / "inputs.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def outputs(golden: Path) -> Mapping[str, Any]:
    with np.load(golden / "outputs.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module", params=["hugging-face", "openai"])
def folder(
    request: pytest.FixtureRequest, golden: Path, openai_clip: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the golden weights as a folder, made from one of the two forms."""
    out = tmp_path_factory.mktemp("clip") / str(request.param)
    if request.param == "openai":
        return convert_clip(openai_clip, out, heads=HEADS)
    sizes = json.loads((golden / "meta.json").read_text())["hf_config"]
    config = {"model_type": "clip", "projection_dim": sizes["projection_dim"]}
    config |= {f"{side}_config": {**sizes[side], "hidden_act": "quick_gelu"} for side in ("vision", "text")}
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    save_file(load_file(golden / "weights_hf.safetensors"), out / "model.safetensors", {"format": "pt"})
    return out


def test_hidden_states(folder: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Compare every layer of both towers at every position, also at padding, and the final embeddings."""
    backbone = CLIPBackbone(weights=folder, levels=DEPTH, pooling="tokens")
    video = list(backbone.video.hidden_states(torch.tensor(inputs["pixel_values"])))
    ids = torch.tensor(inputs["input_ids"])
    text = list(backbone.text.hidden_states(ids))
    assert len(video) == len(text) == DEPTH + 1
    for i in range(DEPTH + 1):
        close(folder.name, f"vision_hidden_{i}", video[i], outputs[f"vision_hidden_{i}"])
        close(folder.name, f"text_hidden_{i}", text[i], outputs[f"text_hidden_{i}"])

    # The projections, which a backbone does not use, were converted as well.
    weights = load_file(folder / "model.safetensors")
    image = normed(video[-1][:, 0], weights, "vision_model.post_layernorm") @ weights["visual_projection.weight"].T
    end = text[-1][torch.arange(len(ids)), ids.argmax(1)]
    sentence = normed(end, weights, "text_model.final_layer_norm") @ weights["text_projection.weight"].T
    close(folder.name, "image_embeds", image, outputs["image_embeds"])
    close(folder.name, "text_embeds", sentence, outputs["text_embeds"])


def normed(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def test_levels_in_batches_of_other_lengths(
    folder: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare the features that R2-Tuning reads: all tokens of four layers, of one and of several sentences."""
    backbone = CLIPBackbone(weights=folder, levels=4, pooling="tokens")
    levels = backbone.video(torch.tensor(inputs["pixel_values"]))
    expected = np.stack([outputs[f"vision_hidden_{i}"] for i in range(3, 7)])
    close(folder.name, "video, last four", levels, expected)

    mask = outputs["query_mask"].astype(bool)
    id_lists = [row[row_mask].tolist() for row, row_mask in zip(inputs["input_ids"], mask, strict=True)]
    monkeypatch.setattr(backbone, "token_ids", lambda queries: [id_lists[int(query)] for query in queries])
    together = backbone.encode_text(["0", "1", "2"])
    for i in range(3):
        expected = np.stack([outputs[f"text_hidden_{layer}"][i, mask[i]] for layer in range(3, 7)])
        close(folder.name, f"sentence {i}, in a batch", together[i], expected)
        close(folder.name, f"sentence {i}, alone", backbone.encode_text([str(i)])[0], expected)
    assert [features.shape[1] for features in together] == mask.sum(1).tolist()


def test_pixels_are_normalised_as_clip_was_trained(inputs: Mapping[str, Any], folder: Path) -> None:
    """Encode uint8 frames, the nearest to the golden pixels, and compare with plain normalisation."""
    backbone = CLIPBackbone(weights=folder, levels=1, pooling="cls")
    mean, std = np.array(backbone.spec.mean), np.array(backbone.spec.std)
    pixels = inputs["pixel_values"].transpose(0, 2, 3, 1)
    frames = np.clip(np.rint((pixels * std + mean) * 255), 0, 255).astype(np.uint8)
    plain = torch.tensor((frames / 255 - mean) / std).float().permute(0, 3, 1, 2)
    expected = backbone.video(plain)[:, :, 0]
    features = backbone.encode_video(torch.tensor(frames)[:, None])
    close(folder.name, "from bytes (to plain steps)", features, expected.numpy())


def test_joint_embeddings(
    folder: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare with the model's own embeddings: of frames, of clips of two frames, and of sentences."""
    backbone = CLIPBackbone(weights=folder, pooling="joint")
    pixels = torch.tensor(inputs["pixel_values"])
    monkeypatch.setattr(backbone, "normalise", lambda frames: pixels[: len(frames)])
    images = F.normalize(torch.tensor(outputs["image_embeds"]), dim=-1)
    side = backbone.spec.resolution
    frames = torch.zeros(len(pixels), 1, side, side, 3, dtype=torch.uint8)
    close(folder.name, "joint, frames", backbone.encode_video(frames)[0], images.numpy())
    pairs = CLIPBackbone(weights=folder, pooling="joint", frames_per_clip=2)
    monkeypatch.setattr(pairs, "normalise", lambda frames: pixels[: len(frames)])
    count = len(pixels) // 2
    clips = frames[: 2 * count].reshape(count, 2, side, side, 3)
    expected = F.normalize(images[: 2 * count].unflatten(0, (count, 2)).mean(1), dim=-1)
    close(folder.name, "joint, pairs of frames", pairs.encode_video(clips)[0], expected.numpy())

    mask = outputs["query_mask"].astype(bool)
    rows = [row[row_mask].tolist() for row, row_mask in zip(inputs["input_ids"], mask, strict=True)]
    monkeypatch.setattr(backbone, "token_ids", lambda queries: rows)
    sentences = torch.cat(backbone.encode_text(["0", "1", "2"]), dim=1)[0]
    expected = F.normalize(torch.tensor(outputs["text_embeds"]), dim=-1)
    close(folder.name, "joint, sentences", sentences, expected.numpy())
