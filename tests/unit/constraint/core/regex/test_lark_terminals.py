"""Look-around in the terminals of Lark grammars: what lies inside a terminal is enforced, the rest is refused."""

import itertools

import lark
import pytest

from services.constraint.core.grammar import Grammar
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.rpckit.status import UnsupportedConstruct
from tests.support.derivation import matches

GRAMMARS = {
    "common.ESCAPED_STRING": ("%import common.ESCAPED_STRING\nstart: ESCAPED_STRING+", '"\\a\n'),
    "lark.STRING": ('start: STRING ("," STRING)*\n%import lark.STRING', '"\\i,'),
    "python.LONG_STRING": ("start: LONG_STRING\n%import python.LONG_STRING", "\"'\\r"),
    "ignored text": (
        'start: ESCAPED_STRING (":" ESCAPED_STRING)*\n%import common.ESCAPED_STRING\nGAP: / (?=a)a/\n%ignore GAP',
        '":\\ a',
    ),
    "a tempered loop": ("start: A\nA: /a(?:(?!bb)[ab])*bb/", "ab"),
    "a boundary inside": (r"start: A" "\n" r"A: /\w+\b[ .]+\b\w/", "a. "),
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_takes_what_lark_takes(name: str) -> None:
    text_of_grammar, alphabet = GRAMMARS[name]
    parser = lark.Lark(text_of_grammar, parser="earley", lexer="dynamic_complete")
    grammar = build(ConstraintSource("lark", text_of_grammar), SourceOptions()).grammar
    longest = 8 if len(alphabet) <= 2 else 6
    for length in range(longest):
        for characters in itertools.product(alphabet, repeat=length):
            text = "".join(characters)
            assert matches(grammar, text.encode()) == _is_accepted(parser, text), text


def _is_accepted(parser: lark.Lark, text: str) -> bool:
    try:
        parser.parse(text)
    except lark.exceptions.UnexpectedInput:
        return False
    return True


@pytest.mark.parametrize(
    ("terminal", "name", "position"),
    [
        (r"a\b", "word boundary", 1),
        (r"\ba", "word boundary", 0),
        ("a(?=b)", "look-ahead", 1),
        ("a(?!bc)b?", "negative look-ahead", 1),
        ("(?<=a)b", "look-behind", 0),
        ("a(?<!ba)b", "negative look-behind", 1),
        ("a(?=.*b)[ab]*", "look-ahead", 1),
        ("a(?:b|c(?!d))", "negative look-ahead", 7),
        ("(?:a(?=b))+b?", "look-ahead", 4),
        ("b(?<=(?<=x)b)c", "look-behind", 1),
        ("^a", "^", 0),
        ("a$", "$", 1),
        (r"a$\n", "$", 1),
        (r"a(?=b\b)b", "look-ahead", 1),
    ],
)
def test_what_may_see_beyond_a_terminal_is_refused(terminal: str, name: str, position: int) -> None:
    with pytest.raises(UnsupportedConstruct) as caught:
        build(ConstraintSource("lark", f"start: A\nA: /{terminal}/"), SourceOptions())
    assert caught.value.metadata["name"] == name
    assert caught.value.metadata["position"] == str(position)
    assert caught.value.metadata["terminal"] == "A"


def test_an_anchor_inside_is_false() -> None:
    grammar: Grammar = build(ConstraintSource("lark", "start: A\nA: /a(?:^b|c)/"), SourceOptions()).grammar
    assert matches(grammar, b"ac")
    assert not matches(grammar, b"ab")
