"""Folders of tiny models with random weights and small vocabularies, in the layouts of transformers and open_clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?'"
DEPTH, LONGEST = 4, 12


def randomise(model: Any, seed: int = 0) -> None:
    """Draw all floating-point values of a model, so that no bias and no scale is at its initial 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def frames(clips: int, count: int, side: int, seed: int = 0) -> Tensor:
    """Return random frames, (clips, count, side, side, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (clips, count, side, side, 3), dtype=torch.uint8, generator=generator)


def write_siglip2(folder: Path, *, naflex: bool = False, width: int = 32, vocabulary: bool = True) -> Path:
    """Write a SigLIP 2 of 4 layers that reads frames of 32 pixels in patches of 8, and 12 tokens."""
    import transformers

    tower = {"hidden_size": width, "intermediate_size": 48, "num_hidden_layers": DEPTH, "num_attention_heads": 2}
    size = {"num_patches": 16} if naflex else {"image_size": 32}
    text = {**tower, "vocab_size": 80, "max_position_embeddings": LONGEST, "projection_size": width}
    kind = "Siglip2" if naflex else "Siglip"
    config = getattr(transformers, f"{kind}Config")(
        vision_config={**tower, **size, "patch_size": 8}, text_config={**text, "pad_token_id": 0}
    )
    model = getattr(transformers, f"{kind}Model")(config)
    randomise(model)
    model.save_pretrained(folder)
    if vocabulary:
        write_gemma(folder)
    return folder


def write_videomae(folder: Path, *, width: int = 32, **config: Any) -> Path:
    """Write a VideoMAE of 4 layers that reads 8 frames of 32 pixels, two frames and 8 pixels a token."""
    import transformers

    sizes = {"hidden_size": width, "intermediate_size": 48, "num_hidden_layers": DEPTH, "num_attention_heads": 2}
    reads = {"image_size": 32, "patch_size": 8, "num_frames": 8, "tubelet_size": 2, "use_mean_pooling": False}
    model = transformers.VideoMAEModel(transformers.VideoMAEConfig(**{**sizes, **reads, **config}))
    randomise(model)
    model.save_pretrained(folder)
    return folder


def write_gemma(folder: Path, *, end: str = "<eos>") -> None:
    """Write a vocabulary of letters in the form of Gemma's: spaces are kept as a letter of their own."""
    from tokenizers import Tokenizer, models, normalizers, processors

    tokens = ["<pad>", end, "<bos>", "<unk>", "\u2581", *LETTERS, "re", "red"]
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[("r", "e"), ("re", "d")], unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    # Files on the hub add a start or an end token, pad and cut, in one way or another: all of that must not count.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
    )
    tokenizer.enable_padding(length=5)
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_videoprism(folder: Path, *, width: int = 32, vocabulary: bool = True) -> Path:
    """Write a VideoPrism-LvT of 2 spatial, 2 temporal and 1 auxiliary layers: 4 frames of 32 pixels, patches of 16."""
    import transformers

    layers = {"num_spatial_layers": 2, "num_temporal_layers": 2, "num_auxiliary_layers": 1}
    tower = {"hidden_size": width, "intermediate_size": 48, "num_attention_heads": 2}
    config = transformers.VideoPrismConfig(
        vision_config={**tower, **layers, "image_size": 32, "num_frames": 4, "tubelet_size": [1, 16, 16]},
        text_config={**tower, "num_hidden_layers": DEPTH, "vocab_size": 80, "max_position_embeddings": LONGEST},
    )
    model = transformers.VideoPrismClipModel(config)
    randomise(model)
    model.save_pretrained(folder)
    if vocabulary:
        from tokenizers import Tokenizer, models, pre_tokenizers

        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
        pieces += [(letter, -3.0) for letter in LETTERS] + [("\u2581red", -1.0)]
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_open_clip(folder: Path, vision: dict[str, Any], text: dict[str, Any], **model: Any) -> Path:
    """Write a model of ``open_clip`` with random weights: its configuration of the model and its state dict."""
    import open_clip
    from safetensors.torch import save_file

    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, **model}
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "resize_mode": "squash", "size": [32, 32]}
    folder.mkdir()
    values = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    if text.get("hf_tokenizer_name"):
        write_gemma(folder)
    built = open_clip.create_model(f"local-dir:{folder}")
    randomise(built)
    state = {name: tensor.contiguous().clone() for name, tensor in built.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors", {"format": "pt"})
    return folder


def write_distilbert(folder: Path, *, width: int = 32, vocabulary: bool = True) -> Path:
    """Write a DistilBERT of 4 layers that reads 12 tokens, with a vocabulary of letters and two words."""
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "star", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + ["."]
    config = transformers.DistilBertConfig(
        vocab_size=len(words), max_position_embeddings=LONGEST, n_layers=DEPTH, n_heads=2, dim=width, hidden_dim=48
    )
    model = transformers.DistilBertModel(config)
    randomise(model)
    model.save_pretrained(folder)
    if vocabulary:
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder
