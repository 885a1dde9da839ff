"""The tokenizer of BERT (uncased): words, and pieces of words that are not in the vocabulary.

The scheme is from BERT (Devlin et al., NAACL 2019, arXiv 1810.04805). A text is cleaned, lower-cased, stripped of
accents, and split at spaces, punctuation and Chinese characters. Each word is then split into the longest pieces that
the vocabulary holds, from left to right. This module replaces a compiled dependency, because the scheme is short and
the dependency gives other ids: the dependency ignores a special token inside a text, the published code does not.

A row of ids begins with ``[CLS]``. It does not end with ``[SEP]``, as in the published text tower of InternVideo2.

Legend: B sentences, L tokens.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sidelight.backbones.common import pad_ids

PAD, UNKNOWN, CLS = "[PAD]", "[UNK]", "[CLS]"
SPECIAL = (PAD, UNKNOWN, CLS, "[SEP]", "[MASK]")
LONGEST_WORD = 100
"""Most characters of a word; a longer word is unknown."""

_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")
# The blocks of Chinese characters in Unicode, as BERT counts them: neither kana nor hangul.
_CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPiece:
    """The tokenizer of one vocabulary.

    Args:
        vocabulary: the tokens in the order of their ids; pieces inside a word begin with ``##``. A token that occurs
            twice has the later id, as in the published code.

    Raises:
        ValueError: if a special token is missing.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.tokens = tuple(vocabulary)
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        if missing := [token for token in SPECIAL if token not in self._ids]:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}; is it the vocab.txt of BERT?")
        self._longest_token = max(map(len, self.tokens))

    @classmethod
    def read(cls, path: str | Path) -> WordPiece:
        """Read a ``vocab.txt``: one token per line, UTF-8.

        Raises:
            ValueError: if the file cannot be read, or is not a vocabulary.
        """
        try:
            # Not splitlines, which also splits at characters that may be tokens.
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read a vocabulary from {path}: {error}") from None
        return cls(lines[:-1] if lines[-1] == "" else lines)

    def __len__(self) -> int:
        return len(self.tokens)

    def __call__(self, text: str) -> list[int]:
        """Return the token ids of a text, ``[CLS]`` first. A special token inside the text counts as that token."""
        ids = [self._ids[CLS]]
        for part in _SPECIAL.split(text):
            if part in SPECIAL:
                ids.append(self._ids[part])
            else:
                ids += [i for word in split_words(part) for i in self._pieces(word)]
        return ids

    def _pieces(self, word: str) -> list[int]:
        """Return the longest known pieces from left to right, or the unknown token if a part of the word has none."""
        unknown = [self._ids[UNKNOWN]]
        if len(word) > LONGEST_WORD:
            return unknown
        ids: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(min(len(word), start + self._longest_token), start, -1):
                if (piece := self._ids.get(prefix + word[start:end])) is not None:
                    ids.append(piece)
                    start = end
                    break
            else:
                return unknown
        return ids

    def batch(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return the rows as padded ids_BL, and mask_BL, which is True for tokens."""
        ids_BL = pad_ids(rows, self._ids[PAD])
        lengths_B1 = torch.tensor([len(row) for row in rows], dtype=torch.long)[:, None]
        return ids_BL, torch.arange(ids_BL.shape[1]) < lengths_B1


def split_words(text: str) -> Iterator[str]:
    """Yield the words of a text in lower case, without accents. Punctuation marks and Chinese characters are words."""
    cleaned = "".join(_clean(character) for character in text)
    for word in cleaned.split():
        plain = (c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
        yield from "".join(f" {c} " if _is_punctuation(c) else c for c in plain).split()


def _clean(character: str) -> str:
    """Turn white space into a space, remove invisible characters, and put spaces around Chinese characters."""
    if character in " \t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    if character == "\ufffd" or unicodedata.category(character).startswith("C"):
        return ""
    return f" {character} " if any(low <= ord(character) <= high for low, high in _CHINESE) else character


def _is_punctuation(character: str) -> bool:
    """Check for Unicode's punctuation and for all ASCII marks, also $, + and ^, which are symbols in Unicode."""
    ascii_mark = character.isascii() and character.isprintable() and not character.isalnum() and character != " "
    return ascii_mark or unicodedata.category(character).startswith("P")
