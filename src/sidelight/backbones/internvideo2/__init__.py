"""Hold InternVideo2 and its converter."""
