"""`sidelight evaluate`, `compare` and `calibrate`: score predictions against annotations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sidelight.cli.shared import (
    Count,
    File,
    JsonFile,
    Name,
    PlotFile,
    Score,
    report_to,
    require_plot,
    require_range,
    write_json,
)
from sidelight.core.messages import count_of

if TYPE_CHECKING:
    from sidelight.metrics.calibration import Reliability
    from sidelight.metrics.compare import Comparison


Convention = Literal["sidelight", "r2-tuning", "moment-detr"]
FEW_UNITS = 20
"""A percentile bootstrap over fewer videos (or queries) gives intervals that are too narrow, so we warn."""


def evaluate(
    predictions: list[File],
    annotations: File,
    *,
    benchmark: Name | None = None,
    convention: Convention = "sidelight",
    intervals: bool = False,
    by: Literal["video", "query"] = "video",
    json: JsonFile | None = None,
) -> None:
    """Score predictions against annotations by the benchmark's published metrics.

    Summaries (the JSON of `sidelight summarize`, a file or a folder with a file per video) are scored against summaries
    by people, with --benchmark summe (the best person counts) or tvsum (the mean over persons).

    Args:
        predictions: JSONL in the QVHighlights submission form, or summaries; several are runs of several seeds.
        annotations: the ground truth, JSONL; for summaries also HDF5.
        benchmark: whose metrics to use; recognised from the annotations unless given, and needed for summaries.
        convention: which published script to match.
        intervals: print 95 % bootstrap intervals beside the numbers.
        by: what the bootstrap draws as one unit.
        json: write all metrics as JSON; - for standard output.
    """
    from sidelight.metrics.statistics import over_seeds

    if intervals and len(predictions) > 1:
        raise ValueError("--intervals is for one predictions file; several are reported with mean and deviation")
    if by == "query" and not intervals:
        raise ValueError("--by says what --intervals draws; give --intervals too")
    results = [_evaluated(file, annotations, benchmark, convention) for file in predictions]
    brief = results[0]["brief"]
    values: dict[str, Any] = results[0]
    # The published scripts print two decimals, and three for TVSum and YouTube Highlights.
    decimals = 3 if any(round(v, 2) != v for v in brief.values()) else 2
    with report_to(json):
        if len(results) > 1:
            for file, result in zip(predictions, results, strict=True):
                if differing := sorted(set(brief) ^ set(result["brief"])):
                    raise ValueError(
                        f"{file} and {predictions[0]} can be scored by different metrics ({differing[0]}, ...): only "
                        "one of them has saliency; runs of several seeds need the same fields"
                    )
            seeds = {name: over_seeds([r["brief"][name] for r in results]) for name in brief}
            print(f"{'':<28}   mean  deviation over {count_of(len(results), 'run')}")
            for name, (mean, deviation) in seeds.items():
                print(f"{name:<28}{mean:>7.{decimals}f}  {deviation:.2f}")
            runs = [{"predictions": f, **r} for f, r in zip(predictions, results, strict=True)]
            values = {"runs": runs, "seeds": {k: {"mean": m, "deviation": d} for k, (m, d) in seeds.items()}}
        elif intervals:
            bounds, units = _intervals(predictions[0], annotations, benchmark, convention, by)
            for name, value in brief.items():
                low_high = bounds.get(name)
                interval = f"[{low_high[0]:6.2f}, {low_high[1]:6.2f}]" if low_high else "[    -,     -]"
                print(f"{name:<28}{value:>7.{decimals}f}  {interval}")
            print(f"95 % intervals over {count_of(units, by)}; - where too few of them count")
            if units < FEW_UNITS:
                print(f"note: a bootstrap over fewer than {FEW_UNITS} gives intervals that are too narrow; take more")
            values = {**results[0], "intervals": bounds}
        else:
            for name, value in brief.items():
                print(f"{name:<28}{value:>7.{decimals}f}")
    write_json(json, values)


def _summary_benchmark(
    predictions: str, annotations: str, benchmark: str | None, convention: Convention
) -> Literal["summe", "tvsum"] | None:
    """Return the benchmark by which summaries are scored; None for predictions of queries.

    Raises:
        ValueError: if predictions, annotations and benchmark do not fit.
    """
    from sidelight.data.user_summaries import holds_user_summaries
    from sidelight.metrics.summary_scores import holds_summaries

    is_summary = Path(predictions).exists() and holds_summaries(predictions)
    is_by_people = Path(annotations).is_file() and holds_user_summaries(annotations)
    if not is_summary and not is_by_people and benchmark != "summe":
        return None
    if Path(predictions).exists() and not is_summary:
        raise ValueError(f"{predictions} holds no summaries; expected what `sidelight summarize --json` writes")
    if Path(annotations).is_file() and not is_by_people:
        raise ValueError(
            f"{annotations} holds no summaries by people, with which summaries are compared; give HDF5 or JSON lines "
            "with user_summary (docs/summarization.md)"
        )
    if convention != "sidelight":
        raise ValueError(f"summaries have one convention only; leave out {convention!r}")
    if benchmark == "summe":
        return "summe"
    if benchmark == "tvsum":
        return "tvsum"
    raise ValueError(
        "say how the persons count: --benchmark summe for the best one, or --benchmark tvsum for their mean"
    )


def _evaluated(predictions: str, annotations: str, benchmark: str | None, convention: Convention) -> dict[str, Any]:
    """Return the metrics of one run."""
    if (of_summaries := _summary_benchmark(predictions, annotations, benchmark, convention)) is not None:
        from sidelight.metrics.summary_scores import evaluate_summaries

        return evaluate_summaries(predictions, annotations, benchmark=of_summaries)
    from sidelight.metrics.evaluate import evaluate_files

    return evaluate_files(predictions, annotations, benchmark=benchmark, convention=convention)


def _intervals(
    predictions: str, annotations: str, benchmark: str | None, convention: Convention, by: str
) -> tuple[dict[str, list[float] | None], int]:
    """Return the 95 % interval of each metric (None where too few queries count), and the number of units drawn."""
    import numpy as np

    from sidelight.metrics.evaluate import query_scores
    from sidelight.metrics.statistics import intervals
    from sidelight.metrics.summary_scores import summary_scores

    if (of_summaries := _summary_benchmark(predictions, annotations, benchmark, convention)) is not None:
        scores = summary_scores(predictions, annotations, benchmark=of_summaries)
    else:
        scores = query_scores(predictions, annotations, benchmark=benchmark, convention=convention)
    groups = scores.videos if by == "video" else None
    percent = np.stack(list(scores.each.values()), axis=1) * 100
    bounds = {
        name: None if np.isnan(interval.low) else [interval.low, interval.high]
        for name, interval in zip(scores.each, intervals(percent, groups=groups), strict=True)
    }
    return bounds, len(set(groups)) if groups else len(scores.qids)


def compare(
    first: File,
    second: File,
    annotations: File,
    *,
    benchmark: Name | None = None,
    by: Literal["video", "query"] = "video",
    resamples: Count = 10_000,
    seed: Count = 0,
    json: JsonFile | None = None,
    plot: PlotFile | None = None,
) -> None:
    """Compare two predictions of the same annotations: differences, intervals and p-values.

    Args:
        first: predictions, JSONL in the QVHighlights submission form.
        second: other predictions of the same annotations.
        annotations: the ground truth, JSONL.
        benchmark: whose metrics to use; recognised from the annotations unless given.
        by: what the bootstrap draws, and the permutation test flips, as one unit.
        resamples: draws of the bootstrap, and of the permutation test.
        seed: seed of these draws.
        plot: draw differences, intervals and wins.
    """
    from sidelight.metrics import compare as comparing
    from sidelight.metrics.evaluate import query_scores

    require_plot(plot)
    require_range(0, seed=seed)
    first_scores, second_scores = (query_scores(f, annotations, benchmark=benchmark) for f in (first, second))
    comparison = comparing.compare(
        first_scores.each,
        second_scores.each,
        qids=first_scores.qids,
        queries=first_scores.queries,
        videos=first_scores.videos if by == "video" else None,
        names=short_names(Path(first), Path(second)),
        resamples=resamples,
        seed=seed,
    )
    with report_to(json):
        _print_comparison(comparison)
        if plot:
            from sidelight.export.charts import plot_comparison

            plot_comparison(comparison, plot)
            print(f"wrote {plot}")
    write_json(json, comparison.to_dict())


def short_names(first: Path, second: Path) -> tuple[str, str]:
    """Return short names that tell two files apart: the file names, with as many folders as needed."""
    first_parts, second_parts = (path.resolve().with_suffix("").parts for path in (first, second))
    for count in range(1, max(len(first_parts), len(second_parts)) + 1):
        names = "/".join(first_parts[-count:]), "/".join(second_parts[-count:])
        if names[0] != names[1]:
            return names
    return first.name, second.name


def _print_comparison(comparison: Comparison) -> None:
    first, second = comparison.names
    verdicts = {"first": first, "second": second, "no difference": "-"}
    rows = [["metric", "queries", first, second, "difference", "95 % interval", "p", "adjusted", "better"]]
    for metric in comparison.metrics:
        difference = metric.difference
        has_interval = difference.low == difference.low  # not NaN
        rows.append(
            [
                metric.metric,
                str(metric.queries),
                f"{metric.first:.2f}",
                f"{metric.second:.2f}",
                f"{difference.value:+.2f}",
                f"[{difference.low:+.2f}, {difference.high:+.2f}]" if has_interval else "-",
                f"{metric.p:.4f}",
                f"{metric.p_adjusted:.4f}",
                verdicts[metric.verdict],
            ]
        )
    # Plain text, not a rich table: a narrow terminal or a log cuts nothing off, and no query is read as markup.
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for texts in rows:
        cells = [f"{texts[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(texts[1:-1], widths[1:-1], strict=True))]
        print("  ".join([*cells, texts[-1]]))
    print(f"\np: paired permutation test over {count_of(comparison.groups, comparison.grouped_by)}; ", end="")
    print("adjusted: Holm, over this table")
    print("\nqueries answered better")
    width = max(len(win.metric) for win in comparison.wins)
    for win in comparison.wins:
        print(f"  {win.metric:<{width}}  {first} {win.first}, {second} {win.second}, equal {win.equal}")
    if comparison.largest:
        print(f"\nlargest differences by {comparison.decided_by}: {first} against {second}")
        for query in comparison.largest:
            print(f"  qid {query.qid}: {query.first:.1f} against {query.second:.1f}  {query.query}")


def calibrate(
    predictions: File,
    annotations: File,
    *,
    min_score: Score | None = None,
    iou: Score = 0.5,
    bins: Count = 10,
    json: JsonFile | None = None,
    plot: PlotFile | None = None,
) -> None:
    """Show how reliable scores are, and choose the score below which the answer is "no such moment".

    Args:
        predictions: JSONL in the QVHighlights submission form.
        annotations: the ground truth; queries without relevant_windows have no moment.
        min_score: report on this threshold, chosen on other data; else choose a threshold.
        iou: overlap (IoU) from which a moment is right.
        bins: number of bins of the scores.
        plot: draw the reliability of the scores.
    """
    from dataclasses import asdict

    from sidelight.metrics.calibration import absent_report, choose_min_score, reliability
    from sidelight.metrics.evaluate import best_moments_of

    require_plot(plot)
    require_range(0, 1, min_score=min_score, iou=iou)
    require_range(1, bins=bins)
    if iou == 0:
        raise ValueError("--iou must be above 0: at 0 every moment would be right")
    best = best_moments_of(predictions, annotations, iou=iou)
    present = best.present_Q
    if not present.any():
        raise ValueError(f"no query of {annotations} has a moment (relevant_windows); there is nothing to compare")
    curve = reliability(best.score_Q[present], best.right_Q[present], bins=bins)
    bin_values = {
        name.removesuffix("_N"): _without_nan(getattr(curve, name).tolist()) for name in ("edges", "score_N", "right_N")
    }
    values = {"reliability": {"count": curve.count_N.tolist(), "error": curve.error, **bin_values}}
    threshold = min_score
    with report_to(json):
        _print_reliability(curve)
        if not present.all():
            if threshold is None:
                threshold = choose_min_score(best.score_Q, present)
                print(f'\nchosen for the best F1 of the answer "no such moment": --min-score {threshold:.3f}')
            report = absent_report(best.score_Q, present, threshold)
            queries = count_of(len(present), "query")
            print(
                f'"no such moment" below {threshold:g} ({(~present).sum()} of {queries} have none): '
                f"precision {100 * report.precision:.1f} %, recall {100 * report.recall:.1f} %, "
                f"F1 {100 * report.f1:.1f} %; {100 * report.lost:.1f} % of the other queries lose their moment"
            )
            fields = asdict(report)
            values["absent"] = dict(zip(fields, _without_nan(fields.values()), strict=True))
        else:
            print('every query has a moment: this data says nothing about the answer "no such moment" or --min-score')
        if plot:
            from sidelight.export.charts import plot_reliability

            plot_reliability(curve, plot, min_score=threshold)
            print(f"wrote {plot}")
    write_json(json, values)


def _print_reliability(curve: Reliability) -> None:
    print("the best moment of each query that has a moment; queries without a moment are reported below")
    print("   score   queries   mean score   right (%)")
    for low, high, count, score, right in zip(
        curve.edges[:-1], curve.edges[1:], curve.count_N, curve.score_N, curve.right_N, strict=True
    ):
        if count:
            print(f"{low:.2f}-{high:.2f}{count:>10}{score:>13.2f}{100 * right:>12.1f}")
    print(f"expected calibration error: {100 * curve.error:.1f} points")


def _without_nan(numbers: Iterable[float]) -> list[float | None]:
    """Replace NaN, which JSON does not have, by None."""
    return [None if number != number else number for number in numbers]
