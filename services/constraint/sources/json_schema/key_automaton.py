"""Writes the keys that an automaton over characters accepts, all but some names, as an automaton over bytes.

What follows a character inside its bytes is shared by all places where it is the same. The rest of the shape makes the
core's masks cheap (docs/masks.md, section 4):

- A state that many characters lead back to is a *loop*. What leads out of it is a state of its own, behind an epsilon,
  so that the loop is a span.
- Where all but few characters lead into such a loop, these are a state of their own too, behind an epsilon, with the
  loop as its base. Many states share it, as "any character but an `x`, and then anything".
- Names are a prefix tree beside all that, with ways out as in `keys.py`.
- The keys that do *not* match a pattern such as `^[a-z]+$` are, but for few, those with some character that the pattern
  has nowhere: an automaton apart, of nothing but spans (`_containing`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache

from services.constraint.core.grammar import NOTHING, Alternation, Automaton, Expression
from services.constraint.core.regex import charset, encoding
from services.constraint.core.regex.automaton import Dfa, explore
from services.constraint.core.regex.charset import Ranges
from services.constraint.core.regex.encoding import ByteClass, ByteSequence
from services.constraint.sources.json_schema.keys import QUOTE, Row, key_bytes, row_without

# A loop over characters with fewer first bytes is no span of the core, and where a state and its base differ on more,
# the difference costs more than a walk.
_MIN_FIRST_BYTES = 16


def write(dfa: Dfa, names: Collection[str]) -> Expression:
    """Return the expression of the keys that `dfa` accepts but for these, quotes included; NOTHING if there are none.

    `dfa` must accept every one of the names, and every state of it must reach an accepting one.
    """
    if not names and _is_wide(foreign := _foreign(dfa)):
        rest = _without(dfa, foreign)
        containing = _containing(foreign)
        return containing if rest.is_empty() else Alternation((containing, _Writer(rest).all_but(())))
    return _Writer(dfa).all_but(key_bytes(name)[1:-1] for name in names)


class _States:
    """States over bytes while they are made: the edges of each."""

    def __init__(self, num_states: int) -> None:
        self.rows: dict[int, Row] = {}
        self.num_states = num_states
        self._inside: dict[Row, int] = {}  # the states inside a character

    def new(self, row: Row) -> int:
        """Return a new state with these edges."""
        self.rows[self.num_states] = row
        self.num_states += 1
        return self.num_states - 1

    def character(self, out: tuple[tuple[Ranges, int], ...]) -> Row:
        """Return the edges of a character's first byte, which leads to the target of the set that it is of."""
        *inner, first = _places(tuple([ranges for ranges, _ in out]))
        targets = [target for _, target in out]
        numbers: list[int] = []

        def led(place: Row) -> Row:
            return tuple([(low, high, numbers[to] if to >= 0 else targets[~to]) for low, high, to in place])

        for place in inner:
            row = led(place)
            if row not in self._inside:
                self._inside[row] = self.new(row)
            numbers.append(self._inside[row])
        return led(first)

    def edges(self) -> tuple[tuple[int, int, int, int], ...]:
        """Return the edges as an Automaton has them."""
        return tuple([(source, *edge) for source, row in self.rows.items() for edge in row])


class _Writer:
    """One automaton. Its first states are those of the `Dfa`."""

    def __init__(self, dfa: Dfa) -> None:
        self._dfa = dfa
        self._is_loop = [
            any(_is_wide(ranges) for ranges, target in out if target == state) for state, out in enumerate(dfa.edges)
        ]
        self._loops = [self._loop_of(state) for state in range(len(dfa.edges))]
        self._closed, self._closing, self._start = range(len(dfa.edges), len(dfa.edges) + 3)
        self._states = _States(self._start + 1)
        self._rows = self._states.rows
        self._rows[self._closing] = ((QUOTE, QUOTE, self._closed),)
        self._epsilons: list[tuple[int, int]] = []
        self._bases: dict[int, int] = {}
        self._characters: dict[int, Row] = {}  # by state of the `Dfa`, all that may follow
        self._ways_in: dict[tuple[Ranges, int], int] = {}  # by characters and the loop that they lead into
        self._ways_out: dict[tuple[int, bytes, bool], int] = {}

    def all_but(self, keys: Iterable[bytes]) -> Expression:
        self._add_states()
        root = self._add_tree(keys)
        if root != 0 and not self._ways_out:
            return NOTHING
        self._rows[self._start] = ((QUOTE, QUOTE, root),)
        epsilons, bases = tuple(self._epsilons), tuple(self._bases.items())
        return Automaton(self._start, (self._closed,), self._states.edges(), epsilons, bases)

    def _loop_of(self, state: int) -> int | None:
        """Return the loop that all but few characters lead into."""
        if self._is_loop[state]:
            return state
        for ranges, loop in self._dfa.edges[state]:
            if self._is_loop[loop] and not _is_wide(charset.complement(ranges)):
                return loop
        return None

    # The automaton

    def _add_states(self) -> None:
        for state, out in enumerate(self._dfa.edges):
            loop = self._loops[state]
            inward = tuple(edge for edge in out if edge[1] == loop)
            others = tuple(edge for edge in out if edge[1] != loop)
            if loop == state:
                self._rows[state] = self._states.character(inward)
                if others:
                    self._epsilons.append((state, self._states.new(self._states.character(others))))
            else:
                self._rows[state] = self._states.character(others)
                for edge in inward:
                    self._epsilons.append((state, self._way_in(edge)))
                    self._bases[state] = self._closing
            if state in self._dfa.accepting:
                self._epsilons.append((state, self._closing))

    def _way_in(self, edge: tuple[Ranges, int]) -> int:
        if edge not in self._ways_in:
            way = self._ways_in[edge] = self._states.new(self._states.character((edge,)))
            self._bases[way] = edge[1]
        return self._ways_in[edge]

    def _following(self, state: int) -> Row:
        """Return the edges of all bytes that may follow in a state of the `Dfa` or inside a character."""
        if state >= len(self._dfa.edges):
            return self._rows[state]
        if state not in self._characters:
            self._characters[state] = self._states.character(self._dfa.edges[state])
        return self._characters[state]

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
        root = self._states.num_states
        for below in children:
            self._states.new(tuple([(byte, byte, root + child) for byte, child in below.items()]))
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
            way = self._ways_out[place, without, may_close] = self._states.new(row)
            loop = self._loops[place] if is_between else None
            self._bases[way] = place if loop is None else loop
            if may_close:
                self._epsilons.append((way, self._closing))
        self._epsilons.append((node, way))
        # The bases of both are together what the loop is in: a node's own edges are few.
        self._bases[node] = self._closing if is_between else place


@lru_cache(maxsize=1024)
def _is_wide(ranges: Ranges) -> bool:
    """Tell whether characters begin with many bytes."""
    return sum(high - low + 1 for low, high, _ in _places((ranges,))[-1]) >= _MIN_FIRST_BYTES


def _foreign(dfa: Dfa) -> Ranges:
    """Return the characters such that every text with one of them is accepted."""
    foreign = charset.EVERYTHING
    for state, out in enumerate(dfa.edges):
        if charset.normalise(range_ for ranges, _ in out for range_ in ranges) != charset.EVERYTHING:
            return charset.NOTHING
        if out != ((charset.EVERYTHING, state),):
            to_every_text = [ranges for ranges, target in out if dfa.edges[target] == ((charset.EVERYTHING, target),)]
            foreign = charset.intersect(foreign, to_every_text[0] if to_every_text else charset.NOTHING)
    return foreign


def _without(dfa: Dfa, foreign: Ranges) -> Dfa:
    """Return the automaton of the texts without any of these characters."""
    return explore(
        0,
        lambda state: [
            (left, target) for ranges, target in dfa.edges[state] if (left := charset.subtract(ranges, foreign))
        ],
        dfa.accepting.__contains__,
    )


@lru_cache(maxsize=256)
def _containing(foreign: Ranges) -> Automaton:
    """Return the automaton of the keys with at least one of these characters.

    It is written as `([^f]*f)+[^f]*`. The unit up to an `f` is a span of the core, the end is another; the key begins
    inside a unit.
    """
    closed, closing, start, unit, found, end = range(6)
    states = _States(6)
    own = charset.complement(foreign)
    states.rows[start] = ((QUOTE, QUOTE, unit),)
    states.rows[unit] = states.rows[found] = states.character(((own, unit), (foreign, found)))
    states.rows[end] = states.character(((own, end),))
    states.rows[closing] = ((QUOTE, QUOTE, closed),)
    return Automaton(start, (closed,), states.edges(), ((found, end), (end, closing)))


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
