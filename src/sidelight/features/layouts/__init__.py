"""Features as papers released them: read in place, written, brought into a store of ours.

    r2-tuning    clip_b32_vid_k4/VID.npy                (T, K, P, D_v) float16
                 clip_b32_txt_k4/QID.npy                (L, K, D_t) float16
    sdst         vid_feats/VID.npz                      "visual_feats_interm_pooled" (T, K, D_v)
                 txt_feats/QID.npz                      "text_feats" (K, L, D_t)
    moment-detr  slowfast_features/VID.npz,
                 clip_features/VID.npz, ...             "features" (T, D), put one beside the other
                 clip_text_features/qidQID.npz          "last_hidden_state" (L, D_t)

Where this is known from. R2-Tuning: its ``tools/extract_feat.py`` and ``datasets/grounding.py``
(github.com/yeliudev/R2-Tuning); the name of a folder tells CLIP's size and K. Moment-DETR: its
``start_end_dataset.py`` and scripts (github.com/jayleicn/moment_detr); UniVTG and its successors call the folders
``vid_slowfast``, ``vid_clip`` and ``txt_clip``, and the sentence's file ``QID.npz``. SDST: its loader is not at hand;
names, shapes and folders are those in code of others that reads its released features. That its 5 levels are the last
five is an assumption, and so is float16 where we write it.

What the files do not say is the feature spec: the backbone, what it was shown, its weights. It has to be said by
whoever reads them (``backbone`` of a training recipe); what the papers say is the default. A folder that we wrote
carries it, in ``feature-recipe.json``, which other readers do not look at.

Where ours differs from the published loaders:

- Length. R2-Tuning's accepts features up to 4 clips shorter than the duration, Moment-DETR's cuts what is beyond 75
  clips and takes any length. Here features may be up to 4 clips longer or shorter: what is more is cut, what is missing
  is as if the video ended there. Further off is an error.
- Moment-DETR's cuts folders of different lengths to the shortest, and sentences to 32 tokens. Here folders may differ
  by up to 4 clips, and sentences keep all their tokens.
- All numbers become float16, as in our stores.

Legend: K levels, T clips, P tokens of a clip, L tokens of a sentence, D_v / D_t widths of video and text.
"""

from __future__ import annotations

from sidelight.features.layouts.files import (
    CLIPS_OFF,
    LAYOUTS,
    SPEC_FILE,
    Layout,
    LayoutName,
    Shape,
    described,
    layout_of,
    recognise,
)
from sidelight.features.layouts.reading import NORMALISED, ForeignFeatures, durations_of, fitted_timeline, open_features
from sidelight.features.layouts.writing import export_features, import_features

__all__ = [
    "CLIPS_OFF",
    "LAYOUTS",
    "NORMALISED",
    "SPEC_FILE",
    "ForeignFeatures",
    "Layout",
    "LayoutName",
    "Shape",
    "described",
    "durations_of",
    "export_features",
    "fitted_timeline",
    "import_features",
    "layout_of",
    "open_features",
    "recognise",
]
