"""From a tree without anchors and look-around to a grammar expression.

The direct way, `to_expression`, keeps the tree's shape: counts stay counts, which the core makes cheap whatever they
are. Where several conditions must hold of the same text, `Dfa` builds deterministic automata over classes of code
points, and their product.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

from services.constraint.core.grammar import (
    NOTHING,
    Alternation,
    Automaton,
    Bytes,
    Expression,
    Repeat,
    Sequence,
)
from services.constraint.core.regex import charset, encoding
from services.constraint.core.regex.ast import Characters, Choice, Concatenation, Node, Repetition
from services.constraint.core.regex.charset import Ranges
from services.constraint.core.regex.encoding import ByteClass, Encoding, Rest
from services.constraint.core.regex.nfa import Nfa
from services.rpckit.status import GrammarTooLarge

_State = TypeVar("_State", bound=Hashable)

# States of one deterministic automaton; about 10 us each, and as much again for the bytes.
MAX_DFA_STATES = 5_000


def to_expression(node: Node, encode: Encoding) -> Expression:
    """Return the expression of what the tree matches, each character written by `encode`."""
    match node:
        case Characters(ranges):
            return encoding.characters(ranges, encode)
        case Concatenation(parts):
            return _sequence([to_expression(part, encode) for part in parts])
        case Choice(options):
            return Alternation(tuple(to_expression(option, encode) for option in options))
        case Repetition(body, minimum, maximum):
            return Repeat(to_expression(body, encode), minimum, maximum)
    raise AssertionError(f"an anchor or look-around was left in the tree: {node}")


def _sequence(parts: list[Expression]) -> Expression:
    joined: list[Expression] = []
    for part in parts:
        if isinstance(part, Bytes) and joined and isinstance(joined[-1], Bytes):
            joined[-1] = Bytes(joined[-1].value + part.value)
        else:
            joined.append(part)
    return joined[0] if len(joined) == 1 else Sequence(tuple(joined))


@dataclass(frozen=True, slots=True)
class Dfa:
    """A deterministic automaton over code points; state 0 is the start. Characters without an edge are refused.

    `edges[state]` are disjoint (ranges, target) pairs.
    """

    edges: tuple[tuple[tuple[Ranges, int], ...], ...]
    accepting: frozenset[int]

    def matches(self, text: str) -> bool:
        """Tell whether the whole text is accepted."""
        state = 0
        for char in text:
            state = self.step(state, ord(char))
            if state < 0:
                return False
        return state in self.accepting

    def step(self, state: int, code_point: int) -> int:
        """Return the state behind a character, -1 where it is refused."""
        for ranges, target in self.edges[state]:
            if any(low <= code_point <= high for low, high in ranges):
                return target
        return -1

    def is_empty(self) -> bool:
        """Tell whether no text is accepted."""
        return not self.accepting

    def to_automaton(self, encode: Encoding) -> Expression:
        """Return the automaton over bytes, each character written by `encode`; it is deterministic too."""
        if not self.accepting:
            return NOTHING
        return Automaton(0, tuple(sorted(self.accepting)), tuple(byte_edges(self, encode)))


def byte_edges(dfa: Dfa, encode: Encoding) -> list[tuple[int, int, int, int]]:
    """Return the edges over bytes of the automaton whose first states are those of `dfa`; others are inside characters.

    A state inside a character is told by what may follow there, and by the state of `dfa` that each leads to. No
    character is written as the beginning of another, and bytes of different sequences are equal or disjoint.
    """
    order = [frozenset((encoding.rest(ranges, encode), target) for ranges, target in out) for out in dfa.edges]
    numbers: dict[frozenset[tuple[Rest, int]], int] = {}
    edges: list[tuple[int, int, int, int]] = []
    for state, rests in enumerate(order):
        following: dict[ByteClass, set[tuple[Rest, int]]] = {}
        for rest, target in rests:
            for byte_class, behind in rest.edges:
                following.setdefault(byte_class, set()).add((behind, target))
        for byte_class, after in following.items():
            (behind, number), *_ = after
            if behind.edges:
                key = frozenset(after)
                number = numbers.setdefault(key, len(order))
                if number == len(order):
                    order.append(key)
            edges.extend((state, low, high, number) for low, high in byte_class)
    return edges


def to_dfa(node: Node) -> Dfa:
    """Return the automaton of what the tree matches.

    Raises:
        GrammarTooLarge: beyond MAX_NFA_STATES or MAX_DFA_STATES.
    """
    return _determinise(Nfa(node), stops_early=False)


def to_early_dfa(node: Node) -> Dfa:
    """Return the automaton of the texts of which a backtracking matcher that may stop early takes all.

    It refuses `ab` for `a|ab`, and `/*a*/*/` for a comment that ends lazily: on these the matcher stops before the end.

    Raises:
        GrammarTooLarge: beyond MAX_NFA_STATES or MAX_DFA_STATES.
    """
    return _determinise(Nfa(node, is_ordered=True), stops_early=True)


def _determinise(nfa: Nfa, *, stops_early: bool) -> Dfa:
    """Return the automaton of the texts from start to accept.

    With `stops_early`, whatever a backtracking matcher would try only after a match is cut off, so that the
    automaton accepts the texts on which such a matcher stops at their very end.
    """
    closures: dict[int, tuple[int, ...]] = {}

    def ordered(targets: list[int]) -> tuple[int, ...]:
        reached = tuple(dict.fromkeys(state for target in targets for state in _closure(nfa, target, closures)))
        if not stops_early:
            return tuple(sorted(reached))
        return reached[: reached.index(nfa.accept) + 1] if nfa.accept in reached else reached

    def step(states: tuple[int, ...]) -> list[tuple[Ranges, tuple[int, ...]]]:
        edges = [edge for state in states if (edge := nfa.edge[state]) is not None]
        return [
            (ranges, ordered([edges[index][1] for index in indices]))
            for ranges, indices in partition([ranges for ranges, _ in edges])
        ]

    return explore(ordered([nfa.start]), step, lambda states: nfa.accept in states)


def _closure(nfa: Nfa, state: int, known: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the states with an edge, and the accepting one, that epsilons reach, in order."""
    if state not in known:
        reached: dict[int, None] = {}
        todo = [state]
        while todo:
            at = todo.pop()
            if at not in reached:
                reached[at] = None
                todo.extend(reversed(nfa.epsilons[at]))
        known[state] = tuple(at for at in reached if nfa.edge[at] is not None or at == nfa.accept)
    return known[state]


def with_length(dfa: Dfa, minimum: int, maximum: int | None) -> Dfa:
    """Return the automaton of the texts of `dfa` that have from `minimum` to `maximum` characters (None: no bound)."""
    cap = minimum if maximum is None else maximum

    def step(state: tuple[int, int]) -> list[tuple[Ranges, tuple[int, int]]]:
        at, count = state
        if maximum is not None and count == maximum:
            return []
        return [(ranges, (target, min(count + 1, cap))) for ranges, target in dfa.edges[at]]

    return explore((0, 0), step, lambda state: state[0] in dfa.accepting and state[1] >= minimum)


def intersect(a: Dfa, b: Dfa) -> Dfa:
    """Return the automaton of the texts that both accept."""

    def step(state: tuple[int, int]) -> list[tuple[Ranges, tuple[int, int]]]:
        return [
            (ranges, (s, t))
            for left, s in a.edges[state[0]]
            for right, t in b.edges[state[1]]
            if (ranges := charset.intersect(left, right))
        ]

    return explore((0, 0), step, lambda state: state[0] in a.accepting and state[1] in b.accepting)


def complement(dfa: Dfa) -> Dfa:
    """Return the automaton of the texts that `dfa` refuses."""
    sink = len(dfa.edges)

    def step(state: int) -> list[tuple[Ranges, int]]:
        if state == sink:
            return [(charset.EVERYTHING, sink)]
        out = list(dfa.edges[state])
        rest = charset.complement(charset.normalise(range_ for ranges, _ in out for range_ in ranges))
        return [*out, (rest, sink)] if rest else out

    return explore(0, step, lambda state: state not in dfa.accepting)


def explore(
    start: _State, step: Callable[[_State], list[tuple[Ranges, _State]]], is_accepting: Callable[[_State], bool]
) -> Dfa:
    """Return the automaton of the states that `start` reaches and that reach an accepting one."""
    return explore_states(start, step, is_accepting)[0]


def too_many_states() -> GrammarTooLarge:
    """Return the error of an automaton that grows beyond MAX_DFA_STATES."""
    return GrammarTooLarge(
        "the automaton of a pattern, or of patterns and lengths together, needs more "
        f"than {MAX_DFA_STATES} states "
        "(limit max_dfa_states); ask for less of the same text",
        limit="max_dfa_states",
        value=MAX_DFA_STATES,
    )


def explore_states(
    start: _State, step: Callable[[_State], list[tuple[Ranges, _State]]], is_accepting: Callable[[_State], bool]
) -> tuple[Dfa, list[_State]]:
    """Return the automaton as `explore` does, and what each of its states stands for."""
    numbers = {start: 0}
    order = [start]
    edges: list[list[tuple[Ranges, int]]] = []
    for state in order:
        by_target: dict[int, Ranges] = {}
        for ranges, target in step(state):
            number = numbers.get(target)
            if number is None:
                if len(order) >= MAX_DFA_STATES:
                    raise too_many_states()
                number = numbers[target] = len(order)
                order.append(target)
            by_target[number] = charset.normalise((*by_target[number], *ranges)) if number in by_target else ranges
        edges.append([(ranges, number) for number, ranges in by_target.items()])
    accepting = {number for state, number in numbers.items() if is_accepting(state)}
    live = _reaching(edges, accepting)
    if 0 not in live:
        return Dfa(((),), frozenset()), [start]
    kept = {old: new for new, old in enumerate(sorted(live))}
    dfa = Dfa(
        tuple(tuple((ranges, kept[target]) for ranges, target in edges[old] if target in kept) for old in kept),
        frozenset(kept[state] for state in accepting),
    )
    return dfa, [order[old] for old in kept]


def _reaching(edges: list[list[tuple[Ranges, int]]], accepting: set[int]) -> set[int]:
    sources: dict[int, list[int]] = {}
    for source, out in enumerate(edges):
        for _, target in out:
            sources.setdefault(target, []).append(source)
    live, todo = set(accepting), list(accepting)
    while todo:
        for source in sources.get(todo.pop(), ()):
            if source not in live:
                live.add(source)
                todo.append(source)
    return live


def partition(sets: list[Ranges]) -> list[tuple[Ranges, tuple[int, ...]]]:
    """Cut overlapping sets into disjoint ones, each with the indices of all sets that contain it."""
    if len(sets) == 1:
        return [(sets[0], (0,))] if sets[0] else []
    events: dict[int, list[tuple[int, bool]]] = {}
    for index, ranges in enumerate(sets):
        for low, high in ranges:
            events.setdefault(low, []).append((index, True))
            events.setdefault(high + 1, []).append((index, False))
    inside: set[int] = set()
    pieces: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    start = 0
    for point in sorted(events):
        if inside and start < point:
            pieces.setdefault(tuple(sorted(inside)), []).append((start, point - 1))
        for index, begins in events[point]:
            if begins:
                inside.add(index)
            else:
                inside.discard(index)
        # A set's ranges do not touch, but one may end where another begins: enter after leaving.
        inside.update(index for index, begins in events[point] if begins)
        start = point
    return [(charset.normalise(ranges), indices) for indices, ranges in pieces.items()]
