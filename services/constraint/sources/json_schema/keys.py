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
from itertools import repeat

from services.constraint.core.grammar import Automaton
from services.constraint.sources.json_schema.strings import PLAIN_CHARACTER

_QUOTE = 0x22
_FREE = 0
_CLOSED = 1
assert isinstance(PLAIN_CHARACTER, Automaton)
# The character's automaton as a loop: its end (state 1) is its start again, and state 1 becomes the state behind the
# closing quote.
_LOOP = tuple(
    (source, low, high, _FREE if target == 1 else target) for source, low, high, target in PLAIN_CHARACTER.edges
)
_EDGES_FROM: dict[int, list[tuple[int, int, int]]] = {}
for _source, _low, _high, _target in _LOOP:
    _EDGES_FROM.setdefault(_source, []).append((_low, _high, _target))
# The quote has a state of its own, so that the loop is nothing but characters.
_CLOSING = 1 + max(max(source, target) for source, _, _, target in _LOOP)
_START = _CLOSING + 1
_LEAF = _START + 1  # behind a name that no longer one begins with: one more character, then any key
_ROOT = _LEAF + 1
_EDGES = (
    *_LOOP,
    (_CLOSING, _QUOTE, _QUOTE, _CLOSED),
    (_START, _QUOTE, _QUOTE, _ROOT),
    *((_LEAF, low, high, target) for low, high, target in _EDGES_FROM[_FREE]),
)
_BYTES = [bytes([byte]) for byte in range(256)]
# The bases of a node and its way out are together what the loop is in, in the same place of a character.
_BASES = [_CLOSING, *range(1, _CLOSING)]
_encode = json.JSONEncoder(ensure_ascii=False).encode


def key_bytes(name: str) -> bytes:
    """Return a key as it is written, quotes included."""
    return _encode(name).encode()


def any_key_but(names: Iterable[str]) -> Automaton:
    """Return the automaton of all keys but these, quotes included."""
    edges = list(_EDGES)
    # Of each node of the tree: where it is within a character, the bytes of its children, and whether a name ends here.
    places = [_FREE]
    followers = [b""]
    is_end = [False]
    children: dict[tuple[int, int], int] = {}
    # A name comes before those that it begins with, so that no leaf gets children.
    for key in sorted({key_bytes(name)[1:-1] for name in names}, reverse=True):
        node, depth = _ROOT, 0
        for byte in key:
            if (child := children.get((node, byte))) is None:
                break
            node = child
            depth += 1
        else:
            is_end[node - _ROOT] = True
            continue
        rest = key[depth:]
        followers[node - _ROOT] += _BYTES[rest[0]]
        new = range(_ROOT + len(places), _ROOT + len(places) + len(rest) - 1)
        sources, targets = (node, *new), (*new, _LEAF)
        edges.extend(zip(sources, rest, rest, targets, strict=True))
        children.update(zip(zip(sources, rest, strict=True), targets, strict=True))
        places.extend(_places(places[node - _ROOT], rest[:-1]))
        followers.extend(map(_BYTES.__getitem__, rest[1:]))
        is_end.extend(repeat(False, len(new)))
    nodes = range(_ROOT, _ROOT + len(places))
    kinds = list(zip(places, followers, is_end, strict=True))
    ways = {kind: number for number, kind in enumerate(dict.fromkeys(kinds), nodes.stop)}
    epsilons = [(_FREE, _CLOSING), *zip(nodes, map(ways.__getitem__, kinds), strict=True)]
    bases = [(_LEAF, _FREE), *zip(nodes, map(_BASES.__getitem__, places), strict=True)]
    for (place, without, ends), way in ways.items():
        edges.extend([(way, low, high, target) for low, high, target in _way_out(place, without)])
        bases.append((way, place))
        if place == _FREE and not ends:
            epsilons.append((way, _CLOSING))
    return Automaton(_START, (_CLOSED,), tuple(edges), tuple(epsilons), tuple(bases))


def _places(place: int, text: bytes) -> Iterable[int]:
    """Return where in a character each byte of a text leads, from `place` on."""
    if place == _FREE and text.isascii() and b"\\" not in text:
        return repeat(_FREE, len(text))
    places = []
    for byte in text:
        place = next(target for low, high, target in _EDGES_FROM[place] if low <= byte <= high)
        places.append(place)
    return places


@lru_cache(maxsize=1024)
def _way_out(place: int, without: bytes) -> tuple[tuple[int, int, int], ...]:
    """Return the edges (low, high, target) from a place of a character but for those of some bytes."""
    edges = []
    for low, high, target in _EDGES_FROM[place]:
        for byte in sorted(without):
            if low <= byte <= high:
                if low < byte:
                    edges.append((low, byte - 1, target))
                low = byte + 1
        if low <= high:
            edges.append((low, high, target))
    return tuple(edges)
