"""Check that Batch, Targets and Predictions refuse wrong shapes and dtypes, and move as one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sidelight.core.batch import Batch, Predictions, Targets

K, B, T, L, G, F, M = 2, 3, 5, 4, 2, 8, 6


def batch(**changes: Any) -> Batch:
    parts: dict[str, Any] = {
        "video_KBTD": torch.zeros(K, B, T, 7),
        "video_mask_BT": torch.ones(B, T, dtype=torch.bool),
        "text_KBLD": torch.zeros(K, B, L, 9),
        "text_mask_BL": torch.ones(B, L, dtype=torch.bool),
    }
    return Batch(**(parts | changes))


def targets(**changes: Any) -> Targets:
    parts: dict[str, Any] = {
        "spans_BG2": torch.zeros(B, G, 2),
        "spans_mask_BG": torch.ones(B, G, dtype=torch.bool),
        "saliency_BT": torch.zeros(B, T),
        "positive_B": torch.zeros(B, dtype=torch.int64),
    }
    return Targets(**(parts | changes))


def predictions(**changes: Any) -> Predictions:
    parts: dict[str, Any] = {
        "logits_KBM": torch.zeros(K, B, M),
        "spans_KBM2": torch.zeros(K, B, M, 2),
        "actionness_BM": torch.zeros(B, M),
        "saliency_BT": torch.zeros(B, T),
        "video_KBTF": torch.zeros(K, B, T, F),
        "text_KBF": torch.zeros(K, B, F),
        "video_mask_BT": torch.ones(B, T, dtype=torch.bool),
        "saliency_video_BTF": torch.zeros(B, T, F),
        "saliency_text_BF": torch.zeros(B, F),
    }
    return Predictions(**(parts | changes))


def test_sizes() -> None:
    assert batch().size == B
    assert batch().levels == K
    assert batch(targets=targets()).targets is not None
    targets(spans_BG2=torch.zeros(B, 0, 2), spans_mask_BG=torch.zeros(B, 0, dtype=torch.bool))
    predictions()


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        (batch, {"video_KBTD": torch.zeros(K, 0, T, 7)}, "empty axis B"),
        (batch, {"video_KBTD": torch.zeros(B, T, 7)}, "4 axes"),
        (batch, {"video_KBTD": [1.0]}, "torch tensor, got list"),
        (batch, {"video_mask_BT": torch.ones(B, T + 1, dtype=torch.bool)}, "T=5 .video_KBTD has it."),
        (batch, {"video_mask_BT": torch.ones(B, T)}, "bool values, got torch.float32"),
        (batch, {"text_KBLD": torch.zeros(K + 1, B, L, 9)}, "K=2"),
        (batch, {"text_KBLD": torch.zeros(K, B, L, 9, dtype=torch.int64)}, "float values"),
        (batch, {"text_mask_BL": torch.ones(B + 1, L, dtype=torch.bool)}, "B=3"),
        (batch, {"targets": targets(saliency_BT=torch.zeros(B, T + 2))}, "T=5"),
        (targets, {"spans_BG2": torch.zeros(B, G, 3)}, "2=2 .by definition."),
        (targets, {"positive_B": torch.zeros(B)}, "index values"),
        (predictions, {"actionness_BM": torch.zeros(B, M + 1)}, "M=6"),
        (predictions, {"saliency_text_BF": torch.zeros(B, F, 1)}, "2 axes"),
    ],
)
def test_wrong_shapes_and_dtypes_are_named(build: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_to_moves_everything_and_converts_only_features() -> None:
    moved = batch(targets=targets()).to("cpu", torch.float16)
    assert moved.video_KBTD.dtype == moved.text_KBLD.dtype == torch.float16
    assert moved.video_mask_BT.dtype == torch.bool
    assert moved.targets is not None
    assert moved.targets.spans_BG2.dtype == torch.float16
    assert moved.targets.positive_B.dtype == torch.int64
    assert batch().to("meta").video_KBTD.device.type == "meta"
