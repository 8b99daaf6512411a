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
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from services.constraint.core.compiling import compiled
from services.constraint.core.pointers import PointerTable, reader
from services.constraint.core.tables import (
    Int32s,
    Int64s,
    TrieArrays,
    Uint8s,
    i64,
    trie_arrays,
)
from services.constraint.core.trie_layout import new_trie, order_of_words

# Sets of inside tokens kept by the most units that they may begin; tokens that begin more are listed one by one.
NUM_COUNTED_ROWS: Final = 16

# Kinds of spans.
LOOP: Final = 1  # the next unit begins in a state of the same rule
COUNTED: Final = 2  # the unit is a rule, which a counting state calls; the count lives in a frame
RULE: Final = 3  # the span is a rule

_BROKEN: Final = -1
# Tables that a vocabulary keeps; the least recently used automata go.
_MAX_BYTES: Final = 128 << 20


class SpanTable(NamedTuple):
    """One span, entered in one place, against one vocabulary."""

    is_counted: Int64s  # (1,)
    most_begun: Int64s  # (1,) by any token that stays inside
    most_completed: Int64s  # (1,) by any token that does not
    going_on: Int32s  # (257,) how many bytes below each one go on where the span may end
    word: Uint8s  # shortest way from the place to an end
    end_place: Int64s  # (1,) to which `word` leads
    unit: Uint8s  # shortest unit
    inside: Int32s  # (1 + NUM_COUNTED_ROWS or 1, words) all tokens that stay inside; those that begin at most 1, 2, …
    long_token: Int32s  # those that begin more than NUM_COUNTED_ROWS units, fewest first
    long_begun: Int32s
    exits: Int64s  # (1,) address of the trie of the remainders, whose numbers are the units before
    crossing: Int64s  # (1,) address of the trie of all tokens that pass an end and do not stay inside; 0: not made yet


span_table = reader(SpanTable)


@dataclass(frozen=True, slots=True)
class SpanAutomaton:
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


@dataclass(slots=True)
class MadeTable:
    """A SpanTable with the pointer tables that lead to it; it lives as long as somebody has it."""

    pointers: PointerTable
    table: SpanTable
    exits: PointerTable
    crossing: PointerTable | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the table and its tries."""
        return sum(one.num_bytes for one in (self.pointers, self.exits, self.crossing) if one is not None)


class VocabularySpans:
    """The span tables of one vocabulary, made when they are first asked for. Thread-safe."""

    def __init__(self, trie: int, text: Uint8s, offsets: Int64s, num_words: int) -> None:
        """`trie` is the pointer table of the trie whose i-th token, in order, is text[offsets[i]:offsets[i + 1]]."""
        self._trie = trie
        self._text = text
        self._offsets = offsets
        self._num_words = num_words
        self._longest = int(np.diff(offsets).max(initial=0))
        self._lock = threading.Lock()
        self._tables: OrderedDict[bytes, dict[int, MadeTable]] = OrderedDict()
        self._num_bytes = 0
        self.rule_hashes: set[int] = set()  # of the rules that are known

    def known(self, automaton: SpanAutomaton) -> dict[int, MadeTable]:
        """Return the tables of an automaton by place, as far as they are made."""
        with self._lock:
            if automaton.key in self._tables:
                self._tables.move_to_end(automaton.key)
            return dict(self._tables.get(automaton.key, ()))

    def table(self, automaton: SpanAutomaton, place: int, *, with_crossing: bool = False) -> MadeTable:
        """Return the table of a place, made where it is not there yet."""
        with self._lock:
            places = self._tables.setdefault(automaton.key, {})
            self._tables.move_to_end(automaton.key)
            made = places.get(place)
            before = 0 if made is None else made.num_bytes
            if made is None:
                made = places[place] = self._make(automaton, place)
            if with_crossing and made.crossing is None:
                self._add_crossing(automaton, place, made)
            self._num_bytes += made.num_bytes - before
            while self._num_bytes > _MAX_BYTES and len(self._tables) > 1:
                _, forgotten = self._tables.popitem(last=False)
                self._num_bytes -= sum(one.num_bytes for one in forgotten.values())
            return made

    def _make(self, automaton: SpanAutomaton, place: int) -> MadeTable:
        is_loop = automaton.kind != RULE
        is_counted = automaton.kind == COUNTED
        following, may_end = automaton.following(), automaton.may_end()
        inside, leaving, most_completed = _scan(self._trie, self._longest, following, may_end, place, is_loop)
        inside_id, inside_begun = inside
        exit_token, exit_offset, exit_completed = leaving
        rows = np.zeros((1 + NUM_COUNTED_ROWS if is_counted else 1, self._num_words), np.int32)
        _fill_rows(rows, inside_id, inside_begun)
        is_long = np.flatnonzero(inside_begun > NUM_COUNTED_ROWS)
        is_long = is_long[np.argsort(inside_begun[is_long])]
        starts, ends = self._offsets[exit_token] + exit_offset, self._offsets[exit_token + 1]
        order = order_of_words(self._text, starts, ends)
        exits_trie = self._trie_of(starts[order], ends[order], exit_token[order], exit_completed[order])
        going_on = np.zeros(257, np.int32)
        np.cumsum((following[may_end == 1] != _BROKEN).any(axis=0), out=going_on[1:])
        word, end_place = _shortest(following, may_end, place)
        table = SpanTable(
            is_counted=np.array([is_counted], np.int64),
            most_begun=np.array([inside_begun.max(initial=1)], np.int64),
            most_completed=np.array([most_completed], np.int64),
            going_on=going_on,
            word=word,
            end_place=np.array([end_place], np.int64),
            unit=_shortest(following, may_end, 0)[0],
            inside=rows.reshape(-1),
            long_token=inside_id[is_long],
            long_begun=inside_begun[is_long],
            exits=np.array([exits_trie.address], np.int64),
            crossing=np.zeros(1, np.int64),
        )
        pointers = PointerTable(len(SpanTable._fields))
        pointers.put(table)
        return MadeTable(pointers, table, exits_trie)

    def _add_crossing(self, automaton: SpanAutomaton, place: int, made: MadeTable) -> None:
        tokens = _crossing(self._trie, self._longest, automaton.following(), automaton.may_end(), place)
        starts, ends = self._offsets[tokens], self._offsets[tokens + 1]
        made.crossing = self._trie_of(starts, ends, tokens, np.zeros_like(tokens))
        made.table.crossing[0] = made.crossing.address

    def _trie_of(self, starts: Int64s, ends: Int64s, tokens: Int32s, numbers: Int32s) -> PointerTable:
        """Return the trie of the sorted words text[starts[i]:ends[i]], which stand for `tokens` with `numbers`."""
        pointers = PointerTable(len(TrieArrays._fields))
        pointers.put(new_trie(self._text, starts, ends, _ids(self._trie, tokens), numbers))
        return pointers


def _shortest(following: npt.NDArray[np.int16], may_end: Uint8s, place: int) -> tuple[Uint8s, int]:
    """Return the fewest bytes, but one at least, from a place to an end, printable ones first, and the place there."""
    printable = [*range(0x61, 0x7B), *range(0x30, 0x3A), *range(0x20, 0x7F), *range(256)]
    words = [(place, b"")]
    reached = {place}
    for at, word in words:
        for byte in printable:
            target = int(following[at, byte])
            if target != _BROKEN and may_end[target]:
                return np.frombuffer(word + bytes([byte]), np.uint8).copy(), target
            if target != _BROKEN and target not in reached:
                reached.add(target)
                words.append((target, word + bytes([byte])))
    return np.zeros(0, np.uint8), place  # an end that nothing follows


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
    trie: int, longest: int, following: npt.NDArray[np.int16], may_end: Uint8s, entry: int, is_loop: bool
) -> tuple[tuple[Int32s, Int32s], tuple[Int32s, Int32s, Int32s], int]:
    """Find what all tokens, of at most `longest` bytes, do in a span that is entered in the place `entry`.

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
    place, completed = np.zeros(longest + 1, np.int64), np.zeros(longest + 1, np.int64)
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
def _crossing(trie: int, longest: int, following: npt.NDArray[np.int16], may_end: Uint8s, entry: int) -> Int32s:
    """Return the tokens, as places in the order of bytes, that pass an end of a span and then leave its automaton."""
    t = trie_arrays(trie)
    crossing = np.empty(len(t.token_id), np.int32)
    n = i64(0)
    place, has_passed = np.zeros(longest + 1, np.int64), np.zeros(longest + 1, np.uint8)
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
