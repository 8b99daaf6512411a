"""Automata over the digits of one number that is not negative: within limits, and a multiple of a step.

Digits are read from left to right, in one of two spellings: *plain* (`12.50`), and *scientific* (`1.250e+01`: one
nonzero digit before the point, as JSON writers print large and small numbers). In both, numbers are compared by their
size first (how many whole digits there are, or the exponent) and by their digits where the sizes are the same. The
plain spelling tells the size at the point and the scientific one at the end; either way the state remembers how the
digits compare, and needs nothing else of a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import chain
from math import gcd
from typing import NamedTuple, TypeAlias, TypeVar

from services.constraint.core.grammar import Automaton

# Three digits reach past what doubles and decimals hold; with more, `1e99999999999999999999` overflows every reader.
MAX_EXPONENT_DIGITS = 3
# Digits behind the point of a scientific number, where they are counted. With the one before it, 17 tell any double.
MAX_COUNTED_DIGITS = 16

# How digits compare with a limit's: decided, or (not negative) how many of the limit's were read, all the same.
BELOW = -1
ABOVE = -2

_MAX_EXPONENT = 10**MAX_EXPONENT_DIGITS - 1
_ZERO, _ONE, _NINE, _POINT, _PLUS, _MINUS = b"019.+-"
_EXPONENT_MARKS = b"Ee"

_State = TypeVar("_State", bound=Hashable)
_Edge: TypeAlias = tuple[int, int, _State]  # first byte, last byte, target
_Orders: TypeAlias = tuple[int, ...]  # how digits compare with each of the limits
_Remainder: TypeAlias = tuple[int, int]


class Cut(NamedTuple):
    """A place between numbers: just before a value, or just behind it. Cuts compare as the places do."""

    value: Decimal
    is_behind: bool


@dataclass(frozen=True, slots=True)
class Limit:
    """A cut at a positive value, or just behind zero, and the side of it (BELOW or ABOVE) where numbers must be."""

    size: int
    digits: tuple[int, ...]
    is_behind: bool
    side: int

    @classmethod
    def plain(cls, cut: Cut, side: int) -> Limit:
        """Return the limit whose size is the number of whole digits."""
        exponent, digits = _significant(cut.value)
        return cls(max(exponent, 0) + 1, (0,) * -exponent + digits, cut.is_behind, side)

    @classmethod
    def scientific(cls, cut: Cut, side: int) -> Limit:
        """Return the limit whose size is the exponent."""
        return cls(*_significant(cut.value), cut.is_behind, side)

    def expected(self, order: int) -> int:
        """Return the limit's digit behind those that were the same."""
        return self.digits[order] if order < len(self.digits) else 0

    def compare(self, order: int, digit: int) -> int:
        """Return how the digits compare after one more."""
        if order < 0:
            return order
        expected = self.expected(order)
        if digit != expected:
            return ABOVE if digit > expected else BELOW
        if order + 1 < len(self.digits):
            return order + 1
        # The limit has only zeros from here on, so nothing that follows leads below its value.
        return len(self.digits) if self.is_behind else ABOVE

    def is_met(self, order: int) -> bool:
        """Tell whether a number of the limit's size is on the right side when only zeros follow."""
        return order == self.side or (order >= 0 and self.side == BELOW)

    def is_missed(self, order: int) -> bool:
        """Tell whether a number of the limit's size is on the wrong side whatever follows."""
        return order < 0 and order != self.side


def _significant(value: Decimal) -> tuple[int, tuple[int, ...]]:
    """Return the exponent of the first digit that is not zero, and the digits from there to the last such one."""
    digits = value.as_tuple().digits
    end = len(digits)
    while end and not digits[end - 1]:
        end -= 1
    return (value.adjusted() if end else 0), digits[:end]


@dataclass(frozen=True, slots=True)
class Step:
    """The multiples of `factor` times ten to the power of `exponent`; `factor` is no multiple of ten."""

    factor: int
    exponent: int

    @property
    def num_places(self) -> int:
        """Digits behind the point that a multiple may have, but for zeros at its end."""
        return max(0, -self.exponent)

    @property
    def num_zeros(self) -> int:
        """Zeros before the point that every multiple ends with."""
        return max(0, self.exponent)

    @property
    def num_remainders(self) -> int:
        """What digits may leave by the step, at most."""
        return self.factor * (1 + abs(self.exponent))


class _Remainders:
    """What digits leave by a step: (their value modulo the factor, a place).

    Before the point, the place counts the zeros at the end as far as the step asks for them, and the value is without
    those; behind the point, it counts digits.
    """

    def __init__(self, step: Step) -> None:
        self._num_zeros = step.num_zeros
        # Values with n places to come are the same if they are so modulo the part of the factor that 10^n leaves.
        self._moduli = [step.factor // gcd(step.factor, 10**n) for n in range(step.num_places, -1, -1)]
        self.none: _Remainder = (0, step.num_zeros)
        # The first digits of runs in which all leave the same.
        self.runs = tuple(range(10)) if step.factor > 1 else (0, 1) if step.num_zeros else (0,)

    def whole(self, remainder: _Remainder, digit: int) -> _Remainder:
        """Return what is left after one more digit before the point."""
        value, num_zeros = remainder
        if digit == 0 and num_zeros < self._num_zeros:
            return value, num_zeros + 1
        if digit:
            value, num_zeros = value * 10**num_zeros, 0
        return (value * 10 + digit) % self._moduli[0], num_zeros

    def fraction(self, remainder: _Remainder, digit: int) -> _Remainder:
        """Return what is left after one more digit behind the point."""
        value, place = remainder
        return (value * 10 + digit) % self._moduli[place + 1], place + 1


def _explored(
    start: _State, edges_from: Callable[[_State], Iterable[_Edge[_State]]], is_accepting: Callable[[_State], bool]
) -> Automaton:
    """Return the automaton of the states that `start` reaches. Some may lead nowhere."""
    numbers = {start: 0}
    order = [start]
    edges: list[tuple[int, int, int, int]] = []
    for source, state in enumerate(order):
        for low, high, target in edges_from(state):
            number = numbers.get(target)
            if number is None:
                number = numbers[target] = len(order)
                order.append(target)
            edges.append((source, low, high, number))
    return Automaton(0, tuple([number for state, number in numbers.items() if is_accepting(state)]), tuple(edges))


def _runs(
    limits: tuple[Limit, ...], orders: _Orders, digits: range, starts: Iterable[int] = ()
) -> Iterator[tuple[int, int, _Orders]]:
    """Yield (first, last, how they compare) for runs of the digits; `starts` are digits where a run begins anyway."""
    firsts = {digits.start, *starts}
    for limit, order in zip(limits, orders, strict=True):
        if order >= 0:
            firsts |= {limit.expected(order), limit.expected(order) + 1}
    ordered = sorted(firsts.intersection(digits))
    for first, following in zip(ordered, [*ordered[1:], digits.stop], strict=True):
        yield first, following - 1, tuple([limit.compare(o, first) for limit, o in zip(limits, orders, strict=True)])


class _PlainState(NamedTuple):
    part: str
    num_whole: int
    orders: _Orders
    remainder: _Remainder


_ZEROS_POINT = _PlainState("zeros point", 0, (), (0, 0))
_ZEROS = _PlainState("zeros", 0, (), (0, 0))
_DIGITS = range(10)


class _Plain:
    def __init__(self, limits: tuple[Limit, ...], step: Step | None, has_point: bool) -> None:
        self._limits = limits
        self._has_point = has_point
        self._num_places = None if step is None else step.num_places
        self._remainders = _Remainders(step or Step(1, 0))
        # One more whole digit than the largest limit has is as good as many.
        self._most = max((limit.size for limit in limits), default=0) + 1
        self.start = _PlainState("start", 0, (0,) * len(limits), self._remainders.none)

    def edges_from(self, state: _PlainState) -> Iterator[_Edge[_PlainState]]:
        if state.part == "start":
            yield from self._whole(state, range(1), "zero")
            yield from self._whole(state, range(1, 10), "whole")
        elif state.part == "whole":
            yield from self._whole(state, _DIGITS, "whole")
            yield from self._point(state)
        elif state.part == "zero":
            yield from self._point(state)
        elif state.part in {"point", "fraction"}:
            yield from self._fraction(state)
        else:
            yield _ZERO, _ZERO, _ZEROS

    def is_accepting(self, state: _PlainState) -> bool:
        part, _, orders, remainder = state
        if part in {"zero", "whole"}:
            return remainder == self._remainders.none and all(map(Limit.is_met, self._limits, self._sized(state)))
        if part == "fraction":
            return remainder[0] == 0 and all(map(Limit.is_met, self._limits, orders))
        return part == "zeros"

    def _whole(self, state: _PlainState, digits: range, part: str) -> Iterator[_Edge[_PlainState]]:
        num_whole = min(state.num_whole + 1, self._most)
        for first, last, orders in _runs(self._limits, state.orders, digits, self._remainders.runs):
            # Once there are more digits than a limit has, what they are does not matter.
            orders = tuple(
                [ABOVE if num_whole > limit.size else o for limit, o in zip(self._limits, orders, strict=True)]
            )
            if any(
                limit.side == BELOW and num_whole >= limit.size and o == ABOVE
                for limit, o in zip(self._limits, orders, strict=True)
            ):
                continue
            remainder = self._remainders.whole(state.remainder, first)
            yield _ZERO + first, _ZERO + last, _PlainState(part, num_whole, orders, remainder)

    def _sized(self, state: _PlainState) -> _Orders:
        """Return how numbers compare that have no more whole digits."""
        return tuple(
            [BELOW if state.num_whole < limit.size else o for limit, o in zip(self._limits, state.orders, strict=True)]
        )

    def _point(self, state: _PlainState) -> Iterator[_Edge[_PlainState]]:
        if not self._has_point:
            return
        if self._num_places == 0:
            if self.is_accepting(state):
                yield _POINT, _POINT, _ZEROS_POINT
            return
        orders = self._sized(state)
        if not any(map(Limit.is_missed, self._limits, orders)):
            yield _POINT, _POINT, _PlainState("point", 0, orders, state.remainder)

    def _fraction(self, state: _PlainState) -> Iterator[_Edge[_PlainState]]:
        for first, last, orders in _runs(self._limits, state.orders, _DIGITS, self._remainders.runs):
            if any(map(Limit.is_missed, self._limits, orders)):
                continue
            target = _PlainState("fraction", 0, orders, state.remainder)
            if self._num_places is not None:
                target = target._replace(remainder=self._remainders.fraction(state.remainder, first))
                if target.remainder[1] == self._num_places:
                    # Only zeros may follow, so that what is not right yet never will be.
                    if not self.is_accepting(target):
                        continue
                    target = _ZEROS
            yield _ZERO + first, _ZERO + last, target


# (part, digits counted behind the point, what decides the exponent). That is how the digits compare; or the least and
# the greatest exponent, once no digit changes them; or, in the exponent, the least and the greatest value of what
# follows if it has no digit, one digit, and so on.
_ScientificState: TypeAlias = tuple[str, int, tuple[int, ...]]
_ScientificEdge: TypeAlias = _Edge[_ScientificState]


class _Scientific:
    """The states of numbers with an exponent.

    Where there is a step, digits are counted up to the last that is not zero. Which one that is, the automaton
    guesses: in the part "counted" another one follows, in the part "zeros" none does.
    """

    def __init__(self, limits: tuple[Limit, ...], step: Step | None) -> None:
        self._limits = limits
        self._step = step
        self.start: _ScientificState = ("start", 0, (0,) * len(limits))

    def edges_from(self, state: _ScientificState) -> Iterator[_ScientificEdge]:
        part, count, deciding = state
        match part:
            case "start":
                yield from self._digits(deciding, range(1, 10), "first")
            case "first":
                yield from _exponent(*self._exponents(deciding, 0, Limit.is_met))
                if self._step is None:
                    yield _POINT, _POINT, ("point", 0, deciding)
                else:
                    yield _POINT, _POINT, ("counted", 0, deciding)
                    yield _POINT, _POINT, ("zeros point", 0, self._exponents(deciding, 0, Limit.is_met))
            case "point":
                yield from self._digits(deciding, _DIGITS, "fraction")
            case "fraction":
                yield from self._digits(deciding, _DIGITS, "fraction")
                yield from _exponent(*self._exponents(deciding, 0, Limit.is_met))
            case "counted":
                yield from self._counted(count + 1, deciding)
            case "zeros point":
                yield _ZERO, _ZERO, ("zeros", 0, deciding)
            case "zeros":
                yield _ZERO, _ZERO, state
                yield from _exponent(*deciding)
            case "sign":
                yield from _sign(*deciding)
            case "exponent":
                yield from _exponent_digits(deciding)

    @staticmethod
    def is_accepting(state: _ScientificState) -> bool:
        """Tell whether the exponent may end here."""
        part, _, deciding = state
        return part == "exponent" and deciding[0] <= deciding[1]

    def _exponents(self, orders: _Orders, count: int, is_right: Callable[[Limit, int], bool]) -> tuple[int, int]:
        """Return the least and the greatest exponent; `is_right` tells how a number of a limit's size compares."""
        least, greatest = -_MAX_EXPONENT, _MAX_EXPONENT
        if self._step is not None:
            least = max(least, count + self._step.exponent)
        for limit, order in zip(self._limits, orders, strict=True):
            beyond = 0 if is_right(limit, order) else 1
            if limit.side == ABOVE:
                least = max(least, limit.size + beyond)
            else:
                greatest = min(greatest, limit.size - beyond)
        return least, greatest

    def _may_be_right(self, orders: _Orders, count: int) -> bool:
        least, greatest = self._exponents(orders, count, lambda limit, order: not limit.is_missed(order))
        return least <= greatest

    def _digits(self, orders: _Orders, digits: range, part: str) -> Iterator[_ScientificEdge]:
        for first, last, behind in _runs(self._limits, orders, digits):
            if self._may_be_right(behind, 0):
                yield _ZERO + first, _ZERO + last, (part, 0, behind)

    def _counted(self, count: int, orders: _Orders) -> Iterator[_ScientificEdge]:
        for first, last, behind in _runs(self._limits, orders, _DIGITS, (1,)):
            if count < MAX_COUNTED_DIGITS and self._may_be_right(behind, count + 1):
                yield _ZERO + first, _ZERO + last, ("counted", count, behind)
            least, greatest = self._exponents(behind, count, Limit.is_met)
            if first > 0 and least <= greatest:
                yield _ZERO + first, _ZERO + last, ("zeros", 0, (least, greatest))


def _exponent(least: int, greatest: int) -> Iterator[_ScientificEdge]:
    if least <= greatest:
        for mark in _EXPONENT_MARKS:
            yield mark, mark, ("sign", 0, (least, greatest))


def _sign(least: int, greatest: int) -> Iterator[_ScientificEdge]:
    positive, negative = _values(least, greatest), _values(-greatest, -least)
    if greatest >= 0:
        yield _PLUS, _PLUS, ("exponent", 0, positive)
        yield from _exponent_digits(positive)
    if least <= 0:
        yield _MINUS, _MINUS, ("exponent", 0, negative)


def _values(least: int, greatest: int) -> tuple[int, ...]:
    """Return the ranges of values, from `least` to `greatest`, of one digit, two digits, and so on; not of none."""
    ranges = [(1, 0)]
    for num_digits in range(1, MAX_EXPONENT_DIGITS + 1):
        ranges.append(_clipped(least, greatest, num_digits))
    return tuple(chain.from_iterable(ranges))


def _clipped(least: int, greatest: int, num_digits: int) -> tuple[int, int]:
    least, greatest = max(least, 0), min(greatest, 10**num_digits - 1)
    return (least, greatest) if least <= greatest else (1, 0)


@lru_cache(maxsize=4096)
def _exponent_digits(ranges: tuple[int, ...]) -> tuple[_ScientificEdge, ...]:
    """Return the edges of digits, behind which what follows has one digit less."""
    edges: list[_ScientificEdge] = []
    for digit in range(10):
        behind: list[int] = []
        for num_digits in range(len(ranges) // 2 - 1):
            least, greatest = ranges[2 * num_digits + 2 : 2 * num_digits + 4]
            value = digit * 10**num_digits
            behind.extend(_clipped(least - value, greatest - value, num_digits))
        target = ("exponent", 0, tuple(behind))
        if any(least <= greatest for least, greatest in zip(behind[::2], behind[1::2], strict=True)):
            byte = _ZERO + digit
            if edges and edges[-1][2] == target:
                edges[-1] = (edges[-1][0], byte, target)
            else:
                edges.append((byte, byte, target))
    return tuple(edges)


def plain(limits: tuple[Limit, ...], step: Step | None, *, has_point: bool) -> Automaton:
    """Return the automaton of the numbers without an exponent; without `has_point`, of those in whole digits alone."""
    states = _Plain(limits, step, has_point)
    return _explored(states.start, states.edges_from, states.is_accepting)


def scientific(limits: tuple[Limit, ...], step: Step | None) -> Automaton:
    """Return the automaton of the numbers with an exponent, but zero; a step must be a power of ten."""
    states = _Scientific(limits, step)
    return _explored(states.start, states.edges_from, states.is_accepting)
