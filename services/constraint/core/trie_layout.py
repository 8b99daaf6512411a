"""A prefix tree as flat arrays in preorder."""

from __future__ import annotations

import numpy as np

from services.constraint.core.compiling import compiled
from services.constraint.core.tables import Int32s, Int64s, Uint8s


@compiled
def build_trie(text: Uint8s, offsets: Int64s) -> tuple[Uint8s, Int32s, Int32s, Int32s, Int32s]:
    """Return (byte, depth, end, token_start, first) of the trie of the sorted tokens text[offsets[i]:offsets[i + 1]]."""
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
    first = np.zeros(257, np.int32)
    for node in range(nodes):
        if depth[node] == 0:
            first[byte[node] + 1 :] = end[node]
    return byte[:nodes].copy(), depth[:nodes].copy(), end[:nodes].copy(), token_start[: nodes + 1].copy(), first
