"""Features in the layouts that papers released: opened in place, exported, imported into a store of ours.

One class for each layout, in a file of its own: ``r2_tuning.py``, ``sdst.py``, ``moment_detr.py``. Their docstrings
show the files, and name the source. A new layout is one more such file and a line in ``registry.py``.

The files of a paper do not say how the features were made. The reader of the files states the feature spec
(``backbone`` of a training recipe); the values of the paper fill the gaps. A folder that sidelight wrote has the spec
in ``feature-spec.json`` (``feature-recipe.json`` before the first release), which other readers ignore.

Where ours differs from the published loaders:

- Length. R2-Tuning's loader accepts features up to 4 clips shorter than the duration, Moment-DETR's accepts any length
  and cuts features after 75 clips. Here features may be up to 4 clips longer or shorter: surplus clips are cut, and
  where clips are missing, the video keeps its duration. A larger difference is an error.
- All numbers become float16, as in our stores.

Legend: K levels, T clips, P tokens of a clip, L tokens of a sentence, D_v / D_t widths of video and text.
"""

from __future__ import annotations

from sidelight.core.timeline import CLIPS_OFF
from sidelight.features.layouts.base import SPEC_FILE, Layout, Shape
from sidelight.features.layouts.reading import NORMALISED, ForeignFeatures, durations_of, fitted_timeline, open_layout
from sidelight.features.layouts.registry import LAYOUTS, layout_of, recognise
from sidelight.features.layouts.writing import export_features, import_features

__all__ = [
    "CLIPS_OFF",
    "LAYOUTS",
    "NORMALISED",
    "SPEC_FILE",
    "ForeignFeatures",
    "Layout",
    "Shape",
    "durations_of",
    "export_features",
    "fitted_timeline",
    "import_features",
    "layout_of",
    "open_layout",
    "recognise",
]
