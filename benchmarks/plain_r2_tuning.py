"""A plain version of R2-Tuning (Liu et al., ECCV 2024, arXiv 2404.00801), to measure the package's model against.

Every formula of the paper is one line of PyTorch, in the order of the paper, and autograd keeps the tensors that it
needs: all tokens of every frame are mapped to the end, then once more for the attention; the query is repeated for
every clip; attention is a product, a softmax and a product; dropout is ``nn.Dropout``. The published code does the
same, also in a padded batch, so this model is ``R2Tuning`` with ``padding="exact"``. The parameters have the same
names, so ``load_state_dict`` copies the weights of one model to the other.

Shape legend: B batch, K levels, T clips, P tokens of a frame (token 0 is CLS), L query tokens, N points, G
ground-truth spans, F hidden width, D input width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidelight.core.batch import Batch, Targets
from sidelight.models.losses.r2_tuning import R2LossConfig
from sidelight.models.r2_tuning import R2TuningConfig


class PlainPredictions(NamedTuple):
    """The inputs of the losses."""

    logits_BN: Tensor
    distances_BN2: Tensor
    points_N4: Tensor
    point_mask_BN: Tensor
    video_BTF: Tensor
    text_BF: Tensor
    level_video_KBTF: Tensor
    level_text_KBF: Tensor
    video_mask_BT: Tensor


class PlainMap(nn.Module):
    """Map from the features' width to the model's."""

    def __init__(self, width_in: int, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width_in),
            nn.Dropout(dropout),
            nn.Linear(width_in, width),
            nn.ReLU(),
            nn.LayerNorm(width),
            nn.Dropout(dropout),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class PlainAttention(nn.Module):
    """Attention of several heads; the mask is True for keys that may be read."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask_BL: Tensor) -> Tensor:
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(queries), self.key(keys), self.value(values))
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~mask_BL[:, None, None], float("-inf")).softmax(-1)
        return self.output((weights @ v).transpose(1, 2).flatten(2))


class PlainNorm(nn.Module):
    """Stochastic depth, residual, LayerNorm."""

    def __init__(self, width: int, droppath: float) -> None:
        super().__init__()
        self.droppath = droppath
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, update: Tensor) -> Tensor:
        if self.training and self.droppath:
            kept = torch.rand(len(x), 1, 1) >= self.droppath
            update = update * kept / (1 - self.droppath)
        return self.norm(x + update)


class PlainFeedForward(nn.Module):
    """Linear, ReLU, Linear."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.expand, self.contract = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.relu(self.expand(x)))


class PlainTemporal(nn.Module):
    """Temporal refinement: cross-attention to the query, self-attention, feed-forward; post-norm."""

    def __init__(self, config: R2TuningConfig) -> None:
        super().__init__()
        width = config.hidden
        self.text_attention = PlainAttention(width, config.heads)
        self.text_norm = PlainNorm(width, config.droppath)
        self.self_attention = PlainAttention(width, config.heads)
        self.self_norm = PlainNorm(width, config.droppath)
        self.ffn = PlainFeedForward(width, config.ffn_ratio)
        self.ffn_norm = PlainNorm(width, config.droppath)

    def forward(self, x: Tensor, code: Tensor, text: Tensor, video_mask: Tensor, text_mask: Tensor) -> Tensor:
        x = self.text_norm(x, self.text_attention(x + code, text, text, text_mask))
        x = self.self_norm(x, self.self_attention(x + code, x + code, x, video_mask))
        return self.ffn_norm(x, self.ffn(x))


class PlainBlock(nn.Module):
    """The R2 Block (Sec. 3.2), from the deepest layer to the shallowest."""

    def __init__(self, config: R2TuningConfig) -> None:
        super().__init__()
        self.config, width = config, config.hidden
        self.video_map = PlainMap(config.video_dim + 2, width, config.dropout)
        self.text_map = PlainMap(config.text_dim, width, config.dropout)
        self.q_map, self.v_map = nn.Linear(width, width), nn.Linear(width, width)
        self.scales_K = nn.Parameter(torch.zeros(config.levels))
        self.gates_K = nn.Parameter(torch.zeros(config.levels - 1))
        self.temporal = PlainTemporal(config)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        size, clips, tokens = batch.video_KBTD.shape[1:4]
        starts = torch.arange(clips) / clips
        ends_T2 = torch.stack([starts, starts + 1 / clips], -1)
        ends_BTP2 = ends_T2[:, None].expand(size, clips, tokens, 2)
        code_TF = self.position_code(clips)
        last, level_cls, level_text = None, [], []
        for level in reversed(range(self.config.levels)):
            video_BTPF = self.video_map(torch.cat([batch.video_KBTD[level], ends_BTP2], -1))
            text_BLF = self.text_map(batch.text_KBLD[level])
            level_cls.append(video_BTPF[:, :, 0])
            level_text.append(text_BLF)
            patches_NPF = video_BTPF.flatten(0, 1)
            query_NLF = text_BLF.repeat_interleave(clips, 0)
            scores = self.q_map(query_NLF) @ self.v_map(patches_NPF).transpose(1, 2) / math.sqrt(self.config.hidden)
            pooled_NF = (scores.softmax(-1) @ patches_NPF + query_NLF).amax(1)
            clips_BTF = (patches_NPF[:, 0] + self.scales_K[level].tanh() * pooled_NF).unflatten(0, (size, clips))
            if last is not None:
                gate = self.gates_K[level].sigmoid()
                clips_BTF = gate * clips_BTF + (1 - gate) * last
            last = self.temporal(clips_BTF, code_TF, text_BLF, batch.video_mask_BT, batch.text_mask_BL)
        return last, torch.stack(level_cls), torch.stack(level_text)

    def position_code(self, clips: int) -> Tensor:
        width = self.config.hidden
        positions = 2 * math.pi * torch.arange(1, clips + 1) / (clips + 1e-6)
        angles = positions[:, None] / 10000 ** (2 * torch.arange(width // 2) / width)
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class PlainHalve(nn.Module):
    """A convolution of stride 2, LayerNorm, ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(width, width, 2, stride=2), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x.transpose(1, 2)).transpose(1, 2)))


class PlainHead(nn.Module):
    """Two convolutions over three points."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(width, width, 3, padding=1), nn.Conv1d(width, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x.transpose(1, 2)))).transpose(1, 2)


class PlainR2Tuning(nn.Module):
    """Tokens of K layers in, points out. Padded features and tokens must be 0."""

    def __init__(self, config: R2TuningConfig) -> None:
        super().__init__()
        self.config, width = config, config.hidden
        self.block = PlainBlock(config)
        self.pyramid = nn.ModuleList(
            nn.Sequential(*(PlainHalve(width) for _ in range(i))) for i in range(len(config.strides))
        )
        self.text_pool = nn.Linear(width, 1, bias=False)
        self.class_head, self.boundary_head = PlainHead(width, 1), PlainHead(width, 2)
        self.coefficients = nn.Parameter(torch.ones(len(config.strides)))

    def forward(self, batch: Batch) -> PlainPredictions:
        clips_BTF, level_video_KBTF, text_KBLF = self.block(batch)
        clips_BTF = F.relu(clips_BTF)
        scores = self.text_pool(text_KBLF).masked_fill(~batch.text_mask_BL[..., None], float("-inf"))
        text_KBF = (scores.softmax(2) * text_KBLF).sum(2)
        logits, distances, points, masks = [], [], [], []
        lows = (0.0, *self.config.strides[1:])
        for i, stride in enumerate(self.config.strides):
            level = self.pyramid[i](clips_BTF)
            logits.append(self.class_head(level)[..., 0])
            distances.append(self.boundary_head(level).exp() * self.coefficients[i])
            high = lows[i + 1] if i + 1 < len(lows) else math.inf
            points += [(float(n * stride), lows[i], high, float(stride)) for n in range(level.shape[1])]
            masks.append(batch.video_mask_BT[:, ::stride][:, : level.shape[1]])
        return PlainPredictions(
            torch.cat(logits, 1),
            torch.cat(distances, 1),
            torch.tensor(points),
            torch.cat(masks, 1),
            clips_BTF,
            text_KBF[-1],
            level_video_KBTF,
            text_KBF,
            batch.video_mask_BT,
        )


def plain_losses(predictions: PlainPredictions, targets: Targets, config: R2LossConfig) -> dict[str, Tensor]:
    """Return the five losses (Sec. 3.4) and their weighted sum; every sample needs a positive clip and a moment."""
    goal_BN, goal_distances_BN2 = plain_assignment(predictions, targets, config.center_radius)
    focal_BN = F.binary_cross_entropy_with_logits(predictions.logits_BN, goal_BN, reduction="none")
    focal_BN = focal_BN * (goal_BN - predictions.logits_BN.sigmoid()).abs() ** config.focal_gamma
    rows = torch.arange(len(targets.positive_B))
    cosine_BT = F.cosine_similarity(predictions.video_BTF, predictions.text_BF[:, None], dim=-1)
    video_KBF = F.normalize(predictions.level_video_KBTF[:, rows, targets.positive_B], dim=-1)
    text_KBF = F.normalize(predictions.level_text_KBF, dim=-1)
    logits_KBB = video_KBF @ text_KBF.transpose(1, 2) / config.alignment_temperature
    logits_BKK = video_KBF.transpose(0, 1) @ text_KBF.permute(1, 2, 0) / config.alignment_temperature
    losses = {
        "class": focal_BN[predictions.point_mask_BN].mean(),
        "l1": (predictions.distances_BN2 - goal_distances_BN2)[goal_BN > 0].abs().mean(),
        "saliency": plain_sampled_nce(cosine_BT, predictions.video_mask_BT, targets, config.nce_temperature),
        "alignment_batch": torch.stack([plain_info_nce(logits) for logits in logits_KBB]).mean(),
        "alignment_levels": torch.stack([plain_info_nce(logits) for logits in logits_BKK]).mean(),
    }
    losses["total"] = sum((getattr(config, f"weight_{n}") * loss for n, loss in losses.items()), torch.zeros(()))
    return losses


def plain_info_nce(logits_NN: Tensor) -> Tensor:
    """Return the mean of two cross-entropies: the diagonal against its row, and against its column."""
    index = torch.arange(len(logits_NN))
    return (F.cross_entropy(logits_NN, index) + F.cross_entropy(logits_NN.t(), index)) / 2


def plain_sampled_nce(cosine_BT: Tensor, mask_BT: Tensor, targets: Targets, temperature: float) -> Tensor:
    """Compare the positive clip with clips of its video, and with its clip index in the other samples."""
    index = torch.arange(len(cosine_BT))
    limit_B1 = targets.saliency_BT[index, targets.positive_B][:, None]
    logits_BT = (cosine_BT / temperature).masked_fill(~mask_BT | (targets.saliency_BT > limit_B1), -1e4)
    row = F.cross_entropy(logits_BT, targets.positive_B)
    columns_BB = logits_BT[:, targets.positive_B].t()  # row b: the clip index of sample b's positive
    return row + F.cross_entropy(columns_BB, index)


@torch.no_grad()
def plain_assignment(predictions: PlainPredictions, targets: Targets, radius: float) -> tuple[Tensor, Tensor]:
    """Return 1 for positive points and 0 for others, and distances to start and end in strides."""
    goal_BN, goal_distances_BN2 = torch.zeros_like(predictions.logits_BN), torch.zeros_like(predictions.distances_BN2)
    position, low, high, stride = predictions.points_N4.unbind(1)
    for b, length in enumerate(predictions.video_mask_BT.sum(1).tolist()):
        shortest = torch.full_like(position, math.inf)
        for center, width in targets.spans_BG2[b][targets.spans_mask_BG[b]].double().tolist():
            # Edges are rounded to 1/1024 clip, since (center, width) loses their last bits.
            start = round((center - width / 2) * length * 1024) / 1024
            end = round((center + width / 2) * length * 1024) / 1024
            before, after = position - start, end - position
            reach = torch.maximum(before, after)
            fits = (before >= 0) & (after >= 0) & ((position - (start + end) / 2).abs() <= stride * radius)
            fits &= (reach >= low) & (reach <= high) & (end - start < shortest)
            shortest[fits], goal_BN[b, fits] = end - start, 1
            goal_distances_BN2[b, fits] = (torch.stack([before, after], -1) / stride[:, None])[fits]
    return goal_BN, goal_distances_BN2
