"""Membership by the definition of a grammar: the oracle of the constraint core. Slow, and shares no code with it."""

from __future__ import annotations

from services.constraint.core.grammar import (
    Alternation,
    Automaton,
    ByteRange,
    Bytes,
    Expression,
    Grammar,
    Literals,
    Reference,
    Repeat,
    Sequence,
)


def matches(grammar: Grammar, text: bytes) -> bool:
    """Tell whether the grammar derives `text`."""
    return len(text) in _Derivation(grammar, text).ends(Reference(grammar.start), 0)


class _Derivation:
    """Where a match that starts at i may end; of rules, by iteration from nothing to the least fixed point."""

    def __init__(self, grammar: Grammar, text: bytes) -> None:
        self.grammar = grammar
        self.text = text
        self.known: dict[tuple[str, int], frozenset[int]] = {}
        while True:
            before = dict(self.known)
            self.ends(Reference(grammar.start), 0)
            for name, i in list(self.known):
                self.known[name, i] |= self.ends(grammar.rules[name], i)
            if self.known == before:
                return

    def ends(self, expression: Expression, i: int) -> frozenset[int]:
        text = self.text
        match expression:
            case Bytes(value):
                return frozenset({i + len(value)} if text[i : i + len(value)] == value else ())
            case ByteRange(low, high):
                return frozenset({i + 1} if i < len(text) and low <= text[i] <= high else ())
            case Literals(values):
                return frozenset(i + len(value) for value in values if text[i : i + len(value)] == value)
            case Sequence(parts):
                at = frozenset({i})
                for part in parts:
                    at = self._from_all(part, at)
                return at
            case Alternation(options):
                return frozenset().union(*(self.ends(option, i) for option in options))
            case Repeat(body, minimum, maximum):
                return self._repeat(body, minimum, maximum, i)
            case Reference(rule):
                return self.known.setdefault((rule, i), frozenset())
            case Automaton():
                return self._automaton(expression, i)

    def _from_all(self, expression: Expression, starts: frozenset[int]) -> frozenset[int]:
        return frozenset().union(*(self.ends(expression, start) for start in starts))

    def _repeat(self, body: Expression, minimum: int, maximum: int | None, i: int) -> frozenset[int]:
        at = frozenset({i})
        result: frozenset[int] = frozenset()
        # More repetitions than bytes can only repeat the empty text.
        for count in range(minimum + len(self.text) + 2):
            if count >= minimum and (maximum is None or count <= maximum):
                result |= at
            at = self._from_all(body, at)
            if not at:
                break
        return result

    def _automaton(self, automaton: Automaton, i: int) -> frozenset[int]:
        def closed(states: set[int]) -> set[int]:
            todo = list(states)
            while todo:
                state = todo.pop()
                new = {target for source, target in automaton.epsilons if source == state} - states
                states |= new
                todo += new
            return states

        states = closed({automaton.start})
        result: set[int] = set()
        while states:
            if states & set(automaton.accepting):
                result.add(i)
            if i == len(self.text):
                break
            byte = self.text[i]
            states = closed({b for a, low, high, b in automaton.edges if a in states and low <= byte <= high})
            i += 1
        return frozenset(result)
