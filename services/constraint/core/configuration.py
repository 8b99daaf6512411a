"""Owns the stores of one grammar's interned configurations, and grows them when a kernel asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from services.constraint.core import kernel
from services.constraint.core.compiled_grammar import CompiledGrammar, CorruptGrammarError
from services.constraint.core.interning import rehashed
from services.constraint.core.tables import (
    DEAD,
    FUEL,
    GROW_ARENA,
    INCONSISTENT,
    NUM_CONFIGURATIONS,
    OUT_OF_FUEL,
    UNKNOWN,
    UNREACHABLE,
    Arena,
    Int32s,
    Scratch,
    Tables,
)
from services.rpckit.status import OutOfFuel

_FIRST_NODES = 128
_FIRST_FRAMES = 256
_FIRST_CONFIGURATIONS = 128
_FIRST_ITEMS = 512
_FIRST_SCRATCH = 512


class Configurations:
    """All configurations that a grammar was seen in. Not thread-safe: the matcher holds a lock around each call."""

    def __init__(self, compiled: CompiledGrammar, *, max_bytes: int, max_fuel: int) -> None:
        """`max_bytes` bounds the stores, `max_fuel` the states that one call may visit (about 10 ns each).

        Raises:
            OutOfFuel: as `call`.
        """
        self._tables = compiled.tables
        self._max_bytes = max_bytes
        self._max_fuel = max_fuel
        num_classes = int(compiled.tables.byte_class.max()) + 1
        self._arena = _new_arena(num_classes)
        self._scratch = _new_scratch(compiled.tables, _FIRST_SCRATCH)
        self.start = self.call(kernel.start_configuration, compiled.start_rule, int(compiled.accepts_empty))

    @property
    def num_bytes(self) -> int:
        """Bytes of the stores."""
        return sum(array.nbytes for array in self._arena) + sum(array.nbytes for array in self._scratch)

    def __len__(self) -> int:
        return int(self._arena.sizes[NUM_CONFIGURATIONS])

    def is_accepting(self, configuration: int) -> bool:
        """Tell whether the text is complete in `configuration`."""
        return bool(self._arena.configuration_accepts[configuration])

    def is_final(self, configuration: int) -> bool:
        """Tell whether nothing can follow `configuration`."""
        starts = self._arena.configuration_start
        return bool(starts[configuration] == starts[configuration + 1])

    def call(self, function: Callable[..., Any], *arguments: Any, clear: Int32s | None = None) -> Any:
        """Call a kernel as `function(tables, arena, scratch, *arguments)` until it needs no more room.

        `clear` is zeroed before each try.

        Raises:
            OutOfFuel: the call would visit more states, or need more memory, than the limits allow.
            CorruptGrammarError: no compiler wrote the tables.
        """
        self._arena.sizes[FUEL] = self._max_fuel
        while True:
            if clear is not None:
                clear.fill(0)
            result = function(self._tables, self._arena, self._scratch, *arguments)
            code = result[0] if isinstance(result, tuple) else result
            if code >= 0:
                return result
            if code == OUT_OF_FUEL:
                raise OutOfFuel(
                    f"one mask would visit more than {self._max_fuel} states (limit max_mask_fuel)",
                    limit="max_mask_fuel",
                    value=self._max_fuel,
                )
            if code == INCONSISTENT:
                raise CorruptGrammarError("the tables of the grammar contradict each other")
            if code == GROW_ARENA:
                self._arena = _grown_arena(self._arena)
            else:
                self._scratch = _new_scratch(
                    self._tables, 2 * len(self._scratch.position_state), clock=int(self._scratch.clock[0])
                )
            if self.num_bytes > self._max_bytes:
                raise OutOfFuel(
                    f"the grammar's states take more than {self._max_bytes} bytes (limit max_grammar_bytes)",
                    limit="max_grammar_bytes",
                    value=self._max_bytes,
                )


def _new_arena(num_classes: int) -> Arena:
    arena = Arena(
        sizes=np.zeros(5, np.int64),
        node_start=np.zeros(_FIRST_NODES + 1, np.int32),
        node_distance=np.zeros(_FIRST_NODES, np.int32),
        node_hash=np.zeros(_FIRST_NODES, np.int64),
        node_table=np.full(2 * _FIRST_NODES, -1, np.int32),
        frame_return=np.zeros(_FIRST_FRAMES, np.int32),
        frame_count=np.zeros(_FIRST_FRAMES, np.int32),
        frame_parent=np.zeros(_FIRST_FRAMES, np.int32),
        configuration_start=np.zeros(_FIRST_CONFIGURATIONS + 1, np.int32),
        configuration_accepts=np.zeros(_FIRST_CONFIGURATIONS, np.uint8),
        configuration_distance=np.zeros(_FIRST_CONFIGURATIONS, np.int32),
        configuration_hash=np.zeros(_FIRST_CONFIGURATIONS, np.int64),
        configuration_table=np.full(2 * _FIRST_CONFIGURATIONS, -1, np.int32),
        item_state=np.zeros(_FIRST_ITEMS, np.int32),
        item_node=np.zeros(_FIRST_ITEMS, np.int32),
        transitions=np.full((_FIRST_CONFIGURATIONS, num_classes), UNKNOWN, np.int32),
    )
    # Configuration 0 is DEAD: no items, not accepting, in no table.
    arena.sizes[NUM_CONFIGURATIONS] = 1
    arena.configuration_distance[0] = UNREACHABLE
    arena.transitions[0] = DEAD
    return arena


def _new_scratch(tables: Tables, capacity: int, *, clock: int = 0) -> Scratch:
    num_states, num_rules = len(tables.is_accepting), len(tables.rule_start)
    int32s = [np.zeros(capacity, np.int32) for _ in range(13)]
    return Scratch(
        clock=np.array([clock], np.int64),
        # Stamps of zero are older than any clock, which counts from 1.
        state_stamp=np.zeros(num_states, np.int64),
        state_head=np.zeros(num_states, np.int32),
        seen_stamp=np.zeros(num_states, np.int64),
        rule_stamp=np.zeros(num_rules, np.int64),
        rule_head=np.zeros(num_rules, np.int32),
        rule_heap=np.zeros(num_rules, np.int32),
        position_state=int32s[0],
        position_count=int32s[1],
        position_node=int32s[2],
        position_next=int32s[3],
        position_done=np.zeros(capacity, np.uint8),
        entry_return=int32s[4],
        entry_count=int32s[5],
        entry_parent=int32s[6],
        entry_next=int32s[7],
        frame_return=int32s[8],
        frame_count=int32s[9],
        frame_parent=int32s[10],
        item_state=int32s[11],
        item_node=int32s[12],
        worklist=np.zeros(num_states, np.int32),
    )


def _grown_arena(arena: Arena) -> Arena:
    """Return the arena with every store doubled that is more than half full."""
    nodes, frames, configurations, items = (int(size) for size in arena.sizes[:4])
    changes: dict[str, Any] = {}
    if 2 * nodes > len(arena.node_hash):
        for name in ("node_start", "node_distance", "node_hash"):
            changes[name] = _doubled(getattr(arena, name))
        changes["node_table"] = rehashed(changes["node_hash"], 0, nodes, 2 * len(arena.node_table))
    if 2 * frames > len(arena.frame_return):
        for name in ("frame_return", "frame_count", "frame_parent"):
            changes[name] = _doubled(getattr(arena, name))
    if 2 * configurations > len(arena.configuration_hash):
        for name in ("configuration_start", "configuration_accepts", "configuration_distance", "configuration_hash"):
            changes[name] = _doubled(getattr(arena, name))
        changes["configuration_table"] = rehashed(
            changes["configuration_hash"], 1, configurations, 2 * len(arena.configuration_table)
        )
        known = arena.transitions
        changes["transitions"] = np.full((2 * len(known), known.shape[1]), UNKNOWN, np.int32)
        changes["transitions"][: len(known)] = known
    if 2 * items > len(arena.item_state):
        for name in ("item_state", "item_node"):
            changes[name] = _doubled(getattr(arena, name))
    if not changes:
        # One set larger than half a store: only the stores of sets can be short then.
        for name in ("frame_return", "frame_count", "frame_parent", "item_state", "item_node"):
            changes[name] = _doubled(getattr(arena, name))
    return arena._replace(**changes)


def _doubled(array: Any) -> Any:
    grown = np.zeros(2 * len(array), array.dtype)
    grown[: len(array)] = array
    return grown
