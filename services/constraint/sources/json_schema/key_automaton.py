"""Writes the keys that an automaton over characters accepts, all but some names, as an automaton over bytes.

What follows a character inside its bytes is shared by all places where it is the same, and three things are written so
that the core's masks stay cheap (docs/masks.md, section 4):

- A state that most characters lead back to is a *loop*. What leads out of it is a state of its own, behind an epsilon,
  so that the loop is a span.
- Where most characters lead into such a loop, these are a state of their own too, behind an epsilon, with the loop as
  its base. Many states share it, as "any character but a digit, and then anything" in the complement of `^[0-9]{40}$`.
- Names are a prefix tree beside all that, with ways out as in `keys.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from services.constraint.core.grammar import NOTHING, Automaton, Expression
from services.constraint.core.regex import encoding
from services.constraint.core.regex.automaton import Dfa
from services.constraint.core.regex.charset import Ranges
from services.constraint.core.regex.encoding import ByteClass, ByteSequence
from services.constraint.sources.json_schema.keys import QUOTE, Row, key_bytes, row_without

MIN_FIRST_BYTES = 16


def write(dfa: Dfa, names: Iterable[str]) -> Expression:
    """Return the automaton of the keys that `dfa` accepts but for these, quotes included; NOTHING if there are none.

    `dfa` must accept every one of the names, and every state of it must reach an accepting one.
    """
    writer = _Writer(dfa)
    return writer.all_but(key_bytes(name)[1:-1] for name in names)


class _Writer:
    """One automaton. Its first states are those of the `Dfa`."""

    def __init__(self, dfa: Dfa) -> None:
        self._dfa = dfa
        self._is_loop = [any(_is_wide(edge) for edge in out if edge[1] == state) for state, out in enumerate(dfa.edges)]
        self._loops = [self._loop_of(state) for state in range(len(dfa.edges))]
        self._closed, self._closing, self._start = range(len(dfa.edges), len(dfa.edges) + 3)
        self._num_states = self._start + 1
        self._rows: dict[int, Row] = {self._closing: ((QUOTE, QUOTE, self._closed),)}
        self._epsilons: list[tuple[int, int]] = []
        self._bases: dict[int, int] = {}
        self._inside: dict[Row, int] = {}  # the states inside a character
        self._characters: dict[int, Row] = {}  # by state of the `Dfa`, all that may follow
        self._ways_in: dict[tuple[Ranges, int], int] = {}  # by characters and the loop that they lead into
        self._ways_out: dict[tuple[int, bytes, bool], int] = {}

    def all_but(self, keys: Iterable[bytes]) -> Expression:
        self._add_states()
        root = self._add_tree(keys)
        if root != 0 and not self._ways_out:
            return NOTHING
        self._rows[self._start] = ((QUOTE, QUOTE, root),)
        edges = tuple([(source, *edge) for source, row in self._rows.items() for edge in row])
        return Automaton(self._start, (self._closed,), edges, tuple(self._epsilons), tuple(self._bases.items()))

    def _loop_of(self, state: int) -> int | None:
        """Return the loop that all but few characters lead into."""
        out = self._dfa.edges[state]
        if self._is_loop[state]:
            return state
        for _, loop in out:
            if self._is_loop[loop] and not _is_wide(*(edge for edge in out if edge[1] != loop)):
                return loop
        return None

    def _new_state(self, row: Row) -> int:
        self._rows[self._num_states] = row
        self._num_states += 1
        return self._num_states - 1

    # The automaton

    def _add_states(self) -> None:
        for state, out in enumerate(self._dfa.edges):
            loop = self._loops[state]
            inward = tuple(edge for edge in out if edge[1] == loop)
            others = tuple(edge for edge in out if edge[1] != loop)
            if loop == state:
                self._rows[state] = self._character(inward)
                if others:
                    self._epsilons.append((state, self._new_state(self._character(others))))
            else:
                self._rows[state] = self._character(others)
                for edge in inward:
                    self._epsilons.append((state, self._way_in(edge)))
                    self._bases[state] = self._closing
            if state in self._dfa.accepting:
                self._epsilons.append((state, self._closing))

    def _way_in(self, edge: tuple[Ranges, int]) -> int:
        if edge not in self._ways_in:
            way = self._ways_in[edge] = self._new_state(self._character((edge,)))
            self._bases[way] = edge[1]
        return self._ways_in[edge]

    def _following(self, state: int) -> Row:
        """Return the edges of all bytes that may follow in a state of the `Dfa` or inside a character."""
        if state >= len(self._dfa.edges):
            return self._rows[state]
        if state not in self._characters:
            self._characters[state] = self._character(self._dfa.edges[state])
        return self._characters[state]

    def _character(self, out: tuple[tuple[Ranges, int], ...]) -> Row:
        """Return the edges of a character's first byte, and write the states behind it."""
        numbers: list[int] = []
        row: Row = ()
        for place in (places := _places(tuple(ranges for ranges, _ in out))):
            row = tuple([(low, high, numbers[to] if to >= 0 else out[~to][1]) for low, high, to in place])
            if place is not places[-1]:
                if row not in self._inside:
                    self._inside[row] = self._new_state(row)
                numbers.append(self._inside[row])
        return row

    # The names

    def _add_tree(self, keys: Iterable[bytes]) -> int:
        """Return the state behind the opening quote: the root of the keys' prefix tree, or 0 if there are none."""
        places = [0]  # of each node, the state that the automaton is in
        children: list[dict[int, int]] = [{}]
        ends = set()
        for key in keys:
            node = 0
            for byte in key:
                if byte not in children[node]:
                    children[node][byte] = len(places)
                    following = self._following(places[node])
                    places.append(next(target for low, high, target in following if low <= byte <= high))
                    children.append({})
                node = children[node][byte]
            ends.add(node)
        if not ends:
            return 0
        root = self._num_states
        for below in children:
            self._new_state(tuple([(byte, byte, root + child) for byte, child in below.items()]))
        for node, place in enumerate(places):
            self._add_way_out(root + node, place, bytes(sorted(children[node])), is_end=node in ends)
        return root

    def _add_way_out(self, node: int, place: int, without: bytes, *, is_end: bool) -> None:
        is_between = place < len(self._dfa.edges)  # characters
        may_close = place in self._dfa.accepting and not is_end
        way = self._ways_out.get((place, without, may_close))
        if way is None:
            row = row_without(self._following(place), without)
            if not row and not may_close:
                return
            way = self._ways_out[place, without, may_close] = self._new_state(row)
            loop = self._loops[place] if is_between else None
            self._bases[way] = place if loop is None else loop
            if may_close:
                self._epsilons.append((way, self._closing))
        self._epsilons.append((node, way))
        # The bases of both are together what the loop is in: a node's own edges are few.
        self._bases[node] = self._closing if is_between else place


def _is_wide(*edges: tuple[Ranges, int]) -> bool:
    """Tell whether characters begin with many bytes."""
    row = _places(tuple(ranges for ranges, _ in edges))[-1]
    return sum(high - low + 1 for low, high, _ in row) >= MIN_FIRST_BYTES


@lru_cache(maxsize=1024)
def _places(sets: tuple[Ranges, ...]) -> tuple[Row, ...]:
    """Return the places of the automaton that tells which of some disjoint sets the next character is of.

    The last is where the character begins, and each comes behind those that it leads to. An edge leads to a place, or
    with ~n to the end of a character of set n.
    """
    rows: list[Row] = []
    numbers: dict[frozenset[tuple[ByteSequence, int]], int] = {}

    def place(rests: frozenset[tuple[ByteSequence, int]]) -> int:
        if rests not in numbers:
            # Of two first classes, as the sets are disjoint, no byte is in both.
            by_first: dict[ByteClass, set[tuple[ByteSequence, int]]] = {}
            for sequence, number in rests:
                by_first.setdefault(sequence[0], set()).add((sequence[1:], number))
            row = []
            for first, following in by_first.items():
                rest, number = next(iter(following))
                target = place(frozenset(following)) if rest else ~number
                row.extend([(low, high, target) for low, high in first])
            numbers[rests] = len(rows)
            rows.append(tuple(sorted(row)))
        return numbers[rests]

    place(
        frozenset((sequence, number) for number, ranges in enumerate(sets) for sequence in encoding.json_plain(ranges))
    )
    return tuple(rows)
