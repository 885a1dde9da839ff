"""Find moments in video by a sentence.

>>> from sidelight import Grounder
>>> grounding = Grounder.from_pretrained().ground("video.mp4", "a person opens the door")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidelight.backbones.common import QueryWarning
    from sidelight.backbones.protocol import SpecMismatchError
    from sidelight.core.grounding import Grounding, Moment
    from sidelight.data.annotations import AnnotationError
    from sidelight.grounder import Grounder, OutsideWarning
    from sidelight.io.cache import CacheWarning
    from sidelight.io.download import DownloadError
    from sidelight.io.storage import StorageError
    from sidelight.video.damage import VideoError, VideoWarning

__all__ = [
    "AnnotationError",
    "CacheWarning",
    "DownloadError",
    "Grounder",
    "Grounding",
    "Moment",
    "OutsideWarning",
    "QueryWarning",
    "SpecMismatchError",
    "StorageError",
    "VideoError",
    "VideoWarning",
    "__version__",
]

__version__ = "0.1.0"

# Public name -> module. A module is imported at the first use of its name, because PyTorch takes seconds to import.
_MODULES = {
    "Grounder": "sidelight.grounder",
    "Grounding": "sidelight.core.grounding",
    "Moment": "sidelight.core.grounding",
    # errors; all but StorageError, an OSError, are ValueErrors
    "AnnotationError": "sidelight.data.annotations",
    "DownloadError": "sidelight.io.download",
    "SpecMismatchError": "sidelight.backbones.protocol",
    "StorageError": "sidelight.io.storage",
    "VideoError": "sidelight.video.damage",
    # warnings
    "CacheWarning": "sidelight.io.cache",
    "OutsideWarning": "sidelight.grounder",
    "QueryWarning": "sidelight.backbones.common",
    "VideoWarning": "sidelight.video.damage",
}


if not TYPE_CHECKING:  # with this function, a type checker would accept any name

    def __getattr__(name: str) -> object:
        """Import a public name at its first use."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
