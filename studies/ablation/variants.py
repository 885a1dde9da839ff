"""What each row of an ablation table changes in the recipe.

A variant is a set of named overrides of one base recipe. Two variants of different tables that come to the same
recipe are the same run: a run is known by a digest of its resolved recipe, without paths, and by its seed.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from studies.ablation.paper import BY_LENGTH, METRICS, TABLES, PaperTable

BOTH = ("mAP", "HD mAP")
"""The paper's two averages, one for each task: what is tested, unless a table is about something else."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row: how its recipe differs from the base."""

    name: str
    """As the paper calls it where it has it; then its numbers stand beside ours."""
    overrides: Mapping[str, Any] | None
    """Field ("model.attention") -> value; None for a row of the paper that cannot be trained here."""
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Sections of which only these fields are taken from the base, because another side-tuner has others."""
    why: str = ""
    """Why it cannot be trained."""
    paper: str | None = None
    """The paper's row, where it is called otherwise."""

    @property
    def row(self) -> str:
        """The paper's row that stands beside it, if there is one of that name."""
        return self.paper or self.name


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One table: its variants, and which are compared."""

    paper: PaperTable
    variants: tuple[Variant, ...]
    reference: str
    """The variant that is the paper's own choice."""
    pairs: tuple[tuple[str, str], ...] = ()
    """(variant, what it is compared with); every other one with the reference unless given."""
    tested: tuple[str, ...] = BOTH
    """Columns that are tested; all tests of a table are adjusted together, so these are few."""
    note: str = ""
    """How ours differs from the paper's."""

    @property
    def name(self) -> str:
        """The table's."""
        return self.paper.name

    def compared(self) -> tuple[tuple[str, str], ...]:
        """The pairs that are tested."""
        trained = [v.name for v in self.variants if v.overrides is not None and v.name != self.reference]
        return self.pairs or tuple((name, self.reference) for name in trained)


def _levels(*chosen: int) -> dict[str, Any]:
    """Read these layers of the backbone: a number of last ones, or places from the end."""
    if len(chosen) == 1 and chosen[0] > 0:
        return {"backbone.levels": chosen[0], "model.levels": chosen[0]}
    return {"backbone.levels": list(chosen), "model.levels": len(chosen)}


_SHALLOW = "the text tower of the embedded backbone has four layers"
_DEFORMABLE = {"model.attention": "deformable"}
_ORDER = {"SA": "sa", "CA": "ca", "Def": "rdsa", "FFN": "ffn"}
_COMMON = {
    "model": ("video_dim", "text_dim", "levels", "hidden", "heads", "dropout", "droppath"),
    "losses": ("weight_saliency",),
    "decode": ("round_to",),
}
"""What the other side-tuners have in common with SDST, so that the comparison is one of methods."""


def _plain(overrides: Mapping[str, Mapping[str, Any]]) -> tuple[Variant, ...]:
    return tuple(Variant(name=name, overrides=changes) for name, changes in overrides.items())


_BY_ATTENTION: dict[str, Mapping[str, Any]] = {
    "Stand. CA": {"model.attention": "standard"},
    "Def. CA": _DEFORMABLE,
    "RDSA": {},
}

_ABLATIONS = (
    Ablation(
        paper=TABLES["3"],
        variants=_plain(
            {
                "CLS": {"backbone.pooling": "cls"},
                "Avg. pool": {"backbone.pooling": "mean"},
                "Adapt. pool": {"backbone.pooling": "attention"},
            }
        ),
        reference="Adapt. pool",
    ),
    Ablation(
        paper=TABLES["4"],
        variants=(
            Variant(name="last 4", overrides={}, paper="row 1"),
            *_plain(
                {
                    "-2, -1": _levels(2),
                    "-3, -1": _levels(-3, -1),
                    "-4, -1": _levels(-4, -1),
                    "-4, -3": _levels(-4, -3),
                }
            ),
        ),
        reference="last 4",
        pairs=(("-3, -1", "-2, -1"), ("-4, -1", "-2, -1"), ("-4, -3", "-2, -1")),
        note=f"{_SHALLOW}: there are no four shallower ones, so pairs of levels of growing depth are compared",
    ),
    Ablation(
        paper=TABLES["5"],
        variants=_plain(
            {
                "Stand. CA": _BY_ATTENTION["Stand. CA"],
                "Def. CA": _BY_ATTENTION["Def. CA"],
                "Def. CA + PureInit": {**_DEFORMABLE, "model.query_init": "pure"},
                "Def. CA + MixedInit": {**_DEFORMABLE, "model.query_init": "mixed"},
                "RDSA": _BY_ATTENTION["RDSA"],
            }
        ),
        reference="RDSA",
        pairs=(
            ("Stand. CA", "RDSA"),
            ("Def. CA", "RDSA"),
            ("Def. CA + PureInit", "RDSA"),
            ("Def. CA + MixedInit", "RDSA"),
            ("Def. CA + PureInit", "Def. CA"),
            ("Def. CA + MixedInit", "Def. CA"),
        ),
    ),
    Ablation(
        paper=TABLES["6"],
        variants=_plain(
            {
                "Raw": {"model.condition_on": "raw"},
                "Post CA": {"model.condition_on": "ca"},
                "Post CA+SA": {"model.condition_on": "sa"},
                "Post CA+SA+FFN": {"model.condition_on": "ffn"},
            }
        ),
        reference="Post CA+SA+FFN",
    ),
    Ablation(
        paper=TABLES["7"],
        variants=_plain(
            {
                "without CA": {"model.sparse_order": ["sa", "rdsa", "ffn"]},
                "without SA": {"model.sparse_order": ["ca", "rdsa", "ffn"]},
                "without RDSA": {"model.sparse_order": ["ca", "sa", "ffn"]},
                "without FFN": {"model.sparse_order": ["ca", "sa", "rdsa"]},
                "all": {},
            }
        ),
        reference="all",
    ),
    Ablation(
        paper=TABLES["E"],
        variants=_plain(
            {
                "without L1": {"losses.weight_l1": 0.0},
                "without IoU": {"losses.weight_iou": 0.0},
                # Its head is untrained then, so that it must not take part in the score.
                "without actionness": {"losses.weight_actionness": 0.0, "decode.score": "class"},
                "without alignment over the batch": {"losses.weight_alignment_batch": 0.0},
                "without alignment over the levels": {"losses.weight_alignment_levels": 0.0},
                "all": {},
            }
        ),
        reference="all",
        note="the matching keeps its costs; without actionness moments are scored by their class alone",
    ),
    Ablation(
        paper=TABLES["H"],
        variants=(
            *(
                Variant(name=name, overrides={"side_tuner": key}, keep=_COMMON)
                for name, key in (
                    ("w/o tuning", "last-layer"),
                    ("E3VA", "e3va"),
                    ("LoSA", "losa"),
                    ("LST", "lst"),
                    ("R2-Tuning", "r2-tuning"),
                )
            ),
            Variant(name="SDST", overrides={}),
        ),
        reference="SDST",
        note="all read the same pooled features; each has its own losses and decoding, with the base's weight of the "
        "highlight loss and its rounding",
    ),
    Ablation(
        paper=TABLES["J"],
        variants=_plain({"shared": {}, "unshared": {"model.share_levels": False}}),
        reference="shared",
    ),
    Ablation(
        paper=TABLES["K"],
        variants=(
            *_plain({f"K={k}": _levels(k) for k in (1, 2, 3, 4)}),
            Variant(name="K=5", overrides=None, why=_SHALLOW),
            *_plain({f"K={k}, last layer only": {**_levels(k), "model.level_source": "last"} for k in (2, 3, 4)}),
            Variant(name="K=5, last layer only", overrides=None, why=_SHALLOW),
        ),
        reference="K=4",
        pairs=(
            ("K=1", "K=4"),
            ("K=2", "K=4"),
            ("K=3", "K=4"),
            ("K=2, last layer only", "K=2"),
            ("K=3, last layer only", "K=3"),
            ("K=4, last layer only", "K=4"),
        ),
    ),
    Ablation(
        paper=TABLES["L"],
        variants=_plain(_BY_ATTENTION),
        reference="RDSA",
        tested=("mAP short", "mAP middle", "mAP long"),
        note="the runs of table 5",
    ),
    Ablation(
        paper=TABLES["M"],
        variants=_plain(
            {
                f"{name}{' + CNN' if cnn else ''}": {"model.rdsa_points": points, "model.rdsa_cnn": cnn}
                for name, points in (
                    ("c", ["center"]),
                    ("l-r", ["left", "right"]),
                    ("l-c-r", ["left", "center", "right"]),
                )
                for cnn in (False, True)
            }
        ),
        reference="l-c-r + CNN",
    ),
    Ablation(
        paper=TABLES["N"],
        variants=_plain(
            {row: {"model.sparse_order": [_ORDER[part] for part in row.split("-")]} for row in TABLES["N"].rows}
        ),
        reference="CA-SA-Def-FFN",
    ),
    Ablation(
        paper=TABLES["offsets"],
        variants=_plain({"Def. CA": _DEFORMABLE, "RDSA": {}}),
        reference="RDSA",
        note="the runs of table 5",
    ),
)

ABLATIONS: dict[str, Ablation] = {ablation.name: ablation for ablation in _ABLATIONS}
"""By the table's name; "offsets" stands for Fig. 4 and Fig. A."""

TESTED: tuple[str, ...] = tuple(
    dict.fromkeys(METRICS[column] for tested in (*(a.tested for a in _ABLATIONS), BY_LENGTH) for column in tested)
)
"""The metrics that any table tests, and those of Table L: what a result keeps query by query."""


def find_ablation(name: str) -> Ablation:
    """The ablation of that name, in either case; "fig4" and "figA" are other names of "offsets".

    Raises:
        ValueError: if there is none.
    """
    wanted = "offsets" if name.lower() in ("fig4", "figa") else name
    for known, ablation in ABLATIONS.items():
        if known.lower() == wanted.lower():
            return ablation
    raise ValueError(f"there is no table {name!r}; known are {', '.join(ABLATIONS)}")


def overridden(base: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """The base recipe's values (``Recipe.to_dict``) with a variant's changes.

    Raises:
        ValueError: for a variant that cannot be trained, or a field that the base does not have.
    """
    if variant.overrides is None:
        raise ValueError(f"{variant.name!r} cannot be trained here: {variant.why}")
    values: dict[str, Any] = copy.deepcopy(dict(base))
    for section, names in variant.keep.items():
        values[section] = {name: values[section][name] for name in names}
    for path, value in variant.overrides.items():
        *parts, last = path.split(".")
        inner = values
        for part in parts:
            inner = inner.get(part, {})
        if last not in inner:
            raise ValueError(f"variant {variant.name!r}: the base recipe has no field {path}")
        inner[last] = value
    return values


_UNDECISIVE = ("out", "seed", "threads", "accelerator", "val_every", "save_every", "best_by")
"""Fields of train that do not change which numbers a run ends with."""
_PLACES = ("train", "val", "train_features", "val_features", "train_videos", "val_videos", "in_memory")
"""Fields of data that say where it lies, and how it is read."""
_LATER: dict[str, dict[str, Any]] = {
    "data": {"layout": None, "normalise": True},
    "model": {"roi_width": 1.0},
}
"""Fields of a section that came later, with what they were before: results of that time stay what they are."""


def digest(recipe: Mapping[str, Any]) -> str:
    """12 hex digits of a resolved recipe: all that decides its result but the seed and where its data lies.

    The weights that are scored are those after the last epoch, so validation on the way decides nothing. Equal
    selections of levels are equal, said as a number or as a list.
    """
    values: dict[str, Any] = json.loads(json.dumps(recipe))
    for name in _PLACES:
        values["data"].pop(name, None)
    for section, before in _LATER.items():
        values[section] = {k: v for k, v in values[section].items() if k not in before or v != before[k]}
    for name in _UNDECISIVE:
        values["train"].pop(name, None)
    values["backbone"]["levels"] = list(chosen_levels(recipe))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def chosen_levels(recipe: Mapping[str, Any]) -> tuple[int, ...]:
    """The layers that a resolved recipe reads, as places from the end: -1 is the last."""
    levels = recipe["backbone"]["levels"]
    return tuple(range(-levels, 0)) if isinstance(levels, int) else tuple(levels)
