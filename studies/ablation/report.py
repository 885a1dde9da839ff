"""Our results of a table beside the paper's: means and deviations over seeds, tests, JSON, a plot.

Do not compare our numbers with the paper's: the videos and the backbone are different, the model is smaller, and the
training is shorter. Only the sign of a difference within a table can be compared. The verdict of each tested pair is

    supports       our runs differ (adjusted p below 0.05) in the direction of the paper's numbers
    contradicts    our runs differ in the other direction
    differs        our runs differ, and the paper claims nothing: it has no such row, or its numbers differ by no more
                   than its own spread; a claim without numbers counts as a claim
    cannot tell    anything else, and always if a recipe has fewer than two runs

p-values are adjusted over all tests of one table (Holm). The paper's differences are of single runs. A difference no
larger than the spread of Table F is marked with ~; it is not a claim that our runs could support or contradict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sidelight.export.charts import FIRST, INK, NEITHER, SECOND, new_figure, save_figure
from sidelight.metrics.statistics import holm
from studies.ablation.inference import difference, mean_and_deviation
from studies.ablation.paper import METRICS, SPREAD
from studies.ablation.run import Run, read_result
from studies.ablation.variants import TESTED, Ablation, Variant

Floats = npt.NDArray[np.float64]

SIGNIFICANT = 0.05
BEGUN = 20.0
"""The mAP above which a run has begun to find moments. Moment queries that never read the video reach about 10. The
mean of runs of which some have not begun shows when learning begins, not how good a variant is.
"""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one finished run that a report needs."""

    seed: int
    brief: Mapping[str, float]
    """Metric -> percent."""
    each: Mapping[str, Floats]
    """Tested metric -> (Q,) score of each query, between 0 and 1; nan where a query does not count."""
    videos: Sequence[str]
    """The video of each query."""
    parameters: int
    seconds: float | None
    """Duration of the training; None if it was interrupted."""
    folder: str = ""
    curve: Sequence[tuple[int, float]] = ()
    """(epoch, mAP) of each validation during training; empty in older results."""

    @property
    def begun(self) -> bool | None:
        """Check whether the run finds moments at its end; None if it is not scored by them."""
        score = self.brief.get(METRICS["mAP"])
        return None if score is None else score > BEGUN

    @property
    def begins_at(self) -> int | None:
        """Return the first validated epoch that finds moments."""
        return next((epoch for epoch, score in self.curve if score > BEGUN), None)


def read_scores(run: Run) -> Scores:
    """Read the scores of a finished run from its result.json.

    Raises:
        ValueError: if the file is damaged.
    """
    result = read_result(run)
    try:
        each = result["each"]
        videos = [each["videos"][index] for index in each["video_of_query"]]
        shares = {
            metric: np.array([np.nan if value is None else value for value in each["shares"][metric]], dtype=np.float64)
            for metric in TESTED
            if metric in result["brief"]
        }
        if any(len(values) != len(videos) for values in shares.values()):
            raise ValueError("a number of queries for each metric")
        return Scores(
            seed=run.seed,
            brief=result["brief"],
            each=shares,
            videos=videos,
            parameters=result["parameters"],
            seconds=result["seconds"],
            folder=run.folder.name,
            curve=[(int(epoch), float(score)) for epoch, score in result.get("curve", ())],
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{run.folder / 'result.json'} is damaged ({reason}); delete {run.folder} to train it again"
        ) from None


def from_runs(ablation: Ablation, runs: Sequence[Run]) -> dict[str, Any]:
    """Return the report of those runs of a table that are finished; raise errors as :func:`report`."""
    scores_of: dict[str, list[Scores]] = {}
    for run in runs:
        if run.finished:
            scores = read_scores(run)
            for name in run.variants:
                scores_of.setdefault(name, []).append(scores)
    return report(ablation, scores_of)


def report(ablation: Ablation, scores: Mapping[str, Sequence[Scores]]) -> dict[str, Any]:
    """Return a table as plain values for JSON: rows (ours and the paper's), tests with verdicts, notes.

    Args:
        ablation: the table.
        scores: variant -> scores of its finished runs.

    Raises:
        ValueError: if no variant has a finished run, or runs were scored on different queries.
    """
    if not any(scores.values()):
        raise ValueError(f"table {ablation.name}: there is no finished run yet")
    first_run = next(runs[0] for runs in scores.values() if runs)
    columns = [c for c in ablation.paper.columns if METRICS[c] in first_run.brief]
    tests = [
        _test(ablation, pair, column, scores)
        for pair in ablation.compared()
        for column in ablation.tested
        if column in columns and all(scores.get(name) for name in pair)
    ]
    known = [t for t in tests if t["p"] is not None]
    for test, adjusted in zip(known, holm([t["p"] for t in known]) if known else (), strict=True):
        test["p_adjusted"] = float(adjusted)
        test["verdict"] = _verdict(test)
    return {
        "table": ablation.name,
        "place": ablation.paper.place,
        "title": ablation.paper.title,
        "notes": [note for note in (ablation.paper.note, ablation.note) if note],
        "columns": columns,
        "reference": ablation.reference,
        "queries": len(first_run.videos),
        "videos": len(set(first_run.videos)),
        "rows": [_row(ablation, variant, scores.get(variant.name, ()), columns) for variant in ablation.variants],
        "paper_only": {
            row: dict(zip(ablation.paper.columns, values, strict=True))
            for row, values in ablation.paper.rows.items()
            if row not in {v.row for v in ablation.variants}
        },
        "tests": tests,
    }


def _row(ablation: Ablation, variant: Variant, runs: Sequence[Scores], columns: Sequence[str]) -> dict[str, Any]:
    ours: dict[str, Any] = {}
    for column in columns:
        values = [run.brief[METRICS[column]] for run in runs]
        mean, deviation = mean_and_deviation(values)
        ours[column] = {"mean": mean, "deviation": deviation, "runs": values}
    seconds = [run.seconds for run in runs if run.seconds is not None]
    return {
        "variant": variant.name,
        "why": variant.why or None,
        "seeds": [run.seed for run in runs],
        "folders": [run.folder for run in runs],
        "ours": ours,
        "paper": {column: ablation.paper.value(variant.row, column) for column in columns},
        "parameters": runs[0].parameters if runs else None,
        "paper_parameters": ablation.paper.parameters.get(variant.row),
        "seconds": float(np.mean(seconds)) if seconds else None,
        "not_begun": [run.seed for run in runs if run.begun is False],
        "begins_at": [run.begins_at for run in runs],
    }


def _test(
    ablation: Ablation, pair: tuple[str, str], column: str, scores: Mapping[str, Sequence[Scores]]
) -> dict[str, Any]:
    metric = METRICS[column]
    first_SQ, second_SQ = (np.stack([100 * run.each[metric] for run in scores[name]]) for name in pair)
    if len({tuple(run.videos) for name in pair for run in scores[name]}) > 1:
        raise ValueError(f"table {ablation.name}: the runs of {' and '.join(pair)} were scored on different queries")
    result = difference(first_SQ, second_SQ, groups=scores[pair[0]][0].videos)
    rows = {variant.name: variant.row for variant in ablation.variants}
    printed = [ablation.paper.value(rows[name], column) for name in pair]
    paper = None if printed[0] is None or printed[1] is None else round(printed[0] - printed[1], 2)
    return {
        "first": pair[0],
        "second": pair[1],
        "metric": column,
        "runs": [len(first_SQ), len(second_SQ)],
        **{name: None if value != value else value for name, value in asdict(result).items()},
        "p_adjusted": None,
        "paper": paper,
        "claim": ablation.claims.get(pair) or (int(np.sign(paper)) if paper else None),
        "paper_within_spread": None if paper is None or column not in SPREAD else abs(paper) <= SPREAD[column],
        "verdict": "cannot tell",
    }


def _verdict(test: Mapping[str, Any]) -> str:
    # A test of these weights is not about their recipes.
    if test["of"] == "weights" or test["p_adjusted"] >= SIGNIFICANT:
        return "cannot tell"
    if not test["claim"] or test["paper_within_spread"]:
        return "differs"
    return "supports" if (test["value"] > 0) == (test["claim"] > 0) else "contradicts"


# text --------------------------------------------------------------------------------------------------------------


def as_text(table: Mapping[str, Any]) -> str:
    """Return a table as plain text, which a narrow terminal or a log does not cut off."""
    seeds = max((len(row["seeds"]) for row in table["rows"]), default=0)
    data = f"{seeds} {'seed' if seeds == 1 else 'seeds'}, {table['queries']} queries of {table['videos']} videos"
    lines = [f"{table['place']}: {table['title']} ({data})", ""]
    rows = [["", "", *table["columns"], "M params", "begins", "seconds"]]
    for row in table["rows"]:
        rows.append([row["variant"], "ours", *_ours(row, table["columns"])])
        paper = [_number(row["paper"][column], "-") for column in table["columns"]]
        if row["paper_parameters"] or any(value != "-" for value in paper):
            rows.append(["", "paper", *paper, _number(row["paper_parameters"], ""), "", ""])
    for name, values in table["paper_only"].items():
        rows.append([name, "paper", *(_number(values.get(column), "-") for column in table["columns"]), "", "", ""])
    lines += _aligned(rows, left=2)
    lines += [
        "",
        f"ours: mean ± deviation over seeds, percent; {table['reference']} is the reference",
        f"begins: first epoch of each run after which mAP exceeds {BEGUN:g}",
    ]
    lines += [f"{row['variant']}: not trained, {row['why']}" for row in table["rows"] if row["why"]]
    for row in table["rows"]:
        if row["not_begun"]:
            late, count = ", ".join(map(str, row["not_begun"])), len(row["seeds"])
            lines += [
                f"* {row['variant']}: {len(row['not_begun'])} of {count} runs (seed {late}) end below {BEGUN:g} mAP: "
                "they have not begun to find moments, so the mean shows how late learning begins"
            ]
    lines += [f"note: {note}" for note in table["notes"]]
    if table["tests"]:
        lines += ["", *_tests_text(table["tests"])]
    return "\n".join(lines)


def _ours(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    cells = []
    for column in columns:
        ours = row["ours"][column]
        spread = "" if ours["deviation"] is None else f" ± {ours['deviation']:.2f}"
        mark = "*" if row["not_begun"] and METRICS[column].startswith("MR-") else ""
        cells.append("-" if ours["mean"] is None else f"{ours['mean']:.2f}{spread}{mark}")
    parameters = None if row["parameters"] is None else row["parameters"] / 2**20
    begins = [str(epoch) for epoch in row["begins_at"] if epoch is not None]
    return [
        *cells,
        _number(parameters, ""),
        " ".join(begins),
        "" if row["seconds"] is None else f"{row['seconds']:.0f}",
    ]


def _tests_text(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [["first", "against", "metric", "difference", "95 % interval", "p", "adjusted", "paper", "verdict"]]
    for t in tests:
        interval = "-" if t["low"] is None else f"[{t['low']:+.2f}, {t['high']:+.2f}]"
        paper = {1: "better", -1: "worse", None: "-"}[t["claim"]]
        if t["paper"] is not None:
            paper = f"{t['paper']:+.2f}{' ~' if t['paper_within_spread'] else ''}"
        p_values = ["-" if t[n] is None else "<0.0001" if t[n] < 5e-5 else f"{t[n]:.4f}" for n in ("p", "p_adjusted")]
        value = f"{t['value']:+.2f}"
        rows.append([t["first"], t["second"], t["metric"], value, interval, *p_values, paper, t["verdict"]])
    lines = _aligned(rows, left=3, last_left=True)
    if any(t["of"] == "weights" for t in tests):
        lines += [
            "",
            "one run of a recipe: p is a paired permutation test over videos and holds for these weights only; two "
            "runs of one recipe differ too, so it says nothing of the recipes: train more seeds",
        ]
    if any(t["of"] == "recipes" for t in tests):
        lines += [
            "",
            "p: t-test with the variance between runs (Welch) and over videos (paired by query); adjusted: Holm, over "
            "this table",
        ]
    if any(t["paper_within_spread"] for t in tests):
        lines += ["~ no larger than the paper's own deviation over loss weights (Table F)"]
    return lines


def _number(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:.2f}"


def _aligned(rows: Sequence[Sequence[str]], *, left: int, last_left: bool = False) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            f"{cell:<{width}}" if i < left or (last_left and i == len(row) - 1) else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _against(tests: Sequence[Mapping[str, Any]], reference: str) -> list[dict[str, Any]]:
    """Return the tests with an interval against the reference, turned round where the reference is the first."""
    known = [dict(t) for t in tests if t["low"] is not None]
    turned = [
        {**t, "first": t["second"], "low": -t["high"], "high": -t["low"]} for t in known if t["first"] == reference
    ]
    return [t for t in known if t["second"] == reference] + turned


def plot_report(table: Mapping[str, Any], path: str | Path) -> Path:
    """Draw how much variants and single runs differ from the reference, for each tested column; return the path.

    The plot shows differences, because only these can be compared with the paper's, which it shows too. Whiskers are
    the 95 % intervals of the tests; a variant that is not tested against the reference has none.

    Raises:
        ValueError: if Matplotlib is missing.
    """
    rows = [row for row in table["rows"] if row["seeds"]]
    columns = list(dict.fromkeys(test["metric"] for test in table["tests"])) or table["columns"][:1]
    reference = next((row for row in rows if row["variant"] == table["reference"]), rows[0])
    intervals = {
        (t["first"], t["metric"]): (t["low"], t["high"]) for t in _against(table["tests"], reference["variant"])
    }
    figure = new_figure(2.2 + 3.4 * len(columns), 1.6 + 0.36 * len(rows))
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        zero, printed = reference["ours"][column]["mean"], reference["paper"][column]
        for y, row in enumerate(rows):
            ours = row["ours"][column]
            count = len(ours["runs"])
            axes.plot([v - zero for v in ours["runs"]], [y + 0.25] * count, "o", color=NEITHER, ms=3, alpha=0.8)
            interval = intervals.get((row["variant"], column))
            if interval is not None:
                axes.plot(interval, [y, y], color=FIRST, lw=1.8, solid_capstyle="round")
            axes.plot(ours["mean"] - zero, y, "o", color=FIRST, ms=6)
            if row["paper"][column] is not None and printed is not None:
                axes.plot(row["paper"][column] - printed, y, "D", mfc="none", mec=SECOND, ms=7)
        axes.axvline(0, color=INK, lw=0.8)
        axes.set_title(f"{column}: {reference['variant']} {zero:.2f}", fontsize=9, loc="left")
        axes.set_xlabel("difference in points", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [row["variant"] for row in rows], fontsize=8)
    panels[0].invert_yaxis()
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=FIRST, marker="o", lw=1.8, label="ours, 95 % interval"),
        Line2D([], [], color=NEITHER, marker="o", lw=0, ms=3, label="single runs"),
        Line2D([], [], mec=SECOND, mfc="none", marker="D", lw=0, label="paper"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(f"{table['place']}: {table['title']}", fontsize=10, wrap=True)
    return save_figure(figure, path)
