"""The token trie: the vocabulary's bytes as a prefix tree, flat and in preorder, made once per vocabulary.

Preorder with an `end` beside each node lets a walk go on to the next node, or skip a subtree, by one assignment (the
idea is explained in llguidance's `docs/toktrie.md`).
"""

from __future__ import annotations

import numpy as np

from services.constraint.core.compiling import compiled
from services.constraint.core.tables import Int32s, Int64s, TrieArrays, Uint8s
from services.vocabulary import Vocabulary


class TokenTrie:
    """All tokens of a vocabulary that stand for text, ordered by their bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        tokens = sorted((token, token_id) for token_id, token in enumerate(vocabulary.token_bytes) if token is not None)
        lengths = np.array([len(token) for token, _ in tokens], np.int64)
        offsets = np.zeros(len(tokens) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        text = np.frombuffer(b"".join(token for token, _ in tokens), np.uint8)
        token_id = np.array([token_id for _, token_id in tokens], np.int32)
        byte, depth, end, token_start = _build(text, offsets)
        self.arrays = TrieArrays(byte, depth, end, token_start, token_id)
        self.max_token_bytes = int(lengths.max(initial=0))
        # A byte that has no token of its own cannot be relied on to go on with, even where a longer token has it.
        self.usable_bytes = np.zeros(256, np.uint8)
        self.usable_bytes[[token[0] for token, _ in tokens if len(token) == 1]] = 1

    def longest_prefix(self, text: Uint8s) -> tuple[int, int] | None:
        """Return (token id, length) of the longest token that `text` begins with, or None."""
        node, length = _longest_prefix(self.arrays, text)
        return (int(self.arrays.token_id[self.arrays.token_start[node]]), int(length)) if length else None

    def reaches_past(self, text: Uint8s, num_starts: int) -> bool:
        """Tell whether a token that starts in the first `num_starts` bytes of `text` may go on behind its end."""
        return bool(_reaches_past(self.arrays, text, num_starts))


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


@compiled
def _build(text: Uint8s, offsets: Int64s) -> tuple[Uint8s, Int32s, Int32s, Int32s]:
    """Return (byte, depth, end, token_start) of the trie of the sorted tokens text[offsets[i]:offsets[i + 1]]."""
    num_tokens = len(offsets) - 1
    capacity = len(text)
    byte = np.zeros(capacity, np.uint8)
    depth = np.zeros(capacity, np.int32)
    end = np.zeros(capacity, np.int32)
    token_start = np.zeros(capacity + 1, np.int32)
    longest = 0
    for i in range(num_tokens):
        longest = max(longest, offsets[i + 1] - offsets[i])
    open_node = np.zeros(longest + 1, np.int32)  # the node at each depth of the path to the latest token
    open_depth = 0
    nodes = 0
    for i in range(num_tokens):
        start = offsets[i]
        length = offsets[i + 1] - start
        shared = 0
        while shared < open_depth and shared < length and byte[open_node[shared]] == text[start + shared]:
            shared += 1
        while open_depth > shared:
            open_depth -= 1
            end[open_node[open_depth]] = nodes
        while open_depth < length:
            byte[nodes] = text[start + open_depth]
            depth[nodes] = open_depth
            token_start[nodes] = i
            open_node[open_depth] = nodes
            open_depth += 1
            nodes += 1
        # Sorted order puts this token behind all tokens of earlier nodes; nodes that follow start behind it.
        token_start[nodes] = i + 1
    while open_depth > 0:
        open_depth -= 1
        end[open_node[open_depth]] = nodes
    token_start[nodes] = num_tokens
    return byte[:nodes].copy(), depth[:nodes].copy(), end[:nodes].copy(), token_start[: nodes + 1].copy()
