"""Read video files: frames at given times."""
