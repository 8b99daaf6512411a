"""Interning ("hash-consing").

The same set of frames is the same stack node, the same set of items the same configuration.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from services.constraint.core.compiling import compiled
from services.constraint.core.tables import (
    BOTTOM,
    DEAD,
    GROW_ARENA,
    NUM_CLASSES,
    NUM_CONFIGURATIONS,
    NUM_FRAMES,
    NUM_ITEMS,
    NUM_NODES,
    UNKNOWN,
    UNREACHABLE,
    Int32s,
    Int64s,
    arena,
    i64,
    tables,
)

_MULTIPLIER: Final = -7046029254386353131  # 0x9E3779B97F4A7C15, the golden ratio in 64 bits


@compiled
def mix(h: int, value: int) -> int:
    """Return a hash of a hash and one more value."""
    h = (h ^ value) * _MULTIPLIER
    return h ^ (h >> 29)


@compiled
def _sort_frames(returns: Int32s, counts: Int32s, parents: Int32s, n: int) -> int:
    """Sort n frames in place (Shell sort: few elements, often sorted already) and drop duplicates.

    Return how many are left.
    """
    gap = 1
    while gap < n // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, n):
            r, c, p = returns[i], counts[i], parents[i]
            j = i
            while j >= gap:
                a, b, d = returns[j - gap], counts[j - gap], parents[j - gap]
                if a < r or (a == r and (b < c or (b == c and d <= p))):
                    break
                returns[j], counts[j], parents[j] = a, b, d
                j -= gap
            returns[j], counts[j], parents[j] = r, c, p
        gap //= 3
    kept = i64(0)
    for i in range(n):
        if (
            kept > 0
            and returns[i] == returns[kept - 1]
            and counts[i] == counts[kept - 1]
            and parents[i] == parents[kept - 1]
        ):
            continue
        returns[kept], counts[kept], parents[kept] = returns[i], counts[i], parents[i]
        kept += 1
    return kept


@compiled
def _sort_items(states: Int32s, nodes: Int32s, n: int) -> int:
    """Sort n items in place and drop duplicates; return how many are left."""
    gap = 1
    while gap < n // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, n):
            s, d = states[i], nodes[i]
            j = i
            while j >= gap and (states[j - gap] > s or (states[j - gap] == s and nodes[j - gap] > d)):
                states[j], nodes[j] = states[j - gap], nodes[j - gap]
                j -= gap
            states[j], nodes[j] = s, d
        gap //= 3
    kept = i64(0)
    for i in range(n):
        if kept > 0 and states[i] == states[kept - 1] and nodes[i] == nodes[kept - 1]:
            continue
        states[kept], nodes[kept] = states[i], nodes[i]
        kept += 1
    return kept


@compiled
def intern_node(memory: int, returns: Int32s, counts: Int32s, parents: Int32s, n: int) -> int:
    """Return the node of these n frames, or GROW_ARENA.

    They may come in any order and repeat; the arrays are sorted in place.
    """
    g, a = tables(memory), arena(memory)
    if n > 1:
        n = _sort_frames(returns, counts, parents, n)
    h = n
    for i in range(n):
        h = mix(mix(mix(h, i64(returns[i])), i64(counts[i])), i64(parents[i]))
    mask = len(a.node_table) - 1
    slot = h & mask
    while a.node_table[slot] != 0:
        node = i64(a.node_table[slot])
        if a.node_hash[node] == h:
            start = a.node_start[node]
            if a.node_start[node + 1] - start == n:
                same = True
                for i in range(n):
                    if (
                        a.frame_return[start + i] != returns[i]
                        or a.frame_count[start + i] != counts[i]
                        or a.frame_parent[start + i] != parents[i]
                    ):
                        same = False
                        break
                if same:
                    return node
        slot = (slot + 1) & mask
    node = a.sizes[NUM_NODES]
    start = a.sizes[NUM_FRAMES]
    if node >= len(a.node_hash) or start + n > len(a.frame_return):
        return GROW_ARENA
    distance = UNREACHABLE
    for i in range(n):
        a.frame_return[start + i] = returns[i]
        a.frame_count[start + i] = counts[i]
        a.frame_parent[start + i] = parents[i]
        if returns[i] == BOTTOM:
            there = 0
        elif g.count_minimum[returns[i]] >= 0:
            rest = max(0, g.count_minimum[returns[i]] - counts[i] - 1)
            there = rest * i64(g.body_distance[returns[i]]) + a.node_distance[parents[i]]
        else:
            there = i64(g.distance[returns[i]]) + a.node_distance[parents[i]]
        distance = min(distance, there)
    a.node_start[node + 1] = start + n
    a.node_distance[node] = distance
    a.node_behind[node] = UNKNOWN
    a.node_hash[node] = h
    a.node_table[slot] = node
    a.sizes[NUM_NODES] = node + 1
    a.sizes[NUM_FRAMES] = start + n
    return i64(node)


@compiled
def intern_configuration(memory: int, states: Int32s, nodes: Int32s, n: int, accepts: int) -> int:
    """Return the configuration of these n items, DEAD for none, or GROW_ARENA.

    They may come in any order and repeat; the arrays are sorted in place.
    """
    if n == 0 and accepts == 0:
        return DEAD
    g, a = tables(memory), arena(memory)
    if n > 1:
        n = _sort_items(states, nodes, n)
    h = 2 * n + accepts
    for i in range(n):
        h = mix(mix(h, i64(states[i])), i64(nodes[i]))
    mask = len(a.configuration_table) - 1
    slot = h & mask
    while a.configuration_table[slot] != 0:
        configuration = i64(a.configuration_table[slot])
        if a.configuration_hash[configuration] == h and a.configuration_accepts[configuration] == accepts:
            start = a.configuration_start[configuration]
            if a.configuration_start[configuration + 1] - start == n:
                same = True
                for i in range(n):
                    if a.item_state[start + i] != states[i] or a.item_node[start + i] != nodes[i]:
                        same = False
                        break
                if same:
                    return configuration
        slot = (slot + 1) & mask
    configuration = a.sizes[NUM_CONFIGURATIONS]
    start = a.sizes[NUM_ITEMS]
    if configuration >= len(a.configuration_hash) or start + n > len(a.item_state):
        return GROW_ARENA
    distance = i64(UNREACHABLE)
    if accepts == 1:
        distance = i64(0)
    # Most bytes lead nowhere, and it costs little to know it at once.
    row = configuration * a.sizes[NUM_CLASSES]
    for cell in range(row, row + a.sizes[NUM_CLASSES]):
        a.transitions[cell] = DEAD
    for i in range(n):
        a.item_state[start + i] = states[i]
        a.item_node[start + i] = nodes[i]
        distance = min(distance, i64(g.byte_distance[states[i]]) + a.node_distance[nodes[i]])
        for edge in range(g.edge_start[states[i]], g.edge_start[states[i] + 1]):
            first, last = row + g.byte_class[g.edge_low[edge]], row + g.byte_class[g.edge_high[edge]]
            for cell in range(first, last + 1):
                a.transitions[cell] = UNKNOWN
    a.configuration_start[configuration + 1] = start + n
    a.configuration_accepts[configuration] = accepts
    a.mask_row[configuration] = 0
    a.configuration_distance[configuration] = distance
    a.configuration_hash[configuration] = h
    a.configuration_table[slot] = configuration
    a.sizes[NUM_CONFIGURATIONS] = configuration + 1
    a.sizes[NUM_ITEMS] = start + n
    return i64(configuration)


@compiled
def rehashed(hashes: Int64s, first: int, size: int, capacity: int) -> Int32s:
    """Return an open-addressing table (capacity,) of the numbers first .. size - 1 by their hashes; 0 = free."""
    table = np.zeros(capacity, np.int32)
    for number in range(first, size):
        slot = hashes[number] & (capacity - 1)
        while table[slot] != 0:
            slot = (slot + 1) & (capacity - 1)
        table[slot] = number
    return table
