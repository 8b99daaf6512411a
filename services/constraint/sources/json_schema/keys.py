"""The keys of additional properties: every string but the declared ones.

Keys have one spelling each (`encoding.json_plain`), so a key differs from the declared ones exactly when its bytes
do, and a prefix tree of the declared ones with a way out at every byte is all that is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from services.constraint.core.grammar import Automaton, Bytes
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
_BASE = (*_LOOP, (_CLOSING, _QUOTE, _QUOTE, _CLOSED))


def key_bytes(name: str) -> bytes:
    """Return a key as it is written, quotes included."""
    return json.dumps(name, ensure_ascii=False).encode()


def literal_key(name: str) -> Bytes:
    """Return the expression of one key."""
    return Bytes(key_bytes(name))


def any_key_but(names: Iterable[str]) -> Automaton:
    """Return the automaton of all keys but these, quotes included."""
    children: list[dict[int, int]] = [{}]
    places = [_FREE]  # where each node of the tree is within a character
    is_name = [False]
    for name in names:
        node = 0
        for byte in key_bytes(name)[1:-1]:
            child = children[node].get(byte)
            if child is None:
                child = children[node][byte] = len(children)
                children.append({})
                places.append(next(target for low, high, target in _EDGES_FROM[places[node]] if low <= byte <= high))
                is_name.append(False)
            node = child
        is_name[node] = True
    first = _CLOSING + 1
    start = first + len(children)
    edges = list(_BASE)
    epsilons = [(_FREE, _CLOSING)]
    edges.append((start, _QUOTE, _QUOTE, first))
    for node, followers in enumerate(children):
        state = first + node
        if places[node] == _FREE and not is_name[node]:
            epsilons.append((state, _CLOSING))
        cuts = sorted(followers)
        for low, high, target in _EDGES_FROM[places[node]]:
            for byte in cuts:
                if low <= byte <= high:
                    if low < byte:
                        edges.append((state, low, byte - 1, target))
                    low = byte + 1
            if low <= high:
                edges.append((state, low, high, target))
        edges.extend((state, byte, byte, first + child) for byte, child in followers.items())
    bases = tuple((first + node, place) for node, place in enumerate(places))
    return Automaton(start, (_CLOSED,), tuple(edges), tuple(epsilons), bases)
