"""CLIP against OpenAI's model: every golden array of ``shared/golden/clip`` (tiny, random weights, CPU, float32).

Both forms of the same weights are read: Hugging Face's names as they are, OpenAI's by way of ``convert_clip``.
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
from torch import Tensor

pytest.importorskip("transformers", reason='needs transformers: pip install "sidelight[backbones]"')

from safetensors.torch import load_file, save_file

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
    """Compare, and note the difference for the table."""
    got, wanted = ours.double().numpy(), np.asarray(golden, dtype=np.float64)
    assert got.shape == wanted.shape, (name, got.shape, wanted.shape)
    absolute = float(np.abs(got - wanted).max())
    relative = absolute / float(np.abs(wanted).max())
    DIFFERENCES[weights][name] = (absolute, relative)
    assert max(absolute, relative) <= tolerance, f"{weights}, {name}: {absolute:.1e}, at most {tolerance:.0e}"


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden" / "clip"


@pytest.fixture(scope="module")
def inputs(golden: Path) -> Mapping[str, Any]:
    with np.load(golden / "inputs.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def outputs(golden: Path) -> Mapping[str, Any]:
    with np.load(golden / "outputs.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module", params=["hugging-face", "openai"])
def folder(request: pytest.FixtureRequest, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden weights as a folder, from either form."""
    out = tmp_path_factory.mktemp("clip") / str(request.param)
    if request.param == "openai":
        return convert_clip(golden / "weights_openai.safetensors", out, heads=HEADS)
    sizes = json.loads((golden / "meta.json").read_text())["hf_config"]
    config = {"model_type": "clip", "projection_dim": sizes["projection_dim"]}
    config |= {f"{side}_config": {**sizes[side], "hidden_act": "quick_gelu"} for side in ("vision", "text")}
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    save_file(load_file(golden / "weights_hf.safetensors"), out / "model.safetensors", {"format": "pt"})
    return out


def test_hidden_states(folder: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Every layer of both towers at every place, padding too, and the embeddings they end in."""
    backbone = CLIPBackbone(weights=folder, levels=DEPTH, pooling="tokens")
    video = list(backbone.video.hidden_states(torch.tensor(inputs["pixel_values"])))
    ids = torch.tensor(inputs["input_ids"])
    text = list(backbone.text.hidden_states(ids))
    for i in range(DEPTH + 1):
        close(folder.name, f"vision_hidden_{i}", video[i], outputs[f"vision_hidden_{i}"])
        close(folder.name, f"text_hidden_{i}", text[i], outputs[f"text_hidden_{i}"])

    # Behind what a backbone returns: the rest of the file was converted as well.
    left = load_file(folder / "model.safetensors")
    image = normed(video[-1][:, 0], left, "vision_model.post_layernorm") @ left["visual_projection.weight"].T
    end = text[-1][torch.arange(len(ids)), ids.argmax(1)]
    sentence = normed(end, left, "text_model.final_layer_norm") @ left["text_projection.weight"].T
    close(folder.name, "image_embeds", image, outputs["image_embeds"])
    close(folder.name, "text_embeds", sentence, outputs["text_embeds"])


def normed(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def test_levels_in_batches_of_other_lengths(
    folder: Path, inputs: Mapping[str, Any], outputs: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What R2-Tuning reads: the last four layers, all tokens, and of a sentence those of its mask, by either batch."""
    backbone = CLIPBackbone(weights=folder, levels=4, pooling="tokens")
    found = backbone.video(torch.tensor(inputs["pixel_values"]))
    wanted = np.stack([outputs[f"vision_hidden_{i}"] for i in range(3, 7)])
    close(folder.name, "video, last four", found, wanted)

    mask = outputs["query_mask"].astype(bool)
    lists = [row[own].tolist() for row, own in zip(inputs["input_ids"], mask, strict=True)]
    monkeypatch.setattr(backbone, "token_ids", lambda queries: [lists[int(query)] for query in queries])
    together = backbone.encode_text(["0", "1", "2"])
    for i in range(3):
        wanted = np.stack([outputs[f"text_hidden_{layer}"][i, mask[i]] for layer in range(3, 7)])
        close(folder.name, f"sentence {i}, in a batch", together[i], wanted)
        close(folder.name, f"sentence {i}, alone", backbone.encode_text([str(i)])[0], wanted)
    assert [found.shape[1] for found in together] == mask.sum(1).tolist()


def test_pixels_are_normalised_as_clip_was_trained(inputs: Mapping[str, Any], folder: Path) -> None:
    """From bytes: the pictures that the golden pixels come nearest to, through encode_video."""
    backbone = CLIPBackbone(weights=folder, levels=1, pooling="cls")
    mean, std = np.array(backbone.spec.mean), np.array(backbone.spec.std)
    pixels = inputs["pixel_values"].transpose(0, 2, 3, 1)
    frames = np.clip(np.rint((pixels * std + mean) * 255), 0, 255).astype(np.uint8)
    plain = torch.tensor((frames / 255 - mean) / std).float().permute(0, 3, 1, 2)
    wanted = backbone.video(plain)[:, :, 0]
    found = backbone.encode_video(torch.tensor(frames)[:, None])
    close(folder.name, "from bytes (to plain steps)", found, wanted.numpy())
