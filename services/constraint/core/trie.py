"""The token trie: the vocabulary's bytes as a prefix tree, flat and in preorder, made once per vocabulary.

Preorder with an `end` beside each node lets a walk go on to the next node, or skip a subtree, by one assignment (the
idea is explained in llguidance's `docs/toktrie.md`).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from services.constraint.core.compiling import compiled
from services.constraint.core.holes import has_stand_in_bytes
from services.constraint.core.lexemes import VocabularyLexemes, Words
from services.constraint.core.pointers import PointerTable
from services.constraint.core.spans import VocabularySpans
from services.constraint.core.tables import Int32s, TrieArrays, Uint8s, VocabularyArrays
from services.constraint.core.trie_layout import new_trie
from services.vocabulary import Vocabulary, bitmask_words, pack_bool_mask


class TokenTrie:
    """All tokens of a vocabulary that stand for text, ordered by their bytes, and what is derived from them alone."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        tokens = sorted((token, token_id) for token_id, token in enumerate(vocabulary.token_bytes) if token is not None)
        text, offsets = _joined([token for token, _ in tokens])
        token_id = np.array([token_id for _, token_id in tokens], np.int32)
        self.arrays = new_trie(text, offsets[:-1], offsets[1:], token_id, np.zeros_like(token_id))
        self._pointers = PointerTable(len(TrieArrays._fields))
        self._pointers.put(self.arrays)
        self.max_token_bytes = int(np.diff(offsets).max(initial=0))
        # A byte that has no token of its own cannot be relied on to go on with, even where a longer token has it.
        self.usable_bytes = np.zeros(256, np.uint8)
        self.usable_bytes[[token[0] for token, _ in tokens if len(token) == 1]] = 1
        num_words = bitmask_words(vocabulary.vocab_size)
        self.spans = VocabularySpans(self._pointers.address, text, offsets, num_words)
        words = Words(self._pointers, self.arrays, offsets[:-1], offsets[1:])
        self.lexemes = VocabularyLexemes(words, text, num_words)
        self.vocabulary_arrays = VocabularyArrays(
            np.array([self._pointers.address], np.int64),
            *_joined([token or b"" for token in vocabulary.token_bytes]),
            np.array(vocabulary.eos_token_ids, np.int32),
        )

    @cached_property
    def tokens_of_stand_ins(self) -> Int32s:
        """The bitmask (words,) of the tokens that have bytes of `holes.py`."""
        tokens = self.vocabulary.token_bytes
        return pack_bool_mask(np.array([token is not None and has_stand_in_bytes(token) for token in tokens]))

    def longest_prefix(self, text: Uint8s) -> tuple[int, int] | None:
        """Return (token id, length) of the longest token that `text` begins with, or None."""
        node, length = _longest_prefix(self.arrays, text)
        return (int(self.arrays.token_id[self.arrays.token_start[node]]), int(length)) if length else None

    def reaches_past(self, text: Uint8s, num_starts: int) -> bool:
        """Tell whether a token that starts in the first `num_starts` bytes of `text` may go on behind its end."""
        return bool(_reaches_past(self.arrays, text, num_starts))

    def longest_along(self, text: bytes) -> int:
        """Return the most bytes of `text` that a token spells: all where one goes on behind them, 0 where none does."""
        array = np.frombuffer(text, np.uint8)
        return len(text) if self.reaches_past(array, 1) else int(_longest_prefix(self.arrays, array)[1])

    def clear_along(self, text: bytes, num_bytes: int, row: Int32s) -> None:
        """Take off a bitmask (words,) the tokens that begin with `text`, or are its first `num_bytes` bytes or more."""
        _clear_along(self.arrays, np.frombuffer(text, np.uint8), num_bytes, row)


def _joined(tokens: list[bytes]) -> tuple[Uint8s, npt.NDArray[np.int64]]:
    """Return the tokens' bytes one after the other, and where each begins, with the end behind the last."""
    offsets = np.zeros(len(tokens) + 1, np.int64)
    np.cumsum([len(token) for token in tokens], out=offsets[1:])
    return np.frombuffer(bytearray().join(tokens), np.uint8), offsets


@compiled
def _longest_prefix(trie: TrieArrays, text: Uint8s) -> tuple[int, int]:
    best, best_length = -1, 0
    node, stop = 0, len(trie.byte)
    for i in range(len(text)):
        while node < stop and trie.byte[node] != text[i]:
            node = trie.end[node]
        if node >= stop:
            break
        if trie.token_start[node] < trie.token_start[node + 1]:
            best, best_length = node, i + 1
        stop = trie.end[node]
        node += 1
    return best, best_length


@compiled
def _clear_along(trie: TrieArrays, text: Uint8s, num_bytes: int, row: Int32s) -> None:
    """Clear the tokens that end on the way along `text` from `num_bytes` bytes on, and all that begin with it."""
    node, stop = 0, len(trie.byte)
    for i in range(len(text)):
        while node < stop and trie.byte[node] != text[i]:
            node = trie.end[node]
        if node >= stop:
            return
        last = trie.end[node] if i + 1 == len(text) else node + 1
        if i + 1 >= num_bytes:
            for j in range(trie.token_start[node], trie.token_start[last]):
                token_id = trie.token_id[j]
                row[token_id >> 5] &= ~(np.int32(1) << np.int32(token_id & 31))
        stop = trie.end[node]
        node += 1


@compiled
def _reaches_past(trie: TrieArrays, text: Uint8s, num_starts: int) -> bool:
    for start in range(num_starts):
        node, stop = 0, len(trie.byte)
        found = True
        for i in range(start, len(text)):
            while node < stop and trie.byte[node] != text[i]:
                node = trie.end[node]
            if node >= stop:
                found = False
                break
            stop = trie.end[node]
            node += 1
        if found and node < stop:
            return True
    return False
