"""Keys parted by the patterns that they match: expressions against another regular expression library."""

import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.constraint.core.engine import TERMINATED, Matcher, TokenTrie, compile_grammar
from services.constraint.core.grammar import Alternation, Bytes, Expression, Grammar, Sequence
from services.constraint.core.reference import Reference as Twin
from services.constraint.core.regex import automaton
from services.constraint.sources.json_schema.key_classes import KeyClass, key_classes
from services.constraint.sources.json_schema.keys import any_key_but, key_bytes
from services.constraint.sources.json_schema.nodes import String
from services.constraint.sources.json_schema.strings import PLAIN_STRING, found_in
from services.constraint.validation.ecma import compiled
from services.vocabulary import allowed_token_ids
from tests.support import derivation

SAMPLES = (
    "^x-", "", ".*", "^.+$", "^[a-zA-Z0-9._-]+$", "^[0-9]{3}$", "^[a-z]{1,3}$", "a", "b$", "é", "^[^a]", "^(a|é)b*$",
    "^(?!a).*$", r"\n", "(ab)_.*", "[가-힣]", "🦜", "^$", '"', r"\\",
)  # fmt: skip
atoms = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", "é", "(a|bb)", r"\d", "[é-中]", "x-", "(?!a)", "(?<=b)"])
counts = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,3}"])


def counted(atom: str, count: str) -> str:
    return atom if atom.startswith("(?") else atom + count


bodies = st.lists(st.builds(counted, atoms, counts), min_size=1, max_size=3).map("".join)
patterns = st.sampled_from(SAMPLES) | st.builds(
    "{}{}{}".format, st.sampled_from(["", "^"]), bodies, st.sampled_from(["", "$"])
)
texts = st.text('abx-1_"\\\n\x01é中🦜', max_size=5)
narrowings = st.none() | st.builds(
    lambda minimum, room, found: String(minimum, None if room is None else minimum + room, tuple(found)),
    st.integers(0, 2),
    st.none() | st.integers(0, 4),
    st.lists(patterns, max_size=1),
)


def accepts(keys: Expression, key: str) -> bool:
    return derivation.matches(Grammar("start", {"start": keys}), key_bytes(key))


@settings(max_examples=300, deadline=None)
@given(
    names=st.sets(texts, max_size=4),
    found=st.lists(patterns, max_size=3, unique=True).map(tuple),
    among=narrowings,
    keys=st.lists(texts, min_size=8, max_size=8),
)
def test_a_key_is_in_the_class_of_what_it_matches(
    names: set[str], found: tuple[str, ...], among: String | None, keys: list[str]
) -> None:
    classes, is_exact = key_classes(names, found, among)
    assert is_exact
    assert len({key_class.matched for key_class in classes}) == len(classes)
    near = [name + "a" for name in names] + [name[:-1] for name in names]
    for key in {*keys, *names, *near}:
        matched = tuple(index for index, pattern in enumerate(found) if compiled(pattern).search(key))
        is_wanted = key not in names and (among is None or is_text_of(among, key))
        expected = [matched] if is_wanted else []
        assert [one.matched for one in classes if accepts(one.keys, key)] == expected, key


def is_text_of(node: String, text: str) -> bool:
    maximum = len(text) if node.max_length is None else node.max_length
    return node.min_length <= len(text) <= maximum and all(compiled(pattern).search(text) for pattern in node.patterns)


def test_no_patterns() -> None:
    names = ("a", "ab", "é")
    assert key_classes(names, (), None) == ((KeyClass(any_key_but(names), ()),), True)
    ((key_class,), _) = key_classes((), (), None)
    assert key_class.keys is PLAIN_STRING


def test_a_pattern_found_in_every_key() -> None:
    assert key_classes(("a",), (".*",), None) == ((KeyClass(any_key_but(["a"]), (0,)),), True)


def test_names_use_a_class_up() -> None:
    classes, _ = key_classes(("stored", "id"), ("^(id|stored)$",), String(max_length=6))
    assert [key_class.matched for key_class in classes] == [()]


@pytest.mark.parametrize("among", [String(2, 1), String(0, None, ("^a$", "^b$")), String(2, 3, ("^.$",))])
def test_no_key_is_wanted(among: String) -> None:
    assert key_classes(("a",), ("^x-",), among) == ((), True)


def test_too_many_classes() -> None:
    """Each subset of the letters is a class."""
    classes, is_exact = key_classes((), tuple("abcdefghijkl"), None)
    assert (len(classes), is_exact) == (13, False)


def test_too_large_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automaton, "MAX_DFA_STATES", 12)
    patterns = ("^a?b{0,5}$", "c{4}", "ab")
    classes, is_exact = key_classes(("ab", "aba"), patterns, String(min_length=1))
    assert not is_exact
    assert [key_class.matched for key_class in classes] == [(), (0,), (1,), (2,)]
    for key in ("", "ab", "aba", "b", "abb", "cccc", "abcccc", "zab", "z"):
        expected = [()] + [(index,) for index, pattern in enumerate(patterns) if found_in(pattern, key)]
        is_wanted = key not in ("", "ab", "aba")
        assert [one.matched for one in classes if accepts(one.keys, key)] == (expected if is_wanted else []), key


PIECES = [*"abcx-_01:", '"', "\\", "n", "u", " ", "é", "中", "🦜"]
words = st.lists(st.lists(st.sampled_from(PIECES), min_size=2, max_size=5).map("".join), min_size=10, max_size=30)


@dataclass(frozen=True)
class Words:
    """As much of a vocabulary as masks need."""

    token_bytes: tuple[bytes | None, ...]
    eos_token_ids: tuple[int, ...]

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)


@settings(max_examples=100, deadline=None)
@given(
    names=st.sets(texts, max_size=3),
    found=st.lists(patterns, min_size=1, max_size=2, unique=True).map(tuple),
    tokens=words.map(lambda found: [word.encode() for word in found]),
    rng=st.randoms(use_true_random=False),
)
def test_masks_of_classes_are_what_the_twin_finds(
    names: set[str], found: tuple[str, ...], tokens: list[bytes], rng: random.Random
) -> None:
    classes, _ = key_classes(names, found, None)
    assume(classes)
    members = [Sequence((one.keys, Bytes(b":" * number))) for number, one in enumerate(classes, 1)]
    grammar = compile_grammar(Grammar("start", {"start": Alternation(tuple(members))}))
    every_byte = [bytes([byte]) for byte in "".join(PIECES).encode()]
    vocabulary: Any = Words((*dict.fromkeys((*every_byte, *tokens)), None), (len({*every_byte, *tokens}),))
    matcher, twin = Matcher(grammar, TokenTrie(vocabulary), forcing="off"), Twin(grammar)
    state, mine = matcher.start, twin.start
    for _ in range(6):
        allowed = allowed_token_ids(matcher.guidance(state).bitmask, vocabulary.vocab_size).tolist()
        assert {*allowed} == twin.allowed(mine, vocabulary.token_bytes, vocabulary.eos_token_ids)
        token_id = rng.choice(allowed)
        state = matcher.accept(state, [token_id])
        if state == TERMINATED:
            break
        mine = twin.after(mine, vocabulary.token_bytes[token_id])
