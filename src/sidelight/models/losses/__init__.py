"""Hold the losses of each model."""
