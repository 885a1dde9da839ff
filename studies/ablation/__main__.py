"""Train the variants of one of the SDST paper's tables, or of SCADA's claims, and print our numbers beside the paper's.

python -m studies.ablation 5 --seeds 3
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sidelight.core.messages import count_of
from sidelight.io.files import write_text
from studies.ablation import offsets, report
from studies.ablation.run import execute, plan, prepare
from studies.ablation.variants import find_ablation, with_cue

RECIPES = Path(__file__).resolve().parents[1]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    command = argparse.ArgumentParser(prog="python -m studies.ablation", description=__doc__, allow_abbrev=False)
    command.add_argument(
        "table",
        help="3, 4, 5, 6, 7, E, H, J, K, L, M, N, offsets (Fig. 4 and Fig. A), or ours: cue, options, rates; scada",
    )
    command.add_argument(
        "--cue", action="store_true", help="train every variant with the saliency cue and our score of a moment"
    )
    command.add_argument("--seeds", type=int, default=3, help="runs of each variant (default: 3)")
    command.add_argument("--first-seed", type=int, default=0, help="the seed of the first run (default: 0)")
    command.add_argument(
        "--recipe", help="the base recipe, which the variants change (default: studies/ablation.yaml or scada.yaml)"
    )
    command.add_argument(
        "--world", help="folder with train/ and val/ of `sidelight shapes`, instead of the data that the recipe names"
    )
    command.add_argument("--out", default="runs/ablation", help="folder of features, runs and tables")
    command.add_argument("--jobs", type=int, default=1, help="runs at the same time; if several, each uses one thread")
    command.add_argument("--keep", action="store_true", help="keep the weights, predictions and logs of trained runs")
    command.add_argument("--dry-run", action="store_true", help="list the runs and their state; train nothing")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one table and return the exit code: 0, 1 if a run failed, 2 for a mistake of the user."""
    args = parser().parse_args(argv)
    try:
        return _run(args)
    except KeyboardInterrupt:
        print("interrupted; the same command continues with the runs that are not finished", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"studies.ablation: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    for name in ("seeds", "jobs"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be 1 or more, got {getattr(args, name)}")
    if args.first_seed < 0:
        raise ValueError(f"--first-seed must be 0 or more, got {args.first_seed}")
    ablation = find_ablation(args.table)
    if args.cue:
        ablation = with_cue(ablation)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    runs = plan(ablation, args.recipe or RECIPES / ablation.recipe, args.out, seeds, world=args.world)
    if args.dry_run:
        for run in runs:
            print(f"{'finished' if run.finished else 'to train':<10}{run.folder}  {' = '.join(run.variants)}")
        for variant in ablation.variants:
            if variant.overrides is None:
                print(f"{'never':<10}{variant.name}: {variant.why}")
        print(f"{count_of(len(runs), 'run')}, {sum(not run.finished for run in runs)} to train")
        return 0
    if ablation.name == "offsets":
        offsets.check_weights(runs)
        prepare(runs, args.out)  # finished runs too: offsets are measured on the validation split
    else:
        prepare([run for run in runs if not run.finished], args.out)
    failures = execute(runs, jobs=args.jobs, keep=args.keep)
    folder = Path(args.out) / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{'' if ablation.name == 'offsets' else 'table-'}{ablation.name}{'-cue' if args.cue else ''}"
    writer = offsets if ablation.name == "offsets" else report
    table = writer.from_runs(ablation, runs)
    print(writer.as_text(table))
    write_text(f"{stem}.json", json.dumps(table, indent=2, allow_nan=False) + "\n")  # unknown numbers are null
    writer.plot_report(table, f"{stem}.png")
    print(f"wrote {stem}.json and {stem}.png")
    for failure in failures:
        print(f"failed: {failure.run.folder}: {failure.reason}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
