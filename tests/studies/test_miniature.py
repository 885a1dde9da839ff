"""The committed results of the ablations agree with docs/miniature.md."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from studies.ablation.__main__ import main
from studies.ablation.paper import METRICS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "ablation"
TABLES = sorted(path.stem.removeprefix("table-") for path in (RESULTS / "tables").glob("table-*.json"))


def report(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "tables" / f"table-{name}.json").read_text(encoding="utf-8"))
    return table


@pytest.mark.parametrize("name", TABLES)
def test_tables_follow_from_the_results(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    seeds = next(row["seeds"] for row in report(name)["rows"] if row["seeds"])
    shutil.copytree(RESULTS, tmp_path / "out", ignore=shutil.ignore_patterns("tables"))
    table, _, cue = name.partition("-")
    arguments = [table, *([f"--{cue}"] if cue else []), "--seeds", str(len(seeds)), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    new_table, old_table = report(name, tmp_path / "out"), report(name)
    for row, old in zip(new_table["rows"], old_table["rows"], strict=True):
        assert row["variant"] == old["variant"] and row["seeds"] == old["seeds"]
        for column, scores in old["ours"].items():
            assert row["ours"][column]["runs"] == pytest.approx(scores["runs"])
            assert row["ours"][column]["mean"] == (None if scores["mean"] is None else pytest.approx(scores["mean"]))
    for test, old in zip(new_table["tests"], old_table["tests"], strict=True):
        assert test["verdict"] == old["verdict"] and test["p_adjusted"] == pytest.approx(old["p_adjusted"], rel=1e-6)


def claims() -> dict[str, list[list[str]]]:
    """Return table -> the rows of its claims in docs/miniature.md."""
    text = (ROOT / "docs" / "miniature.md").read_text(encoding="utf-8")
    sections = re.split(r"^## Table ([\w-]+)", text, flags=re.MULTILINE)
    claims_of = {}
    for name, body in zip(sections[1::2], sections[2::2], strict=True):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines() if line[:1] == "|"]
        claims_of[name] = [row for row in rows if len(row) == 7 and row[2] in METRICS]
    return claims_of


def test_the_page_has_every_table() -> None:
    assert TABLES and set(claims()) == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_the_claims_of_the_page_equal_the_results(name: str) -> None:
    rows = {(r[0], r[1], r[2]): r[3:] for r in claims()[name]}
    tests = report(name)["tests"]
    assert len(rows) == len(tests)
    for test in tests:
        paper, ours, p, verdict = rows[test["first"], test["second"], test["metric"]]
        claim = {1: "better", -1: "worse"}.get(test.get("claim"), "-")
        assert paper == (
            claim if test["paper"] is None else f"{test['paper']:+.2f}{'~' * bool(test['paper_within_spread'])}"
        )
        assert ours == f"{test['value']:+.2f} [{test['low']:+.2f}, {test['high']:+.2f}]"
        assert p == ("<0.0001" if test["p_adjusted"] < 0.0001 else f"{test['p_adjusted']:.4f}")
        assert verdict == test["verdict"]


@pytest.mark.parametrize("name", TABLES)
def test_the_means_of_the_page_equal_the_results(name: str) -> None:
    text = (ROOT / "docs" / "miniature.md").read_text(encoding="utf-8")
    body = re.split(rf"^## Table {name}:", text, flags=re.MULTILINE)[1].partition("\n## ")[0]
    rows = {row["variant"]: row["ours"] for row in report(name)["rows"] if row["seeds"]}
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in body.splitlines() if line.startswith("|")]
    means = {cells[0]: cells[1:] for cells in lines if len(cells) == 3 and cells[0] in rows}
    if name != "L":  # the runs of Table 5
        assert set(means) == set(rows)
    for variant, cells in means.items():
        for cell, column in zip(cells, ("mAP", "HD mAP"), strict=True):
            mean, deviation = rows[variant][column]["mean"], rows[variant][column]["deviation"]
            assert cell == f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")
