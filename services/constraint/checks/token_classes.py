"""What the tokens of a vocabulary do to a JSON text, by where they begin: which of them close something.

Made from the vocabulary alone. A mask asks a class as a whole where a check refuses all that it holds, and looks at
its tokens one by one only where the answer depends on each.
"""

from __future__ import annotations

from enum import Enum, auto
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from services.constraint.core.engine import TokenTrie
from services.vocabulary import bitmask_words

Bitmask = npt.NDArray[np.int32]

_SPACE: Final = frozenset(b" \t\n\r")
_DELIMITERS: Final = frozenset(b",]} \t\n\r")
_MARKS: Final = frozenset(b'",]}')


class Start(Enum):
    """Where a token begins."""

    IN_STRING = auto()
    IN_KEY = auto()
    IN_SCALAR = auto()
    ELSEWHERE = auto()  # behind a value, or before one or a key


class TokenClasses:
    """Bitmasks (words,) of tokens by where they begin."""

    def __init__(self, trie: TokenTrie) -> None:
        self._token_bytes = trie.vocabulary.token_bytes
        self._num_words = bitmask_words(trie.vocabulary.vocab_size)
        self._of: dict[Start, _Classes] = {}

    def of(self, start: Start) -> _Classes:
        """Return the classes of tokens that begin at a place."""
        if start not in self._of:
            self._of[start] = _Classes(self._texts, start, self._num_words)
        return self._of[start]

    @cached_property
    def _texts(self) -> list[tuple[int, bytes]]:
        return [(i, text) for i, text in enumerate(self._token_bytes) if text and not _MARKS.isdisjoint(text)]


class _Classes:
    """The tokens that do something, by what they do first, and those that do more than that."""

    def __init__(self, texts: list[tuple[int, bytes]], start: Start, num_words: int) -> None:
        self.end = np.zeros(num_words, np.int32)
        """They end the string, key or scalar that they begin in."""
        self.close = np.zeros(num_words, np.int32)
        """The first thing they do behind that is to close the container."""
        self.comma = np.zeros(num_words, np.int32)
        """The first thing they do behind that is to go on with a comma."""
        self.more = np.zeros(num_words, np.int32)
        """They end, close or go on once more."""
        self.keys = np.zeros(num_words, np.int32)
        """They end a key that they begin themselves."""
        for token_id, text in texts:
            events = _events(text, start)
            first = events[:1]
            behind = events[1:] if first == "e" else events
            self._add(self.end, token_id, first == "e" or (start is Start.IN_SCALAR and first != ""))
            self._add(self.close, token_id, behind[:1] == "}")
            self._add(self.comma, token_id, behind[:1] == ",")
            self._add(self.more, token_id, len(behind) > 1)
            self._add(self.keys, token_id, "k" in behind)

    @staticmethod
    def _add(bitmask: Bitmask, token_id: int, is_member: bool) -> None:
        if is_member:
            bitmask[token_id >> 5] |= np.uint32(1 << (token_id & 31)).astype(np.int32)


def _events(text: bytes, start: Start) -> str:
    """Return what a token does, in order.

    `e`: ends the string or key that it began in; `,`: goes on; `}`: closes; `k`: ends a string that it began itself,
    which may be a key or a value; `v`: begins a scalar that it may have ended.
    """
    events: list[str] = []
    at = 0
    if start in (Start.IN_STRING, Start.IN_KEY):
        at = _string_end(text, 0)
        if at < 0:
            return ""
        events.append("e")
    elif start is Start.IN_SCALAR:
        while at < len(text) and text[at] not in _DELIMITERS:
            at += 1
    while at < len(text):
        byte = text[at]
        at += 1
        if byte == 0x22:
            at = _string_end(text, at)
            if at < 0:
                break
            events.append("k")
        elif byte in b",":
            events.append(",")
        elif byte in b"}]":
            events.append("}")
        elif byte in b"{[":
            events.append("v")
        elif byte not in _SPACE and byte != 0x3A:
            while at < len(text) and text[at] not in _DELIMITERS:
                at += 1
            if at < len(text):
                events.append("v")
    return "".join(events)


def _string_end(text: bytes, at: int) -> int:
    """Return the place behind a string's closing quote, or -1 where it is not there."""
    while at < len(text):
        if text[at] == 0x5C:
            at += 2
        elif text[at] == 0x22:
            return at + 1
        else:
            at += 1
    return -1
