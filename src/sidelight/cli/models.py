"""`sidelight models` and `sidelight cache`: which models there are, bring and remove their files, tidy the cache."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from sidelight.cli.parser import Group, Option
from sidelight.cli.shared import Device, File, JsonFile, report_to, write_json

if TYPE_CHECKING:
    from sidelight.training.named import NamedModel

ModelName = Annotated[str, Option("NAME")]


def list_models(
    *, all: bool = False, measure: bool = False, device: Device | None = None, json: JsonFile | None = None
) -> None:
    """List the models that --model can name.

    Args:
        all: list the models for highlights of one kind of video too.
        measure: measure the seconds that a minute of video takes on this machine, for each model whose files are
            here, and keep them for later tables.
    """
    from sidelight.cli.speeds import measured_speeds
    from sidelight.training.named import NAMED_MODELS

    listed = {name: model for name, model in NAMED_MODELS.items() if all or not model.special}
    here = [name for name, model in listed.items() if model.is_here()]
    speeds = measured_speeds(here, measure=measure, device=device)
    rows = [_facts(name, model, speeds.get(name)) for name, model in listed.items()]
    with report_to(json):
        _print_rows(rows)
        if others := len(NAMED_MODELS) - len(listed):
            print(f"\n{others} more models know the highlights of one kind of video: sidelight models --all")
        print("\nsidelight models pull NAME downloads a model, sidelight ground VIDEO QUERY --model NAME uses it.")
        if not measure and len(speeds) < len(here):
            print("sidelight models --measure fills the column s per min: seconds for a minute of video, here.")
    write_json(json, rows)


def pull(name: ModelName) -> None:
    """Download a model and its backbone, so that it answers without a network.

    Args:
        name: a name that `sidelight models` lists.
    """
    from sidelight.core.messages import size_of
    from sidelight.training.named import named_checkpoint, require_model

    model = require_model(name)
    named_checkpoint(name)
    size = size_of(model.size) if model.downloads else "comes with sidelight"
    print(f'{name} is here ({size}); use it: sidelight ground VIDEO "a sentence" --model {name}')


def remove(name: ModelName) -> None:
    """Delete the files of a model. Backbone weights that another model here needs stay.

    Args:
        name: a name that `sidelight models` lists.
    """
    from sidelight.core.messages import size_of
    from sidelight.training.named import remove_model

    freed, kept = remove_model(name)
    print(f"removed {name}, {size_of(freed)}")
    for sentence in kept:
        print(sentence)


def import_files(files: list[File]) -> None:
    """Take over files that were downloaded by hand, or on another machine.

    Each file is recognised by its SHA-256, and copied into the cache.

    Args:
        files: the files, or folders that hold them.
    """
    from sidelight.io.pinned import import_file
    from sidelight.training.named import NAMED_MODELS

    paths: list[Path] = []
    for given in map(Path, files):
        if not given.exists():
            raise ValueError(f"{given} does not exist; give the file that you downloaded, or its folder")
        paths += sorted(path for path in given.iterdir() if path.is_file()) if given.is_dir() else [given]
    downloads = list(dict.fromkeys(download for model in NAMED_MODELS.values() for download in model.downloads))
    names = {file.name for download in downloads for file in download.files}
    imported = set()
    for path in paths:
        if path.name not in names and path not in map(Path, files):
            continue  # another file in a folder
        for download in import_file(path, downloads):
            imported.add(download)
            print(f"{path.name}: {download.title}")
    if not imported:
        raise ValueError(f"{files[0]} holds no file of a model that sidelight knows (`sidelight models` lists them)")
    for name, model in NAMED_MODELS.items():
        if imported & set(model.downloads):
            if missing := [file.name for download in model.downloads for file in download.missing_files()]:
                if imported & set(model.downloads[:1]):
                    print(f"{name} still needs {', '.join(missing)}")
            elif not model.special:
                print(f"{name} is complete")


def _facts(name: str, model: NamedModel, speed: float | None) -> dict[str, object]:
    """Return the row of a model in plain values."""
    return {
        "name": name,
        "answers": model.answers,
        "trained_on": model.trained_on,
        "backbone": model.backbone,
        "languages": model.languages,
        "licence": model.licence,
        "bytes": {download.title: download.size for download in model.downloads},
        "by_hand": model.imported is not None,
        "here": model.is_here(),
        "seconds_per_minute": speed,
    }


_HEADS = ("model", "answers about", "trained on", "backbone", "queries", "licence", "size", "here", "s per min")


def _print_rows(rows: list[dict[str, object]]) -> None:
    """Print a table, or one paragraph per model where the terminal is narrower than the table."""
    from rich.console import Console

    from sidelight.core.messages import size_of
    from sidelight.training.named import DEFAULT_MODEL

    lines = []
    for row in rows:
        sizes = row["bytes"]
        assert isinstance(sizes, dict)
        speed = row["seconds_per_minute"]
        name = f"{row['name']} (default)" if row["name"] == DEFAULT_MODEL else str(row["name"])
        facts = [str(row[key]) for key in ("answers", "trained_on", "backbone", "languages", "licence")]
        parts = [size_of(size) if size else "?" for size in sizes.values()]
        parts += ["a file that you bring"] if row["by_hand"] else []
        size = " + ".join(parts) or "ships"
        lines.append([name, *facts, size, "yes" if row["here"] else "no", "" if speed is None else f"{speed:.2g}"])
    widths = [max(map(len, column)) for column in zip(_HEADS, *lines, strict=True)]
    if sys.stdout.isatty() and Console().width < sum(widths) + 2 * len(widths) - 2:
        for name, answers, trained_on, backbone, queries, licence, size, here, speed in lines:
            about = f"trained on {trained_on}, backbone {backbone}, queries in {queries}"
            place = f"{size}, {'here' if here == 'yes' else 'not here'}"
            place += f", {speed} s per minute of video" if speed else ""
            print(f"{name}: {answers}\n    {about}\n    {licence}; {place}")
        return
    for cells in (_HEADS, *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


models = Group(
    "List the models, download them, bring them by hand, remove them.",
    {"pull": pull, "remove": remove, "import": import_files},
    default=list_models,
)


# the cache ----------------------------------------------------------------------------------------------------------


def show_cache(*, json: JsonFile | None = None) -> None:
    """Show where the cache is, and how large its parts are."""
    from sidelight.core.messages import count_of, size_of
    from sidelight.io.cache import PARTS, cache_sizes, feature_limit

    sizes = cache_sizes()
    with report_to(json):
        print(f"{sizes['features'][0].parent} (SIDELIGHT_CACHE names another folder)")
        for part, (_, size, count) in sizes.items():
            print(f"  {part:<8}  {size_of(size):>9}  {count_of(count, 'file'):>12}  {PARTS[part]}")
        print(
            f"Features may take {size_of(feature_limit())}; those that were not used for longest are deleted first "
            "(sidelight cache limit SIZE)."
        )
    rows = {
        part: {"folder": str(folder), "bytes": size, "files": count} for part, (folder, size, count) in sizes.items()
    }
    write_json(json, {**rows, "features_limit": feature_limit()})


def clear(part: Literal["features", "models", "stores", "all"]) -> None:
    """Delete a part of the cache.

    Args:
        part: features (computed again when needed), models (downloaded or imported again), stores (copied again), or
            all.
    """
    from sidelight.core.messages import size_of
    from sidelight.io.cache import PARTS, clear_cache

    for name in PARTS if part == "all" else [part]:
        print(f"deleted {name}: {size_of(clear_cache(name))}")


def limit(size: Annotated[str, Option("SIZE")]) -> None:
    """Set how much room the features of videos may take.

    Args:
        size: such as 20GB or 500MB; 0 keeps no features.
    """
    from sidelight.core.messages import size_of
    from sidelight.io.cache import parse_size, set_feature_limit

    number = parse_size(size, name="the limit")
    deleted = set_feature_limit(number)
    print(f"features may take {size_of(number)}" + (f"; deleted {size_of(deleted)}" if deleted else ""))


cache = Group(
    "Show the cache, its size and its limit, or clear it.", {"clear": clear, "limit": limit}, default=show_cache
)
