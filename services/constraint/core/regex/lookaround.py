"""From a tree with look-around to the deterministic automaton of its texts.

The text is read once, from left to right. What a look-behind asks is known when it is asked: its automaton, started
anew at every place, runs alongside. What a look-ahead asks is a *promise* about the rest of the text: the states of
its automaton, read on with every character, until one accepts (the promise is kept) or none is left (it is broken).

So each state of the pattern's automaton that the text so far can be in is reached under a *condition*, a Boolean
function of promises: `(?=x)` adds "and x's promise", `(?!x)` "and not x's". This is how an alternating automaton
(A. K. Chandra, D. C. Kozen, L. J. Stockmeyer, "Alternation", JACM 28(1), 1981) becomes a deterministic one; the
conditions are kept canonical (`formulas.py`), so there are finitely many. Look-around is nested from the inside
out, as in A. Barrière, C. Pit-Claudel, "Linear Matching of JavaScript Regular Expressions", PLDI 2024.

A state of the result is a pair: the pattern's states with their conditions, and the look-behinds' states with theirs
(a look-behind may have look-aheads inside). At the end of the text every promise still open is broken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from services.constraint.core.regex import anchors, automaton, charset
from services.constraint.core.regex.ast import Node, concatenation
from services.constraint.core.regex.automaton import Dfa, explore, explore_states, partition
from services.constraint.core.regex.charset import Ranges
from services.constraint.core.regex.formulas import FALSE, TRUE, Formulas
from services.constraint.core.regex.minimise import minimise
from services.constraint.core.regex.nfa import Nfa

# Threads of all closures that are remembered; about 100 bytes each.
MAX_REMEMBERED_THREADS = 500_000

# Automaton states, each with the condition under which it is reached.
Threads: TypeAlias = tuple[tuple[int, int], ...]
_State: TypeAlias = tuple[Threads, Threads]
# A state, and a condition that must turn out to be true.
_Waiting: TypeAlias = tuple[Threads, Threads, int]


def full_match(node: Node) -> Dfa:
    """Return the automaton of the texts that the tree matches as a whole.

    Raises:
        GrammarTooLarge: beyond MAX_NFA_STATES, MAX_DFA_STATES, MAX_FORMULA_NODES or MAX_FORMULA_DEPTH.
    """
    return minimise(_Determiniser(Nfa(node)).run())


def search(node: Node) -> Dfa:
    """Return the automaton of the texts in which the tree matches somewhere."""
    return minimise(_Determiniser(Nfa(concatenation([anchors.ANYTHING, node])), is_prefix=True).run())


def early_match(node: Node) -> Dfa:
    """Return the automaton of the texts of which a backtracking matcher that may stop early takes all."""
    return minimise(_Determiniser(Nfa(node, is_ordered=True), stops_early=True).run())


BROKEN: Final = -1
"""The target of an edge that must not be taken."""


@dataclass(frozen=True, slots=True)
class Pending:
    """What a match asks of the text behind it, a state of it.

    `edges` lead on, to BROKEN where the text must not go; with other characters nothing more is asked. The text may
    end here only where `may_end` says so.
    """

    edges: tuple[tuple[Ranges, int], ...]
    may_end: bool


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """What a backtracking matcher takes from the start of a text, with look-ahead beyond what it takes.

    It may stop at the end of each text that `dfa` accepts, and does where the rest of the text fits the state of
    `pending` that `behind` has for the accepting state; where it has none, any rest will do. That the matcher takes
    nothing at all is the state `at_start` (None: it never takes anything).
    """

    dfa: Dfa
    pending: tuple[Pending, ...]
    at_start: int | None
    behind: dict[int, int]


def prefix_match(node: Node) -> PrefixMatch:
    """Return what a backtracking matcher takes.

    Raises:
        GrammarTooLarge: as `full_match`.
    """
    return _Determiniser(Nfa(node, is_ordered=True), stops_early=True).run_prefix()


def plain_prefix_match(dfa: Dfa) -> PrefixMatch:
    """Return the same for a tree that looks at nothing but what it takes; `dfa` is of `early_match`."""
    pending = tuple(
        Pending(tuple((ranges, BROKEN if to in dfa.accepting else to) for ranges, to in edges), may_end=True)
        for edges in dfa.edges
    )
    behind = {state: state for state in dfa.accepting if dfa.edges[state]}
    return PrefixMatch(dfa, pending, 0 if dfa.accepting else None, behind)


@dataclass(slots=True)
class _Place:
    """A place between two characters: what each look answers there, in the order of their numbers.

    `read` are the classes of the character before it. `contexts[number]` stands for the answers of all looks before
    this one: where it is the same, so are the answers of this one's own automaton. `known` is the memory of the
    conditions that were carried over the character.
    """

    read: int
    answers: list[int] = field(default_factory=list)
    contexts: list[int] = field(default_factory=lambda: [0])
    known: dict[int, int] = field(default_factory=dict)


class _Determiniser:
    """The construction for one automaton.

    With `is_prefix` a text is taken as soon as a part of it from its start is matched. With `stops_early` threads are
    in the order of a backtracking matcher, and what is behind a thread that accepts has the condition that it does not.
    """

    def __init__(self, nfa: Nfa, *, is_prefix: bool = False, stops_early: bool = False) -> None:
        self._nfa = nfa
        self._is_prefix = is_prefix
        self._stops_early = stops_early
        self._formulas = Formulas()
        # A promise is a look-ahead and the states of its automaton, one of which must accept; a variable each.
        self._promises: list[tuple[int, frozenset[int]]] = []
        self._promise_numbers: dict[tuple[int, frozenset[int]], int] = {}
        self._answers: dict[tuple[int, frozenset[int], int], int] = {}
        self._contexts: dict[tuple[int, int], int] = {}
        self._closures: dict[tuple[int, int], dict[int, int]] = {}
        self._num_remembered = 0
        # Characters that no edge tells apart are a class; a set of classes is a bit mask.
        sets = list(dict.fromkeys(edge[0] for edge in nfa.edge if edge is not None))
        self._classes: list[Ranges] = []
        mask_of = dict.fromkeys(sets, 0)
        for class_, indices in partition([*sets, charset.EVERYTHING]):
            for index in indices[:-1]:
                mask_of[sets[index]] |= 1 << len(self._classes)
            self._classes.append(class_)
        self._masks = [0 if edge is None else mask_of[edge[0]] for edge in nfa.edge]
        self._ranges: dict[int, Ranges] = {}

    def run(self) -> Dfa:
        """Return the automaton, not minimised."""
        place, behinds = self._enter((), 0)
        return explore((self._settle([(self._nfa.start, TRUE)], place), behinds), self._step, self._is_accepting)

    def run_prefix(self) -> PrefixMatch:
        """Return what the matcher takes; it `stops_early`."""
        place, behinds = self._enter((), 0)
        first = (self._settle([(self._nfa.start, TRUE)], place), behinds)
        dfa, states = explore_states(first, self._step, lambda state: self._accepts_if(state[0]) != FALSE)
        ends = {number: (*states[number], self._accepts_if(states[number][0])) for number in dfa.accepting}
        order = list(dict.fromkeys(((*first, TRUE), *ends.values())))
        numbers = {state: number for number, state in enumerate(order)}
        edges = []
        for waiting in order:  # grows
            out = []
            for read, target in self._step_pending(waiting):
                if target is not None and target not in numbers:
                    if len(order) >= automaton.MAX_DFA_STATES:
                        raise automaton.too_many_states()
                    numbers[target] = len(order)
                    order.append(target)
                out.append((self._characters(read), BROKEN if target is None else numbers[target]))
            edges.append(out)
        may_end = [self._formulas.is_true_of_nothing(waiting[2]) for waiting in order]
        # What can never be broken is not asked.
        sources: dict[int, list[int]] = {}
        for number, out in enumerate(edges):
            for _, to in out:
                sources.setdefault(to, []).append(number)
        asks: set[int] = set()
        todo = [*sources.get(BROKEN, ()), *(number for number, is_end in enumerate(may_end) if not is_end)]
        while todo:
            number = todo.pop()
            if number not in asks:
                asks.add(number)
                todo += sources.get(number, ())
        pending = tuple(
            Pending(tuple((ranges, to) for ranges, to in out if to == BROKEN or to in asks), is_end)
            for out, is_end in zip(edges, may_end, strict=True)
        )
        behind = {state: numbers[end] for state, end in ends.items() if numbers[end] in asks}
        return PrefixMatch(dfa, pending, 0 if 0 in asks else None, behind)

    def _step_pending(self, waiting: _Waiting) -> list[tuple[int, _Waiting | None]]:
        """Return where characters lead, None where they break what is asked; others, to nothing more, are left out."""
        threads, behinds, asked = waiting
        reads: dict[_Waiting | None, int] = {}
        for read in self._told_apart(((*threads, (self._nfa.accept, asked)), behinds)):
            place, behinds_there = self._enter(behinds, read)
            there = self._settle(self._carry(threads, place), place)
            held = self._formulas.both(self._carried(asked, place), self._formulas.negate(self._accepts_if(there)))
            target = None if held == FALSE else (there, behinds_there, held)
            if target is None or there or held != TRUE:
                reads[target] = reads.get(target, 0) | read
        return [(read, target) for target, read in reads.items()]

    def _accepts_if(self, threads: Threads) -> int:
        """Return the condition under which the matcher accepts at a place."""
        condition = FALSE
        for at, held in threads:
            if at == self._nfa.accept:
                condition = self._formulas.either(condition, held)
        return condition

    def _is_accepting(self, state: _State) -> bool:
        is_true = self._formulas.is_true_of_nothing
        return any(at == self._nfa.accept and is_true(condition) for at, condition in state[0])

    def _step(self, state: _State) -> list[tuple[Ranges, _State]]:
        threads, behinds = state
        done = ((self._nfa.accept, TRUE),)
        if self._is_prefix and threads == done:
            return [(charset.EVERYTHING, state)]
        reads: dict[_State, int] = {}
        for read in self._told_apart(state):
            place, behinds_there = self._enter(behinds, read)
            arrivals = self._carry(threads, place)
            if self._is_prefix:
                arrivals += [(at, self._carried(held, place)) for at, held in threads if at == self._nfa.accept]
            there = self._settle(arrivals, place)
            if self._is_prefix and done[0] in there:
                there, behinds_there = done, ()
            if there:
                reads[there, behinds_there] = reads.get((there, behinds_there), 0) | read
        return [(self._characters(read), target) for target, read in reads.items()]

    # Characters

    def _told_apart(self, state: _State) -> list[int]:
        """Cut all characters into sets of classes such that what follows is the same for all of a set."""
        threads, behinds = state
        masks = {self._masks[at] for at, _ in (*threads, *behinds)}
        for promise in self._formulas.variables(condition for _, condition in (*threads, *behinds)):
            masks.update(self._masks[at] for at in self._promises[promise][1])
        pieces = [(1 << len(self._classes)) - 1]
        for mask in masks:
            pieces = [part for piece in pieces for part in (piece & mask, piece & ~mask) if part]
        return sorted(pieces)

    def _characters(self, mask: int) -> Ranges:
        if mask not in self._ranges:
            self._ranges[mask] = charset.normalise(
                range_ for index, class_ in enumerate(self._classes) if mask >> index & 1 for range_ in class_
            )
        return self._ranges[mask]

    # Places

    def _enter(self, behinds: Threads, read: int) -> tuple[_Place, Threads]:
        """Return the place behind a character of these classes, and the look-behinds' threads there."""
        place = _Place(read)
        left: list[tuple[int, int]] = []
        for number, look in enumerate(self._nfa.looks):
            if look.is_ahead:
                answer = self._answer(number, frozenset((look.start,)), place)
            else:
                own = tuple(thread for thread in behinds if self._nfa.look_of[thread[0]] == number)
                threads = self._reach([(look.start, TRUE), *self._carry(own, place)], place)
                answer = threads.pop(look.accept, FALSE)
                left.extend(threads.items())
            place.answers.append(answer)
            key = (place.contexts[-1], answer)
            place.contexts.append(self._contexts.setdefault(key, len(self._contexts) + 1))
        return place, tuple(sorted(left))

    def _answer(self, number: int, states: frozenset[int], place: _Place) -> int:
        """Return the condition under which a look-ahead's automaton accepts a part of the rest from some state."""
        key = (number, states, place.contexts[number])
        answer = self._answers.get(key)
        if answer is None:
            either, both = self._formulas.either, self._formulas.both
            threads = self._reach([(state, TRUE) for state in sorted(states)], place)
            answer = threads.pop(self._nfa.looks[number].accept, FALSE)
            together: dict[int, list[int]] = {}
            for at, condition in threads.items():
                together.setdefault(condition, []).append(at)
            for condition, ats in together.items():
                answer = either(answer, both(condition, self._promise(number, frozenset(ats))))
            self._answers[key] = answer
        return answer

    def _promise(self, number: int, states: frozenset[int]) -> int:
        key = (number, states)
        if key not in self._promise_numbers:
            self._promise_numbers[key] = len(self._promises)
            self._promises.append(key)
        return self._formulas.variable(self._promise_numbers[key])

    # Threads

    def _carry(self, threads: Threads, place: _Place) -> list[tuple[int, int]]:
        """Return the threads behind the character before a place; those that do not read it are gone."""
        return [
            (edge[1], self._carried(condition, place))
            for at, condition in threads
            if self._masks[at] & place.read and (edge := self._nfa.edge[at]) is not None
        ]

    def _carried(self, condition: int, place: _Place) -> int:
        """Return what a condition before the character asks of the text behind it."""

        def value(promise: int) -> int:
            number, states = self._promises[promise]
            moved = frozenset(edge[1] for at in states if self._masks[at] & place.read and (edge := self._nfa.edge[at]))
            return self._answer(number, moved, place)

        return self._formulas.substitute(condition, value, place.known)

    def _settle(self, arrivals: list[tuple[int, int]], place: _Place) -> Threads:
        """Return the pattern's own threads at a place."""
        if not self._stops_early:
            return tuple(sorted(self._reach(arrivals, place).items()))
        result = []
        goes_on = TRUE
        for at, condition in self._close(arrivals, place):
            condition = self._formulas.both(condition, goes_on)
            if condition != FALSE:
                result.append((at, condition))
            if at == self._nfa.accept:
                goes_on = self._formulas.both(goes_on, self._formulas.negate(condition))
        return tuple(result)

    def _reach(self, arrivals: list[tuple[int, int]], place: _Place) -> dict[int, int]:
        """Return the states that read a character or accept, each with the condition under which it is reached."""
        both, either = self._formulas.both, self._formulas.either
        merged: dict[int, int] = {}
        for at, condition in arrivals:
            for target, more in self._closure(at, place).items():
                held = both(condition, more)
                if held != FALSE:
                    merged[target] = either(merged[target], held) if target in merged else held
        return merged

    def _closure(self, at: int, place: _Place) -> dict[int, int]:
        """Return what `_reach` finds from one state."""
        key = (at, place.contexts[-1])
        closure = self._closures.get(key)
        if closure is None:
            closure = {}
            for target, condition in self._close([(at, TRUE)], place):
                closure[target] = self._formulas.either(closure.get(target, FALSE), condition)
            self._num_remembered += 1 + len(closure)
            if self._num_remembered > MAX_REMEMBERED_THREADS:
                self._closures.clear()
                self._num_remembered = 0
            self._closures[key] = closure
        return closure

    def _close(self, arrivals: list[tuple[int, int]], place: _Place) -> list[tuple[int, int]]:
        """Follow epsilons and assertions to states that read a character or accept, in the order of trying.

        A state that is reached again counts only where it was not before.
        """
        both, either, negate = self._formulas.both, self._formulas.either, self._formulas.negate
        seen: dict[int, int] = {}
        reached: list[tuple[int, int]] = []
        todo = arrivals[::-1]
        while todo:
            at, condition = todo.pop()
            before = seen.get(at, FALSE)
            if before != FALSE:
                condition = both(condition, negate(before))
            if condition == FALSE:
                continue
            seen[at] = condition if before == FALSE else either(before, condition)
            if (assertion := self._nfa.assertion[at]) is not None:
                answer = place.answers[assertion.look]
                if assertion.is_negated:
                    answer = negate(answer)
                todo.append((assertion.target, both(condition, answer)))
            elif self._nfa.epsilons[at]:
                todo.extend((target, condition) for target in reversed(self._nfa.epsilons[at]))
            else:
                reached.append((at, condition))
        return reached
