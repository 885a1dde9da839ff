"""InternVideo2 as a backbone: sizes, towers, tokenizer, folder of weights, converter, and ``backbone`` on top."""
