"""Finds the spans of a grammar in its tables.

A loop is a state from which every way leads back to it, and to the same other states beside it; a counted loop is a
rule that a counting state repeats; a short rule is a span where the vocabulary knows it already. All must be
deterministic and call nothing. `spans.py` says what a span is for.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from services.constraint.core.compiling import compiled
from services.constraint.core.interning import mix
from services.constraint.core.spans import COUNTED, LOOP, RULE, MadeTable, SpanAutomaton, VocabularySpans
from services.constraint.core.tables import Int32s, Int64s, SpanArrays, Uint8s, i64, scratch, tables

# Places of a span. A JSON character in all its spellings has 20, white space with 40 columns of indent 42.
MAX_PLACES: Final = 64
# A unit that begins with fewer bytes is walked as anything else: few tokens fit.
MIN_FIRST_BYTES: Final = 16

# Where an edge leads inside a span.
TO_END: Final = 0  # in a loop, the beginning of the next unit
TO_PLACE: Final = 1
TO_ENDING_PLACE: Final = 2  # of a rule: it may end here or go on
OUT: Final = 3

_MAX_EPSILONS: Final = 16  # followed from one state


class GrammarSpans:
    """The spans of one grammar's tables, against one vocabulary."""

    def __init__(self, memory: int, num_states: int, vocabulary: VocabularySpans, *, is_common: bool = False) -> None:
        """`memory` is the pointer table that has the grammar's tables, and work space.

        A rule is a span where the vocabulary knows it, which it gets to by a grammar that `is_common`.
        """
        self._memory = memory
        self._vocabulary = vocabulary
        place, loop, kind = _find_loops(memory, num_states, MAX_PLACES, MIN_FIRST_BYTES)
        for entry, hash_ in zip(*(array.tolist() for array in _rule_hashes(memory, MAX_PLACES)), strict=True):
            if is_common:
                vocabulary.rule_hashes.add(hash_)
            if hash_ in vocabulary.rule_hashes and (is_common or vocabulary.known(self._automaton(entry, RULE))):
                _take_rule(memory, entry, MAX_PLACES, place, loop, kind)
        self._states = np.flatnonzero(kind).astype(np.int32)
        self._place = place
        self._kind = kind
        self._loop = loop
        state_span = np.zeros(num_states, np.int32)
        state_span[self._states] = np.arange(1, len(self._states) + 1)
        self.arrays = SpanArrays(
            state_span, loop, place, np.zeros(max(1, len(self._states)), np.int64), *_differences(memory, num_states)
        )
        self._taken: dict[int, MadeTable] = {}
        self._take_what_is_known()

    def provide(self, span: int) -> None:
        """Make, or find, the table of a span that a kernel found missing; ~span asks for what crosses its end too."""
        with_crossing = span < 0
        span = ~span if with_crossing else span
        state = self._states[span]
        automaton = self._automaton(int(self._loop[state]), int(self._kind[state]))
        self._take(span, self._vocabulary.table(automaton, int(self._place[state]), with_crossing=with_crossing))

    def provide_all(self) -> None:
        """Make the tables of all spans."""
        for span in range(len(self._states)):
            self.provide(span)

    def _automaton(self, entry: int, kind: int) -> SpanAutomaton:
        return SpanAutomaton(*_automaton(self._memory, entry, entry if kind == LOOP else -1, kind, MAX_PLACES), kind)

    def _take_what_is_known(self) -> None:
        known: dict[int, dict[int, MadeTable]] = {}
        for span, state in enumerate(self._states.tolist()):
            entry = int(self._loop[state])
            if entry not in known:
                known[entry] = self._vocabulary.known(self._automaton(entry, int(self._kind[state])))
            made = known[entry].get(int(self._place[state]))
            if made is not None:
                self._take(span, made)

    def _take(self, span: int, made: MadeTable) -> None:
        self._taken[span] = made  # the kernels have its address, so it must live
        self.arrays.address[span] = made.pointers.address


@compiled
def lead_of(memory: int, state: int, loop: int, kind: int) -> tuple[int, int]:
    """Return where an edge into `state` leads inside a span (TO_END ...), and the state in which it goes on.

    `loop` is the state in which the next unit begins, or -1 where the span is a rule. At an end of a unit, what is
    returned as the state is `loop` where nothing but that follows, else `state`: equal where equal things follow.
    """
    g, w = tables(memory), scratch(memory)
    w.worklist[0] = state
    todo = i64(1)
    place = i64(-1)
    ends = False
    is_out = False
    comes_back = False
    for _ in range(_MAX_EPSILONS):
        if todo == 0:
            break
        todo -= 1
        at = i64(w.worklist[todo])
        if at == loop:
            comes_back = True
            continue
        if g.count_minimum[at] >= 0 or g.call_start[at] < g.call_start[at + 1]:
            is_out = True
        if g.is_accepting[at] == 1:
            ends = True
        if g.edge_start[at] < g.edge_start[at + 1]:
            is_out = is_out or place >= 0
            place = at
        for epsilon in range(g.epsilon_start[at], g.epsilon_start[at + 1]):
            if todo >= len(w.worklist):
                return i64(OUT), at
            w.worklist[todo] = g.epsilon_target[epsilon]
            todo += 1
    if comes_back and todo == 0:
        has_more = place >= 0 or ends or is_out
        return i64(TO_END), state if has_more else loop
    if todo > 0 or is_out:
        return i64(OUT), state
    if place < 0:
        return (i64(TO_END) if ends and loop < 0 else i64(OUT)), state
    if not ends:
        return i64(TO_PLACE), place
    return (i64(TO_ENDING_PLACE) if kind == RULE else i64(OUT)), place


@compiled
def _end_of_unit(memory: int, loop: int) -> int:
    """Return the end (as of `lead_of`) to which one byte leads from the beginning of a loop, -1 where none does."""
    g = tables(memory)
    for edge in range(g.edge_start[loop], g.edge_start[loop + 1]):
        lead, end = lead_of(memory, i64(g.edge_target[edge]), loop, i64(LOOP))
        if lead == TO_END:
            return end
    return i64(-1)


@compiled
def _places(memory: int, entry: int, loop: int, kind: int, limit: int, found: Int32s) -> int:
    """Write the states of the span that begins in `entry` to `found`, breadth first, and return how many: 0 for none.

    A span is deterministic, every way in it leads to its end, and the same follows wherever a unit ends.
    """
    g = tables(memory)
    end = _end_of_unit(memory, loop) if loop >= 0 else i64(-1)
    found[0] = entry
    n = i64(1)
    at = i64(0)
    while at < n:
        state = found[at]
        at += 1
        next_low = i64(0)
        for edge in range(g.edge_start[state], g.edge_start[state + 1]):
            if g.edge_low[edge] < next_low:
                return i64(0)
            next_low = i64(g.edge_high[edge]) + 1
            lead, target = lead_of(memory, i64(g.edge_target[edge]), loop, kind)
            if lead == OUT or (loop >= 0 and lead == TO_END and target != end):
                return i64(0)
            # A place may end or not, however it was reached.
            if kind == RULE and lead != TO_END and lead_of(memory, target, loop, kind)[0] != lead:
                return i64(0)
            is_new = lead != TO_END
            for other in range(n):
                if found[other] == target:
                    is_new = False
            if is_new:
                if n >= limit:
                    return i64(0)
                found[n] = target
                n += 1
    return n


@compiled
def _automaton(memory: int, entry: int, loop: int, kind: int, limit: int) -> tuple[npt.NDArray[np.int16], int]:
    """Return the edges of the span that begins in `entry`, as in `SpanAutomaton`, and the number of places."""
    g = tables(memory)
    found = np.zeros(limit, np.int32)
    n = _places(memory, entry, loop, kind, limit, found)
    num_edges = i64(0)
    for place in range(n):
        num_edges += g.edge_start[found[place] + 1] - g.edge_start[found[place]]
    edges = np.empty((num_edges, 5), np.int16)
    at = i64(0)
    for place in range(n):
        for edge in range(g.edge_start[found[place]], g.edge_start[found[place] + 1]):
            lead, target = lead_of(memory, i64(g.edge_target[edge]), loop, kind)
            number = n if kind == RULE else i64(0)
            if lead != TO_END:
                number = i64(0)
                while found[number] != target:
                    number += 1
            edges[at, 0], edges[at, 1], edges[at, 2] = place, g.edge_low[edge], g.edge_high[edge]
            edges[at, 3], edges[at, 4] = number, lead != TO_PLACE
            at += 1
    return edges, n + 1 if kind == RULE else n


@compiled
def _num_first_bytes(memory: int, state: int) -> int:
    g = tables(memory)
    total = i64(0)
    for edge in range(g.edge_start[state], g.edge_start[state + 1]):
        total += i64(g.edge_high[edge]) - i64(g.edge_low[edge]) + 1
    return total


@compiled
def entry_of_rule(memory: int, rule: int) -> int:
    """Return the one state in which a rule reads its first byte, or -1."""
    g = tables(memory)
    state = i64(g.rule_start[rule])
    for _ in range(_MAX_EPSILONS):
        if g.count_minimum[state] >= 0 or g.call_start[state] < g.call_start[state + 1]:
            return i64(-1)
        if g.edge_start[state] < g.edge_start[state + 1]:
            return state
        if g.epsilon_start[state + 1] - g.epsilon_start[state] != 1:
            return i64(-1)
        state = i64(g.epsilon_target[g.epsilon_start[state]])
    return i64(-1)


@compiled
def _find_loops(memory: int, num_states: int, limit: int, fewest: int) -> tuple[Int32s, Int32s, Uint8s]:
    """Find the loops: of each state its place in a unit or -1, where the next unit begins, and the kind or 0."""
    g = tables(memory)
    place = np.full(num_states, -1, np.int32)
    loop = np.zeros(num_states, np.int32)
    kind = np.zeros(num_states, np.uint8)
    found = np.zeros(limit, np.int32)
    for state in range(num_states):
        if g.count_minimum[state] >= 0 and g.call_start[state] < g.call_start[state + 1]:
            entry = entry_of_rule(memory, i64(g.call_rule[g.call_start[state]]))
            if entry >= 0 and place[entry] < 0 and _num_first_bytes(memory, entry) >= fewest:
                for number in range(_places(memory, entry, i64(-1), i64(COUNTED), limit, found)):
                    place[found[number]], loop[found[number]], kind[found[number]] = number, entry, COUNTED
        elif (
            place[state] < 0
            and g.call_start[state] == g.call_start[state + 1]
            and _num_first_bytes(memory, i64(state)) >= fewest
            and _end_of_unit(memory, i64(state)) >= 0
        ):
            for number in range(_places(memory, i64(state), i64(state), i64(LOOP), limit, found)):
                if place[found[number]] < 0:
                    place[found[number]], loop[found[number]], kind[found[number]] = number, state, LOOP
    # A state before a loop over the same unit, as in `[a-z]+`, is as good as one in it.
    for state in range(num_states):
        if place[state] >= 0 or g.count_minimum[state] >= 0 or g.call_start[state] < g.call_start[state + 1]:
            continue
        if _num_first_bytes(memory, i64(state)) < fewest:
            continue
        target = i64(g.edge_target[g.edge_start[state]])
        for _ in range(4):
            if place[target] < 0 and g.is_plain[target] == 1:
                target = i64(g.edge_target[g.edge_start[target]])
        if place[target] != 0 or kind[target] != LOOP:
            continue
        n = _places(memory, i64(state), target, i64(LOOP), limit, found)
        if n > 0 and _are_equal(
            _automaton(memory, i64(state), target, i64(LOOP), limit)[0],
            _automaton(memory, target, target, i64(LOOP), limit)[0],
        ):
            for number in range(n):
                if place[found[number]] < 0:
                    place[found[number]], loop[found[number]], kind[found[number]] = number, target, LOOP
    return place, loop, kind


@compiled
def _are_equal(one: npt.NDArray[np.int16], other: npt.NDArray[np.int16]) -> bool:
    if len(one) != len(other):
        return False
    for row in range(len(one)):
        for column in range(5):
            if one[row, column] != other[row, column]:
                return False
    return True


@compiled
def _rule_hashes(memory: int, limit: int) -> tuple[Int32s, Int64s]:
    """Return the entry of each rule that can be a span, and a hash of its automaton."""
    g = tables(memory)
    num_rules = len(g.rule_start)
    entries, hashes = np.empty(num_rules, np.int32), np.empty(num_rules, np.int64)
    found = np.zeros(limit, np.int32)
    n = i64(0)
    for rule in range(num_rules):
        entry = entry_of_rule(memory, i64(rule))
        if entry < 0:
            continue
        num_places = _places(memory, entry, i64(-1), i64(RULE), limit, found)
        if num_places == 0:
            continue
        value = num_places
        for place in range(num_places):
            state = found[place]
            for edge in range(g.edge_start[state], g.edge_start[state + 1]):
                value = mix(mix(value, i64(g.edge_low[edge])), i64(g.edge_high[edge]))
        entries[n], hashes[n] = entry, value
        n += 1
    return entries[:n].copy(), hashes[:n].copy()


@compiled
def _take_rule(memory: int, entry: int, limit: int, place: Int32s, loop: Int32s, kind: Uint8s) -> None:
    """Note the states of a rule that is a span."""
    found = np.zeros(limit, np.int32)
    for number in range(_places(memory, entry, i64(-1), i64(RULE), limit, found)):
        if kind[found[number]] == 0:
            place[found[number]], loop[found[number]], kind[found[number]] = number, entry, RULE


@compiled
def _differences(memory: int, num_states: int) -> tuple[Int32s, Uint8s]:
    """Return the bytes on which each state and its base part, as rows: (S + 1,) starts and the bytes."""
    g = tables(memory)
    start = np.zeros(num_states + 1, np.int32)
    num_with_base = i64(0)
    for state in range(num_states):
        num_with_base += g.base[state] != state
    difference = np.empty(256 * num_with_base, np.uint8)
    n = i64(0)
    targets = np.empty((2, 256), np.int64)
    for state in range(num_states):
        if g.base[state] != state:
            targets[:] = -1
            for side in range(2):
                source = g.base[state] if side == 1 else state
                for edge in range(g.edge_start[source], g.edge_start[source + 1]):
                    for byte in range(i64(g.edge_low[edge]), i64(g.edge_high[edge]) + 1):
                        # Two ways for one byte differ from everything.
                        taken = targets[side, byte] != -1
                        targets[side, byte] = -2 - side if taken else i64(g.edge_target[edge])
            for byte in range(256):
                if targets[0, byte] != targets[1, byte]:
                    difference[n] = byte
                    n += 1
        start[state + 1] = n
    return start, difference[:n].copy()
