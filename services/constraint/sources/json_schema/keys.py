"""The keys of additional properties: every string but the declared ones.

Keys have one spelling each (`encoding.json_plain`), so a key differs from the declared ones exactly when its bytes
do, and a prefix tree of the declared ones with a way out at every byte is all that is needed.

Many ways out are the same: "any character but an `e`, and then any key". So each is a state of its own, to which all
nodes of the tree with the same followers have an epsilon; a node itself has only the edges within the tree. That is a
small part of the edges that the nodes would have themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias

from services.constraint.core.grammar import Automaton
from services.constraint.sources.json_schema.strings import PLAIN_CHARACTER

# The edges (low byte, high byte, target) of one state.
Row: TypeAlias = tuple[tuple[int, int, int], ...]

QUOTE = 0x22
_FREE = 0
_CLOSED = 1
assert isinstance(PLAIN_CHARACTER, Automaton)
# The character's automaton as a loop: its end (state 1) is its start again, and state 1 becomes the state behind the
# closing quote.
_LOOP = tuple(
    (source, low, high, _FREE if target == 1 else target) for source, low, high, target in PLAIN_CHARACTER.edges
)
_EDGES_FROM: dict[int, Row] = {
    place: tuple((low, high, target) for source, low, high, target in _LOOP if source == place)
    for place in {source for source, _, _, _ in _LOOP}
}
# The quote has a state of its own, so that the loop is nothing but characters.
_CLOSING = 1 + max(max(source, target) for source, _, _, target in _LOOP)
_START = _CLOSING + 1
_LEAF = _START + 1  # behind a name that no longer one begins with: one more character, then any key
_FIRST_WAY = _LEAF + 1  # the ways out of nodes with one child, by the byte that leads to it, from a space on
_ROOT = _FIRST_WAY + 0x60
_EDGES = (
    *_LOOP,
    (_CLOSING, QUOTE, QUOTE, _CLOSED),
    (_START, QUOTE, QUOTE, _ROOT),
    *((_LEAF, low, high, target) for low, high, target in _EDGES_FROM[_FREE]),
)
_BYTES = [bytes([byte]) for byte in range(256)]
_encode = json.JSONEncoder(ensure_ascii=False).encode


def key_bytes(name: str) -> bytes:
    """Return a key as it is written, quotes included."""
    return _encode(name).encode()


def any_key_but(names: Iterable[str]) -> Automaton:
    """Return the automaton of all keys but these, quotes included."""
    edges = list(_EDGES)
    followers = [b""]  # of each node of the tree, the bytes of its children
    # Names from the last to the first: each branches off from the one before, and comes after those that it begins.
    keys = sorted({key_bytes(name)[1:-1] for name in names}, reverse=True)
    before, path = b"", [_ROOT]  # the name before and its nodes
    ends: list[int] = []
    for key in keys:
        depth = 0
        for byte, other in zip(key, before, strict=False):
            if byte != other:
                break
            depth += 1
        if depth == len(key):
            ends.append(path[depth])
            continue
        rest = key[depth:]
        followers[path[depth] - _ROOT] += rest[:1]
        first = _ROOT + len(followers)
        new = range(first, first + len(rest) - 1)
        edges.extend(zip((path[depth], *new), rest, rest, (*new, _LEAF), strict=True))
        followers.extend([_BYTES[byte] for byte in rest[1:]])
        before, path[depth + 1 :] = key, new
    nodes = range(_ROOT, _ROOT + len(followers))
    # What is not as in most nodes: a node inside a character, which no key ends with; and one that a name ends with.
    text = b"".join(keys)
    places = {} if text.isascii() and b"\\" not in text else _places(edges)
    special = {*ends, *places}
    common = dict.fromkeys([out for node, out in zip(nodes, followers, strict=True) if node not in special])
    # The bases of a node and of its way out are together what the loop is in, in the same place of a character.
    bases_of = [places.get(node, _CLOSING) for node in nodes] if places else [_CLOSING] * len(nodes)
    bases = [(_LEAF, _FREE), *zip(nodes, bases_of, strict=True)]
    epsilons = [(_FREE, _CLOSING)]
    ways: dict[bytes, int] = {}
    others: list[tuple[int, bytes, bool]] = []
    for without in common:
        known = _WAYS.get(without)
        if known is None:
            ways[without] = nodes.stop + len(others)
            others.append((_FREE, without, False))
        else:
            ways[without], known_edges, base, epsilon = known
            edges.extend(known_edges)
            bases.append(base)
            epsilons.append(epsilon)
    way_of = [ways.get(without, 0) for without in followers]
    for node in special:
        way_of[node - _ROOT] = nodes.stop + len(others)
        others.append((places.get(node, _FREE), followers[node - _ROOT], node in ends))
    for way, (place, without, is_end) in enumerate(others, nodes.stop):
        edges.extend([(way, low, high, target) for low, high, target in _way_out(place, without)])
        bases.append((way, place))
        if place == _FREE and not is_end:
            epsilons.append((way, _CLOSING))
    epsilons.extend(zip(nodes, way_of, strict=True))
    return Automaton(_START, (_CLOSED,), tuple(edges), tuple(epsilons), tuple(bases))


def _places(edges: list[tuple[int, int, int, int]]) -> dict[int, int]:
    """Return where in a character the nodes of a tree are, of those that are inside one."""
    places: dict[int, int] = {}
    for source, byte, _, target in edges[len(_EDGES) :]:
        if target != _LEAF:
            edges_from = _EDGES_FROM[places.get(source, _FREE)]
            place = next(behind for low, high, behind in edges_from if low <= byte <= high)
            if place != _FREE:
                places[target] = place
    return places


@lru_cache(maxsize=1024)
def _way_out(place: int, without: bytes) -> Row:
    """Return the edges from a place of a character but for those of some bytes."""
    return row_without(_EDGES_FROM[place], without)


def row_without(row: Row, without: bytes) -> Row:
    """Return the edges but for those of some bytes."""
    edges = []
    for low, high, target in row:
        first = low
        for byte in (*sorted(without), high + 1):
            if first <= byte <= high + 1:
                if first < byte:
                    edges.append((first, byte - 1, target))
                first = byte + 1
    return tuple(edges)


def _numbered_way(byte: int) -> tuple[int, tuple[tuple[int, int, int, int], ...], tuple[int, int], tuple[int, int]]:
    way = _FIRST_WAY + byte - 0x20
    edges = tuple([(way, low, high, target) for low, high, target in _way_out(_FREE, _BYTES[byte])])
    return way, edges, (way, _FREE), (way, _CLOSING)


# The state, the edges, the base and the epsilon of each way out that has its own number: the same in all automata.
_WAYS = {_BYTES[byte]: _numbered_way(byte) for byte in range(0x20, 0x80)}
