"""Ablations: variants fit the real configurations, tables share runs, reports and statistical tests are correct."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sidelight.backbones import load_tower
from sidelight.core.batch import Batch, Targets
from sidelight.metrics.evaluate import QueryScores
from sidelight.models.deformable import initial_offsets
from sidelight.models.losses.sdst import SDSTLossConfig, sdst_losses
from sidelight.models.registry import build_model
from sidelight.models.sdst import SDST, SDSTConfig
from sidelight.training.recipe import read_recipe
from studies.ablation import offsets, report, run
from studies.ablation.__main__ import main
from studies.ablation.inference import difference
from studies.ablation.paper import METRICS, TABLES
from studies.ablation.report import Scores
from studies.ablation.variants import ABLATIONS, TESTED, Variant, digest, find_ablation, overridden, with_cue

BASE = "studies/ablation.yaml"
OURS = ("cue", "options", "rates", "scada")
TINY = SDSTConfig(
    video_dim=6, text_dim=5, levels=3, hidden=16, moment_queries=4, heads=4, points=2, ffn_ratio=2, rdsa_width=8,
    roi_bins=3, dropout=0.0, droppath=0.0,
)  # fmt: skip


# the paper and the variants ----------------------------------------------------------------------------------------


def test_the_papers_numbers_occur_in_its_text(shared: Path) -> None:
    lines = (shared / "papers" / "sdst-paper.txt").read_text(encoding="utf-8").splitlines()
    cells = [[cell.split("(")[0].strip() for cell in line.split("|")] for line in lines if "|" in line]
    printed = [[float(c) for c in row if c.replace(".", "", 1).isdigit()] for row in cells]
    for table in TABLES.values():
        for name, row in table.rows.items():
            assert len(row) == len(table.columns) and set(table.columns) <= set(METRICS)
            count = len(row)
            is_printed = any(list(row) == p[i : i + count] for p in printed for i in range(len(p) - count + 1))
            assert is_printed, f"table {table.name}, {name}: {row}"


@pytest.mark.parametrize("name", list(ABLATIONS))
def test_every_variant_is_a_recipe(name: str) -> None:
    ablation = ABLATIONS[name]
    base = read_recipe(f"studies/{ablation.recipe}").to_dict()
    names = [variant.name for variant in ablation.variants]
    assert len(set(names)) == len(names) and ablation.reference in names
    for pair in ablation.compared():
        assert set(pair) <= set(names) and pair[0] != pair[1]
    for variant in ablation.variants:
        if variant.overrides is None:
            assert variant.why
            continue
        recipe = run.checked(run.resolve(base, variant))
        if name == "scada":
            build_model("scada", recipe.to_dict()["model"], tower=load_tower("shapes"))
            continue
        chosen = recipe.backbone.chosen
        assert recipe.model.levels == len(chosen) and min(chosen) >= -run.ALL_LEVELS
        with torch.device("meta"):
            build_model(recipe.side_tuner, recipe.to_dict()["model"])
    if name not in OURS:  # The paper's own choice is the base itself.
        reference = next(v for v in ablation.variants if v.name == ablation.reference)
        assert digest(run.resolve(base, reference)) == digest(base)
        cued = [v for v in with_cue(ablation).variants if v.overrides is not None]
        assert all(run.resolve(base, variant)["model"]["saliency_cue"] for variant in cued)


def test_the_papers_rows_are_shown_beside_ours_where_they_are_known() -> None:
    unknown = {"4": {"row 2", "row 3"}, "E": {f"row {i}" for i in range(1, 6)}}
    for name, ablation in ABLATIONS.items():
        assert set(ablation.paper.rows) - {v.row for v in ablation.variants} == unknown.get(name, set())
        without_paper_row = {v.name for v in ablation.variants if v.row not in ablation.paper.rows}
        assert not without_paper_row or name in ("4", "E", "offsets", *OURS)


@pytest.mark.slow
def test_runs_are_shared_between_tables(tmp_path: Path) -> None:
    folders = {
        name: {r.folder for r in run.plan(a, f"studies/{a.recipe}", tmp_path, [0])} for name, a in ABLATIONS.items()
    }
    counts = {name: len(paths) for name, paths in folders.items()}
    assert counts == {
        "3": 3, "4": 5, "5": 5, "6": 4, "7": 5, "E": 6, "H": 6, "J": 2, "K": 7, "L": 3, "M": 6, "N": 6, "offsets": 2,
        "cue": 6, "options": 14, "rates": 24, "scada": 9,
    }  # fmt: skip
    papers = {name: paths for name, paths in folders.items() if name not in OURS}
    assert len(set.intersection(*papers.values())) == 1  # the paper's own choice is trained once for all tables
    assert folders["L"] < folders["5"] and folders["offsets"] < folders["5"]
    assert len(set.union(*papers.values())) == 44  # pairs of last levels occur in two tables
    planned = run.plan(ABLATIONS["5"], BASE, tmp_path, [0, 1, 2])
    assert len(planned) == 15
    assert {r.variants for r in planned if r.for_offsets} == {("Def. CA",), ("RDSA",)}
    assert {r.folder for r in planned if r.for_offsets and r.seed == 0} == folders["offsets"]


def test_a_digest_covers_what_decides_the_result() -> None:
    base = read_recipe(BASE).to_dict()

    def changed(**parts: dict[str, Any]) -> str:
        return digest({**base, **{name: {**base[name], **values} for name, values in parts.items()}})

    same = (
        {"backbone": {"levels": [-4, -3, -2, -1]}},
        {"data": {"train": "elsewhere.jsonl", "val_features": "elsewhere"}},
        {"train": {"seed": 7, "threads": 1, "out": "elsewhere", "val_every": 1}},
    )
    different = (
        {"backbone": {"levels": [-5, -3, -2, -1]}},
        {"data": {"binding": "r2-tuning"}},
        {"train": {"epochs": 99}},
        {"model": {"attention": "deformable"}},
        {"model": {"roi_width": 1.5}},
        {"losses": {"weight_l1": 0.0}},
        {"decode": {"score": "class"}},
    )
    assert all(changed(**parts) == digest(base) for parts in same)
    assert len({changed(**parts) for parts in different} | {digest(base)}) == len(different) + 1
    assert digest(json.loads(json.dumps(base))) == digest(base) == digest(read_recipe(BASE).to_dict())


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (
            Variant(name="bad", overrides={"model.nothing": 1}),
            "variant 'bad': the base recipe has no field model.nothing",
        ),
        (Variant(name="bad", overrides={"model.attention": "best"}), "variant 'bad': .*attention"),
        (Variant(name="bad", overrides=None, why="no such layer"), "'bad' cannot be trained here: no such layer"),
    ],
)
def test_a_variant_that_does_not_fit_is_named(variant: Variant, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run.resolve(read_recipe(BASE).to_dict(), variant)


@pytest.mark.parametrize(
    ("field", "value"),
    [("benchmark", "tvsum"), ("domain", "dog"), ("binding", "tvsum"), ("binding", "youtube-highlights")],
)
def test_other_benchmarks_are_refused(field: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = read_recipe(BASE)
    data = replace(base.data)
    object.__setattr__(data, field, value)  # the other fields that such a recipe needs do not matter here
    changed = replace(base)
    object.__setattr__(changed, "data", data)
    monkeypatch.setattr(run, "read_recipe", lambda _: changed)
    with pytest.raises(ValueError, match=f"annotations in the QVHighlights form, but .* sets data.{field}={value}"):
        run.plan(ABLATIONS["J"], BASE, "out", [0])


def test_overriding_leaves_the_base_alone() -> None:
    base = read_recipe(BASE).to_dict()
    before = json.dumps(base)
    changed = overridden(base, Variant(name="x", overrides={"model.heads": 2, "window_clips": 9}))
    assert json.dumps(base) == before and changed["model"]["heads"] == 2 and changed["window_clips"] == 9


# inference ---------------------------------------------------------------------------------------------------------


def test_without_variance_over_videos_the_test_is_welchs() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(50, 1, (2, 4))
    first, second = (np.repeat(side[:, None], 10, axis=1) for side in means)  # all queries are equal
    result = difference(first, second)
    welch = stats.ttest_ind(means[0], means[1], equal_var=False)
    assert result.p == pytest.approx(welch.pvalue) and result.df == pytest.approx(welch.df) and result.of == "recipes"
    interval = welch.confidence_interval()
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))


def test_without_variance_between_runs_the_test_is_paired_over_videos() -> None:
    rng = np.random.default_rng(1)
    first_Q, second_Q = rng.normal(50, 5, 30), rng.normal(48, 5, 30)
    result = difference(np.stack([first_Q] * 3), np.stack([second_Q] * 3))
    paired = stats.ttest_rel(first_Q, second_Q)
    assert result.p == pytest.approx(paired.pvalue) and result.df == pytest.approx(29)
    assert result.value == pytest.approx(first_Q.mean() - second_Q.mean())


def test_false_alarms_are_rare_where_a_test_of_two_files_gives_many() -> None:
    rng = np.random.default_rng(2)
    videos, queries, seeds, trials = 30, 5, 3, 300
    groups = [str(v) for v in np.repeat(np.arange(videos), queries)]
    by_recipes = by_weights = 0
    for _ in range(trials):
        video_Q = np.repeat(rng.normal(0, 10, videos), queries)  # the same for both recipes, which are equally good
        noise = rng.normal(0, 8, (2, seeds, videos * queries))
        runs = video_Q + rng.normal(0, 3, (2, seeds, 1)) + noise
        by_recipes += difference(runs[0], runs[1], groups=groups).p < 0.05
        by_weights += difference(runs[0][:1], runs[1][:1], groups=groups).p < 0.05
    assert by_recipes / trials < 0.07
    assert by_weights / trials > 0.3


def test_one_run_tests_only_the_weights_and_missing_values_do_not_count() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(60, 5, (1, 40)), rng.normal(50, 5, (2, 40))
    first[:, :5] = second[:, :5] = np.nan
    result = difference(first, second, groups=[str(i // 2) for i in range(40)])
    assert result.of == "weights" and result.p < 0.01 and math.isnan(result.df)
    assert result.value == pytest.approx(first[:, 5:].mean() - second[:, 5:].mean())
    one_video = difference(first[:, 5:], second[:, 5:], groups=["a"] * 35)
    assert math.isnan(one_video.p) and math.isnan(one_video.low)
    same = difference(second, second)
    assert same.p > 0.99 and same.value == 0
    with pytest.raises(ValueError, match="same queries"):
        difference(first, second[:, 1:])
    with pytest.raises(ValueError, match="same queries"):
        difference(first, np.nan_to_num(second))


# reports -----------------------------------------------------------------------------------------------------------


def made_up(mean: float, seeds: int = 3, *, parameters: int = 2**20) -> list[Scores]:
    """Return runs whose MR mAP is mean - 0.1, mean, mean + 0.1 ...; all other metrics are 10 higher."""
    runs = []
    for seed in range(seeds):
        value = mean + 0.1 * (seed - (seeds - 1) / 2)
        brief = {metric: value + 10 * (metric != "MR-full-mAP") for metric in METRICS.values()}
        spread = np.tile([-0.01, 0.01], 20)  # the same in all runs: pairing removes it
        each = {metric: v / 100 + spread for metric, v in brief.items()}
        videos = [str(i // 4) for i in range(40)]
        runs.append(
            Scores(seed=seed, brief=brief, each=each, videos=videos, parameters=parameters, seconds=60.0 + seed)
        )
    return runs


def test_a_report_has_the_numbers_of_its_runs() -> None:
    runs = {"CLS": made_up(40.0), "Avg. pool": made_up(50.05), "Adapt. pool": made_up(50.0)}
    table = report.report(ABLATIONS["3"], runs)
    rows = {row["variant"]: row for row in table["rows"]}
    ours = rows["CLS"]["ours"]["mAP"]
    assert ours["mean"] == pytest.approx(40.0) and ours["deviation"] == pytest.approx(0.1)
    assert ours["runs"] == pytest.approx([39.9, 40.0, 40.1])
    assert rows["CLS"]["paper"]["mAP"] == 50.53 and rows["CLS"]["seconds"] == 61.0
    tests = {(t["first"], t["metric"]): t for t in table["tests"]}
    assert set(tests) == {(v, m) for v in ("CLS", "Avg. pool") for m in ("mAP", "HD mAP")}
    clear = tests["CLS", "mAP"]
    assert clear["value"] == pytest.approx(-10) and clear["paper"] == -5.07 and not clear["paper_within_spread"]
    assert clear["verdict"] == "supports" and clear["p"] <= clear["p_adjusted"] < 0.05
    near = tests["Avg. pool", "mAP"]
    assert near["verdict"] == "cannot tell" and near["p_adjusted"] > 0.05
    assert (table["queries"], table["videos"]) == (40, 10)
    text = report.as_text(table)
    assert "40.00 ± 0.10" in text and "50.53" in text and "supports" in text and "3 seeds" in text
    assert json.loads(json.dumps(table, allow_nan=False)) == table


@pytest.mark.parametrize(
    ("means", "verdict"),
    [((60.0, 50.0), "contradicts"), ((40.0, 50.0), "supports"), ((50.0, 50.0), "cannot tell")],
)
def test_verdicts(means: tuple[float, float], verdict: str) -> None:
    # The paper: shared is better by 1.5.
    table = report.report(ABLATIONS["J"], {"unshared": made_up(means[0]), "shared": made_up(means[1])})
    assert table["tests"][0]["verdict"] == verdict
    assert table["rows"][1]["paper_parameters"] == 12.43


def test_a_difference_within_the_papers_spread_is_not_contradicted() -> None:
    # MixedInit against Def. CA: the paper's HD mAP is lower by 0.16, less than its own spread.
    runs = {"Def. CA + MixedInit": made_up(60.0), "Def. CA": made_up(50.0)}
    tests = {t["metric"]: t for t in report.report(ABLATIONS["5"], runs)["tests"]}
    assert tests["HD mAP"]["paper"] == -0.16 and tests["HD mAP"]["paper_within_spread"]
    assert tests["HD mAP"]["verdict"] == "differs" and tests["mAP"]["verdict"] == "supports"


def test_one_seed_and_unreadable_rows_get_no_verdict() -> None:
    table = report.report(ABLATIONS["J"], {"unshared": made_up(40.0, 1), "shared": made_up(50.0, 1)})
    assert {t["verdict"] for t in table["tests"]} == {"cannot tell"} and table["tests"][0]["p_adjusted"] < 0.05
    assert table["rows"][0]["ours"]["mAP"]["deviation"] is None
    assert "holds for these weights only" in report.as_text(table)
    losses = report.report(ABLATIONS["E"], {"without L1": made_up(40.0), "all": made_up(50.0)})
    assert {t["verdict"] for t in losses["tests"]} == {"differs"} and {t["paper"] for t in losses["tests"]} == {None}
    assert set(losses["paper_only"]) == {f"row {i}" for i in range(1, 6)}
    assert "row 3" in report.as_text(losses) and "without IoU" in report.as_text(losses)
    levels = report.as_text(report.report(ABLATIONS["K"], {"K=4": made_up(50.0)}))
    assert "K=5: not trained" in levels
    with pytest.raises(ValueError, match="table J: there is no finished run yet"):
        report.report(ABLATIONS["J"], {})
    other_videos = [replace(s, videos=["x"] * 40) for s in made_up(50.0)]
    with pytest.raises(ValueError, match="different queries"):
        report.report(ABLATIONS["J"], {"unshared": made_up(40.0), "shared": other_videos})


def test_a_result_is_small_and_has_the_score_of_each_query(tmp_path: Path) -> None:
    assert set(TESTED) == {
        "MR-full-mAP", "HL-min-VeryGood-mAP", "MR-short-mAP", "MR-middle-mAP", "MR-long-mAP"
    }  # fmt: skip
    rng = np.random.default_rng(0)
    each = {metric: rng.random(813) for metric in (*TESTED, "MR-full-R1@0.5")}
    each["MR-short-mAP"][::3] = np.nan
    names = tuple(f"video{i // 4}" for i in range(813))
    scored = QueryScores(each=each, qids=tuple(range(813)), queries=("a query",) * 813, videos=names)
    finished = run.Run(variants=("x",), recipe=read_recipe(BASE).to_dict(), folder=tmp_path)
    brief = {metric: round(100 * float(np.nanmean(each[metric])), 2) for metric in TESTED}
    result = {"format": run.FORMAT, "brief": brief, "each": run._each(scored), "parameters": 7, "seconds": None}
    path = tmp_path / "result.json"
    path.write_text(run._lines({**result, "recipe": dict(finished.recipe)}))
    assert path.stat().st_size < 60_000
    scores = report.read_scores(finished)
    assert tuple(scores.videos) == names and set(scores.each) == set(TESTED)
    for metric in TESTED:
        np.testing.assert_allclose(scores.each[metric], each[metric], atol=0.51e-5)
    for damage, message in (
        ({**result, "format": "sidelight.ablation-run/1"}, "expected format"),
        ({**result, "each": {}}, "is damaged .*delete"),
        ({**result, "each": {**run._each(scored), "video_of_query": [0]}}, "is damaged .*number of queries"),
        ([], "expected format"),
    ):
        path.write_text(json.dumps(damage))
        with pytest.raises(ValueError, match=message):
            report.read_scores(finished)


def test_table_l_tests_the_lengths_of_moments(tmp_path: Path) -> None:
    runs = {"Stand. CA": made_up(40.0), "Def. CA": made_up(49.0), "RDSA": made_up(50.0)}
    table = report.report(ABLATIONS["L"], runs)
    assert table["columns"] == ["mAP short", "mAP middle", "mAP long", "mAP"]
    assert {t["metric"] for t in table["tests"]} == {"mAP short", "mAP middle", "mAP long"}
    plot = report.plot_report(table, tmp_path / "table.png")
    assert plot.stat().st_size > 1000


def test_runs_that_have_not_begun_are_marked() -> None:
    late = [replace(scores, curve=[(1, 8.0), (2, 21.0), (3, 50.0)]) for scores in made_up(50.0)]
    never = [replace(made_up(10.0)[0], curve=[(1, 8.0), (2, 9.0), (3, 10.0)])]
    table = report.report(ABLATIONS["J"], {"unshared": [*never, *late[1:]], "shared": late})
    rows = {row["variant"]: row for row in table["rows"]}
    assert rows["unshared"]["not_begun"] == [0] and rows["unshared"]["begins_at"] == [None, *[2] * (len(late) - 1)]
    assert rows["shared"]["not_begun"] == [] and rows["shared"]["begins_at"] == [2] * len(late)
    lines = report.as_text(table).splitlines()
    line = next(line for line in lines if line.startswith("unshared"))
    assert line.count("*") == sum(METRICS[c].startswith("MR-") for c in table["columns"])
    assert not any("*" in line for line in lines if line.startswith("shared"))
    assert sum("unshared: 1 of 3 runs (seed 0) end below 20 mAP" in line for line in lines) == 1


# offsets -----------------------------------------------------------------------------------------------------------


def tiny_batch(clips: tuple[int, ...] = (6, 3, 5), padding: int = 0) -> Batch:
    """Return samples of different lengths with one true span each; padded clips hold garbage."""
    size, longest, tokens = len(clips), max(clips) + padding, 4
    video, text = torch.full((3, size, longest, 6), 7.0), torch.zeros(3, size, tokens, 5)
    for b, count in enumerate(clips):
        generator = torch.Generator().manual_seed(b)
        video[:, b, :count] = torch.randn(3, count, 6, generator=generator)
        text[:, b] = torch.randn(3, tokens, 5, generator=generator)
    mask = torch.arange(longest) < torch.tensor(clips).unsqueeze(1)
    return Batch(
        video_KBTD=video,
        video_mask_BT=mask,
        text_KBLD=text,
        text_mask_BL=torch.ones(size, tokens, dtype=torch.bool),
        targets=Targets(
            spans_BG2=torch.tensor([[[0.4, 0.3]], [[0.6, 0.5]], [[0.2, 0.2]]])[:size],
            spans_mask_BG=torch.ones(size, 1, dtype=torch.bool),
            saliency_BT=mask.float(),
            positive_B=torch.zeros(size, dtype=torch.int64),
        ),
    )


def tiny_model(*, shake: float = 0.0, **changes: Any) -> SDST:
    torch.manual_seed(0)
    model = SDST(replace(TINY, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(shake * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("changes", [{}, {"attention": "deformable"}, {"share_levels": False}])
def test_untrained_offsets_have_their_initial_values(changes: dict[str, Any]) -> None:
    model, batch = tiny_model(**changes), tiny_batch()
    predictions, offsets_KBMHP, weights_KBMHP = offsets.record(model, batch)
    start = initial_offsets("directions", 4, 2)
    torch.testing.assert_close(offsets_KBMHP, start.expand(3, 3, 4, 4, 2))
    torch.testing.assert_close(weights_KBMHP, torch.full_like(weights_KBMHP, 0.5))
    # Recording changes nothing, and the model is as before.
    assert torch.equal(predictions.logits_KBM, model(batch).logits_KBM)
    shaken = tiny_model(shake=0.5, **changes)
    assert (offsets.record(shaken, batch)[1] - start).abs().mean() > 0.1


def test_a_summary_of_offsets() -> None:
    start = np.zeros((2, 2), np.float32)
    values = np.array([[[0.0, 2.0], [-3.0, 1.0]]], np.float32)
    weights = np.array([[[0.5, 0.5], [0.25, 0.75]]], np.float32)
    result = offsets.summary(values, weights, start)
    assert result["moved"] == pytest.approx(1.5) and result["outside"] == pytest.approx(0.5)
    assert result["weighted_moved"] == pytest.approx(0.5) and result["weighted_outside"] == 0
    assert [head["mean"] for head in result["heads"]] == pytest.approx([1.0, 0.0])
    empty = offsets.summary(values[:0], weights[:0], start)
    assert empty["moved"] is None and empty["quantiles"] is None and empty["moment_queries"] == 0


class OneBatch:
    """The part of a dataset that offsets read."""

    def __len__(self) -> int:
        return 3

    def timeline(self, index: int) -> Any:
        return type("Timeline", (), {"num_clips": (6, 3, 5)[index]})

    def batch(self, indices: list[int]) -> Batch:
        return tiny_batch()


def test_offsets_are_reported_over_seeds(tmp_path: Path) -> None:
    measured = {
        name: [
            offsets.measure(tiny_model(shake=shake, attention=kind), OneBatch(), SDSTLossConfig())  # type: ignore[arg-type]
            for shake in (0.0, 0.4)
        ]
        for name, kind in (("Def. CA", "deformable"), ("RDSA", "rdsa"))
    }
    first = measured["RDSA"][0]
    assert [first[s][0]["moment_queries"] for s in offsets.SELECTIONS] == [12, 3, 3]
    assert len(first["all"]) == 3 and first["all"][0]["moved"] == 0 and first["all"][0]["outside"] == 0
    table = offsets.report(measured)
    moved = table["rows"]["RDSA"]["matched"][2]["moved"]
    values = [measures["matched"][2]["moved"] for measures in measured["RDSA"]]
    assert moved["mean"] == pytest.approx(np.mean(values)) and moved["deviation"] == pytest.approx(
        np.std(values, ddof=1)
    )
    assert "matched" in offsets.as_text(table)
    assert json.loads(json.dumps(table, allow_nan=False))["rows"].keys() == {"Def. CA", "RDSA"}
    assert offsets.plot_report(table, tmp_path / "offsets.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="this model has none"):
        offsets.record(tiny_model(attention="standard"), tiny_batch())


# options of the model that only ablations need ---------------------------------------------------------------------


def test_every_level_can_be_the_last_layer() -> None:
    model, batch = tiny_model(shake=0.2, level_source="last"), tiny_batch()
    plain = tiny_model(shake=0.2)
    repeated = replace(
        batch, video_KBTD=batch.video_KBTD[-1:].repeat(3, 1, 1, 1), text_KBLD=batch.text_KBLD[-1:].repeat(3, 1, 1, 1)
    )
    assert torch.equal(model(batch).logits_KBM, plain(repeated).logits_KBM)
    assert not torch.allclose(model(batch).logits_KBM, plain(batch).logits_KBM)
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_query_selection_does_not_change_the_other_initial_weights() -> None:
    learned, mixed = tiny_model(), tiny_model(query_init="mixed")
    assert not any(name.startswith("selection") for name in learned.state_dict())
    for name, value in learned.state_dict().items():
        assert torch.equal(value, mixed.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["mixed", "pure"])
def test_queries_start_at_the_best_clips(kind: str) -> None:
    model, batch = tiny_model(shake=0.3, attention="deformable", query_init=kind), tiny_batch()
    predictions = model(batch)
    assert predictions.logits_KBM.shape == (4, 3, 4) and predictions.video_KBTF.shape[0] == 3
    selection = model.selection
    assert selection is not None
    recorded: list[tuple[Tensor, ...]] = []
    handle = selection.register_forward_hook(lambda _module, inputs, outputs: recorded.append((*inputs[:3], *outputs)))
    model(batch)
    handle.remove()
    memory, references, moments, logits, spans, content = recorded[0]
    scores_BT = selection.class_head(selection.norm(selection.map(memory))).squeeze(-1)
    for b, count in enumerate((6, 3, 5)):
        kept = min(count, 4)
        torch.testing.assert_close(logits[b, :kept], scores_BT[b, :count].sort(descending=True).values[:kept])
        # In a video with fewer clips than moment queries, the remaining moment queries start as learned.
        torch.testing.assert_close(spans[b, kept:], references[b, kept:])
        torch.testing.assert_close(content[b, kept:], moments[b, kept:])
    padded = model(tiny_batch(padding=2))
    torch.testing.assert_close(padded.logits_KBM, predictions.logits_KBM, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded.spans_KBM2, predictions.spans_KBM2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mixed", "pure"])
def test_the_selection_learns_from_its_own_losses(kind: str) -> None:
    model, batch = tiny_model(shake=0.2, attention="deformable", query_init=kind), tiny_batch((6, 5, 5))
    sdst_losses(model(batch), batch, SDSTLossConfig())["total"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(
        g is not None and g.isfinite().all() and g.abs().max() > 0 for n, g in gradients.items() if "selection" in n
    )
    first = model.moments_MF.grad
    assert (first is not None and bool(first.any())) == (kind == "mixed")


def test_a_weight_of_zero_switches_a_loss_off() -> None:
    batch = tiny_batch()
    names = ("l1", "iou", "actionness", "alignment_batch", "alignment_levels")
    for name in names:
        model = tiny_model(shake=0.2)
        weights: dict[str, Any] = {f"weight_{name}": 0.0}
        config = SDSTLossConfig(**weights)
        losses = sdst_losses(model(batch), batch, config)
        rest = sum(getattr(config, f"weight_{n}") * v for n, v in losses.items() if n not in ("total", name))
        torch.testing.assert_close(losses["total"], torch.as_tensor(rest))
        losses["total"].backward()
        head = [p.grad for p in model.actionness_head.parameters()]
        assert all(g is None or not g.any() for g in head) == (name == "actionness")


# complete tables ---------------------------------------------------------------------------------------------------

TOY = """
model: {video_dim: 128, text_dim: 128, hidden: 16, heads: 2, moment_queries: 4, roi_bins: 2}
data:
  train: WORLD/annotations.jsonl
  val: WORLD/annotations.jsonl
  train_videos: WORLD/videos
  val_videos: WORLD/videos
train: {epochs: 1, batch_size: 8, lr: 1.0e-3, warmup_steps: 2, accelerator: cpu, threads: 1}
"""


@pytest.fixture
def toy(tiny_world: Path, tmp_path: Path) -> Path:
    """Write a recipe that trains in a second."""
    path = tmp_path / "toy.yaml"
    path.write_text(TOY.replace("WORLD", str(tiny_world)))
    return path


@pytest.mark.slow
def test_a_table_is_trained_once_and_made_again(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["j", "--recipe", str(toy), "--out", str(out), "--seeds", "2"]
    assert main([*arguments, "--dry-run"]) == 0
    assert "4 runs, 4 to train" in capsys.readouterr().out and not out.exists()
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "4/4 " in printed and "Table J, App. I" in printed and "12.43" in printed and "±" in printed
    table = json.loads((out / "tables" / "table-J.json").read_text())
    assert [row["seeds"] for row in table["rows"]] == [[0, 1], [0, 1]]
    assert (out / "tables" / "table-J.png").stat().st_size > 1000
    folders = sorted(p for p in out.iterdir() if p.name not in ("features", "tables"))
    kept = [{path.name for path in folder.iterdir()} for folder in folders]
    assert sorted(kept, key=len) == [{"result.json", "recipe.yaml"}] * 2 + [{"result.json", "recipe.yaml", "last"}] * 2
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    assert len(results) == 4 and all(r["seconds"] > 0 and "MR-short-mAP" in r["brief"] for r in results)
    assert all(list(r["each"]["shares"]) and len(r["each"]["videos"]) == 3 for r in results)
    # On a machine with results but without data: the same table, and nothing is trained.
    carried = tmp_path / "carried"
    for folder in folders:
        (carried / folder.name).mkdir(parents=True)
        shutil.copy(folder / "result.json", carried / folder.name)
    nowhere = tmp_path / "nowhere.yaml"
    nowhere.write_text(TOY.replace("WORLD", "no/such/folder"))
    assert main(["J", "--recipe", str(nowhere), "--out", str(carried), "--seeds", "2"]) == 0
    assert capsys.readouterr().out.replace(str(carried), str(out)) == printed[printed.index("Table J") :]
    assert (carried / "tables" / "table-J.json").read_text() == (out / "tables" / "table-J.json").read_text()
    assert {p.name for p in carried.iterdir()} == {"tables", *(folder.name for folder in folders)}
    # Once more: only a lost run is trained again, with the same result.
    before = {folder: (folder / "result.json").stat().st_mtime_ns for folder in folders}
    shutil.rmtree(folders[0])
    assert main([*arguments, "--dry-run"]) == 0
    assert "4 runs, 1 to train" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "1 of 4 runs to train" in capsys.readouterr().out
    after = {folder: (folder / "result.json").stat().st_mtime_ns for folder in folders}
    assert [f for f in folders if before[f] != after[f]] == folders[:1]
    assert json.loads((folders[0] / "result.json").read_text())["brief"] == results[0]["brief"]
    # Another table reuses a shared run; new runs on other data are refused.
    assert main(["3", "--recipe", str(toy), "--out", str(out), "--seeds", "1", "--dry-run"]) == 0
    assert "3 runs, 2 to train" in capsys.readouterr().out
    other_data = tmp_path / "other.jsonl"
    other_data.write_text("".join(_first_rows(toy, 4)))
    toy.write_text(toy.read_text().replace(_annotations(toy), str(other_data)))
    assert main(arguments) == 0  # nothing is to be trained: the table needs no data
    shutil.rmtree(folders[0])
    assert main(arguments) == 2
    assert "was trained on other data (train, val differ)" in capsys.readouterr().err


def _annotations(recipe: Path) -> str:
    return str(read_recipe(recipe).data.train)


def _first_rows(recipe: Path, count: int) -> list[str]:
    return Path(_annotations(recipe)).read_text().splitlines(keepends=True)[:count]


@pytest.mark.slow
def test_an_interrupted_run_is_resumed(toy: Path, tmp_path: Path) -> None:
    from lightning_fabric import Fabric

    from sidelight.training.data import open_data
    from sidelight.training.loop import Trainer

    runs = run.plan(ABLATIONS["J"], toy, tmp_path / "out", [0])
    run.prepare(runs, tmp_path / "out", say=lambda _: None)
    uninterrupted = run.train_run(runs[0], keep=True, quiet=True)
    kept = {path.name for path in runs[0].folder.iterdir()}
    assert kept >= {"result.json", "recipe.yaml", "last", "best", "predictions.jsonl"} and "state.pt" not in kept
    moved = replace(runs[0], folder=tmp_path / "out" / "again-0")
    recipe, fabric = run.checked(run.located(moved)), Fabric(accelerator="cpu", devices=1)
    trainer = Trainer(recipe, fabric, open_data(recipe, fabric, quiet=True), quiet=True)
    trainer.run(stop_after=1)
    assert (moved.folder / "state.pt").exists() and not moved.finished
    resumed = run.train_run(moved, quiet=True)
    assert resumed["brief"] == uninterrupted["brief"] and resumed["seconds"] is None


@pytest.mark.slow
def test_offsets_of_trained_runs_and_levels_of_one_store(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    common = ["--recipe", str(toy), "--out", str(out), "--seeds", "1"]
    assert main(["figA", *common]) == 0
    assert "Fig. 4" in capsys.readouterr().out
    table = json.loads((out / "tables" / "offsets.json").read_text())
    assert len(table["runs"]["RDSA"][0]["top"]) == 4
    for weights in out.glob("*/last"):
        shutil.rmtree(weights)
    assert main(["offsets", *common]) == 2
    assert "has no weights (last/), which offsets are measured with" in capsys.readouterr().err
    strided = [r for r in run.plan(ABLATIONS["4"], toy, out, [0]) if r.variants == ("-3, -1",)]
    run.prepare(strided, out, say=lambda line: pytest.fail(f"must extract nothing: {line}"))
    assert not run.execute(strided, say=lambda _: None)
    assert run.read_result(strided[0])["recipe"]["model"]["levels"] == 2


@pytest.mark.slow
def test_one_of_two_parallel_runs_fails(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs = run.plan(ABLATIONS["J"], toy, out, [0])
    run.prepare(runs, out, say=lambda _: None)
    broken = replace(runs[1], recipe={**runs[1].recipe, "model": {**runs[1].recipe["model"], "video_dim": 64}})
    lines: list[str] = []
    failures = run.execute([runs[0], broken], jobs=2, say=lines.append)
    assert runs[0].finished and not broken.finished
    assert [f.run for f in failures] == [broken] and "model.video_dim is 64" in failures[0].reason
    assert len(lines) == 3 and any("failed" in line for line in lines)


class Deadly:
    """An object that ends the process which reads it from a pickle."""

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        return os._exit, (1,)


@pytest.mark.slow
def test_a_process_that_dies_ends_only_its_own_run(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs = run.plan(ABLATIONS["J"], toy, out, [0])
    run.prepare(runs, out, say=lambda _: None)
    deadly = [replace(r, folder=out / f"dies-{i}", recipe={**r.recipe, "x": Deadly()}) for i, r in enumerate(runs)]
    failures = run.execute([deadly[0], runs[0], deadly[1], runs[1]], jobs=2, say=lambda _: None)
    assert {f.run.folder for f in failures} == {r.folder for r in deadly} and all(r.finished for r in runs)
    assert all("the process that trained it died" in f.reason for f in failures)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("two\nlines"), "two lines"),
        (RuntimeError("it broke\nand a trace"), "RuntimeError: it broke"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "out of memory; run fewer at once"),
        (MemoryError(), "out of memory; run fewer at once"),
        (OSError(28, "No space left on device"), "OSError: .* No space left"),
    ],
)
def test_a_failed_run_stops_no_other_run(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_run(started: run.Run, **_: Any) -> dict[str, Any]:
        if started.seed == 0:
            raise error
        # As on annotations with highlights and no moments.
        return {"brief": {"HL-min-VeryGood-mAP": 12.3}, "seconds": None}

    monkeypatch.setattr(run, "train_run", train_run)
    recipe = read_recipe(BASE).to_dict()
    runs = [
        run.Run(variants=("x",), recipe={**recipe, "train": {"seed": seed}}, folder=tmp_path / str(seed))
        for seed in (0, 1)
    ]
    lines: list[str] = []
    (failure,) = run.execute(runs, say=lines.append)
    assert failure.run is runs[0] and re.match(message, failure.reason) and "\n" not in failure.reason
    assert "HL mAP 12.30, resumed" in lines[-1]


def test_an_interruption_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_run(started: run.Run, **_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train_run", train_run)
    with pytest.raises(KeyboardInterrupt):
        run.execute([run.Run(variants=("x",), recipe=read_recipe(BASE).to_dict(), folder=tmp_path)], say=lambda _: None)


def test_runs_work_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with run._locked(tmp_path):
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["2"], "there is no table '2'; known are 3, 4"),
        (["5", "--seeds", "0"], "--seeds must be 1 or more"),
        (["5", "--jobs", "0"], "--jobs must be 1 or more"),
        (["5", "--first-seed", "-1"], "--first-seed must be 0 or more"),
        (["5", "--recipe", "nowhere.yaml"], "there is no recipe nowhere.yaml"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_claim_without_a_number_is_supported_or_contradicted() -> None:
    videos = [f"v{i // 4}" for i in range(40)]
    rng = np.random.default_rng(0)

    def runs(level: float) -> list[Scores]:
        return [
            Scores(
                seed=seed,
                brief={"MR-full-mAP": 100 * level},
                each={"MR-full-mAP": np.clip(level + 0.02 * rng.standard_normal(40), 0, 1)},
                videos=videos,
                parameters=1,
                seconds=1.0,
            )
            for seed in range(3)
        ]

    table = report.report(ABLATIONS["scada"], {"both": runs(0.5), "frozen": runs(0.3), "full": runs(0.7)})
    verdicts = {(t["first"], t["second"]): t["verdict"] for t in table["tests"]}
    assert verdicts == {("both", "frozen"): "supports", ("both", "full"): "contradicts"}
    lines = [line.split() for line in report.as_text(table).splitlines()]
    assert [line[-2:] for line in lines if line[:2] == ["both", "frozen"]] == [["better", "supports"]]


def test_names_of_tables() -> None:
    assert find_ablation("e").name == "E" and find_ablation("Fig4").name == find_ablation("figA").name == "offsets"
