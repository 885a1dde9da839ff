"""Run the commands as a person types them, with the packaged model."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sidelight import Grounder, __version__
from sidelight.cli.demo import require_own_files
from sidelight.cli.main import COMMANDS, main
from sidelight.core.display import clock, sparkline
from sidelight.core.grounding import Grounding
from sidelight.export import plot as plotting
from sidelight.features.store import FeatureStore
from sidelight.models.decode.sdst import DecodeConfig
from sidelight.models.registry import build_model
from sidelight.recipes import recipe_file, recipe_names
from sidelight.training.checkpoint import Checkpoint
from sidelight.video.read import probe


@pytest.fixture(scope="module")
def video(tiny_world: Path) -> Path:
    return sorted((tiny_world / "videos").iterdir())[0]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00.0"),
        (9.96, "0:10.0"),
        (59.99, "1:00.0"),
        (83.25, "1:23.2"),
        (3600, "1:00:00.0"),
        (7384.5, "2:03:04.5"),
    ],
)
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


@pytest.mark.parametrize(
    ("values", "width", "shown"),
    [([], 5, ""), ([1.0], 5, "▁"), ([0, 1], 5, "▁█"), ([0, 0, 1, 1], 2, "▁█"), ([0.0, 0.5, 1.0], 3, "▁▅█")],
)
def test_sparkline(values: list[float], width: int, shown: str) -> None:
    assert sparkline(values, width) == shown


def test_help_lists_every_command_and_is_quick() -> None:
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "sidelight", "--help"], capture_output=True, text=True)
        durations.append(time.perf_counter() - start)
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS)
    assert min(durations) < 2  # a bound for slow machines; the goal is 0.5 s
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_a_closed_pipe_is_no_error() -> None:
    command = (
        f"{sys.executable} -c 'import time; time.sleep(1); from sidelight.cli.main import main; main([\"--help\"])'"
    )
    done = subprocess.run(f"{command} | true", shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0 and f"sidelight {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["data", "--help"], ["data check", "--benchmark", "data import", "--clip-seconds"]),
        (["data", "import", "--help"], ["sidelight data import", "--clip-seconds SECONDS", "(default: 2.0)"]),
        (["convert", "--help"], ["convert r2-tuning", "--run", "convert clip", "--text-heads"]),
        (["train", "--help"], ["--resume", "--train.lr", "--model.hidden"]),
        (["train", "shapes", "--help"], ["Passes over the training annotations. (type: int, default: 8)"]),
    ],
)
def test_help_shows_options(arguments: list[str], options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    output = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and all(option in output for option in options)


def test_recipes_are_listed_in_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == recipe_names()
    assert {line.split()[1] for line in lines if line.startswith("pretrain ")} == {
        "shapes-backbone",
        "shapes-backbone-visibility",
    }
    width = max(map(len, recipe_names())) + 12
    assert all(0 < len(line[width:]) <= 100 for line in lines)


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the completion script for bash."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    command = [sys.executable, "-m", "sidelight", "completion", "bash"]
    script = tmp_path_factory.mktemp("completion") / "sidelight.bash"
    script.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return script


def test_the_bash_completion_script_is_valid(bash_script: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(bash_script)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        (["gro"], ["ground"]),
        (["data", "imp"], ["import"]),
        (["ground", "--min"], ["--min-score"]),
        (["extract", "--pooling", "att"], ["attention"]),
        (["train", "shapes-tiny-l"], ["shapes-tiny-last-layer", "shapes-tiny-losa", "shapes-tiny-lst"]),
        (["train", "shapes", "--train.lr_drop_"], ["--train.lr_drop_epochs"]),
    ],
)
def test_bash_completes(words: list[str], completions: list[str], bash_script: Path, tmp_path: Path) -> None:
    code = (
        f'source {bash_script}; COMP_WORDS=(sidelight "$@"); COMP_CWORD=$#; '
        '_shtab_sidelight sidelight "${!#}"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code, "bash", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == completions, done.stderr


def test_the_zsh_completion_script_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef sidelight") and all(name in script for name in COMMANDS)


def test_ground_prints_writes_and_draws(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file, plot = tmp_path / "a.json", tmp_path / "a.png"
    queries = ["a red star spins", "something blinks"]
    arguments = ["ground", str(video), *queries, "--model", "shapes", "--top", "2", "--device", "cpu"]
    assert main([*arguments, "--json", str(json_file), "--plot", str(plot)]) == 0
    output = capsys.readouterr().out
    assert "a red star spins" in output and "start" in output and "█" in output
    groundings = [Grounding.from_dict(g) for g in json.loads(json_file.read_text())]
    assert [g.query for g in groundings] == queries
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_ground_prints_only_json_to_standard_output(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["ground", str(video), "a star", "--model", "shapes", "--json", "-", "--no-cache", "--device", "cpu"]) == 0
    )
    printed = capsys.readouterr()
    (grounding,) = json.loads(printed.out)
    assert Grounding.from_dict(grounding).query == "a star" and grounding["model"] == "shapes"
    assert printed.err == "" and "notes" not in grounding


def test_shapes_warns_of_other_videos_and_of_unknown_words(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kitchen, plot = str(shared / "videos" / "flipping_a_pancake.mkv"), str(tmp_path / "a.png")
    queries = ["a dog swims", "a red star spins"]
    assert main(["ground", kitchen, *queries, "--model", "shapes", "--json", "-", "--plot", plot]) == 0
    printed = capsys.readouterr()
    of_video, of_words = printed.err.splitlines()
    assert of_video.startswith("sidelight: warning: the model shapes knows drawn shapes only, and this video")
    assert of_words.startswith("sidelight: warning: the model shapes never saw the words 'dog' and 'swims'")
    notes = [[f"sidelight: warning: {note}" for note in grounding["notes"]] for grounding in json.loads(printed.out)]
    assert notes == [[of_video, of_words], [of_video]]


def test_ground_without_a_model_names_the_default_and_asks_no_network(
    video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ground", str(video), "a person opens the door", "--offline"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for text in (
        "the model r2-tuning/qvhighlights is not on this machine, and sidelight must not use the network (--offline)",
        "checkpoints/r2_tuning_qvhighlights-ed516355.pth",
        "openai/clip-vit-base-patch32/resolve/3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268/pytorch_model.bin",
        "sidelight models import FOLDER",
        "--model shapes needs no download, but knows nothing except drawn shapes",
    ):
        assert text in message


def test_ground_with_an_empty_query_asks_for_no_model(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ground", str(video), " "]) == 2
    assert "a query is empty" in capsys.readouterr().err


def test_the_plot_has_as_many_moments_as_the_table(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tops = []
    monkeypatch.setattr(plotting, "plot_groundings", lambda *_, top, **__: tops.append(top))
    plot = str(tmp_path / "a.png")
    assert (
        main(["ground", str(video), "a star", "--model", "shapes", "--top", "2", "--plot", plot, "--device", "cpu"])
        == 0
    )
    assert tops == [2]


@pytest.mark.parametrize(
    ("queries", "noted"),
    [(["a", "star", "spins"], True), (["a star spins"], False), (["star"], False), (["a star", "ring"], False)],
)
def test_a_sentence_without_quotes_is_noted(
    queries: list[str], noted: bool, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ground", str(video), *queries, "--model", "shapes", "--device", "cpu"]) == 0
    assert ('for one sentence, use quotes: "a star spins"' in capsys.readouterr().err) == noted


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_every_encoding_can_be_written(encoding: str, video: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    command = [sys.executable, "-m", "sidelight", "ground", str(video), "ein grüner ★", "--model", "shapes"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([*command, "--json", str(target)], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert r"\u2605" in done.stdout.decode(encoding)
    assert json.loads(target.read_text())[0]["query"] == "ein grüner ★"


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("matplotlib", ["ground", "VIDEO", "a star", "--plot", "OUT.png"]),
        ("matplotlib", ["demo", "--out", "OUT"]),
        ("ray", ["extract", "VIDEO", "--out", "OUT", "--engine", "ray"]),
    ],
)
def test_a_missing_package_is_told_before_the_work(
    package: str,
    arguments: list[str],
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == package else find(name))
    monkeypatch.setattr(Grounder, "from_pretrained", lambda *_, **__: pytest.fail("the work began"))
    paths = {"VIDEO": str(video), "OUT": str(tmp_path / "out"), "OUT.png": str(tmp_path / "out.png")}
    assert main([paths.get(argument, argument) for argument in arguments]) == 2
    assert f'pip install "sidelight[{"ray" if package == "ray" else "plot"}]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_predict_and_calibrate_without_training(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores lie between 0 and 1, as `sidelight calibrate` needs them, and no query is without a moment."""
    rows = [json.loads(line) for line in (tiny_world / "annotations.jsonl").read_text().splitlines()]
    present = {row["vid"]: row for row in rows}
    absent = [
        {"qid": f"absent-{vid}", "query": "a dog swims in the sea", "vid": vid, "duration": row["duration"]}
        for vid, row in present.items()
    ]
    annotations, out = tmp_path / "with-absent.jsonl", tmp_path / "p.jsonl"
    annotations.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *absent]))
    arguments = ["--annotations", str(annotations), "--videos", str(tiny_world / "videos"), "--out", str(out)]
    assert main(["predict", "--model", "zero-shot/shapes", *arguments, "--device", "cpu"]) == 0
    assert main(["calibrate", str(out), str(annotations)]) == 0
    assert '"no such moment" below' in capsys.readouterr().out


def test_grounding_without_training_cannot_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "shapes-tiny", "--side_tuner", "zero-shot"]) == 2
    error = capsys.readouterr().err
    assert "zero-shot has no weights to train; choose a side-tuner: sdst" in error and len(error.splitlines()) == 1


def test_predict_and_evaluate(tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, out = str(tiny_world / "annotations.jsonl"), tmp_path / "p.jsonl"
    store, model = tmp_path / "store", ["--model", "shapes", "--device", "cpu"]
    videos = ["--videos", str(tiny_world / "videos"), "--features", str(store)]
    assert main(["predict", *model, "--annotations", annotations, *videos, "--out", str(out)]) == 0
    first = out.read_text()
    features = ["--features", str(store)]
    assert main(["predict", *model, "--annotations", annotations, *features, "--out", str(out)]) == 0
    assert out.read_text() == first and len(first.splitlines()) == len(Path(annotations).read_text().splitlines())
    capsys.readouterr()
    assert main(["evaluate", str(out), annotations, "--json", str(tmp_path / "m.json")]) == 0
    brief = json.loads((tmp_path / "m.json").read_text())["brief"]
    assert f"{'MR-full-mAP':<28}{brief['MR-full-mAP']:>7.2f}" in capsys.readouterr().out


def test_predict_from_features_of_weights_that_are_not_at_hand(
    tiny_world: Path, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"video_dim": 32, "text_dim": 32, "hidden": 16, "heads": 2, "moment_queries": 3, "roi_bins": 2}
    Checkpoint(
        model=build_model("sdst", sizes),
        model_name="sdst",
        model_config=sizes,
        features=FeatureStore(tiny_store).spec,
        decode=DecodeConfig(),
    ).save_pretrained(tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--annotations", str(tiny_world / "annotations.jsonl")]
    files = ["--features", str(tiny_store), "--out", str(tmp_path / "p.jsonl")]
    assert main(["predict", *options, *files, "--device", "cpu"]) == 0
    assert "wrote" in capsys.readouterr().out and (tmp_path / "p.jsonl").is_file()


def test_evaluate_equals_the_published_numbers(shared: Path, tmp_path: Path) -> None:
    golden = shared / "golden" / "qvhighlights-eval"
    annotations = shared / "data" / "qvhighlights" / "highlight_val_release.jsonl"
    target = tmp_path / "m.json"
    predictions = golden / "sample_val_preds.jsonl"
    assert main(["evaluate", str(predictions), str(annotations), "--json", str(target)]) == 0
    expected = json.loads((golden / "sample_val_preds_r2_metrics.json").read_text())
    assert json.loads(target.read_text())["brief"] == expected["brief"]


def test_summary_counts_the_papers_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "sdst-internvideo2-qvhighlights"]) == 0
    total = int(capsys.readouterr().out.splitlines()[-1].split()[2].replace(",", ""))
    assert abs(total / (4.10 * 2**20) - 1) < 0.03


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("true:") == 3
    assert {p.suffix for p in tmp_path.iterdir()} == {".mp4", ".json", ".png"}
    require_own_files(tmp_path)  # the next demo may replace them
    (tmp_path / "groundings.json").write_text("[]")
    assert main(["demo", "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert (tmp_path / "groundings.json").read_text() == "[]"


def test_shapes_and_extract(tmp_path: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--videos", "1", "--seed", "5", "--shortest", "20", "--longest", "20", "--side", "128"]
    assert main(["shapes", "--out", str(tmp_path / "w"), *arguments, "--workers", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["videos", "1,", "20", "s"]
    world = tmp_path / "w"
    source = [str(world / "videos"), "--annotations", str(world / "annotations.jsonl")]
    assert main(["extract", *source, "--out", str(tmp_path / "s"), "--device", "cpu"]) == 0
    assert "1 of 1 video, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["grond"],
            "sidelight: there is no command 'grond'; did you mean 'ground'? (sidelight --help lists",
        ),
        (["xyz"], "sidelight: there is no command 'xyz' (sidelight --help lists all commands)"),
        (["data", "chek", "x"], "did you mean 'check'?"),
        (["ground", "VIDEO", "a star", "--tpo", "3"], "did you mean '--top'?"),
        (["train", "shaps"], "there is no recipe shaps; did you mean 'shapes'?"),
        (["train", "shapes", "--train.epoch=3"], "did you mean '--train.epochs'?"),
        (["ground", "VIDEO", "a star", "--model", "shaeps"], "did you mean 'shapes'?"),
        (["summary", "--config", "BACKBONE"], "shapes-backbone.yaml is a recipe for `sidelight pretrain`, not for"),
        (["shapes", "--out", "VIDEO", "--videos", "1"], "is a file; give another place"),
        (["demo", "--out", "VIDEO"], "is a file; give another place"),
        (["ground"], "video"),
        (["ground", "nowhere.mp4", "a star"], "nowhere.mp4 does not exist"),
        (["ground", "VIDEO", ""], "a query is empty"),
        (["ground", "VIDEO", "a star", "--top", "0"], "--top must be 1 or more"),
        (["ground", "VIDEO", "a star", "--top", "many"], "--top must be a whole number, got 'many'"),
        (["ground", "VIDEO", "a star", "--min-score", "nan"], "--min-score must be a finite number"),
        (["ground", "VIDEO", "a star", "--model", "nothing"], "there is no model 'nothing'"),
        (["ground", "VIDEO", "a star", "--plot", "/no/such/folder/a.png"], "there is no folder"),
        (["ground", "VIDEO", "a star", "--nonsense"], "nonsense"),
        (["ground", "VIDEO", "a star", "--device", "quantum"], "quantum"),
        (["evaluate", "nowhere.jsonl", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["train", "nowhere.yaml"], "there is no recipe nowhere.yaml"),
        (["train"], "needs a recipe"),
        (
            ["train", "shapes-backbone"],
            "is a recipe for `sidelight pretrain`, not for `sidelight train`",
        ),
        (["pretrain", "shapes"], "shapes is a recipe for `sidelight train`, not for `sidelight pretrain`"),
        (["train", "shapes", "--train.device=2"], "unrecognized arguments: --train.device=2"),
        (["train", "shapes", "--train.epochs=none"], "train.epochs"),
        (["train", "shapes", "--data.train=nowhere.jsonl"], "nowhere.jsonl"),
        (["summary", "shapes", "--model.heads=7"], "heads"),
        (["shapes", "--out", "OUT", "--videos", "0"], "videos must be 1 or more"),
        (["shapes", "--videos", "3"], "the following arguments are required: --out (see sidelight shapes --help)"),
        (["predict", "--annotations", "x", "--out", "y"], "give --videos"),
        (["data"], "sidelight data needs a sub-command; expected one of check, import"),
        (["data", "export"], "sidelight data has no sub-command 'export'"),
        (["data", "import", "x"], "the following arguments are required: --out (see sidelight data import --help)"),
        (["convert", "clip", "x", "--out", "y", "--heads", "0"], "--heads must be 1 or more, got 0"),
        (["completion", "fish"], "shell must be one of bash, zsh, got 'fish'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: list[str], expected: str, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"VIDEO": str(video), "OUT": str(tmp_path / "out"), "BACKBONE": str(recipe_file("shapes-backbone"))}
    assert main([paths.get(argument, argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("sidelight: ") and expected in message and len(message.strip().splitlines()) == 1


def test_predict_warns_of_what_the_model_cannot_know(
    tiny_world: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    films = tmp_path / "films"
    films.mkdir()
    own = sorted((tiny_world / "videos").iterdir())[0]
    shutil.copy(own, films)
    shutil.copy(shared / "videos" / "flipping_a_pancake.mkv", films / "pancake.mkv")

    def predict(vid: str, query: str, duration: float) -> str:
        row = {"qid": 1, "query": query, "vid": vid, "duration": duration, "relevant_windows": [[0, 2]]}
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
        options = f"--model shapes --annotations {tmp_path}/rows.jsonl --videos {films} --out {tmp_path}/out.jsonl"
        assert main(["predict", *options.split()]) == 0
        return "".join(line for line in capsys.readouterr().err.splitlines(True) if "warning" in line)

    assert predict(own.stem, "a red star spins", probe(own).duration) == ""
    warnings = predict("pancake", "a dog swims", probe(films / "pancake.mkv").duration)
    assert "1 query: the model shapes never saw the words 'dog' and 'swims'" in warnings
    assert "1 video: the model shapes knows drawn shapes only" in warnings


def test_an_empty_recipe_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("")
    assert main(["train", str(tmp_path / "mine.yaml"), "--check"]) == 2
    assert "mine.yaml: this file is empty; copy one of the recipes" in capsys.readouterr().err


def test_quiet_and_verbose(
    video: Path, tiny_world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "0")  # --quiet sets it; this restores it
    logger = logging.getLogger("sidelight.anything")
    results = []
    for options in ([], ["--quiet"], ["--verbose"]):
        assert main(["data", "check", str(tiny_world), *options]) == 0
        results.append(capsys.readouterr().out)
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logger.log(level, "level %s", level)
        shown = [int(line.split()[1]) for line in capsys.readouterr().err.splitlines() if line.startswith("level")]
        assert shown == {"--quiet": [40], "--verbose": [10, 20, 30, 40]}.get("".join(options), [20, 30, 40])
    assert results[0] == results[1] == results[2]
    assert main(["ground", "nothing.mp4", "x", "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["cache", "--quiet", "--verbose"]) == 2
    assert "--quiet and --verbose exclude each other" in capsys.readouterr().err


def test_no_moment_is_exit_code_1(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ground", str(video), "a red square spins", "--model", "shapes", "--device", "cpu", "--no-cache"]
    assert main([*command, "--min-score", "1", "--json", "-"]) == 1
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["moments"] == [] and answer["sidelight"] == __version__ and len(answer["features"]) == 16
    assert main([*command, "--top", "1"]) == 0
