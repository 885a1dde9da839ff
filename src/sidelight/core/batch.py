"""Batch, FrameBatch, Targets and Predictions: the tensors that data, models, losses and decoding exchange.

Shape legend, used by every tensor file of the project (a name ends in its axes: ``video_KBTD``):

    B batch              K levels             T clips              L query tokens
    M moment queries     G ground-truth spans F hidden width       D input width (D_v video, D_t text)
    H attention heads    P sampling points    N any number of points
    V videos             C chunks of a video  S side of a frame    E width of a sentence

P counts the tokens of a clip where features keep them all. K is one more than the levels in predictions of a model that
selects its moment queries first.

Spans are (center, width) in units of each sample's OWN extent: 1.0 is the end of that sample's last real clip, however
far the batch is padded. Masks are True where data is real, and real entries come first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

_Group = TypeVar("_Group", bound="_TensorGroup")


class _Shapes:
    """A check of tensors against named axes: axes of one name must have one size."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.sizes: dict[str, tuple[int, str]] = {}

    def check(self, name: str, tensor: Tensor, axes: Sequence[str], kind: str) -> None:
        """Raise a ValueError unless the tensor has these axes and holds "float", "bool", "index" or "bytes" values."""
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{self.owner}.{name} must be a torch tensor, got {type(tensor).__name__}")
        expected_shape = "(" + ", ".join(axes) + ")"
        if tensor.ndim != len(axes):
            raise ValueError(
                f"{self.owner}.{name} must have {len(axes)} axes {expected_shape}, got shape {tuple(tensor.shape)}"
            )
        for axis, size in zip(axes, tensor.shape, strict=True):
            if axis.isdigit():
                expected, source = int(axis), "by definition"
            else:
                expected, source = self.sizes.setdefault(axis, (size, f"{name} has it"))
            if size != expected:
                raise ValueError(
                    f"{self.owner}.{name} must be {expected_shape} with {axis}={expected} ({source}), "
                    f"got shape {tuple(tensor.shape)}"
                )
            if size == 0 and axis != "G":
                raise ValueError(f"{self.owner}.{name} has an empty axis {axis}: shape {tuple(tensor.shape)}")
        fits = {
            "float": tensor.is_floating_point(),
            "bool": tensor.dtype == torch.bool,
            "index": tensor.dtype == torch.int64,
            "bytes": tensor.dtype == torch.uint8,
        }[kind]
        if not fits:
            raise ValueError(f"{self.owner}.{name} must hold {kind} values, got {tensor.dtype}")


@dataclass(frozen=True, kw_only=True, eq=False)
class _TensorGroup:
    """The base of Batch, Targets and Predictions: it moves all their tensors at once."""

    def _map(self: _Group, function: Callable[[Tensor], Tensor]) -> _Group:
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = function(value)
            elif isinstance(value, _TensorGroup):
                changed[field.name] = value._map(function)
        return replace(self, **changed)

    def to(
        self: _Group,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> _Group:
        """Return the same tensors on ``device``; floating ones in ``dtype`` if given, masks and indices as they are."""

        def move(tensor: Tensor) -> Tensor:
            new_dtype = dtype if tensor.is_floating_point() else None
            return tensor.to(device=device, dtype=new_dtype, non_blocking=non_blocking)

        return self._map(move)

    def pin_memory(self: _Group) -> _Group:
        """Return the same tensors in page-locked memory; PyTorch's DataLoader calls this if ``pin_memory`` is set."""
        return self._map(lambda tensor: tensor.pin_memory())


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets(_TensorGroup):
    """The ground truth of a batch."""

    spans_BG2: Tensor
    """(center, width) of each ground-truth span in [0, 1] of its sample's own extent; G may be 0."""
    spans_mask_BG: Tensor
    """True for real spans; a sample may have none."""
    saliency_BT: Tensor
    """Saliency of each clip, at least 0: the mean of the ratings, 0 outside the relevant clips."""
    positive_B: Tensor
    """Index of one positive clip per sample, drawn anew each epoch; -1 for a sample that has none."""

    def __post_init__(self) -> None:
        shapes = _Shapes("Targets")
        shapes.check("spans_BG2", self.spans_BG2, ("B", "G", "2"), "float")
        shapes.check("spans_mask_BG", self.spans_mask_BG, ("B", "G"), "bool")
        shapes.check("saliency_BT", self.saliency_BT, ("B", "T"), "float")
        shapes.check("positive_B", self.positive_B, ("B",), "index")


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch(_TensorGroup):
    """Features of B (video, query) pairs, padded to a common length. Levels run from shallow to deep.

    Only shapes and dtypes are checked when it is built: reading values would make an accelerator wait.
    """

    video_KBTD: Tensor
    """Video features of each level and clip; (K, B, T, P, D_v) where every token of a clip was kept."""
    video_mask_BT: Tensor
    """True for real clips, which come first; each sample has at least one."""
    text_KBLD: Tensor
    """Query features of each level and token; token 0 is the CLS (start) token."""
    text_mask_BL: Tensor
    """True for real tokens, which come first; token 0 is always real."""
    targets: Targets | None = None

    def __post_init__(self) -> None:
        shapes = _Shapes("Batch")
        tokens = ("P",) if getattr(self.video_KBTD, "ndim", 4) == 5 else ()
        shapes.check("video_KBTD", self.video_KBTD, ("K", "B", "T", *tokens, "D_v"), "float")
        shapes.check("video_mask_BT", self.video_mask_BT, ("B", "T"), "bool")
        shapes.check("text_KBLD", self.text_KBLD, ("K", "B", "L", "D_t"), "float")
        shapes.check("text_mask_BL", self.text_mask_BL, ("B", "L"), "bool")
        if self.targets is not None:
            shapes.check("targets.saliency_BT", self.targets.saliency_BT, ("B", "T"), "float")

    @property
    def size(self) -> int:
        """Return the number of samples, B."""
        return self.video_mask_BT.shape[0]

    @property
    def levels(self) -> int:
        """Return the number of levels, K."""
        return self.video_KBTD.shape[0]


def _rows_of(rows: Tensor, tensor: Tensor) -> Tensor:
    """Return some rows of a tensor."""
    return tensor[rows]


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameBatch(_TensorGroup):
    """Frames of V videos and B queries about them, for models that are trained from pixels.

    A chunk is the frames that the video backbone reads together. Only shapes and dtypes are checked when the batch is
    built.
    """

    frames_VCFSS3: Tensor
    """RGB frames, uint8; F frames of each chunk."""
    video_mask_VT: Tensor
    """True for real clips, which come first; each video has at least one. T is a multiple of C: a chunk has T / C
    clips. A chunk without a real clip is not read.
    """
    sentences_BE: Tensor
    """One vector of each query, from a sentence encoder."""
    video_of_B: Tensor
    """Number of each query's video, from 0 to V - 1."""
    targets: Targets | None = None
    encoded_VND: Tensor | None = None
    """The output of a frozen backbone for each video, means over space, N times; then no frame is read."""

    def __post_init__(self) -> None:
        shapes = _Shapes("FrameBatch")
        if self.encoded_VND is not None:
            shapes.check("encoded_VND", self.encoded_VND, ("V", "N", "D"), "float")
        shapes.check("frames_VCFSS3", self.frames_VCFSS3, ("V", "C", "F", "S", "S", "3"), "bytes")
        shapes.check("video_mask_VT", self.video_mask_VT, ("V", "T"), "bool")
        shapes.check("sentences_BE", self.sentences_BE, ("B", "E"), "float")
        shapes.check("video_of_B", self.video_of_B, ("B",), "index")
        chunks, clips = self.frames_VCFSS3.shape[1], self.video_mask_VT.shape[1]
        if clips % chunks:
            raise ValueError(
                f"FrameBatch.video_mask_VT must have the same number of clips for each of {chunks} chunks, got {clips} "
                "clips"
            )
        if self.targets is not None:
            shapes.check("targets.saliency_BT", self.targets.saliency_BT, ("B", "T"), "float")

    @property
    def size(self) -> int:
        """Return the number of queries, B."""
        return self.video_of_B.shape[0]

    @property
    def video_mask_BT(self) -> Tensor:
        """Return the mask of each query's video."""
        return self.video_mask_VT[self.video_of_B]

    def parts(self, queries: int) -> list[FrameBatch]:
        """Return batches of at most that many queries, in order, each with the videos of its queries alone."""
        batches = []
        for rows in torch.arange(self.size).split(queries):
            videos, video_of = self.video_of_B[rows].unique(return_inverse=True)
            targets = self.targets and self.targets._map(partial(_rows_of, rows))
            batches.append(
                FrameBatch(
                    frames_VCFSS3=self.frames_VCFSS3[videos],
                    video_mask_VT=self.video_mask_VT[videos],
                    sentences_BE=self.sentences_BE[rows],
                    video_of_B=video_of,
                    targets=targets,
                    encoded_VND=None if self.encoded_VND is None else self.encoded_VND[videos],
                )
            )
        return batches


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions(_TensorGroup):
    """The output of a model's ``forward``.

    The K axis is in order of refinement: the last entry is the answer. A model that selects its moment queries has one
    more entry of logits and spans, in front: the selection.
    """

    logits_KBM: Tensor
    """Class logit of each moment query after each level."""
    spans_KBM2: Tensor
    """(center, width) in [0, 1] of the sample's own extent, after each level."""
    actionness_BM: Tensor
    """Estimated best IoU with any ground-truth span, in [0, 1], of the last level's spans."""
    saliency_BT: Tensor
    """Cosine of clip and query in [-1, 1]; exactly 0 on padded clips."""
    video_KBTF: Tensor
    """V[l]: the clips of each level in the shared space, for the alignment losses."""
    text_KBF: Tensor
    """The pooled T[l]: the query of each level in the shared space, for the alignment losses."""
    video_mask_BT: Tensor
    """True for real clips."""
    saliency_video_BTF: Tensor
    """Clip vectors of the cosine."""
    saliency_text_BF: Tensor
    """Query vector of the cosine."""

    def __post_init__(self) -> None:
        shapes = _Shapes("Predictions")
        shapes.check("logits_KBM", self.logits_KBM, ("refinements", "B", "M"), "float")
        shapes.check("spans_KBM2", self.spans_KBM2, ("refinements", "B", "M", "2"), "float")
        shapes.check("actionness_BM", self.actionness_BM, ("B", "M"), "float")
        shapes.check("saliency_BT", self.saliency_BT, ("B", "T"), "float")
        shapes.check("video_KBTF", self.video_KBTF, ("K", "B", "T", "F"), "float")
        shapes.check("text_KBF", self.text_KBF, ("K", "B", "F"), "float")
        shapes.check("video_mask_BT", self.video_mask_BT, ("B", "T"), "bool")
        shapes.check("saliency_video_BTF", self.saliency_video_BTF, ("B", "T", "F"), "float")
        shapes.check("saliency_text_BF", self.saliency_text_BF, ("B", "F"), "float")
