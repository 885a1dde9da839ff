"""The recipe changes of each row of the ablation tables.

A variant is a set of overrides of one base recipe. A run is identified by its seed and by a digest of its resolved
recipe without paths, so variants of different tables with the same resolved recipe share their runs.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from studies.ablation.paper import BY_LENGTH, METRICS, TABLES, PaperTable

BOTH = ("mAP", "HD mAP")
"""The paper's main metric of each task. These are tested unless a table names other columns."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a table: its changes of the base recipe."""

    name: str
    """The paper's name of the row, if the paper has this row; its numbers are then shown beside ours."""
    overrides: Mapping[str, Any] | None
    """Field ("model.attention") -> value; None for a row of the paper that cannot be trained here."""
    keep: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Section -> the only fields taken from the base, for side-tuners that have other fields."""
    why: str = ""
    """Why it cannot be trained."""
    paper: str | None = None
    """The paper's name of the row, if it is not ``name``."""

    @property
    def row(self) -> str:
        """Return the name of the paper's row to compare with; the paper may not have such a row."""
        return self.paper or self.name


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One table: its variants and the pairs that are compared."""

    paper: PaperTable
    variants: tuple[Variant, ...]
    reference: str
    """Name of the variant that is the paper's own choice."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of variants to compare; by default each variant with the reference."""
    tested: tuple[str, ...] = BOTH
    """Columns that are tested. They are few, because all tests of a table are adjusted together."""
    note: str = ""
    """Difference between our table and the paper's."""
    claims: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Pair -> 1 if the paper claims, without a number, that the first is better; -1 for worse."""
    recipe: str = "ablation.yaml"
    """File of the base recipe, beside this package."""

    @property
    def name(self) -> str:
        """Return the name of the table."""
        return self.paper.name

    def compared(self) -> tuple[tuple[str, str], ...]:
        """Return the pairs of variants that are tested."""
        trained = [v.name for v in self.variants if v.overrides is not None and v.name != self.reference]
        return self.pairs or tuple((name, self.reference) for name in trained)


def _levels(*chosen: int) -> dict[str, Any]:
    """Return the overrides that read these layers: a number of last layers, or positions from the end."""
    if len(chosen) == 1 and chosen[0] > 0:
        return {"backbone.levels": chosen[0], "model.levels": chosen[0]}
    return {"backbone.levels": list(chosen), "model.levels": len(chosen)}


RATES = (2e-4, 4e-4, 8e-4, 1.6e-3)
"""Learning rates that each side-tuner is tried with (table "rates")."""
_SHALLOW = "the text tower of the embedded backbone has four layers"
_DEFORMABLE = {"model.attention": "deformable"}
_ORDER = {"SA": "sa", "CA": "ca", "Def": "rdsa", "FFN": "ffn"}
_COMMON = {
    "model": ("video_dim", "text_dim", "levels", "hidden", "heads", "dropout", "droppath", "saliency_cue"),
    "losses": ("weight_saliency",),
    "decode": ("round_to",),
}
"""Fields that other side-tuners share with SDST. They stay equal, so that only the methods differ."""


def _variants(overrides: Mapping[str, Mapping[str, Any]]) -> tuple[Variant, ...]:
    return tuple(Variant(name=name, overrides=changes) for name, changes in overrides.items())


_CUE: dict[str, Any] = {"model.saliency_cue": True}
_BEST: dict[str, Any] = {
    **_CUE,
    "model.roi_width": 1.5,
    "model.actionness_input": "both",
    "losses.actionness_loss": "bce",
    "losses.class_target": "iou",
}
"""Our form of SDST: with the cue and the best score of a moment (table "cue")."""
_RATE = {"r2-tuning": {"train.lr": 8e-4}}
"""Side-tuner -> its learning rate with the cue, where another than the base's won in table "rates"."""
_RIVALS = {"w/o tuning": "last-layer", "E3VA": "e3va", "LoSA": "losa", "LST": "lst", "R2-Tuning": "r2-tuning"}
"""Row of Table H -> side-tuner."""

_SCADA_PAIRS = (
    ("both", "frozen"),
    ("both", "full"),
    ("both", "full, a tenth of the rate"),
    *((mode, f"{mode}, no sentence") for mode in ("outer", "inner", "both")),
    ("both", "inner"),
    ("both", "outer"),
)
"""SCADA's claims: the first is better than the second."""

_BY_ATTENTION: dict[str, Mapping[str, Any]] = {
    "Stand. CA": {"model.attention": "standard"},
    "Def. CA": _DEFORMABLE,
    "RDSA": {},
}

_ABLATIONS = (
    Ablation(
        paper=TABLES["3"],
        variants=_variants(
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
            *_variants(
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
        variants=_variants(
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
        variants=_variants(
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
        variants=_variants(
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
        variants=_variants(
            {
                "without L1": {"losses.weight_l1": 0.0},
                "without IoU": {"losses.weight_iou": 0.0},
                # The head of actionness is then untrained, so the score must not use it.
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
            *(Variant(name=name, overrides={"side_tuner": key}, keep=_COMMON) for name, key in _RIVALS.items()),
            Variant(name="SDST", overrides={}),
        ),
        reference="SDST",
        note="all read the same pooled features; each has its own losses and decoding, with the base's weight of the "
        "highlight loss and its rounding",
    ),
    Ablation(
        paper=TABLES["J"],
        variants=_variants({"shared": {}, "unshared": {"model.share_levels": False}}),
        reference="shared",
    ),
    Ablation(
        paper=TABLES["K"],
        variants=(
            *_variants({f"K={k}": _levels(k) for k in (1, 2, 3, 4)}),
            Variant(name="K=5", overrides=None, why=_SHALLOW),
            *_variants({f"K={k}, last layer only": {**_levels(k), "model.level_source": "last"} for k in (2, 3, 4)}),
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
        variants=_variants(_BY_ATTENTION),
        reference="RDSA",
        tested=("mAP short", "mAP middle", "mAP long"),
        note="the runs of table 5",
    ),
    Ablation(
        paper=TABLES["M"],
        variants=_variants(
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
        variants=_variants(
            {row: {"model.sparse_order": [_ORDER[part] for part in row.split("-")]} for row in TABLES["N"].rows}
        ),
        reference="CA-SA-Def-FFN",
    ),
    Ablation(
        paper=TABLES["offsets"],
        variants=_variants({"Def. CA": _DEFORMABLE, "RDSA": {}}),
        reference="RDSA",
        note="the runs of table 5",
    ),
    Ablation(
        paper=TABLES["cue"],
        variants=(
            *_variants(
                {
                    "SDST": {},
                    "SDST + cue": _CUE,
                    "SDST + cue, actionness": {**_BEST, "losses.class_target": "one"},
                    "SDST + cue, actionness, class": _BEST,
                }
            ),
            Variant(name="R2-Tuning", overrides={"side_tuner": "r2-tuning"}, keep=_COMMON),
            Variant(
                name="R2-Tuning + cue",
                overrides={"side_tuner": "r2-tuning", **_CUE, **_RATE["r2-tuning"]},
                keep=_COMMON,
            ),
        ),
        reference="SDST",
        pairs=(
            ("SDST + cue", "SDST"),
            ("SDST + cue, actionness", "SDST + cue"),
            ("SDST + cue, actionness, class", "SDST + cue"),
            ("R2-Tuning + cue", "R2-Tuning"),
            ("SDST", "R2-Tuning"),
            ("SDST + cue", "R2-Tuning + cue"),
            ("SDST + cue, actionness, class", "R2-Tuning + cue"),
        ),
        note="actionness: read from the dense stream and the highlight curve, over 1.5 widths, trained by "
        "cross-entropy; class: its goal is the IoU; R2-Tuning with the cue has the rate that won in table rates",
    ),
    Ablation(
        paper=TABLES["options"],
        variants=_variants(
            {
                "cue": _CUE,
                "none": {},
                "best": _BEST,
                "class goal: IoU": {**_CUE, "losses.class_target": "iou"},
                "actionness: cross-entropy": {**_CUE, "losses.actionness_loss": "bce"},
                "actionness: cross-entropy, 1.5 widths": {
                    **_CUE,
                    "losses.actionness_loss": "bce",
                    "model.roi_width": 1.5,
                },
                "actionness: cross-entropy, 1.5 widths, curve": {
                    **{k: v for k, v in _BEST.items() if k != "losses.class_target"},
                    "model.actionness_input": "saliency",
                },
                "actionness: cross-entropy, 1.5 widths, both": {**_BEST, "losses.class_target": "one"},
                "alignment: mean": {**_CUE, "losses.alignment_reduction": "mean"},
                "TadTR's offsets": {**_CUE, "model.offset_init": "tadtr", "train.offset_lr": 0.1},
                "RDSA's query reads H": {**_CUE, "model.rdsa_reads_query": True},
                "ties are negatives": {**_CUE, "losses.nce_ties": "negative"},
                "matching cost: IoU": {**_CUE, "losses.matching_overlap": "iou"},
                "soft-NMS without threshold": {**_CUE, "decode.nms_threshold": 0.0},
            }
        ),
        reference="cue",
    ),
    Ablation(
        paper=TABLES["rates"],
        variants=tuple(
            Variant(
                name=f"{name}, {rate:g}",
                overrides={**({"side_tuner": key} if key else {}), **_CUE, "train.lr": rate},
                keep=_COMMON if key else {},
            )
            for name, key in {"SDST": "", **dict(reversed(_RIVALS.items()))}.items()
            for rate in RATES
        ),
        reference="SDST, 0.0004",
        tested=(),
        note="all with the cue",
    ),
    Ablation(
        paper=TABLES["scada"],
        variants=(
            *_variants({"frozen": {"model.mode": "frozen"}}),
            *_variants(
                {
                    f"{mode}{'' if reads else ', no sentence'}": {
                        "model.mode": mode,
                        "model.sentence_in_adapters": reads,
                    }
                    for mode in ("outer", "inner", "both")
                    for reads in (True, False)
                }
            ),
            *_variants(
                {
                    "full": {"model.mode": "full"},
                    "full, a tenth of the rate": {"model.mode": "full", "train.lr": 1e-4},
                }
            ),
        ),
        reference="both",
        pairs=_SCADA_PAIRS,
        claims=dict.fromkeys(_SCADA_PAIRS, 1),
        tested=("mAP",),
        recipe="scada.yaml",
    ),
)

ABLATIONS: dict[str, Ablation] = {ablation.name: ablation for ablation in _ABLATIONS}
"""Name of the table -> ablation; "offsets" is Fig. 4 and Fig. A."""

TESTED: tuple[str, ...] = tuple(
    dict.fromkeys(METRICS[column] for tested in (*(a.tested for a in _ABLATIONS), BY_LENGTH) for column in tested)
)
"""The metrics of which a result keeps the score of each query: all tested metrics and those of Table L."""


def find_ablation(name: str) -> Ablation:
    """Return an ablation by name, in upper or lower case; "fig4" and "figA" are other names of "offsets".

    Raises:
        ValueError: if there is no such ablation.
    """
    key = "offsets" if name.lower() in ("fig4", "figa") else name.lower()
    for known, ablation in ABLATIONS.items():
        if known.lower() == key:
            return ablation
    raise ValueError(f"there is no table {name!r}; known are {', '.join(ABLATIONS)}")


def with_cue(ablation: Ablation) -> Ablation:
    """Return the table with the cue in every variant, and with our score of a moment where it is SDST.

    Raises:
        ValueError: if the table varies the cue itself.
    """
    if ablation.paper.name == "scada":
        raise ValueError("table scada has no saliency cue; leave out --cue")
    if ablation.paper.name in ("cue", "options", "rates"):
        raise ValueError(f"table {ablation.name} has rows with and without the cue already; leave out --cue")
    changed = []
    for variant in ablation.variants:
        if variant.overrides is not None:
            rival = variant.overrides.get("side_tuner")
            ours = {**_CUE, **_RATE.get(rival, {})} if rival else _BEST
            variant = replace(variant, overrides={**ours, **variant.overrides})
        changed.append(variant)
    note = "; ".join(part for part in (ablation.note, "all with the saliency cue, SDST with our score too") if part)
    return replace(ablation, variants=tuple(changed), note=note)


def overridden(base: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """Return the values of the base recipe (``Recipe.to_dict``) with the changes of a variant.

    Raises:
        ValueError: if the variant cannot be trained, or the base lacks a field that it changes.
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


_TRAIN_FIELDS_WITHOUT_EFFECT = ("out", "seed", "threads", "accelerator", "val_every", "save_every", "best_by")
"""Fields of ``train`` that a digest leaves out, because they do not change how a recipe learns."""
_DATA_PATHS = (
    *("train", "val", "train_features", "val_features", "train_videos", "val_videos", "in_memory"),
    *("frames_cache", "frames_cache_limit"),
)
"""Fields of ``data`` that say where the data is and how it is read."""
_ADDED_FIELDS: dict[str, dict[str, Any]] = {
    "data": {"layout": None, "normalise": True, "round_clips": False},
    "model": {"roi_width": 1.0, "saliency_cue": False, "actionness_input": "dense", "rdsa_reads_query": False},
    "losses": {
        "actionness_loss": "l1",
        "class_target": "one",
        "alignment_reduction": "sum",
        "matching_overlap": "giou",
    },
    "decode": {"keep_all": False},
    "train": {"offset_lr": 1.0, "last_batch": "drop", "frames_per_step": 4096, "accumulate": 0},
}
"""Section -> fields that were added later, with the value that older results correspond to. Their digests stay valid.
"""


def digest(recipe: Mapping[str, Any]) -> str:
    """Return 12 hex digits of everything in a resolved recipe that decides its result, except the seed and the paths.

    The weights after the last epoch are scored, so validation during training has no effect. Levels given as a number
    and as an equal list have the same digest.
    """
    values: dict[str, Any] = json.loads(json.dumps(recipe))
    for name in _DATA_PATHS:
        values["data"].pop(name, None)
    for section, defaults in _ADDED_FIELDS.items():
        values[section] = {k: v for k, v in values[section].items() if k not in defaults or v != defaults[k]}
    for name in _TRAIN_FIELDS_WITHOUT_EFFECT:
        values["train"].pop(name, None)
    if "levels" in values["backbone"]:
        values["backbone"]["levels"] = list(chosen_levels(recipe))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def chosen_levels(recipe: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the layers that a resolved recipe reads, as positions from the end: -1 is the last."""
    levels = recipe["backbone"]["levels"]
    return tuple(range(-levels, 0)) if isinstance(levels, int) else tuple(levels)
