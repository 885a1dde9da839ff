"""Every command survives a disk that fails at any point: nothing is damaged or half-written, and a second run works.

For every command that writes, the n-th write, rename or sync fails, for every n until the command succeeds: once as on
a full disk, on which all later ones fail too, and once as on a bad block, where only this one fails.
`SIDELIGHT_FAULTS=all pytest -s tests/cli/test_write_faults.py` tries every n, which takes long, and prints the number
of faults of each command. Without the variable, a few n of each command are tried, other ones each day.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

from sidelight.backbones import load_backbone
from sidelight.cli.main import COMMANDS, command_of, main
from sidelight.cli.parser import Group, is_configured, path_kind
from sidelight.features.store import FeatureStore
from sidelight.io.files import LOCK
from sidelight.models.decode.sdst import DecodeConfig
from sidelight.models.registry import build_model
from sidelight.training.checkpoint import FILES, Checkpoint
from tests.backbones import test_clip as tiny_clip
from tests.backbones import test_i3d as tiny_i3d
from tests.backbones import test_internvideo2 as tiny_internvideo2
from tests.faults import FailingDisk
from tests.training import test_convert_univtg as tiny_univtg

SMALL = {"video_dim": 32, "text_dim": 32, "hidden": 16, "heads": 2, "moment_queries": 3, "roi_bins": 2}
RECIPE = """
model: {video_dim: 32, text_dim: 32, hidden: 16, heads: 2, moment_queries: 3, roi_bins: 2}
data: {train: IN/few.jsonl, val: IN/few.jsonl, train_features: IN/store}
train: {epochs: 1, batch_size: 4, save_every: 1, accelerator: cpu, out: run}
"""
PRETRAINING = """
world: world
out: run
videos: 1
val_videos: 1
drawn_scenes: 1
drawn_clips: 1
steps: 1
batch: 2
warmup: 1
model: {resolution: 32, width: 16, depth: 2, heads: 2, text_width: 16, text_depth: 2, text_heads: 2, joint: 8}
"""

# In one process, the losses of a run depend on the runs before, in the last bit: tensors lie at other addresses.
RUN_FILES = ("events.out*", "state.pt", "losses.jsonl", "config.json", "model.safetensors")


ADD = "library add lib IN/videos --model IN/model --backbone-weights IN/backbone --device cpu --workers 0"
TABLES = ("*.lance", "latest_version_hint.json", "*.manifest", "*.txn", "*.arrow", "*.bin", "library.json")
"""LanceDB writes without Python, and names its files at random."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command line, and what it writes."""

    line: str
    """The arguments. IN is the folder of the inputs; all other paths are in the current folder."""
    old: tuple[str, ...] = ()
    """Files that exist before, which the command replaces."""
    begins: str = ""
    """A command line that runs before, on a disk that does not fail."""
    again: str = ""
    """The command line of the second run, where it is another one."""
    varies: tuple[str, ...] = ()
    """Patterns of files whose content differs from run to run."""
    in_turn: bool = False
    """Slow: an operation fails in one of the two ways, in turn, instead of in both."""
    keeps_parts: bool = False
    """An interrupted run leaves a hidden folder, with which the next one goes on."""


CASES = {
    "ground": Case(
        line="ground IN/videos/VIDEO.mp4 star --model IN/model --backbone-weights IN/backbone --device cpu "
        "--json a.json --plot a.png",
        old=("a.json", "a.png"),
    ),
    "ground --clips": Case(  # of a folder
        line="ground IN/videos star --model IN/model --backbone-weights IN/backbone --device cpu --top 1 "
        "--json a.jsonl --clips clips --report r.html",
        old=("r.html",),
        varies=("a.jsonl",),  # it grows; the next run goes on
        in_turn=True,
    ),
    "summarize": Case(
        line="summarize IN/videos/VIDEO.mp4 --topic star --model IN/model --backbone-weights IN/backbone --device cpu "
        "--json s.json --clips clips --join film.mp4 --thumbnails frames --contact-sheet sheet.png",
        old=("s.json", "film.mp4", "sheet.png"),
        in_turn=True,
    ),
    "demo": Case(
        line="demo --out demo --device cpu",
        varies=("groundings.json", ".demo.json", "groundings.png"),
        in_turn=True,
    ),
    "export": Case(line="export IN/answers.json a.srt", old=("a.srt",)),
    "train": Case(line="train IN/recipe.yaml", again="train IN/recipe.yaml --resume", varies=RUN_FILES, in_turn=True),
    "train --resume": Case(
        line="train IN/recipe.yaml --resume --train.epochs=2",
        begins="train IN/recipe.yaml",
        varies=RUN_FILES,
        in_turn=True,
    ),
    "predict": Case(
        line="predict --annotations IN/few.jsonl --features IN/store --model IN/model --backbone-weights IN/backbone "
        "--device cpu --out p.jsonl",
        old=("p.jsonl",),
    ),
    "evaluate": Case(line="evaluate IN/p.jsonl IN/few.jsonl --json e.json", old=("e.json",)),
    "compare": Case(
        line="compare IN/p.jsonl IN/p.jsonl IN/few.jsonl --resamples 100 --json c.json --plot c.png",
        old=("c.json", "c.png"),
    ),
    "calibrate": Case(line="calibrate IN/p.jsonl IN/few.jsonl --json c.json --plot c.png", old=("c.json", "c.png")),
    "data check": Case(line="data check IN/few.jsonl --features IN/store --json d.json", old=("d.json",)),
    "data import": Case(line="data import IN/t.csv --out t.jsonl", old=("t.jsonl",)),
    "extract": Case(
        line="extract IN/videos --annotations IN/few.jsonl --weights IN/backbone --device cpu --workers 0 --out store"
    ),
    "features export": Case(
        line="features export IN/store --layout sdst --annotations IN/few.jsonl --out files",
        keeps_parts=True,
        in_turn=True,
    ),
    "features import": Case(
        line="features import IN/layout --annotations IN/few.jsonl --backbone shapes --weights IN/backbone --out store"
    ),
    "shapes": Case(
        line="shapes --videos 2 --shortest 20 --longest 21 --side 128 --workers 1 --absent 1 --out world",
    ),
    "convert r2-tuning": Case(
        line="convert r2-tuning IN/r2.pth --run qvhighlights --video-dim 48 --text-dim 32 --hidden 64 --weights tiny "
        "--out model"
    ),
    "convert univtg": Case(line="convert univtg IN/univtg.ckpt --weights tiny --out model"),
    "convert internvideo2": Case(
        line="convert internvideo2 IN/internvideo2.pt --vocabulary IN/vocab.txt --heads 2 --pool-heads 4 "
        "--text-heads 2 --out model"
    ),
    "convert clip": Case(line="convert clip IN/clip.pt --vocabulary IN/words --heads 2 --text-heads 2 --out model"),
    "convert i3d": Case(line="convert i3d IN/i3d.pt --out model", in_turn=True),
    "cache": Case(line="cache --json c.json", old=("c.json",), varies=("c.json",)),
    "models": Case(line="models --json m.json", old=("m.json",), varies=("m.json",)),
    "cache limit": Case(line="cache limit 5GB"),
    "pretrain": Case(line="pretrain IN/pretrain.yaml", varies=("state.pt",), in_turn=True),
    "library add": Case(line=ADD, varies=TABLES, in_turn=True),
    "library update": Case(line="library update lib --device cpu", begins=ADD, varies=TABLES, in_turn=True),
    "library remove": Case(
        line="library remove lib IN/videos/VIDEO.mp4",
        begins=ADD,
        again="library update lib --device cpu",
        varies=TABLES,
        in_turn=True,
    ),
    "library status": Case(
        line="library status lib --json s.json", begins=ADD, old=("s.json",), varies=(*TABLES, "s.json")
    ),
    "search": Case(
        line="search lib star --device cpu --json s.json --export s.csv",
        begins=ADD,
        old=("s.json", "s.csv"),
        varies=TABLES,
        in_turn=True,
    ),
}
READ_ONLY = {
    *("models pull", "models remove", "models import"),  # tests/io/test_download.py breaks downloads
    *("cache clear", "features verify", "library verify", "recipes", "summary", "completion"),
}
ELSEWHERE = {
    *("serve", "mcp"),  # tests/server/test_malicious.py breaks the disk under an upload
    "library calibrate",  # needs more queries than these videos have; tests/library/test_calibration.py
}


def test_every_command_that_writes_is_tested() -> None:
    names = set()
    for name in COMMANDS:
        command = command_of(name)
        parts = dict(command.commands) if isinstance(command, Group) else {"": command}
        if isinstance(command, Group) and command.default is not None:
            parts[""] = command.default
        for part, function in parts.items():
            full_name = f"{name} {part}".strip()
            names.add(full_name)
            if full_name in READ_ONLY and not is_configured(function):
                hints = get_type_hints(function, include_extras=True)
                assert not any(path_kind(hint).startswith("output") for hint in hints.values()), f"{full_name} writes"
    assert names == {name for name in CASES if "--" not in name} | READ_ONLY | ELSEWHERE


@pytest.fixture(scope="module")
def inputs(
    tiny_world: Path,
    tiny_store: Path,
    tiny_backbone: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Make a small input of every kind. Tests only read them."""
    folder = tmp_path_factory.mktemp("inputs")
    rows = [json.loads(line) for line in (tiny_world / "annotations.jsonl").read_text().splitlines()]
    vid = rows[0]["vid"]
    few = [row for row in rows if row["vid"] == vid][:8]
    (folder / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    (folder / "t.csv").write_text("video,query,start,end,duration\nv,a star,0,1,9\n")
    (folder / "videos").mkdir()
    shutil.copy(tiny_world / "videos" / f"{vid}.mp4", folder / "videos")
    shutil.copy(tiny_world / "videos" / f"{vid}.mp4", folder / "videos" / "VIDEO.mp4")
    shutil.copytree(tiny_store, folder / "store")
    shutil.copytree(tiny_backbone, folder / "backbone")
    torch.manual_seed(0)
    Checkpoint(
        model=build_model("sdst", SMALL),
        model_name="sdst",
        model_config=SMALL,
        features=FeatureStore(tiny_store).spec,
        decode=DecodeConfig(),
    ).save_pretrained(folder / "model")
    assert load_backbone("shapes", weights=tiny_backbone).spec == FeatureStore(tiny_store).spec
    (folder / "recipe.yaml").write_text(RECIPE.replace("IN", str(folder)))
    (folder / "pretrain.yaml").write_text(PRETRAINING)
    torch.save({"module": tiny_internvideo2.published_model(), "epoch": 3}, folder / "internvideo2.pt")
    torch.save(tiny_clip.openai_tensors(516), folder / "clip.pt")
    shutil.copy(Path(__file__).parents[1] / "data" / "golden" / "r2" / "tiny" / "checkpoint.pth", folder / "r2.pth")
    torch.save({"model": tiny_univtg.weights(), "epoch": 4}, folder / "univtg.ckpt")
    torch.save(tiny_i3d.published_i3d(), folder / "i3d.pt")
    (folder / "words").mkdir()
    tiny_clip.write_vocabulary(folder / "words")
    (folder / "vocab.txt").write_text("\n".join(tiny_internvideo2.VOCABULARY) + "\n", encoding="utf-8")
    for name, old, new in (
        ("predict", "p.jsonl", "IN/p.jsonl"),
        ("features export", "--out files", "--out IN/layout"),
        ("ground", "--json a.json --plot a.png", "--json IN/answers.json --no-cache"),
    ):
        line = CASES[name].line.replace(old, new)
        assert main([part.replace("IN", str(folder)) for part in line.split()]) == 0
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by path; without locks, which mean nothing on the disk."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in (LOCK, "tmp"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if ".locks" not in p.parts}


class Attempt:
    """A folder in which a command runs on a disk that fails or not."""

    def __init__(self, case: Case, inputs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.case, self.inputs, self.folder, self.monkeypatch = case, inputs, folder, monkeypatch
        folder.mkdir()
        monkeypatch.setenv("SIDELIGHT_CACHE", str(folder / "cache"))
        monkeypatch.setenv("TQDM_DISABLE", "1")
        (folder / "tmp").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        monkeypatch.chdir(folder)
        for name in case.old:
            (folder / name).write_text('"older content"\n')

    def run(self, line: str, at: int = 0, code: int = errno.ENOSPC, *, stays: bool = True) -> tuple[int, FailingDisk]:
        arguments = [part.replace("IN", str(self.inputs)) for part in line.split()]
        disk = FailingDisk(self.folder, at, code, stays=stays)
        with disk.watched(self.monkeypatch):
            return main(arguments), disk

    def varies(self, path: str) -> bool:
        return any(Path(path).match(pattern) for pattern in self.case.varies)


FEW = 4
"""Faults of each command and each way, unless all are wanted."""


def places_to_try(count: int, way: int) -> Iterator[int]:
    """Yield the numbers of the operations that fail, and at last one after which the command must succeed.

    Args:
        count: operations of the whole command.
        way: 0 or 1; another selection for each.
    """
    if os.environ.get("SIDELIGHT_FAULTS") == "all":
        yield from itertools.count(1)
    random = Random(f"{date.today()} {way}")  # each failure names its operation, so that it can be tried again
    yield from sorted(random.sample(range(1, count + 1), min(FEW, count)))
    yield count + 1000


def check_files(attempt: Attempt, before: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Check that every file is as it was or as the whole command leaves it, and that no file is half-written."""
    after = files_of(attempt.folder)
    for path, content in before.items():
        assert path in after, f"{path} is gone"
        if not attempt.varies(path):
            assert after[path] in (content, expected.get(path)), f"{path} is damaged"
    for path, content in after.items():
        hidden = [part for part in Path(path).parts if part.startswith(".") and "partial" in part]
        assert not hidden or attempt.case.keeps_parts, f"{path} was left behind"
        if path not in before and not hidden and not attempt.varies(path):
            assert path in expected, f"{path} is not of the whole command"
            assert content == expected[path], f"{path} is half-written"
    for file in attempt.folder.rglob("*"):
        if file.name in ("best", "last") and all((file / name).exists() for name in FILES):
            Checkpoint.from_pretrained(file)  # compares weights and configuration
        if file.name == "losses.jsonl":  # a log that grows; only its last line may be cut
            assert all(json.loads(line) for line in file.read_text().splitlines()[:-1])
        if file.name == "state.pt":
            assert {"progress", "step"} & torch.load(file, weights_only=True).keys()
        if file.suffix == ".json" and file.is_file() and ".partial" not in str(file):
            json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.filterwarnings("always::sidelight.io.cache.CacheWarning")
@pytest.mark.parametrize("name", CASES)
def test_a_disk_that_fails_damages_nothing(
    name: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quick: None,
) -> None:
    case = CASES[name]

    def new_attempt(folder: str) -> Attempt:
        attempt = Attempt(case, inputs, tmp_path / folder, monkeypatch)
        if case.begins:
            assert attempt.run(case.begins)[0] == 0
        return attempt

    whole = new_attempt("whole")
    code, disk = whole.run(case.line)
    expected = files_of(whole.folder)
    assert code == 0 and disk.count > 0, capsys.readouterr().err
    faults = survived = 0
    for way in (0, 1)[: 1 if case.in_turn else 2]:
        for at in places_to_try(disk.count, way):
            stays = (at + way) % 2 == 0 if case.in_turn else not way
            attempt = new_attempt(f"{at}-{stays}")
            before = files_of(attempt.folder)
            capsys.readouterr()
            code, disk = attempt.run(case.line, at, errno.ENOSPC if stays else errno.EIO, stays=stays)
            error = capsys.readouterr().err
            where = f"{name}, operation {at}, {'full disk' if stays else 'bad block'}: {error}"
            if not disk.failures:
                assert code == 0, where
                break
            faults += 1
            survived += code == 0
            sentences = [line for line in error.splitlines() if line.startswith("sidelight: ")]
            if code != 0:
                assert code in (1, 2) and len([s for s in sentences if "warning" not in s]) == 1, where
            assert "Traceback" not in error, where
            try:
                check_files(attempt, before, expected)
                if code != 0:
                    again, _ = attempt.run(case.again or case.line)
                    assert again == 0, capsys.readouterr().err
                after = files_of(attempt.folder)
                for path, content in expected.items():
                    if path.startswith("cache/") and code == 0 and path not in after:
                        continue  # the answer came, with a warning that nothing is kept
                    assert attempt.varies(path) or after.get(path) == content, f"{path} differs after the second run"
            except AssertionError as failure:
                raise AssertionError(f"{where}{failure}") from None
            monkeypatch.chdir(tmp_path)
            shutil.rmtree(attempt.folder)
    with capsys.disabled():
        print(f"\n{name}: {faults} faults injected, all passed ({survived} of them without an error)", end="")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, inputs: Path) -> None:
    """Draw black videos and small plots, and let the demo draw 20 seconds and answer by a tiny model."""
    from sidelight.grounder import Grounder
    from sidelight.shapes import generate, world

    def short_scene(**values: Any) -> Any:
        return world.sample_scene(**{**values, "seconds": (20, 21)})

    def small_video(scene: Any, path: Any, *, side: int) -> None:
        generate.draw_video(scene, path, side=128)

    def load(*_: object, **__: object) -> Grounder:
        return Grounder.from_pretrained(inputs / "model", backbone_weights=inputs / "backbone", device="cpu")

    def black(painter: Any, _: float) -> Any:
        return np.zeros((painter.side, painter.side, 3), np.uint8)

    monkeypatch.setattr("sidelight.shapes.render.Painter.frame", black)
    monkeypatch.setattr("sidelight.export.charts.DPI", 20)
    monkeypatch.setattr("sidelight.export.plot.DPI", 20)
    monkeypatch.setattr("sidelight.cli.demo.sample_scene", short_scene)
    monkeypatch.setattr("sidelight.cli.demo.draw_video", small_video)
    monkeypatch.setattr("sidelight.cli.demo.Grounder", SimpleNamespace(from_pretrained=load))
