"""`sidelight ground` and `sidelight demo`: find moments and show them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sidelight.cli.films import Films, worth_showing
from sidelight.cli.parser import Option
from sidelight.cli.shared import (
    BackboneWeights,
    ClipsFolder,
    Count,
    Device,
    ExportFile,
    ExportFormat,
    File,
    JoinFile,
    JsonFile,
    Model,
    OutFolder,
    PlotFile,
    ReportFile,
    Score,
    Seconds,
    SheetFile,
    ThumbnailsFolder,
    announced,
    report_to,
    require_package,
    require_plot,
    require_range,
    to_json,
    write_json,
)
from sidelight.core.display import BEST_GUESSES
from sidelight.core.messages import duration_of

if TYPE_CHECKING:
    from sidelight.core.grounding import Grounding
    from sidelight.grounder import Grounder


def ground(
    video: File,
    query: list[str],
    *,
    model: Model | None = None,
    device: Device | None = None,
    backbone_weights: BackboneWeights | None = None,
    offline: bool = False,
    top: Count = 5,
    min_score: Score | None = None,
    json: JsonFile | None = None,
    plot: PlotFile | None = None,
    export: ExportFile | None = None,
    format: ExportFormat | None = None,
    padding: Seconds = 0.0,
    clips: ClipsFolder | None = None,
    join: JoinFile | None = None,
    copy: bool = False,
    thumbnails: ThumbnailsFolder | None = None,
    contact_sheet: SheetFile | None = None,
    report: ReportFile | None = None,
    no_cache: bool = False,
    allow_playlists: bool = False,
) -> int:
    """Find moments in a video, or in all videos of a folder, by a sentence.

    The default model answers about real videos. Its files (620 MB) are downloaded at the first use; what they are and
    where they go is printed before. `sidelight models` lists all models; --model shapes is small and needs no download,
    but knows drawn shapes only.

    The exit code is 0 if a query has a moment, 1 if no query has one (see --min-score), 2 after a mistake. In a folder,
    broken videos are listed at the end, and the exit code is 2 only if no video could be read.

    Args:
        video: video file of any length, or its address, such as https://host/video.mp4; or several: a folder, a
            pattern in quotes, such as "films/**/*.mp4", or a .txt list with a file per line.
        query: one or more sentences, each in quotes.
        offline: use no network, only what is on this machine.
        top: how many moments to print per query, and to cut and draw; JSON holds all moments.
        min_score: leave out moments with a lower score; if none is left, the answer is "no such moment" (`sidelight
            calibrate` chooses this score). Unless given, the plot, clips, films, pictures, reports and cut lists leave
            out moments with less than a quarter of the best score.
        json: write the groundings as JSON; - for standard output. For several videos, a file that ends in .jsonl gets
            the answers of each video at once, and a later run goes on where this one ended.
        plot: draw frames, highlight curve and moments of one video.
        export: write the moments, if there are any, for another program (`sidelight export --help` lists the
            formats).
        padding: seconds that --clips, --join and --export add before and after each moment, within the video.
        copy: cut at keyframes without encoding; clips begin too early, and the true start of each is printed.
        no_cache: neither read nor keep the features of this video.
        allow_playlists: read a video that is a playlist (HLS, .m3u8) with an end and files in its own folder; allow it
            only for playlists that you trust.
    """
    from sidelight.cli.folder import ground_folder
    from sidelight.features.sources import holds_videos
    from sidelight.grounder import DEFAULT_CACHE, Grounder
    from sidelight.io.download import offline as without_network
    from sidelight.video.playlist import allow_playlists as allowing

    require_range(1, top=top)
    require_range(0, 1, min_score=min_score)
    require_plot(plot)
    films = Films(
        clips=clips,
        join=join,
        copy=copy,
        thumbnails=thumbnails,
        contact_sheet=contact_sheet,
        report=report,
        padding=padding,
    )
    if export:
        from sidelight.export.formats import format_of

        format_of(export, format)
    _check_queries(query)
    cache = None if no_cache else DEFAULT_CACHE
    load = partial(Grounder.from_pretrained, model, cache=cache, device=device, backbone_weights=backbone_weights)
    several = holds_videos(video)
    if several and plot:
        raise ValueError(f"--plot draws one video, and {video} holds several; use --report or --contact-sheet")
    answer = partial(ground_folder, model=model) if several else partial(_ground_file, plot=plot)
    with without_network(offline), allowing(allow_playlists):
        return answer(
            video,
            query,
            load=load,
            films=films,
            top=top,
            min_score=min_score,
            json=json,
            export=export,
            format=format,
            allow_playlists=allow_playlists,
        )


def _check_queries(query: Sequence[str]) -> None:
    """Check the queries, and note on stderr what looks like one sentence without quotes.

    Raises:
        ValueError: if a query is empty, or is a file, as where a shell has replaced a pattern by its files.
    """
    from sidelight.grounder import checked_queries
    from sidelight.io.files import VIDEO_SUFFIXES

    checked_queries(list(query))
    files = [sentence for sentence in query if Path(sentence).suffix.lower() in VIDEO_SUFFIXES]
    if files := [name for name in files if os.path.isfile(name)]:
        raise ValueError(f"{files[0]} is a file, not a sentence; for several videos, put the pattern into quotes")
    if len(query) > 1 and not any(" " in sentence.strip() for sentence in query):
        print(
            f'note: these are {len(query)} queries of one word each; for one sentence, use quotes: "{" ".join(query)}"',
            file=sys.stderr,
        )


def _ground_file(
    video: str,
    query: list[str],
    *,
    load: Callable[[], Grounder],
    films: Films,
    top: int,
    min_score: float | None,
    json: str | None,
    plot: str | None,
    export: str | None,
    format: str | None,
    allow_playlists: bool,
) -> int:
    """Ground one video, print and write its answers, and return the exit code."""
    from sidelight.cli.export import is_data, write_export
    from sidelight.features.sources import local_video
    from sidelight.io.storage import is_address
    from sidelight.video.read import probe

    with local_video(video) as file:
        info = probe(file)  # reports what is wrong with the file before the slow work begins
        with announced("loading the model"):
            grounder = load()
        with announced(f"reading {duration_of(info.duration)} of video", has_bar=True):
            answers = grounder.ground(file, query, progress=True, allow_playlists=allow_playlists)
        groundings = [replace(grounding.at_least(min_score or 0.0), video=video) for grounding in answers]
        with report_to(json):
            for grounding in groundings:
                print_grounding(grounding, top=top)
            print(f"answered by the model {grounder.name}; {BEST_GUESSES}")
            is_table = is_data(export, format)
            options = [*(["--plot"] if plot else []), *(["--export"] if export and not is_table else [])]
            shown = worth_showing(groundings, top=top, min_score=min_score, options=[*options, *films.options()])
            if plot:
                draw(shown, file, plot, top=top, faint=True)
                print(f"wrote {plot}")
            if export and any(groundings):
                answers = groundings if is_table else shown
                write_export(answers, export, format=format, video=str(file), top=top, padding=films.padding)
        write_json(json, [grounding.to_dict() for grounding in groundings])
        with report_to(json):
            files = films if any(groundings) else films.without_cuts()
            files.write(shown, video=str(file), player=not is_address(video))
    return 0 if any(groundings) else 1


def demo(
    *,
    out: OutFolder = "demo",
    seed: Count = 7,
    model: Annotated[str, Option("NAME|DIR", path="input")] = "shapes",
    device: Device | None = None,
) -> None:
    """Make a video that no model has seen, ground three queries in it, and draw the result.

    Args:
        out: folder for the video, the JSON and the plot.
        seed: number of the video; models were trained on other videos.
        model: a model of the shapes world: shapes, which ships with sidelight, or a checkpoint's folder.
    """
    from sidelight.cli.demo import make_demo, own_file

    require_range(0, seed=seed)
    require_package("matplotlib", "plot", "the demo draws a plot and needs Matplotlib")
    start = time.perf_counter()
    with announced("drawing a video of about a minute, and grounding three queries in it"):
        result = make_demo(Path(out), seed=seed, model=model, device=device)
    for grounding, windows in zip(result.groundings, result.windows, strict=True):
        print_grounding(grounding, top=3, truth=windows)
    plot, json = Path(out) / "groundings.png", Path(out) / "groundings.json"
    with own_file(plot) as beside:
        draw(result.groundings, result.video, beside, result.windows)
    print(f"a synthetic video that was not trained on: {result.video}")
    with own_file(json) as beside:
        beside.write_text(to_json([grounding.to_dict() for grounding in result.groundings]) + "\n", encoding="utf-8")
    print(f"wrote {json} and {plot} in {time.perf_counter() - start:.1f} s")


def print_grounding(grounding: Grounding, *, top: int = 5, truth: Sequence[tuple[float, float]] = ()) -> None:
    """Print the best moments of a grounding, its highlight curve, and the true windows if they are known."""
    from rich.console import Console
    from rich.text import Text

    from sidelight.core.display import clock

    console = Console(highlight=False)
    # 14 columns narrower than the terminal, and 20 to 75 bars.
    width = max(20, min(75, console.width - 14))
    console.print(Text(grounding.query, style="bold"))
    console.print(Text(grounding.to_text(top=top, width=width).removeprefix(f"{grounding.query}\n")))
    if truth:
        console.print("true: " + ", ".join(f"{clock(start)} - {clock(end)}" for start, end in truth))
    console.print()


def draw(
    groundings: Sequence[Grounding],
    video: str | Path,
    out: str | Path,
    truth: Sequence[Sequence[tuple[float, float]]] | None = None,
    *,
    top: int = 5,
    faint: bool = False,
    num_frames: int = 12,
) -> None:
    """Draw groundings of one video below a strip of its frames.

    Args:
        groundings: at least one.
        video: the file.
        out: file to write.
        truth: true windows of each query, in seconds.
        top: most moments to draw per query.
        faint: draw moments with less than a quarter of the best score too.
        num_frames: how many frames to read for the strip.
    """
    from sidelight.export.plot import plot_groundings
    from sidelight.video.read import frames_at, probe

    info = probe(video)
    height = 160
    width = max(2, round(height * info.width / info.height))
    seconds = [(i + 0.5) / num_frames * groundings[0].timeline.duration for i in range(num_frames)]
    # Damage was reported when the groundings were made.
    frames = frames_at(video, seconds, size=(width, height), on_damage=lambda message: None)
    strip = [(time, frame.image) for time, frame in zip(seconds, frames, strict=False)]
    plot_groundings(groundings, out, frames=strip, truth=truth, top=top, faint=faint)
