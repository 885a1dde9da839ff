"""The tokenizer of the embedded backbone: words to token ids; unknown words become known pieces and letters."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import cache

import torch

from sidelight.backbones.common import check_tokens, pad_ids
from sidelight.shapes.language import ACTION_WORDS, ANY_SHAPE_WORDS, COLOUR_WORDS, SHAPE_WORDS

PAD, CLS = 0, 1

_SHORTEST_PIECE = 3
_FUNCTION_WORDS = (
    "a an the that is are there which who it its in on of to and or with while when where then "
    "something anything someone object thing shape video clip moment scene find show me one please"
)


@cache
def vocabulary() -> tuple[str, ...]:
    """Return all tokens: padding, CLS, the words of the shapes world, function words, letters and digits."""
    phrases = [w for table in (COLOUR_WORDS, SHAPE_WORDS) for words in table.values() for w in words]
    phrases += [form for forms in ACTION_WORDS.values() for pair in forms for form in pair]
    phrases += [*ANY_SHAPE_WORDS, _FUNCTION_WORDS]
    words = dict.fromkeys(word for phrase in phrases for word in phrase.split())
    letters = [f"##{c}" for c in string.ascii_lowercase + string.digits]
    return ("[PAD]", "[CLS]", "[OTHER]", *words, *letters)


class Tokenizer:
    """Lower-cased words. An unknown word becomes its longest known beginning, if any, and single letters.

    Letters other than a to z become ``[OTHER]``, also letters with accents. Punctuation is dropped.
    """

    def __init__(self) -> None:
        self.tokens = vocabulary()
        self._ids = {token: i for i, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def __call__(self, query: str) -> list[int]:
        """Return the token ids of a sentence, CLS first."""
        ids = [CLS]
        for word in re.findall(r"[^\W_]+", query.lower()):
            ids += self._word(word)
        return ids

    def _word(self, word: str) -> list[int]:
        if word in self._ids:
            return [self._ids[word]]
        for end in range(len(word) - 1, _SHORTEST_PIECE - 1, -1):
            if word[:end] in self._ids:
                return [self._ids[word[:end]], *self._letters(word[end:])]
        return self._letters(word)

    def _letters(self, text: str) -> list[int]:
        other = self._ids["[OTHER]"]
        return [self._ids.get(f"##{c}", other) for c in text]

    def batch(self, queries: Sequence[str], *, max_tokens: int) -> tuple[torch.Tensor, list[int]]:
        """Return the ids of several sentences, (B, L) padded with PAD, and the length of each sentence.

        Raises:
            ValueError: for a sentence without a word, or with more than ``max_tokens`` tokens.
        """
        rows = [self(query) for query in queries]
        for query, row in zip(queries, rows, strict=True):
            check_tokens(query, row, max_tokens, special=1)
        return pad_ids(rows, PAD), [len(row) for row in rows]
