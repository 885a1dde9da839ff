"""Train side-tuners, and keep and convert their checkpoints."""
