"""Sentences to the token ids of BERT (uncased): words, and pieces of words that are not in the vocabulary.

The scheme is that of BERT (Devlin et al., NAACL 2019, arXiv 1810.04805): a text is cleaned, lower-cased, stripped of
accents and split at spaces, punctuation and Chinese characters; each word then falls into the longest pieces that
the vocabulary holds, from left to right. It is written here because it is short, and the alternative is a compiled
dependency whose answers differ: it does not see a special token inside a text where the published code does.

A row of ids begins with ``[CLS]`` and, as the published text tower of InternVideo2 wants it, does not end with
``[SEP]``.

Legend: B sentences, L tokens.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

PAD, UNKNOWN, CLS = "[PAD]", "[UNK]", "[CLS]"
SPECIAL = (PAD, UNKNOWN, CLS, "[SEP]", "[MASK]")
LONGEST_WORD = 100
"""Longer words, in characters, are unknown."""

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
        vocabulary: the tokens in the order of their ids; pieces inside a word begin with ``##``. Of a token
            that is there twice the later id counts, as published.

    Raises:
        ValueError: if a special token is missing.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.tokens = tuple(vocabulary)
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        if missing := [token for token in SPECIAL if token not in self._ids]:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}; is it the vocab.txt of BERT?")
        self._longest = max(map(len, self.tokens))

    @classmethod
    def read(cls, path: str | Path) -> WordPiece:
        """The tokenizer of a ``vocab.txt``: one token a line, UTF-8.

        Raises:
            ValueError: if it is no file, or no vocabulary.
        """
        try:
            # Not splitlines: a vocabulary may hold characters that it takes for the end of a line.
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read a vocabulary from {path}: {error}") from None
        return cls(lines[:-1] if lines[-1] == "" else lines)

    def __len__(self) -> int:
        return len(self.tokens)

    def __call__(self, text: str) -> list[int]:
        """Token ids of one text, ``[CLS]`` first. A special token written out in it counts as that token."""
        ids = [self._ids[CLS]]
        for part in _SPECIAL.split(text):
            if part in SPECIAL:
                ids.append(self._ids[part])
            else:
                ids += [i for word in words(part) for i in self._pieces(word)]
        return ids

    def _pieces(self, word: str) -> list[int]:
        """The longest known pieces from left to right; the unknown token if one part of the word has none."""
        unknown = [self._ids[UNKNOWN]]
        if len(word) > LONGEST_WORD:
            return unknown
        ids: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                if (found := self._ids.get(prefix + word[start:end])) is not None:
                    ids.append(found)
                    start = end
                    break
            else:
                return unknown
        return ids

    def batch(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows of ids to ids_BL, padded, and mask_BL, True where a token is."""
        longest = max((len(row) for row in rows), default=0)
        ids_BL = torch.full((len(rows), longest), self._ids[PAD])
        mask_BL = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids_BL[i, : len(row)] = torch.tensor(row)
            mask_BL[i, : len(row)] = True
        return ids_BL, mask_BL


def words(text: str) -> Iterator[str]:
    """The words of a text in lower case without accents; each punctuation mark and Chinese character is one."""
    cleaned = "".join(_clean(character) for character in text)
    for word in cleaned.split():
        bare = (c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
        yield from "".join(f" {c} " if _is_punctuation(c) else c for c in bare).split()


def _clean(character: str) -> str:
    """Spaces for white space, nothing for what is invisible, and space around Chinese characters."""
    if character in " \t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    if character == "\ufffd" or unicodedata.category(character).startswith("C"):
        return ""
    return f" {character} " if any(low <= ord(character) <= high for low, high in _CHINESE) else character


def _is_punctuation(character: str) -> bool:
    """Unicode's punctuation, and all of ASCII's marks, among them $, + and ^, which Unicode calls symbols."""
    ascii_mark = character.isascii() and character.isprintable() and not character.isalnum() and character != " "
    return ascii_mark or unicodedata.category(character).startswith("P")
