"""CLIP (Radford et al., ICML 2021, arXiv 2103.00020) as a backbone: ViT-B/32, B/16, L/14 and L/14-336.

The weights and the blocks are those of Hugging Face transformers. Features are read as R2-Tuning (Liu et al., ECCV
2024) reads them: what a block returns, before the last LayerNorm of either tower, every token.

- Video: each picture alone; token 0 is CLS, then the patches row by row. Of several frames per clip, pooled vectors
  are averaged, and tokens are put one frame after the other.
- Text: start token, the sentence's tokens, end token. The causal mask lets a token see those before it only, so
  what fills up a batch on the right is seen by no real token, and its ids do not matter. Which tokens are real is
  told by each sentence's own length: id 0 is a word of CLIP's vocabulary, and the padding id is whatever a file says.
- Sentences are cleaned as OpenAI's own tokenizer does where it matters for plain text: HTML entities are read, curly
  quotes made straight. It also repairs text decoded with a wrong code page, ligatures and letters of double width
  (by ftfy); that is not done here.

No weights and no vocabulary come with this package: both are in the folder, or at the hub id, that ``weights`` names.

Legend: C clips, F frames per clip, N pictures (C * F), S side, P tokens of a picture, B sentences, L tokens, D width,
K levels.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import io
import json
import math
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from sidelight.backbones.protocol import FeatureSpec, weights_digest
from sidelight.io.files import replacing_folder, require_new_folder, write_text
from sidelight.io.tensors import (
    check_shapes,
    check_values,
    counted,
    existing_file,
    named_tensors,
    read_tensors,
    write_tensors,
)

CLIP_B32 = "openai/clip-vit-base-patch32"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

OPENAI_FILES = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": CLIP_B32,
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "openai/clip-vit-base-patch16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "openai/clip-vit-large-patch14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "openai/clip-vit-large-patch14-336",
}
"""SHA-256 of each archive that OpenAI released (they are part of its addresses in github.com/openai/CLIP,
``clip/clip.py``) -> the hub id of the same weights."""
HUB_FILES = {
    "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f": CLIP_B32,
    "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb": "openai/clip-vit-large-patch14",
}
"""SHA-256 of weights as they lie on the hub (``pytorch_model.bin`` of B/32, ``model.safetensors`` of L/14)."""
OFFICIAL = tuple(OPENAI_FILES.values())
"""Hub ids that stand in a feature spec in the place of a digest, as in ``published.py``."""

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SHARDS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TOWERS = ("vision_model.", "text_model.")
_SAME_AS = "same_weights_as"
# The curly ones are meant: they are what is replaced.
_STRAIGHT = str.maketrans(dict.fromkeys("‘’‚‛", "'") | dict.fromkeys("“”„‟", '"'))  # noqa: RUF001


class Normalise(nn.Module):
    """uint8 pictures to what CLIP reads, in one step: (x / 255 - mean) / std. Always float32."""

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor(CLIP_MEAN, dtype=torch.float64), torch.tensor(CLIP_STD, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)

    def forward(self, frames_NSS3: Tensor) -> Tensor:
        """(N, S, S, 3) to (N, 3, S, S), the channels last in memory."""
        scale, shift = cast(Tensor, self.scale), cast(Tensor, self.shift)
        return torch.addcmul(shift, frames_NSS3.float(), scale).permute(0, 3, 1, 2)


class Tower(nn.Module):
    """One side of CLIP: what comes before the first block, and the blocks up to the last one asked for.

    Args:
        embed: pixels or token ids to tokens with their places.
        norm: before the first block; the text tower has none.
        blocks: all of them, as transformers made them.
        levels: which to return, -1 the last, ascending. Deeper blocks are dropped.
        causal: whether a token sees only those before it.
    """

    def __init__(
        self, embed: nn.Module, norm: nn.Module | None, blocks: Sequence[nn.Module], levels: Sequence[int], causal: bool
    ) -> None:
        super().__init__()
        self.places = [len(blocks) + level + 1 for level in levels]
        self.embed, self.norm = embed, norm
        self.blocks = nn.ModuleList(blocks[: self.places[-1]])
        self.causal = causal

    def hidden_states(self, inputs: Tensor) -> Iterator[Tensor]:
        """The input of block 0, then what each block returns; (N or B, tokens, D)."""
        x = self.embed(inputs)
        x = x if self.norm is None else self.norm(x)
        yield x
        mask = None
        if self.causal:
            # Written out, not left to a flag of the attention at hand: a version without the flag would read on.
            mask = torch.full((x.shape[1], x.shape[1]), -math.inf, dtype=x.dtype, device=x.device).triu(1)[None, None]
        for block in self.blocks:
            x = block(x, mask)
            yield x

    def forward(self, inputs: Tensor, pool: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(K, ...) float32: each level asked for, pooled as soon as it is there."""
        kept = []
        for place, x in enumerate(self.hidden_states(inputs)):
            if place in self.places:
                kept.append((x if pool is None else pool(x)).float())
        return torch.stack(kept)


class CLIPBackbone:
    """CLIP, frozen, behind the :class:`~sidelight.backbones.protocol.Backbone` protocol.

    Args:
        levels: how many of the last layers to return, or which ones (negative, -1 the last), of both towers.
        pooling: ``cls``, ``mean`` (of the patches, without CLS) or ``tokens`` (all are kept, CLS first). ``attention``
            is refused: CLIP's vision transformers have no attention pool.
        weights: a hub id, or a folder in Hugging Face's layout (:func:`convert_clip` makes one).
        dtype: what to compute in: ``float32``, ``bfloat16`` or ``float16``. Features are float32 all the same.
        clip_seconds: length of a clip in seconds.
        frames_per_clip: frames per clip, evenly spread over it.

    Raises:
        ValueError: for levels that the towers do not have, an unknown pooling or dtype, weights that are not there,
            are not whole or are no CLIP, or if transformers is not installed.
    """

    def __init__(
        self,
        *,
        levels: int | Sequence[int] = 4,
        pooling: str = "cls",
        weights: str | Path = CLIP_B32,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        clip_seconds: float = 2.0,
        frames_per_clip: int = 1,
    ) -> None:
        if pooling == "attention":
            raise ValueError(
                "pooling attention is not there for clip: its vision transformers have no attention pool; choose cls "
                "(what CLIP compares with sentences), mean (of the patches) or tokens"
            )
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
        config = _config(weights)
        sides = config.vision_config, config.text_config
        deepest = min(side.num_hidden_layers for side in sides)
        chosen = tuple(range(-levels, 0)) if isinstance(levels, int) else tuple(levels)
        if not chosen or min(chosen) < -deepest:
            raise ValueError(f"{weights} has levels -{deepest} to -1; got {chosen}")

        def spec(identity: str) -> FeatureSpec:
            return FeatureSpec(
                backbone="clip",
                weights=identity,
                levels=chosen,
                pooling=pooling,
                clip_seconds=clip_seconds,
                frames_per_clip=frames_per_clip,
                resolution=config.vision_config.image_size,
                resize="crop",
                mean=CLIP_MEAN,
                std=CLIP_STD,
                video_dim=config.vision_config.hidden_size,
                text_dim=config.text_config.hidden_size,
            )

        spec("checked before anything large is read")
        clip = _model(weights)
        self._spec = spec(identity_of(weights, clip))
        self._tokenizer = _tokenizer(weights, config.text_config.vocab_size)
        self._weights = weights
        self._longest: int = config.text_config.max_position_embeddings
        video, text = clip.vision_model, clip.text_model
        self.normalise = Normalise()
        self.video = Tower(video.embeddings, video.pre_layrnorm, video.encoder.layers, chosen, causal=False)
        self.text = Tower(text.embeddings, None, text.encoder.layers, chosen, causal=True)
        for tower in (self.video, self.text):
            tower.to(DTYPES[dtype]).eval().requires_grad_(False)

    @property
    def spec(self) -> FeatureSpec:
        """The spec of the features that the two encoders return."""
        return self._spec

    @property
    def device(self) -> torch.device:
        return next(self.video.parameters()).device

    def to(self, device: torch.device | str) -> CLIPBackbone:
        """Move the weights; returns itself."""
        for part in (self.normalise, self.video, self.text):
            part.to(device)
        return self

    @torch.inference_mode()
    def encode_video(self, frames_CFSS3: Tensor) -> Tensor:
        """uint8 RGB (C, F, S, S, 3) to float32 (K, C, D_v), or (K, C, F * P, D_v) where pooling is ``tokens``."""
        spec = self.spec
        expected = (spec.frames_per_clip, spec.resolution, spec.resolution, 3)
        if frames_CFSS3.dtype != torch.uint8 or frames_CFSS3.shape[1:] != expected:
            raise ValueError(
                f"frames must be uint8 of shape (clips, {', '.join(map(str, expected))}); "
                f"got {frames_CFSS3.dtype} {tuple(frames_CFSS3.shape)}"
            )
        if not len(frames_CFSS3):  # the blocks cannot tell the shape of nothing
            return self.encode_video(frames_CFSS3.new_zeros(1, *expected))[:, :0]
        clips, frames = len(frames_CFSS3), spec.frames_per_clip
        pixels_N3SS = self.normalise(frames_CFSS3.flatten(0, 1).to(self.device))
        found: Tensor = self.video(pixels_N3SS.to(next(self.video.parameters()).dtype), self._pool)
        if spec.pooling == "tokens":
            levels, _, tokens, width = found.shape
            return found.reshape(levels, clips, frames * tokens, width)
        return found.reshape(len(found), clips, frames, -1).mean(2)

    def _pool(self, tokens_NPD: Tensor) -> Tensor:
        match self.spec.pooling:
            case "cls":
                return tokens_NPD[:, 0]
            case "mean":
                return tokens_NPD[:, 1:].mean(1, dtype=torch.float32)
        return tokens_NPD

    @torch.inference_mode()
    def encode_text(self, queries: Sequence[str]) -> list[Tensor]:
        """Sentences to float32 (K, L, D_t) each: start token, the sentence, end token; no padding.

        Raises:
            ValueError: for an empty query, or one longer than CLIP reads (77 tokens): nothing is cut off silently.
        """
        if not queries:
            return []
        lists = self.token_ids(queries)
        ids_BL = torch.zeros(len(lists), max(map(len, lists)), dtype=torch.long)
        for row, ids in zip(ids_BL, lists, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        found_KBLD = self.text(ids_BL.to(self.device))
        return [found_KBLD[:, b, : len(ids)].clone() for b, ids in enumerate(lists)]

    def token_ids(self, queries: Sequence[str]) -> list[list[int]]:
        """The ids of each sentence, start and end token included.

        Raises:
            ValueError: for an empty query, one longer than CLIP reads, or if the weights came without a vocabulary.
        """
        if self._tokenizer is None:
            raise ValueError(
                f"{self._weights} has no vocabulary, so no sentence can be read: put tokenizer.json, or vocab.json and "
                f"merges.txt, into it; OpenAI's models all have that of {CLIP_B32}"
            )
        lists: list[list[int]] = self._tokenizer([cleaned(query) for query in queries], verbose=False)["input_ids"]
        for query, ids in zip(queries, lists, strict=True):
            if len(ids) <= 2:
                raise ValueError(f"the query {query!r} is empty; expected a sentence")
            if len(ids) > self._longest:
                raise ValueError(
                    f"the query {query[:60]!r}... has {len(ids)} tokens, and CLIP reads at most {self._longest} (start "
                    "and end token among them); shorten it"
                )
        return lists


def cleaned(query: str) -> str:
    """A sentence as OpenAI's tokenizer cleans it: quotes made straight, HTML entities read (twice: some are nested)."""
    return html.unescape(html.unescape(query.translate(_STRAIGHT))).strip()


def identity_of(weights: str | Path, clip: nn.Module) -> str:
    """What stands in the spec's field ``weights``: a name that people know, or a digest.

    The hub id of one of OpenAI's four models where the weights are known to be that model: loaded by that id; a copy
    of the very file that lies there; or a folder that :func:`convert_clip` made of the file that OpenAI released.
    Anything else, such as a fine-tuned model or a copy that was saved anew, is named by the digest of its values.

    Args:
        weights: the hub id or the folder.
        clip: the whole model, in float32.
    """
    folder = Path(weights)
    if not folder.is_dir():
        return str(weights) if str(weights) in OFFICIAL else digest_of(clip)
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        return digest_of(clip)
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            said = (opened.metadata() or {}).get(_SAME_AS)
        if said in OFFICIAL:
            return str(said)
    with open(file, "rb") as opened_file:
        digest = hashlib.sha256()
        while block := opened_file.read(1 << 20):
            digest.update(block)
    return HUB_FILES.get(digest.hexdigest()) or digest_of(clip)


def digest_of(clip: nn.Module) -> str:
    """16 hex digits of the two towers; what comes behind them (projections, temperature) decides no feature."""
    return weights_digest({name: t for name, t in clip.state_dict().items() if name.startswith(_TOWERS)})


# reading with transformers -----------------------------------------------------------------------------------------
# Its classes are Any here: what the towers are made of is not among its types.


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError('the backbone clip needs transformers: pip install "sidelight[backbones]"') from None
    return transformers


@contextlib.contextmanager
def _reading(weights: str | Path) -> Iterator[Any]:
    """The package without its reports on the terminal, and with its errors in one sentence."""
    transformers = _transformers()
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if Path(weights).is_dir():
        logging.disable_progress_bar()  # a download shows its own
    try:
        yield transformers
    except Exception as error:  # its own, the hub client's, and those of three kinds of files
        first = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise ValueError(f"{weights} cannot be read as CLIP ({first}); check the folder or the hub id") from None
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _config(weights: str | Path) -> Any:
    folder = Path(weights)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{weights} is no folder in Hugging Face's layout: config.json is missing")
        if not any((folder / name).is_file() for name in _WEIGHTS + _SHARDS):
            raise ValueError(f"{weights} holds no weights: expected {' or '.join(_WEIGHTS)}")
    elif not _hub_id(str(weights)):
        raise ValueError(
            f"weights {str(weights)!r} are neither a folder nor a hub id such as {CLIP_B32}; if that is the digest in "
            "a feature spec, give the folder of those weights (--backbone-weights FOLDER)"
        )
    with _reading(weights) as transformers:
        found, _ = transformers.CLIPConfig.get_config_dict(weights)
    if (kind := found.get("model_type")) != "clip":
        raise ValueError(f"{weights} is no CLIP: its config.json says model_type {kind!r}, expected 'clip'")
    with _reading(weights) as transformers:
        return transformers.CLIPConfig.from_dict(found)


def _hub_id(name: str) -> bool:
    """OWNER/NAME. A path that is not there has more parts, or begins with a dot or a slash."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def _model(weights: str | Path) -> Any:
    """The whole model in float32, every tensor of its towers from the file."""
    with _reading(weights) as transformers:
        found, report = transformers.CLIPModel.from_pretrained(
            weights,
            dtype=torch.float32,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    keys = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    lacking = sorted(key for key in keys if key.startswith(_TOWERS))
    if lacking:
        raise ValueError(
            f"{weights} is not whole: {len(lacking)} tensors are missing or of another shape, such as {lacking[0]}"
        )
    return found


def _tokenizer(weights: str | Path, vocabulary: int, *, what: str | None = None) -> Any:
    """The tokenizer that came with the weights; None where a folder has none. ``what``: its name in messages."""
    folder = Path(weights)
    if folder.is_dir() and not any(all((folder / name).is_file() for name in names) for names in _VOCABULARIES):
        return None  # transformers would make a vocabulary of its own, of three words
    with _reading(weights) as transformers:
        found = transformers.CLIPTokenizer.from_pretrained(weights)
    ids = found("a", verbose=False)["input_ids"]
    if len(found) > vocabulary or ids[0] != found.bos_token_id or ids[-1] != found.eos_token_id:
        raise ValueError(
            f"the vocabulary of {what or weights} is not that of its weights: {len(found)} tokens, expected at most "
            f"{vocabulary}, and a start and an end token around each sentence"
        )
    return found


# OpenAI's files -> Hugging Face's layout ---------------------------------------------------------------------------

_NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
_IN_BLOCKS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_TRANSPOSED = ("text_projection", "visual.proj")
"""Matrices on the right of what they multiply; a linear layer keeps the transpose."""
_NOTES = ("input_resolution", "context_length", "vocab_size")
"""What released archives hold beside tensors of the model."""
_HEAD_WIDTH = 64
_EPSILON = 1e-5


def convert_clip(
    path: str | Path, out: str | Path, *, heads: tuple[int, int] | None = None, vocabulary: str | Path | None = None
) -> Path:
    """Turn OpenAI's original weights of a vision transformer into a folder in Hugging Face's layout.

    Reads a state dict with OpenAI's names, in safetensors or as ``torch.save`` wrote it (tensors only, nothing in the
    file is run). The files that OpenAI released are TorchScript archives, which hold code: one is opened only if its
    SHA-256 says that it is one of those (:data:`OPENAI_FILES`), and the folder then remembers which.

    Values keep their types.

    Args:
        path: the file.
        out: folder to make: ``model.safetensors`` and ``config.json``, and the vocabulary; appears whole or not at all.
        heads: attention heads of the vision and of the text tower, which no tensor tells; a head for each 64 of the
            width unless given, as in all of OpenAI's.
        vocabulary: folder with ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``, of the same model. Without it
            the folder reads no sentences until these files are put there.

    Returns:
        The folder.

    Raises:
        ValueError: if the file cannot be read, holds more than tensors, is no vision transformer of CLIP, or has
            tensors of other shapes or numbers that are not finite; if the vocabulary is another model's; if ``out``
            is there already and not empty.
    """
    path, out = Path(path), Path(out)
    require_new_folder(out)
    existing_file(path, expected="a state dict of CLIP with OpenAI's names (.pt or .safetensors)")
    words = () if vocabulary is None else _vocabulary_files(Path(vocabulary))
    tensors, same_as = _openai_tensors(path)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in _NOTES}
    if (scale := tensors.get("logit_scale")) is not None and scale.shape == (1,):
        tensors["logit_scale"] = scale.reshape(())  # some copies have it as a list of one
    config = _config_of(tensors, path, heads)
    advice = "download it again, or give another file"
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_shapes(shapes, _openai_shapes(config), path, what="a CLIP with OpenAI's names", advice=advice)
    check_values(tensors, path)
    converted = _renamed(tensors)
    metadata = {"format": "pt"} | ({_SAME_AS: same_as} if same_as else {})
    with replacing_folder(out) as making:
        making.mkdir()
        write_tensors(converted, making / "model.safetensors", metadata)
        write_text(making / "config.json", json.dumps(config, indent=2) + "\n")
        for file in words:
            shutil.copyfile(file, making / file.name)
        if words:
            _tokenizer(making, config["text_config"]["vocab_size"], what=str(vocabulary))
    return out


def described(folder: str | Path) -> str:
    """What a folder that :func:`convert_clip` wrote holds, in a line, from its ``config.json``."""
    values = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    vision, text = values["vision_config"], values["text_config"]
    side, patch = vision["image_size"], vision["patch_size"]
    return (
        f"{vision['num_hidden_layers']} blocks of width {vision['hidden_size']} and {vision['num_attention_heads']} "
        f"heads, {1 + (side // patch) ** 2} tokens of a {side} x {side} picture; {text['num_hidden_layers']} layers of "
        f"text of width {text['hidden_size']}, {text['vocab_size']:,} words"
    )


_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""The files of a vocabulary: either form is enough."""


def _vocabulary_files(folder: Path) -> tuple[Path, ...]:
    """Those of the first form that is there whole."""
    for names in _VOCABULARIES:
        if all((folder / name).is_file() for name in names):
            return tuple(folder / name for name in names)
    raise ValueError(
        f"{folder} holds no vocabulary: expected a folder with tokenizer.json, or vocab.json and merges.txt, such as "
        f"those of {CLIP_B32} on the hub"
    )


def _openai_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of OpenAI's names, and its shape in a model of this ``config.json``."""
    vision, text, joint = config["vision_config"], config["text_config"], config["projection_dim"]
    width, text_width, patch = vision["hidden_size"], text["hidden_size"], vision["patch_size"]
    found: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "token_embedding.weight": (text["vocab_size"], text_width),
        "positional_embedding": (text["max_position_embeddings"], text_width),
        "text_projection": (text_width, joint),
        "visual.class_embedding": (width,),
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.positional_embedding": (1 + (vision["image_size"] // patch) ** 2, width),
        "visual.proj": (width, joint),
    }
    norms = [("ln_final", text_width), ("visual.ln_pre", width), ("visual.ln_post", width)]
    for side, size, inner in (("visual.transformer", width, vision), ("transformer", text_width, text)):
        for i in range(inner["num_hidden_layers"]):
            block = f"{side}.resblocks.{i}"
            norms += [(f"{block}.ln_1", size), (f"{block}.ln_2", size)]
            matrices = {"attn.in_proj_": (3 * size, size), "attn.out_proj.": (size, size)}
            matrices |= {"mlp.c_fc.": (4 * size, size), "mlp.c_proj.": (size, 4 * size)}
            for name, shape in matrices.items():
                found |= {f"{block}.{name}weight": shape, f"{block}.{name}bias": shape[:1]}
    return found | {f"{name}.{kind}": (size,) for name, size in norms for kind in ("weight", "bias")}


def _openai_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file by OpenAI's names, and the hub id of the same weights if it is a released file."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(data), None
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read as safetensors ({error}); get the file again") from None
    if _is_torchscript(data):
        digest = hashlib.sha256(data).hexdigest()
        if digest not in OPENAI_FILES:
            raise ValueError(
                f"{path} is a TorchScript archive, which is code, and none that OpenAI released (its SHA-256 is "
                f"{digest}); if you trust it, save its tensors yourself by "
                f"torch.save(torch.jit.load({str(path)!r}, map_location='cpu').state_dict(), 'state.pt') and convert "
                "state.pt"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the reader of this form of file is deprecated
            found = torch.jit.load(io.BytesIO(data), map_location="cpu").state_dict()
        return dict(found), OPENAI_FILES[digest]
    found = read_tensors(data, path)
    found = found.get("state_dict", found) if isinstance(found, Mapping) else found
    return named_tensors(found, path, expected="a state dict, names and tensors as torch.save writes one"), None


def _is_torchscript(data: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _depth(names: Iterable[str], prefix: str) -> int:
    """Number of blocks whose names begin so."""
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})


def _config_of(tensors: Mapping[str, Tensor], path: Path, heads: tuple[int, int] | None) -> dict[str, Any]:
    """What shapes say, as ``config.json`` has it."""
    if "visual.layer1.0.conv1.weight" in tensors:
        raise ValueError(f"{path} is a ResNet of CLIP, which has no levels of tokens; convert a ViT, such as ViT-B-32")
    first_blocks = ("visual.transformer.resblocks.0.ln_1.weight", "transformer.resblocks.0.ln_1.weight")
    if missing := [name for name in (*_NAMES, *first_blocks) if name not in tensors]:
        raise ValueError(
            f"{path} is no CLIP with OpenAI's names: it lacks {counted(missing)}; download it again, or give another "
            "file"
        )

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        found = tuple(tensors[name].shape)
        if len(found) != dimensions or 0 in found:
            raise ValueError(
                f"{path}: {name} has the shape {found}, expected {dimensions} dimensions; download it again, or give "
                "another file"
            )
        return found

    width, _, _, patch = shape("visual.conv1.weight", 4)
    side = math.isqrt(shape("visual.positional_embedding", 2)[0] - 1)
    length, text_width = shape("positional_embedding", 2)
    vocabulary, joint = shape("token_embedding.weight", 2)[0], shape("text_projection", 2)[1]
    if heads is None:
        if width % _HEAD_WIDTH or text_width % _HEAD_WIDTH:
            raise ValueError(
                f"{path}: its widths, {width} and {text_width}, are no multiples of {_HEAD_WIDTH}, as those of OpenAI's"
                " are: give the attention heads of both towers (--heads and --text-heads)"
            )
        heads = (width // _HEAD_WIDTH, text_width // _HEAD_WIDTH)
    if min(heads) < 1 or width % heads[0] or text_width % heads[1]:
        raise ValueError(f"{path}: heads {heads} do not divide the widths {width} and {text_width}; give others")
    both = {"hidden_act": "quick_gelu", "layer_norm_eps": _EPSILON, "projection_dim": joint}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": joint,
        "vision_config": both
        | {
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": _depth(tensors, "visual.transformer.resblocks."),
            "num_attention_heads": heads[0],
            "image_size": side * patch,
            "patch_size": patch,
        },
        "text_config": both
        | {
            "model_type": "clip_text_model",
            "hidden_size": text_width,
            "intermediate_size": 4 * text_width,
            "num_hidden_layers": _depth(tensors, "transformer.resblocks."),
            "num_attention_heads": heads[1],
            "max_position_embeddings": length,
            "vocab_size": vocabulary,
            # The last two of the vocabulary; what fills up a batch is the end token again, as in Hugging Face's files.
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
        },
    }


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's tensors by Hugging Face's names; queries, keys and values apart."""
    names = dict(_NAMES)
    joined: dict[str, str] = {}
    for theirs, ours in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
        for i in range(_depth(tensors, f"{theirs}.resblocks.")):
            block, layer = f"{theirs}.resblocks.{i}", f"{ours}.encoder.layers.{i}"
            for kind in ("weight", "bias"):
                names |= {f"{block}.{a}.{kind}": f"{layer}.{b}.{kind}" for a, b in _IN_BLOCKS.items()}
                joined[f"{block}.attn.in_proj_{kind}"] = f"{layer}.self_attn.{{}}_proj.{kind}"
    found = {ours: tensors[name].T if name in _TRANSPOSED else tensors[name] for name, ours in names.items()}
    for name, pattern in joined.items():
        for part, tensor in zip("qkv", tensors[name].chunk(3), strict=True):
            found[pattern.format(part)] = tensor
    return found
