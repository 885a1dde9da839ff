"""Each recipe of R2-Tuning and UniVTG against its published configuration, field by field.

Sources: the folder configs of github.com/yeliudev/R2-Tuning; the folder scripts of github.com/showlab/UniVTG. The
published values are stated here by their published names. SDST published no configuration: ``test_recipes.py``
compares its recipes with Table A of the paper.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sidelight.models.decode.r2_tuning import R2DecodeConfig
from sidelight.models.decode.univtg import UniVTGDecodeConfig
from sidelight.models.losses.r2_tuning import R2LossConfig
from sidelight.models.losses.univtg import UniVTGLossConfig
from sidelight.models.r2_tuning import R2TuningConfig
from sidelight.models.univtg import UniVTGConfig
from sidelight.training.check import _steps
from sidelight.training.recipe import DataConfig, TrainConfig, read_recipe

BASE: dict[str, Any] = {
    # configs/_base_/models/model.py; the video and text widths are those of ViT-B/32
    "arch": "ViT-B/32",
    "dims": 256,
    "strides": (1, 2, 4, 8),
    "max_num_moment": 50,
    "merge_cls_sal": True,
    "k": 4,
    "dropout": 0.5,
    "use_tef": True,
    "heads": 8,
    "ratio": 4,
    "droppath": 0.1,
    "coord_head": True,
    "sample_radius": 1.5,
    "loss_cls": ("FocalLoss", 1.0),
    "loss_reg": 0.2,
    "loss_sal": 0.1,
    "loss_sal_direction": ("row", "col"),
    "loss_video_cal": 0.1,
    "loss_layer_cal": 0.1,
    # configs/_base_/schedules/default.py, and tools/launch.py
    "epochs": 30,
    "lr": 5e-4,
    "weight_decay": 1e-4,
    "step": 20,
    "warmup_steps": 500,
    "warmup_ratio": 0.001,
    "max_norm": 35,
    "amp": "fp16",
    # configs/_base_/datasets; datasets/grounding.py
    "times": 1,
    "batch_size": 32,
    "drop_last": False,
    "min_video_len": 5,
    "fps": 0.5,
    "unit": None,
    "nms": ("normal", 0.7),
}
"""The values that configurations share, or that most of them have."""
_HIGHLIGHTS = {
    "strides": (1,),
    "use_tef": False,
    "merge_cls_sal": False,
    "coord_head": False,
    "loss_cls": ("DynamicBCELoss", 1.0),
    "loss_sal_direction": ("row",),
    "step": None,
    "warmup_steps": 50,
    "batch_size": 4,
    "min_video_len": 0,
    "nms": None,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qvhighlights": {"times": 4, "batch_size": 128, "unit": 2.0},
    "charades-sta": {
        "dropout": 0.35,
        "loss_sal": 0.01,
        "epochs": 50,
        "lr": 2.5e-4,
        "step": 30,
        "fps": 1.0,
        "unit": 0.1,
        "nms": ("linear",),
    },
    "tacos": {"loss_sal": 0.05, "epochs": 100, "lr": 2.5e-4, "step": 50, "nms": ("linear",)},
    "ego4d-nlq": {"dropout": 0.3, "lr": 2.5e-4, "nms": ("linear",)},
    "tvsum": {**_HIGHLIGHTS, "epochs": 500},
    "youtube-highlights": {**_HIGHLIGHTS, "epochs": 200, "fps": "number of ratings / duration"},
}
"""The values that each configuration changes."""
_OURS = {
    "train": {"out", "best_by", "val_every", "precision"},
    "data": {"train", "val", "train_features", "in_memory", "benchmark", "binding", "domain", "round_clips"},
}
"""Fields that are not in a published configuration, and are tested on their own."""


def _recipe_of(published: dict[str, Any]) -> dict[str, Any]:
    """Return the sections of a recipe with the published values; all other fields have their defaults."""
    decoding: dict[Any, dict[str, Any]] = {
        ("normal", 0.7): {"nms": "hard", "nms_threshold": 0.7},
        ("linear",): {"nms": "soft-linear"},
        None: {"nms": "none"},
    }
    loss_name, class_weight = published["loss_cls"]
    assert published["coord_head"] == published["merge_cls_sal"]  # our models join the two options
    repeats = published["times"]  # times the data is repeated in a published epoch: so many of our epochs
    assert (published["arch"], published["amp"], published["drop_last"]) == ("ViT-B/32", "fp16", False)
    never = published["step"] is None
    return {
        "model": R2TuningConfig(
            video_dim=768,
            text_dim=512,
            levels=published["k"],
            hidden=published["dims"],
            heads=published["heads"],
            ffn_ratio=published["ratio"],
            strides=published["strides"],
            dropout=published["dropout"],
            droppath=published["droppath"],
            endpoint_features=published["use_tef"],
            boundary_head=published["coord_head"],
        ),
        "losses": R2LossConfig(
            weight_class=class_weight,
            weight_l1=published["loss_reg"],
            weight_saliency=published["loss_sal"],
            weight_alignment_batch=published["loss_video_cal"],
            weight_alignment_levels=published["loss_layer_cal"],
            class_loss={"FocalLoss": "focal", "DynamicBCELoss": "bce"}[loss_name],  # type: ignore[arg-type]
            nce_directions=published["loss_sal_direction"],
            center_radius=published["sample_radius"],
        ),
        "decode": R2DecodeConfig(
            max_moments=published["max_num_moment"],
            round_to=published["unit"],
            keep_all=published["coord_head"],
            **decoding[published["nms"]],
        ),
        "train": TrainConfig(
            epochs=published["epochs"] * repeats,
            batch_size=published["batch_size"],
            last_batch="keep",
            lr=published["lr"],
            lr_drop_epochs=TrainConfig().lr_drop_epochs if never else published["step"] * repeats,
            lr_drop=1.0 if never else 0.1,
            warmup_steps=published["warmup_steps"],
            warmup_ratio=published["warmup_ratio"],
            weight_decay=published["weight_decay"],
            clip_norm=published["max_norm"],
        ),
        "data": DataConfig(min_duration=published["min_video_len"]),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_is_as_published(name: str) -> None:
    recipe, published = read_recipe(f"r2-tuning-{name}"), {**BASE, **CONFIGS[name]}
    assert published.keys() == BASE.keys()
    for section, expected in _recipe_of(published).items():
        values, expected_values = (dataclasses.asdict(part) for part in (getattr(recipe, section), expected))
        for field in _OURS.get(section, ()):
            del values[field], expected_values[field]
        assert values == expected_values, section
    assert recipe.train.precision == "16-mixed"
    assert recipe.train.val_every == published["times"]  # published runs validate after each of their epochs
    # The drop comes once: a second one would come after the end.
    assert published["step"] is None or 2 * recipe.train.lr_drop_epochs >= recipe.train.epochs
    fps = published["fps"]
    assert recipe.backbone.clip_seconds == (1 / fps if isinstance(fps, float) else 1.6667)
    assert recipe.backbone.frames_per_clip == 1 and recipe.backbone.pooling == "tokens" and recipe.data.round_clips
    assert recipe.data.binding == (name if name in ("tvsum", "youtube-highlights") else "r2-tuning")
    # A key of the published hook EvalHook; TVSum's metric has another name there.
    assert recipe.train.best_by in ("MR-full-mAP", "MR-full-R1@0.5", "MR-full-R1@0.7", "mAP", "mAP@top5")


def test_steps_of_the_qvhighlights_run() -> None:
    """Check that no sample is left out: 226 steps for one pass in batches of 32, as in a published loader."""
    config = read_recipe("r2-tuning-qvhighlights").train
    assert _steps(7218, dataclasses.replace(config, batch_size=32)) == 226
    assert _steps(7218, dataclasses.replace(config, batch_size=32, last_batch="drop")) == 225
    assert _steps(4 * 7218, config) == 226  # a published epoch


# UniVTG --------------------------------------------------------------------------------------------------------------

_UNIVTG: dict[str, Any] = {
    # main/config.py; scripts/cotrain.sh and scripts/qvhl_pretrain.sh set the rest
    "nheads": 8,
    "dim_feedforward": 1024,
    "clip_length": 2.0,
    "input_dropout": 0.5,
    "droppath": 0.1,
    "hidden_dim": 1024,
    "enc_layers": 4,
    "t_feat_dim": 512,
    "eos_coef": 0.1,
    "b_loss_coef": 10.0,
    "f_loss_coef": 10.0,
    "lr": 1e-4,
    "wd": 1e-4,
    "lr_warmup": 10,
    "grad_clip": 0.1,
    "eval_epoch": 5,
    "nms_thd": 0.7,
    "max_before_nms": 1000,
    "max_after_nms": 10,
}
UNIVTG_CONFIGS: dict[str, dict[str, Any]] = {
    "univtg-omni": {
        "v_feat_dim": 512,  # cotrain.sh says SlowFast too; the released file reads CLIP alone
        "g_loss_coef": 1.0,
        "s_loss_intra_coef": 0.1,
        "s_loss_inter_coef": 0.1,
        "bsz": 64 * 4,
        "n_epoch": 100,
        "lr_drop": 200,
        "eval_mode": None,
        "round_multiple": 1,
        "main_metric": "MR-full-R1@0.3-key",
    },
    "univtg-qvhighlights": {
        "v_feat_dim": 2304 + 512,
        "g_loss_coef": 0.0,
        "s_loss_intra_coef": 0.0,
        "s_loss_inter_coef": 0.0,
        "bsz": 32,
        "n_epoch": 200,
        "lr_drop": 80,
        "eval_mode": "add",
        "round_multiple": -1,
        "main_metric": "MR-full-mAP-key",
    },
}


@pytest.mark.parametrize("name", UNIVTG_CONFIGS)
def test_every_field_of_univtg_is_as_published(name: str) -> None:
    recipe, published = read_recipe(name), {**_UNIVTG, **UNIVTG_CONFIGS[name]}
    assert recipe.side_tuner == "univtg" and recipe.data.binding == "univtg"
    assert recipe.model == UniVTGConfig(
        video_dim=published["v_feat_dim"],
        text_dim=published["t_feat_dim"],
        hidden=published["hidden_dim"],
        heads=published["nheads"],
        layers=published["enc_layers"],
        ffn=published["dim_feedforward"],
        anchor=published["clip_length"] / 2,
        dropout=published["input_dropout"],
        droppath=published["droppath"],
    )
    assert recipe.losses == UniVTGLossConfig(
        weight_class=published["f_loss_coef"],
        weight_l1=published["b_loss_coef"],
        weight_giou=published["g_loss_coef"],
        weight_saliency=published["s_loss_intra_coef"],
        weight_alignment_batch=published["s_loss_inter_coef"],
        background_weight=published["eos_coef"],
    )
    assert recipe.decode == UniVTGDecodeConfig(
        max_moments=published["max_after_nms"],
        max_windows=published["max_before_nms"],
        nms_threshold=published["nms_thd"],
        unit="duration",
        round_to_clips=published["round_multiple"] > 0,
        saliency="sum" if published["eval_mode"] == "add" else "cosine",
        keep_all=True,
    )
    steps = {"univtg-omni": 435, "univtg-qvhighlights": 226}[name]  # of an epoch
    assert recipe.train == TrainConfig(
        epochs=published["n_epoch"],
        batch_size=published["bsz"],
        last_batch="keep",
        lr=published["lr"],
        lr_drop_epochs=published["lr_drop"],
        warmup_steps=published["lr_warmup"] * steps,
        weight_decay=published["wd"],
        clip_norm=published["grad_clip"],
        val_every=published["eval_epoch"],
        best_by=published["main_metric"].removesuffix("-key"),
        out=f"runs/{name}",
    )
    assert recipe.backbone.clip_seconds == published["clip_length"] and len(recipe.backbone.chosen) == 1


def test_the_recipe_of_omni_trains_on_the_features_of_the_imported_model() -> None:
    backbone = read_recipe("univtg-omni").backbone
    assert (backbone.name, backbone.pooling, backbone.frames_per_clip) == ("clip", "joint-video", 1)
    assert read_recipe("univtg-omni").data.round_clips
