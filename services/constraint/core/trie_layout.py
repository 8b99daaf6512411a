"""A prefix tree as flat arrays in preorder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from services.constraint.core.compiling import compiled
from services.constraint.core.tables import Int32s, Int64s, TrieArrays, Uint8s, i64


def new_trie(text: Uint8s, starts: Int64s, ends: Int64s, token_id: Int32s, token_number: Int32s) -> TrieArrays:
    """Return the trie of the sorted words text[starts[i]:ends[i]] that stand for these tokens, with these numbers."""
    byte, depth, end, token_start, first = _layout(text, starts, ends)
    begins = np.packbits(np.diff(first) > 0, bitorder="little").view(np.int64)
    return TrieArrays(byte, depth, end, token_start, first, token_id, begins, token_number)


@compiled
def _layout(text: Uint8s, starts: Int64s, ends: Int64s) -> tuple[Uint8s, Int32s, Int32s, Int32s, Int32s]:
    """Return (byte, depth, end, token_start, first) of the trie of the sorted words text[starts[i]:ends[i]]."""
    num_tokens = len(starts)
    capacity = i64(0)
    for i in range(num_tokens):
        capacity += ends[i] - starts[i]
    byte = np.empty(capacity, np.uint8)
    depth = np.empty(capacity, np.int32)
    end = np.empty(capacity, np.int32)
    token_start = np.empty(capacity + 1, np.int32)
    longest = i64(0)
    for i in range(num_tokens):
        longest = max(longest, ends[i] - starts[i])
    open_node = np.zeros(longest + 1, np.int32)  # the node at each depth of the path to the latest token
    open_depth = 0
    nodes = 0
    for i in range(num_tokens):
        start = starts[i]
        length = ends[i] - start
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
    first = np.zeros(257, np.int32)
    node = 0
    while node < nodes:
        first[byte[node] + 1 :] = end[node]
        node = end[node]
    return byte[:nodes].copy(), depth[:nodes].copy(), end[:nodes].copy(), token_start[: nodes + 1].copy(), first


def order_of_words(text: Uint8s, starts: Int64s, ends: Int64s) -> Int64s:
    """Return the order that sorts the words text[starts[i]:ends[i]] by their bytes."""
    heads = _heads(text, starts, ends)
    # The remainders of one place's exits come sorted: this kind finds such runs.
    order = np.argsort(heads, kind="stable")
    _order_equal_heads(text, starts, ends, heads, order)
    return order


@compiled
def _heads(text: Uint8s, starts: Int64s, ends: Int64s) -> npt.NDArray[np.uint64]:
    """Return the first eight bytes of each word, as a number that sorts as they do."""
    heads = np.zeros(len(starts), np.uint64)
    for i in range(len(starts)):
        for at in range(starts[i], starts[i] + 8):
            byte = text[at] if at < ends[i] else np.uint8(0)
            heads[i] = (heads[i] << np.uint64(8)) | np.uint64(byte)
    return heads


@compiled
def _order_equal_heads(
    text: Uint8s, starts: Int64s, ends: Int64s, heads: npt.NDArray[np.uint64], order: Int64s
) -> None:
    """Insert each word among those with the same head, which are few."""
    for i in range(1, len(order)):
        word = order[i]
        at = i
        while at > 0 and heads[order[at - 1]] == heads[word] and _is_less(text, starts, ends, word, order[at - 1]):
            order[at] = order[at - 1]
            at -= 1
        order[at] = word


@compiled
def _is_less(text: Uint8s, starts: Int64s, ends: Int64s, one: int, other: int) -> bool:
    for at in range(min(ends[one] - starts[one], ends[other] - starts[other])):
        mine, its = text[starts[one] + at], text[starts[other] + at]
        if mine != its:
            return bool(mine < its)
    return bool(ends[one] - starts[one] < ends[other] - starts[other])
