"""No command overwrites what it reads, writes a file twice, or replaces files that are not its own."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_type_hints

import pytest

from sidelight.cli.main import COMMANDS, command_of, main
from sidelight.cli.parser import CONFIGURATIONS, Command, Group, is_configured, path_kind
from sidelight.io.files import require_outputs
from sidelight.io.new_folders import parent_folders, require_parent


def commands() -> dict[str, Command]:
    """Return every command and sub-command that takes no configuration, by name."""
    by_name: dict[str, Command] = {}
    for name in COMMANDS:
        command = command_of(name)
        parts = command.commands.items() if isinstance(command, Group) else [("", command)]
        by_name.update({f"{name} {part}".strip(): function for part, function in parts if not is_configured(function)})
    return by_name


def test_every_path_of_every_command_is_compared() -> None:
    outputs = ("out", "json", "plot", "clips", "join", "thumbnails", "contact_sheet", "report", "export", "uploads")
    no_paths = {"query", "topic", "benchmark", "backbone", "domain", "device", "run", "layout", "name", "size"}
    no_paths |= {"host", "token", "allow_host"}
    no_paths |= {"since", "until", "like"}  # FILE@START-END; tests/library/test_search.py compares its file
    for name, command in commands().items():
        hints = get_type_hints(command, localns=dict.fromkeys(CONFIGURATIONS, object), include_extras=True)
        for parameter in inspect.signature(command).parameters:
            text = "str" in str(hints[parameter]) and parameter not in no_paths
            if parameter in outputs:
                assert path_kind(hints[parameter]) in ("output file", "output folder"), (name, parameter)
            elif parameter == "library" and name in ("library add", "library update", "library remove"):
                assert path_kind(hints[parameter]) == "output folder", (name, parameter)
            elif text and "Literal" not in str(hints[parameter]):
                assert path_kind(hints[parameter]) == "input", (name, parameter)


@pytest.fixture
def here(tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fill the current folder with a video in a folder, links to it, annotations, a table and a folder of a model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").mkdir()
    shutil.copy(sorted((tiny_world / "videos").iterdir())[0], "films/v.mp4")
    os.link("films/v.mp4", "hard.mp4")
    os.symlink("films/v.mp4", "soft.mp4")
    os.symlink("films", "linked-films")
    shutil.copy(tiny_world / "annotations.jsonl", "a.jsonl")
    shutil.copy("a.jsonl", "b.jsonl")
    Path("elsewhere.mp4").write_text("a film of another folder")
    os.symlink(tmp_path / "elsewhere.mp4", "films/linked.mp4")
    Path("t.csv").write_text("video,query,start,end,duration\nv,a star,0,1,9\n")
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "ground films/v.mp4 star --json films/v.mp4",
            "films/v.mp4: it is read by the same command; give another file name to --json",
        ),
        ("ground films/v.mp4 star --json hard.mp4", "it is read by the same command"),
        ("ground hard.mp4 star --json films/v.mp4", "it is read by the same command"),
        ("ground films/v.mp4 star --json soft.mp4", "it is read by the same command"),
        ("ground films/v.mp4 star --json linked-films/../films/v.mp4", "it is read by the same command"),
        ("ground file://HERE/films/v.mp4 star --json films/v.mp4", "it is read by the same command"),
        (
            "ground films/v.mp4 star --plot films/v.mp4",
            "it is read by the same command; give another file name to --plot",
        ),
        ("ground films/v.mp4 star --json p.png --plot p.png", "twice: --json and --plot name the same file"),
        ("ground films/v.mp4 star --json p.png --plot ./p.png", "twice"),
        ("ground films/v.mp4 star --json films --plot p.png", "it is a folder"),
        ("ground films/v.mp4 star --json /none/a.json", "there is no folder /none, and it would lie at the top of the"),
        ("ground films/v.mp4 star --json dead/none/a.json", "dead is a link that leads nowhere; make the folder first"),
        ("ground films/v.mp4 star --json /dev/nothing", "there is no such device; give --json a file name"),
        ("ground films/v.mp4 star --json /dev/fd/99", "Bad file descriptor" if sys.platform == "darwin" else "No such"),
        ("ground films/v.mp4 star --model model --json model/config.json", "lies in model"),
        ("demo --model films --out films", "read by the same command"),
        ("data check a.jsonl --json a.jsonl", "read by the same command"),
        ("data check . --json a.jsonl", "this file exists and lies in ."),
        ("data check a.jsonl --videos films --json films/v.mp4", "lies in films"),
        ("data import t.csv --out t.csv", "read by the same command"),
        ("data import t.csv --videos films --out films/v.mp4", "lies in films"),
        ("data import t.csv --videos films --out elsewhere.mp4", "lies in films"),
        ("data import t.csv --videos linked-films --out hard.mp4", "lies in linked-films"),
        ("predict --annotations a.jsonl --videos films --out films/v.mp4", "lies in films"),
        ("predict --annotations a.jsonl --videos films --out a.jsonl", "read by the same command"),
        ("predict --annotations a.jsonl --features films --out films/v.mp4", "lies in films"),
        ("evaluate b.jsonl a.jsonl --json b.jsonl", "read by the same command"),
        ("compare a.jsonl b.jsonl a.jsonl --json b.jsonl", "read by the same command"),
        ("compare a.jsonl b.jsonl a.jsonl --json x.png --plot x.png", "twice"),
        ("calibrate b.jsonl a.jsonl --plot a.jsonl", "read by the same command"),
        ("extract films --out films", "read by the same command"),
        ("extract s3://films --out s3://films/", "read by the same command"),
        ("extract films --annotations a.jsonl --out a.jsonl", "read by the same command"),
        ("features export model --annotations a.jsonl --layout sdst --out model", "read by the same command"),
        ("features import films,model --annotations a.jsonl --out model", "read by the same command"),
        ("convert r2-tuning a.jsonl --run tacos --out a.jsonl", "read by the same command"),
        ("convert clip a.jsonl --vocabulary model --out model", "read by the same command"),
        ("convert internvideo2 a.jsonl --out a.jsonl", "read by the same command"),
        ("convert i3d a.jsonl --out a.jsonl", "read by the same command"),
        ("train shapes-tiny --train.init=model/last --train.out=model", "read by the same command"),
        ("train shapes-tiny --data.train_videos=films --train.out=films", "read by the same command"),
        ("pretrain shapes-backbone --init=model --out=model", "read by the same command"),
        ("shapes --videos 1 --out .", "exists and belongs to no world that sidelight made"),
    ],
)
def test_outputs_that_would_replace_files_are_refused(
    line: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("model/last").mkdir()
    os.symlink("missing-disk", "dead")
    Path("annotations.jsonl").write_text("my own")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert main(line.replace("HERE", str(here)).split()) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("outputs", "inputs", "folders"),
    [
        ({}, [], False),
        ({"--json": "new.json"}, ["films"], False),
        ({"--json": "films/new.json"}, ["films"], False),
        ({"--json": "b.jsonl", "--plot": "t.csv"}, ["films", "a.jsonl", "model"], False),
        ({"--out": "b.jsonl"}, ["", "no such film", "s3://bucket/b.jsonl"], False),
        ({"--out": "films/store"}, ["films", "films/v.mp4"], True),
        ({"--out": "model"}, ["films", "model/config.json"], True),
        ({"--out": "s3://b/store"}, ["s3://b/films"], True),
    ],
)
def test_other_outputs_are_allowed(outputs: dict[str, str], inputs: list[str], folders: bool, here: Path) -> None:
    os.symlink(here / "films", "films/back")  # a link that leads back must not be followed for ever
    before = sorted(here.rglob("*"))
    require_outputs(outputs, inputs, folders=folders)
    assert sorted(here.rglob("*")) == before  # the check leaves nothing behind


@pytest.mark.parametrize(
    ("path", "is_refused"),
    [
        ("new/a.json", False),
        ("new/er/a.json", False),
        ("films/new/a.json", False),
        ("linked-films/new/a.json", False),
        ("dead/a.json", True),
        ("/none/er/a.json", True),
        ("/proc/none/a.json", True),
        ("/dev/none/a.json", True),
    ],
)
def test_a_missing_folder_is_made_where_it_is_no_mistake(path: str, is_refused: bool, here: Path) -> None:
    os.symlink("missing-disk", "dead")
    before = sorted(here.rglob("*"))
    if is_refused:
        with pytest.raises(ValueError, match=r"there is no folder .*; make the folder first"):
            require_outputs({"--json": path}, ["films/v.mp4"])
        return
    require_outputs({"--json": path}, ["films/v.mp4"])
    with pytest.raises(ZeroDivisionError), parent_folders([path, path]):
        assert Path(path).parent.is_dir()
        raise ZeroDivisionError
    assert sorted(here.rglob("*")) == before  # a command that fails leaves no folder
    with parent_folders([path, "b.json"]):
        Path(path).write_text("{}")
    assert Path(path).read_text() == "{}"


def test_a_link_at_the_top_of_the_system_is_followed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidelight.io.new_folders._TOP_FOLDERS", (str(here),))
    with pytest.raises(ValueError, match="it would lie at the top of the system"):
        require_parent("new/a.json")
    require_parent("linked-films/new/a.json")  # as /tmp on a Mac, or /data on another disk


def test_commands_make_the_folders_of_all_their_files(here: Path) -> None:
    line = "ground films/v.mp4 star --model shapes --json out/a/b.json --plot out/plots/p.png --export out/c/m.csv"
    assert main([*line.split(), "--report", "out/r/r.html", "--contact-sheet", "out/s/s.png", "--top", "1"]) == 0
    written = sorted(str(path) for path in Path("out").rglob("*.*"))
    assert written == ["out/a/b.json", "out/c/m.csv", "out/plots/p.png", "out/r/r.html", "out/s/s.png"]
    assert main(["ground", "films/v.mp4", "star", "--model", "nothing", "--json", "new/a.json"]) == 2
    assert not Path("new").exists()


def test_a_table_is_imported_beside_its_videos(here: Path) -> None:
    assert main(["data", "import", "t.csv", "--videos", "films", "--out", "films/v.jsonl"]) == 0
    assert Path("films/v.jsonl").read_text().startswith('{"qid": 0')


def test_the_demo_replaces_no_files_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = ["demo", "--out", str(tmp_path / "d"), "--device", "cpu"]
    (tmp_path / "d").mkdir()
    for name in ("video.mp4", "groundings.json", "groundings.png"):
        own = tmp_path / "d" / name
        own.write_text("mine")
        assert main(demo) == 2
        assert f"{name} exists and was not made by the demo; give --out another folder" in capsys.readouterr().err
        assert own.read_text() == "mine" and len(list((tmp_path / "d").iterdir())) == 1
        own.unlink()


def own_device(minor: int) -> Path | None:
    """Make a device like /dev/null (3) or /dev/full (7) in the current folder; None if that is not allowed."""
    device = Path(f"device-{minor}")
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        device.open("wb").close()
    except OSError:
        return None
    return device


def test_results_go_into_devices_and_pipes_which_stay(here: Path) -> None:
    line = ["data", "import", "t.csv", "--videos", "films", "--out"]
    assert main([*line, "t.jsonl"]) == 0
    expected = Path("t.jsonl").read_bytes()
    if (null := own_device(3)) is not None:
        assert main([*line, str(null)]) == 0
        assert stat.S_ISCHR(null.stat().st_mode)
    os.mkfifo("pipe")
    os.symlink("pipe", "to-pipe")
    for name in ("pipe", "to-pipe"):
        with ThreadPoolExecutor() as pool:
            content = pool.submit(Path("pipe").read_bytes)
            assert main([*line, name]) == 0
            assert content.result(30) == expected
        assert stat.S_ISFIFO(Path("pipe").stat().st_mode) and Path("to-pipe").is_symlink()
    assert not [path for path in here.iterdir() if "partial" in path.name]


@pytest.mark.parametrize("folder", ["/dev/fd", "/proc/self/fd"])
def test_results_go_into_open_files(folder: str, here: Path) -> None:
    if not Path(folder).is_dir():
        pytest.skip(f"this system has no {folder}")
    line = ["data", "import", "t.csv", "--videos", "films", "--out"]
    assert main([*line, "t.jsonl"]) == 0
    expected = Path("t.jsonl").read_bytes()
    reading, writing = os.pipe()
    assert main([*line, f"{folder}/{writing}"]) == 0
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == expected
    # As in `{ echo begin; sidelight ... --out /dev/fd/3; } 3> file`.
    with open("file", "wb") as file:
        file.write(b"begin\n")
        file.flush()
        assert main([*line, f"{folder}/{file.fileno()}"]) == 0
        assert main([*line, f"{folder}/{file.fileno()}"]) == 0
    assert Path("file").read_bytes() == b"begin\n" + 2 * expected
    assert stat.S_ISREG(Path("file").stat().st_mode)


def test_the_shell_can_pass_results_on(here: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    line = f"{sys.executable} -m sidelight data check a.jsonl --json >(cat > copy.json; echo done > end)"
    finished = subprocess.run(["bash", "-c", f"{line}; while [ ! -e end ]; do sleep 0.1; done"], timeout=120)
    assert finished.returncode == 0 and json.loads(Path("copy.json").read_text())


def test_a_full_device_is_one_sentence_and_stays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if (full := own_device(7)) is None:
        pytest.skip("only root may make devices")
    assert main(["data", "import", "t.csv", "--videos", "films", "--out", str(full)]) == 2
    assert capsys.readouterr().err == f"sidelight: {full} cannot be read or written: No space left on device\n"
    assert stat.S_ISCHR(full.stat().st_mode)


@pytest.mark.parametrize(
    "command",
    [
        "ground PIPE star --model shapes",
        "extract PIPE --out store",
        "evaluate PIPE annotations.jsonl",
        "data import PIPE --out rows.jsonl",
        "train --config PIPE",
        "summary --config PIPE",
        "models import PIPE",
        "features verify STORE",
    ],
)
def test_pipes_and_devices_are_no_input(
    command: str, tmp_path: Path, tiny_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check that each command says so at once; reading a pipe waits for ever, and reading a device may never end."""
    pipe, store = tmp_path / "p", tmp_path / "store"
    os.mkfifo(pipe)
    shutil.copytree(tiny_store, store)
    (file,) = sorted((store / "videos").iterdir())[:1]
    file.unlink()
    os.mkfifo(file)
    arguments = [word.replace("PIPE", str(pipe)).replace("STORE", str(store)) for word in command.split()]
    code = main(arguments)
    output = capsys.readouterr()
    assert code == (1 if "verify" in command else 2)
    assert (
        "is a pipe or a device; expected a file" in output.err + output.out
        or "is a pipe or a device, and" in output.err
    )
