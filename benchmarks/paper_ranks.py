"""Run Friedman's and Nemenyi's tests on the rank table of the SDST paper (Appendix M), beside the paper's p-values.

    python benchmarks/paper_ranks.py

The table is copied as printed: nine methods, thirteen pairs of benchmark and metric, nan where a method reports
nothing. Both tests need complete blocks. So they are run twice: on the ten columns that all nine methods have, and on
the methods that have all thirteen columns.
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
"""Table P: p-values of SDST against each method."""


def main() -> None:
    table = np.array(list(RANKS.values()), dtype=np.float64).T
    methods = tuple(RANKS)
    show("all nine methods, the columns that all of them have", rank_test(methods, table))
    complete = [i for i in range(len(methods)) if not np.isnan(table[:, i]).any()]
    complete_methods = rank_test([methods[i] for i in complete], table[:, complete])
    show("all thirteen columns, the methods that have all of them", complete_methods)
    expected = [i for i, name in enumerate(methods) if name not in ("BAM-DETR", "Flash-VTG", "Moment-DETR", "QD-DETR")]
    assert expected == complete


def show(title: str, result: RankTest) -> None:
    print(f"{title}: {len(result.methods)} methods, {result.blocks} blocks")
    print(f"Friedman: chi-squared {result.statistic:.2f}, p {result.p:.2g}")
    print(f"Nemenyi: mean ranks further apart than {result.critical_difference:.2f} differ at 0.05")
    print(f"{'':<14}{'mean rank':>10}{'p against SDST':>16}{'paper':>8}")
    sdst = result.methods.index("SDST")
    for i, name in sorted(enumerate(result.methods), key=lambda pair: result.mean_ranks[pair[0]]):
        p = "" if i == sdst else f"{result.nemenyi[i, sdst]:.4f}"
        print(f"{name:<14}{result.mean_ranks[i]:>10.2f}{p:>16}{PUBLISHED.get(name, ''):>8}")
    print()


if __name__ == "__main__":
    main()
