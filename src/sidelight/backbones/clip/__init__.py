"""CLIP as a backbone: the encoder (``model``), its weights (``loading``, ``released``) and the converter."""
