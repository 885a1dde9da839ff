"""Ways to train a backbone from pixels with less memory: values are computed again in the backward pass.

Chunks that do not read each other pass the backbone a few at a time (:func:`in_pieces`). The inner branches of SCADA
convolve over the whole video's time, so that the gradient of a chunk passes its neighbours at every block. A pass from
pixels to clips for one chunk at a time, as in AdaTAD's temporal checkpointing, would lose that part.

:func:`run_coupled` keeps it. The chunks of a video exchange only the first and the last times of an adapter's narrow
hidden channels, its *borders*: 2 of 8 times of a quarter of the width, a sixteenth of the tokens of VideoMAE. The
borders of all blocks are kept. With them, the tokens of any chunk before any block can be computed again from the
pixels of this chunk alone. The backward pass goes from the last block to the first. At each block it first computes
what the gradient sends to the neighbours (the way from the borders to the tokens is linear, so this needs no tokens),
and then computes again and differentiates a few chunks at a time. It holds the gradient of the tokens at one block.

Legend: N chunks of a video, n chunks of a piece, P tokens of a chunk, D width, t times, k times of a border, G places,
R width of an adapter, E width of a sentence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sidelight.core.options import check_types, require


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Ways to train with less memory and more time. ``chunk_share`` draws gradients that are right on average, and
    ``frozen_dtype`` rounds; the others change no output and no gradient.
    """

    checkpoint_blocks: int = 0
    """Blocks whose inner values are computed again in the backward pass, from the tokens before them: 1 keeps the
    tokens before each block, n before every n-th block (and computes those blocks twice again); 0 keeps everything.
    """
    chunks_at_once: int = 0
    """Chunks that pass the backbone together, and are computed again together in the backward pass; 0 for all."""
    chunk_share: float = 1.0
    """Share of the chunks, drawn at each training step, through which gradients pass the backbone. They are scaled, so
    that the gradient is right on average. Needs independent chunks.
    """
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the matrices of a frozen backbone, and of the tokens between its blocks. bfloat16 needs autocast to
    bfloat16 (``precision: bf16-mixed``); norms, adapters and head keep float32.
    """

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("checkpoint_blocks", "chunks_at_once"):
            require(self, getattr(self, name) >= 0, name, "at least 0")
        require(self, 0 < self.chunk_share <= 1, "chunk_share", "in (0, 1]")


def in_pieces(function: Callable[..., tuple[Tensor, ...]], size: int, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Apply a function to pieces of the first axis, and join the results; the function must not mix entries.

    In the backward pass, one piece after another is computed again. With a size of 0 the function is applied once, and
    nothing is computed again.
    """
    if size == 0:
        return function(*inputs)
    pieces = zip(*(x.split(size) for x in inputs), strict=True)
    # Nothing random runs in here, so that no state of the generators has to be kept.
    run = partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
    results = [run(*piece) if torch.is_grad_enabled() else function(*piece) for piece in pieces]
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return the same numbers, whose gradient is multiplied by a factor on the way back."""
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient * factor)
    return x


def borders_of(hidden_NtGR: Tensor, width: int) -> Tensor:
    """Return the first and the last ``width`` times of each chunk, (N, 2, k, G, R)."""
    times = hidden_NtGR.shape[1]
    return torch.stack([hidden_NtGR[:, :width], hidden_NtGR[:, times - width :]], 1)


def neighbours(borders_N2kGR: Tensor, follows_N: Tensor | None = None) -> Tensor:
    """Return the times before and after each chunk: of the chunks beside it, or zeros. It is its own transpose.

    Args:
        borders_N2kGR: the borders of the chunks.
        follows_N: True for a chunk that continues the chunk before it; None if all but the first one do.
    """
    last_NkGR, first_NkGR = borders_N2kGR[:-1, 1], borders_N2kGR[1:, 0]
    if follows_N is not None:
        apart = ~follows_N[1:].view(-1, 1, 1, 1).to(borders_N2kGR.device)
        last_NkGR, first_NkGR = last_NkGR.masked_fill(apart, 0), first_NkGR.masked_fill(apart, 0)
    none = torch.zeros_like(borders_N2kGR[:1, 0])
    return torch.stack([torch.cat([none, last_NkGR]), torch.cat([first_NkGR, none])], 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkStack:
    """The steps of a frozen backbone with adapters that exchange borders, for a piece of the chunks of a video.

    A step is a block and its adapter; steps are numbered from 0.
    """

    start: Callable[[Tensor], Tensor]
    """Frames of chunks -> tokens (n, P, D) that the first adapter reads."""
    before: Callable[[int, Tensor, Tensor | None], tuple[Tensor, ...]]
    """Number of a step, tokens, sentences (n, E) -> tokens after the block, hidden channels (n, t, G, R) of its
    adapter, and further results per chunk.
    """
    after: Callable[[int, Tensor, Tensor, Tensor], Tensor]
    """Number, tokens, hidden channels, and those of the neighbours (n, 2, k, G, R) -> tokens; linear in all three."""
    finish: Callable[[Tensor], Tensor]
    """Tokens after the last step -> result per chunk."""
    steps: int
    """Number of steps."""
    width: int
    """k, times of a border."""


def run_coupled(
    stack: ChunkStack,
    tokens: list[Tensor],
    frames_NFSS3: Tensor,
    sentence_1E: Tensor | None,
    weights: Sequence[Tensor],
    *,
    size: int,
    every: int,
) -> tuple[Tensor, ...]:
    """Return the results of all chunks of one video: of ``finish``, then the further results of each step.

    Args:
        stack: the backbone and the adapters.
        tokens: the result of ``start`` for each piece; the list is emptied as it is used.
        frames_NFSS3: the frames, from which ``start`` is computed again.
        sentence_1E: the sentence that the adapters read.
        weights: all weights that are trained in ``before`` and ``after``.
        size: chunks of a piece.
        every: steps between two places at which the tokens are kept.
    """
    results: tuple[Tensor, ...] = _Coupled.apply(stack, tokens, size, every, frames_NFSS3, sentence_1E, *weights)  # type: ignore[no-untyped-call]
    return results


class _Coupled(torch.autograd.Function):
    """The forward and the backward pass that the top of this file describes."""

    @staticmethod
    def forward(
        ctx: Any,
        stack: ChunkStack,
        tokens: list[Tensor],
        size: int,
        every: int,
        frames_NFSS3: Tensor,
        sentence_1E: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        sentences = [_rows(sentence_1E, len(x)) for x in tokens]
        further: list[list[Tensor]] = []
        ctx.outside, ctx.times, ctx.kept = [], [], {}
        for step in range(stack.steps):
            if step and step % every == 0 and any(ctx.needs_input_grad):
                ctx.kept[step] = list(tokens)
            hidden: list[Tensor] = []
            for k, sentence in enumerate(sentences):
                tokens[k], x_ntGR, *more = stack.before(step, tokens[k], sentence)
                hidden.append(x_ntGR)
                further.append(more)
            outside = neighbours(torch.cat([borders_of(x, stack.width) for x in hidden]))
            ctx.outside.append(outside)
            ctx.times.append(hidden[0].shape[1])
            for k, x_n2kGR in enumerate(outside.split(size)):
                tokens[k] = stack.after(step, tokens[k], hidden[k], x_n2kGR)
                hidden[k] = x_n2kGR  # frees the hidden channels
        finished = torch.cat([stack.finish(tokens.pop(0)) for _ in sentences])
        ctx.stack, ctx.size, ctx.autocast = stack, size, _autocast(frames_NFSS3.device.type)
        ctx.save_for_backward(frames_NFSS3, sentence_1E, *weights)
        steps = [further[i : i + len(sentences)] for i in range(0, len(further), len(sentences))]
        return finished, *(torch.cat(parts) for step_parts in steps for parts in zip(*step_parts, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        with ctx.autocast():
            return None, None, None, None, None, *_Backward(ctx).run(gradients)


class _Backward:
    """The backward pass of one video: step by step, and within a step piece by piece. It frees what it has used."""

    def __init__(self, ctx: Any) -> None:
        frames_NFSS3, self.sentence_1E, *weights = ctx.saved_tensors
        self.stack: ChunkStack = ctx.stack
        self.kept: dict[int, list[Tensor]] = ctx.kept
        self.times: list[int] = ctx.times
        self.frames = frames_NFSS3.split(ctx.size)
        self.outside = [x.split(ctx.size) for x in ctx.outside]
        ctx.outside = None
        self.learned: list[Tensor | None] = [self.sentence_1E, *weights]
        self.size: int = ctx.size

    def run(self, gradients: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradients of the sentence and of each weight, for those of the results."""
        sums: list[Tensor | None] = [None] * len(self.learned)
        steps, finished, further = self.stack.steps, gradients[0], gradients[1:]
        running = [self._before_finish(k, gradient) for k, gradient in enumerate(finished.split(self.size))]
        per_step = len(further) // steps
        for step in reversed(range(steps)):
            sent = [self._to_neighbours(step, k, gradient) for k, gradient in enumerate(running)]
            received = neighbours(torch.cat(sent)).split(self.size)
            more = [x.split(self.size) for x in further[step * per_step : (step + 1) * per_step]]
            for k in range(len(running)):
                towards = [running[k], received[k], *(parts[k] for parts in more)]
                before, *new_sums = self._before_step(step, k, towards)
                running[k] = running[k] if before is None else before  # None before the first step
                sums = [y if x is None else x if y is None else x + y for x, y in zip(sums, new_sums, strict=True)]
            self.outside.pop()
            self.kept.pop(step, None)
        return sums

    def _tokens(self, step: int, k: int) -> Tensor:
        """Compute the tokens of a piece before a step again, from the last place where they were kept."""
        with torch.no_grad():
            first = max((s for s in self.kept if s <= step), default=0)
            tokens = self.kept[first][k] if first else self.stack.start(self.frames[k])
            for s in range(first, step):
                tokens, hidden, *_ = self.stack.before(s, tokens, _rows(self.sentence_1E, len(tokens)))
                tokens = self.stack.after(s, tokens, hidden, self.outside[s][k])
        return tokens.detach()

    def _before_finish(self, k: int, gradient: Tensor) -> Tensor:
        """Return the gradient of the tokens after the last step."""
        tokens = self._tokens(self.stack.steps, k).requires_grad_()
        with torch.enable_grad():
            finished = self.stack.finish(tokens)
        return torch.autograd.grad(finished, tokens, gradient)[0]

    def _to_neighbours(self, step: int, k: int, gradient_nPD: Tensor) -> Tensor:
        """Return the gradient of the times beside the chunks. The way to them is linear: computed at zeros."""
        outside = torch.zeros_like(self.outside[step][k]).requires_grad_()
        hidden = outside.new_zeros(len(outside), self.times[step], *outside.shape[3:])
        with torch.enable_grad():
            tokens = self.stack.after(step, torch.zeros_like(gradient_nPD), hidden, outside)
        return torch.autograd.grad(tokens, outside, gradient_nPD.to(tokens.dtype))[0]

    def _before_step(self, step: int, k: int, gradients: list[Tensor]) -> list[Tensor | None]:
        """Return the gradients of the tokens before a step, of the sentence and of each weight."""
        tokens = self._tokens(step, k).requires_grad_(step > 0)  # the part before the first adapter is frozen
        with torch.enable_grad():
            after, hidden, *further = self.stack.before(step, tokens, _rows(self.sentence_1E, len(tokens)))
            result = self.stack.after(step, after, hidden, self.outside[step][k])
            results = [result, borders_of(hidden, self.stack.width), *further]
        wanted = [x for x in (tokens, *self.learned) if x is not None and x.requires_grad]
        typed = [g.to(x.dtype) for x, g in zip(results, gradients, strict=True)]
        computed = iter(torch.autograd.grad(results, wanted, typed, allow_unused=True))
        return [next(computed) if x is not None and x.requires_grad else None for x in (tokens, *self.learned)]


def _rows(sentence_1E: Tensor | None, count: int) -> Tensor | None:
    return None if sentence_1E is None else sentence_1E.expand(count, -1)


def _autocast(device: str) -> Callable[[], Any]:
    """Return a function that enters the autocast that is on now, in another thread too."""
    if not torch.amp.autocast_mode.is_autocast_available(device):
        return contextlib.nullcontext
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return partial(torch.autocast, device, dtype=dtype, enabled=enabled)
