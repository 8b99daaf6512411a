"""Every spelling of a string is written with `escapes` "any", and one with "plain"."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.constraint.core.engine import Matcher, TokenTrie, compile_grammar
from services.constraint.core.grammar import Grammar
from services.constraint.sources.json_schema.nodes import String
from services.constraint.sources.json_schema.strings import string
from tests.support.derivation import matches
from tests.support.grammars import vocabulary

SHORT = {"\b": "b", "\t": "t", "\n": "n", "\f": "f", "\r": "r", '"': '"', "\\": "\\", "/": "/"}
NODES = [
    String(),
    String(1, 9),
    String(0, None, ("^[^x]*$",)),
    String(0, None, (r'[ab/"\\\n😀é]',)),
    String(0, 9, ("a", "b|é")),
    String(0, None, ("^(?!x)",)),
    String(0, None, (), ("json-pointer",)),
]


def spelled(text: str, rng: random.Random) -> str:
    """Return a text as a JSON string, each character in any spelling."""
    return '"' + "".join(rng.choice(spellings(char)) for char in text) + '"'


def spellings(char: str) -> list[str]:
    units = [f"{unit:04x}" for unit in np.frombuffer(char.encode("utf-16-le"), np.uint16)]
    escaped = ["".join("\\u" + write(unit) for unit in units) for write in (str.lower, str.upper)]
    short = ["\\" + SHORT[char]] if char in SHORT else []
    return [*escaped, *short, *([char] if char >= " " and char not in '"\\' else [])]


@given(
    node=st.sampled_from(NODES),
    text=st.text(st.sampled_from('ab/x~0"\\\n\x01\x7fé中😀\U0010ffff'), max_size=6),
    rng=st.randoms(use_true_random=False),
)
def test_every_spelling(node: String, text: str, rng: random.Random) -> None:
    grammars = {escapes: Grammar("start", {"start": string(node, escapes)}) for escapes in ("any", "plain")}
    plain, other = json.dumps(text, ensure_ascii=False), spelled(text, rng)
    assert json.loads(other) == text
    is_valid = matches(grammars["plain"], plain.encode())
    assert matches(grammars["any"], plain.encode()) == is_valid
    assert matches(grammars["any"], other.encode()) == is_valid
    assert matches(grammars["plain"], other.encode()) == (is_valid and other == plain)


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("text", [rb'"a\ud83d"', rb'"a\ude00b"', rb'"a\uD83D\u0061"', b'"a\xed\xa0\xbd"'])
def test_no_lone_surrogates(node: String, text: bytes) -> None:
    assert not matches(Grammar("start", {"start": string(node)}), text)


@pytest.mark.parametrize("pattern", ["^[a-z]*$", "^[a-z]{2,70}$", "^[^0-9]+$", "a.*b", "x"])
def test_loops_over_characters_are_spans(pattern: str) -> None:
    grammar = Grammar("start", {"start": string(String(patterns=(pattern,)))})
    matcher = Matcher(compile_grammar(grammar), TokenTrie(vocabulary()))
    assert np.count_nonzero(matcher.configurations.spans.arrays.state_span)
