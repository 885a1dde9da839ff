"""Decoding: predictions become groundings, and the windows of a long video become one grounding."""
