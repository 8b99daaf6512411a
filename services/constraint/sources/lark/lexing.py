"""Where a token ends: the conditions that a lexer puts on the text behind it.

A lexer takes a terminal's match at a place and never looks back. So a token ends somewhere only if what follows does
not make its match go on, and is what the terminal looks ahead to; and a terminal is taken only if none that the lexer
tries before it matches there. All are conditions on text that is still to come (`Pending`): *however it goes on, none
may be broken*. The terminals, each with the state of what it asks, are the `Watch`. It is carried through the text from
token to token, each character moves it on, a terminal that asks nothing more is off it, and where one is broken the
text was cut in the wrong place. At the end of the text each says whether it may end there.

Leftmost-first matching makes this exact for every regex, not only for those whose match is the longest: see
`Terminal.dfa`. The idea is that of the lookahead automata of maximal munch tokenisation (T. Reps, "Maximal-munch
tokenization in linear time", TOPLAS 20(2), 1998), run forwards as part of the state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from services.constraint.core.grammar import Automaton, Expression
from services.constraint.core.regex import charset, encoding
from services.constraint.core.regex.automaton import Dfa, byte_edges, explore_states, partition
from services.constraint.core.regex.charset import Ranges
from services.constraint.core.regex.lookaround import BROKEN, Pending
from services.constraint.sources.lark.terminals import Terminal, union

Watch: TypeAlias = frozenset[tuple[Terminal, int]]
"""Terminals with states of what they ask (`PrefixMatch.pending`); none may be broken from here on."""

NOTHING: Watch = frozenset()


@dataclass(frozen=True, slots=True)
class Route:
    """One way in which a lexer comes to a token of some terminal.

    `scanned` is what it matches, where none of `rivals` matches. The text of the match is then looked up among `names`,
    terminals of one text such as the keywords that are also names: the first of them that has the text is the token's
    terminal, else `scanned` itself. The route is that to `target`. `is_greedy` tells that a match is taken as long as
    it is, not any beginning of it that is a match too.
    """

    scanned: Terminal
    target: Terminal
    rivals: frozenset[Terminal] = frozenset()
    names: tuple[Terminal, ...] = ()
    is_greedy: bool = True


@dataclass(frozen=True, slots=True)
class Lexed:
    """The texts of a route as an automaton, and its accepting states by what is watched behind them.

    `bases` are (state, another one that goes on in the same way but for the names).
    """

    dfa: Dfa
    exits: tuple[tuple[Watch, frozenset[int]], ...]
    bases: tuple[tuple[int, int], ...] = ()

    def expression(self, watch: Watch) -> Expression:
        """Return the texts that leave this to be watched, as an expression over bytes."""
        (accepting,) = (states for behind, states in self.exits if behind == watch)
        edges = tuple(byte_edges(self.dfa, encoding.utf8))
        return Automaton(0, tuple(sorted(accepting)), edges, bases=self.bases)


def lex(route: Route, watch: Watch) -> Lexed:
    """Return the texts of one token where `watch` stands before it.

    Raises:
        GrammarTooLarge: the terminals' automata together have too many states.
    """
    match = route.scanned.match
    dfa = match.dfa
    if not (route.is_greedy or watch):
        return Lexed(dfa, ((NOTHING, dfa.accepting),) if dfa.accepting else ())
    product, states = explore_states(
        _State(0, frozenset((name, 0) for name in route.names), watch | _never(route.rivals)),
        lambda state: _step(route, state),
        lambda state: state.at in dfa.accepting and _terminal(route, state) is route.target,
    )
    exits: dict[Watch, set[int]] = {}
    for number in product.accepting:
        state = states[number]
        behind = state.watch
        if route.is_greedy and state.at in match.behind:
            behind |= {(route.scanned, match.behind[state.at])}
        exits.setdefault(behind, set()).add(number)
    numbers = {state: number for number, state in enumerate(states)}
    plain = [(number, numbers.get(_State(state.at, frozenset(), state.watch))) for state, number in numbers.items()]
    return Lexed(
        product,
        tuple((behind, frozenset(ends)) for behind, ends in exits.items()),
        tuple((number, base) for number, base in plain if base is not None and base != number),
    )


@dataclass(frozen=True, slots=True)
class _State:
    """Inside a token: the state of the match, of the names that it can still be, and what is watched."""

    at: int
    names: frozenset[tuple[Terminal, int]]
    watch: Watch


def _terminal(route: Route, state: _State) -> Terminal:
    matched = {name for name, at in state.names if at in name.dfa.accepting}
    return next((name for name in route.names if name in matched), route.scanned)


def _step(route: Route, state: _State) -> list[tuple[Ranges, _State]]:
    moves: list[tuple[Ranges, Terminal | None, bool, int]] = [
        (ranges, None, False, target) for ranges, target in route.scanned.dfa.edges[state.at]
    ]
    moves += [(ranges, name, False, to) for name, at in state.names for ranges, to in name.dfa.edges[at]]
    moves += [
        (ranges, terminal, True, to) for terminal, at in state.watch for ranges, to in _pending(terminal, at).edges
    ]
    following = []
    for ranges, indices in partition([ranges for ranges, *_ in moves]):
        taken = [moves[index] for index in indices]
        if taken[0][1] is not None:  # the match itself does not go on with these characters
            continue
        watch = frozenset((terminal, to) for _, terminal, is_watched, to in taken if terminal and is_watched)
        if any(to == BROKEN for _, to in watch):
            continue
        names = frozenset((terminal, to) for _, terminal, is_watched, to in taken if terminal and not is_watched)
        following.append((ranges, _State(taken[0][3], names, watch)))
    return following


def may_end(watch: Watch) -> bool:
    """Tell whether the text may end where this is watched."""
    return all(_pending(terminal, at).may_end for terminal, at in watch)


def relevant(watch: Watch, next_characters: Ranges) -> Watch:
    """Return what is still to be watched where only these characters can come next, or the end of the text."""

    def is_relevant(pending: Pending) -> bool:
        leads_on = union(ranges for ranges, _ in pending.edges)
        return not pending.may_end or bool(charset.intersect(leads_on, next_characters))

    return frozenset((terminal, at) for terminal, at in watch if is_relevant(_pending(terminal, at)))


def _pending(terminal: Terminal, at: int) -> Pending:
    return terminal.match.pending[at]


def _never(terminals: Iterable[Terminal]) -> Watch:
    """Return what to watch so that no terminal of these matches from here."""
    return frozenset(
        (terminal, terminal.match.at_start) for terminal in terminals if terminal.match.at_start is not None
    )


def interfere(rival: Terminal, scanned: Terminal) -> bool:
    """Tell whether it matters for matches of `scanned` that `rival` must not match in their place."""
    if rival.match.at_start is None:
        return False
    todo = [(0, rival.match.at_start)]
    seen = set(todo)
    while todo:
        ours, theirs = todo.pop()
        if theirs == BROKEN or ours in scanned.dfa.accepting:
            return True
        for left, to in scanned.dfa.edges[ours]:
            for right, behind in _pending(rival, theirs).edges:
                if (to, behind) not in seen and charset.intersect(left, right):
                    seen.add((to, behind))
                    todo.append((to, behind))
    return False
