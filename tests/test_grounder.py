"""A file and a sentence become a grounding, with a tiny random model."""

from __future__ import annotations

import errno
import io
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from sidelight import Grounder, Grounding
from sidelight.backbones import SpecMismatchError, load_backbone
from sidelight.backbones.shapes.model import ShapesBackbone
from sidelight.core.timeline import Timeline
from sidelight.features import growing, store
from sidelight.features.extract import encode_video_file
from sidelight.features.sources import content_digest, videos_of
from sidelight.features.store import FeatureStore, VideoFeatures
from sidelight.grounder import OutsideWarning, default_cache
from sidelight.io.cache import CacheWarning, set_feature_limit
from sidelight.io.download import DownloadError
from sidelight.io.storage import StorageError
from sidelight.models.decode.r2_tuning import R2DecodeConfig
from sidelight.models.decode.sdst import DecodeConfig
from sidelight.models.registry import build_model
from sidelight.training import predict
from sidelight.training.checkpoint import Checkpoint
from sidelight.video.read import VideoError, VideoWarning, probe

SMALL = {"video_dim": 32, "text_dim": 32, "hidden": 32, "heads": 4, "moment_queries": 6}


@pytest.fixture
def backbone(tiny_backbone: Path) -> ShapesBackbone:
    return ShapesBackbone(weights=tiny_backbone)


@pytest.fixture
def checkpoint(backbone: ShapesBackbone) -> Checkpoint:
    torch.manual_seed(0)
    model = build_model("sdst", SMALL).eval()
    return Checkpoint(model=model, model_name="sdst", model_config=SMALL, features=backbone.spec, decode=DecodeConfig())


@pytest.fixture
def video(tiny_world: Path) -> Path:
    return sorted((tiny_world / "videos").iterdir())[0]


def test_a_sentence_gives_a_grounding_and_several_a_list(
    checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path
) -> None:
    grounder = Grounder(checkpoint, backbone=backbone, device="cpu")
    single = grounder.ground(video, "a red star spins")
    assert type(single) is Grounding
    assert single.video == str(video) and single.moments
    assert len(single.saliency) == single.timeline.num_clips
    both = grounder.ground(video, ["a red star spins", "a ring"])
    assert [g.query for g in both] == ["a red star spins", "a ring"]
    np.testing.assert_allclose(both[0].saliency, single.saliency, atol=1e-4)
    for a, b in zip(both[0].moments, single.moments, strict=True):
        assert a.start == pytest.approx(b.start, abs=1e-2) and a.score == pytest.approx(b.score, abs=1e-4)


def test_clips_are_rounded_as_in_training(
    checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path, tmp_path: Path
) -> None:
    """Check that a last clip of which less than a half lies in the video is left out, from the same cached features."""
    plain = Grounder(checkpoint, backbone=backbone, device="cpu")
    features, text = plain.features(video), plain.encode(["a ring"])
    short = VideoFeatures(video_KTD=features.video_KTD[:, :6], timeline=Timeline(duration=10.697, clip_seconds=2.0))
    rounding = Grounder(replace(checkpoint, round_clips=True), backbone=backbone, device="cpu")
    (whole,), (rounded,) = (g.ground_features(short, text, ["a ring"]) for g in (plain, rounding))
    assert (len(whole.saliency), len(rounded.saliency)) == (6, 5)
    assert rounded.timeline.duration == 10.697
    saved = replace(checkpoint, round_clips=True)
    saved.save_pretrained(tmp_path)
    assert Checkpoint.from_pretrained(tmp_path).round_clips


GrounderWith = Callable[[Path | None], Grounder]


@pytest.fixture
def grounder_with(checkpoint: Checkpoint, backbone: ShapesBackbone) -> GrounderWith:
    """Return a function that makes a grounder with a cache."""
    return lambda cache: Grounder(checkpoint, backbone=backbone, cache=cache, device="cpu")


def test_the_cache_goes_by_content(
    grounder_with: GrounderWith, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copy(video, tmp_path / "copy.mp4"))
    grounder = grounder_with(tmp_path / "cache")
    first = grounder.ground(copy, "a ring")
    copy.rename(tmp_path / "renamed.mp4")
    monkeypatch.setattr(ShapesBackbone, "encode_video", lambda *_: pytest.fail("the features are in the cache"))
    again = grounder.ground(tmp_path / "renamed.mp4", "a ring")
    assert again.moments == first.moments and np.array_equal(again.saliency, first.saliency)


def test_a_cache_that_cannot_be_written_is_a_warning(
    grounder_with: GrounderWith, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = grounder_with(None).ground(video, "a ring")
    (tmp_path / "file").write_text("in the way")
    grounder = grounder_with(tmp_path / "file" / "cache")
    with pytest.warns(CacheWarning, match="not kept: no store can be made in .* SIDELIGHT_CACHE can name"):
        assert grounder.ground(video, "a ring").moments == expected.moments
    grounder = grounder_with(tmp_path / "cache")
    monkeypatch.setattr(FeatureStore, "put_video", full)
    with pytest.warns(CacheWarning, match="No space left on device"):
        assert grounder.ground(video, "a ring").moments == expected.moments


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 4  # the exponent of a number
    path.write_bytes(data)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'duration\\": \\"20', b'duration\\": \\"19'))


def block(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def no_store(path: Path) -> None:
    path.write_text('{"format": "x"}')


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *[("videos/*", damage) for damage in (cut, empty, flip_a_bit, lengthen, block)],
        *[("manifest.json", damage) for damage in (cut, empty, no_store, block)],
        ("../limit", empty),
    ],
)
def test_a_damaged_cache_is_made_again(
    grounder_with: GrounderWith, video: Path, file: str, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that the answer is right, that nothing is said, and that the next call reads the cache again."""
    grounder = grounder_with(default_cache())
    expected = grounder.ground(video, "a ring")
    set_feature_limit(10**9)
    (path,) = (default_cache() / grounder.backbone.spec.digest()).glob(file)
    before = path.read_bytes()
    damage(path)
    assert not path.is_file() or path.read_bytes() != before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert grounder.ground(video, "a ring") == expected
    monkeypatch.setattr(ShapesBackbone, "encode_video", lambda *_: pytest.fail("the features are in the cache"))
    assert grounder.ground(video, "a ring") == expected


def test_many_threads_share_a_grounder(
    grounder_with: GrounderWith, tiny_world: Path, damaged_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check answers and warnings of 16 threads, and that the warnings of the host process stay its own."""
    seen: list[tuple[int, str]] = []

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        seen.append((threading.get_ident(), str(message)))

    videos = [*sorted((tiny_world / "videos").iterdir()), damaged_video]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        expected = [grounder_with(None).ground(video, ["a ring", "a red star spins"]) for video in videos]
        assert [notes for answers in expected for notes in answers[0].notes] == [message for _, message in seen]
        seen.clear()
        grounder = grounder_with(tmp_path / "cache")

        def work(number: int) -> tuple[int, int, list[Grounding]]:
            which = number % len(videos)
            return threading.get_ident(), which, grounder.ground(videos[which], ["a ring", "a red star spins"])

        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(work, range(64)))
        assert warnings.showwarning is show
    for _, which, answers in results:
        assert answers == expected[which]
    damaged = [thread for thread, which, _ in results if which == len(videos) - 1]
    assert sorted(thread for thread, _ in seen) == sorted(damaged) and len(damaged) == 16
    assert len(FeatureStore(tmp_path / "cache" / grounder.backbone.spec.digest()).videos()) == len(videos) - 1


@pytest.fixture
def damaged_video(video: Path, tmp_path: Path) -> Path:
    """Write a copy of the video with zeros in one packet of its second half."""
    with av.open(str(video)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data, packet = video.read_bytes(), max(packets[len(packets) // 2 :], key=len)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data.replace(packet, bytes(len(packet))))
    return path


def test_features_of_a_damaged_video_are_not_cached(
    checkpoint: Checkpoint, backbone: ShapesBackbone, damaged_video: Path, video: Path, tmp_path: Path
) -> None:
    """Check that each query on a damaged file warns about the damage, because the file is decoded each time."""
    grounder = Grounder(checkpoint, backbone=backbone, cache=tmp_path / "cache", device="cpu")
    store = FeatureStore.create(tmp_path / "cache" / backbone.spec.digest(), backbone.spec)
    groundings = []
    for _ in range(2):
        with pytest.warns(VideoWarning, match="damaged"):
            groundings.append(grounder.ground(damaged_video, "a ring"))
        assert store.videos() == []
    assert groundings[0].moments == groundings[1].moments
    grounder.ground(video, "a ring")
    assert len(store.videos()) == 1


def test_notes_about_a_video_are_in_each_answer(
    checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check two recordings in one file, and that features which an earlier version cached for it are not used."""
    path = tmp_path / "joined.mp4"
    path.write_bytes(2 * video.read_bytes())
    grounder = Grounder(checkpoint, backbone=backbone, cache=tmp_path / "cache", device="cpu")
    store = FeatureStore.create(tmp_path / "cache" / backbone.spec.digest(), backbone.spec)
    store.put_video(content_digest(path), encode_video_file(video, backbone))
    for _ in range(2):
        with pytest.warns(VideoWarning, match="joins 2 recordings") as caught:
            grounding = grounder.ground(path, "a ring")
        assert len(caught) == 1
        assert grounding.notes == (str(caught[0].message),) == tuple(grounding.at_least(0.5).to_dict()["notes"])
        assert Grounding.from_json(grounding.to_json()) == grounding
        assert grounding.timeline.duration == pytest.approx(2 * probe(video).duration)
        monkeypatch.setattr(ShapesBackbone, "encode_video", lambda *_: pytest.fail("the features are in the cache"))


def test_a_long_video_is_read_in_windows(checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path) -> None:
    windowed = replace(checkpoint, window_clips=6)
    groundings = Grounder(windowed, backbone=backbone, device="cpu").ground(video, ["a red star spins", "a ring"])
    for grounding in groundings:
        assert grounding.timeline.num_clips > 6 and len(grounding.saliency) == grounding.timeline.num_clips
        assert all(0 <= m.start <= m.end <= grounding.timeline.duration for m in grounding.moments)


def test_large_features_give_the_same_answer_from_the_disk(
    checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check features that are mapped while they are made, and again when they come from the cache."""
    windowed = replace(checkpoint, window_clips=6)
    expected = Grounder(windowed, backbone=backbone, cache=None, device="cpu").ground(video, "a ring")
    for module in (growing, store):
        monkeypatch.setattr(module, "LARGE", 100)
    grounder = Grounder(windowed, backbone=backbone, cache=tmp_path, device="cpu")
    for _ in range(2):
        features = grounder.features(video)
        assert growing.mapping_of(features.video_KTD) is not None
        answer = grounder.ground(video, "a ring")
        assert answer.moments == expected.moments and np.array_equal(answer.saliency, expected.saliency)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2  # the manifest and the features


@pytest.mark.parametrize("window_clips", [6, 20, 21, 100])
def test_queries_of_a_video_of_any_length_are_answered_as_if_alone(
    checkpoint: Checkpoint, backbone: ShapesBackbone, window_clips: int
) -> None:
    """Check videos of one window, of hardly more than a window, and of several windows."""
    features = np.random.default_rng(0).normal(size=(len(backbone.spec.levels), 21, 32)).astype(np.float16)
    video = VideoFeatures(video_KTD=features, timeline=Timeline(duration=42.0, clip_seconds=2.0))
    grounder = Grounder(replace(checkpoint, window_clips=window_clips), backbone=backbone, device="cpu")
    queries = ["a red star spins", "a ring"]
    text = grounder.encode(queries)
    both = grounder.ground_features(video, text, queries)
    for i, query in enumerate(queries):
        (alone,) = grounder.ground_features(video, text[i : i + 1], [query])
        np.testing.assert_allclose(both[i].saliency, alone.saliency, atol=1e-4)
        assert both[i].query == query and len(both[i].saliency) == 21


@pytest.mark.parametrize("window_clips", [6, 100])
def test_many_queries_go_through_the_model_in_small_batches(
    checkpoint: Checkpoint, backbone: ShapesBackbone, window_clips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check sentences of several lengths whose features lie on the disk, for a video of one window and of six."""
    features = np.random.default_rng(0).normal(size=(len(backbone.spec.levels), 21, 32)).astype(np.float16)
    video = VideoFeatures(video_KTD=features, timeline=Timeline(duration=42.0, clip_seconds=2.0))
    grounder = Grounder(replace(checkpoint, window_clips=window_clips), backbone=backbone, device="cpu")
    queries = ["a ring " + "and a red star " * (number % 4) + "spins" for number in range(30)]
    alone = [grounder.ground_features(video, grounder.encode([query]), [query])[0] for query in queries]
    monkeypatch.setattr(growing, "LARGE", 1000)
    monkeypatch.setattr(predict, "_WINDOWS_AT_ONCE", 7)
    sizes: list[int] = []
    grounder.checkpoint.model.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].size))
    text = grounder.encode(queries)
    assert growing.mapping_of(text[0]) is not None
    together = grounder.ground_features(video, text, queries)
    assert max(sizes) <= 7 and sum(sizes) == 30 * len(video.timeline.windows(window_clips))
    for grounding, expected in zip(together, alone, strict=True):
        assert grounding.query == expected.query and len(grounding.moments) == len(expected.moments)
        np.testing.assert_allclose(grounding.saliency, expected.saliency, atol=1e-4)


def test_another_backbone_is_refused(checkpoint: Checkpoint, tiny_backbone: Path) -> None:
    mean_pooled = load_backbone("shapes", weights=tiny_backbone, pooling="mean")
    with pytest.raises(SpecMismatchError, match="pooling is 'mean', expected 'attention'"):
        Grounder(checkpoint, backbone=mean_pooled, device="cpu")
    # The packaged backbone has other weights than the tiny one.
    with pytest.raises(SpecMismatchError, match="weights"):
        Grounder(checkpoint, device="cpu")


@pytest.mark.parametrize("query", [[], "", "  ", ["a star", ""]])
def test_empty_queries_are_refused(
    checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path, query: list[str] | str
) -> None:
    with pytest.raises(ValueError, match="query"):
        Grounder(checkpoint, backbone=backbone, device="cpu").ground(video, query)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (None, "query must be a sentence or a list of sentences, got None"),
        (3, "query must be a sentence or a list of sentences, got 3"),
        (["a star", None], "each query must be a sentence, got None in the list; remove it"),
    ],
)
def test_queries_that_are_no_sentences_are_refused(
    checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path, query: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Grounder(checkpoint, backbone=backbone, device="cpu").ground(video, query)


@pytest.mark.parametrize("no_path", [io.BytesIO(b"x"), None])
def test_a_video_that_is_no_path_is_refused(checkpoint: Checkpoint, backbone: ShapesBackbone, no_path: Any) -> None:
    grounder = Grounder(checkpoint, backbone=backbone, device="cpu")
    for call in (lambda: grounder.ground(no_path, "a star"), lambda: grounder.features(no_path)):
        with pytest.raises(ValueError, match=f"expected the path of a file, got {type(no_path).__name__}"):
            call()


class Server(ThreadingHTTPServer):
    """Serves the current folder on this machine, and notes the requests."""

    requests: list[str]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.chdir(tmp_path)
    with Server(("127.0.0.1", 0), Handler) as running:
        running.requests = requests
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_a_web_address_is_read_through_fsspec(
    checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path, tmp_path: Path, server: Server
) -> None:
    pytest.importorskip("aiohttp")
    shutil.copy(video, tmp_path / "v.mp4")
    (tmp_path / "page.mp4").write_text("<!doctype html><title>log in</title>")
    grounder = Grounder(checkpoint, backbone=backbone, cache=tmp_path / "cache", device="cpu")
    address = f"http://127.0.0.1:{server.server_port}/v.mp4?signature=a/b"
    grounding = grounder.ground(address, "a ring")
    assert grounding.video == address
    assert grounding.moments == grounder.ground(video, "a ring").moments
    assert set(videos_of([address])) == {"v"}
    page = f"http://127.0.0.1:{server.server_port}/page.mp4"
    with pytest.raises(VideoError, match=f"^{page} is a web page"):
        grounder.ground(page, "a ring")
    with pytest.raises(StorageError, match=r"none\.mp4 cannot be fetched"):
        grounder.ground(f"http://127.0.0.1:{server.server_port}/none.mp4", "a ring")


def playlist_of(video: Path, folder: Path) -> Path:
    """Write a video as a playlist with one segment in a folder."""
    folder.mkdir()
    with av.open(str(video)) as source, av.open(str(folder / "segment.ts"), "w", format="mpegts") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    (folder / "a.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:30\n#EXTINF:20,\nsegment.ts\n#EXT-X-ENDLIST\n")
    return folder / "a.m3u8"


@pytest.mark.filterwarnings("ignore:.*its frames go on")  # one video has 20 s, as the text says, and one has 22 s
def test_playlists_of_equal_text_have_their_own_features(
    checkpoint: Checkpoint, backbone: ShapesBackbone, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that the segments are part of the key by which features are cached."""
    videos = sorted((tiny_world / "videos").iterdir())[:2]
    playlists = [playlist_of(video, tmp_path / video.stem) for video in videos]
    assert playlists[0].read_bytes() == playlists[1].read_bytes()
    kept, uncached = (
        Grounder(checkpoint, backbone=backbone, cache=cache, device="cpu") for cache in (tmp_path / "cache", None)
    )
    answers = []
    for playlist in playlists:
        expected = uncached.ground(playlist, "a ring", allow_playlists=True)
        answers.append(kept.ground(playlist, "a ring", allow_playlists=True))
        assert np.array_equal(answers[-1].saliency, expected.saliency)
    monkeypatch.setattr(ShapesBackbone, "encode_video", lambda *_: pytest.fail("the features are in the cache"))
    for playlist, answer in zip(playlists, answers, strict=True):
        assert kept.ground(playlist, "a ring", allow_playlists=True) == answer


def test_a_playlist_opens_no_address(
    checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path, tmp_path: Path, server: Server
) -> None:
    playlist = playlist_of(video, tmp_path / "p")
    playlist.write_text(playlist.read_text().replace("segment", f"http://127.0.0.1:{server.server_port}/p/segment"))
    grounder = Grounder(checkpoint, backbone=backbone, cache=None, device="cpu")
    with pytest.raises(VideoError, match=r"is a playlist \(HLS\)"):
        grounder.ground(playlist, "a ring")
    with pytest.raises(VideoError, match="is a playlist that names an address"):
        grounder.ground(playlist, "a ring", allow_playlists=True)
    assert server.requests == []


def test_a_missing_video_is_refused(checkpoint: Checkpoint, backbone: ShapesBackbone, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="does not exist"):
        Grounder(checkpoint, backbone=backbone, device="cpu").ground(tmp_path / "no.mp4", "a star")


def test_weights_of_the_backbone_can_be_given(
    checkpoint: Checkpoint, tiny_backbone: Path, video: Path, tmp_path: Path
) -> None:
    checkpoint.save_pretrained(tmp_path / "model")
    with pytest.raises(SpecMismatchError, match="weights is"):
        Grounder.from_pretrained(tmp_path / "model", device="cpu", cache=None)
    grounder = Grounder.from_pretrained(tmp_path / "model", device="cpu", cache=None, backbone_weights=tiny_backbone)
    assert grounder.ground(video, "a red square spins").timeline.num_clips >= 1


def test_grounding_without_training_by_name_or_from_a_folder(tiny_backbone: Path, video: Path, tmp_path: Path) -> None:
    grounder = Grounder.from_pretrained("zero-shot/shapes", backbone_weights=tiny_backbone, device="cpu")
    first, second = grounder.ground(video, ["a red star spins", "something blinks"])
    assert first.moments and first.saliency.shape == (first.timeline.num_clips,)
    cosines = grounder.features(video).video_KTD[0].astype(np.float64) @ grounder.encode([first.query])[0][0, 0]
    np.testing.assert_allclose(first.saliency, cosines, atol=2e-3)  # features are float16
    assert first.saliency.tolist() != second.saliency.tolist()
    grounder.checkpoint.save_pretrained(tmp_path / "model")
    again = Grounder.from_pretrained(tmp_path / "model", backbone_weights=tiny_backbone, device="cpu")
    assert again.ground(video, [first.query, second.query])[0] == replace(first, model=again.name)


def test_a_long_video_without_training_is_read_at_once(tiny_backbone: Path) -> None:
    """Find in an hour and a half an event in minute 80 and a weaker one in minute 3, in one answer."""
    grounder = Grounder.from_pretrained("zero-shot/shapes", backbone_weights=tiny_backbone, device="cpu")
    clips, width = 2700, grounder.backbone.spec.video_dim
    cosines = np.full(clips, 0.1)
    cosines[90:95], cosines[2400:2410] = 0.55, 0.6
    video = np.zeros((1, clips, width), np.float16)
    video[0, :, 0], video[0, :, 1] = cosines, np.sqrt(1 - cosines**2)
    text = np.zeros((1, 1, width), np.float16)
    text[0, 0, 0] = 1
    timeline = Timeline(duration=2.0 * clips, clip_seconds=2.0)
    (grounding,) = grounder.ground_features(VideoFeatures(video_KTD=video, timeline=timeline), [text], ["x"])
    assert [(m.start, m.end) for m in grounding.moments[:2]] == [(4800.0, 4820.0), (180.0, 190.0)]
    assert grounding.moments[0].score == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("zero-shot", {}, "zero-shot needs a backbone: zero-shot/shapes, zero-shot/clip"),
        ("zero-shot/", {}, "zero-shot/ needs a backbone"),
        ("zero-shot/shape", {}, "no backbone 'shape'.*did you mean 'shapes'"),
        ("zero-shot/shapes", {"revision": "main"}, "zero-shot/shapes has no revisions, got 'main'"),
    ],
)
def test_wrong_names_of_grounding_without_training(name: str, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grounder.from_pretrained(name, **options)


def test_grounding_without_training_needs_joint_embeddings(backbone: ShapesBackbone) -> None:
    with pytest.raises(ValueError, match="needs features of the pooling joint, got attention"):
        Checkpoint.zero_shot(backbone.spec)


def test_answers_name_their_model(checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path) -> None:
    assert Grounder(checkpoint, backbone=backbone, device="cpu").ground(video, "a ring").model == "sdst"
    named = Grounder(checkpoint, backbone=backbone, device="cpu", name="mine")
    assert [grounding.model for grounding in named.ground(video, ["a ring", "a star"])] == ["mine", "mine"]
    assert Grounder.from_pretrained("shapes", device="cpu").name == "shapes"


def test_shapes_warns_of_other_videos_and_of_unknown_words(shared: Path, video: Path, recwarn: Any) -> None:
    grounder = Grounder.from_pretrained("shapes", device="cpu", cache=None)
    assert grounder.ground(video, "a red star spins").notes == () and len(recwarn) == 0
    with pytest.warns(OutsideWarning, match="never saw the words 'dog' and 'swims'"):
        (note,) = grounder.ground(video, "a dog swims").notes
    assert note.startswith("the model shapes never saw")
    with pytest.warns(OutsideWarning, match="this video shows something else"):
        grounding = grounder.ground(shared / "videos" / "flipping_a_pancake.mkv", "a red star spins")
    assert len(grounding.notes) == 1 and Grounding.from_json(grounding.to_json()).notes == grounding.notes


def test_the_default_model_is_for_real_videos() -> None:
    with pytest.raises(DownloadError, match=r"r2-tuning/qvhighlights is not on this machine.*--offline"):
        Grounder.from_pretrained(offline=True)


@pytest.mark.parametrize("queries", ["red star " * 120_000, ["a ring", "x" * 10_001]])
def test_a_query_that_no_model_can_read_is_refused_at_once(
    queries: str | list[str], checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path
) -> None:
    grounder = Grounder(checkpoint, backbone=backbone, device="cpu", cache=None)
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"a query has [\d,]+ characters, the limit is 10,000: '.*\.\.\.; shorten it"):
        grounder.ground(video, queries)
    assert time.perf_counter() - began < 5


# summaries -----------------------------------------------------------------------------------------------------------


def test_a_summary_is_picked_from_the_curve_of_the_topic(
    checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path
) -> None:
    grounder = Grounder(checkpoint, backbone=backbone, device="cpu")
    summary = grounder.summarize(video, topic="a red star spins", share=0.4)
    answer = grounder.ground(video, "a red star spins")
    np.testing.assert_allclose(summary.saliency, answer.saliency, atol=1e-4)
    assert summary.query == "a red star spins" and summary.video == str(video) and summary.model == "sdst"
    assert 0 < summary.seconds <= 0.4 * probe(video).duration
    assert summary.picked_clips.mean() <= 0.4 and summary.features == answer.features
    longer = grounder.summarize(video, topic="a red star spins", seconds=12)
    assert 4 < longer.seconds <= 12


def test_without_a_topic_a_summary_says_that_it_is_a_guess(
    checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path
) -> None:
    grounder = Grounder(checkpoint, backbone=backbone, device="cpu", cache=None)
    with pytest.warns(OutsideWarning, match="no topic was given, and sdst was trained to find"):
        summary = grounder.summarize(video)
    assert summary.query == "the highlights of the video"
    assert any("is a guess; give a topic, or use a model of highlights" in note for note in summary.notes)


def test_a_model_of_highlights_needs_no_topic(backbone: ShapesBackbone, video: Path) -> None:
    config = {
        "video_dim": 32, "text_dim": 32, "hidden": 32, "levels": len(backbone.spec.levels), "strides": (1,),
        "endpoint_features": False, "boundary_head": False,
    }  # fmt: skip
    torch.manual_seed(0)
    checkpoint = Checkpoint(
        model=build_model("r2-tuning", config).eval(),
        model_name="r2-tuning",
        model_config=config,
        features=backbone.spec,
        decode=R2DecodeConfig(nms="none", round_to=None),
        window_clips=6,
    )
    grounder = Grounder(checkpoint, backbone=backbone, device="cpu", name="r2-tuning/tvsum-PK")
    summary = grounder.summarize(video, seconds=6)
    assert summary.query == "parkour" and summary.moments and summary.seconds <= 6
    assert not any("is a guess" in note for note in summary.notes)
    assert grounder.summarize(video, topic="a dog").query == "a dog"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share must be above 0 and at most 1, got 0.0"),
        ({"share": 1.5}, "share must be above 0 and at most 1, got 1.5"),
        ({"seconds": 0}, "seconds must be above 0, got 0"),
        ({"seconds": float("nan")}, "seconds must be above 0, got nan"),
        ({"topic": " "}, "a query is empty"),
    ],
)
def test_mistakes_of_summaries(
    options: dict[str, Any], message: str, checkpoint: Checkpoint, backbone: ShapesBackbone, video: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        Grounder(checkpoint, backbone=backbone, device="cpu").summarize(video, **options)
