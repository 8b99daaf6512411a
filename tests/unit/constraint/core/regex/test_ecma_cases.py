"""Patterns of ECMA-262 find what Node.js finds; `tests/support/ecma_cases.py` wrote down what that is."""

import json
from pathlib import Path

import pytest

from services.constraint.core.regex import anchors, automaton, lookaround
from services.constraint.core.regex.parse import Flags, parse
from services.rpckit.status import GrammarSyntax

CASES = json.loads(Path(__file__).with_name("ecma_cases.json").read_text())


@pytest.mark.parametrize("case", CASES["found"])
def test_is_found_where_node_finds_it(case: str) -> None:
    pattern, _, letters = case.rpartition("/")
    tree = parse(pattern, "ecma", Flags(ignore_case="i" in letters, multiline="m" in letters))
    expected = [bool(int(CASES["found"][case], 16) >> index & 1) for index in range(len(CASES["texts"]))]
    dfas = [lookaround.search(tree)]
    if (plain := anchors.search(tree)) is not None:
        dfas.append(automaton.to_dfa(plain))
    for dfa in dfas:
        wrong = [text for text, is_found in zip(CASES["texts"], expected, strict=True) if dfa.matches(text) != is_found]
        assert not wrong


@pytest.mark.parametrize("pattern", CASES["errors"])
def test_is_no_pattern_for_node(pattern: str) -> None:
    with pytest.raises(GrammarSyntax):
        parse(pattern, "ecma")
