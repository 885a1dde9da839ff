"""Test `sidelight models` and `sidelight cache`; tests/training/test_named.py pulls, imports and removes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sidelight.cli.main import main
from sidelight.io.cache import PARTS, feature_limit, parse_size, trim_features
from sidelight.io.files import cache_folder
from sidelight.training.named import NAMED_MODELS


@pytest.fixture(autouse=True)
def short_film(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidelight.cli.speeds._FILM_SECONDS", 2)


def test_models_are_listed_and_measured_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "sidelight models --measure fills the column s per min" in printed.out
    assert "607 MB + a file that you bring" in printed.out
    assert main(["models", "--json", "-", "--device", "cpu", "--measure"]) == 0
    printed = capsys.readouterr()
    rows = {row["name"]: row for row in json.loads(printed.out)}
    assert list(rows) == [name for name, model in NAMED_MODELS.items() if not model.special]
    assert "measuring shapes on cpu" in printed.err
    assert rows["shapes"]["here"] and rows["shapes"]["seconds_per_minute"] > 0
    default = rows["r2-tuning/qvhighlights"]
    assert not default["here"] and default["seconds_per_minute"] is None
    assert list(default["bytes"].values()) == [11_400_000, 606_638_242]
    assert main(["models", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "--measure" not in printed.out
    head, *lines = printed.out.splitlines()
    assert head.split("  ")[0] == "model" and "licence" in head and "s per min" in head
    assert [line.split()[0] for line in lines[: len(rows)]] == list(rows)
    assert "r2-tuning/qvhighlights (default)" in printed.out and "11 MB + 607 MB" in printed.out
    assert "16 more models know the highlights of one kind of video: sidelight models --all" in printed.out
    assert main(["models", "--all", "--device", "cpu"]) == 0
    assert "YouTube Highlights, dog" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_narrower_than_the_table_gets_paragraphs(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["models", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "r2-tuning/qvhighlights (default): moments and highlights of vlogs and news" in lines
    assert "    trained on QVHighlights, backbone CLIP ViT-B/32, queries in English" in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["models", "pull", "shaeps"],
            "there is no model 'shaeps'; did you mean 'shapes'? Known are shapes, r2-tuning/qvhighlights",
        ),
        (["models", "remove", "shapes"], "shapes comes with sidelight and cannot be removed"),
        (["models", "remove", "r2-tuning/tacos"], "r2-tuning/tacos has no files on this machine that can be deleted"),
        (["models", "pull", "r2-tuning/tacos"], "127.0.0.1:9 cannot be reached"),
        (["models", "import", "nothing.pth"], "nothing.pth does not exist; give the file that you downloaded"),
        (["models", "import", "."], "holds no file of a model that sidelight knows"),
        (["models", "pul"], "sidelight models has no sub-command 'pul'; expected one of pull, remove, import"),
        (["cache", "limit", "much"], "the limit must be a size such as 20GB or 500MB, got 'much'"),
        (["cache", "clear", "all", "--x"], "unrecognized arguments: --x"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.splitlines()[-1].startswith("sidelight: ")


def test_pulling_a_model_that_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pull", "shapes"]) == 0
    assert capsys.readouterr().out.startswith("shapes is here (comes with sidelight); use it: sidelight ground VIDEO")


def features(name: str, size: int, age: int) -> Path:
    """Write a file of features of a size, last used some seconds ago."""
    path = cache_folder("features") / "spec" / "videos" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))
    return path


def test_the_cache_is_shown_limited_and_cleared(capsys: pytest.CaptureFixture[str]) -> None:
    old, new = features("old", 4000, age=100), features("new", 3000, age=1)
    manifest = old.parent.parent / "manifest.json"
    manifest.write_text("{}")
    assert main(["cache"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"{cache_folder('features').parent} (SIDELIGHT_CACHE") and "7.0 kB" in output
    assert all(part in output for part in PARTS) and "Features may take 20 GB" in output
    assert main(["cache", "limit", "5 kB"]) == 0
    assert capsys.readouterr().out == "features may take 5.0 kB; deleted 4.0 kB\n"
    assert not old.exists() and new.exists() and manifest.exists() and feature_limit() == 5000
    (cache_folder("models")).mkdir()
    (cache_folder("models") / "models.toml").touch()
    assert main(["cache", "clear", "all"]) == 0
    assert not new.exists() and (cache_folder("models") / "models.toml").exists() and feature_limit() == 5000
    capsys.readouterr()
    assert main(["cache", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["features"]["bytes"] == len("5000\n")


@pytest.mark.parametrize(
    ("limit", "left"), [(0, []), (2999, []), (3000, ["new"]), (6999, ["new"]), (7000, ["new", "old"])]
)
def test_features_that_were_not_used_for_longest_go_first(
    limit: int, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    features("old", 4000, age=100), features("new", 3000, age=1)
    monkeypatch.setenv("SIDELIGHT_CACHE_LIMIT", str(limit))
    trim_features()
    assert sorted(path.stem for path in cache_folder("features").rglob("*.safetensors")) == left


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("20GB", 20 * 1000**3), ("1.5 mb", 1_500_000), ("7 kB", 7000), ("4GiB", 4 << 30), ("12 bytes", 12)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text, name="size") == size


@pytest.mark.parametrize("text", ["", "much", "-1", "1 PB", "GB", "2 kbytes"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size must be a size such as 20GB"):
        parse_size(text, name="size")
