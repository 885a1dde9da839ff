"""The losses of the models: one file per paper, and the contrastive losses that they share."""
