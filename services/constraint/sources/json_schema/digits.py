"""Automata over the digits of one number without a sign: within limits, and a multiple of a step.

Digits are read from left to right, in one of two spellings: *plain* (`12.50`), and *scientific* (`1.250e+01`: one
nonzero digit before the point, as JSON writers print large and small numbers). In both, numbers are compared by their
size first (how many whole digits there are, or the exponent) and by their digits where the sizes are the same. The
plain spelling tells the size at the point and the scientific one at the end; either way a state remembers how the
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
_ZERO, _POINT, _PLUS, _MINUS = b"0.+-"
_EXPONENT_MARKS = b"Ee"
_DIGITS = range(10)
_NO_RANGE = (1, 0)

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
        """Tell whether a number of the limit's size is on the right side if only zeros follow."""
        return order == self.side or (order >= 0 and self.side == BELOW)

    def may_be_met(self, order: int) -> bool:
        """Tell whether a number of the limit's size is on the right side, or digits may follow that lead there."""
        return order >= 0 or order == self.side


def _significant(value: Decimal) -> tuple[int, tuple[int, ...]]:
    """Return the exponent of the first digit that is not zero, and the digits from there to the last such one."""
    digits = value.as_tuple().digits
    end = len(digits)
    while end and not digits[end - 1]:
        end -= 1
    return (value.adjusted() if end else 0), digits[:end]


def _runs(limits: tuple[Limit, ...], orders: _Orders, digits: range) -> Iterator[tuple[int, int, _Orders]]:
    """Yield runs of digits that compare in the same way, and how: (first, last, orders)."""
    firsts = {digits.start}
    for limit, order in zip(limits, orders, strict=True):
        if order >= 0:
            expected = limit.expected(order)
            firsts |= {expected, expected + 1}
    ordered = sorted(firsts.intersection(digits))
    for first, following in zip(ordered, [*ordered[1:], digits.stop], strict=True):
        yield first, following - 1, tuple([limit.compare(o, first) for limit, o in zip(limits, orders, strict=True)])


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
        self._step = step
        # Values with n places to come are the same if they are so modulo the part of the factor that 10^n leaves.
        self._moduli = [step.factor // gcd(step.factor, 10**n) for n in range(step.num_places, -1, -1)]
        self.none: _Remainder = (0, step.num_zeros)

    def runs(self, first: int, last: int) -> Iterable[tuple[int, int]]:
        """Return runs of digits that leave the same."""
        if self._step.factor > 1:
            return zip(range(first, last + 1), range(first, last + 1), strict=True)
        if self._step.num_zeros and first == 0 < last:
            return (0, 0), (1, last)
        return ((first, last),)

    def whole(self, remainder: _Remainder, digit: int) -> _Remainder:
        """Return what is left after one more digit before the point."""
        value, num_zeros = remainder
        if digit == 0 and num_zeros < self._step.num_zeros:
            return value, num_zeros + 1
        if digit:
            value, num_zeros = value * 10**num_zeros, 0
        return (value * 10 + digit) % self._moduli[0], num_zeros

    def place(self, remainder: _Remainder, digit: int) -> _Remainder:
        """Return what is left after one more digit behind the point."""
        value, place = remainder
        return (value * 10 + digit) % self._moduli[place + 1], place + 1


def plain(limits: tuple[Limit, ...], step: Step | None, *, has_point: bool) -> Automaton:
    """Return the automaton of the numbers without an exponent; without `has_point`, of those in whole digits alone."""
    states = _Plain(limits, step, has_point)
    return _explored(states.start, states.edges_from, states.is_accepting)


def scientific(limits: tuple[Limit, ...], step: Step | None) -> Automaton:
    """Return the automaton of the numbers with an exponent, but zero. The step must be a power of ten."""
    states = _Scientific(limits, step)
    return _explored(states.start, states.edges_from, states.is_accepting)


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
    return Automaton(0, tuple([number for number, state in enumerate(order) if is_accepting(state)]), tuple(edges))


# (part, number of whole digits, how digits compare, what they leave by the step)
_PlainState: TypeAlias = tuple[str, int, _Orders, _Remainder]

_ZEROS_POINT: _PlainState = ("zeros point", 0, (), (0, 0))
_ZEROS: _PlainState = ("zeros", 0, (), (0, 0))


class _Plain:
    """The states of numbers without an exponent."""

    def __init__(self, limits: tuple[Limit, ...], step: Step | None, has_point: bool) -> None:
        self._limits = limits
        self._has_point = has_point
        self._num_places = None if step is None else step.num_places
        self._remainders = _Remainders(step or Step(1, 0))
        # With more whole digits than any limit has, it does not matter how many.
        self._max_whole = max((limit.size for limit in limits), default=0) + 1
        self.start: _PlainState = ("start", 0, (0,) * len(limits), self._remainders.none)

    def edges_from(self, state: _PlainState) -> Iterator[_Edge[_PlainState]]:
        match state[0]:
            case "start":
                yield from self._whole(state, range(1), "zero")
                yield from self._whole(state, range(1, 10), "whole")
            case "zero":
                yield from self._point(state)
            case "whole":
                yield from self._whole(state, _DIGITS, "whole")
                yield from self._point(state)
            case "point" | "fraction":
                yield from self._fraction(state)
            case "zeros point" | "zeros":
                yield _ZERO, _ZERO, _ZEROS

    def is_accepting(self, state: _PlainState) -> bool:
        part, num_whole, orders, remainder = state
        if part in {"zero", "whole"}:
            orders = self._ended(num_whole, orders)
            return remainder == self._remainders.none and all(map(Limit.is_met, self._limits, orders))
        if part == "fraction":
            return remainder[0] == 0 and all(map(Limit.is_met, self._limits, orders))
        return part == "zeros"

    def _whole(self, state: _PlainState, digits: range, part: str) -> Iterator[_Edge[_PlainState]]:
        _, num_whole, orders, remainder = state
        num_whole = min(num_whole + 1, self._max_whole)
        for first, last, behind in _runs(self._limits, orders, digits):
            longer = self._longer(num_whole, behind)
            if longer is None:
                continue
            for low, high in self._remainders.runs(first, last):
                target = (part, num_whole, longer, self._remainders.whole(remainder, low))
                yield _ZERO + low, _ZERO + high, target

    def _longer(self, num_whole: int, orders: _Orders) -> _Orders | None:
        """Return how numbers compare that have at least so many whole digits; None if all are too large."""
        result = []
        for limit, order in zip(self._limits, orders, strict=True):
            if num_whole > limit.size:
                order = ABOVE
            if limit.side == BELOW and order == ABOVE and num_whole >= limit.size:
                return None
            result.append(order)
        return tuple(result)

    def _ended(self, num_whole: int, orders: _Orders) -> _Orders:
        """Return how numbers compare that have so many whole digits."""
        return tuple(
            [BELOW if num_whole < limit.size else order for limit, order in zip(self._limits, orders, strict=True)]
        )

    def _point(self, state: _PlainState) -> Iterator[_Edge[_PlainState]]:
        if not self._has_point:
            return
        if self._num_places == 0:
            if self.is_accepting(state):
                yield _POINT, _POINT, _ZEROS_POINT
            return
        _, num_whole, orders, remainder = state
        orders = self._ended(num_whole, orders)
        if all(map(Limit.may_be_met, self._limits, orders)):
            yield _POINT, _POINT, ("point", 0, orders, remainder)

    def _fraction(self, state: _PlainState) -> Iterator[_Edge[_PlainState]]:
        _, _, orders, remainder = state
        for first, last, behind in _runs(self._limits, orders, _DIGITS):
            if not all(map(Limit.may_be_met, self._limits, behind)):
                continue
            if self._num_places is None:
                yield _ZERO + first, _ZERO + last, ("fraction", 0, behind, remainder)
                continue
            for low, high in self._remainders.runs(first, last):
                target: _PlainState = ("fraction", 0, behind, self._remainders.place(remainder, low))
                if target[3][1] < self._num_places:
                    yield _ZERO + low, _ZERO + high, target
                elif self.is_accepting(target):
                    yield _ZERO + low, _ZERO + high, _ZEROS


# (part, digits counted behind the point, what decides the exponent). That is how the digits compare; or the least and
# the greatest exponent, once no digit changes them; or, in the exponent, the least and the greatest value of what
# follows if it has no digit, one digit, and so on.
_ScientificState: TypeAlias = tuple[str, int, tuple[int, ...]]
_ScientificEdges: TypeAlias = Iterator[_Edge[_ScientificState]]


class _Scientific:
    """The states of numbers with an exponent.

    Where there is a step, digits are counted up to the last that is not zero. Which one that is, the automaton
    guesses: in the part "counted" another one follows, in the part "zeros" none does.
    """

    def __init__(self, limits: tuple[Limit, ...], step: Step | None) -> None:
        self._limits = limits
        self._step = step
        self.start: _ScientificState = ("start", 0, (0,) * len(limits))

    def edges_from(self, state: _ScientificState) -> _ScientificEdges:
        part, count, deciding = state
        match part:
            case "start":
                yield from self._digits(deciding, range(1, 10), "first")
            case "first":
                exponents = self._exponents(deciding)
                yield from _exponent(exponents)
                if self._step is None:
                    yield _POINT, _POINT, ("point", 0, deciding)
                else:
                    yield _POINT, _POINT, ("counted", 0, deciding)
                    yield _POINT, _POINT, ("zeros point", 0, exponents)
            case "point":
                yield from self._digits(deciding, _DIGITS, "fraction")
            case "fraction":
                yield from self._digits(deciding, _DIGITS, "fraction")
                yield from _exponent(self._exponents(deciding))
            case "counted":
                yield from self._counted(deciding, count + 1)
            case "zeros point":
                yield _ZERO, _ZERO, ("zeros", 0, deciding)
            case "zeros":
                yield _ZERO, _ZERO, state
                yield from _exponent(deciding)
            case "sign":
                yield from _sign(*deciding)
            case "exponent":
                yield from _exponent_digits(deciding)

    @staticmethod
    def is_accepting(state: _ScientificState) -> bool:
        part, _, deciding = state
        return part == "exponent" and deciding[0] <= deciding[1]

    def _digits(self, orders: _Orders, digits: range, part: str) -> _ScientificEdges:
        for first, last, behind in _runs(self._limits, orders, digits):
            if self._may_have_exponent(behind):
                yield _ZERO + first, _ZERO + last, (part, 0, behind)

    def _counted(self, orders: _Orders, count: int) -> _ScientificEdges:
        for first, last, behind in _runs(self._limits, orders, _DIGITS):
            if count < MAX_COUNTED_DIGITS and self._may_have_exponent(behind, count + 1):
                yield _ZERO + first, _ZERO + last, ("counted", count, behind)
            exponents = self._exponents(behind, count)
            if last > 0 and _is_range(exponents):
                yield _ZERO + max(first, 1), _ZERO + last, ("zeros", 0, exponents)

    def _exponents(
        self, orders: _Orders, count: int = 0, is_met: Callable[[Limit, int], bool] = Limit.is_met
    ) -> tuple[int, int]:
        """Return the least and the greatest exponent with which a number is right, if only zeros follow."""
        least, greatest = -_MAX_EXPONENT, _MAX_EXPONENT
        if self._step is not None:
            least = max(least, count + self._step.exponent)
        for limit, order in zip(self._limits, orders, strict=True):
            if limit.side == ABOVE:
                least = max(least, limit.size if is_met(limit, order) else limit.size + 1)
            else:
                greatest = min(greatest, limit.size if is_met(limit, order) else limit.size - 1)
        return least, greatest

    def _may_have_exponent(self, orders: _Orders, count: int = 0) -> bool:
        """Tell whether a number may be right with any exponent, whatever digits follow."""
        return _is_range(self._exponents(orders, count, Limit.may_be_met))


def _exponent(exponents: tuple[int, ...]) -> _ScientificEdges:
    if _is_range(exponents):
        for mark in _EXPONENT_MARKS:
            yield mark, mark, ("sign", 0, exponents)


def _sign(least: int, greatest: int) -> _ScientificEdges:
    positive, negative = _values(least, greatest), _values(-greatest, -least)
    if greatest >= 0:
        yield _PLUS, _PLUS, ("exponent", 0, positive)
        yield from _exponent_digits(positive)
    if least <= 0:
        yield _MINUS, _MINUS, ("exponent", 0, negative)


def _values(least: int, greatest: int) -> tuple[int, ...]:
    """Return the ranges of values between two that have no digit, one digit, and so on."""
    ranges = [_within(least, greatest, num_digits) for num_digits in range(1, MAX_EXPONENT_DIGITS + 1)]
    return tuple(chain(_NO_RANGE, *ranges))


def _within(least: int, greatest: int, num_digits: int) -> tuple[int, int]:
    """Return the range of the values between two that so many digits can have."""
    range_ = max(least, 0), min(greatest, 10**num_digits - 1)
    return range_ if _is_range(range_) else _NO_RANGE


def _is_range(range_: tuple[int, ...]) -> bool:
    return range_[0] <= range_[1]


@lru_cache(maxsize=4096)
def _exponent_digits(ranges: tuple[int, ...]) -> list[_Edge[_ScientificState]]:
    """Return the edges of digits, each of which leaves less to what follows."""
    edges: list[_Edge[_ScientificState]] = []
    for digit in _DIGITS:
        left = [
            _within(ranges[2 * n + 2] - digit * 10**n, ranges[2 * n + 3] - digit * 10**n, n)
            for n in range(len(ranges) // 2 - 1)
        ]
        if any(map(_is_range, left)):
            target = ("exponent", 0, tuple(chain(*left)))
            first = edges.pop()[0] if edges and edges[-1][2] == target else _ZERO + digit
            edges.append((first, _ZERO + digit, target))
    return edges
