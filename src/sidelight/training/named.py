"""The models that a name stands for: facts for people, files to download, and how the files become a checkpoint.

``sidelight models`` prints :data:`NAMED_MODELS`. To add a model, add an entry there. A model that ships with sidelight
is a folder of ``weights/`` and has no ``make``; any other has a function that writes the checkpoint's folder from
the downloaded files. The folder is written once, into the cache.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sidelight.backbones.released import SIGLIP2_B32, WEIGHTS
from sidelight.core.messages import did_you_mean, no_such
from sidelight.io.download import fetch
from sidelight.io.files import replacing_folder, require_writable_folder
from sidelight.io.pinned import Download, HubFile, is_here, models_cache, remove
from sidelight.models.decode.zero_shot import METHODS
from sidelight.models.zero_shot import ZERO_SHOT
from sidelight.training.checkpoint import FORMAT, PACKAGED, Checkpoint, is_complete
from sidelight.training.convert import FAMILY, convert_r2_tuning
from sidelight.training.convert_univtg import OMNI, imported_omni
from sidelight.training.published import CLIP_WEIGHTS, R2_REPOSITORY, R2_TUNING, PublishedRun

DEFAULT_MODEL = "r2-tuning/qvhighlights"
"""The model that answers where no other is named."""
ONLY_TO_TRY = "to only try sidelight out, --model shapes needs no download, but knows nothing except drawn shapes"
"""Clause of announcements and messages about downloads."""
EXAMPLE = "a person opens the door"
"""A query for models that were trained on videos of people."""
NEUTRAL_TOPIC = "the highlights of the video"
"""The sentence for which a model that reads sentences summarizes a video, where the user gives none."""


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model with a name: facts about it, and where it comes from."""

    answers: str
    """What it answers about, in a few words."""
    trained_on: str
    """Data set, or "nothing" for a model without training."""
    backbone: str
    """Name of the backbone for people."""
    languages: str
    """Languages of queries."""
    licence: str
    """Licence of the weights, and of the labels that they were trained on if it restricts their use."""
    download: Download | None = None
    """The model's own file; None if it has none to download."""
    weights: str = ""
    """Backbone weights: a key of :data:`sidelight.backbones.released.WEIGHTS`; "" if they ship with sidelight."""
    make: Callable[[Sequence[Path], Path], object] | None = None
    """Write the checkpoint into a new folder: (the downloaded files of the model, the folder); None if it ships."""
    version: Any = None
    """Plain values on which the checkpoint depends besides the files. Other values make another folder."""
    imported: Callable[[], Path] | None = None
    """Return the folder of a checkpoint that the user converted; raises ValueError that says how, if it is not here."""
    special: bool = False
    """Knows one kind of video only, and is listed only when all models are."""
    example: str = EXAMPLE
    """A query that it can answer, for people who try it out."""
    topic: str = NEUTRAL_TOPIC
    """The sentence for which the model summarizes a video, where the user gives none."""

    @property
    def downloads(self) -> tuple[Download, ...]:
        """Return all that the model needs and that does not ship: its own file, then the backbone's weights."""
        own = (self.download,) if self.download else ()
        return (*own, WEIGHTS[self.weights]) if self.weights else own

    @property
    def size(self) -> int:
        """Return the bytes of all downloads."""
        return sum(download.size for download in self.downloads)

    def is_here(self) -> bool:
        """Check whether the model answers without a network."""
        if self.imported is not None:
            try:
                self.imported()
            except ValueError:
                return False
        return all(map(is_here, self.downloads))


# entries ------------------------------------------------------------------------------------------------------------

# Run of R2-Tuning -> what its videos show, and the name of its data set.
_R2_FACTS = {
    "qvhighlights": ("moments and highlights of vlogs and news", "QVHighlights"),
    "charades-sta": ("moments of people at home", "Charades-STA"),
    "tacos": ("moments of cooking, one kitchen", "TACoS"),
    "ego4d-nlq": ("moments seen by a camera on the head", "Ego4D-NLQ"),
}
_R2_EXAMPLES = {
    "qvhighlights": "a woman talks to the camera in her car",
    "tacos": "the person peels a carrot",
    "ego4d-nlq": "what did I put in the drawer?",
}
_R2_HIGHLIGHTS = {"youtube-highlights-": "YouTube Highlights", "tvsum-": "TVSum"}
_TVSUM = {
    "BK": "bee keeping",
    "BT": "bike tricks",
    "DS": "dog shows",
    "FM": "flash mobs",
    "GA": "grooming an animal",
    "MS": "making a sandwich",
    "PK": "parkour",
    "PR": "parades",
    "VT": "changing a tyre",
    "VU": "freeing a vehicle",
}


def r2_tuning_model(run: str, published: PublishedRun) -> NamedModel:
    """Return the entry of a published run of R2-Tuning.

    Args:
        run: name of the run.
        published: its facts.
    """
    prefix = next((prefix for prefix in _R2_HIGHLIGHTS if run.startswith(prefix)), "")
    domain = run.removeprefix(prefix)
    if prefix:
        answers, trained_on = f"highlights: {_TVSUM.get(domain, domain)}", f"{_R2_HIGHLIGHTS[prefix]}, {domain}"
    else:
        answers, trained_on = _R2_FACTS.get(run, ("moments and highlights", run))
    # The labels of QVHighlights, which the weights were trained on, are CC BY-NC-SA 4.0.
    licence = "BSD-3-Clause (labels CC BY-NC-SA)" if run == "qvhighlights" else "BSD-3-Clause"
    return NamedModel(
        answers=answers,
        trained_on=trained_on,
        backbone="CLIP ViT-B/32",
        languages="English",
        licence=licence,
        download=Download(
            title=f"R2-Tuning, trained on {trained_on}",
            licence=licence,
            repository=R2_REPOSITORY,
            files=(
                HubFile(
                    path=published.file,
                    sha256=published.file.rpartition("-")[2].removesuffix(".pth"),
                    size=7_400_000 if prefix else 11_400_000,  # of the tensors; the files hold a little more
                ),
            ),
        ),
        weights=CLIP_WEIGHTS,
        make=partial(_make_r2_tuning, run),
        version=[asdict(published), published.features().to_dict()],
        special=bool(prefix),
        example=_TVSUM.get(domain, domain) if prefix else _R2_EXAMPLES.get(run, EXAMPLE),
        topic=_TVSUM.get(domain, domain) if prefix else NEUTRAL_TOPIC,
    )


def _make_r2_tuning(run: str, files: Sequence[Path], out: Path) -> None:
    convert_r2_tuning(files[0], out, run=run)


def _make_zero_shot(backbone: str, files: Sequence[Path], out: Path) -> None:
    from sidelight.backbones import load_backbone

    with replacing_folder(out) as beside:
        Checkpoint.zero_shot(load_backbone(backbone, pooling="joint").spec).save_pretrained(beside)


def zero_shot_model(name: str, *, weights: str, backbone: str, languages: str, licence: str) -> NamedModel:
    """Return the entry of grounding without training on a backbone.

    Args:
        name: key of :data:`sidelight.backbones.BACKBONES`.
        weights: key of :data:`sidelight.backbones.released.WEIGHTS`.
        backbone: name of the backbone for people.
        languages: languages of queries.
        licence: licence of the weights.
    """
    return NamedModel(
        answers="moments of anything, less exactly",
        trained_on="nothing",
        backbone=backbone,
        languages=languages,
        licence=licence,
        weights=weights,
        make=partial(_make_zero_shot, name),
        version=asdict(METHODS["persistence-smooth"]),
    )


NAMED_MODELS: dict[str, NamedModel] = {
    "shapes": NamedModel(
        answers="drawn shapes only; for trying things out",
        trained_on="the shapes world",
        backbone="shapes",
        languages="English, 102 words",
        example="a red ball is moving left",
        topic="something moves",
        licence="Apache-2.0",
    ),
    **{f"{FAMILY}/{run}": r2_tuning_model(run, published) for run, published in R2_TUNING.items()},
    OMNI: NamedModel(
        answers="moments and highlights of many kinds",
        trained_on="six sets, among them QVHighlights",
        backbone="CLIP ViT-B/32",
        languages="English",
        licence="MIT (labels of QVHighlights CC BY-NC-SA)",
        weights=CLIP_WEIGHTS,
        imported=imported_omni,
    ),
    f"{ZERO_SHOT}/clip": zero_shot_model(
        "clip", weights=CLIP_WEIGHTS, backbone="CLIP ViT-B/32", languages="English", licence="MIT"
    ),
    f"{ZERO_SHOT}/siglip2": zero_shot_model(
        "siglip2",
        weights=SIGLIP2_B32,
        backbone="SigLIP 2 B/32-256",
        languages="109, mostly English",
        licence="Apache-2.0",
    ),
}
"""The models that can be named, by name."""


# from a name to a checkpoint ------------------------------------------------------------------------------------------


def named_checkpoint(name: str | Path, *, backbone: bool = True, revision: str | None = None) -> Path | None:
    """Return the folder of the checkpoint that a name stands for.

    The first call downloads what is missing (:func:`sidelight.io.download.fetch`) and writes the checkpoint into
    :func:`sidelight.io.pinned.models_cache`. Later calls use no network.

    Args:
        name: a key of :data:`NAMED_MODELS`.
        backbone: fetch the backbone's weights too, so that one announcement covers both.
        revision: refused for these models, whose revision is fixed.

    Returns:
        The folder, or None if the name is not of this kind: a folder of the user's, or a hub id.

    Raises:
        DownloadError: if files are missing and cannot be downloaded.
        ValueError: for an unknown name of a known family; if a file has other content than expected; if the cache
            cannot be written.
    """
    model = find_model(name)
    if model is None:
        return None
    name = str(name)
    if revision is not None:
        raise ValueError(f"revision must be left out for {name}, whose files are fixed; it goes with a hub id")
    if model.imported is not None:
        folder = model.imported()
        if backbone:
            fetch(model.downloads, needed_by=f"the backbone of {name}", hint=ONLY_TO_TRY)
        return folder
    if model.make is None:
        return PACKAGED / name
    # A later version of sidelight that makes another checkpoint of the same file must not use this version's.
    version = json.dumps([FORMAT, model.version], sort_keys=True)
    folder = models_cache() / f"{name.replace('/', '-')}-{hashlib.sha256(version.encode()).hexdigest()[:12]}"
    if not is_complete(folder):
        _require_writable(folder, name)
        downloads = model.downloads if backbone else model.downloads[: bool(model.download)]
        folders = fetch(downloads, needed_by=f"the model {name}", hint=ONLY_TO_TRY)
        files = [folders[0] / file.path for file in model.download.files] if model.download else []
        _write_checkpoint(model.make, files, folder, name)
    elif backbone:
        weights = model.downloads[1:] if model.download else model.downloads
        fetch(weights, needed_by=f"the backbone of {name}", hint=ONLY_TO_TRY)
    return folder


def _require_writable(folder: Path, name: str) -> None:
    """Refuse, before a download, a cache that cannot be written."""
    try:
        require_writable_folder(folder)
    except ValueError as error:
        raise ValueError(
            f"{name} cannot be kept in {folder.parent} ({error}): set SIDELIGHT_CACHE to a folder that can be written"
        ) from None


def _write_checkpoint(
    make: Callable[[Sequence[Path], Path], object], files: Sequence[Path], folder: Path, name: str
) -> None:
    """Write the checkpoint of a model into its folder, unless another process has written it meanwhile.

    Args:
        make: the function of the model's entry.
        files: downloaded files of the model.
        folder: where the checkpoint lies.
        name: the model, for messages.

    Raises:
        ValueError: if a file is not the model's, or the folder cannot be written.
    """
    if folder.is_dir() and not is_complete(folder):
        shutil.rmtree(folder, ignore_errors=True)  # somebody removed a file of it
    try:
        make(files, folder)
    except ValueError:
        if not is_complete(folder):
            raise
    except OSError as error:
        if not is_complete(folder):
            raise ValueError(
                f"{name} cannot be kept in {folder.parent} ({error.strerror or error}); make room there, or set "
                "SIDELIGHT_CACHE to a folder that can be written"
            ) from None


def find_model(name: str | Path) -> NamedModel | None:
    """Return the entry of a name; None for a folder of the user's, a hub id, or a name that is not known.

    Raises:
        ValueError: for an unknown name, such as ``shaeps``, or one of a known family, such as ``r2-tuning/x``.
    """
    if isinstance(name, Path):  # as the name was written: ./r2-tuning/qvhighlights is a folder of the user's
        return None
    if name in NAMED_MODELS:
        return NAMED_MODELS[name]
    if "/" not in name and not Path(name).is_dir():
        raise ValueError(
            f"there is no model {name!r}; expected a name that `sidelight models` lists, the folder of a checkpoint, "
            f"or a hub id such as user/model{did_you_mean(name, NAMED_MODELS)}"
        )
    family = name.partition("/")[0]
    families = {known.partition("/")[0] for known in NAMED_MODELS if "/" in known} - {ZERO_SHOT}  # of any backbone
    if "/" in name and family in families and not Path(name).is_dir():
        raise ValueError(no_such("model", name, [known for known in NAMED_MODELS if known.startswith(f"{family}/")]))
    return None


def topic_of(name: str) -> str:
    """Return the sentence for which a model summarizes a video, where the user gives none.

    Args:
        name: a model, by any name.
    """
    return NAMED_MODELS[name].topic if name in NAMED_MODELS else NEUTRAL_TOPIC


def require_model(name: str) -> NamedModel:
    """Return the entry of a name.

    Raises:
        ValueError: if the name is not in :data:`NAMED_MODELS`.
    """
    if name not in NAMED_MODELS:
        raise ValueError(f"{no_such('model', name, [n for n, m in NAMED_MODELS.items() if not m.special])}")
    return NAMED_MODELS[name]


def remove_model(name: str) -> tuple[int, list[str]]:
    """Delete the files of a model: its download, its checkpoint, and backbone weights that no other model here needs.

    Returns:
        The bytes that were freed, and a sentence about each download that stays.

    Raises:
        ValueError: if there is no such model, it ships with sidelight, or it is not here.
    """
    model = require_model(name)
    if not model.make and not model.imported:
        raise ValueError(f"{name} comes with sidelight and cannot be removed")
    freed, kept = 0, []
    for folder in _checkpoints(name):
        freed += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        shutil.rmtree(folder)
    own = (model.download,) if model.download else ()
    for download in model.downloads:
        others = [n for n, other in NAMED_MODELS.items() if n != name and download in other.downloads]
        users = [n for n in others if _has_own_files(n)]
        if download not in own and users:
            kept.append(f"{download.title} stays, because {users[0]} needs it")
        else:
            freed += remove(download)
            if is_here(download):
                kept.append(f"{download.title} stays in the cache of the hub's client (hf cache)")
    if not freed:
        raise ValueError("; ".join([f"{name} has no files on this machine that can be deleted", *kept]))
    return freed, kept


def _has_own_files(name: str) -> bool:
    """Check whether a model's own file or its checkpoint is here."""
    model = NAMED_MODELS[name]
    if model.download is not None and is_here(model.download):
        return True
    return bool(_checkpoints(name))


def _checkpoints(name: str) -> list[Path]:
    """Return the folders of a model's checkpoint in the cache, of this version of sidelight and of others."""
    stem = name.replace("/", "-")
    return [path for form in (stem, f"{stem}-{'[0-9a-f]' * 12}") for path in models_cache().glob(form)]
