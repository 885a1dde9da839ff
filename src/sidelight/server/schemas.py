"""The bodies of requests and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sidelight.data.annotations import LONGEST_QUERY
from sidelight.server.jobs import MOST_QUERIES

MOST_ANSWERS = 100
"""Hits of a search, and answers of an export."""
Query = Annotated[str, Field(min_length=1, max_length=LONGEST_QUERY)]
VideoKey = Annotated[str, Field(min_length=1, max_length=4096, description="id or name of a video")]
Top = Annotated[int, Field(ge=1, le=1000, description="most moments of each answer, best first")]
SearchTop = Annotated[int, Field(ge=1, le=MOST_ANSWERS, description="most hits, best first")]
MinScore = Annotated[float, Field(ge=0, le=1, description="leave out moments with a lower score")]
Seconds = Annotated[float, Field(ge=0, le=86400 * 30)]
Number = Annotated[float, Field(ge=-1e30, le=1e30)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)


class GroundRequest(_Request):
    """Queries about one video."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"video": "holiday.mp4", "query": "a person opens the door", "top": 5}]}
    )
    video: VideoKey
    query: Query | Annotated[list[Query], Field(min_length=1, max_length=MOST_QUERIES)]
    top: Top = 10
    min_score: MinScore = 0.0
    run_async: Annotated[bool, Field(alias="async", description="answer at once with a job")] = False

    @property
    def queries(self) -> list[str]:
        """Return the queries as a list."""
        return [self.query] if isinstance(self.query, str) else self.query


class MomentOf(_Request):
    """A moment of a video."""

    video: VideoKey
    start: Seconds
    end: Seconds


class SearchRequest(_Request):
    """A query about all videos of the library: a sentence, or a moment whose like is searched."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": "a person opens the door", "top": 10},
                {"like": {"video": "holiday.mp4", "start": 4, "end": 9.5}},
            ]
        }
    )
    query: Query | None = None
    like: Annotated[MomentOf | None, Field(description="instead of a query: moments that look like this one")] = None
    top: SearchTop = 10
    min_score: MinScore = 0.0
    min_relevance: Annotated[
        float | None,
        Field(ge=0, le=1, description="of a query: leave out less relevant hits; the library's own limit unless given"),
    ] = None
    answers: Annotated[bool, Field(description="send the curve of each video with a hit too")] = False

    @model_validator(mode="after")
    def _is_one_question(self) -> SearchRequest:
        if (self.query is None) == (self.like is None):
            raise ValueError("give either query or like")
        if self.like is not None and self.min_relevance is not None:
            raise ValueError("min_relevance is for a query; give min_score with like")
        return self


class SessionRequest(_Request):
    """The token of the service, for which a browser gets a cookie."""

    token: Annotated[str, Field(min_length=1, max_length=512)]


class MomentBody(BaseModel):
    """A part of a video in seconds, with a score."""

    model_config = ConfigDict(
        allow_inf_nan=False, json_schema_extra={"examples": [{"start": 4, "end": 9.5, "score": 1}]}
    )
    start: Seconds
    end: Seconds
    score: Number = 1.0


class TimelineBody(BaseModel):
    """The clips of a video."""

    model_config = ConfigDict(allow_inf_nan=False)
    duration: Annotated[float, Field(gt=0, le=86400 * 31)]
    clip_seconds: Annotated[float, Field(ge=0.01, le=86400 * 31)]
    clips: Annotated[int, Field(ge=1, le=10**8)] | None = None


class AnswerBody(BaseModel):
    """An answer of ``POST v1/ground`` or ``POST v1/search``; moments may have been edited, and only the first three
    fields are needed.
    """

    model_config = ConfigDict(
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {"video": "holiday.mp4", "query": "a person opens the door", "moments": [{"start": 4, "end": 9.5}]}
            ]
        },
    )
    video: VideoKey
    query: Query
    moments: Annotated[list[MomentBody], Field(max_length=10_000)]
    timeline: TimelineBody | None = None
    saliency: Annotated[list[Number], Field(max_length=2_000_000)] | None = None
    notes: Annotated[list[Annotated[str, Field(max_length=10_000)]], Field(max_length=100)] = []
    model: Annotated[str, Field(max_length=500)] | None = None
    features: Annotated[str, Field(max_length=500)] | None = None


Answers = Annotated[list[AnswerBody], Field(min_length=1, max_length=MOST_ANSWERS)]
Padding = Annotated[float, Field(ge=0, le=600, description="seconds before and after each moment")]


class CutRequest(_Request):
    """Answers whose moments to cut into video files."""

    answers: Answers
    join: Annotated[bool, Field(description="one film of all moments, instead of a file each")] = False
    exact: Annotated[
        bool, Field(description="encode again, exact to a frame; false copies from the keyframe before each moment")
    ] = True
    top: Top | None = None
    padding: Padding = 0.0


class ExportRequest(_Request):
    """Answers to write for another program."""

    format: Annotated[str, Field(max_length=40, examples=["edl"], description="a name that GET v1/models lists")]
    answers: Answers
    top: Top | None = None
    padding: Padding = 0.0
    media_folder: Annotated[
        str,
        Field(max_length=1000, description="folder in which your editing program finds the videos; never opened here"),
    ] = ""


class ErrorFields(BaseModel):
    """What went wrong."""

    kind: Annotated[str, Field(examples=["no_such_video"], description="one word for programs")]
    message: Annotated[str, Field(examples=["there is no video of this name or id; GET v1/videos lists them"])]


class ErrorBody(BaseModel):
    """The body of each answer that is no success."""

    error: ErrorFields


class VideoBody(BaseModel):
    """A video in the list of videos."""

    id: Annotated[str, Field(examples=["5d41402abc4b2a76"])]
    name: Annotated[str, Field(examples=["holiday.mp4"])]
    bytes: int
    uploaded: bool


class VideoList(BaseModel):
    """A page of the list of videos."""

    videos: list[VideoBody]
    total: int


class VideoFacts(VideoBody):
    """A video with what its file says."""

    duration: Annotated[float, Field(description="seconds")]
    fps: float
    width: int
    height: int
    codec: str
    notes: list[str]


class GroundAnswer(BaseModel):
    """The answers to the queries about one video, in the order of the queries."""

    video: VideoBody
    answers: Annotated[
        list[dict[str, Any]],
        Field(description="groundings, as `sidelight ground --json` writes them, with names of videos"),
    ]


class CutFileBody(BaseModel):
    """A file that was cut; ``GET v1/cuts/{job}/{number}`` downloads it."""

    number: int
    name: str
    bytes: int
    video: Annotated[str | None, Field(description="null for a film of several moments")]
    start: Annotated[float | None, Field(description="second of the video at which the file begins")]
    end: float | None
    frames: int | None
    notes: list[str]


class JobBody(BaseModel):
    """A job of one of the queues."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    position: Annotated[int | None, Field(description="jobs that wait before this one; null if it does not wait")]
    progress: Annotated[
        float | None,
        Field(
            description="0 to 1: the part of the video that was read, or of the frames that were cut; null if unknown"
        ),
    ]
    result: GroundAnswer | None = None
    files: Annotated[list[CutFileBody] | None, Field(description="of a job that cuts moments")] = None
    error: ErrorFields | None = None


class FormatBody(BaseModel):
    """A format of ``POST v1/export``."""

    name: str
    summary: str
    one_video: Annotated[bool, Field(description="whether it holds answers about one video only")]


class ModelBody(BaseModel):
    """A model that sidelight can load."""

    name: str
    answers: Annotated[str, Field(description="what it answers about")]
    languages: str
    example: Annotated[str, Field(description="a query that it can answer")]
    loaded: bool


class ModelList(BaseModel):
    """The model that answers, and what else there is."""

    model: Annotated[str, Field(description="the model of this service")]
    knows: Annotated[str, Field(description="what this model answers about; empty if unknown")]
    example: Annotated[str, Field(description="a query that this model can answer")]
    models: list[ModelBody]
    formats: list[FormatBody]
    uploads: bool
    search: bool


class HitBody(BaseModel):
    """A moment that a search returned."""

    video: str
    id: Annotated[str | None, Field(description="null for a video that this service may not show")]
    start: float
    end: float
    score: Annotated[float, Field(description="of the model, within this video")]
    relevance: Annotated[float, Field(description="0 to 1, by which the hits of all videos are ordered")]


class SearchAnswer(BaseModel):
    """The hits of a search, best first."""

    query: Annotated[str, Field(description="the sentence, or words for the moment or the image")]
    hits: list[HitBody]
    calibrated: Annotated[bool, Field(description="whether relevance is the probability that a hit is right")] = False
    best_left_out: Annotated[
        float | None, Field(description="relevance of the best hit, if all were left out for it")
    ] = None
    notes: list[str]
    answers: Annotated[
        list[dict[str, Any]] | None,
        Field(description="a grounding for each video with a hit, with the moments of the hits; null unless asked for"),
    ] = None
