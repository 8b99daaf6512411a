"""From a tree without anchors to a grammar expression.

The direct way, `to_expression`, keeps the tree's shape: counts stay counts, which the core makes cheap whatever they are. Where several conditions must
hold of the same text, `Dfa` builds deterministic automata over classes of code points, and their product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.constraint.core.grammar import NOTHING, Alternation, Automaton, Bytes, Expression, Repeat, Sequence
from services.constraint.core.regex import charset, encoding
from services.constraint.core.regex.ast import Characters, Choice, Concatenation, Node, Repetition
from services.constraint.core.regex.charset import Ranges
from services.constraint.core.regex.encoding import Encoding
from services.rpckit.status import GrammarTooLarge

# States of a nondeterministic automaton that a tree is written out to for a product; about 1 us each.
MAX_NFA_STATES = 20_000
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
    raise AssertionError(f"an anchor was left in the tree: {node}")


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
            code_point = ord(char)
            for ranges, target in self.edges[state]:
                if any(low <= code_point <= high for low, high in ranges):
                    state = target
                    break
            else:
                return False
        return state in self.accepting

    def is_empty(self) -> bool:
        """Tell whether no text is accepted."""
        return not self.accepting

    def to_automaton(self, encode: Encoding) -> Expression:
        """Return the automaton over bytes, each character written by `encode`."""
        if not self.accepting:
            return NOTHING
        num_states = len(self.edges)
        edges: list[tuple[int, int, int, int]] = []
        for source, out in enumerate(self.edges):
            for ranges, target in out:
                piece = encoding.characters(ranges, encode)
                if isinstance(piece, Automaton):
                    offset = num_states - 2
                    # A piece has the states 0 (start) and 1 (end); the others are new.
                    number = {0: source, 1: target}
                    for a, low, high, b in piece.edges:
                        edges.append((number.get(a, a + offset), low, high, number.get(b, b + offset)))
                    num_states = max(num_states, offset + 1 + max(max(a, b) for a, _, _, b in piece.edges))
                else:
                    num_states = _add_bytes(piece, source, target, edges, num_states)
        return Automaton(0, tuple(sorted(self.accepting)), tuple(edges))


def _add_bytes(
    piece: Expression, source: int, target: int, edges: list[tuple[int, int, int, int]], num_states: int
) -> int:
    if isinstance(piece, Bytes):
        for byte in piece.value[:-1]:
            edges.append((source, byte, byte, num_states))
            source = num_states
            num_states += 1
        edges.append((source, piece.value[-1], piece.value[-1], target))
    elif not isinstance(piece, Alternation):
        assert not isinstance(piece, Automaton | Sequence | Repeat)
        edges.append((source, piece.low, piece.high, target))  # type: ignore[union-attr]
    return num_states


def to_dfa(node: Node) -> Dfa:
    """Return the automaton of what the tree matches.

    Raises:
        GrammarTooLarge: beyond MAX_NFA_STATES or MAX_DFA_STATES.
    """
    nfa = _Nfa()
    start, accept = nfa.new_state(), nfa.new_state()
    nfa.add(node, start, accept)
    return nfa.determinise(start, accept)


def with_length(dfa: Dfa, minimum: int, maximum: int | None) -> Dfa:
    """Return the automaton of the texts of `dfa` that have from `minimum` to `maximum` characters (None: no bound)."""
    cap = minimum if maximum is None else maximum

    def step(state: tuple[int, int]) -> list[tuple[Ranges, tuple[int, int]]]:
        at, count = state
        if maximum is not None and count == maximum:
            return []
        return [(ranges, (target, min(count + 1, cap))) for ranges, target in dfa.edges[at]]

    return _explore((0, 0), step, lambda state: state[0] in dfa.accepting and state[1] >= minimum)


def intersect(a: Dfa, b: Dfa) -> Dfa:
    """Return the automaton of the texts that both accept."""

    def step(state: tuple[int, int]) -> list[tuple[Ranges, tuple[int, int]]]:
        return [
            (ranges, (s, t))
            for left, s in a.edges[state[0]]
            for right, t in b.edges[state[1]]
            if (ranges := charset.intersect(left, right))
        ]

    return _explore((0, 0), step, lambda state: state[0] in a.accepting and state[1] in b.accepting)


def complement(dfa: Dfa) -> Dfa:
    """Return the automaton of the texts that `dfa` refuses."""
    sink = len(dfa.edges)

    def step(state: int) -> list[tuple[Ranges, int]]:
        if state == sink:
            return [(charset.EVERYTHING, sink)]
        out = list(dfa.edges[state])
        rest = charset.complement(charset.normalise(range_ for ranges, _ in out for range_ in ranges))
        return [*out, (rest, sink)] if rest else out

    return _explore(0, step, lambda state: state not in dfa.accepting)


def _explore(start, step, is_accepting) -> Dfa:  # type: ignore[no-untyped-def]
    """Number the states that are reached from `start`, and drop those from which no accepting one is."""
    numbers = {start: 0}
    order = [start]
    edges: list[list[tuple[Ranges, int]]] = []
    for state in order:
        by_target: dict[int, Ranges] = {}
        for ranges, target in step(state):
            number = numbers.get(target)
            if number is None:
                if len(order) >= MAX_DFA_STATES:
                    raise GrammarTooLarge(
                        f"the automaton of a pattern, or of patterns and lengths together, needs more than {MAX_DFA_STATES} states "
                        "(limit max_dfa_states); ask for less of the same text",
                        limit="max_dfa_states",
                        value=MAX_DFA_STATES,
                    )
                number = numbers[target] = len(order)
                order.append(target)
            by_target[number] = charset.normalise((*by_target[number], *ranges)) if number in by_target else ranges
        edges.append([(ranges, number) for number, ranges in by_target.items()])
    accepting = {number for state, number in numbers.items() if is_accepting(state)}
    live = _reaching(edges, accepting)
    if 0 not in live:
        return Dfa(((),), frozenset())
    kept = {old: new for new, old in enumerate(sorted(live))}
    return Dfa(
        tuple(tuple((ranges, kept[target]) for ranges, target in edges[old] if target in kept) for old in kept),
        frozenset(kept[state] for state in accepting),
    )


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


class _Nfa:
    def __init__(self) -> None:
        self._edges: list[list[tuple[Ranges, int]]] = []
        self._epsilons: list[list[int]] = []

    def new_state(self) -> int:
        if len(self._edges) >= MAX_NFA_STATES:
            raise GrammarTooLarge(
                f"a pattern written out for a product needs more than {MAX_NFA_STATES} states (limit max_nfa_states); use smaller counts",
                limit="max_nfa_states",
                value=MAX_NFA_STATES,
            )
        self._edges.append([])
        self._epsilons.append([])
        return len(self._edges) - 1

    def add(self, node: Node, source: int, target: int) -> None:
        match node:
            case Characters(ranges):
                self._edges[source].append((ranges, target))
            case Concatenation(parts):
                for part in parts:
                    middle = self.new_state()
                    self.add(part, source, middle)
                    source = middle
                self._epsilons[source].append(target)
            case Choice(options):
                for option in options:
                    self.add(option, source, target)
            case Repetition(body, minimum, maximum):
                self._add_repetition(body, minimum, maximum, source, target)
            case _:
                raise AssertionError(f"an anchor was left in the tree: {node}")

    def _add_repetition(self, body: Node, minimum: int, maximum: int | None, source: int, target: int) -> None:
        for _ in range(minimum):
            middle = self.new_state()
            self.add(body, source, middle)
            source = middle
        if maximum is None:
            loop = self.new_state()
            self._epsilons[source].append(loop)
            self.add(body, loop, loop)
            self._epsilons[loop].append(target)
            return
        for _ in range(maximum - minimum):
            self._epsilons[source].append(target)
            middle = self.new_state()
            self.add(body, source, middle)
            source = middle
        self._epsilons[source].append(target)

    def determinise(self, start: int, accept: int) -> Dfa:
        closures: dict[int, frozenset[int]] = {}

        def closure(state: int) -> frozenset[int]:
            known = closures.get(state)
            if known is None:
                reached, todo = {state}, [state]
                while todo:
                    for target in self._epsilons[todo.pop()]:
                        if target not in reached:
                            reached.add(target)
                            todo.append(target)
                # Only states with edges, and the accepting one, tell sets apart.
                known = closures[state] = frozenset(s for s in reached if self._edges[s] or s == accept)
            return known

        def step(states: frozenset[int]) -> list[tuple[Ranges, frozenset[int]]]:
            out = [edge for state in states for edge in self._edges[state]]
            return [
                (ranges, frozenset().union(*(closure(target) for target in targets)))
                for ranges, targets in _partition(out)
            ]

        is_accepting: Callable[[frozenset[int]], bool] = lambda states: accept in states  # noqa: E731
        return _explore(closure(start), step, is_accepting)


def _partition(out: list[tuple[Ranges, int]]) -> list[tuple[Ranges, frozenset[int]]]:
    """Cut overlapping edges into disjoint sets, each with all its targets."""
    if len(out) == 1:
        return [(out[0][0], frozenset((out[0][1],)))] if out[0][0] else []
    events: dict[int, list[tuple[int, int]]] = {}
    for ranges, target in out:
        for low, high in ranges:
            events.setdefault(low, []).append((target, 1))
            events.setdefault(high + 1, []).append((target, -1))
    counts: dict[int, int] = {}
    pieces: dict[frozenset[int], list[tuple[int, int]]] = {}
    start = 0
    for point in sorted(events):
        targets = frozenset(target for target, count in counts.items() if count)
        if targets and start < point:
            pieces.setdefault(targets, []).append((start, point - 1))
        for target, change in events[point]:
            counts[target] = counts.get(target, 0) + change
        start = point
    return [(charset.normalise(ranges), targets) for targets, ranges in pieces.items()]
