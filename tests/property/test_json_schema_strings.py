"""Patterns with lengths, and keys but some, by definition: expressions against plain Python."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from services.constraint.core.grammar import Grammar
from services.constraint.core.regex import anchors, automaton
from services.constraint.core.regex.parse import parse
from services.constraint.sources.json_schema.keys import any_key_but, key_bytes
from services.constraint.sources.json_schema.nodes import String
from services.constraint.sources.json_schema.strings import string
from tests.support.derivation import matches

atoms = st.sampled_from(["a", "b", "[ab]", "[abé]", ".", "[^a]", "(a|bb)", "(ab)", "(a|é|)", r"\d", "(a*b)", "中"])
counts = st.sampled_from(["", "*", "+", "?", "{2}", "{1,3}", "{2,}", "{0}"])
sequences = st.lists(st.tuples(atoms, counts).map("".join), min_size=1, max_size=4).map("".join)
choices = st.lists(sequences, min_size=1, max_size=2).map("|".join)
patterns = st.builds("{}{}{}".format, st.sampled_from(["", "^"]), choices, st.sampled_from(["", "$"]))
texts = st.text("abé1中\n", max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    found=st.lists(patterns, min_size=1, max_size=2, unique=True),
    minimum=st.integers(0, 4),
    room=st.none() | st.integers(0, 4),
    values=st.lists(texts, min_size=20, max_size=20),
)
def test_patterns_with_lengths(found: list[str], minimum: int, room: int | None, values: list[str]) -> None:
    maximum = None if room is None else minimum + room
    grammar = Grammar("start", {"start": string(String(minimum, maximum, tuple(found)))})
    trees = [anchors.search(parse(pattern, "ecma")) for pattern in found]
    oracles = [automaton.to_dfa(tree) for tree in trees if tree is not None]
    for value in values:
        expected = all(oracle.matches(value) for oracle in oracles) and minimum <= len(value)
        expected = expected and (maximum is None or len(value) <= maximum)
        assert matches(grammar, json.dumps(value, ensure_ascii=False).encode()) == expected, value


@given(
    names=st.lists(st.text('ab"\\\n\x01é中😀', max_size=4), min_size=1, max_size=6),
    others=st.lists(st.text('ab"\\\n\x01é中😀', max_size=5), max_size=6),
)
def test_any_key_but(names: list[str], others: list[str]) -> None:
    grammar = Grammar("start", {"start": any_key_but(names)})
    near = [name + "a" for name in names] + [name[:-1] for name in names]
    for key in (*names, *others, *near):
        assert matches(grammar, key_bytes(key)) == (key not in names), key
    assert not any(matches(grammar, text) for text in (b'"', b'""a', b'"\xff"', b'"\xc3"'))
