"""Look-around by example: what patterns mean that people write, what is refused, and what hostile ones cost."""

import re
import time

import pytest

from services.constraint.core.grammar import Grammar
from services.constraint.core.regex import anchors, encoding, lookaround
from services.constraint.core.regex.parse import Dialect, parse
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.sources.json_schema import strings
from services.rpckit.status import GrammarSyntax, GrammarTooLarge, UnsupportedConstruct
from tests.support.derivation import matches

PASSWORD = r"^(?=.*[a-z])(?=.*[A-Z])(?=.*\d).{8,}$"
WORDS = ["".join(chr(97 + (i * 7 + j * j * 3 + i * i * j) % 26) for j in range(7)) for i in range(300)]


@pytest.mark.parametrize(
    ("pattern", "found", "not_found"),
    [
        (PASSWORD, ["Passw0rd", "aaaaaaaaA1"], ["passw0rd", "Passwor", "PASSW0RD"]),
        (r"\bfoo\b", ["foo", "a foo b", "foo-bar", "éfooé"], ["foobar", "a_foo", "fo o"]),
        (r"^(?!\s*$).+", ["a", " a "], ["", " ", "\t "]),
        (r"^(?!.*--)[a-z-]+(?<!-)$", ["a-b", "ab"], ["a--b", "a-", ""]),
        (r"(?<=\$)\d+(?!\.)\b", ["$7", "a $70 b"], ["7", "$7.5", "$"]),
        (r"(?<=a.*)b", ["ab", "xaxxb"], ["ba", "b"]),
        (r"^(?:(?!-->).)*$", ["a -- b", "->"], ["a-->b"]),
        (rf"^(?!(?:{'|'.join(WORDS)})$)\w+$", ["word", WORDS[7] + "s", WORDS[7][:-1]], WORDS[5:9]),
    ],
)
def test_ecma_search(pattern: str, found: list[str], not_found: list[str]) -> None:
    dfa = strings.dfa_of(pattern)
    assert [text for text in found if not dfa.matches(text)] == []
    assert [text for text in not_found if dfa.matches(text)] == []


def test_automata_are_the_smallest() -> None:
    assert len(strings.dfa_of(r"\bfoo\b").edges) == 6
    assert len(strings.dfa_of(r"^(?:(?!-->).)*$").edges) == 3
    assert (
        len(strings.dfa_of(PASSWORD).edges) == 48
    )  # how many characters and which kinds are missing, at most 9 * 2**3


def test_a_source_in_bytes() -> None:
    grammar = build(ConstraintSource("regex", r"(?i)(?=.*\bé한\b)[^🦜]*(?<!\n)"), SourceOptions()).grammar
    for text, is_match in (("É한", True), ("a é한!", True), ("é한a", False), ("é한🦜", False), ("é한\n", False)):
        assert matches(grammar, text.encode()) == is_match, text


def test_a_pattern_in_a_json_string() -> None:
    dfa = lookaround.search(parse(r'(?<!\\)"$', "ecma"))
    grammar = Grammar("start", {"start": dfa.to_automaton(encoding.json_plain)})
    assert matches(grammar, rb"a\"")
    assert not matches(grammar, rb"a\\\"")


@pytest.mark.parametrize("pattern", [r"a", r"(?:a|b){2,3}c*", r"^a$", r"(?:^|,)x(?:$|,)", "^a|b$"])
def test_what_has_a_plain_tree_keeps_it(pattern: str) -> None:
    assert anchors.search(parse(pattern, "ecma")) is not None
    assert anchors.full_match(parse(pattern, "python")) is not None


@pytest.mark.parametrize(
    ("dialect", "pattern", "name"),
    [
        ("python", r"(a)\1", "back-reference"),
        ("python", r"(?P<x>a)(?=(?P=x))", "back-reference"),
        ("python", "(a)?(?(1)b|c)", "conditional group"),
        ("python", "(?>a)", "atomic group"),
        ("python", "a*+", "possessive quantifier"),
        ("ecma", r"(?=(a))\1", "back-reference"),
        ("ecma", r"(?<x>a)\k<x>", "back-reference"),
        ("ecma", r"\p{Script=Greek}", "property Script=Greek"),
        ("ecma", r"\p{Alphabetic}", "property Alphabetic"),
        ("ecma", r"\p{gc=Any}", "property gc=Any"),
        ("ecma", "(?i:a)", "inline flag"),
    ],
)
def test_what_is_not_expressed_is_refused(dialect: Dialect, pattern: str, name: str) -> None:
    with pytest.raises(UnsupportedConstruct) as caught:
        parse(pattern, dialect)
    assert caught.value.metadata["name"] == name


@pytest.mark.parametrize(
    "pattern",
    ["(?<=a|bc)", "(?<!a*)", "(?<=a{2,3})", "^*", r"\b+", r"\Z?", "a{5,0}", "(?=a", "(?<=", "(?<a)", "(?=a){3,1}"],
)
def test_what_python_refuses_is_bad_syntax(pattern: str) -> None:
    with pytest.raises(re.error) as expected:
        re.compile(pattern)
    with pytest.raises(GrammarSyntax) as caught:
        parse(pattern, "python")
    if "look-behind" in str(expected.value):
        assert str(expected.value) in caught.value.message


HOSTILE = {
    "empty loops": r"(a*)*b(?=)",
    "nested empty loops": "(?:" * 60 + "a?(?=b)?" + ")*" * 60,
    "nothing, often": "(?:" * 4 + "){1000000}" * 4 + "(?=a)a",
    "nested look-ahead": "(?=" * 90 + "a" + ")" * 90 + "a",
    "a look-ahead in each time of a loop": "(?:a(?!" * 40 + "b" + "))*" * 40,
    "overlapping look-ahead": "(?:(?=.{0,60}a)b|(?=.{0,60}b)a)*",
    "all of many": "".join(f"(?=.*{char})" for char in "abcdefgh") + ".*",
    "none of many": "(?:" + "".join(f"(?!.*{char})" for char in "abcdefghijklmnop") + ".)*",
    "a count and a boundary": r"\bx{1000}\b",
    "any of many words": r".*\b(?:" + "|".join(WORDS) + r")\b.*",
}
TOO_LARGE = [
    ("max_pattern_characters", "(" * 60_000 + ")" * 60_000),
    ("max_pattern_characters", "(?=" * 60_000 + ")" * 60_000),
    ("max_group_depth", "(?=" * 101 + ")" * 101),
    ("max_nfa_states", "(?=x{1000000})x*"),
    ("max_nfa_states", "(?:" * 4 + "(?=a)" + "){1000000}" * 4),
    ("max_dfa_states", "".join(f"(?=.*{char})" for char in "abcdefghijklmnop") + ".*"),
    ("max_dfa_states", ".*(?<=a.{20})b.*"),
    ("max_formula_depth", "(?:(?=.{200}z)x)*.*"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_patterns_get_an_answer(name: str) -> None:
    start = time.monotonic()
    build(ConstraintSource("regex", HOSTILE[name]), SourceOptions())
    assert time.monotonic() - start < 20  # at most 4 s on the machine that this was written on


@pytest.mark.parametrize(("limit", "pattern"), TOO_LARGE, ids=lambda value: value[:30])
def test_hostile_patterns_meet_a_limit(limit: str, pattern: str) -> None:
    start = time.monotonic()
    with pytest.raises(GrammarTooLarge) as caught:
        build(ConstraintSource("regex", pattern), SourceOptions())
    assert caught.value.metadata["limit"] == limit
    assert time.monotonic() - start < 30
