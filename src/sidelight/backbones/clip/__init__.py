"""Hold CLIP and its converter."""
