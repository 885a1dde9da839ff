"""`sidelight train`, `pretrain`, `summary` and `predict`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sidelight.cli.shared import add_backbone_weights, add_model, check_writable

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_train(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    from sidelight.training.recipe import add_recipe_arguments

    parser.usage = "sidelight train RECIPE.yaml [--resume] [--check] [--train.lr LR ...]"
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    check = "look at paths, features and shapes, do two steps and two batches of validation, say how long it will take"
    parser.add_argument("--check", action="store_true", help=f"{check}; nothing is written")
    add_recipe_arguments(parser, arguments)


def run_train(args: Namespace, parser: ArgumentParser) -> int:
    from sidelight.training.loop import train
    from sidelight.training.recipe import file_of, naming, recipe_from

    recipe = recipe_from(args, parser)
    if args.check:
        from sidelight.training.check import check_run

        with naming(file_of(args)):
            checked = check_run(recipe, resume=args.resume)
        for name, text in checked.lines():
            print(f"{name:<12}{text}")
        print(f"ready; nothing was written to {recipe.train.out}")
        return 0
    try:
        with naming(file_of(args)):
            progress = train(recipe, resume=args.resume)
    except KeyboardInterrupt:
        print(f"go on with --resume and the same options; see {recipe.train.out}", file=sys.stderr)
        raise
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return 0  # the first process speaks for all
    if recipe.data.val:
        print(f"best epoch {progress.best_epoch}: {recipe.train.best_by} {progress.best:.2f}; see {recipe.train.out}")
    else:
        print(f"trained {progress.step} steps without validation; see {recipe.train.out}/last")
    return 0


def add_pretrain(parser: ArgumentParser) -> None:
    from sidelight.backbones.shapes.pretrain import PretrainConfig

    parser.usage = "sidelight pretrain RECIPE.yaml [--steps STEPS ...]"
    parser.add_argument("--config", action="config", help="a YAML file with the fields below")
    parser.add_class_arguments(PretrainConfig)


def run_pretrain(args: Namespace, parser: ArgumentParser) -> int:
    import dataclasses

    from sidelight.backbones.shapes.pretrain import PretrainConfig, pretrain

    built = parser.instantiate(args)
    pretrain(PretrainConfig(**{f.name: built[f.name] for f in dataclasses.fields(PretrainConfig)}))
    return 0


def add_recipes(parser: ArgumentParser) -> None:
    del parser


def run_recipes(args: Namespace, _: ArgumentParser) -> int:
    from sidelight.recipes import recipe_names, summary_of

    del args
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        print(f"{name:<{width}}  {summary_of(name)}")
    return 0


def add_summary(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    from sidelight.training.recipe import add_recipe_arguments

    parser.usage = "sidelight summary RECIPE.yaml [--model.hidden 128 ...]"
    add_recipe_arguments(parser, arguments)


def run_summary(args: Namespace, parser: ArgumentParser) -> int:
    from sidelight.models.layers import parameter_table
    from sidelight.models.registry import build_model
    from sidelight.training.recipe import recipe_from

    recipe = recipe_from(args, parser)
    values = recipe.to_dict()["model"]
    model = build_model(recipe.side_tuner, values)
    rows = parameter_table(model)
    reads = f"{values['levels']} levels of {recipe.backbone.name}, {recipe.backbone.pooling}"
    print(f"{recipe.side_tuner}: reads {reads}, widths {values['video_dim']} (video) and {values['text_dim']} (query)")
    for name, count in rows:
        print(f"{name:<32}{count:>12,}")
    total = sum(count for _, count in rows)
    print(f"{'trainable parameters':<32}{total:>12,}  = {total / 2**20:.2f} x 2^20")
    return 0


def add_predict(parser: ArgumentParser) -> None:
    add_model(parser)
    add_backbone_weights(parser)
    parser.add_argument("--annotations", required=True, help="JSONL in the QVHighlights form")
    parser.add_argument("--videos", help="folder with the video files, named by their ids")
    features = "feature store, or a layout that a paper released; with --videos what a store lacks is extracted into it"
    parser.add_argument("--features", help=features)
    parser.add_argument("--out", required=True, help="JSONL in the QVHighlights submission form")


def run_predict(args: Namespace, _: ArgumentParser) -> int:
    import tempfile

    from sidelight.data.annotations import read_annotations, write_submissions
    from sidelight.features.open import FeatureSource, open_features_for
    from sidelight.io.runtime import usable_device
    from sidelight.training.checkpoint import Checkpoint
    from sidelight.training.convert import published_checkpoint
    from sidelight.training.dataset import GroundingDataset
    from sidelight.training.predict import predict

    if not args.videos and not args.features:
        raise ValueError("give --videos (a folder with the files) or --features (a feature store), or both")
    check_writable(args.out, args.annotations)
    annotations = read_annotations(args.annotations)
    device = usable_device(args.device)
    checkpoint = Checkpoint.from_pretrained(published_checkpoint(args.model) or args.model).to(device)
    with tempfile.TemporaryDirectory() as temporary:
        source = FeatureSource.of_spec(
            checkpoint.features, args.features or temporary, videos=args.videos, weights=args.backbone_weights
        )
        features = open_features_for(annotations, source, device=device, progress=True)
        submissions = predict(
            checkpoint.model,
            GroundingDataset(annotations, features, targets=False),
            checkpoint.decode,
            window_clips=checkpoint.window_clips,
            progress=True,
        )
    write_submissions(args.out, submissions)
    print(f"wrote {len(submissions)} predictions to {args.out}")
    return 0
