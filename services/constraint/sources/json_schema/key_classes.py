"""Parts keys by which of an object's `patternProperties` they match.

One automaton reads a key for all patterns at once: its state is what each pattern's own automaton is in, so its
accepting states tell which patterns match. The keys of a class are what leads to one kind of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

from services.constraint.core.grammar import NOTHING, Bytes, Expression, Repeat, Sequence
from services.constraint.core.regex import automaton, charset
from services.constraint.core.regex.automaton import Dfa, explore, partition
from services.constraint.core.regex.charset import Ranges
from services.constraint.core.regex.minimise import minimise
from services.constraint.sources.json_schema import key_automaton, strings
from services.constraint.sources.json_schema.keys import any_key_but
from services.constraint.sources.json_schema.nodes import String
from services.constraint.sources.json_schema.strings import PLAIN_CHARACTER, PLAIN_STRING
from services.rpckit.status import GrammarTooLarge

# What a String says: the fewest and the most characters, and all patterns that must match.
_Limits: TypeAlias = tuple[int, int | None, tuple[str, ...]]
# What each automaton is in; None where it can no longer accept.
_States: TypeAlias = tuple[int | None, ...]

# States of the automaton that reads keys for several patterns at once, times the patterns, and times the classes: each
# state has what every pattern is in, and each class takes its own automaton from it. About 10 us each.
MAX_CLASS_STATES = 20_000

_QUOTE = Bytes(b'"')
_EVERYTHING = Dfa((((charset.EVERYTHING, 0),),), frozenset([0]))


@dataclass(frozen=True, slots=True)
class KeyClass:
    """Keys that match the same patterns: those with an index in `matched`, and no other.

    `keys` is the expression of those keys, quotes included.
    """

    keys: Expression
    matched: tuple[int, ...]


class _TooManyError(Exception):
    """There are too many states for so many patterns."""


@dataclass(frozen=True, slots=True)
class _Product:
    """An automaton that reads keys for all patterns at once, and by what matches, the states where it does."""

    dfa: Dfa
    ends: dict[tuple[int, ...], set[int]]


def key_classes(
    names: Iterable[str], patterns: tuple[str, ...], among: String | None
) -> tuple[tuple[KeyClass, ...], bool]:
    """Part all keys but `names` by which of `patterns` they match; classes without keys are left out.

    Keys are written in one way (`encoding.json_plain`). `among` narrows them to a String's texts.

    The second value tells whether the classes are exact. They are not where there are too many of them, or where the
    patterns take too large an automaton together. Then each pattern has a class of all keys that match it, whatever
    else they match, and the class with none in `matched` has all keys. So each key is in the class of each pattern
    that it matches; but never is one of `names`, or a key that is not `among` those wanted, in any.

    Raises:
        GrammarSyntax, UnsupportedConstruct: as the patterns' parsing does.
        GrammarTooLarge: one pattern, or `among`, or one and the other together take too large an automaton.
    """
    limits = None
    if among is not None:
        limits = (among.min_length, among.max_length, strings.patterns_of(among))
    return _classes(tuple(sorted(set(names))), patterns, None if limits == (0, None, ()) else limits)


@lru_cache(maxsize=128)
def _classes(
    names: tuple[str, ...], patterns: tuple[str, ...], among: _Limits | None
) -> tuple[tuple[KeyClass, ...], bool]:
    if not patterns and among is None:
        return (KeyClass(_any_key(names), ()),), True
    if not patterns and not names and among is not None:
        keys = _all_of(among)
        return () if keys is NOTHING else (KeyClass(keys, ()),), True
    product = _product(patterns, among)
    if product is None:
        return _overlapping_classes(names, patterns, among), False
    without: dict[tuple[int, ...], list[str]] = {matched: [] for matched in product.ends}
    for name in names:
        if among is None or strings.matches(String(*among), name):
            without[tuple(index for index, pattern in enumerate(patterns) if strings.found_in(pattern, name))].append(
                name
            )
    num_classes = Counter(index for matched in product.ends for index in matched)
    classes = []
    for matched in sorted(product.ends):
        only_here = [index for index in matched if num_classes[index] == 1]
        if among is None and len(product.ends) == 1:
            keys = _any_key(without[matched])
        elif among is None and only_here and not without[matched]:
            # As a string: the core makes counts cheap, which the automaton has written out.
            keys = strings.string(String(patterns=(patterns[only_here[0]],)))
        else:
            keys = key_automaton.write(_dfa_of_class(patterns, among, matched), without[matched])
        if keys is not NOTHING:
            classes.append(KeyClass(keys, matched))
    return tuple(classes), True


def _overlapping_classes(
    names: tuple[str, ...], patterns: tuple[str, ...], among: _Limits | None
) -> tuple[KeyClass, ...]:
    classes, _ = _classes(names, (), among)
    for index, pattern in enumerate(patterns):
        alone, _ = _classes(names, (pattern,), among)
        classes += tuple(replace(key_class, matched=(index,)) for key_class in alone if key_class.matched)
    return classes


def _any_key(names: Iterable[str]) -> Expression:
    return any_key_but(names) if names else PLAIN_STRING


def _all_of(limits: _Limits) -> Expression:
    """Return the expression of all keys within the limits."""
    minimum, maximum, patterns = limits
    if patterns or (maximum is not None and maximum < minimum):
        return strings.string(String(minimum, maximum, patterns))
    return Sequence((_QUOTE, Repeat(PLAIN_CHARACTER, minimum, maximum), _QUOTE))


@lru_cache(maxsize=128)
def _product(patterns: tuple[str, ...], among: _Limits | None) -> _Product | None:
    """Return the automaton that reads keys for all patterns at once; None if several take too large a one together."""
    dfas = [strings.dfa_of(pattern) for pattern in patterns]
    if among is not None:
        dfas.append(_dfa_among(among))
    states: list[_States] = []

    def step(state: _States) -> list[tuple[Ranges, _States]]:
        states.append(state)  # each is asked for once, in the order of their numbers
        if len(patterns) > 1 and len(patterns) * len(states) > MAX_CLASS_STATES:
            raise _TooManyError
        edges = [
            (ranges, index, target)
            for index, at in enumerate(state)
            if at is not None
            for ranges, target in dfas[index].edges[at]
        ]
        result = []
        for ranges, taken in _partition(tuple([ranges for ranges, _, _ in edges])):
            targets = {index: target for _, index, target in (edges[number] for number in taken)}
            if among is None or len(patterns) in targets:
                result.append((ranges, tuple([targets.get(index) for index in range(len(dfas))])))
        return result

    start: _States = (0,) * len(dfas)
    try:
        dfa = explore(start, step, lambda state: True)
    except (_TooManyError, GrammarTooLarge):
        if len(patterns) < 2:
            raise
        return None
    ends: dict[tuple[int, ...], set[int]] = {}
    for number, state in enumerate(states):
        accepting = [index for index, at in enumerate(state) if at in dfas[index].accepting]
        if among is None or accepting[-1:] == [len(patterns)]:
            ends.setdefault(tuple(index for index in accepting if index < len(patterns)), set()).add(number)
    if len(patterns) > 1 and len(ends) * len(states) > MAX_CLASS_STATES:
        return None
    return _Product(dfa, ends)


@lru_cache(maxsize=1024)
def _partition(sets: tuple[Ranges, ...]) -> list[tuple[Ranges, tuple[int, ...]]]:
    """Cut all characters into disjoint sets, each with the indices of all sets that contain it."""
    return [(ranges, taken[:-1]) for ranges, taken in partition([*sets, charset.EVERYTHING])]


@lru_cache(maxsize=256)
def _dfa_of_class(patterns: tuple[str, ...], among: _Limits | None, matched: tuple[int, ...]) -> Dfa:
    product = _product(patterns, among)
    assert product is not None
    dfa, ends = product.dfa, product.ends[matched]
    return minimise(explore(0, lambda state: [*dfa.edges[state]], ends.__contains__))


def _dfa_among(limits: _Limits) -> Dfa:
    minimum, maximum, patterns = limits
    dfa = _EVERYTHING
    for pattern in patterns:
        dfa = automaton.intersect(dfa, strings.dfa_of(pattern))
    return dfa if (minimum, maximum) == (0, None) else automaton.with_length(dfa, minimum, maximum)
