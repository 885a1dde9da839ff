"""Files are written whole or not at all, whatever fails; what killed processes leave is swept."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sidelight.io.files import only_writer, read_json, replacing, replacing_folder, sweep, write_text

KILLED = """
import os, sys
from pathlib import Path
from sidelight.io.files import replacing, replacing_folder
with replacing_folder(sys.argv[1]) as folder:
    folder.mkdir()
    (folder / "model.safetensors").write_text("half")
    with replacing(Path(sys.argv[1]).with_name("film.mp4")) as beside:
        beside.write_text("half")
        os._exit(9)
"""


def age(folder: Path, seconds: float) -> None:
    """Let everything in a folder look as if it was written some seconds ago."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


def test_what_a_killed_process_leaves_is_swept_by_the_next_run(tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert subprocess.run([sys.executable, "-c", KILLED, str(out)]).returncode == 9
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 2 and all(".partial" in name for name in left)
    other = tmp_path / ".other.partial"  # not of this folder's name
    other.write_text("mine")
    with replacing_folder(out) as folder:  # in the same minute: the process may live in another container
        folder.mkdir()
    assert len(list(tmp_path.iterdir())) == 4
    age(tmp_path, 120)
    out.rmdir()
    with replacing_folder(out) as folder:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["model", ".other.partial", *(name for name in left if name.startswith(".film"))]
    )
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.partial", "model"]


@pytest.mark.parametrize(
    ("name", "seconds", "stays"),
    [
        (".tmpAbC123", 120, True),
        (".tmpAbC123", 7200, False),
        (".tmpfile", 7200, True),
        (".a.000000-1-abcdef.partial.json", 7200, True),
        (".a.000000-1-abcdef.partial.json", 90_000, False),
    ],
)
def test_old_parts_are_swept(name: str, seconds: float, stays: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_text("half")
    age(tmp_path, seconds)
    sweep(tmp_path)
    assert (tmp_path / name).exists() == stays


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_disk_that_cannot_sync_is_an_error_and_one_that_knows_no_sync_is_none(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(code, os.strerror(code))

    write_text(tmp_path / "a.txt", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        if code in (errno.EINVAL, errno.EOPNOTSUPP):
            write_text(tmp_path / "a.txt", "new")
        else:
            with pytest.raises(OSError, match=r"a\.txt") as raised:
                write_text(tmp_path / "a.txt", "new")
            assert raised.value.filename == str(tmp_path / "a.txt") and raised.value.errno == code
    expected = "new" if code in (errno.EINVAL, errno.EOPNOTSUPP) else "old"
    assert (tmp_path / "a.txt").read_text() == expected and len(list(tmp_path.iterdir())) == 1


def test_errors_name_the_file_that_the_user_knows(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised, replacing(tmp_path / "a.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(tmp_path / "a.json")
    with pytest.raises(OSError) as raised, replacing_folder(tmp_path / "model") as folder:
        (folder / "sub" / "x").write_text("")
    assert raised.value.filename == str(tmp_path / "model")
    with pytest.raises(FileNotFoundError) as raised, replacing(tmp_path / "b.json"):
        Path("other.json").read_text()
    assert raised.value.filename == "other.json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("{'a': 1}", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "list"),
    ],
)
def test_json_that_cannot_be_read_names_its_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json .*{message}"):
        read_json(tmp_path / "a.json")


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from sidelight.io.files import only_writer\n"
        "try:\n"
        "    with only_writer(sys.argv[1], option='--out'): pass\n"
        "except ValueError as error: sys.exit(str(error))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with only_writer(tmp_path / "out", option="--out"):
        refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1 and f"another process (number {os.getpid()}) writes into" in refused.stderr
    assert "give --out another folder" in refused.stderr
    assert subprocess.run(command).returncode == 0
