"""Find moments in video by a sentence.

>>> from sidelight import Grounder
>>> grounding = Grounder.from_pretrained().ground("video.mp4", "a person opens the door")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidelight.core.grounding import Grounding, Moment
    from sidelight.grounder import Grounder

__all__ = ["Grounder", "Grounding", "Moment", "__version__"]

__version__ = "0.1.0"

# Public name -> module. A module is imported at the first use of its name, because PyTorch takes seconds to import.
_MODULES = {
    "Grounder": "sidelight.grounder",
    "Grounding": "sidelight.core.grounding",
    "Moment": "sidelight.core.grounding",
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
