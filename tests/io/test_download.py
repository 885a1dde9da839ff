"""Test the download of models: resumed, shared by processes, compared with digests, and refused in one sentence."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidelight.io.download import DownloadError, announcement, fetch, is_offline, offline
from sidelight.io.pinned import Download, HubFile, digest_of, import_file, is_here, local_folder, models_cache, remove
from sidelight.io.storage import StorageError, hub_answers, local_copy
from tests.hub import Hub, serving

WEIGHTS = bytes(range(256)) * 4096
"""1 MiB, the content of the file with the weights."""
VOCABULARY = b"a b c\n"


def download(revision: str = "0123456789abcdef", *, pinned: bool = True, page: str = "") -> Download:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    return Download(
        title="A model",
        licence="MIT",
        repository="user/model",
        revision=revision,
        files=(
            HubFile(path="sub/weights.bin", sha256=digest if pinned else "", size=len(WEIGHTS)),
            HubFile(path="vocab.json"),
        ),
        page=page,
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve the files; sidelight asks this hub."""
    monkeypatch.setattr("time.sleep", lambda _: None)  # the pauses between tries
    with serving(Hub("user/model", {"sub/weights.bin": WEIGHTS, "vocab.json": VOCABULARY})) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def test_the_first_use_downloads_and_records_and_the_second_asks_nothing(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    (folder,) = fetch([download()], needed_by="the model m", hint="try another")
    assert (folder / "sub" / "weights.bin").read_bytes() == WEIGHTS
    assert (folder / "vocab.json").read_bytes() == VOCABULARY
    screen = caplog.text
    for text in ("the model m is not on this machine yet", "A model", "1.0 MB", "MIT", "user/model", "Try another."):
        assert text in screen
    assert str(models_cache()) in screen
    requests = len(hub.log)
    caplog.clear()
    assert fetch([download()], needed_by="m") == [folder] and len(hub.log) == requests
    assert caplog.text == ""
    lock = (models_cache() / "models.toml").read_text()
    assert hashlib.sha256(WEIGHTS).hexdigest() in lock and hashlib.sha256(VOCABULARY).hexdigest() in lock
    assert '["user/model@0123456789abcdef/sub/weights.bin"]' in lock


@pytest.mark.parametrize("cut_after", [0, 1, 400_000])
def test_a_download_goes_on_where_it_broke_off(hub: Hub, cut_after: int) -> None:
    hub.cut_after = cut_after
    with pytest.raises(DownloadError, match="the same command goes on from there") as caught:
        fetch([download()], needed_by="the model m")
    assert "\n" not in str(caught.value)
    part = download().folder / "sub" / "weights.bin.part"
    assert part.stat().st_size == cut_after and not is_here(download())
    hub.cut_after, hub.served = None, 0
    fetch([download()], needed_by="the model m")
    assert hub.served == len(WEIGHTS) - cut_after + len(VOCABULARY)
    assert not part.exists() and is_here(download())


def test_a_part_of_another_file_is_dropped(hub: Hub) -> None:
    part = download().folder / "sub" / "weights.bin.part"
    part.parent.mkdir(parents=True)
    for content in (b"x" * 1000, b"x" * (len(WEIGHTS) + 5), b"x" * len(WEIGHTS)):
        part.write_bytes(content)
        (folder,) = fetch([download()], needed_by="m")
        assert (folder / "sub" / "weights.bin").read_bytes() == WEIGHTS
        remove(download())
        part.parent.mkdir(parents=True)


def test_a_complete_part_is_not_downloaded_again(hub: Hub) -> None:
    part = download().folder / "sub" / "weights.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS)
    (folder,) = fetch([download()], needed_by="m")
    assert (folder / "sub" / "weights.bin").read_bytes() == WEIGHTS and hub.served == len(VOCABULARY)


def test_a_pinned_file_with_other_bytes_is_refused(hub: Hub) -> None:
    hub.files["sub/weights.bin"] = WEIGHTS[:-1] + b"x"
    with pytest.raises(ValueError, match=r"has other content than expected: its SHA-256 begins with \w{8}, expected"):
        fetch([download()], needed_by="m")
    assert not list(download().folder.rglob("*.bin*"))


def test_a_file_that_changes_on_this_machine_is_refused(hub: Hub) -> None:
    (folder,) = fetch([download()], needed_by="m")
    path = folder / "sub" / "weights.bin"
    path.write_bytes(WEIGHTS[:-1] + b"x")
    with pytest.raises(ValueError, match="was changed or is damaged: its SHA-256 begins with") as caught:
        fetch([download()], needed_by="m")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path.unlink()
    assert fetch([download()], needed_by="m") == [folder]


def test_the_digest_of_the_first_use_counts_where_none_is_known(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = fetch([download(pinned=False)], needed_by="m")
    remove(download(pinned=False))
    assert not folder.exists()
    hub.files["sub/weights.bin"] = b"another"
    with pytest.raises(ValueError, match="has other content than expected"):
        fetch([download(pinned=False)], needed_by="m")
    (models_cache() / "models.toml").write_text("no [toml")
    with pytest.raises(ValueError, match=r"models\.toml is not valid TOML"):
        fetch([download(pinned=False)], needed_by="m")


def test_the_switch_for_rehearsals_compares_with_the_lock_file_only(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["sub/weights.bin"] = b"random weights"
    monkeypatch.setenv("SIDELIGHT_ANY_DIGEST", "1")
    (folder,) = fetch([download()], needed_by="m")
    file = folder / "sub" / "weights.bin"
    monkeypatch.delenv("SIDELIGHT_ANY_DIGEST")
    os.utime(file, (0, 0))  # as if it was copied, so that it is read again
    digits = [hashlib.sha256(content).hexdigest()[:8] for content in (b"random weights", WEIGHTS)]
    with pytest.raises(ValueError, match=f"its SHA-256 begins with {digits[0]}, expected {digits[1]}"):
        fetch([download()], needed_by="m")
    monkeypatch.setenv("SIDELIGHT_ANY_DIGEST", "1")
    file.write_bytes(b"other weights")
    with pytest.raises(ValueError, match="was changed or is damaged"):
        fetch([download()], needed_by="m")


def test_without_a_network_there_is_one_sentence_with_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("the download tries again"))
    with pytest.raises(DownloadError) as caught:
        fetch([download()], needed_by="the model m", hint="try another")
    message = str(caught.value)
    for text in (
        "the model m is not on this machine, and 127.0.0.1:9 cannot be reached (Connection refused)",
        "http://127.0.0.1:9/user/model/resolve/0123456789abcdef/sub/weights.bin (with vocab.json from beside it)",
        "try again later, or bring the files by hand",
        "sidelight models import FOLDER; try another",
    ):
        assert text in message
    assert "\n" not in message


def test_a_file_that_the_hub_lacks_is_one_sentence(hub: Hub) -> None:
    del hub.files["vocab.json"]
    with pytest.raises(DownloadError, match=r"does not provide vocab\.json \(HTTP 404\)"):
        fetch([download()], needed_by="m")


@pytest.mark.parametrize("variable", [None, "SIDELIGHT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_asks_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch, variable: str | None) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    with offline(variable is None):
        assert is_offline()
        with pytest.raises(DownloadError, match="must not use the network"):
            fetch([download()], needed_by="m")
        with pytest.raises(StorageError, match="must not use the network"), local_copy("https://host/video.mp4"):
            pass
        assert not hub_answers()
    assert hub.log == [] and is_offline() is (variable is not None)


def test_a_server_without_head_requests(hub: Hub) -> None:
    hub.head_status = 405
    assert fetch([download()], needed_by="m")


def test_a_page_is_for_people(hub: Hub) -> None:
    with pytest.raises(
        DownloadError, match=r"only a person can download it: bring the files by hand: download https://host/page"
    ):
        fetch([download(page="https://host/page")], needed_by="m")
    assert hub.log == []


def test_a_small_disk_is_refused_before(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ValueError, match=r"has 1\.0 kB free, and the download needs 1\.0 MB: make room there"):
        fetch([download()], needed_by="m")
    assert hub.log == []


def test_files_in_the_cache_of_the_hubs_client_are_used(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--user--model" / "snapshots" / revision
    (snapshot / "sub").mkdir(parents=True)
    (snapshot / "sub" / "weights.bin").write_bytes(WEIGHTS)
    (snapshot / "vocab.json").write_bytes(VOCABULARY)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert local_folder(download(revision)) == snapshot and hub.log == []


def test_imported_files_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "renamed.bin").write_bytes(WEIGHTS)
    (tmp_path / "vocab.json").write_bytes(VOCABULARY)
    assert import_file(tmp_path / "renamed.bin", [download()]) == [download()]
    assert not is_here(download()) and [f.name for f in download().missing_files()] == ["vocab.json"]
    import_file(tmp_path / "vocab.json", [download()])
    folder = local_folder(download())
    assert folder is not None and (folder / "sub" / "weights.bin").read_bytes() == WEIGHTS
    assert remove(download()) == len(WEIGHTS) + len(VOCABULARY) and local_folder(download()) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("weights.bin", b"x", "is not the weights.bin that sidelight knows: its SHA-256 begins with"),
        ("other.bin", b"x", "is no file of a model that sidelight knows"),
        ("vocab.json", b"x", r"could belong to A model and A model"),
    ],
)
def test_other_files_are_not_imported(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        import_file(tmp_path / name, [download(), download("another")])
    assert not models_cache().exists()


def test_files_that_only_their_names_tell_are_imported_together(tmp_path: Path) -> None:
    """Refuse a changed config.json of one model as the config.json of another one without a known digest."""
    others = Download(
        title="B model",
        licence="MIT",
        repository="user/b",
        files=(HubFile(path="model.safetensors"), HubFile(path="config.json")),
    )
    (tmp_path / "config.json").write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"belongs to B model, together with model.safetensors: put all of them into"):
        import_file(tmp_path / "config.json", [others])
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert import_file(tmp_path / "config.json", [others]) == [others]
    assert import_file(tmp_path / "model.safetensors", [others]) == [others] and is_here(others)


SCRIPT = """
import sys
from tests.io.test_download import download
from sidelight.io.download import fetch
from sidelight.io.pinned import digest_of
print(digest_of(fetch([download()], needed_by="the model m")[0] / "sub" / "weights.bin"))
"""


@pytest.mark.slow
def test_two_processes_that_download_at_once_both_succeed(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Hub("user/model", {"sub/weights.bin": WEIGHTS, "vocab.json": VOCABULARY}, delay=1.0)) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                cwd=Path(__file__).parents[2],
            )
            for _ in range(2)
        ]
        results = [process.communicate(timeout=120) for process in processes]
    for process, (out, err) in zip(processes, results, strict=True):
        assert process.returncode == 0, err
        assert out.strip() == hashlib.sha256(WEIGHTS).hexdigest()
    assert sum("waiting for it" in err for _, err in results) == 1
    assert hub.gets() == 2, hub.log  # each file once


def test_the_announcement_has_one_row_per_download() -> None:
    screen = announcement([download(), download("b")], "the model m")
    assert screen.count("A model") == 2 and "in all 2.1 MB" in screen
    assert max(map(len, screen.splitlines())) < 200


def test_the_digest_of_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert digest_of(tmp_path / "empty") == hashlib.sha256(b"").hexdigest()
