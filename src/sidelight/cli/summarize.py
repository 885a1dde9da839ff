"""`sidelight summarize`: the best moments of a video without a question."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from sidelight.cli.films import Films
from sidelight.cli.ground import draw
from sidelight.cli.parser import Option
from sidelight.cli.shared import (
    BackboneWeights,
    ClipsFolder,
    Device,
    ExportFile,
    ExportFormat,
    File,
    JoinFile,
    JsonFile,
    Model,
    PlotFile,
    ReportFile,
    Seconds,
    SheetFile,
    ThumbnailsFolder,
    announced,
    report_to,
    require_above_zero,
    require_plot,
    require_range,
    write_json,
)
from sidelight.core.messages import duration_of

if TYPE_CHECKING:
    from sidelight.core.summary import Summary

_SHARE = 0.15


def summarize(
    video: File,
    *,
    topic: Annotated[str | None, Option("SENTENCE")] = None,
    share: Annotated[float, Option("SHARE")] = _SHARE,
    seconds: Seconds | None = None,
    model: Model | None = None,
    device: Device | None = None,
    backbone_weights: BackboneWeights | None = None,
    offline: bool = False,
    json: JsonFile | None = None,
    plot: PlotFile | None = None,
    export: ExportFile | None = None,
    format: ExportFormat | None = None,
    clips: ClipsFolder | None = None,
    join: JoinFile | None = None,
    copy: bool = False,
    thumbnails: ThumbnailsFolder | None = None,
    contact_sheet: SheetFile | None = None,
    report: ReportFile | None = None,
    no_cache: bool = False,
    allow_playlists: bool = False,
) -> None:
    """Pick the best moments of a video, without a question.

    The video is cut into segments where it changes; the summary is the segments that the model scores highest and that
    fit into the length. Models of highlights know what is good in one kind of video (`sidelight models --all`). Other
    models score how well a video fits a sentence: give it with --topic. Without it their summary is a guess, which a
    warning says.

    Args:
        video: video file of any length, or its address.
        topic: what matters, as a sentence such as "a dog plays".
        share: longest summary, as a share of the video.
        seconds: longest summary in seconds, instead of a share.
        offline: use no network, only what is on this machine.
        json: write the summary as JSON, with all segments; - for standard output. `sidelight export` reads it.
        plot: draw frames, highlight curve and picked moments.
        export: write the moments for another program, such as chapters or a timeline (`sidelight export --help` lists
            the formats).
        copy: cut at keyframes without encoding; clips begin too early, and the true start of each is printed.
        no_cache: neither read nor keep the features of this video.
        allow_playlists: read a video that is a playlist; see `sidelight ground --help`.
    """
    from sidelight.cli.export import write_export
    from sidelight.export.formats import format_of
    from sidelight.features.sources import local_video
    from sidelight.grounder import DEFAULT_CACHE, Grounder
    from sidelight.io.download import offline as without_network
    from sidelight.io.storage import is_address
    from sidelight.video.playlist import allow_playlists as allowing
    from sidelight.video.read import probe

    require_above_zero(share=share, seconds=seconds)
    require_range(0, 1, share=share)
    require_plot(plot)
    films = Films(clips=clips, join=join, copy=copy, thumbnails=thumbnails, contact_sheet=contact_sheet, report=report)
    if export:
        format_of(export, format)
    cache = None if no_cache else DEFAULT_CACHE
    with without_network(offline), allowing(allow_playlists), local_video(video) as file:
        info = probe(file)
        with announced("loading the model"):
            grounder = Grounder.from_pretrained(model, cache=cache, device=device, backbone_weights=backbone_weights)
        with announced(f"reading {duration_of(info.duration)} of video", has_bar=True):
            summary = grounder.summarize(
                file, topic=topic, share=share, seconds=seconds, progress=True, allow_playlists=allow_playlists
            )
        summary = replace(summary, video=video)
        with report_to(json):
            print_summary(summary)
            if plot:
                draw([summary], file, plot, top=len(summary) or 1)
                print(f"wrote {plot}")
            if export:
                write_export([summary], export, format=format, video=str(file))
        write_json(json, summary.to_dict())
        with report_to(json):
            films.write([summary], video=str(file), player=not is_address(video))


def print_summary(summary: Summary) -> None:
    """Print the topic, the curve, and the moments in the order of time."""
    from sidelight.core.display import as_text, clock
    from sidelight.core.messages import count_of

    moments = sorted((moment.start, moment.end, moment.score) for moment in summary)
    print(as_text(summary.query, summary.saliency.tolist(), moments, width=75))
    length = f"{clock(summary.seconds)} of {clock(summary.timeline.duration)}"
    print(f"\n{length} in {count_of(len(summary), 'moment')}, out of {count_of(len(summary.segments), 'segment')}")
    print(f"picked by the model {summary.model}")
