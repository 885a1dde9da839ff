"""The part that backbones on the model of a library share: the library's own forward pass, read through hooks.

The library computes; a hook on each block that is read pools the block's output at once, so that memory holds one
level at a time. Blocks after the deepest level are dropped. A family adds how its weights are read, how its sentences
become token ids, and how the outputs of its blocks are arranged (``siglip2.py``, ``videoprism.py``, ``open_clip.py``).

Features are the outputs of the blocks, before the last LayerNorm of each tower. Two points differ between families:

- Some vision towers have no CLS token, but an attention pool. The pooling ``attention`` applies this frozen pool, and
  the LayerNorm before it, to every level.
- Some text towers read their summary of a sentence at the last place, after the padding. The summary is returned as
  token 0, because side-tuners treat token 0 apart, as they do with CLS; then come the tokens of the sentence.

Legend: C clips, F frames per clip, N clips or frames that are encoded together, S side in pixels, P tokens, B
sentences, L tokens of a sentence, D width, E width of the joint space, K levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sidelight.backbones.common import Normalise, check_frames, joint_embedding, sentence_embeddings
from sidelight.backbones.protocol import FeatureSpec

Blocks = Sequence[Any]
"""The lists of blocks of a tower, shallowest first: each an ``nn.ModuleList`` or ``nn.Sequential``."""


class HookedBackbone:
    """A library's model, frozen, behind the :class:`~sidelight.backbones.protocol.Backbone` protocol.

    Args:
        model: the library's complete model.
        spec: the feature spec.
        dtype: type in which the model computes. Features are always float32.
        video_blocks: the blocks of the video tower; none where pooling is ``joint`` and the tower has no levels.
        text_blocks: the blocks of the text tower.
    """

    clips_at_once = 0
    """Most clips in one forward pass; 0 for no limit."""
    prefix = 0
    """Tokens before the patches of a frame, such as CLS."""

    def __init__(
        self, *, model: Any, spec: FeatureSpec, dtype: torch.dtype, video_blocks: Blocks, text_blocks: Blocks
    ) -> None:
        self.model, self.spec, self.dtype = model, spec, dtype
        self.normalise = Normalise(spec.mean, spec.std)
        self.video_blocks: list[nn.Module] = []
        self.text_blocks: list[nn.Module] = []
        if spec.pooling != "joint":
            self.video_blocks = _take_levels(video_blocks, spec.levels)
            self.text_blocks = _take_levels(text_blocks, spec.levels)
        self.model.to(dtype).eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    def to(self, device: torch.device | str) -> HookedBackbone:
        """Move the weights, and return the backbone itself."""
        self.model.to(device)
        self.normalise.to(device)
        return self

    def embed_video(self, pixels_N3SS: Tensor, clips: int) -> Tensor:
        """Return the library's embeddings: of each frame (N, E), or of each clip (C, E)."""
        raise NotImplementedError  # each family that has it defines it

    def embed_text(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the library's embeddings of sentences, (B, E); the mask is 1 for tokens and 0 for padding."""
        raise NotImplementedError  # each family that has it defines it

    def sentence_ids(self, queries: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Return the padded token ids (B, L), and the number of tokens of each query.

        Raises:
            ValueError: for a query without a word, or if the weights have no vocabulary.
        """
        raise NotImplementedError  # each family that has it defines it

    def places(self, count: int, length: int) -> list[int]:
        """Return the places of the tokens that side-tuners read, the summary first.

        Args:
            count: tokens of the sentence.
            length: outputs of the text tower, with padding.
        """
        return list(range(count))

    def arrange(self, block: nn.Module, output: Tensor, clips: int) -> Tensor:
        """Return the output of a block of the video tower as (N, P, D); one N a frame, or one N a clip."""
        return output

    def attention_pool(self, tokens_NPD: Tensor) -> Tensor:
        """Return the tower's own pool of the last level, (N, D)."""
        raise NotImplementedError  # each family that has it defines it

    @torch.inference_mode()
    def encode_video(self, frames_CFSS3: Tensor) -> Tensor:
        """Encode uint8 RGB frames to float32 (K, C, D_v), or (K, C, F * P, D_v) where pooling is ``tokens``.

        With ``joint``, the result is (1, C, D_v): unit vectors in the space that sentences share.
        """
        check_frames(frames_CFSS3, self.spec)
        if not len(frames_CFSS3):  # the blocks cannot compute the output shape of an empty batch
            return self.encode_video(frames_CFSS3.new_zeros(1, *frames_CFSS3.shape[1:]))[:, :0]
        batches = frames_CFSS3.split(self.clips_at_once or len(frames_CFSS3))
        return torch.cat([self._encode_clips(batch) for batch in batches], dim=1)

    def _encode_clips(self, frames_CFSS3: Tensor) -> Tensor:
        clips = len(frames_CFSS3)
        pixels_N3SS = self.normalise(frames_CFSS3.flatten(0, 1).to(self.device)).to(self.dtype)
        if self.spec.pooling == "joint":
            return joint_embedding(self.embed_video(pixels_N3SS, clips).unflatten(0, (clips, -1)))
        levels: Tensor = self._read(
            self.video_blocks,
            lambda: self.embed_video(pixels_N3SS, clips),
            lambda block, output: self._pool(self.arrange(block, output, clips)),
        )
        levels = levels.unflatten(1, (clips, -1))  # the frames of a clip, or one for a clip that was read together
        return levels.flatten(2, 3) if self.spec.pooling == "tokens" else levels.mean(2)

    def _pool(self, tokens_NPD: Tensor) -> Tensor:
        match self.spec.pooling:
            case "cls":
                return tokens_NPD[:, 0]
            case "mean":
                return tokens_NPD[:, self.prefix :].mean(1, dtype=torch.float32)  # no rounding to half precision
            case "attention":
                return self.attention_pool(tokens_NPD)
        return tokens_NPD

    def _read(
        self, blocks: Sequence[nn.Module], run: Callable[[], Tensor], pool: Callable[[nn.Module, Tensor], Tensor]
    ) -> Tensor:
        """Run the library's forward pass, and return the pooled outputs of the blocks to read, (K, ...) float32."""
        levels: list[Tensor] = []

        def keep(block: nn.Module, inputs: Any, output: Any) -> None:
            levels.append(pool(block, output[0] if isinstance(output, tuple) else output).float())

        handles = [block.register_forward_hook(keep) for block in blocks]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(levels)

    @torch.inference_mode()
    def encode_text(self, queries: Sequence[str]) -> list[Tensor]:
        """Encode each query to float32 (K, L, D_t), the summary of the sentence first; or (1, 1, D_t) with ``joint``.

        A query longer than the text tower reads is cut, with a warning.

        Raises:
            ValueError: for a query without a word, or if the weights have no vocabulary.
        """
        if not queries:
            return []
        ids_BL, counts = self.sentence_ids(queries)
        ids_BL = ids_BL.to(self.device)
        ends_B1 = torch.tensor(counts, device=self.device)[:, None]
        mask_BL = (torch.arange(ids_BL.shape[1], device=self.device) < ends_B1).long()
        if self.spec.pooling == "joint":
            return sentence_embeddings(self.embed_text(ids_BL, mask_BL))
        levels_KBLD = self._read(
            self.text_blocks, lambda: self.embed_text(ids_BL, mask_BL), lambda block, output: output
        )
        length = levels_KBLD.shape[2]
        return [levels_KBLD[:, b, self.places(count, length)] for b, count in enumerate(counts)]


def _take_levels(groups: Blocks, levels: Sequence[int]) -> list[nn.Module]:
    """Return the blocks of the levels, and remove the blocks after them from the library's model."""
    flat = [block for blocks in groups for block in blocks]
    left = -1 - levels[-1]
    for blocks in reversed(groups):
        dropped = min(left, len(blocks))
        if dropped:
            del blocks[len(blocks) - dropped :]
        left -= dropped
    return [flat[level] for level in levels]
