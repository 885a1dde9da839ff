"""A library of videos to search: ``Library.open("films.lib").search("a dog swims")``."""

from sidelight.library.answers import Changes, Hit, SearchResult, Status, Where
from sidelight.library.library import Library

__all__ = ["Changes", "Hit", "Library", "SearchResult", "Status", "Where"]
