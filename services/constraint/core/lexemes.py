"""Lexemes: what a vocabulary knows of rules that many grammars have, such as numbers, names, keywords and white space.

A *lexeme* is a deterministic automaton over bytes: what is still to come of a rule without calls, from one of its
states on. A token that meets it does one of three things:

- it *stays inside*;
- it *exits*: at a place where the lexeme may end comes a byte that does not go on; what remains is for what follows;
- it breaks off elsewhere, and is not allowed.

So one pass over the token trie finds all that masks need of it: the set of the tokens that stay inside, and a trie of
what remains of those that exit. That trie holds words as the vocabulary does, so there are tables of lexemes for it as
well: behind a space, what remains of ` name` stays inside a name. `masks.py` says how they are used.

Where what follows may begin with a byte that goes on too, a token may leave at any place where the lexeme may end, and
what remains behind each of these is in a trie of its own, `crossing`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from services.constraint.core.compiling import compiled
from services.constraint.core.pointers import PointerTable, reader
from services.constraint.core.tables import Int32s, Int64s, LexemeArrays, TrieArrays, Uint8s, i64, trie_arrays
from services.constraint.core.trie_layout import new_trie, order_of_words

BROKEN: Final = -1
NOT_MADE: Final = -1
NO_WORDS: Final = 0

# Tokens inside that are listed rather than kept as a set.
_FEW: Final = 256
_FIRST_EXITS: Final = 1024
# Bytes of tables before a vocabulary begins anew.
_MAX_BYTES: Final = 256 << 20
_CAPACITY: Final = 1 << 16

Edges = npt.NDArray[np.int16]
"""(edges, 5) place, low byte, high byte, next place, 1 where the lexeme may end there. Places are numbered breadth
first from the entry, 0."""


class LexemeTable(NamedTuple):
    """One lexeme against one trie."""

    inside: Int32s  # (words,) the tokens that stay inside; empty where those are few
    few: Int32s  # these
    going_on: Int64s  # (4,) one bit for each byte that goes on where the lexeme may end
    exits: Int64s  # (1,) address of the trie of the remainders, or NO_WORDS
    crossing: Int64s  # (1,) address of the trie of the remainders behind every end, NO_WORDS, or NOT_MADE


lexeme_table = reader(LexemeTable)


@dataclass(frozen=True, slots=True)
class Words:
    """A trie with where its words are: the i-th, in order, is text[starts[i]:ends[i]]."""

    pointers: PointerTable
    trie: TrieArrays
    starts: Int64s
    ends: Int64s

    @property
    def num_bytes(self) -> int:
        """Bytes of the trie and the places."""
        return self.pointers.num_bytes + self.starts.nbytes + self.ends.nbytes


class VocabularyLexemes:
    """The lexemes that grammars of one vocabulary have, and their tables, made when they are first asked for.

    Grammars share a `Generation` of them. When that has become too large, the next grammars begin another, and the
    last grammar that has the old one takes it with it. Thread-safe.
    """

    def __init__(self, words: Words, text: Uint8s, num_words: int) -> None:
        """`words` are the vocabulary's own, places in `text`; `num_words` is the length of a bitmask."""
        self._words = words
        self._text = text
        self._num_words = num_words
        self._lock = threading.Lock()
        self._generation = Generation(words, text, num_words)

    def generation(self) -> Generation:
        """Return the present generation."""
        with self._lock:
            if self._generation.is_full:
                self._generation = Generation(self._words, self._text, self._num_words)
            return self._generation


class Generation:
    """Lexemes by number, and the tables of each pair of a trie and a lexeme. Thread-safe."""

    def __init__(self, words: Words, text: Uint8s, num_words: int) -> None:
        self._text = text
        self._num_words = num_words
        self._words = {words.pointers.address: words}
        self._lock = threading.Lock()
        self._numbers: dict[bytes, int] = {}
        self._lexemes: list[Edges] = []
        self._made: dict[tuple[int, int], _Made] = {}
        self._nothing = _Made.of(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(4, np.int64), None)
        self._nothing.table.crossing[0] = NO_WORDS
        self._num_bytes = 0
        self._trie, self._lexeme, self._table = (np.zeros(_CAPACITY, np.int64) for _ in range(3))

    @property
    def is_full(self) -> bool:
        """Tell whether grammars are to turn to another generation."""
        return self._num_bytes > _MAX_BYTES or 2 * len(self._made) > _CAPACITY

    def arrays(self, state_lexeme: Int32s, state_first: Int64s, state_ends: Uint8s) -> LexemeArrays:
        """Return the arrays of a grammar whose states are in these lexemes."""
        return LexemeArrays(state_lexeme, state_first, state_ends, self._trie, self._lexeme, self._table)

    def number(self, edges: Edges) -> int:
        """Return the number of a lexeme."""
        key = edges.tobytes()
        with self._lock:
            number = self._numbers.get(key)
            if number is None:
                number = self._numbers[key] = len(self._lexemes)
                self._lexemes.append(edges)
                self._num_bytes += 2 * len(key)
            return number

    def provide(self, trie: int, lexeme: int) -> None:
        """Make the table of a lexeme against a trie; where there is one, what it lacks: `crossing`."""
        with self._lock:
            made = self._made.get((trie, lexeme))
            if made is None:
                made = self._made[trie, lexeme] = self._make(self._words[trie], self._lexemes[lexeme])
                self._publish(trie, lexeme, made.pointers.address)
            elif made.table.crossing[0] == NOT_MADE:
                _, exits = self._scan(self._words[trie], *_automaton(self._lexemes[lexeme]), at_every_end=True)
                made.table.crossing[0] = exits.pointers.address if exits else NO_WORDS

    def _publish(self, trie: int, lexeme: int, address: int) -> None:
        """Enter a table: kernels may be looking for others meanwhile, so its address comes last."""
        slot = slot_of(trie, lexeme, len(self._table))
        while self._table[slot] != 0:
            slot = (slot + 1) % len(self._table)
        self._trie[slot], self._lexeme[slot] = trie, lexeme
        self._table[slot] = address

    def _make(self, words: Words, edges: Edges) -> _Made:
        following, may_end = _automaton(edges)
        inside, exits = self._scan(words, following, may_end, at_every_end=False)
        going_on = np.packbits((following[may_end == 1] != BROKEN).any(axis=0), bitorder="little").view(np.int64)
        if len(inside) == 0 and exits is None and not going_on.any():
            return self._nothing
        few, row = inside, np.zeros(0, np.int32)
        if len(inside) > _FEW:
            few, row = np.zeros(0, np.int32), np.zeros(self._num_words, np.int32)
            _set_bits(row, inside)
        made = _Made.of(row, few, going_on, exits)
        self._num_bytes += made.pointers.num_bytes
        return made

    def _scan(
        self, words: Words, following: npt.NDArray[np.int16], may_end: Uint8s, *, at_every_end: bool
    ) -> tuple[Int32s, Words | None]:
        """Return the tokens that stay inside, and what remains of those that exit."""
        num_exits = _FIRST_EXITS
        while True:
            inside = np.empty(len(words.starts), np.int32)
            exits = np.empty((2, num_exits), np.int32)
            num_inside, num_found = _scan(
                words.pointers.address, following, may_end, at_every_end, inside, exits[0], exits[1]
            )
            if num_found <= num_exits:
                break
            num_exits = num_found
        if num_found == 0:
            return inside[:num_inside].copy(), None
        tokens, offsets = exits[:, :num_found]
        starts, ends = words.starts[tokens] + offsets, words.ends[tokens]
        order = order_of_words(self._text, starts, ends)
        starts, ends = starts[order], ends[order]
        token_id = words.trie.token_id[tokens[order]]
        trie = new_trie(self._text, starts, ends, token_id, np.zeros_like(token_id))
        pointers = PointerTable(len(TrieArrays._fields))
        pointers.put(trie)
        made = self._words[pointers.address] = Words(pointers, trie, starts, ends)
        self._num_bytes += made.num_bytes
        return inside[:num_inside].copy(), made


@dataclass(frozen=True, slots=True)
class _Made:
    pointers: PointerTable
    table: LexemeTable

    @classmethod
    def of(cls, inside: Int32s, few: Int32s, going_on: Int64s, exits: Words | None) -> _Made:
        address = exits.pointers.address if exits else NO_WORDS
        table = LexemeTable(inside, few, going_on, np.array([address], np.int64), np.array([NOT_MADE], np.int64))
        pointers = PointerTable(len(LexemeTable._fields))
        pointers.put(table)
        return cls(pointers, table)


@compiled
def slot_of(trie: int, lexeme: int, capacity: int) -> int:
    """Return where the search for a table begins; `capacity` is a power of two."""
    h = (trie >> 4) * -7046029254386353131 + lexeme * 0x9E3779B1
    return (h ^ (h >> 29)) & (capacity - 1)


@compiled
def _automaton(edges: Edges) -> tuple[npt.NDArray[np.int16], Uint8s]:
    """Return (places, 256) the next place or BROKEN, and (places,) 1 for those in which the lexeme may end."""
    num_places = i64(1)
    for edge in range(len(edges)):
        num_places = max(num_places, i64(edges[edge, 3]) + 1)
    following = np.full((num_places, 256), BROKEN, np.int16)
    may_end = np.zeros(num_places, np.uint8)
    for edge in range(len(edges)):
        place, low, high, target, is_end = edges[edge]
        for byte in range(low, high + 1):
            following[place, byte] = target
        if is_end == 1:
            may_end[target] = 1
    return following, may_end


@compiled
def _set_bits(row: Int32s, token_ids: Int32s) -> None:
    for token_id in token_ids:
        row[token_id >> 5] |= np.int32(1) << np.int32(token_id & 31)


@compiled
def _scan(
    trie: int,
    following: npt.NDArray[np.int16],
    may_end: Uint8s,
    at_every_end: bool,
    inside: Int32s,
    exit_token: Int32s,
    exit_offset: Int32s,
) -> tuple[int, int]:
    """Write the ids of the tokens that stay inside, and of those that exit the number in order and the length before.

    Return how many there are of each; of the exits those beyond the arrays' length are not written.
    """
    t = trie_arrays(trie)
    num_inside, num_exits = i64(0), i64(0)
    longest = i64(0)
    for depth in t.depth:
        longest = max(longest, i64(depth))
    place = np.zeros(longest + 2, np.int64)
    for byte in range(256):
        if following[0, byte] == BROKEN:
            continue
        i = i64(t.first[byte])
        while i < t.first[byte + 1]:
            depth = i64(t.depth[i])
            target = i64(following[place[depth], t.byte[i]])
            if target == BROKEN:
                for length in range(1 if at_every_end else depth, depth + 1):
                    if length > 0 and may_end[place[length]] == 1:
                        for token in range(t.token_start[i], t.token_start[t.end[i]]):
                            if num_exits < len(exit_token):
                                exit_token[num_exits] = token
                                exit_offset[num_exits] = length
                            num_exits += 1
                i = i64(t.end[i])
                continue
            place[depth + 1] = target
            for token in range(t.token_start[i], t.token_start[i + 1]):
                inside[num_inside] = t.token_id[token]
                num_inside += 1
            i += 1
    return num_inside, num_exits
