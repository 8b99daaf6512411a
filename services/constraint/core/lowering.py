"""Lowers a grammar to the flat tables that the kernel walks.

1. *Emission*: each rule that the start rule reaches becomes a nondeterministic automaton whose edges are bytes,
   epsilons and calls of rules (Thompson, "Regular Expression Search Algorithm", 1968, with a shared source and target
   instead of an epsilon per part). A bounded repetition of more than a few states becomes a rule of one *counting
   state*, whose count lives in the stack frame.
2. *Nullable rules*: beside every call of a rule that may match nothing stands an epsilon; the call itself then always
   consumes.
3. *Left recursion*, direct, indirect or hidden behind nullable rules, becomes a loop (`left_recursion.py`).
4. *Distances* (`distances.py`): fewest bytes from each state to the end of its rule; whatever has no way to the end is
   cut off.

Nothing is determinised here: the kernel does that lazily, by interning configurations.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt

from services.constraint.core import distances, left_recursion
from services.constraint.core.compiled_grammar import CompiledGrammar
from services.constraint.core.compiling import compiled
from services.constraint.core.grammar import (
    Alternation,
    Automaton,
    ByteRange,
    Bytes,
    Expression,
    Grammar,
    Hole,
    Literals,
    Nested,
    Reference,
    Repeat,
    Sequence,
)
from services.constraint.core.holes import stand_in
from services.constraint.core.tables import Tables
from services.rpckit.status import GrammarSyntax, GrammarTooLarge

# Repetitions up to this count are written out: plain states are cheaper to walk than counts.
MAX_UNROLLED = 64
# A body of at most this many states is copied for each repetition, a larger one is a rule.
MAX_COPIED_STATES = 8
# A body that begins with this many bytes is counted: masks of counted characters come from the vocabulary's spans.
MIN_CHARACTER_BYTES = 16


@dataclass(slots=True)
class Network:
    """Rules as automata, while they are made. States are numbered over all rules."""

    num_states: int = 0
    edges: list[tuple[int, int, int, int]] = field(default_factory=list)  # (source, low byte, high byte, target)
    epsilons: list[tuple[int, int]] = field(default_factory=list)
    calls: list[tuple[int, int, int]] = field(default_factory=list)  # (state, rule, return state)
    rule_start: list[int] = field(default_factory=list)
    rule_accept: list[int] = field(default_factory=list)
    counting: dict[int, tuple[int, int]] = field(default_factory=dict)  # state -> (minimum, maximum or -1)
    bases: dict[int, int] = field(default_factory=dict)  # state -> one whose way on is nearly the same
    lexemes: set[int] = field(default_factory=set)  # rules of which vocabularies have tables

    def new_state(self) -> int:
        """Return a new state."""
        self.num_states += 1
        return self.num_states - 1

    def new_rule(self) -> int:
        """Return a new rule with its start and its accepting state."""
        self.rule_start.append(self.new_state())
        self.rule_accept.append(self.new_state())
        return len(self.rule_start) - 1


def lower(grammar: Grammar, *, max_states: int, are_holes_filled: bool = False) -> CompiledGrammar:
    """Lower a grammar; with `are_holes_filled` each hole is as many bytes as it has at least, to tell `min_bytes`.

    Raises:
        GrammarSyntax: a rule is called but not defined.
        GrammarTooLarge: more than `max_states` states.
        UnsatisfiableGrammar: no text matches.
    """
    emitter = _Emitter(max_states, are_holes_filled)
    start = emitter.rule_of(grammar, grammar.start)
    try:
        emitter.run()
    except RecursionError:
        raise GrammarTooLarge("an expression of the grammar is nested too deep", limit="expression_nesting") from None
    network = emitter.network
    nullable = _nullable_rules(network)
    _make_calls_consume(network, nullable)
    order = left_recursion.remove(network, max_states=max_states)
    return _flatten(network, order, start, accepts_empty=nullable[start])


class _Emitter:
    """Writes expressions into a network.

    An expression object that is met again as a repetition's body shares its rule.
    """

    def __init__(self, max_states: int, are_holes_filled: bool) -> None:
        self.network = Network()
        self._max_states = max_states
        self._are_holes_filled = are_holes_filled
        self._rules: dict[tuple[int, str], int] = {}
        self._bodies: dict[tuple[int, int], int] = {}
        self._waiting: list[tuple[int, Grammar, Expression]] = []

    def rule_of(self, grammar: Grammar, name: str) -> int:
        """Return the rule of this name; its body is written by `run`."""
        key = (id(grammar), name)
        rule = self._rules.get(key)
        if rule is None:
            if name not in grammar.rules:
                raise GrammarSyntax(f"the rule {name!r} is called but not defined", rule=name)
            rule = self._rules[key] = self.network.new_rule()
            self._waiting.append((rule, grammar, grammar.rules[name]))
            if name in grammar.lexemes:
                self.network.lexemes.add(rule)
        return rule

    def run(self) -> None:
        """Write all rules that were called."""
        while self._waiting:
            rule, self._grammar, body = self._waiting.pop()  # names in the body are those of its grammar
            self._emit(body, self.network.rule_start[rule], self.network.rule_accept[rule])
            if self.network.num_states > self._max_states:
                raise GrammarTooLarge(
                    f"the grammar needs more than {self._max_states} states (limit max_states)",
                    limit="max_states",
                    value=self._max_states,
                )

    def _emit(self, expression: Expression, source: int, target: int) -> None:
        """Connect source to target.

        No part adds an edge into `source` or out of `target`, so that options may share both.
        """
        network = self.network
        match expression:
            case Bytes(value):
                if not value:
                    network.epsilons.append((source, target))
                    return
                first = network.num_states
                network.num_states += len(value) - 1
                middles = range(first, network.num_states)
                network.edges.extend(zip((source, *middles), value, value, (*middles, target), strict=True))
            case ByteRange(low, high):
                network.edges.append((source, low, high, target))
            case Sequence(parts):
                if not parts:
                    network.epsilons.append((source, target))
                for part in parts[:-1]:
                    middle = network.new_state()
                    self._emit(part, source, middle)
                    source = middle
                if parts:
                    self._emit(parts[-1], source, target)
            case Alternation(options):
                for option in options:
                    self._emit(option, source, target)
            case Reference(rule):
                network.calls.append((source, self.rule_of(self._grammar, rule), target))
            case Nested(grammar):
                network.calls.append((source, self.rule_of(grammar, grammar.start), target))
            case Hole(number, min_bytes):
                text = b"0" * min_bytes if self._are_holes_filled else stand_in(number)
                self._emit(Bytes(text), source, target)
            case Literals(values):
                self._emit_literals(values, source, target)
            case Automaton():
                self._emit_automaton(expression, source, target)
            case Repeat(body, minimum, maximum):
                self._emit_repeat(body, minimum, maximum, source, target)

    def _emit_literals(self, values: tuple[bytes, ...], source: int, target: int) -> None:
        network = self.network
        children: dict[tuple[int, int], int] = {}
        for value in values:
            state = source
            for byte in value:
                child = children.get((state, byte))
                if child is None:
                    child = children[state, byte] = network.new_state()
                    network.edges.append((state, byte, byte, child))
                state = child
            network.epsilons.append((state, target))

    def _emit_automaton(self, automaton: Automaton, source: int, target: int) -> None:
        network = self.network
        entered = {b for _, _, _, b in automaton.edges}.union(b for _, b in automaton.epsilons)
        left = {a for a, _, _, _ in automaton.edges}.union(a for a, _ in automaton.epsilons)
        # A start that nothing enters is the source itself, an end that nothing leaves the target.
        number: dict[int, int] = {} if automaton.start in entered else {automaton.start: source}
        for state in automaton.accepting:
            if state not in left and state not in number:
                number[state] = target
        for state in sorted(left | entered | {automaton.start, *automaton.accepting}):
            if state not in number:
                number[state] = network.new_state()
        network.edges += [(number[a], low, high, number[b]) for a, low, high, b in automaton.edges]
        network.bases.update((number[state], number[base]) for state, base in automaton.bases)
        if automaton.start in entered:
            network.epsilons.append((source, number[automaton.start]))
        network.epsilons.extend((number[a], number[b]) for a, b in automaton.epsilons)
        network.epsilons.extend((number[state], target) for state in automaton.accepting if number[state] != target)

    def _emit_repeat(self, body: Expression, minimum: int, maximum: int | None, source: int, target: int) -> None:
        network = self.network
        if maximum is not None and (maximum < minimum or maximum == 0):
            if maximum == 0 and minimum == 0:
                network.epsilons.append((source, target))
            return
        if minimum == 0 and maximum is None:
            loop = network.new_state()
            network.epsilons += [(source, loop), (loop, target)]
            self._emit(body, loop, loop)
            return
        if minimum == 1 and maximum is None:
            # One body for the first repetition and the others, so that the first has the mask of the others.
            loop, again = network.new_state(), network.new_state()
            network.epsilons += [(source, loop), (again, loop), (again, target)]
            self._emit(body, loop, again)
            return
        if minimum == 0:
            network.epsilons.append((source, target))
            if maximum == 1:
                self._emit(body, source, target)
                return
        times = maximum if maximum is not None else minimum
        if times > MAX_UNROLLED or (times > 1 and _is_character(body)):
            network.calls.append(
                (source, self._counting_rule(body, max(minimum, 1), -1 if maximum is None else maximum), target)
            )
            return
        weight = _weight(body)
        body_rule = self._body_rule(body) if weight > MAX_COPIED_STATES and times * weight > MAX_UNROLLED else None
        last = target if maximum is not None else network.new_state()
        ranges = _byte_ranges(body)
        for i in range(times):
            is_last = i == times - 1
            middle = last if is_last else network.new_state()
            if ranges is not None:
                network.edges += [(source, low, high, middle) for low, high in ranges]
            elif body_rule is None:
                self._emit(body, source, middle)
            else:
                network.calls.append((source, body_rule, middle))
            if i + 1 >= minimum and not is_last:
                network.epsilons.append((middle, target))
            source = middle
        if maximum is None:
            network.epsilons.append((last, target))
            self._emit(body, last, last)

    def _counting_rule(self, body: Expression, minimum: int, maximum: int) -> int:
        network = self.network
        rule = network.new_rule()
        state = network.rule_start[rule]
        network.counting[state] = (minimum, maximum)
        network.calls.append((state, self._body_rule(body), state))
        return rule

    def _body_rule(self, body: Expression) -> int:
        # By identity: sources share the object where they mean the same, and comparing trees would cost more than it
        # saves.
        key = (id(self._grammar), id(body))
        rule = self._bodies.get(key)
        if rule is None:
            rule = self._bodies[key] = self.network.new_rule()
            self._waiting.append((rule, self._grammar, body))
        return rule


def _byte_ranges(expression: Expression) -> list[tuple[int, int]] | None:
    """Return the ranges of an expression that is one byte, None for others."""
    match expression:
        case ByteRange(low, high):
            return [(low, high)]
        case Bytes(value) if len(value) == 1:
            return [(value[0], value[0])]
        case Alternation(options) if options:
            found = [_byte_ranges(option) for option in options]
            return None if None in found else [range_ for ranges in found for range_ in ranges or ()]
    return None


def _is_character(expression: Expression) -> bool:
    """Tell whether an expression is one of a large set of characters."""
    match expression:
        case ByteRange(low, high):
            return high - low + 1 >= MIN_CHARACTER_BYTES
        case Automaton(start, _, edges):
            first = sum(high - low + 1 for source, low, high, _ in edges if source == start)
            return first >= MIN_CHARACTER_BYTES
    return False


def _weight(expression: Expression) -> int:
    """Return about how many states an expression takes."""
    match expression:
        case Bytes(value):
            return max(1, len(value))
        case Literals(values):
            return sum(map(len, values))
        case Automaton():
            return 1 + len(expression.edges)
        case Sequence(parts) | Alternation(parts):
            return 1 + sum(map(_weight, parts))
        case Repeat(body, minimum, maximum):
            return 1 + _weight(body) * max(1, minimum, maximum or 0)
        case ByteRange() | Reference() | Nested():
            return 1
        case Hole():
            return 2


def _nullable_rules(network: Network) -> list[bool]:
    """Return for each rule whether it matches the empty text: the least fixed point over epsilons and calls."""
    epsilons: dict[int, list[int]] = {}
    for source, target in network.epsilons:
        epsilons.setdefault(source, []).append(target)
    nullable = [False] * len(network.rule_start)
    reached: set[int] = set()  # states that the start of their rule reaches without a byte
    waiting: dict[int, list[int]] = {}  # rule -> where its reached calls return, for when it turns out to be nullable
    calls: dict[int, list[tuple[int, int]]] = {}
    for source, rule, target in network.calls:
        calls.setdefault(source, []).append((rule, target))
    rule_of_end = {accept: rule for rule, accept in enumerate(network.rule_accept)}
    # However many repetitions are asked for, all of them may be empty: a counting state ends where its body does.
    end_of_start = dict(zip(network.rule_start, network.rule_accept, strict=True))
    todo = [start for start in network.rule_start if start in epsilons or start in calls]
    while todo:
        state = todo.pop()
        if state in reached:
            continue
        reached.add(state)
        todo += epsilons.get(state, ())
        for callee, ret in calls.get(state, ()):
            end = end_of_start[state] if state in network.counting else ret
            if nullable[callee]:
                todo.append(end)
            else:
                waiting.setdefault(callee, []).append(end)
        rule = rule_of_end.get(state, -1)
        if rule >= 0 and not nullable[rule]:
            nullable[rule] = True
            todo += waiting.pop(rule, ())
    return nullable


def _make_calls_consume(network: Network, nullable: list[bool]) -> None:
    """Put an epsilon beside every call of a nullable rule, so that the call itself need not match the empty text."""
    for state, rule, ret in network.calls:
        if not nullable[rule]:
            continue
        if state in network.counting:
            # Missing repetitions may be empty, so one that consumes is enough.
            network.counting[state] = (1, network.counting[state][1])
        else:
            network.epsilons.append((state, ret))


def _table(rows: Collection[tuple[int, ...]], width: int) -> npt.NDArray[np.int32]:
    return np.fromiter(chain.from_iterable(rows), np.int32, width * len(rows)).reshape(-1, width)


@compiled
def _sorted_by(
    rows: npt.NDArray[np.int32], column: int, num_values: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return the rows sorted by a column, and (num_values + 1,) where the rows of each of its values begin."""
    start = np.zeros(num_values + 1, np.int32)
    for i in range(len(rows)):
        start[rows[i, column] + 1] += 1
    for value in range(num_values):
        start[value + 1] += start[value]
    at = start.copy()
    ordered = np.empty_like(rows)
    for i in range(len(rows)):
        place = at[rows[i, column]]
        at[rows[i, column]] += 1
        for j in range(rows.shape[1]):
            ordered[place, j] = rows[i, j]
    return ordered, start


def _flatten(network: Network, order: list[int], start: int, *, accepts_empty: bool) -> CompiledGrammar:
    num_states = network.num_states
    new_number = {rule: number for number, rule in enumerate(order)}
    edges, edge_start = _sorted_by(_sorted_by(_table(network.edges, 4), 1, 256)[0], 0, num_states)
    epsilons, epsilon_start = _sorted_by(_table(network.epsilons, 2), 0, num_states)
    reachable_calls = [(state, new_number[rule], ret) for state, rule, ret in network.calls if rule in new_number]
    calls, call_start = _sorted_by(_table(reachable_calls, 3), 0, num_states)

    is_accepting = np.zeros(num_states, np.uint8)
    is_accepting[network.rule_accept] = 1
    count_minimum = np.full(num_states, -1, np.int32)
    count_maximum = np.full(num_states, -1, np.int32)
    for state, (minimum, maximum) in network.counting.items():
        count_minimum[state], count_maximum[state] = minimum, maximum

    base = np.arange(num_states, dtype=np.int32)
    for state, other in network.bases.items():
        base[state] = other

    tables = Tables(
        edge_start=edge_start,
        edge_low=edges[:, 1].astype(np.uint8),
        edge_high=edges[:, 2].astype(np.uint8),
        edge_target=np.ascontiguousarray(edges[:, 3]),
        epsilon_start=epsilon_start,
        epsilon_target=np.ascontiguousarray(epsilons[:, 1]),
        call_start=call_start,
        call_rule=np.ascontiguousarray(calls[:, 1]),
        call_return=np.ascontiguousarray(calls[:, 2]),
        rule_start=np.array([network.rule_start[rule] for rule in order], np.int32),
        is_lexeme=np.array([rule in network.lexemes for rule in order], np.uint8),
        is_accepting=is_accepting,
        count_minimum=count_minimum,
        count_maximum=count_maximum,
        base=base,
        **distances.unmeasured(num_states, len(calls)),
    )
    return CompiledGrammar.of(tables, new_number[start], accepts_empty=accepts_empty)
