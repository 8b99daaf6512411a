"""Finds the lexemes in a grammar's tables."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from services.constraint.core.compiling import compiled
from services.constraint.core.lexemes import Generation, VocabularyLexemes
from services.constraint.core.span_search import OUT, TO_END, TO_PLACE, entry_of_rule, lead_of
from services.constraint.core.spans import RULE
from services.constraint.core.tables import Int32s, Int64s, LexemeArrays, Tables, Uint8s, i64, scratch, tables

# Places of what is a lexeme from the beginning of a rule on, and of what is one from any other state on.
_MAX_PLACES: Final = 2000
_MAX_PLACES_INSIDE: Final = 100
# Edges of all lexemes of a grammar together; states beyond are walked as any other.
_MAX_EDGES: Final = 500_000
_FIRST_EDGES: Final = 4096


class GrammarLexemes:
    """The lexemes of one grammar's tables, against one vocabulary."""

    def __init__(self, memory: int, g: Tables, vocabulary: VocabularyLexemes) -> None:
        """`memory` is the pointer table that has the grammar's tables, and work space."""
        self._vocabulary = vocabulary
        self._generation: Generation = vocabulary.generation()
        self._states, self._starts, self._edges = _none()
        if g.is_lexeme.any():
            self._states, self._starts, self._edges = _found(memory)
        self._num_states = len(g.is_accepting)
        self._first, self._ends = _first_bytes(memory, self._num_states if len(self._states) else 0)
        self.arrays = self._numbered()

    @property
    def num_bytes(self) -> int:
        """Bytes of what is the grammar's own."""
        x = self.arrays
        return sum(array.nbytes for array in (x.state_lexeme, x.state_first, x.state_ends, self._starts, self._edges))

    def provide(self, tries: list[int], lexemes: list[int]) -> bool:
        """Make the tables that a kernel found missing; tell whether `arrays` are others now."""
        if self._generation.is_full:
            self._generation = self._vocabulary.generation()
            self.arrays = self._numbered()
            return True
        for pair in zip(tries, lexemes, strict=True):
            self._generation.provide(*pair)
        return False

    def _numbered(self) -> LexemeArrays:
        state_lexeme = np.zeros(self._num_states, np.int32)
        starts = self._starts.tolist()
        for index, state in enumerate(self._states.tolist()):
            state_lexeme[state] = 1 + self._generation.number(self._edges[starts[index] : starts[index + 1]])
        return self._generation.arrays(state_lexeme, self._first, self._ends)


def _none() -> tuple[Int32s, Int32s, npt.NDArray[np.int16]]:
    return np.zeros(0, np.int32), np.zeros(1, np.int32), np.zeros((0, 5), np.int16)


def _found(memory: int) -> tuple[Int32s, Int32s, npt.NDArray[np.int16]]:
    """Return the states, where the edges of the lexeme of each begin, and all edges as in `lexemes.Edges`."""
    num_edges = _FIRST_EDGES
    while True:
        states, starts, edges = _find(memory, num_edges)
        if num_edges >= _MAX_EDGES or len(edges) < num_edges:
            return states, starts, edges
        num_edges *= 4


@compiled
def _find(memory: int, max_edges: int) -> tuple[Int32s, Int32s, npt.NDArray[np.int16]]:
    """As `_found`; as soon as the edges are more than `max_edges` it stops, and returns so many."""
    g = tables(memory)
    num_states = len(g.is_accepting)
    states = np.empty(num_states, np.int32)
    starts = np.zeros(num_states + 1, np.int32)
    edges = np.empty((max_edges, 5), np.int16)
    is_tried = np.zeros(num_states, np.uint8)
    found = np.empty(_MAX_PLACES, np.int32)  # the states of the present lexeme, by place
    place = np.empty(num_states, np.int32)
    n = i64(0)
    todo = np.empty(num_states, np.int32)
    for rule in range(len(g.rule_start)):
        if g.is_lexeme[rule] == 0:
            continue
        entry = entry_of_rule(memory, i64(rule))
        if entry < 0 or is_tried[entry] == 1:
            continue
        # The entry first, then all states that are reached from it.
        todo[0] = entry
        num_todo = i64(1)
        at = i64(0)
        is_tried[entry] = 1
        while at < num_todo:
            state = i64(todo[at])
            at += 1
            limit = i64(_MAX_PLACES if at == 1 else _MAX_PLACES_INSIDE)
            num_edges, num_places = _edges_from(memory, state, limit, i64(starts[n]), edges, found, place)
            if starts[n] + num_edges >= max_edges:
                return states[:n].copy(), starts[: n + 1].copy(), edges
            # Where a state has a base, masks are found by the difference.
            if num_edges > 0 and (at == 1 or g.base[state] == state):
                states[n] = state
                starts[n + 1] = starts[n] + num_edges
                n += 1
            for number in range(num_places):
                if is_tried[found[number]] == 0:
                    is_tried[found[number]] = 1
                    todo[num_todo] = found[number]
                    num_todo += 1
    return states[:n].copy(), starts[: n + 1].copy(), edges[: starts[n]].copy()


@compiled
def _edges_from(
    memory: int, entry: int, limit: int, first: int, edges: npt.NDArray[np.int16], found: Int32s, number: Int32s
) -> tuple[int, int]:
    """Write the edges of the lexeme that begins in `entry`, from the first on, and its states, by place, to `found`.

    Return how many edges, 0 where there is no lexeme or no room, and how many states. `number` is work space.
    """
    g, w = tables(memory), scratch(memory)
    w.clock[0] += 1
    clock = w.clock[0]
    found[0] = entry
    w.state_stamp[entry] = clock
    number[entry] = 0
    n = i64(1)
    at = i64(0)
    num_edges = i64(0)
    while at < n:
        state = found[at]
        next_low = i64(0)
        for edge in range(g.edge_start[state], g.edge_start[state + 1]):
            if g.edge_low[edge] < next_low:
                return i64(0), n
            next_low = i64(g.edge_high[edge]) + 1
            lead, target = lead_of(memory, i64(g.edge_target[edge]), i64(-1), i64(RULE))
            # A place may end or not, however it was reached.
            if lead == OUT or (lead != TO_END and lead_of(memory, target, i64(-1), i64(RULE))[0] != lead):
                return i64(0), n
            if lead != TO_END and w.state_stamp[target] != clock:
                if n >= limit:
                    return i64(0), n
                w.state_stamp[target] = clock
                number[target] = n
                found[n] = target
                n += 1
            if first + num_edges >= len(edges):
                return i64(0), n
            row = edges[first + num_edges]
            row[0], row[1], row[2] = at, g.edge_low[edge], g.edge_high[edge]
            row[3], row[4] = -1 if lead == TO_END else number[target], lead != TO_PLACE
            num_edges += 1
        at += 1
    for edge in range(first, first + num_edges):
        if edges[edge, 3] < 0:
            edges[edge, 3] = n
    return num_edges, n


@compiled
def _first_bytes(memory: int, num_states: int) -> tuple[Int64s, Uint8s]:
    """Return (4 S,) one bit for each byte that may follow a state inside its rule, and (S,) 1 where the rule may end.

    A call always reads a byte, and rules come in topological order of their left calls: callees are done first.
    """
    g = tables(memory)
    first, ends = np.zeros(4 * num_states, np.int64), np.zeros(num_states, np.uint8)
    if num_states == 0:
        return first, ends
    for rule in range(len(g.rule_start) - 1, -1, -1):
        _add_first_bytes(memory, i64(g.rule_start[rule]), first, ends)
    for state in range(num_states):
        _add_first_bytes(memory, i64(state), first, ends)
    return first, ends


@compiled
def _add_first_bytes(memory: int, state: int, first: Int64s, ends: Uint8s) -> None:
    g, w = tables(memory), scratch(memory)
    w.clock[0] += 1
    w.worklist[0] = state
    w.seen_stamp[state] = w.clock[0]
    todo = i64(1)
    while todo > 0:
        todo -= 1
        at = w.worklist[todo]
        if g.is_accepting[at] == 1 or g.count_minimum[at] >= 0:
            ends[state] = 1
        for edge in range(g.edge_start[at], g.edge_start[at + 1]):
            for byte in range(i64(g.edge_low[edge]), i64(g.edge_high[edge]) + 1):
                first[4 * state + (byte >> 6)] |= i64(1) << (byte & 63)
        for call in range(g.call_start[at], g.call_start[at + 1]):
            callee = i64(g.rule_start[g.call_rule[call]])
            for word in range(4):
                first[4 * state + word] |= first[4 * callee + word]
        for epsilon in range(g.epsilon_start[at], g.epsilon_start[at + 1]):
            target = g.epsilon_target[epsilon]
            if w.seen_stamp[target] != w.clock[0]:
                w.seen_stamp[target] = w.clock[0]
                w.worklist[todo] = target
                todo += 1
