"""Numbers by exact arithmetic: what `number` accepts is what its bounds and divisors say, in every spelling."""

import json
import re
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor, gcd, lcm

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.constraint.core.grammar import NOTHING, Expression, Grammar
from services.constraint.sources.json_schema.numeric import INTEGER, NUMBER, PLAIN_INTEGER, Bound, number
from services.rpckit.status import GrammarTooLarge
from tests.support.derivation import matches

JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # RFC 8259, section 6
Numbers = tuple[bool, Bound | None, Bound | None, tuple[Decimal, ...]]


def accepts(expression: Expression, text: str) -> bool:
    return matches(Grammar("start", {"start": expression}), text.encode())


def is_right(numbers: Numbers, text: str) -> bool:
    is_integer, low, high, multiples_of = numbers
    value = Fraction(text)
    if low is not None and (value < low.value or (low.is_exclusive and value == low.value)):
        return False
    if high is not None and (value > high.value or (high.is_exclusive and value == high.value)):
        return False
    steps = [Fraction(step) for step in multiples_of] + [Fraction(1)] * is_integer
    return all((value / step).denominator == 1 for step in steps)


def inclusive(value: str | int) -> Bound:
    return Bound(Decimal(value), False)


at_least = at_most = inclusive


def decimal(top: int, exponent: int) -> Decimal:
    return Decimal((int(top < 0), tuple(map(int, str(abs(top)))), exponent))


# With few digits, so that values meet; and of any size.
few_digits = st.builds(decimal, st.integers(-130, 130) | st.integers(-(10**5), 10**5), st.integers(-4, 4))
any_size = st.builds(decimal, st.integers(-(10**18), 10**18), st.integers(-30, 20))
ends = few_digits | any_size | st.integers(-(2**63), 2**63).map(Decimal)
bounds = st.none() | st.builds(Bound, ends, st.booleans())
divisors = st.sampled_from(["1", "2", "3", "7", "10", "25", "60", "100", "0.01", "0.1", "0.5", "2.5", "0.125", "0.3"])
several = st.lists(divisors.map(Decimal), min_size=1, max_size=2, unique=True).map(tuple)


@st.composite
def values_near(draw: st.DrawFn, numbers: Numbers) -> Decimal:
    """Draw a value, most often at or beside a bound or a multiple."""
    _, low, high, multiples_of = numbers
    near = [bound.value for bound in (low, high) if bound is not None]
    value = draw(st.sampled_from(near) | few_digits if near else few_digits | any_size)
    if draw(st.booleans()):
        value = Decimal(int(value))
    if multiples_of and draw(st.integers(0, 3)):
        step = draw(st.sampled_from(multiples_of))
        value = int(value / step) * step
    return value + draw(st.sampled_from(["0", "0", "0", "1", "-1", "0.1", "-0.01", "1e-25", "10"]).map(Decimal))


@st.composite
def plain_texts(draw: st.DrawFn, value: Decimal) -> str:
    text = f"{value:f}" if value else draw(st.sampled_from(["0", "-0"]))
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    zeros = "0" * draw(st.integers(0, 3))
    return text + zeros if "." in text or not zeros else f"{text}.{zeros}"


@st.composite
def scientific_texts(draw: st.DrawFn, value: Decimal) -> str:
    """Draw a spelling with an exponent and one digit before the point."""
    digits = "".join(map(str, value.as_tuple().digits)).rstrip("0") + "0" * draw(st.integers(0, 2))
    mantissa = digits if len(digits) == 1 else f"{digits[0]}.{digits[1:]}"
    exponent = value.adjusted()
    mark, sign = draw(st.sampled_from("eE")), "-" if exponent < 0 else draw(st.sampled_from(["", "+"]))
    return f"{'-' * (value < 0)}{mantissa}{mark}{sign}{abs(exponent):0{draw(st.integers(1, 3))}}"


@st.composite
def shifted_texts(draw: st.DrawFn, value: Decimal) -> str:
    """Draw a spelling with an exponent and the point anywhere."""
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    shift = draw(st.integers(-4, 4))
    return f"{Decimal((sign, digits, exponent + shift)):f}e{-shift}"


@settings(max_examples=300, deadline=None)
@given(data=st.data(), is_integer=st.booleans(), low=bounds, high=bounds)
def test_bounds_are_exact(data: st.DataObject, is_integer: bool, low: Bound | None, high: Bound | None) -> None:
    numbers = (is_integer, low, high, ())
    expression, is_exact = number(*numbers, "any")
    assert is_exact
    for _ in range(4):
        value = data.draw(values_near(numbers))
        is_within = is_right(numbers, str(value))
        text = data.draw(plain_texts(value))
        assert accepts(expression, text) == is_within, text
        if value:
            text = data.draw(scientific_texts(value))
            # Of an integer, digits are counted as far as those of a double go.
            is_taken = is_within and not (is_integer and len(value.normalize().as_tuple().digits) > 17)
            assert accepts(expression, text) == is_taken, text
        text = data.draw(shifted_texts(value))
        assert is_within or not accepts(expression, text), text


@settings(max_examples=200, deadline=None)
@given(data=st.data(), is_integer=st.booleans(), low=bounds, high=bounds, multiples_of=several)
def test_multiples_are_exact(
    data: st.DataObject, is_integer: bool, low: Bound | None, high: Bound | None, multiples_of: tuple[Decimal, ...]
) -> None:
    numbers = (is_integer, low, high, multiples_of)
    expression, is_exact = number(*numbers, "any")
    for _ in range(4):
        value = data.draw(values_near(numbers))
        is_within = is_right(numbers, str(value))
        text = data.draw(plain_texts(value))
        assert accepts(expression, text) == is_within or (not is_exact and not is_within), text
        for text in (data.draw(scientific_texts(value)) if value else "0", data.draw(shifted_texts(value))):
            assert is_within or not (is_exact and accepts(expression, text)), text


@settings(max_examples=200, deadline=None)
@given(
    is_integer=st.booleans(),
    low=bounds,
    high=bounds,
    multiples_of=st.just(()) | several,
    texts=st.lists(st.text("0019.eE+-", min_size=1, max_size=7), min_size=10, max_size=10),
)
def test_whatever_is_accepted_is_a_right_number(
    is_integer: bool, low: Bound | None, high: Bound | None, multiples_of: tuple[Decimal, ...], texts: list[str]
) -> None:
    numbers = (is_integer, low, high, multiples_of)
    expression, is_exact = number(*numbers, "any")
    for text in texts:
        if accepts(expression, text):
            assert JSON_NUMBER.fullmatch(text), text
            assert is_right(numbers, text) or not is_exact, text


@settings(max_examples=200, deadline=None)
@given(data=st.data(), is_integer=st.booleans(), low=bounds, high=bounds)
def test_what_json_writers_write_is_taken(
    data: st.DataObject, is_integer: bool, low: Bound | None, high: Bound | None
) -> None:
    numbers = (is_integer, low, high, ())
    expression, _ = number(*numbers, "any")
    for _ in range(4):
        value = float(data.draw(values_near(numbers))) * 10 ** data.draw(st.integers(-20, 20))
        text = json.dumps(value)
        assert accepts(expression, text) == is_right(numbers, text), text


@settings(max_examples=60, deadline=None)
@given(data=st.data(), low=bounds, high=bounds, multiples_of=st.just(()) | several)
def test_plain_integers_are_digits(
    data: st.DataObject, low: Bound | None, high: Bound | None, multiples_of: tuple[Decimal, ...]
) -> None:
    numbers = (True, low, high, multiples_of)
    expression, is_exact = number(*numbers, "plain")
    for _ in range(4):
        value = data.draw(values_near(numbers))
        whole = str(int(value))
        assert accepts(expression, whole) == is_right(numbers, whole) or not is_exact, whole
        text = data.draw(plain_texts(value) | shifted_texts(value))
        assert not accepts(expression, text) or text.lstrip("-").isdigit(), text


@settings(max_examples=200, deadline=None)
@given(is_integer=st.booleans(), low=bounds, high=bounds, multiples_of=st.just(()) | several)
def test_nothing_is_nothing(
    is_integer: bool, low: Bound | None, high: Bound | None, multiples_of: tuple[Decimal, ...]
) -> None:
    expression, _ = number(is_integer, low, high, multiples_of, "any")
    steps = [Fraction(step) for step in multiples_of] + [Fraction(1)] * is_integer
    if low is None or high is None:
        is_empty = False
    elif steps:
        step = Fraction(lcm(*[step.numerator for step in steps]), gcd(*[step.denominator for step in steps]))
        first, last = ceil(Fraction(low.value) / step), floor(Fraction(high.value) / step)
        first += low.is_exclusive and first * step == low.value
        last -= high.is_exclusive and last * step == high.value
        is_empty = first > last
    else:
        is_open = low.is_exclusive or high.is_exclusive
        is_empty = low.value > high.value or (low.value == high.value and is_open)
    assert (expression is NOTHING) == is_empty


@pytest.mark.parametrize(
    ("numbers", "right", "wrong"),
    [
        ((False, None, at_most("1.25"), ()), "1.2 1.25 1.250 -7e9 1.25e0 0", "1.26 1.2500001 1.3e0 1e1 12.6e-1"),
        ((False, None, at_most("1.2"), ()), "1.2 1.20", "1.25 1.2000000001 1.25e0"),
        ((False, None, None, (Decimal("0.01"),)), "19.99 -0.10 5 1.999e1 1e-2 1.00e-02", "19.999 1.9999e1 1e-3"),
        (
            (True, None, None, ()),
            "0 -0 -0.0 1.0 1e2 1.50e1 1E+0 1e-0 1e-00 1.2345678901234567e16",
            "1.5 1.55e1 1e-1 01 1.",
        ),
        ((True, at_least(0), at_most(100), ()), "-0 0.0 100 1e2 1.00e2 1.0e02 5e1", "101 1.01e2 1e3 -1 -1e0 2e2"),
        ((True, at_least(1), at_most(65535), ()), "1 65535 6.5535e4 6.5535000e+04", "0 65536 6.5536e4 7e4 1e5 -0"),
        ((True, None, None, (Decimal(100),)), "0 -0.0 100 12300 -200.00", "10 150 1000.5 00"),
        ((False, Bound(Decimal(0), True), None, ()), "1e-9 0.001 1", "0 -0 0.0 -1 -1e-9"),
        ((False, at_least("-1e-7"), at_most(0), ()), "0 -0 -0.0 -1e-7 -1e-999 -0.0000001", "1e-7 -1.1e-7 -0.00000011"),
        ((True, at_least(10**17), None, (Decimal(3), Decimal("0.5"))), "100000000000000002", "100000000000000000 3"),
    ],
)
def test_examples(numbers: Numbers, right: str, wrong: str) -> None:
    expression, is_exact = number(*numbers, "any")
    assert is_exact
    assert [text for text in right.split() if not accepts(expression, text)] == []
    assert [text for text in wrong.split() if accepts(expression, text)] == []


@pytest.mark.parametrize("divisor", ["12345.678", "2003.1", "1e-30", "123456789123456789123456789e20"])
def test_beyond_what_is_exact_nothing_right_is_refused(divisor: str) -> None:
    step = Decimal(divisor)
    expression, is_exact = number(False, at_least(0), None, (step, step / 2), "any")
    for factor in (0, 1, 2, 1000):
        assert accepts(expression, f"{step * factor:f}")
    assert not accepts(expression, f"-{step:f}")
    assert is_exact == (divisor == "1e-30")


def test_without_conditions_expressions_are_shared() -> None:
    assert number(False, None, None, (), "any") == (NUMBER, True)
    assert number(True, None, None, (), "any")[0] is INTEGER
    assert number(True, None, None, (), "plain")[0] is PLAIN_INTEGER


def test_huge_bounds() -> None:
    expression, is_exact = number(False, at_least("1e-400"), at_most("1e400"), (), "any")
    assert is_exact
    assert accepts(expression, "1e-400")
    assert accepts(expression, "1e400")
    assert accepts(expression, f"0.{'0' * 399}1")
    assert not accepts(expression, f"0.{'0' * 399}09")
    assert not accepts(expression, "1.01e400")


@pytest.mark.parametrize(
    "numbers",
    [
        (False, at_least("1e401"), None, ()),
        (False, None, at_most("1e-999999999"), ()),
        (True, None, None, (Decimal("1e999999999"),)),
        (False, at_least(1), None, (Decimal(3**800), Decimal(7**400))),
    ],
)
def test_beyond_the_digits_of_a_bound_is_an_error(numbers: Numbers) -> None:
    with pytest.raises(GrammarTooLarge) as error:
        number(*numbers, "any")
    assert error.value.metadata["limit"] == "max_bound_digits"
