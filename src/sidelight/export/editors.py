"""Timelines for editing programs: EDL, FCPXML, Premiere XML (xmeml), OpenTimelineIO, and markers for DaVinci Resolve.

Times are whole frames at the exact rate of the source; ends are exclusive, as all these formats have them.

Sources: CMX 3600 edit lists (SMPTE 258M); Apple's documentation of FCPXML 1.10 and of the Final Cut Pro XML interchange
format (xmeml 4); the schemas of OpenTimelineIO; DaVinci Resolve's import of timeline markers from EDL.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

from sidelight.export.source import Cut, Source
from sidelight.export.timecode import base_of, frames_of, timecode


def require_some(moments: Sequence[object]) -> None:
    """Raise ValueError if there is nothing to export."""
    if not moments:
        raise ValueError("there is no moment to export; expected at least one, so ask again or lower --min-score")


def one_rate(cuts: Sequence[Cut]) -> Fraction:
    """Return the rate that all sources share.

    Raises:
        ValueError: if there is no cut, or the sources have different rates.
    """
    require_some(cuts)
    rates = {cut.source.rate: cut.source for cut in cuts}
    if len(rates) > 1:
        names = " and ".join(f"{source.name} ({float(rate):.6g})" for rate, source in list(rates.items())[:2])
        raise ValueError(f"a timeline has one frame rate, got {names}; export each video on its own")
    return next(iter(rates))


def label(cut: Cut) -> str:
    """Return the query and the score in one line."""
    return f"{one_line(cut.query)} ({cut.score:.2f})"


def one_line(text: str) -> str:
    """Return a text without line breaks and control characters, which would end a line of an edit list early."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", " ", text).split())


def _xml_text(text: str) -> str:
    """Return a text without the characters that XML 1.0 forbids."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", one_line(text))


def _address(path: str, host: str = "") -> str:
    posix = Path(path).as_posix()
    return f"file://{host}{'' if posix.startswith('/') else '/'}{quote(posix)}"


# edit lists ---------------------------------------------------------------------------------------------------------


def edl(cuts: Sequence[Cut], title: str) -> str:
    """Return an edit list (CMX 3600): source timecode in and out, and the place on a timeline from 01:00:00:00 on.

    Args:
        cuts: in the order of the timeline.
        title: name of the timeline.

    Raises:
        ValueError: if there is no cut, there are more than 999, or the sources have different rates.
    """
    rate = one_rate(cuts)
    if len(cuts) > 999:
        raise ValueError(f"an EDL holds at most 999 events, got {len(cuts)}; use --top, or the format otio")
    drop = cuts[0].source.drop
    place, lines = _at_hour(rate, drop=drop), _edl_head(title, drop=drop)
    for number, cut in enumerate(cuts, 1):
        source = [timecode(cut.source.start + frame, rate, drop=cut.source.drop) for frame in (cut.start, cut.end)]
        record = [timecode(frame, rate, drop=drop) for frame in (place, place + cut.length)]
        channels = "AA/V" if cut.source.channels else "V"
        lines += [
            f"{number:03d}  AX       {channels:<5} C        {' '.join([*source, *record])}",
            f"* FROM CLIP NAME: {one_line(cut.source.name)}",
            f"* COMMENT: {label(cut)}",
        ]
        place += cut.length
    return "\n".join([*lines, ""])


def _edl_head(title: str, *, drop: bool) -> list[str]:
    return [f"TITLE: {one_line(title)}", f"FCM: {'DROP FRAME' if drop else 'NON-DROP FRAME'}", ""]


def _at_hour(rate: Fraction, *, drop: bool) -> int:
    """Return the number of the frame at which a timeline begins by convention: 01:00:00:00."""
    return frames_of("01:00:00;00" if drop else "01:00:00:00", rate)


def resolve_markers(cuts: Sequence[Cut], title: str) -> str:
    """Return markers for DaVinci Resolve (Timelines, Import, Timeline Markers from EDL).

    They fit a timeline that begins at 01:00:00:00 and holds the whole source from its first frame on.

    Args:
        cuts: of one source.
        title: name of the timeline.

    Raises:
        ValueError: if there is no cut, or there are several sources.
    """
    rate = one_rate(cuts)
    if len({cut.source.path for cut in cuts}) > 1:
        raise ValueError("markers belong to one video; export each video on its own")
    drop = cuts[0].source.drop
    begin, lines = _at_hour(rate, drop=drop), _edl_head(title, drop=drop)
    for number, cut in enumerate(cuts, 1):
        times = " ".join(timecode(begin + frame, rate, drop=drop) for frame in (cut.start, cut.start + 1) * 2)
        name = label(cut).replace("|", "/")
        lines += [
            f"{number:03d}  001      V     C        {times}",
            f" |C:ResolveColorBlue |M:{name} |D:{cut.length}",
            "",
        ]
    return "\n".join(lines)


# FCPXML -------------------------------------------------------------------------------------------------------------


def _seconds(frames: int, rate: Fraction) -> str:
    """Return frames as FCPXML writes times: a fraction of seconds with the rate's own denominator, such as
    1001/30000s.
    """
    value = Fraction(frames) / rate
    if value.denominator == 1:
        return f"{value.numerator}s"
    return f"{frames * rate.denominator}/{rate.numerator}s"


def fcpxml(cuts: Sequence[Cut], title: str) -> str:
    """Return a project for Final Cut Pro (FCPXML 1.10), with a marker that names the query at each cut.

    Args:
        cuts: in the order of the timeline.
        title: name of the project.

    Raises:
        ValueError: if there is no cut, or the sources have different rates.
    """
    rate = one_rate(cuts)
    root = ET.Element("fcpxml", version="1.10")
    resources = ET.SubElement(root, "resources")
    sources = {cut.source.path: cut.source for cut in cuts}
    formats: dict[tuple[int, int], str] = {}
    assets: dict[str, str] = {}
    for source in sources.values():
        size = (source.width, source.height)
        if size not in formats:
            formats[size] = f"r{len(formats) + len(assets) + 1}"
            ET.SubElement(
                resources, "format", id=formats[size], frameDuration=_seconds(1, rate),
                width=str(source.width), height=str(source.height),
            )  # fmt: skip
        assets[source.path] = f"r{len(formats) + len(assets) + 1}"
        _add_asset(resources, source, assets[source.path], formats[size])
    total = sum(cut.length for cut in cuts)
    event = ET.SubElement(ET.SubElement(root, "library"), "event", name=_xml_text(title))
    project = ET.SubElement(event, "project", name=_xml_text(title))
    drop = cuts[0].source.drop
    sequence = ET.SubElement(
        project, "sequence", format=next(iter(formats.values())), duration=_seconds(total, rate),
        tcStart=_seconds(0, rate), tcFormat="DF" if drop else "NDF",
    )  # fmt: skip
    spine = ET.SubElement(sequence, "spine")
    place = 0
    for cut in cuts:
        begin = cut.source.start + cut.start
        clip = ET.SubElement(
            spine, "asset-clip", ref=assets[cut.source.path], offset=_seconds(place, rate), name=_xml_text(cut.query),
            start=_seconds(begin, rate), duration=_seconds(cut.length, rate),
            tcFormat="DF" if cut.source.drop else "NDF",
        )  # fmt: skip
        ET.SubElement(
            clip, "marker", start=_seconds(begin, rate), duration=_seconds(1, rate), value=_xml_text(label(cut))
        )
        place += cut.length
    return _document(root, "<!DOCTYPE fcpxml>")


def _add_asset(resources: ET.Element, source: Source, name: str, format_name: str) -> None:
    asset = ET.SubElement(
        resources, "asset", id=name, name=_xml_text(source.name), start=_seconds(source.start, source.rate),
        duration=_seconds(source.frames, source.rate), hasVideo="1", format=format_name, videoSources="1",
    )  # fmt: skip
    if source.channels:
        asset.attrib |= {
            "hasAudio": "1",
            "audioSources": "1",
            "audioChannels": str(source.channels),
            "audioRate": str(source.sample_rate),
        }
    ET.SubElement(asset, "media-rep", kind="original-media", src=_address(source.path))


def _document(root: ET.Element, doctype: str) -> str:
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{doctype}\n{ET.tostring(root, encoding="unicode")}\n'


# xmeml --------------------------------------------------------------------------------------------------------------


def _child(parent: ET.Element, name: str, text: object) -> ET.Element:
    element = ET.SubElement(parent, name)
    element.text = _xml_text(str(text))
    return element


def _add_rate(parent: ET.Element, rate: Fraction) -> None:
    element = ET.SubElement(parent, "rate")
    _child(element, "timebase", base_of(rate))
    _child(element, "ntsc", "TRUE" if rate.denominator == 1001 else "FALSE")


def _add_timecode(parent: ET.Element, frame: int, rate: Fraction, *, drop: bool) -> None:
    element = ET.SubElement(parent, "timecode")
    _add_rate(element, rate)
    _child(element, "string", timecode(frame, rate, drop=drop))
    _child(element, "frame", frame)
    _child(element, "displayformat", "DF" if drop else "NDF")


def xmeml(cuts: Sequence[Cut], title: str) -> str:
    """Return a sequence for Premiere Pro, and for other programs that read Final Cut Pro 7's XML (xmeml 4).

    Args:
        cuts: in the order of the timeline.
        title: name of the sequence.

    Raises:
        ValueError: if there is no cut, or the sources have different rates.
    """
    rate = one_rate(cuts)
    if rate.denominator not in (1, 1001):
        raise ValueError(
            f"xmeml has no frame rate of {float(rate):.6g}; expected such as 25 or 29.97, so use the format otio"
        )
    root = ET.Element("xmeml", version="4")
    sequence = ET.SubElement(root, "sequence", id="sequence-1")
    _child(sequence, "name", title)
    _child(sequence, "duration", sum(cut.length for cut in cuts))
    _add_rate(sequence, rate)
    drop = cuts[0].source.drop
    _add_timecode(sequence, _at_hour(rate, drop=drop), rate, drop=drop)
    media = ET.SubElement(sequence, "media")
    video = ET.SubElement(media, "video")
    characteristics = ET.SubElement(ET.SubElement(video, "format"), "samplecharacteristics")
    _add_rate(characteristics, rate)
    _child(characteristics, "width", cuts[0].source.width)
    _child(characteristics, "height", cuts[0].source.height)
    tracks = {"video": ET.SubElement(video, "track")}
    if any(cut.source.channels for cut in cuts):
        tracks["audio"] = ET.SubElement(ET.SubElement(media, "audio"), "track")
    files: dict[str, str] = {}
    place = 0
    for number, cut in enumerate(cuts, 1):
        kinds = [kind for kind in tracks if kind == "video" or cut.source.channels]
        for kind in kinds:
            _add_clip(tracks[kind], cut, number, kind, place, files, linked=kinds)
        place += cut.length
    return _document(root, "<!DOCTYPE xmeml>")


def _add_clip(
    track: ET.Element, cut: Cut, number: int, kind: str, place: int, files: dict[str, str], *, linked: Sequence[str]
) -> None:
    clip = ET.SubElement(track, "clipitem", id=f"{kind}-{number}")
    _child(clip, "name", cut.query)
    _child(clip, "enabled", "TRUE")
    _child(clip, "duration", cut.source.frames)
    _add_rate(clip, cut.source.rate)
    for name, frame in (("start", place), ("end", place + cut.length), ("in", cut.start), ("out", cut.end)):
        _child(clip, name, frame)
    known = files.get(cut.source.path)
    file = ET.SubElement(clip, "file", id=known or f"file-{len(files) + 1}")
    if known is None:  # later clips only name the file
        files[cut.source.path] = file.attrib["id"]
        _child(file, "name", cut.source.name)
        ET.SubElement(file, "pathurl").text = _address(cut.source.path, "localhost")
        _add_rate(file, cut.source.rate)
        _child(file, "duration", cut.source.frames)
        _add_timecode(file, cut.source.start, cut.source.rate, drop=cut.source.drop)
        media = ET.SubElement(file, "media")
        size = ET.SubElement(ET.SubElement(media, "video"), "samplecharacteristics")
        _child(size, "width", cut.source.width)
        _child(size, "height", cut.source.height)
        if cut.source.channels:
            audio = ET.SubElement(media, "audio")
            sound = ET.SubElement(audio, "samplecharacteristics")
            _child(sound, "samplerate", cut.source.sample_rate)
            _child(audio, "channelcount", cut.source.channels)
    if kind == "audio":
        source_track = ET.SubElement(clip, "sourcetrack")
        _child(source_track, "mediatype", "audio")
        _child(source_track, "trackindex", 1)
    marker = ET.SubElement(clip, "marker")
    _child(marker, "name", label(cut))
    _child(marker, "in", cut.start)
    _child(marker, "out", cut.end)
    for other in linked if len(linked) > 1 else ():
        link = ET.SubElement(clip, "link")
        _child(link, "linkclipref", f"{other}-{number}")
        _child(link, "mediatype", other)
        _child(link, "trackindex", 1)
        _child(link, "clipindex", number)


# OpenTimelineIO -----------------------------------------------------------------------------------------------------


def otio(cuts: Sequence[Cut], title: str) -> str:
    """Return a timeline of OpenTimelineIO, with the query and the score as a marker and as metadata of each clip.

    Args:
        cuts: in the order of the timeline.
        title: name of the timeline.

    Raises:
        ValueError: if there is no cut, the sources have different rates, or opentimelineio is not installed.
    """
    one_rate(cuts)
    try:
        import opentimelineio as library
    except ImportError:
        raise ValueError('the format otio needs OpenTimelineIO: pip install "sidelight[export]"') from None
    schema: Any = library.schema
    timeline = schema.Timeline(name=one_line(title))
    track = schema.Track(name="moments", kind=schema.TrackKind.Video)
    timeline.tracks.append(track)
    for cut in cuts:
        source, rate = cut.source, float(cut.source.rate)

        def span(start: int, length: int, rate: float = rate) -> Any:
            time = library.opentime.RationalTime
            return library.opentime.TimeRange(time(start, rate), time(length, rate))

        begin = source.start + cut.start
        media = schema.ExternalReference(_address(source.path), span(source.start, source.frames))
        clip = schema.Clip(name=one_line(cut.query), media_reference=media, source_range=span(begin, cut.length))
        clip.metadata["sidelight"] = {"query": cut.query, "score": cut.score}
        clip.markers.append(schema.Marker(name=label(cut), marked_range=span(begin, cut.length)))
        track.append(clip)
    text: str = timeline.to_json_string(indent=2)
    return text + "\n"
