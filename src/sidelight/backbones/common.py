"""Pieces that several backbones use: checks of options, frames and queries, padding, pooling, and digests.

Legend: C clips, F frames per clip, S side in pixels, P tokens of a clip, B queries, L tokens of a query, D width,
N chunks of a trainable tower.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.backbones.protocol import JOINT_POOLINGS, FeatureSpec, TowerSpec, TrainableTower

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The types in which a backbone computes."""


def dtype_of(name: str) -> torch.dtype:
    """Return the type in which a backbone computes, by its name.

    Raises:
        ValueError: for a name other than float32, bfloat16 and float16.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {name!r}")
    return DTYPES[name]


class Normalise(nn.Module):
    """The normalisation of frames in one step: (x / 255 - mean) / std, always in float32."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        mean_3, std_3 = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std_3)).float(), persistent=False)
        self.register_buffer("shift", (-mean_3 / std_3).float(), persistent=False)

    def forward(self, frames_NSS3: Tensor) -> Tensor:
        """Return uint8 frames as float32 (N, 3, S, S); the channels stay last in memory."""
        scale, shift = cast(Tensor, self.scale), cast(Tensor, self.shift)
        return torch.addcmul(shift, frames_NSS3.float(), scale).permute(0, 3, 1, 2)


def choose_levels(levels: int | Sequence[int] | None, depth: int, *, model: str, pooling: str) -> tuple[int, ...]:
    """Return the levels to read, as negative numbers.

    Args:
        levels: a number of last layers, or the levels themselves; unless given, the last four, or the last one where
            the pooling is ``joint`` or ``joint-video``.
        depth: layers of the shallower tower.
        model: the model's name in the message.
        pooling: the pooling of the spec.

    Raises:
        ValueError: if there is no level, or one is deeper than the towers.
    """
    if levels is None:
        levels = 1 if pooling in JOINT_POOLINGS else 4
    chosen = tuple(range(-levels, 0)) if isinstance(levels, int) else tuple(levels)
    if not chosen or min(chosen) < -depth:
        raise ValueError(f"{model} has levels -{depth} to -1; got {chosen}")
    return chosen


def check_pooling(pooling: str, allowed: Sequence[str], *, model: str) -> None:
    """Check that a backbone has a pooling.

    Raises:
        ValueError: if it does not; names the poolings that it has.
    """
    if pooling not in allowed:
        raise ValueError(f"{model} does not have the pooling {pooling}; choose {' or '.join(allowed)}")


def square_side(size: int | Sequence[int]) -> int:
    """Return the side of a square frame, in pixels.

    Args:
        size: the side, or height and width, as a configuration states them.

    Raises:
        ValueError: for a frame that is not square.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"the weights read frames of {size} pixels; sidelight reads square frames only")
    return sides.pop()


def check_frames(frames_CFSS3: Tensor, spec: FeatureSpec) -> None:
    """Check that frames have the type and shape of the spec: uint8, (C, F, S, S, 3).

    Raises:
        ValueError: if they do not.
    """
    expected = (spec.frames_per_clip, spec.resolution, spec.resolution, 3)
    if frames_CFSS3.dtype != torch.uint8 or frames_CFSS3.shape[1:] != expected:
        raise ValueError(
            f"frames must be uint8 of shape (clips, {', '.join(map(str, expected))}); "
            f"got {frames_CFSS3.dtype} {tuple(frames_CFSS3.shape)}"
        )


def check_tokens(query: str, ids: Sequence[int], limit: int, *, special: int) -> None:
    """Check that a query has a word and is not longer than the text tower reads.

    Args:
        query: the query, for the message.
        ids: its token ids.
        limit: most tokens that the text tower reads.
        special: number of tokens that every query has, such as the start token.

    Raises:
        ValueError: if the query is empty or too long.
    """
    if len(ids) <= special:
        raise ValueError(f"a query needs at least one word, got {query!r}")
    if len(ids) > limit:
        raise ValueError(
            f"the query has {len(ids)} tokens, the text tower reads at most {limit}; shorten it: {query[:60]!r}..."
        )


class QueryWarning(UserWarning):
    """The warning that a part of a query is not read."""


def cut_tokens(
    queries: Sequence[str], rows: Sequence[list[int]], limit: int, *, keep_last: bool = True
) -> list[list[int]]:
    """Return rows of at most ``limit`` token ids, and warn about queries that were cut.

    Args:
        queries: the sentences, for the warning.
        rows: their token ids.
        limit: most tokens that the text tower reads.
        keep_last: whether the last token, such as an end token, stays.
    """
    long = [i for i, ids in enumerate(rows) if len(ids) > limit]
    if long:
        first = long[0]
        message = (
            f"{len(long)} of {len(queries)} queries are longer than the {limit} tokens that the text tower reads, and "
            f"are cut; the first has {len(rows[first])}: {queries[first][:60]!r}..."
        )
        warnings.warn(message, QueryWarning, stacklevel=4)
    kept = limit - 1 if keep_last else limit
    return [ids[:kept] + ids[-1:][: limit - kept] if len(ids) > limit else ids for ids in rows]


def pad_ids(rows: Sequence[Sequence[int]], padding: int = 0) -> Tensor:
    """Return rows of token ids as one tensor ids_BL, padded on the right."""
    ids_BL = torch.full((len(rows), max(map(len, rows), default=0)), padding)
    for i, row in enumerate(rows):
        ids_BL[i, : len(row)] = torch.tensor(row)
    return ids_BL


def pool_tokens(tokens_CPD: Tensor, pooling: str, attention_pool: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return one vector per clip, (C, D), or all tokens where ``pooling`` is ``tokens``; token 0 is CLS."""
    match pooling:
        case "cls":
            return tokens_CPD[:, 0]
        case "mean":
            return tokens_CPD[:, 1:].mean(1)
        case "attention" if attention_pool is not None:
            return attention_pool(tokens_CPD)
        case "tokens":
            return tokens_CPD
    raise ValueError(f"this backbone has no pooling {pooling!r}; choose cls, mean or tokens")


def joint_embedding(embeddings_CFE: Tensor) -> Tensor:
    """Return one unit vector per clip, (1, C, E) float32: the normalised mean of its frames' normalised embeddings.

    Averaging unit vectors gives each frame the same say, whatever the length of its embedding; CLIP4Clip (Luo et al.,
    2021, arXiv 2104.08860) calls this the parameter-free mean pooling.
    """
    frames_CFE = F.normalize(embeddings_CFE.float(), dim=-1)
    return F.normalize(frames_CFE.mean(1), dim=-1)[None]


def sentence_embeddings(embeddings_BE: Tensor) -> list[Tensor]:
    """Return one unit vector per query, each (1, 1, E) float32."""
    return list(F.normalize(embeddings_BE.float(), dim=-1)[:, None, None].clone())


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits that identify a set of weights by names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_chunks(frames_NFSS3: Tensor, spec: TowerSpec) -> None:
    """Check that frames have the type and shape of a tower: uint8, (N, F, S, S, 3).

    Raises:
        ValueError: if they do not.
    """
    expected = (spec.frames, spec.resolution, spec.resolution, 3)
    if frames_NFSS3.dtype != torch.uint8 or frames_NFSS3.shape[1:] != expected:
        raise ValueError(
            f"the video backbone {spec.backbone} reads uint8 frames of shape (chunks, {', '.join(map(str, expected))});"
            f" got {frames_NFSS3.dtype} {tuple(frames_NFSS3.shape)}"
        )


def run_tower(
    tower: TrainableTower, frames_NFSS3: Tensor, between: Callable[[int, Tensor], Tensor] | None = None
) -> Tensor:
    """Return the tokens (N, P, D) of chunks after the whole tower, with gradients.

    Args:
        tower: the tower.
        frames_NFSS3: uint8 RGB frames.
        between: function of a block's number and the tokens after this block that returns the tokens for the next
            block, such as an adapter; unless given, the plain tower runs.
    """
    tokens_NPD = tower.embed(frames_NFSS3)
    for number, block in enumerate(tower.blocks):
        tokens_NPD = block(tokens_NPD)
        if between is not None:
            tokens_NPD = between(number, tokens_NPD)
    return tower.finish(tokens_NPD)
