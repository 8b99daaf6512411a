"""Random texts against Lark's own Earley parser with the dynamic_complete lexer."""

import lark
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.constraint.core.grammar import Grammar
from services.constraint.sources import ConstraintSource, SourceOptions, build
from tests.support.derivation import matches

# name -> (grammar, pieces of text)
GRAMMARS = {
    "ignored comments": (
        r"""
        start: item+
        item: NAME "=" (NUMBER | C) ";"
        C: /a|ab/
        NAME: /[a-z]+?x?/i
        %import common.SIGNED_NUMBER -> NUMBER
        %import common (WS, C_COMMENT, SH_COMMENT)
        %ignore WS
        %ignore C_COMMENT
        %ignore SH_COMMENT
        """,
        ["a", "b", "=", "1", "-2.5", "ab", ";", " ", "/* x */", "/* a */ */", "# c", "\n", "x", "a=1;", "B =ab;"],
    ),
    "ignored text that a terminal may begin with": (
        'start: (WORD | "!")*\nWORD: /[a ]+b/\nSPACES: / +/\n%ignore SPACES',
        ["a", "b", " ", "!", "ab", " b", "!  "],
    ),
    "left and hidden left recursion": (
        'start: e\ne: e "+" e | opt e "!" | "x"\nopt: "~"?',
        ["x", "+", "!", "~", "x+x", "x!"],
    ),
    "templates, counts, aliases and priorities": (
        'start: sep{pair, ","}\nsep{item, by}: item (by item)*\npair.2: "k"~1..3 "=" "v"i -> pair\n    | "()"',
        ["k", "=", "v", "V", ",", "()", "k=v", "kk=V"],
    ),
    "characters of many bytes": (
        'start: (GREETING | BIRD)+\nGREETING: /[가-힣]{2}/\nBIRD: "🦜"',
        ["안녕", "가", "🦜", "a"],
    ),
    "nothing at all": ('start: "a"*\n%ignore " "', ["a", " "]),
}


@pytest.mark.parametrize("name", GRAMMARS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_takes_what_lark_takes(name: str, data: st.DataObject) -> None:
    text_of_grammar, pieces = GRAMMARS[name]
    parser, grammar = _loaded(name, text_of_grammar)
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=8)))
    try:
        parser.parse(text)
        is_accepted = True
    except lark.exceptions.UnexpectedInput:
        is_accepted = False
    assert matches(grammar, text.encode()) == is_accepted, text


_CACHE: dict[str, tuple[lark.Lark, Grammar]] = {}


def _loaded(name: str, text: str) -> tuple[lark.Lark, Grammar]:
    if name not in _CACHE:
        grammar = build(ConstraintSource("lark", text), SourceOptions()).grammar
        _CACHE[name] = (lark.Lark(text, parser="earley", lexer="dynamic_complete"), grammar)
    return _CACHE[name]
