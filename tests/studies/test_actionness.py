"""The benchmark of actionness measures correctly, and docs/miniature.md has its numbers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def actionness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("actionness")


class Fixed(torch.nn.Module):
    """A model with two moment queries: the first 5/8 of the moment [0.2, 0.6], and the complete video."""

    def forward(self, batch: Any) -> Any:
        return SimpleNamespace(
            spans_KBM2=torch.tensor([[[[0.325, 0.25], [0.5, 1.2]]]]),
            actionness_BM=torch.tensor([[0.9, 0.1]]),
            logits_KBM=torch.zeros(1, 1, 2),
        )


class OneMoment:
    def __len__(self) -> int:
        return 1

    def batch(self, rows: range) -> Any:
        # The second true moment is padding, and would overlap more.
        spans, mask = torch.tensor([[[0.4, 0.4], [0.5, 1.0]]]), torch.tensor([[True, False]])
        return SimpleNamespace(targets=SimpleNamespace(spans_BG2=spans, spans_mask_BG=mask))


def test_shares_of_a_span_and_of_its_moment(actionness: ModuleType) -> None:
    values = actionness.moment_queries(Fixed(), OneMoment())
    np.testing.assert_allclose(values["overlap"], [0.625, 0.4], atol=1e-6)
    np.testing.assert_allclose(values["inside"], [1, 0.4], atol=1e-6)
    np.testing.assert_allclose(values["covered"], [0.625, 1], atol=1e-6)
    rows = actionness.by_overlap(values, 2)
    assert [row["moment queries"] for row in rows] == [1, 1]
    assert rows[0]["covering actionness"] == pytest.approx(0.1) and rows[0]["inside actionness"] is None
    assert rows[1]["inside actionness"] == pytest.approx(0.9) and rows[1]["covering moment queries"] == 0
    assert rows[0]["class"] == 0.5


def test_the_page_has_the_measured_numbers() -> None:
    """Compare every row of the section's tables with the committed numbers."""
    results = json.loads((ROOT / "docs" / "ablation" / "tables" / "actionness.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "miniature.md").read_text(encoding="utf-8")
    section = text.partition("### Why actionness")[2].partition("\n## ")[0]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    names = {
        **{f"seed {n}": f"runs/ablation/b347c98841ec-{n}/last" for n in range(3)},
        **{f"1.5, seed {n}": f"runs/roi-width-{n}/last" for n in range(2)},
        "cue, seed 0": "runs/ablation/fe66b4295c71-0/last",
        "cue and score, seed 0": "runs/ablation/3eda0f8c5777-0/last",
        "shipped": "shapes",
    }
    page_rows = {row[0]: row[1:] for row in rows if row[0] and not row[0].startswith("-")}
    checked = 0
    for label, name in names.items():
        measured = results[name]
        expected = {
            label: [f"{measured['ranked by'][by]['MR-full-mAP']:.2f}" for by in ("class", "actionness", "both")],
            f"actionness, {label}": [f"{measured['tenths'][n]['actionness']:.3f}" for n in (0, 2, 5, 6, 7, 8, 9)],
            f"class, {label}": [f"{measured['tenths'][n]['class']:.3f}" for n in (0, 2, 5, 6, 7, 8, 9)],
            f"inside, {label}": [f"{measured['fifths'][n]['inside actionness']:.3f}" for n in range(1, 5)],
            f"covering, {label}": [f"{measured['fifths'][n]['covering actionness']:.3f}" for n in range(1, 5)],
        }
        for row, cells in expected.items():
            if row in page_rows:
                assert page_rows[row] == cells, row
                checked += 1
        assert label in page_rows
    assert checked == len([row for row in page_rows if row not in ("MR mAP, ranked by", "overlap")])
