"""The plain Python twin of the kernels: the same tables read by the definition, nothing shared or remembered.

Tests compare the two. A state is a set of (state, count, stack); a stack is None at the bottom, else (return state,
count, stack below).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from services.constraint.core.compiled_grammar import CompiledGrammar

Stack: TypeAlias = "tuple[int, int, Stack] | None"
Position: TypeAlias = tuple[int, int, Stack]
State: TypeAlias = frozenset[Position]


class TooAmbiguousError(ValueError):
    """A text can be read in more ways than were to be followed."""


class Reference:
    """A compiled grammar; as slow as it is plain."""

    def __init__(self, compiled: CompiledGrammar, *, max_positions: int = 300) -> None:
        """Read the tables. A state of more than `max_positions` is a TooAmbiguousError: stacks are not shared here."""
        self._max_positions = max_positions
        self._tables = compiled.tables
        self._accepts_empty = compiled.accepts_empty
        self.start: State = self._closure([(int(self._tables.rule_start[compiled.start_rule]), 0, None)])

    def step(self, state: State, byte: int) -> State:
        """Return the state after a byte; empty where it may not follow."""
        g = self._tables
        return self._closure(
            [
                (int(g.edge_target[edge]), 0, stack)
                for at, _, stack in state
                for edge in range(g.edge_start[at], g.edge_start[at + 1])
                if g.edge_low[edge] <= byte <= g.edge_high[edge]
            ]
        )

    def after(self, state: State, text: bytes) -> State:
        """Return the state after a text; empty where it may not follow."""
        for byte in text:
            state = self.step(state, byte)
        return state

    def is_accepting(self, state: State) -> bool:
        """Tell whether the text may end here."""
        if state == self.start and self._accepts_empty:
            return True
        return any(stack is None and self._is_end(at, count) for at, count, stack in state)

    def allowed(self, state: State, token_bytes: Sequence[bytes | None], end_tokens: Sequence[int]) -> set[int]:
        """Return the tokens that may follow, found by trying each."""
        found = {index for index, token in enumerate(token_bytes) if token and self.after(state, token)}
        return found.union(end_tokens) if self.is_accepting(state) else found

    def _is_end(self, at: int, count: int) -> bool:
        g = self._tables
        return bool(g.is_accepting[at]) or bool(0 <= g.count_minimum[at] <= count)

    def _closure(self, todo: list[Position]) -> State:
        g = self._tables
        reached: set[Position] = set()
        while todo:
            position = todo.pop()
            if position in reached:
                continue
            reached.add(position)
            if len(reached) > self._max_positions:
                raise TooAmbiguousError
            at, count, stack = position
            todo += [(int(at), 0, stack) for at in g.epsilon_target[g.epsilon_start[at] : g.epsilon_start[at + 1]]]
            if stack is not None and self._is_end(at, count):
                ret, before, below = stack
                returned = 0
                if g.count_minimum[ret] >= 0:
                    returned = before + 1
                    if g.count_maximum[ret] < 0:
                        returned = min(returned, int(g.count_minimum[ret]))
                todo.append((ret, returned, below))
            if 0 <= g.count_maximum[at] <= count:
                continue
            for call in range(g.call_start[at], g.call_start[at + 1]):
                start = int(g.rule_start[g.call_rule[call]])
                todo.append((start, 0, (int(g.call_return[call]), count, stack)))
        return frozenset(reached)
