"""Friedman's and Nemenyi's tests on the SDST paper's own rank table (Appendix M), beside what the paper says.

    python benchmarks/paper_ranks.py

The table is copied as printed: nine methods, thirteen pairs of benchmark and metric, "-" where a method reports
nothing. Both tests need complete blocks, so one run takes the ten columns that all nine methods have, another the
methods that all thirteen columns have.
"""

from __future__ import annotations

import numpy as np

from sidelight.metrics.statistics import RankTest, rank_test

COLUMNS = (
    "QVHighlights R1@0.5", "QVHighlights R1@0.7", "QVHighlights mAP@0.5", "QVHighlights mAP@0.75",
    "QVHighlights mAP", "QVHighlights HL-mAP", "QVHighlights HIT@1", "Charades R1@0.5", "Charades R1@0.7",
    "Charades mIoU", "TACoS R1@0.5", "TACoS R1@0.7", "TACoS mIoU",
)  # fmt: skip
NONE = float("nan")
RANKS = {
    "Moment-DETR": (9, 9, 9, 9, 9, 7, 6, 9, 9, NONE, 9, 9, 9),
    "QD-DETR": (7, 7, 7, 7, 7, 5, 4, 8, 8, NONE, 7, 7, 7),
    "UniVTG": (8, 8, 8, 8, 8, 6, 5, 7, 7, 6, 8, 8, 8),
    "CG-DETR": (5, 6, 5, 6, 6, 4, 2, 6, 6, 5, 5, 6, 5),
    "BAM-DETR": (6, 5, 5, 5, 5, NONE, NONE, 5, 4, 4, 4, 3, 3),
    "R2-Tuning": (4, 4, 4, 4, 4, 3, 3, 4, 5, 3, 6, 4, 6),
    "SG-DETR": (1, 1, 1, 1, 1, 1, 1, 3, 4, 2, 1, 2, 2),
    "Flash-VTG": (3, 3, 2, 3, 3, NONE, NONE, 2, 2, NONE, 3, 5, 4),
    "SDST": (2, 2, 3, 2, 2, 2, 1, 1, 1, 1, 2, 1, 1),
}
PUBLISHED = {
    "Moment-DETR": 0.0012, "QD-DETR": 0.0013, "UniVTG": 0.0011, "CG-DETR": 0.0013, "BAM-DETR": 0.0013,
    "R2-Tuning": 0.0013, "SG-DETR": 0.7926, "Flash-VTG": 0.0011,
}  # fmt: skip
"""Table P: p-values of SDST against each."""


def main() -> None:
    table = np.array(list(RANKS.values()), dtype=np.float64).T
    methods = tuple(RANKS)
    show("all nine methods, the columns that all of them have", rank_test(methods, table))
    complete = [i for i in range(len(methods)) if not np.isnan(table[:, i]).any()]
    some = rank_test([methods[i] for i in complete], table[:, complete])
    show("all thirteen columns, the methods that have all of them", some)
    without = [i for i, name in enumerate(methods) if name not in ("BAM-DETR", "Flash-VTG", "Moment-DETR", "QD-DETR")]
    assert without == complete


def show(title: str, found: RankTest) -> None:
    print(f"{title}: {len(found.methods)} methods, {found.blocks} blocks")
    print(f"Friedman: chi-squared {found.statistic:.2f}, p {found.p:.2g}")
    print(f"Nemenyi: mean ranks further apart than {found.critical_difference:.2f} differ at 0.05")
    print(f"{'':<14}{'mean rank':>10}{'p against SDST':>16}{'paper':>8}")
    last = found.methods.index("SDST")
    for i, name in sorted(enumerate(found.methods), key=lambda pair: found.mean_ranks[pair[0]]):
        p = "" if i == last else f"{found.nemenyi[i, last]:.4f}"
        print(f"{name:<14}{found.mean_ranks[i]:>10.2f}{p:>16}{PUBLISHED.get(name, ''):>8}")
    print()


if __name__ == "__main__":
    main()
