"""The command `sidelight serve`: a mistake is one sentence, and the service ends tidily."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from sidelight.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing is not a folder; expected folders with video files"),
        (["--no-uploads"], "there is no video to ask about; give a folder, or leave out --no-uploads"),
        (["--uploads", "new", "--no-uploads"], "--uploads and --no-uploads exclude each other"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines connect, so it needs --token"),
        (["--token", "short"], "token must be 16 to 512"),
        (["--port", "70000"], "--port must be between 0 and 65535, got 70000"),
        (["--queue", "0"], "--queue must be 1 or more, got 0"),
        (["--host", "203.0.113.1", "--token", "x" * 16], "cannot listen at 203.0.113.1, port 8000"),
        (["--model", "nothing", "--port", "0"], "nothing"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port), "--model", "shapes"]) == 2
    assert f"port {port}: Address already in use; give another --port" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "package"), [("serve", "fastapi"), ("serve", "uvicorn"), ("mcp", "mcp")])
def test_a_missing_extra_is_named(
    command: str, package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert main([command, str(tmp_path)]) == 2
    assert f'pip install "sidelight[{command}]"' in capsys.readouterr().err


def test_the_service_starts_and_ends(films: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "SIDELIGHT_TOKEN": "a-token-of-some-length"}
    command = [sys.executable, "-m", "sidelight", "serve", str(films), "--model", "shapes", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = line.split(" at ")[1].split()[0]
        assert line.startswith("sidelight serves shapes at http://127.0.0.1:")
        headers = {"Authorization": "Bearer a-token-of-some-length"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{address}v1/videos", headers=headers), timeout=20
        ) as response:
            assert json.load(response)["total"] == 5
        assert len(list(tmp_path.glob("sidelight-uploads-*"))) == 1
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20)[0] == "the service has ended\n"
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
    assert list(tmp_path.glob("sidelight-uploads-*")) == [], "the temporary folder of uploads is gone"
