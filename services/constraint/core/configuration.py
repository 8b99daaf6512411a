"""Owns the stores of one grammar's interned configurations and masks, and grows them when a kernel asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from services.constraint.core import kernel, masks
from services.constraint.core.compiled_grammar import CompiledGrammar, CorruptGrammarError
from services.constraint.core.interning import rehashed
from services.constraint.core.lexeme_search import GrammarLexemes
from services.constraint.core.pointers import PointerTable
from services.constraint.core.span_search import GrammarSpans
from services.constraint.core.tables import (
    DEAD,
    FIRST_CONFIGURATION,
    FIRST_SLOT,
    FUEL,
    GROW_ARENA,
    GROW_MASKS,
    GROW_SCRATCH,
    INCONSISTENT,
    MAX_FUEL,
    MISSING_LEXEME,
    MISSING_SPAN,
    NUM_CLASSES,
    NUM_CONFIGURATIONS,
    NUM_MASKS,
    NUM_NODES,
    NUM_ROWS,
    NUM_SIZES,
    NUM_SLOTS,
    NUM_WANTED,
    OUT_OF_FUEL,
    UNREACHABLE,
    WANTED_SPAN,
    Arena,
    LexemeArrays,
    Scratch,
    SpanArrays,
    Tables,
    VocabularyArrays,
)
from services.constraint.core.trie import TokenTrie
from services.rpckit.status import OutOfFuel
from services.vocabulary import bitmask_words

# Room for what most schemas come to.
_FIRST_NODES: Final = 4096
_FIRST_FRAMES: Final = 8192
_FIRST_CONFIGURATIONS: Final = 512
_FIRST_ITEMS: Final = 16384
_FIRST_SCRATCH: Final = 2048
_MOST_RETURNS: Final = 64
_MOST_WANTED: Final = 256
_FIRST_ROWS: Final = 1024
_ROWS_PER_BLOCK: Final = 16
_ROW_NUMBERS: Final = np.arange(_ROWS_PER_BLOCK, dtype=np.int64)


class Configurations:
    """All configurations that a grammar was seen in. Not thread-safe: the matcher holds a lock around each call."""

    def __init__(
        self,
        compiled: CompiledGrammar,
        trie: TokenTrie,
        *,
        max_bytes: int,
        max_mask_bytes: int,
        max_fuel: int,
        is_common: bool = False,
    ) -> None:
        """`max_bytes` bounds the stores, `max_fuel` the states that one call may visit (about 10 ns each).

        Masks beyond `max_mask_bytes` are forgotten, all at once. The spans of a grammar that `is_common` are made for
        all grammars to come.

        Raises:
            OutOfFuel: as `call`.
        """
        self.tables: Final = compiled.tables
        self._trie = trie
        self._max_bytes = max_bytes
        self._max_mask_bytes = max_mask_bytes
        self._max_fuel = max_fuel
        self._pointers = PointerTable(NUM_SLOTS)
        self._put(compiled.tables)
        self._put(trie.vocabulary_arrays)
        self._scratch = _new_scratch(compiled.tables, _FIRST_SCRATCH, trie.max_token_bytes)
        self._put(self._scratch)
        num_states = len(compiled.tables.is_accepting)
        self.spans: Final = GrammarSpans(self._pointers.address, num_states, trie.spans, is_common=is_common)
        self._put(self.spans.arrays)
        self.lexemes: Final = GrammarLexemes(self._pointers.address, compiled.tables, trie.lexemes)
        self._put(self.lexemes.arrays)
        if is_common:
            self.spans.provide_all()
        self._arena = _new_arena(int(compiled.tables.byte_class.max()) + 1, max_fuel)
        self._put(self._arena)
        self.num_words = bitmask_words(trie.vocabulary.vocab_size)
        self._blocks: list[npt.NDArray[np.int32]] = []
        self._rows: dict[int, memoryview] = {}
        # configuration -> its mask (words,) if that is known. May be called without the lock.
        self.known_mask: Final = self._rows.get
        self._sizes = self._arena.sizes
        self._make_room_for_masks()
        self.start = self.call(kernel.start_configuration, compiled.start_rule, int(compiled.accepts_empty))

    def _put(self, group: Tables | VocabularyArrays | SpanArrays | LexemeArrays | Arena | Scratch) -> None:
        self._pointers.put(group, FIRST_SLOT[type(group)])

    @property
    def memory(self) -> int:
        """The address that kernels take."""
        return self._pointers.address

    @property
    def num_bytes(self) -> int:
        """Bytes of the tables, the stores and the masks."""
        arrays = (*self.tables, *self._arena, *self._scratch, *self.spans.arrays)
        return sum(array.nbytes for array in arrays) + self.lexemes.num_bytes + self._num_mask_bytes

    @property
    def _num_mask_bytes(self) -> int:
        return sum(block.nbytes for block in self._blocks)

    def __len__(self) -> int:
        return int(self._sizes[NUM_CONFIGURATIONS])

    def is_accepting(self, configuration: int) -> bool:
        """Tell whether the text is complete in `configuration`."""
        return bool(self._arena.configuration_accepts[configuration])

    def is_final(self, configuration: int) -> bool:
        """Tell whether nothing can follow `configuration`."""
        starts = self._arena.configuration_start
        return bool(starts[configuration] == starts[configuration + 1])

    def mask(self, configuration: int) -> memoryview:
        """Return the mask (words,) of a configuration; it is overwritten when masks are forgotten.

        Raises:
            OutOfFuel, CorruptGrammarError: as `call`.
        """
        number = masks.mask(self._pointers.address, configuration)
        while number < 0:
            self.resolve(number)
            number = masks.mask(self._pointers.address, configuration)
        row = self._rows[configuration] = self.mask_in_row(number)
        return row

    @property
    def arena(self) -> Arena:
        """The store, until the next call of a kernel: for `hot_states.py`, which reads it and adds transitions."""
        return self._arena

    @property
    def num_masks(self) -> int:
        """How many masks are known."""
        return int(self._sizes[NUM_MASKS])

    def mask_in_row(self, number: int) -> memoryview:
        """Return a known mask (words,) by the number that the store has for it."""
        return memoryview(self._blocks[number // _ROWS_PER_BLOCK][number % _ROWS_PER_BLOCK])

    def keep_mask(self, configurations: npt.NDArray[np.int32], mask: npt.NDArray[np.int32]) -> bool:
        """Remember a mask (words,) for those of `configurations` that have none; return whether there was room."""
        configurations = configurations[self._arena.mask_row[configurations] == 0]
        if len(configurations) == 0:
            return True
        number = self.num_masks
        if number >= self._sizes[NUM_ROWS]:
            if self._num_mask_bytes >= self._max_mask_bytes:
                return False
            self._make_room_for_masks()
        self.mask_in_row(number)[:] = mask.data
        self._sizes[NUM_MASKS] = number + 1
        self._arena.mask_row[configurations] = number + 1
        return True

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a kernel as `function(memory, *arguments)` until it needs no more room.

        Raises:
            OutOfFuel: the call would visit more states, or need more memory, than the limits allow.
            CorruptGrammarError: no compiler wrote the tables.
        """
        self._sizes[FUEL] = self._max_fuel
        while True:
            result = function(self._pointers.address, *arguments)
            code = min(result) if isinstance(result, tuple) else result
            if code >= -1:
                return result
            self.resolve(code)

    def resolve(self, code: int) -> None:
        """Do what a kernel asked for by a negative code, so that it can be called again.

        Raises:
            OutOfFuel, CorruptGrammarError: as `call`.
        """
        if code == OUT_OF_FUEL:
            raise OutOfFuel(
                f"one mask would visit more than {self._max_fuel} states (limit max_mask_fuel)",
                limit="max_mask_fuel",
                value=self._max_fuel,
            )
        if code == INCONSISTENT:
            raise CorruptGrammarError("the tables of the grammar contradict each other")
        if code == MISSING_SPAN:
            self.spans.provide(int(self._sizes[WANTED_SPAN]))
            return
        if code == MISSING_LEXEME:
            num_wanted, w = int(self._sizes[NUM_WANTED]), self._scratch
            if self.lexemes.provide(w.wanted_trie[:num_wanted].tolist(), w.wanted_lexeme[:num_wanted].tolist()):
                self._put(self.lexemes.arrays)
            return
        if code == GROW_MASKS:
            self._make_room_for_masks()
            return
        if code == GROW_ARENA:
            self._arena = _grown_arena(self._arena)
            self._put(self._arena)
        else:
            assert code == GROW_SCRATCH, code
            self._scratch = _new_scratch(
                self.tables,
                2 * len(self._scratch.position_state),
                self._trie.max_token_bytes,
                clock=int(self._scratch.clock[0]),
            )
            self._put(self._scratch)
        if self.num_bytes - self._num_mask_bytes > self._max_bytes:
            raise OutOfFuel(
                f"the grammar's states take more than {self._max_bytes} bytes (limit max_grammar_bytes)",
                limit="max_grammar_bytes",
                value=self._max_bytes,
            )

    def _make_room_for_masks(self) -> None:
        if self._num_mask_bytes >= self._max_mask_bytes and len(self._blocks) > 1:
            self._rows.clear()
            self._arena.mask_row.fill(0)
            self._sizes[NUM_MASKS] = 0
            return
        num_rows = len(self._blocks) * _ROWS_PER_BLOCK
        if num_rows == len(self._arena.row_address):
            self._arena = self._arena._replace(row_address=_doubled(self._arena.row_address))
            self._put(self._arena)
        block = np.empty((_ROWS_PER_BLOCK, self.num_words), np.int32)
        self._blocks.append(block)
        first = block.__array_interface__["data"][0]
        self._arena.row_address[num_rows : num_rows + _ROWS_PER_BLOCK] = first + block.strides[0] * _ROW_NUMBERS
        self._sizes[NUM_ROWS] = num_rows + _ROWS_PER_BLOCK


def _new_arena(num_classes: int, max_fuel: int) -> Arena:
    # What the kernels write before they read it need not be cleared; hash tables must be.
    arena = Arena(
        sizes=np.zeros(NUM_SIZES, np.int64),
        node_start=np.empty(_FIRST_NODES + 1, np.int32),
        node_distance=np.empty(_FIRST_NODES, np.int32),
        node_behind=np.empty(_FIRST_NODES, np.int32),
        node_hash=np.empty(_FIRST_NODES, np.int64),
        node_table=np.zeros(2 * _FIRST_NODES, np.int32),
        frame_return=np.empty(_FIRST_FRAMES, np.int32),
        frame_count=np.empty(_FIRST_FRAMES, np.int32),
        frame_parent=np.empty(_FIRST_FRAMES, np.int32),
        configuration_start=np.empty(_FIRST_CONFIGURATIONS + 1, np.int32),
        configuration_accepts=np.empty(_FIRST_CONFIGURATIONS, np.uint8),
        configuration_distance=np.empty(_FIRST_CONFIGURATIONS, np.int32),
        configuration_hash=np.empty(_FIRST_CONFIGURATIONS, np.int64),
        configuration_table=np.zeros(2 * _FIRST_CONFIGURATIONS, np.int32),
        item_state=np.empty(_FIRST_ITEMS, np.int32),
        item_node=np.empty(_FIRST_ITEMS, np.int32),
        transitions=np.empty(_FIRST_CONFIGURATIONS * num_classes, np.int32),
        mask_row=np.empty(_FIRST_CONFIGURATIONS, np.int32),
        row_address=np.empty(_FIRST_ROWS, np.int64),
    )
    arena.node_start[:2] = 0
    arena.configuration_start[: FIRST_CONFIGURATION + 1] = 0
    arena.configuration_accepts[:FIRST_CONFIGURATION] = 0
    arena.mask_row[:FIRST_CONFIGURATION] = 0
    arena.sizes[NUM_NODES] = 1
    arena.sizes[NUM_CONFIGURATIONS] = FIRST_CONFIGURATION
    arena.sizes[NUM_CLASSES] = num_classes
    arena.sizes[MAX_FUEL] = max_fuel
    # DEAD has no items, does not accept, and stays dead.
    arena.configuration_distance[DEAD] = UNREACHABLE
    arena.transitions[DEAD * num_classes : (DEAD + 1) * num_classes] = DEAD
    return arena


def _new_scratch(tables: Tables, capacity: int, max_token_bytes: int, *, clock: int = 0) -> Scratch:
    num_states, num_rules = len(tables.is_accepting), len(tables.rule_start)
    int32s = [np.empty(capacity, np.int32) for _ in range(13)]
    return Scratch(
        clock=np.array([clock], np.int64),
        # Stamps of zero are older than any clock, which counts from 1.
        state_stamp=np.zeros(num_states, np.int64),
        state_head=np.empty(num_states, np.int32),
        seen_stamp=np.zeros(num_states, np.int64),
        rule_stamp=np.zeros(num_rules, np.int64),
        rule_head=np.empty(num_rules, np.int32),
        rule_heap=np.empty(num_rules, np.int32),
        position_state=int32s[0],
        position_count=int32s[1],
        position_node=int32s[2],
        position_next=int32s[3],
        position_done=np.empty(capacity, np.uint8),
        entry_return=int32s[4],
        entry_count=int32s[5],
        entry_parent=int32s[6],
        entry_next=int32s[7],
        frame_return=int32s[8],
        frame_count=int32s[9],
        frame_parent=int32s[10],
        item_state=int32s[11],
        item_node=int32s[12],
        worklist=np.empty(num_states, np.int32),
        is_walked=np.empty(capacity, np.uint8),
        path=np.empty(max_token_bytes + 2, np.int32),
        base_path=np.empty(max_token_bytes + 2, np.int32),
        differs=np.empty((max_token_bytes + 2) * 256, np.uint8),
        task_trie=np.empty(capacity, np.int64),
        task_configuration=np.empty(capacity, np.int32),
        returning=np.empty(_MOST_RETURNS, np.int32),
        wanted_trie=np.empty(_MOST_WANTED, np.int64),
        wanted_lexeme=np.empty(_MOST_WANTED, np.int32),
    )


def _grown_arena(arena: Arena) -> Arena:
    """Return the arena with every store doubled that is more than half full."""
    nodes, frames, configurations, items = (int(size) for size in arena.sizes[:4])
    changes: dict[str, Any] = {}
    if 2 * nodes > len(arena.node_hash):
        for name in ("node_start", "node_distance", "node_behind", "node_hash"):
            changes[name] = _doubled(getattr(arena, name))
        changes["node_table"] = rehashed(changes["node_hash"], 1, nodes, 2 * len(arena.node_table))
    if 2 * frames > len(arena.frame_return):
        for name in ("frame_return", "frame_count", "frame_parent"):
            changes[name] = _doubled(getattr(arena, name))
    if 2 * configurations > len(arena.configuration_hash):
        for name in (
            "configuration_start",
            "configuration_accepts",
            "configuration_distance",
            "configuration_hash",
            "transitions",
            "mask_row",
        ):
            changes[name] = _doubled(getattr(arena, name))
        changes["configuration_table"] = rehashed(
            changes["configuration_hash"], FIRST_CONFIGURATION, configurations, 2 * len(arena.configuration_table)
        )
    if 2 * items > len(arena.item_state):
        for name in ("item_state", "item_node"):
            changes[name] = _doubled(getattr(arena, name))
    if not changes:
        # One set larger than half a store: only the stores of sets can be short then.
        for name in ("frame_return", "frame_count", "frame_parent", "item_state", "item_node"):
            changes[name] = _doubled(getattr(arena, name))
    return arena._replace(**changes)


def _doubled(array: Any) -> Any:
    # The stores of starts have one entry more than the others: doubling keeps that true, with one to spare.
    grown = np.empty(2 * len(array), array.dtype)
    grown[: len(array)] = array
    return grown
