"""Expressions for JSON numbers: integers, numbers within bounds, multiples.

Numbers are what their digits say, as `Decimal`s are; binary floating point is never asked. Where nothing is to be
enforced, every spelling of RFC 8259 is taken. Otherwise arithmetic on any exponent would be beyond a finite automaton,
and these are: every spelling without an exponent, and those with one that have a single digit, not zero, before the
point. JSON writers write no others. Multiples of what is no power of ten are taken without an exponent only.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from math import floor, gcd, lcm
from typing import Literal, TypeAlias

from services.constraint.core.grammar import (
    NOTHING,
    Alternation,
    Bytes,
    Expression,
    Literals,
    Repeat,
    Sequence,
    optional,
)
from services.constraint.core.regex.encoding import expression
from services.constraint.sources.json_schema.digits import (
    ABOVE,
    BELOW,
    MAX_EXPONENT_DIGITS,
    Cut,
    Limit,
    Step,
    plain,
    scientific,
)
from services.constraint.sources.source import Spelling
from services.rpckit.status import GrammarTooLarge

# Digits of one bound or of multipleOf before the point, or behind it.
MAX_BOUND_DIGITS = 400
# States of the multiples within bounds, as estimated; beyond it, a superset is taken. About 20 us each.
MAX_MULTIPLES_STATES = 10_000


# What numbers are written in: digits alone, with a point too, or with an exponent too.
_Form: TypeAlias = Literal["digits", "point", "exponent"]


@dataclass(frozen=True, slots=True)
class Bound:
    """One end of an interval."""

    value: Decimal
    is_exclusive: bool


_ZERO = Cut(Decimal(0), False)
_MINUS = Bytes(b"-")
_DIGIT = expression([(((0x30, 0x39),),)])
_DIGITS = Repeat(_DIGIT, 0, None)
_ZEROS = Repeat(Bytes(b"0"), 0, None)
_POINT_ZEROS = Sequence((Bytes(b".0"), _ZEROS))
_FRACTION = Sequence((Bytes(b"."), Repeat(_DIGIT, 1, None)))
_EXPONENT = Sequence(
    (
        expression([(((0x45, 0x45), (0x65, 0x65)),)]),
        optional(expression([(((0x2B, 0x2B), (0x2D, 0x2D)),)])),
        Repeat(_DIGIT, 1, MAX_EXPONENT_DIGITS),
    )
)
_WHOLE = Alternation((Bytes(b"0"), Sequence((expression([(((0x31, 0x39),),)]), _DIGITS))))
_UNSIGNED_NUMBER = Sequence((_WHOLE, optional(_FRACTION), optional(_EXPONENT)))

NUMBER: Expression = Sequence((optional(_MINUS), _UNSIGNED_NUMBER))
PLAIN_INTEGER: Expression = Sequence((optional(_MINUS), _WHOLE))


def number(
    is_integer: bool, low: Bound | None, high: Bound | None, multiples_of: tuple[Decimal, ...], spelling: Spelling
) -> tuple[Expression, bool]:
    """Return the numbers' expression, and whether it is exact; where not, it has all right numbers and some wrong ones.

    The divisors in `multiples_of` are positive. `spelling` is that of integers: "plain" refuses `1.0` and `1e2`. Where
    there is no such number, the expression is NOTHING.

    Raises:
        GrammarTooLarge: a bound, a divisor or the divisors' least common multiple has more than MAX_BOUND_DIGITS
            digits before or behind the point.
    """
    if low is None and high is None and not multiples_of:
        return NUMBER if not is_integer else INTEGER if spelling == "any" else PLAIN_INTEGER, True
    for value in (*multiples_of, *(bound.value for bound in (low, high) if bound is not None)):
        _check_size(value)
    step = _step((*multiples_of, Decimal(1)) if is_integer else multiples_of)
    if step is not None:
        _check_size(_multiple(1, step))
    return _number(
        None if low is None else Cut(low.value, low.is_exclusive),
        None if high is None else Cut(high.value, not high.is_exclusive),
        step,
        "digits" if is_integer and spelling == "plain" else "exponent",
    )


@lru_cache(maxsize=1024)
def _number(low: Cut | None, high: Cut | None, step: Step | None, form: _Form) -> tuple[Expression, bool]:
    """Return the multiples of `step` (None: all numbers) between two cuts as `number` does."""
    if step is not None:
        first = None if low is None else _first_multiple(low, step)
        last = None if high is None else _first_multiple(high, step) - 1
        return _multiples(step, first, last, form)
    if low is not None and high is not None and low >= high:
        return NOTHING, True
    return _signed(low, high, None, form), True


def _multiples(step: Step, first: int | None, last: int | None, form: _Form) -> tuple[Expression, bool]:
    """Return the multiples of `step` from the first-th to the last-th (None: no end) as `number` does."""
    # From multiple to multiple, cuts have few digits and tell whether there is any number between them.
    low = None if first is None else Cut(_multiple(first, step), False)
    high = None if last is None else Cut(_multiple(last, step), True)
    if low is not None and high is not None and low >= high:
        return NOTHING, True
    if step.factor == 1:
        return _signed(low, high, step, form), True
    # What zeros an exponent brings depends on the factors 2 and 5 of all digits before it: too much to remember.
    if form == "exponent":
        form = "point"
    num_digits = max(_num_digits(low), _num_digits(high))
    num_states = step.num_remainders * (1 + num_digits)
    if first is not None and last is not None:
        num_listed_states = (last + 1 - first) * num_digits
        if num_listed_states <= min(num_states, MAX_MULTIPLES_STATES):
            return _listed(range(first, last + 1), step, form), True
    if num_states <= MAX_MULTIPLES_STATES:
        return _signed(low, high, step, form), True
    return _signed(low, high, Step(1, step.exponent), form), False


def _signed(low: Cut | None, high: Cut | None, step: Step | None, form: _Form) -> Expression:
    """Return the expression of the numbers between two cuts; there are some."""
    mirrored_low, mirrored_high = _mirrored(high), _mirrored(low)
    if (low, high) == (mirrored_low, mirrored_high):
        return Sequence((optional(_MINUS), _unsigned(low, high, step, form)))
    options: list[Expression] = []
    if high is None or high > _ZERO:
        options.append(_unsigned(low, high, step, form))
    if mirrored_high is None or mirrored_high > _ZERO:
        options.append(Sequence((_MINUS, _unsigned(mirrored_low, mirrored_high, step, form))))
    return Alternation(tuple(options))


@lru_cache(maxsize=1024)
def _unsigned(low: Cut | None, high: Cut | None, step: Step | None, form: _Form) -> Expression:
    """Return the expression of the numbers between two cuts that have no sign; there are some."""
    if low is not None and low <= _ZERO:
        low = None
    if low is None and high is None and step is None:
        return _UNSIGNED_NUMBER
    cuts = [(cut, side) for cut, side in ((low, ABOVE), (high, BELOW)) if cut is not None]
    without_exponent = plain(tuple([Limit.plain(cut, side) for cut, side in cuts]), step, has_point=form != "digits")
    # Of numbers with an exponent, none is zero.
    if form != "exponent" or (high is not None and not high.value):
        return without_exponent
    limits = tuple([Limit.scientific(cut, side) for cut, side in cuts if cut.value])
    return Alternation((without_exponent, scientific(limits, step)))


def _mirrored(cut: Cut | None) -> Cut | None:
    return None if cut is None else Cut(cut.value.copy_negate(), not cut.is_behind)


def _step(multiples_of: tuple[Decimal, ...]) -> Step | None:
    """Return the step whose multiples are those of all divisors: their least common multiple."""
    if not multiples_of:
        return None
    ratios = [value.as_integer_ratio() for value in multiples_of]
    factor = Fraction(lcm(*[top for top, _ in ratios]), gcd(*[bottom for _, bottom in ratios]))
    exponent = 0
    while factor.denominator > 1:
        factor, exponent = factor * 10, exponent - 1
    while factor % 10 == 0:
        factor, exponent = factor / 10, exponent + 1
    return Step(int(factor), exponent)


def _first_multiple(cut: Cut, step: Step) -> int:
    """Return which multiple is the first behind a cut."""
    quotient = Fraction(cut.value) / (step.factor * Fraction(10) ** step.exponent)
    return floor(quotient) + (quotient.denominator > 1 or cut.is_behind)


def _multiple(index: int, step: Step) -> Decimal:
    sign, digits, _ = Decimal(index * step.factor).as_tuple()
    return Decimal((sign, digits, step.exponent))


def _listed(indices: range, step: Step, form: _Form) -> Expression:
    """Return the expression of some multiples, one by one."""
    whole: list[bytes] = [b"-0"] if 0 in indices else []
    broken: list[bytes] = []
    for index in indices:
        text = f"{_multiple(index, step):f}".encode()
        if b"." in text and (text := text.rstrip(b"0"))[-1:] != b".":
            broken.append(text)
        else:
            whole.append(text.rstrip(b"."))
    if form == "digits":
        return Literals(tuple(whole))
    return Alternation(
        (Sequence((Literals(tuple(whole)), optional(_POINT_ZEROS))), Sequence((Literals(tuple(broken)), _ZEROS)))
    )


def _num_digits(cut: Cut | None) -> int:
    """Return how many digits a cut's value has, without an exponent."""
    if cut is None or not cut.value:
        return 0
    return len(f"{cut.value:f}")


def _check_size(value: Decimal) -> None:
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)  # JSON has neither NaN nor infinity
    if max(value.adjusted(), -exponent) > MAX_BOUND_DIGITS:
        raise GrammarTooLarge(
            f"the number {value:.3E} has more than {MAX_BOUND_DIGITS} digits (limit max_bound_digits)",
            limit="max_bound_digits",
            value=MAX_BOUND_DIGITS,
        )


INTEGER: Expression = _signed(None, None, Step(1, 0), "exponent")


__all__ = ["INTEGER", "NUMBER", "PLAIN_INTEGER", "Bound", "number"]
