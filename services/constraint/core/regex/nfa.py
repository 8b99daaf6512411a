"""Thompson's automaton of a tree, built from its end, with look-around as conditions on its epsilons.

Two things go beyond the textbook. A `Look` becomes an *assertion*: an epsilon that may be passed only where the look's
own automaton, which lies in the same table, succeeds. And the order of a state's epsilons is the order in which a
backtracking matcher tries them, so that what such a matcher stops at can be read off (`is_ordered`).
"""

from __future__ import annotations

from dataclasses import dataclass

from services.constraint.core.regex import charset
from services.constraint.core.regex.ast import (
    EMPTY,
    Anchor,
    Characters,
    Choice,
    Concatenation,
    Look,
    Node,
    Repetition,
)
from services.constraint.core.regex.charset import Ranges
from services.constraint.core.regex.widths import lengths
from services.rpckit.status import GrammarTooLarge

# States of a nondeterministic automaton that a tree is written out to for a product; about 1 us each.
MAX_NFA_STATES = 20_000

_ANY = Characters(charset.EVERYTHING)
_LINE_FEED = Characters(charset.LINE_FEED)


@dataclass(frozen=True, slots=True)
class Assertion:
    """An epsilon to `target` with the condition that a look succeeds, or (`is_negated`) does not."""

    look: int
    is_negated: bool
    target: int


@dataclass(frozen=True, slots=True)
class LookStates:
    """Where the automaton of a look's body starts and accepts."""

    is_ahead: bool
    start: int
    accept: int


class Nfa:
    """The automaton of one tree, from `start` to `accept`.

    A state has either one edge, or one assertion, or epsilons. `looks` are numbered from the innermost: a look's body
    has only assertions of looks with smaller numbers.

    With `is_ordered`, a time of a loop that reads nothing ends the loop, as in Python's `re`: `(?:|a)*` never takes an
    `a`. For the set of all matches this makes no difference.
    """

    def __init__(self, node: Node, *, is_ordered: bool = False) -> None:
        self.edge: list[tuple[Ranges, int] | None] = []
        self.assertion: list[Assertion | None] = []
        self.epsilons: list[list[int]] = []
        self.looks: list[LookStates] = []
        # The look to whose body a state belongs; None for the tree's own.
        self.look_of: list[int | None] = []
        self._look_numbers: dict[tuple[Node, bool], int] = {}
        self._is_ordered = is_ordered
        self.accept = self._new_state()
        self.start = self._add(node, self.accept, self.accept)

    def _new_state(self) -> int:
        if len(self.edge) >= MAX_NFA_STATES:
            raise GrammarTooLarge(
                f"a pattern written out state by state needs more than {MAX_NFA_STATES} states (limit "
                "max_nfa_states); use smaller counts",
                limit="max_nfa_states",
                value=MAX_NFA_STATES,
            )
        self.edge.append(None)
        self.assertion.append(None)
        self.epsilons.append([])
        self.look_of.append(None)
        return len(self.edge) - 1

    def _add(self, node: Node, still: int, moved: int) -> int:
        """Return a state from which `node` leads to `still` without a character, and to `moved` with some.

        The two differ only inside a loop whose times that read nothing are told from the others.
        """
        match node:
            case Characters(ranges):
                state = self._new_state()
                self.edge[state] = (ranges, moved)
                return state
            case Concatenation(parts):
                for index in range(len(parts) - 1, -1, -1):
                    still, moved = self._add_before(parts[index], still, moved, is_first=index == 0)
                return still
            case Choice(options):
                state = self._new_state()
                self.epsilons[state] = [self._add(option, still, moved) for option in options]
                return state
            case Repetition():
                return self._add_repetition(node, still, moved)
            case Look():
                return self._add_look(node, still)
            case Anchor("start"):
                return self._add_look(Look(_ANY, False, True, node.name, node.position), still)
            case Anchor("end"):
                return self._add_look(Look(_ANY, True, True, node.name, node.position), still)
            case Anchor("last line"):
                end = Look(_ANY, True, True, node.name, node.position)
                body = Concatenation((Repetition(_LINE_FEED, 0, 1), end))
                return self._add_look(Look(body, True, False, node.name, node.position), still)
        raise AssertionError(f"not a node: {node}")

    def _add_before(self, node: Node, still: int, moved: int, *, is_first: bool) -> tuple[int, int]:
        """Put a part before others: return where it starts if no character was read before it, and if some was."""
        start = self._add(node, still, moved)
        return start, start if still == moved or is_first else self._add(node, moved, moved)

    def _add_look(self, look: Look, target: int) -> int:
        key = (look.body, look.is_ahead)
        number = self._look_numbers.get(key)
        if number is None:
            accept = self._new_state()
            start = self._add(look.body, accept, accept)
            number = self._look_numbers[key] = len(self.looks)
            self.looks.append(LookStates(look.is_ahead, start, accept))
            for state in range(accept, len(self.edge)):
                if self.look_of[state] is None:  # else it belongs to an inner look
                    self.look_of[state] = number
        state = self._new_state()
        self.assertion[state] = Assertion(number, look.is_negated, target)
        return state

    def _add_repetition(self, node: Repetition, still: int, moved: int) -> int:
        if node.body == EMPTY:
            return still
        # `again` is where a time that read something leads, `first` where the first optional time begins.
        first = again = moved
        if node.maximum is None:
            first = again = self._new_state()
            self._fork(first, node, moved, again)
        else:
            for _ in range(node.maximum - node.minimum):
                first, again = self._optional_time(node, moved, first), first
        if still == moved:
            still = first
        elif node.maximum != node.minimum:
            still = self._optional_time(node, still, again)
        moved = first
        for index in range(node.minimum - 1, -1, -1):
            before = (still, moved)
            still, moved = self._add_before(node.body, still, moved, is_first=index == 0)
            if (still, moved) == before:
                break  # the body is nothing, however often
        return still

    def _optional_time(self, node: Repetition, skip: int, again: int) -> int:
        state = self._new_state()
        self._fork(state, node, skip, again)
        return state

    def _fork(self, state: int, node: Repetition, skip: int, again: int) -> None:
        """Let `state` try the body, which leads to `again`, or `skip`: the body first unless it is lazy."""
        ends_empty = self._is_ordered and lengths(node.body)[0] == 0
        body = self._add(node.body, skip if ends_empty else again, again)
        self.epsilons[state] = [skip, body] if node.is_lazy else [body, skip]
