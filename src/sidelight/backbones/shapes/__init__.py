"""The embedded backbone of the shapes world: its model, its tokenizer and its training."""
