"""`sidelight evaluate`, `compare` and `calibrate`: numbers about predictions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidelight.cli.shared import check_picture, check_writable, report_to, write_json

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from sidelight.metrics.compare import Comparison


_FEW = 20
"""Below so many independent units we warn: a percentile bootstrap over few covers less than it says."""


def add_evaluate(parser: ArgumentParser) -> None:
    parser.add_argument(
        "predictions", nargs="+", help="JSONL in the QVHighlights submission form; several are runs of several seeds"
    )
    parser.add_argument("annotations", help="the ground truth, JSONL")
    parser.add_argument("--benchmark", help="whose metric; found from the file unless given")
    parser.add_argument(
        "--convention",
        choices=["sidelight", "r2-tuning", "moment-detr"],
        default="sidelight",
        help="which published script to equal",
    )
    parser.add_argument("--intervals", action="store_true", help="bootstrap intervals (95 in 100) beside the numbers")
    parser.add_argument("--by", choices=["video", "query"], default="video", help="what the bootstrap draws as one")
    parser.add_argument("--json", metavar="FILE", help="write all metrics as JSON")


def run_evaluate(args: Namespace, _: ArgumentParser) -> int:
    from sidelight.metrics.evaluate import evaluate_files, query_scores
    from sidelight.metrics.statistics import intervals, over_seeds

    check_writable(args.json, args.annotations, *args.predictions)
    if args.intervals and len(args.predictions) > 1:
        raise ValueError("--intervals is for one predictions file; several are reported with mean and deviation")
    if args.by == "query" and not args.intervals:
        raise ValueError("--by says what --intervals draws; give --intervals too")
    options = {"benchmark": args.benchmark, "convention": args.convention}
    results = [evaluate_files(file, args.annotations, **options) for file in args.predictions]
    brief = results[0]["brief"]
    written: dict[str, Any] = results[0]
    # As many as the published script prints: three for TVSum and YouTube Highlights.
    decimals = 3 if any(round(v, 2) != v for v in brief.values()) else 2
    with report_to(args.json):
        if len(results) > 1:
            for file, result in zip(args.predictions, results, strict=True):
                if odd := sorted(set(brief) ^ set(result["brief"])):
                    raise ValueError(
                        f"{file} and {args.predictions[0]} can be scored by different metrics ({odd[0]}, ...): only "
                        "one of them has saliency; runs of several seeds need the same fields"
                    )
            seeds = {name: over_seeds([r["brief"][name] for r in results]) for name in brief}
            print(f"{'':<28}   mean  deviation over {len(results)} runs")
            for name, (mean, deviation) in seeds.items():
                print(f"{name:<28}{mean:>7.{decimals}f}  {deviation:.2f}")
            runs = [{"predictions": f, **r} for f, r in zip(args.predictions, results, strict=True)]
            written = {"runs": runs, "seeds": {k: {"mean": m, "deviation": d} for k, (m, d) in seeds.items()}}
        elif args.intervals:
            import numpy as np

            scored = query_scores(args.predictions[0], args.annotations, **options)
            table = np.stack(list(scored.each.values()), axis=1) * 100
            groups = scored.videos if args.by == "video" else None
            found = dict(zip(scored.each, intervals(table, groups=groups), strict=True))
            ends = {k: None if v.low != v.low else [v.low, v.high] for k, v in found.items()}
            for name, value in brief.items():
                between = ends.get(name)
                inside = f"  [{between[0]:6.2f}, {between[1]:6.2f}]" if between else "  [    -,     -]"
                print(f"{name:<28}{value:>7.{decimals}f}{inside}")
            count = len(set(groups)) if groups else len(scored.qids)
            units = f"{count} videos" if groups else f"{count} queries"
            print(f"95 % intervals over {units}; - where too few of them count")
            if count < _FEW:
                print(f"note: a bootstrap over fewer than {_FEW} gives intervals that are too narrow; take more")
            written = {**results[0], "intervals": ends}
        else:
            for name, value in brief.items():
                print(f"{name:<28}{value:>7.{decimals}f}")
    write_json(args.json, written)
    return 0


def add_compare(parser: ArgumentParser) -> None:
    parser.add_argument("first", help="predictions, JSONL in the QVHighlights submission form")
    parser.add_argument("second", help="other predictions of the same annotations")
    parser.add_argument("annotations", help="the ground truth, JSONL")
    parser.add_argument("--benchmark", help="whose metric; found from the file unless given")
    parser.add_argument("--by", choices=["video", "query"], default="video", help="what is drawn and flipped as one")
    parser.add_argument("--resamples", type=int, default=10_000, help="draws of the bootstrap and of the permutations")
    parser.add_argument("--seed", type=int, default=0, help="of these draws")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON")
    parser.add_argument("--plot", metavar="FILE.png", help="draw differences, intervals and wins")


def run_compare(args: Namespace, _: ArgumentParser) -> int:
    from sidelight.metrics.compare import compare
    from sidelight.metrics.evaluate import query_scores

    inputs = (args.first, args.second, args.annotations)
    check_writable(args.json, *inputs)
    check_picture(args.plot, *inputs)
    first, second = (query_scores(f, args.annotations, benchmark=args.benchmark) for f in (args.first, args.second))
    names = _names(Path(args.first), Path(args.second))
    found = compare(
        first.each,
        second.each,
        qids=first.qids,
        queries=first.queries,
        videos=first.videos if args.by == "video" else None,
        names=names,
        resamples=args.resamples,
        seed=args.seed,
    )
    with report_to(args.json):
        _print_comparison(found)
        if args.plot:
            from sidelight.export.charts import plot_comparison

            plot_comparison(found, args.plot)
            print(f"wrote {args.plot}")
    write_json(args.json, found.to_dict())
    return 0


def _names(first: Path, second: Path) -> tuple[str, str]:
    """What tells two files apart: their names, with as many folders as that takes."""
    one, two = first.resolve().with_suffix("").parts, second.resolve().with_suffix("").parts
    for count in range(1, max(len(one), len(two)) + 1):
        names = "/".join(one[-count:]), "/".join(two[-count:])
        if names[0] != names[1]:
            return names
    return first.name, second.name


def _print_comparison(found: Comparison) -> None:
    first, second = found.names
    verdicts = {"first": first, "second": second, "no difference": "-"}
    rows = [["metric", "queries", first, second, "difference", "95 % interval", "p", "adjusted", "better"]]
    for row in found.metrics:
        d = row.difference
        inside = "-" if d.low != d.low else f"[{d.low:+.2f}, {d.high:+.2f}]"
        rows.append(
            [
                row.metric,
                str(row.queries),
                f"{row.first:.2f}",
                f"{row.second:.2f}",
                f"{d.value:+.2f}",
                inside,
                f"{row.p:.4f}",
                f"{row.p_adjusted:.4f}",
                verdicts[row.verdict],
            ]
        )
    # Plain text: nothing is cut off in a narrow terminal or a log, and no sentence is taken for markup.
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for texts in rows:
        cells = [f"{texts[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(texts[1:-1], widths[1:-1], strict=True))]
        print("  ".join([*cells, texts[-1]]))
    units = f"{found.groups} {'videos' if found.grouped_by == 'video' else 'queries'}"
    print(f"\np: paired permutation test over {units}; adjusted: Holm, over this table")
    print("\nqueries answered better")
    width = max(len(w.metric) for w in found.wins)
    for win in found.wins:
        print(f"  {win.metric:<{width}}  {first} {win.first}, {second} {win.second}, equal {win.equal}")
    if found.largest:
        print(f"\nlargest differences by {found.decided_by}: {first} against {second}")
        for query in found.largest:
            print(f"  qid {query.qid}: {query.first:.1f} against {query.second:.1f}  {query.query}")


def add_calibrate(parser: ArgumentParser) -> None:
    parser.add_argument("predictions", help="JSONL in the QVHighlights submission form")
    parser.add_argument("annotations", help="the ground truth; queries without relevant_windows have no moment")
    parser.add_argument(
        "--min-score", type=float, help="report on this threshold, chosen on other data; else choose one"
    )
    parser.add_argument("--iou", type=float, default=0.5, help="from which overlap a moment is right")
    parser.add_argument("--bins", type=int, default=10, help="bins of the scores")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the reliability of the scores")


def run_calibrate(args: Namespace, _: ArgumentParser) -> int:
    import dataclasses

    from sidelight.metrics.calibration import absent_report, choose_min_score, reliability
    from sidelight.metrics.evaluate import best_moments_of

    check_writable(args.json, args.predictions, args.annotations)
    check_picture(args.plot, args.predictions, args.annotations)
    for name in ("min_score", "iou"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"--{name.replace('_', '-')} must be between 0 and 1, got {value}")
    if args.iou == 0:
        raise ValueError("--iou must be above 0: at 0 every moment would be right")
    if args.bins < 1:
        raise ValueError(f"--bins must be 1 or more, got {args.bins}")
    best = best_moments_of(args.predictions, args.annotations, iou=args.iou)
    asked = best.present_Q
    if not asked.any():
        raise ValueError(f"no query of {args.annotations} has a moment (relevant_windows); there is nothing to compare")
    found = reliability(best.score_Q[asked], best.right_Q[asked], bins=args.bins)
    with report_to(args.json):
        print("the best moment of each query that has one; queries without a moment are looked at below")
        print("   score   queries   mean score   right (%)")
        for low, high, count, score, right in zip(
            found.edges[:-1], found.edges[1:], found.count_N, found.score_N, found.right_N, strict=True
        ):
            if count:
                print(f"{low:.2f}-{high:.2f}{count:>10}{score:>13.2f}{100 * right:>12.1f}")
        print(f"expected calibration error: {100 * found.error:.1f} points")
        values = {"reliability": {"count": found.count_N.tolist(), "error": found.error}}
        for name in ("edges", "score_N", "right_N"):
            numbers = getattr(found, name).tolist()
            values["reliability"][name.removesuffix("_N")] = [None if v != v else v for v in numbers]
        threshold = args.min_score
        if not asked.all():
            if threshold is None:
                threshold = choose_min_score(best.score_Q, asked)
                print(f'\nchosen for the best F1 of the answer "no such moment": --min-score {threshold:.3f}')
            report = absent_report(best.score_Q, asked, threshold)
            absent = int((~asked).sum())
            print(
                f'"no such moment" below {threshold:g} ({absent} of {len(asked)} queries have none): '
                f"precision {100 * report.precision:.1f} %, recall {100 * report.recall:.1f} %, "
                f"F1 {100 * report.f1:.1f} %; {100 * report.lost:.1f} % of the others are lost"
            )
            values["absent"] = {k: None if v != v else v for k, v in dataclasses.asdict(report).items()}
        else:
            print('every query has a moment: nothing is said of the answer "no such moment", nor of a --min-score')
        if args.plot:
            from sidelight.export.charts import plot_reliability

            plot_reliability(found, args.plot, min_score=threshold)
            print(f"wrote {args.plot}")
    write_json(args.json, values)
    return 0
