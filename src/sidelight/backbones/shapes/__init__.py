"""Hold the embedded backbone of the shapes world."""
