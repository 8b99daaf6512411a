"""Spans: what a vocabulary knows of a small automaton, whatever grammar has it.

A span is a deterministic automaton without calls that a grammar is in for a while: a loop over one kind of character
(a JSON string, `[a-z]+`, a comment), the same loop with a count, or a short rule that many grammars share (white
space). Beginning in one of its *places*, a token does one of three things:

- it *stays inside*;
- it *exits*: at a place where the span may end comes a byte that does not go on; what remains is for what follows;
- it breaks off elsewhere, and is not allowed.

So per vocabulary, automaton and place one pass over the token trie finds all that masks need: the set of the tokens
that stay inside and a trie of what remains of those that exit. In a loop the automaton is that of one *unit*, a
character say, and both are kept by the number of units that a token begins or completes, which a `maxLength` counts.
`masks.py` says how they are used.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from services.constraint.core.compiling import compiled
from services.constraint.core.interning import mix
from services.constraint.core.pointers import PointerTable, reader
from services.constraint.core.tables import (
    Int32s,
    Int64s,
    SpanArrays,
    TrieArrays,
    Uint8s,
    i64,
    scratch,
    tables,
    trie_arrays,
)
from services.constraint.core.trie_layout import build_trie, order_of_words

# Sets of inside tokens kept by the most units that they may begin; tokens that begin more are listed one by one.
NUM_COUNTED_ROWS: Final = 16
# Places of a span. A JSON character in all its spellings has 20, white space with 40 columns of indent 42.
MAX_PLACES: Final = 64
# A unit that begins with fewer bytes is walked as anything else: few tokens fit.
MIN_FIRST_BYTES: Final = 16

# Kinds of spans.
LOOP: Final = 1  # the next unit begins in a state of the same rule
COUNTED: Final = 2  # the unit is a rule, which a counting state calls; the count lives in a frame
RULE: Final = 3  # the span is a rule

# Where an edge leads inside a span.
_TO_END: Final = 0  # in a loop, the beginning of the next unit
_TO_PLACE: Final = 1
_TO_ENDING_PLACE: Final = 2  # of a rule: it may end here or go on
_OUT: Final = 3

_BROKEN: Final = -1
_MAX_EPSILONS: Final = 16  # followed from one state in the search for spans


class SpanTable(NamedTuple):
    """One span, entered in one place, against one vocabulary."""

    is_counted: Int64s  # (1,)
    most_begun: Int64s  # (1,) by any token that stays inside
    most_completed: Int64s  # (1,) by any token that does not
    going_on: Int32s  # (257,) how many bytes below each one go on where the span may end
    word: Uint8s  # shortest way from the place to an end
    unit: Uint8s  # shortest unit
    inside: Int32s  # (1 + NUM_COUNTED_ROWS or 1, words) all tokens that stay inside; those that begin at most 1, 2, …
    long_token: Int32s  # those that begin more than NUM_COUNTED_ROWS units, fewest first
    long_begun: Int32s
    byte: Uint8s  # the trie of the remainders, as `TrieArrays`
    depth: Int32s
    end: Int32s
    token_start: Int32s
    token_id: Int32s
    token_completed: Int32s  # units before the remainder
    crossing: Int64s  # (1,) address of the trie of all tokens that pass an end and do not stay inside; 0: not made yet


span_table = reader(SpanTable)


@dataclass(frozen=True, slots=True)
class Automaton:
    """The automaton of a span, in a form that is the same for the same automaton.

    Places are numbered breadth first from the entry, 0, which in a loop is the end too. A rule has one more: the last,
    behind its end.
    """

    edges: npt.NDArray[np.int16]  # (edges, 5) place, low byte, high byte, next place, 1 where that may be the end
    num_places: int
    kind: int

    @property
    def key(self) -> bytes:
        """Equal for equal automata."""
        return bytes([self.kind, self.num_places]) + self.edges.tobytes()

    def following(self) -> npt.NDArray[np.int16]:
        """Return (places, 256) the next place, _BROKEN for none."""
        following = np.full((self.num_places, 256), _BROKEN, np.int16)
        for place, low, high, target, _ in self.edges.tolist():
            following[place, low : high + 1] = target
        return following

    def may_end(self) -> Uint8s:
        """Return (places,) 1 for those in which the span may end."""
        may_end = np.zeros(self.num_places, np.uint8)
        may_end[self.edges[self.edges[:, 4] == 1, 3]] = 1
        return may_end


class VocabularySpans:
    """The span tables of one vocabulary, made when they are first asked for. Thread-safe."""

    def __init__(self, trie: int, text: Uint8s, offsets: Int64s, num_words: int) -> None:
        """`trie` is the pointer table of the trie whose i-th token, in order, is text[offsets[i]:offsets[i + 1]]."""
        self._trie = trie
        self._text = text
        self._offsets = offsets
        self._num_words = num_words
        self._lock = threading.Lock()
        self._tables: dict[bytes, dict[int, _Made]] = {}
        self.rule_hashes: set[int] = set()  # of the rules that are known

    @property
    def num_bytes(self) -> int:
        """Bytes of all tables."""
        made = [made for places in list(self._tables.values()) for made in list(places.values())]
        return sum(array.nbytes for one in made for array in one.table)

    def known(self, automaton: Automaton) -> Int64s:
        """Return (places,) the address of the pointer table of each place's SpanTable, 0 where none is made yet."""
        with self._lock:
            places = self._tables.get(automaton.key, {})
            addresses = np.zeros(automaton.num_places, np.int64)
            for place, made in places.items():
                addresses[place] = made.pointers.address
            return addresses

    def address(self, automaton: Automaton, place: int, *, with_crossing: bool = False) -> int:
        """Return the address of the pointer table of the SpanTable of a place, made where it is not there yet."""
        with self._lock:
            places = self._tables.setdefault(automaton.key, {})
            made = places.get(place)
            if made is None:
                made = places[place] = self._make(automaton, place)
            if with_crossing and made.crossing is None:
                self._add_crossing(automaton, place, made)
            return made.pointers.address

    def _make(self, automaton: Automaton, place: int) -> _Made:
        is_loop = automaton.kind != RULE
        is_counted = automaton.kind == COUNTED
        following, may_end = automaton.following(), automaton.may_end()
        inside, exits, most_completed = _scan(self._trie, following, may_end, place, is_loop)
        inside_id, inside_begun = inside
        exit_token, exit_offset, exit_completed = exits
        rows = np.zeros((1 + NUM_COUNTED_ROWS if is_counted else 1, self._num_words), np.int32)
        _fill_rows(rows, inside_id, inside_begun)
        is_long = np.flatnonzero(inside_begun > NUM_COUNTED_ROWS)
        is_long = is_long[np.argsort(inside_begun[is_long])]
        starts, ends = self._offsets[exit_token] + exit_offset, self._offsets[exit_token + 1]
        order = order_of_words(self._text, starts, ends)
        exit_trie = build_trie(self._text, starts[order], ends[order])
        going_on = np.zeros(257, np.int32)
        np.cumsum((following[may_end == 1] != _BROKEN).any(axis=0), out=going_on[1:])
        table = SpanTable(
            is_counted=np.array([is_counted], np.int64),
            most_begun=np.array([inside_begun.max(initial=1)], np.int64),
            most_completed=np.array([most_completed], np.int64),
            going_on=going_on,
            word=_shortest(following, may_end, place),
            unit=_shortest(following, may_end, 0),
            inside=rows.reshape(-1),
            long_token=inside_id[is_long],
            long_begun=inside_begun[is_long],
            byte=exit_trie[0],
            depth=exit_trie[1],
            end=exit_trie[2],
            token_start=exit_trie[3],
            token_id=_ids(self._trie, exit_token[order]),
            token_completed=exit_completed[order],
            crossing=np.zeros(1, np.int64),
        )
        pointers = PointerTable(len(SpanTable._fields))
        pointers.put(table)
        return _Made(pointers, table)

    def _add_crossing(self, automaton: Automaton, place: int, made: _Made) -> None:
        tokens = _crossing(self._trie, automaton.following(), automaton.may_end(), place)
        starts, ends = self._offsets[tokens], self._offsets[tokens + 1]
        made.crossing = PointerTable(len(TrieArrays._fields))
        made.crossing.put(TrieArrays(*build_trie(self._text, starts, ends), _ids(self._trie, tokens)))
        made.table.crossing[0] = made.crossing.address


@dataclass(slots=True)
class _Made:
    pointers: PointerTable
    table: SpanTable
    crossing: PointerTable | None = None


def _shortest(following: npt.NDArray[np.int16], may_end: Uint8s, place: int) -> Uint8s:
    """Return the fewest bytes, but one at least, from a place to an end, printable ones first."""
    printable = [*range(0x61, 0x7B), *range(0x30, 0x3A), *range(0x20, 0x7F), *range(256)]
    words = [(place, b"")]
    reached = {place}
    for at, word in words:
        for byte in printable:
            target = int(following[at, byte])
            if target != _BROKEN and may_end[target]:
                return np.frombuffer(word + bytes([byte]), np.uint8).copy()
            if target != _BROKEN and target not in reached:
                reached.add(target)
                words.append((target, word + bytes([byte])))
    return np.zeros(0, np.uint8)  # an end that nothing follows


@compiled
def _ids(trie: int, tokens: Int32s) -> Int32s:
    """Return the ids of tokens that are given by their place in the order of bytes."""
    ids = np.empty(len(tokens), np.int32)
    for i in range(len(tokens)):
        ids[i] = trie_arrays(trie).token_id[tokens[i]]
    return ids


@compiled
def _fill_rows(rows: npt.NDArray[np.int32], token_ids: Int32s, begun: Int32s) -> None:
    """Set the tokens' bits in row 0, and of those that begin at most r units in each further row r."""
    for i in range(len(token_ids)):
        word, bit = token_ids[i] >> 5, np.int32(1) << np.int32(token_ids[i] & 31)
        rows[0, word] |= bit
        if begun[i] < len(rows):
            rows[begun[i], word] |= bit
    for number in range(2, len(rows)):
        for word in range(rows.shape[1]):
            rows[number, word] |= rows[number - 1, word]


@compiled
def _scan(
    trie: int, following: npt.NDArray[np.int16], may_end: Uint8s, entry: int, is_loop: bool
) -> tuple[tuple[Int32s, Int32s], tuple[Int32s, Int32s, Int32s], int]:
    """Find what all tokens do in a span that is entered in the place `entry`.

    Return (token id, units begun) of each that stays inside, and (token, length before the remainder, units completed)
    of each that exits; and the most units that one completes which does not stay inside. A rule counts as one unit.
    Tokens without "id" are places in the order of bytes.
    """
    t = trie_arrays(trie)
    num_tokens = len(t.token_id)
    inside_id, inside_begun = np.empty(num_tokens, np.int32), np.empty(num_tokens, np.int32)
    exit_token, exit_offset = np.empty(num_tokens, np.int32), np.empty(num_tokens, np.int32)
    exit_completed = np.empty(num_tokens, np.int32)
    num_inside, num_exits, most_completed = i64(0), i64(0), i64(0)
    deepest = i64(0)
    for depth in t.depth:
        deepest = max(deepest, i64(depth))
    place, completed = np.zeros(deepest + 2, np.int64), np.zeros(deepest + 2, np.int64)
    place[0] = entry
    i = i64(0)
    while i < len(t.byte):
        depth = i64(t.depth[i])
        target = i64(following[place[depth], t.byte[i]])
        if target == _BROKEN:
            most_completed = max(most_completed, completed[depth])
            if completed[depth] > 0 and may_end[place[depth]] == 1:
                for token in range(t.token_start[i], t.token_start[t.end[i]]):
                    exit_token[num_exits] = token
                    exit_offset[num_exits] = depth
                    exit_completed[num_exits] = completed[depth]
                    num_exits += 1
            i = i64(t.end[i])
            continue
        place[depth + 1] = target
        if is_loop:
            completed[depth + 1] = completed[depth] + may_end[target]
        else:
            completed[depth + 1] = max(completed[depth], i64(may_end[target]))
        for j in range(t.token_start[i], t.token_start[i + 1]):
            inside_id[num_inside] = t.token_id[j]
            inside_begun[num_inside] = completed[depth + 1] + 1 - may_end[target] if is_loop else 1
            num_inside += 1
        i += 1
    return (
        (inside_id[:num_inside].copy(), inside_begun[:num_inside].copy()),
        (exit_token[:num_exits].copy(), exit_offset[:num_exits].copy(), exit_completed[:num_exits].copy()),
        most_completed,
    )


@compiled
def _crossing(trie: int, following: npt.NDArray[np.int16], may_end: Uint8s, entry: int) -> Int32s:
    """Return the tokens, as places in the order of bytes, that pass an end of a span and then leave its automaton."""
    t = trie_arrays(trie)
    crossing = np.empty(len(t.token_id), np.int32)
    n = i64(0)
    deepest = i64(0)
    for depth in t.depth:
        deepest = max(deepest, i64(depth))
    place, has_passed = np.zeros(deepest + 2, np.int64), np.zeros(deepest + 2, np.uint8)
    place[0] = entry
    i = i64(0)
    while i < len(t.byte):
        depth = i64(t.depth[i])
        target = i64(following[place[depth], t.byte[i]])
        if target == _BROKEN:
            if has_passed[depth] == 1:
                for token in range(t.token_start[i], t.token_start[t.end[i]]):
                    crossing[n] = token
                    n += 1
            i = i64(t.end[i])
            continue
        place[depth + 1] = target
        has_passed[depth + 1] = has_passed[depth] | may_end[target]
        i += 1
    return crossing[:n].copy()


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
            if hash_ in vocabulary.rule_hashes and (is_common or vocabulary.known(self._automaton(entry, RULE)).any()):
                _take_rule(memory, entry, MAX_PLACES, place, loop, kind)
        self._states = np.flatnonzero(kind).astype(np.int32)
        self._place = place
        self._kind = kind
        self._loop = loop
        state_span = np.zeros(num_states, np.int32)
        state_span[self._states] = np.arange(1, len(self._states) + 1)
        self.arrays = SpanArrays(
            state_span, loop, np.zeros(max(1, len(self._states)), np.int64), *_differences(memory, num_states)
        )
        self._take_what_is_known()

    def provide(self, span: int) -> None:
        """Make, or find, the table of a span that a kernel found missing; ~span asks for what crosses its end too."""
        with_crossing = span < 0
        span = ~span if with_crossing else span
        state = self._states[span]
        automaton = self._automaton(int(self._loop[state]), int(self._kind[state]))
        self.arrays.address[span] = self._vocabulary.address(
            automaton, int(self._place[state]), with_crossing=with_crossing
        )

    def provide_all(self) -> None:
        """Make the tables of all spans."""
        for span in range(len(self._states)):
            self.provide(span)

    def _automaton(self, entry: int, kind: int) -> Automaton:
        return Automaton(*_automaton(self._memory, entry, entry if kind == LOOP else -1, kind, MAX_PLACES), kind)

    def _take_what_is_known(self) -> None:
        loops = self._loop[self._states]
        for entry in np.unique(loops).tolist():
            spans = np.flatnonzero(loops == entry)
            known = self._vocabulary.known(self._automaton(entry, int(self._kind[self._states[spans[0]]])))
            self.arrays.address[spans] = known[self._place[self._states[spans]]]


@compiled
def _lead(memory: int, state: int, loop: int, kind: int) -> tuple[int, int]:
    """Return where an edge into `state` leads inside a span (_TO_END ...), and the state in which it goes on.

    `loop` is the state in which the next unit begins, or -1 where the span is a rule.
    """
    g, w = tables(memory), scratch(memory)
    w.worklist[0] = state
    todo = i64(1)
    place = i64(-1)
    ends = False
    is_out = False
    for _ in range(_MAX_EPSILONS):
        if todo == 0:
            break
        todo -= 1
        at = i64(w.worklist[todo])
        if at == loop:
            return i64(_TO_END), at
        if g.count_minimum[at] >= 0 or g.call_start[at] < g.call_start[at + 1]:
            is_out = True
        if g.is_accepting[at] == 1:
            ends = True
        if g.edge_start[at] < g.edge_start[at + 1]:
            is_out = is_out or place >= 0
            place = at
        for epsilon in range(g.epsilon_start[at], g.epsilon_start[at + 1]):
            if todo >= len(w.worklist):
                return i64(_OUT), at
            w.worklist[todo] = g.epsilon_target[epsilon]
            todo += 1
    if todo > 0 or is_out:
        return i64(_OUT), state
    if place < 0:
        return (i64(_TO_END) if ends and loop < 0 else i64(_OUT)), state
    if not ends:
        return i64(_TO_PLACE), place
    return (i64(_TO_ENDING_PLACE) if kind == RULE else i64(_OUT)), place


@compiled
def _places(memory: int, entry: int, loop: int, kind: int, limit: int, found: Int32s) -> int:
    """Write the states of the span that begins in `entry` to `found`, breadth first, and return how many: 0 for none.

    A span is deterministic, and every way in it leads to its end.
    """
    g = tables(memory)
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
            lead, target = _lead(memory, i64(g.edge_target[edge]), loop, kind)
            if lead == _OUT:
                return i64(0)
            # A place may end or not, however it was reached.
            if kind == RULE and lead != _TO_END and _lead(memory, target, loop, kind)[0] != lead:
                return i64(0)
            is_new = lead != _TO_END
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
    """Return the edges of the span that begins in `entry`, as in `Automaton`, and the number of places."""
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
            lead, target = _lead(memory, i64(g.edge_target[edge]), loop, kind)
            number = n if kind == RULE else i64(0)
            if lead != _TO_END:
                number = i64(0)
                while found[number] != target:
                    number += 1
            edges[at, 0], edges[at, 1], edges[at, 2] = place, g.edge_low[edge], g.edge_high[edge]
            edges[at, 3], edges[at, 4] = number, lead != _TO_PLACE
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
def _comes_back(memory: int, state: int) -> bool:
    """Tell whether some byte leads from a state to itself: in a loop, some character is one byte."""
    g = tables(memory)
    for edge in range(g.edge_start[state], g.edge_start[state + 1]):
        if _lead(memory, i64(g.edge_target[edge]), state, i64(LOOP))[0] == _TO_END:
            return True
    return False


@compiled
def _entry_of_rule(memory: int, rule: int) -> int:
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
            entry = _entry_of_rule(memory, i64(g.call_rule[g.call_start[state]]))
            if entry >= 0 and place[entry] < 0 and _num_first_bytes(memory, entry) >= fewest:
                for number in range(_places(memory, entry, i64(-1), i64(COUNTED), limit, found)):
                    place[found[number]], loop[found[number]], kind[found[number]] = number, entry, COUNTED
        elif (
            place[state] < 0
            and g.call_start[state] == g.call_start[state + 1]
            and _num_first_bytes(memory, i64(state)) >= fewest
            and _comes_back(memory, i64(state))
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
        entry = _entry_of_rule(memory, i64(rule))
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
