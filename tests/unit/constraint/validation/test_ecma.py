"""The validator's patterns find what Node.js finds: its answers are the fixture of the front end's own tests."""

import json
import sys
import unicodedata
from pathlib import Path

import pytest

from services.constraint.core.regex import charset
from services.constraint.core.regex.properties import property_ranges
from services.constraint.validation.ecma import compiled, to_regex

CASES = json.loads((Path(__file__).parent.parent / "core/regex/ecma_cases.json").read_text())
# `pattern` has the flag `u` and no other.
PATTERNS = [case.removesuffix("/u") for case in CASES["found"] if case.endswith("/u")]
EVERY_CHARACTER = "".join(map(chr, range(sys.maxunicode + 1)))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_is_found_where_node_finds_it(pattern: str) -> None:
    bits = int(CASES["found"][f"{pattern}/u"], 16)
    found = [text for text in CASES["texts"] if compiled(pattern).search(text)]
    assert found == [text for index, text in enumerate(CASES["texts"]) if bits >> index & 1]


@pytest.mark.parametrize(
    ("pattern", "found", "not_found"),
    [
        # What `regex` has and ECMA-262 has not: sets of sets, POSIX classes, fuzzy counts, its own escapes.
        ("^[[a&&b]$", "[a&b", "]c"),
        ("^[-a~~||&&]+$", "-a~|&", "b"),
        ("^[[:alpha:]$", "[:alph", "bz]"),
        ("^a{e<=1}$", ("a{e<=1}",), ("a", "b", "")),
        ("^(?:ab){,1}$", ("ab{,1}",), ("ab", "")),
        (r"^\p{punct}$", "!", "$+"),
        # Annex B: what the flag `u` refuses and schemas are full of.
        (r"^\-\_\ \@$", ("-_ @",), ()),
        ("^]{}a{$", ("]{}a{",), ()),
        (r"^[\d-x]+$", "9-x", "y,"),
        (r"^[a-\d]+$", "9-a", "b,"),
        (r"^[\w-a-z]+$", "9-z", "{"),
        (r"^[\w-a--z]+$", "9-z:", "!{"),
        # Sets and their complements.
        (r"[^\p{L}\P{L}]", "", "a1\n🦜"),
        (r"[^\d\D]", "", "a1\n🦜"),
        (r"^[^\W_]$", "a9", "_é "),
        (r"^[^]$", "a\n\u2028🦜", ()),
        # Escapes.
        (r"^[\b\0\cJ\x41\u0042\u{43}\uD83E\uDD9C-\u{1f99d}]$", "\b\0\nABC🦜🦝", "bJxu"),
        (r"^\^\$\\\.\*\+\?\(\)\[\]\{\}\|\/$", ("^$\\.*+?()[]{}|/",), ()),
        # Groups.
        (r"^(?<é>a)(b)(?:c)(?<$>d)$", ("abcd",), ()),
        (r"^(a(?<!b)){2}\B$", (), ("aa",)),
    ],
)
def test_means_what_ecma_262_says(pattern: str, found: tuple[str, ...], not_found: tuple[str, ...]) -> None:
    for text in found:
        assert compiled(pattern).search(text), text
    for text in not_found:
        assert not compiled(pattern).search(text), text


@pytest.mark.parametrize("name", ["LC", "gc=Zs", "punct", "White_Space", "Hex"])
def test_properties_are_those_of_the_front_end(name: str) -> None:
    # For all that the running Python, whose Unicode is older, knows; but for a handful that have changed since.
    mine = {match.start() for match in compiled(rf"\p{{{name}}}").finditer(EVERY_CHARACTER)}
    ranges = property_ranges(name)
    assert ranges is not None
    theirs = {code_point for low, high in ranges for code_point in range(low, high + 1)}
    differing = [
        code_point
        for code_point in mine ^ theirs
        if unicodedata.category(chr(code_point)) not in ("Cn", "Cs") and code_point <= charset.MAX_CODE_POINT
    ]
    assert len(differing) < 5


def test_no_group_captures() -> None:
    assert to_regex("(a)(?<x>b)(?=(c))(?<!d)") == (r"(?:\U00000061)(?:\U00000062)(?=(?:\U00000063))(?<!\U00000064)")
