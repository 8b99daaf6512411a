"""Expressions for JSON numbers within bounds.

Without bounds every spelling of RFC 8259 is accepted. Integers are written with digits alone (not `1.0` or `1e2`),
and numbers with a bound without an exponent: each such number has infinitely many spellings, and the digits' order is
what makes a bound decidable from left to right. Bounds are exact: they are `Decimal`s as they stand in the schema,
never binary floating point.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from services.constraint.core.grammar import (
    EMPTY,
    NOTHING,
    Alternation,
    Automaton,
    Bytes,
    Expression,
    Repeat,
    Sequence,
    optional,
)
from services.constraint.core.regex.encoding import ByteClass, expression
from services.rpckit.status import GrammarTooLarge

# Digits of one bound or of multipleOf, before or behind the point.
MAX_BOUND_DIGITS = 400
# multipleOf for integers: one automaton state per remainder.
MAX_DIVISOR = 2_000
# Multiples within bounds are listed one by one.
MAX_LISTED_MULTIPLES = 2_000


@dataclass(frozen=True, slots=True)
class Bound:
    """One end of an interval."""

    value: Decimal
    is_exclusive: bool


def _digits(low: str = "0", high: str = "9") -> Expression:
    return expression([(((ord(low), ord(high)),),)])


_DIGIT = _digits()
_DIGITS = Repeat(_DIGIT, 0, None)
_SOME_DIGITS = Repeat(_DIGIT, 1, None)
_MINUS = Bytes(b"-")
_WHOLE = Alternation((Bytes(b"0"), Sequence((_digits("1"), _DIGITS))))
_FRACTION = Sequence((Bytes(b"."), _SOME_DIGITS))
# Three digits reach past what doubles and decimals hold; with more, `1e99999999999999999999` overflows every reader.
_EXPONENT = Sequence(
    (
        expression([(((0x45, 0x45), (0x65, 0x65)),)]),
        optional(expression([(((0x2B, 0x2B), (0x2D, 0x2D)),)])),
        Repeat(_DIGIT, 1, 3),
    )
)

INTEGER: Expression = Sequence((optional(_MINUS), _WHOLE))
NUMBER: Expression = Sequence((optional(_MINUS), _WHOLE, optional(_FRACTION), optional(_EXPONENT)))


def integers(low: Bound | None, high: Bound | None) -> Expression:
    """Return the integers within the bounds (None: unbounded). A zero may be written `-0`."""
    return _signed(_least_integer(low), _greatest_integer(high))


def multiples(divisor: int, low: Bound | None, high: Bound | None) -> Expression | None:
    """Return the integers within the bounds that `divisor` divides, or None where that takes too much."""
    first, last = _least_integer(low), _greatest_integer(high)
    if first is not None and last is not None:
        first = -(-first // divisor)
        last //= divisor
        if last - first >= MAX_LISTED_MULTIPLES:
            return None
        return Alternation(tuple(Bytes(str(factor * divisor).encode()) for factor in range(first, last + 1)))
    if divisor > MAX_DIVISOR:
        return None
    if first is None and last is None:
        return Sequence((optional(_MINUS), _divisible(divisor)))
    if first in (0, 1) and last is None:
        return _divisible(divisor, allow_zero=first == 0)
    return None


def decimals(low: Bound | None, high: Bound | None) -> Expression:
    """Return the numbers within the bounds: every number when there is none, else those written without an exponent."""
    if low is None and high is None:
        return NUMBER
    _check_size(low, high)
    options: list[Expression] = []
    if high is None or high.value > 0 or (high.value == 0 and not high.is_exclusive):
        positive_low = (
            low
            if low is not None and (low.value > 0 or (low.value == 0 and low.is_exclusive))
            else Bound(Decimal(0), False)
        )
        options.append(_magnitudes(positive_low, high))
    if low is None or low.value < 0 or (low.value == 0 and not low.is_exclusive):
        mirrored_high = None if low is None else Bound(low.value.copy_negate(), low.is_exclusive)
        mirrored_low = (
            Bound(high.value.copy_negate(), high.is_exclusive)
            if high is not None and high.value < 0
            else Bound(Decimal(0), False)
        )
        if high is not None and high.value == 0 and high.is_exclusive:
            mirrored_low = Bound(Decimal(0), True)
        options.append(Sequence((_MINUS, _magnitudes(mirrored_low, mirrored_high))))
    return Alternation(tuple(options))


def decimal_places(places: int) -> Expression:
    """Return the numbers that are multiples of 10 to the power of -places, written without an exponent."""
    fraction = Sequence((Bytes(b"."), Repeat(_DIGIT, 1, places), Repeat(Bytes(b"0"), 0, None)))
    return Sequence((optional(_MINUS), _WHOLE, optional(fraction)))


def _check_size(*bounds: Bound | None) -> None:
    for bound in bounds:
        if bound is None:
            continue
        exponent = bound.value.as_tuple().exponent
        assert isinstance(exponent, int)  # JSON has neither NaN nor infinity
        if max(bound.value.adjusted(), -exponent) > MAX_BOUND_DIGITS:
            raise GrammarTooLarge(
                f"the bound {bound.value:.3E} has more than {MAX_BOUND_DIGITS} digits (limit max_bound_digits)",
                limit="max_bound_digits",
                value=MAX_BOUND_DIGITS,
            )


def _least_integer(bound: Bound | None) -> int | None:
    if bound is None:
        return None
    _check_size(bound)
    # int() of a Decimal is exact, while arithmetic would round to the context's precision.
    whole = int(bound.value)
    if whole == bound.value:
        return whole + 1 if bound.is_exclusive else whole
    return whole + 1 if bound.value > 0 else whole


def _greatest_integer(bound: Bound | None) -> int | None:
    if bound is None:
        return None
    least = _least_integer(Bound(bound.value.copy_negate(), bound.is_exclusive))
    assert least is not None
    return -least


def _signed(first: int | None, last: int | None) -> Expression:
    options: list[Expression] = []
    if first is None and last is None:
        return INTEGER
    if first is not None and last is not None and first > last:
        return NOTHING
    if last is None or last >= 0:
        options.append(_whole(max(first or 0, 0) if first is not None else 0, last))
    if first is None or first <= 0:
        options.append(
            Sequence((_MINUS, _whole(max(-last, 0) if last is not None else 0, None if first is None else -first)))
        )
    return Alternation(tuple(options))


@lru_cache(maxsize=1024)
def _whole(first: int, last: int | None) -> Expression:
    """Return the whole numbers from first to last (None: no end), without sign or leading zeros."""
    sequences: list[tuple[ByteClass, ...]] = []
    endless: list[Expression] = []
    length = len(str(first))
    while last is None or length <= len(str(last)):
        low = max(first, 10 ** (length - 1) if length > 1 else 0)
        if last is None:
            if low == 0:
                return _WHOLE
            if low == 10 ** (length - 1):
                endless.append(Sequence((_digits("1"), Repeat(_DIGIT, length - 1, None))))
                break
            high = 10**length - 1
        else:
            high = min(last, 10**length - 1)
        sequences.extend(_digit_range(str(low), str(high)))
        length += 1
    if not endless:
        return expression(sequences)
    return Alternation((expression(sequences), *endless)) if sequences else endless[0]


def _digit_range(low: str, high: str) -> Iterator[tuple[ByteClass, ...]]:
    """Yield sequences of digit classes for all digit strings from low to high, which have the same length."""
    if not low:
        yield ()
        return
    first, last = ord(low[0]), ord(high[0])
    if first == last:
        for rest in _digit_range(low[1:], high[1:]):
            yield (((first, first),), *rest)
        return
    rest_length = len(low) - 1
    if low[1:].strip("0"):
        for rest in _digit_range(low[1:], "9" * rest_length):
            yield (((first, first),), *rest)
        first += 1
    is_high_full = not high[1:].strip("9")
    if first <= (last if is_high_full else last - 1):
        yield (((first, last if is_high_full else last - 1),), *((((0x30, 0x39),),) * rest_length))
    if not is_high_full:
        for rest in _digit_range("0" * rest_length, high[1:]):
            yield (((last, last),), *rest)


def _magnitudes(low: Bound, high: Bound | None) -> Expression:
    """Return the numbers from low (not negative) to high, written without sign and exponent."""
    low_whole, low_fraction = _split(low.value)
    if high is None:
        return Alternation(
            (
                Sequence((_whole(low_whole, low_whole), _fractions(low_fraction, low.is_exclusive, None, False))),
                Sequence((_whole(low_whole + 1, None), optional(_FRACTION))),
            )
        )
    if high.value < low.value:
        return NOTHING
    high_whole, high_fraction = _split(high.value)
    if low_whole == high_whole:
        fractions = _fractions(low_fraction, low.is_exclusive, high_fraction, high.is_exclusive)
        return Sequence((_whole(low_whole, low_whole), fractions))
    options: list[Expression] = [
        Sequence((_whole(low_whole, low_whole), _fractions(low_fraction, low.is_exclusive, None, False))),
        Sequence((_whole(high_whole, high_whole), _fractions("", False, high_fraction, high.is_exclusive))),
    ]
    if low_whole + 1 < high_whole:
        options.append(Sequence((_whole(low_whole + 1, high_whole - 1), optional(_FRACTION))))
    return Alternation(tuple(options))


def _split(value: Decimal) -> tuple[int, str]:
    """Return the whole part and the digits behind the point, without trailing zeros."""
    whole, _, fraction = f"{value:f}".partition(".")
    return int(whole), fraction.rstrip("0")


def _fractions(low: str, low_is_exclusive: bool, high: str | None, high_is_exclusive: bool) -> Expression:
    """Return what may follow a whole part so that it is within bounds: nothing, or a point and digits.

    A state is (digits read, still equal to low, still equal to high); digits beyond the end of a bound are zeros.
    """
    if low == "" and not low_is_exclusive and high is None:
        return optional(_FRACTION)
    longest = max(len(low), len(high or ""))
    numbers: dict[tuple[int, bool, bool], int] = {(0, True, high is not None): 0}
    order = list(numbers)
    edges: list[tuple[int, int, int, int]] = []
    accepting: list[int] = []
    for state in order:
        at, is_low, is_high = state
        low_rest, high_rest = low[at:], (high or "")[at:]
        fits_low = not is_low or (not low_rest and not low_is_exclusive)
        fits_high = not is_high or bool(high_rest) or not high_is_exclusive
        if fits_low and fits_high:
            accepting.append(numbers[state])
        low_digit, high_digit = int(low_rest[:1] or 0), int(high_rest[:1] or 0)
        for digit in range(low_digit if is_low else 0, (high_digit if is_high else 9) + 1):
            target = (min(at + 1, longest), is_low and digit == low_digit, is_high and digit == high_digit)
            if target not in numbers:
                numbers[target] = len(order)
                order.append(target)
            edges.append((numbers[state], 0x30 + digit, 0x30 + digit, numbers[target]))
    # The state before the point accepts as the start does; the one behind it needs a digit.
    is_empty_accepted = 0 in accepting
    before, behind = len(order), len(order) + 1
    edges.append((before, 0x2E, 0x2E, behind))
    edges.extend((behind, first, last, target) for source, first, last, target in list(edges) if source == 0)
    ends = [state for state in accepting if state != 0]
    # State 0 is reached again only when no bound has any digit left and zeros are read: then it accepts as it stands.
    if is_empty_accepted and any(target == 0 for *_, target in edges):
        ends.append(0)
    return Automaton(before, tuple([*ends, before] if is_empty_accepted else ends), tuple(edges))


def _divisible(divisor: int, *, allow_zero: bool = True) -> Expression:
    """Return the whole numbers that `divisor` divides, without leading zeros: one state per remainder."""
    start, zero = divisor, divisor + 1
    edges = [(start, 0x30 + digit, 0x30 + digit, digit % divisor) for digit in range(1, 10)]
    edges += [
        (rest, 0x30 + digit, 0x30 + digit, (rest * 10 + digit) % divisor)
        for rest in range(divisor)
        for digit in range(10)
    ]
    accepting: tuple[int, ...] = (0,)
    if allow_zero:
        edges.append((start, 0x30, 0x30, zero))
        accepting = (0, zero)
    return Automaton(start, accepting, tuple(edges))


__all__ = ["EMPTY", "INTEGER", "NUMBER", "Bound", "decimal_places", "decimals", "integers", "multiples"]
