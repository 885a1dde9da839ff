"""Give every option of every command a right and a wrong value: no traceback, and a wrong value is one sentence.

COMMANDS below has a line for each command, and values for options whose type does not say which values are right. A
new command fails the test until it has a line.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from sidelight.backbones.shapes import pretrain as pretraining
from sidelight.cli import configured
from sidelight.cli.main import COMMANDS, command_of, main
from sidelight.cli.parser import Command, Group, command_parser, is_configured
from sidelight.core.grounding import Grounding, Moment
from sidelight.core.timeline import Timeline
from sidelight.features import ray as features_ray
from sidelight.models.registry import SIDE_TUNERS
from sidelight.recipes import recipe_file
from sidelight.shapes.world import Scene, sample_scene
from sidelight.training.recipe import read_recipe, sections_of
from tests.backbones import test_internvideo2 as tiny_internvideo2
from tests.backbones.test_i3d import published_i3d
from tests.data.test_datasets import YOUTUBE_ROW
from tests.training import test_convert_univtg as tiny_univtg

MISSING = "no/such/place"
"""A wrong value of each option that names a file, a folder or a model."""


@dataclass(frozen=True)
class Line:
    """The shortest right line of a command, and values of its options."""

    line: str
    """What follows the command. Words in capitals are paths, see ``paths``."""
    right: dict[str, str] = field(default_factory=dict)
    """Options with a right value. A flag has none. Choices, and numbers that take 1, need no entry."""
    wrong: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Options with wrong values; numbers have "many" and -1, choices "nonsense", and others MISSING."""
    apart: dict[str, str] = field(default_factory=dict)
    """Options that do not go with the others, each with what it needs on a line of its own."""
    alone: dict[str, str] = field(default_factory=dict)
    """Options that do not go with the line, each with a whole line."""


OUTPUTS = {
    "--out": ("FILE/x",),
    "--json": ("FILE/x",),
    "--plot": ("FILE/x.png", "NEW.txt"),
    "--clips": ("FILE/x",),
    "--thumbnails": ("FILE/x",),
    "--join": ("FILE/x.mp4", "NEW.txt"),
    "--contact-sheet": ("FILE/x.png", "NEW.txt"),
    "--report": ("FILE/x.html", "NEW.txt"),
}
"""Wrong values of outputs: a file in place of a folder."""
FILMS = {
    "--clips": "NEW",
    "--thumbnails": "NEW",
    "--join": "NEW.mp4",
    "--contact-sheet": "NEW.png",
    "--report": "NEW.html",
}
"""Right values of the outputs that people watch."""
LINES: dict[str, Line] = {
    "ground": Line(
        "VIDEO 'a red star spins' --model shapes",
        {
            "--backbone-weights": "SHAPES",
            "--min-score": "0.001",
            "--json": "NEW",
            "--plot": "NEW.png",
            "--export": "NEW.edl",
            **FILMS,
        },
        {"--backbone-weights": ("FILE",), "--export": ("FILE/x.edl", "NEW.abc")},
        {"--format": "--format resolve --export NEW.edl"},
    ),
    "summarize": Line(
        "VIDEO --model shapes",
        {
            "--topic": "star",
            "--share": "0.5",
            "--backbone-weights": "SHAPES",
            "--json": "NEW",
            "--plot": "NEW.png",
            "--export": "NEW.edl",
            **FILMS,
        },
        {"--topic": ("''",), "--backbone-weights": ("FILE",), "--export": ("FILE/x.edl", "NEW.abc")},
        {"--format": "--format resolve --export NEW.edl"},
    ),
    "export": Line("GROUNDINGS NEW.csv", {"--video": "VIDEO", "--min-score": "0.1", **FILMS}),
    "library add": Line(
        "LIB VIDEOS",
        {"--model": "shapes", "--backbone-weights": "SHAPES"},
        {"--backbone-weights": ("FILE",)},
        {"--actors": "--actors 1 --engine ray", "--engine": "--engine ray"},
    ),
    "library update": Line(
        "LIB",
        {"--videos": "VIDEOS", "--backbone-weights": "SHAPES"},
        {"--backbone-weights": ("FILE",)},
        {"--actors": "--actors 1 --engine ray", "--engine": "--engine ray"},
    ),
    "library status": Line("LIB", {"--json": "NEW"}),
    "library verify": Line("LIB"),
    "search": Line(
        "LIB 'a red star spins'",
        {
            "--min-score": "0.001",
            "--min-relevance": "0.1",
            "--folder": "VIDEOS",
            "--since": "2020-01-31",
            "--until": "2099-12-31",
            "--longest": "900",
            "--model": "shapes",
            "--backbone-weights": "SHAPES",
            "--json": "NEW",
            "--export": "NEW.csv",
            **FILMS,
        },
        {"--backbone-weights": ("FILE",), "--export": ("FILE/x.csv", "NEW.abc")},
        {"--format": "--format csv --export NEW.csv"},
        {"--image": "LIB --image IMAGE", "--like": "LIB --like VIDEO@2-6"},
    ),
    "library remove": Line("LIB VIDEO"),
    "demo": Line("--out NEW", {"--model": "shapes"}),
    "predict": Line(
        "--annotations ROWS --videos VIDEOS --out NEW --model shapes",
        {"--features": "NEW", "--backbone-weights": "SHAPES"},
        {"--backbone-weights": ("FILE",), "--features": ("FILE/x",)},
    ),
    "evaluate": Line(
        "ANSWERS ROWS",
        {"--benchmark": "qvhighlights", "--json": "NEW"},
        apart={"--by": "--by query --intervals"},
    ),
    "compare": Line("ANSWERS ANSWERS ROWS", {"--benchmark": "qvhighlights", "--json": "NEW", "--plot": "NEW.png"}),
    "calibrate": Line("ANSWERS ROWS", {"--json": "NEW", "--plot": "NEW.png"}, {"--iou": ("0", "2", "many", "nan")}),
    "data check": Line(
        "ROWS", {"--benchmark": "qvhighlights", "--videos": "VIDEOS", "--features": "STORE", "--json": "NEW"}
    ),
    "data import": Line("TABLE --out NEW", {"--videos": "VIDEOS"}),
    "extract": Line(
        "VIDEOS --out NEW",
        {
            "--annotations": "YOUTUBE",
            "--benchmark": "youtube-highlights",
            "--domain": "dog",
            "--backbone": "shapes",
            "--levels": "2",
            "--clip-seconds": "2",
            "--frames-per-clip": "8",
            "--weights": "SHAPES",
        },
        {"--weights": ("FILE",), "--clip-seconds": ("1", "many", "nan"), "--frames-per-clip": ("4", "many", "-1")},
        {"--actors": "--actors 1 --engine ray", "--engine": "--engine ray", "--dtype": "--dtype float32"},
    ),
    "features verify": Line("STORE", {"--annotations": "ROWS", "--benchmark": "qvhighlights"}),
    "features export": Line(
        "STORE --layout sdst --annotations ROWS --out NEW",
        {"--benchmark": "qvhighlights", "--level": "-1"},
        {"--level": ("many", "9")},
    ),
    "features import": Line(
        "LAYOUT --annotations ROWS --out NEW",
        {
            "--benchmark": "qvhighlights",
            "--layout": "sdst",
            "--backbone": "shapes",
            "--weights": "tiny",
            "--levels": "4",
            "--pooling": "attention",
            "--clip-seconds": "2",
            "--frames-per-clip": "4",
        },
        {"--weights": (), "--backbone": ()},  # any name: the features are not compared with a backbone
    ),
    "shapes": Line(
        "--out NEW --videos 1",
        {"--shortest": "20", "--longest": "20", "--side": "128"},
        {"--side": ("many", "-1", "129"), "--shortest": ("many", "-1", "999"), "--longest": ("many", "-1")},
    ),
    "recipes": Line(""),
    "convert r2-tuning": Line(
        "R2 --run qvhighlights --out NEW --video-dim 48 --text-dim 32 --hidden 64 --weights tiny",
        wrong={"--weights": ()},  # any name
    ),
    "convert univtg": Line("UNIVTG --out NEW --options OPTIONS --weights tiny", wrong={"--weights": ()}),  # any name
    "convert internvideo2": Line(
        "INTERNVIDEO2 --out NEW --vocabulary WORDS/vocab.txt --heads 2 --pool-heads 4 --text-heads 2"
    ),
    "convert clip": Line("CLIP --out NEW --vocabulary WORDS --heads 2 --text-heads 2"),
    "convert i3d": Line("I3D --out NEW"),
    "models": Line("", {"--json": "NEW"}),
    "models pull": Line("shapes"),
    "cache": Line("", {"--json": "NEW"}),
    "cache clear": Line("all"),
    "cache limit": Line("20GB"),
    "serve": Line(
        "VIDEOS --model shapes --port 0",
        {
            "--backbone-weights": "SHAPES",
            "--host": "127.0.0.1",
            "--token": "a-token-of-some-length",
            "--allow-host": "films.example",
            "--library": "LIB",
        },
        {"--backbone-weights": ("FILE",), "--uploads": ("FILE/x",)},
        {"--uploads": "--uploads NEW"},
    ),
    "mcp": Line(
        "VIDEOS --model shapes", {"--backbone-weights": "SHAPES", "--library": "LIB"}, {"--backbone-weights": ("FILE",)}
    ),
    "completion": Line("bash"),
}


@pytest.fixture(scope="module")
def paths(
    tiny_world: Path, tiny_store: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Return the paths that words in capitals stand for, except NEW and R2."""
    from sidelight.backbones.shapes.model import PACKAGED

    folder = tmp_path_factory.mktemp("options")
    rows = tiny_world / "annotations.jsonl"
    (folder / "table.csv").write_text("video,query,start,end,duration\na,a star spins,1,2,20\n")
    (folder / "text.txt").write_text("text")
    (folder / "videos").mkdir()
    video = sorted((tiny_world / "videos").iterdir())[0]
    shutil.copy(video, folder / "videos")
    row = next(row for row in map(json.loads, rows.read_text().splitlines()) if row["vid"] == video.stem)
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    answer = {"qid": row["qid"], "vid": row["vid"], "query": row["query"], "pred_relevant_windows": [[0, 4, 0.5]]}
    (folder / "answers.jsonl").write_text(json.dumps(answer) + "\n")
    (folder / "youtube.jsonl").write_text(json.dumps({**YOUTUBE_ROW, "vid": video.stem}) + "\n")
    torch.save({"module": tiny_internvideo2.published_model()}, folder / "internvideo2.pt")
    torch.save(published_i3d(), folder / "i3d.pt")
    words = folder / "words"
    words.mkdir()
    (words / "vocab.txt").write_text("\n".join(tiny_internvideo2.VOCABULARY) + "\n", encoding="utf-8")
    torch.save(tiny_univtg.full(), folder / "univtg.ckpt")
    (folder / "opt.json").write_text(json.dumps({**tiny_univtg.OPTIONS, "v_feat_dim": 18}))
    layout = folder / "layout"
    assert main(shlex.split(f"features export {tiny_store} --layout sdst --annotations {rows} --out {layout}")) == 0
    timeline = Timeline(duration=20.0, clip_seconds=2.0)
    grounding = Grounding(
        query="a star", timeline=timeline, moments=(Moment(0, 2, 0.5),), saliency=np.zeros(10, np.float32), video="v"
    )
    (folder / "groundings.json").write_text(grounding.to_json())
    return {
        "VIDEO": folder / "videos" / video.name,
        "VIDEOS": folder / "videos",
        "ROWS": folder / "rows.jsonl",
        "ANSWERS": folder / "answers.jsonl",
        "GROUNDINGS": folder / "groundings.json",
        "YOUTUBE": folder / "youtube.jsonl",
        "TABLE": folder / "table.csv",
        "FILE": folder / "text.txt",
        "STORE": tiny_store,
        "SHAPES": PACKAGED,
        "LAYOUT": layout,
        "INTERNVIDEO2": folder / "internvideo2.pt",
        "I3D": folder / "i3d.pt",
        "WORDS": words,
        "UNIVTG": folder / "univtg.ckpt",
        "OPTIONS": folder / "opt.json",
        "TINY": tiny_backbone,
    }


WITH_FILES = ("models remove", "models import", "library calibrate")
"""Commands that need the files of a model or many annotations: tests/training/test_named.py and
tests/library/test_calibration.py try them.
"""

Arguments = Callable[[str], list[str]]


@pytest.fixture
def arguments(paths: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Arguments:
    """Return a function that splits a line into arguments and puts paths in place of the words in capitals."""
    numbers = itertools.count()

    def place(word: str) -> str:
        name = re.match(r"[A-Z][A-Z0-9]+(?=$|[./@])", word)
        if name is None:
            return word
        if name[0] == "NEW":
            path = tmp_path / f"new{next(numbers)}"
        elif name[0] == "R2":
            path = request.getfixturevalue("goldens") / "r2" / "tiny" / "checkpoint.pth"
        elif name[0] in ("LIB", "IMAGE"):
            path = request.getfixturevalue("library_files")[name[0]]
        elif name[0] == "CLIP":
            path = request.getfixturevalue("clip_file")
        else:
            path = paths[name[0]]
        return f"{path}{word[name.end() :]}"

    return lambda line: [place(word) for word in shlex.split(line)]


@pytest.fixture(scope="module")
def clip_file(paths: dict[str, Path]) -> Path:
    """Return a tiny CLIP as OpenAI releases it, and write its vocabulary."""
    from tests.backbones import test_clip as tiny_clip

    tiny_clip.write_vocabulary(paths["WORDS"])
    file = paths["FILE"].with_name("clip.pt")
    torch.save(tiny_clip.openai_tensors(516), file)
    return file


@pytest.fixture(scope="module")
def library_files(paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a library of the videos, and an image."""
    from sidelight.library import Library

    folder = tmp_path_factory.mktemp("library")
    Library.create(folder / "lib", model="shapes", device="cpu").add(paths["VIDEOS"], workers=0)
    with av.open(str(folder / "image.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])
    return {"LIB": folder / "lib", "IMAGE": folder / "image.png"}


def commands() -> dict[str, Command]:
    """Return every command and sub-command by what the user types, except those that take a recipe."""
    named: dict[str, Command] = {}
    for name in COMMANDS:
        command = command_of(name)
        sub_commands = dict(command.commands) if isinstance(command, Group) else {"": command}
        if isinstance(command, Group) and command.default is not None:
            sub_commands[""] = command.default
        named |= {f"{name} {sub_name}".strip(): sub_command for sub_name, sub_command in sub_commands.items()}
    return {name: command for name, command in named.items() if not is_configured(command) and name not in WITH_FILES}


def options_of(name: str) -> dict[str, argparse.Action]:
    """Return the options of a command, without those that every command has."""
    actions = command_parser(commands()[name], f"sidelight {name}")._actions
    everywhere = ("help", "quiet", "verbose")
    return {a.option_strings[0]: a for a in actions if a.option_strings and a.dest not in everywhere}


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the demo short, let services end at once, and put a stub in place of Ray."""

    def short(*, seconds: tuple[float, float], **settings: Any) -> Scene:
        return sample_scene(seconds=(20, 26), **settings)

    monkeypatch.setattr("sidelight.cli.demo.sample_scene", short)
    monkeypatch.setattr("sidelight.cli.speeds._FILM_SECONDS", 2)
    monkeypatch.setattr("sidelight.server.app.run", lambda app, bound, settings: None)
    monkeypatch.setattr("mcp.server.mcpserver.MCPServer.run", lambda server, transport: None)
    monkeypatch.setattr(features_ray, "extract_on_ray", lambda *_, **__: (argparse.Namespace(has_video=bool), {}))


def test_every_command_has_a_line() -> None:
    assert set(LINES) == set(commands())
    for name, line in LINES.items():
        assert {*line.right, *line.wrong, *line.apart, *line.alone} <= set(options_of(name)), name


@pytest.mark.parametrize("name", LINES)
@pytest.mark.usefixtures("light")
def test_right_values(name: str, arguments: Arguments, capsys: pytest.CaptureFixture[str]) -> None:
    line, words = LINES[name], []
    for option, action in options_of(name).items():
        if action.nargs == 0:
            words.append(option)
        elif option not in {*line.apart, *line.alone} and f"{option} " not in line.line:
            words += [option, line.right.get(option, "")] if option in line.right else [option, right_value(action)]
    lines = [
        f"{line.line} {' '.join(words)}",
        *(f"{line.line} {apart}" for apart in line.apart.values()),
        *line.alone.values(),
    ]
    for tried in lines:
        code = main([*name.split(), *arguments(tried)])
        assert code == 0, (tried, capsys.readouterr().err)


def right_value(action: argparse.Action) -> str:
    """Return a right value by the type of an option."""
    if action.choices:
        return str(next(iter(action.choices)))
    return "cpu" if action.dest == "device" else "1"


def wrong_values(option: str, action: argparse.Action) -> tuple[str, ...]:
    """Return wrong values by the type of an option."""
    if action.nargs == 0:
        return ()
    if action.choices or option == "--device":
        return ("nonsense",)
    if action.type not in (None, str):
        return ("many", "-1")
    return OUTPUTS.get(option, (MISSING,))


@pytest.mark.parametrize("name", LINES)
@pytest.mark.usefixtures("light")
def test_wrong_values(name: str, arguments: Arguments, capsys: pytest.CaptureFixture[str]) -> None:
    line = LINES[name]
    for option, action in options_of(name).items():
        for value in line.wrong.get(option, wrong_values(option, action)):
            extra = line.apart.get(option, "")
            tried = arguments(f"{line.line} {extra} {option} {value}")
            code = main([*name.split(), *tried])
            message = capsys.readouterr().err
            assert code == 2, (tried, message)
            assert message.startswith("sidelight: ") and message.count("\n") == 1, (tried, message)
            is_path = action.type in (None, str) and not action.choices
            assert option in message or (is_path and tried[-1] in message), (tried, message)


# commands that take a recipe ---------------------------------------------------------------------------------------

RECIPE = """
side_tuner: {side_tuner}
model: {{video_dim: 32, text_dim: 32, hidden: 32, heads: 4}}
backbone: {{weights: {TINY}, pooling: {pooling}}}
data: {{train: {ROWS}, train_features: {STORE}}}
train: {{epochs: 1, batch_size: 4, accelerator: cpu, out: {out}}}
"""
FRAMES = """
side_tuner: scada
model: {{sentence_dim: 16, clips_per_chunk: 1, hidden: 16}}
backbone: {{name: shapes, weights: {TINY}, sentence_weights: {TINY}, frames_per_second: 2}}
data: {{train: {ROWS}, train_videos: {VIDEOS}}}
train: {{epochs: 1, batch_size: 4, accelerator: cpu, out: {out}}}
"""
WRONG_PATHS = {
    "data.train": MISSING,
    "data.val": MISSING,
    "data.train_features": MISSING,
    "data.val_features": MISSING,
    "data.train_videos": MISSING,
    "data.val_videos": MISSING,
    "data.benchmark": "nonsense",
    "data.domain": "nonsense",
    "data.frames_cache": "nonsense",
    "backbone.name": "nonsense",
    "backbone.weights": MISSING,
    "backbone.clip_seconds": "1",
    "backbone.frames_per_clip": "8",
    "train.accelerator": "nonsense",
    "train.best_by": "nonsense",
    "train.init": MISSING,
    "train.out": "FILE/x",
}
"""A wrong value of each text of a recipe, and of numbers that must fit the features."""
NEEDED = {
    "data.val_features": "--data.val ROWS",
    "data.val_videos": "--data.val ROWS",
    "backbone.weights": "--data.train_features NEW --data.train_videos VIDEOS",
    "train.best_by": "--data.val ROWS",
}
"""What must be given beside a wrong value, so that it is used."""


@pytest.fixture
def recipe_of(paths: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a tiny recipe of a side-tuner."""

    def write(side_tuner: str) -> Path:
        path = tmp_path / f"{side_tuner}.yaml"
        pooling = "tokens" if side_tuner == "r2-tuning" else "attention"
        recipe = FRAMES if SIDE_TUNERS[side_tuner].reads == "frames" else RECIPE
        path.write_text(recipe.format(side_tuner=side_tuner, pooling=pooling, out=tmp_path / "run", **paths))
        return path

    return write


@pytest.fixture(scope="module")
def made_parsers() -> dict[tuple[str, str], Any]:
    """Return the parsers that were made, by command and name of the recipe."""
    return {}


@pytest.fixture
def one_parser(monkeypatch: pytest.MonkeyPatch, made_parsers: dict[tuple[str, str], Any]) -> None:
    """Make the parser of a command and a side-tuner once: it takes longer than most commands."""
    make, made = configured.configured_parser, made_parsers

    def parser(command: Command, prog: str, arguments: Sequence[str] = ()) -> Any:
        key = prog, Path(arguments[1]).name  # of ``recipe_of``, the name of the side-tuner
        if key not in made:
            made[key] = make(command, prog, arguments)
        return made[key]

    monkeypatch.setattr(configured, "configured_parser", parser)


def fields_of(command: str, recipe: Path) -> dict[str, argparse.Action]:
    """Return the options of a command with a recipe that set one value, without --help and others of the parser."""
    function = command_of(command)
    assert not isinstance(function, Group)
    parser, _, flags = configured.configured_parser(function, f"sidelight {command}", ["--config", str(recipe)])
    others = ("help", "quiet", "verbose", "config", "print_config", "print_shtab", *flags)
    sections = {action.dest.rpartition(".")[0] for action in parser._actions}
    return {a.dest: a for a in parser._actions if a.dest not in others and a.dest not in sections and a.option_strings}


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must end with one sentence, and return this sentence."""
    code, message = main(arguments), capsys.readouterr().err
    assert code == 2, (arguments, message)
    assert message.startswith("sidelight: ") and message.count("\n") == 1, (arguments, message)
    return message


def declarations(side_tuner: str) -> dict[str, type]:
    """Return the class that declares each option of the sections of a side-tuner, such as model and losses."""
    sections = sections_of(side_tuner)
    return {
        f"{section}.{option.name}": next(c for c in config.__mro__ if option.name in vars(c).get("__annotations__", {}))
        for section, config in sections.items()
        for option in dataclasses.fields(config)
    }


def options_to_try(side_tuner: str) -> set[str]:
    """Return the first option of each section, and all options that no side-tuner before it has from the same class."""
    own = declarations(side_tuner)
    firsts = {section: name for name in reversed(own) for section in [name.partition(".")[0]]}
    before = itertools.takewhile(lambda name: name != side_tuner, SIDE_TUNERS)
    tried = {option for name in before for option in declarations(name).items()}
    return {*firsts.values(), *(name for name, _ in own.items() - tried)}


@pytest.mark.usefixtures("one_parser")
def test_a_run_with_every_option(
    recipe_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str], paths: dict[str, Path]
) -> None:
    path = recipe_of("sdst")
    values = flat(read_recipe(path).to_dict())
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    options = [f"--{name}={text}" for name, text in texts.items()]
    assert {*values} == {*fields_of("train", path)}
    assert main(["train", str(path), "--check", "--resume", *options]) == 0, capsys.readouterr().err


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a recipe by the names of their options."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return result


@pytest.mark.parametrize("side_tuner", SIDE_TUNERS)
@pytest.mark.usefixtures("one_parser")
def test_wrong_values_of_a_recipe(
    side_tuner: str, recipe_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, tried = recipe_of(side_tuner), options_to_try(side_tuner)
    for name, value in flat(read_recipe(path).to_dict()).items():
        is_tried = name in tried if name.partition(".")[0] in sections_of(side_tuner) else side_tuner == "sdst"
        if name in (*WRONG_PATHS, "backbone.sentence_weights") or not is_tried:
            continue
        assert name in refusal(["summary", str(path), f"--{name}=nonsense"], capsys)
        if type(value) in (int, float):
            assert name in refusal(["summary", str(path), f"--{name}=-1"], capsys)


@pytest.mark.parametrize("name", WRONG_PATHS)
@pytest.mark.usefixtures("one_parser")
def test_wrong_paths_and_names_of_a_recipe(
    name: str, recipe_of: Callable[[str], Path], arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    value = arguments(WRONG_PATHS[name])[0]
    more = arguments(NEEDED.get(name, ""))
    message = refusal(["train", str(recipe_of("sdst")), "--check", *more, f"--{name}={value}"], capsys)
    assert name in message or value in message


@pytest.mark.usefixtures("one_parser")
def test_options_of_pretraining(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    configs: list[pretraining.PretrainConfig] = []
    monkeypatch.setattr(pretraining, "pretrain", configs.append)
    recipe = recipe_file("shapes-backbone")
    assert main(["pretrain", str(recipe)]) == 0
    values = flat(dataclasses.asdict(configs[0]))
    assert {*values} == {*fields_of("pretrain", recipe)}
    assert main(["pretrain", str(recipe), *(f"--{name}={value}" for name, value in values.items())]) == 0
    assert configs[0] == configs[1]
    for name, value in values.items():
        if not isinstance(value, str):
            assert name in refusal(["pretrain", str(recipe), f"--{name}=nonsense"], capsys)
            assert name in refusal(["pretrain", str(recipe), f"--{name}=-1"], capsys)
    assert len(configs) == 2
