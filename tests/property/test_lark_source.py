"""Random grammars and texts against Lark's own parsers."""

import itertools
import random

import lark
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from services.constraint.core.engine import Matcher, TokenTrie, compile_grammar
from services.constraint.core.grammar import Grammar
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.sources.source import LarkLexer
from services.constraint.validation.validators import validate
from services.rpckit.status import GrammarSyntax, UnsatisfiableGrammar
from services.vocabulary import allowed_token_ids
from tests.support.derivation import matches
from tests.support.grammars import vocabulary
from tests.support.lark_grammars import ALPHABET, lark_grammars

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


LEXERS: dict[LarkLexer, str] = {"dynamic_complete": "earley", "contextual": "lalr"}
# All texts up to so many characters are tried.
LONGEST = 5


@pytest.mark.parametrize("name", GRAMMARS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_takes_what_lark_takes(name: str, data: st.DataObject) -> None:
    text_of_grammar, pieces = GRAMMARS[name]
    parser, grammar = _loaded(name, text_of_grammar)
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=8)))
    assert matches(grammar, text.encode()) == _is_accepted(parser, text), text


@pytest.mark.parametrize("lexer", LEXERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_grammars_take_exactly_the_texts_that_lark_parses(lexer: LarkLexer, data: st.DataObject) -> None:
    text_of_grammar = data.draw(lark_grammars(look_ahead=lexer == "contextual"))
    try:
        grammar = build(ConstraintSource("lark", text_of_grammar), SourceOptions(lexer=lexer)).grammar
    except GrammarSyntax:  # of LALR: two rules that could end where the same terminal follows
        assume(False)
    parser = lark.Lark(text_of_grammar, parser=LEXERS[lexer], lexer=lexer)
    for length in range(LONGEST + 1):
        for characters in itertools.product(ALPHABET, repeat=length):
            text = "".join(characters)
            assert matches(grammar, text.encode()) == _is_accepted(parser, text), text


VOCABULARY = vocabulary((("a", "b"), ("a", "a"), ("b", "."), ("ab", "a"), (".", "a"), ("!", "a")))
TRIE = TokenTrie(VOCABULARY)
MAX_TOKENS = 40


@pytest.mark.parametrize("lexer", LEXERS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 1 << 30))
def test_walks_through_the_masks_end_in_texts_that_lark_parses(
    lexer: LarkLexer, data: st.DataObject, seed: int
) -> None:
    text_of_grammar = data.draw(lark_grammars(look_ahead=lexer == "contextual"))
    source, options = ConstraintSource("lark", text_of_grammar), SourceOptions(lexer=lexer)
    try:
        matcher = Matcher(compile_grammar(build(source, options).grammar), TRIE)
    except (GrammarSyntax, UnsatisfiableGrammar):
        return
    rng = random.Random(seed)
    for _ in range(5):
        state, text = matcher.start, b""
        for _ in range(MAX_TOKENS):
            guidance = matcher.guidance(state)
            text += b"".join(VOCABULARY.token_bytes[token] or b"" for token in guidance.forced_token_ids)
            allowed = allowed_token_ids(guidance.bitmask, VOCABULARY.vocab_size).tolist()
            assert guidance.is_accepting == (VOCABULARY.eos_token_ids[0] in allowed)
            if guidance.is_accepting:
                assert validate(source, options, text) == []
            token = rng.choice(allowed)
            if token in VOCABULARY.eos_token_ids:
                break
            state = matcher.accept(guidance.after_forced, [token])
            text += VOCABULARY.token_bytes[token] or b""


def _is_accepted(parser: lark.Lark, text: str) -> bool:
    try:
        parser.parse(text)
    except lark.exceptions.UnexpectedInput:
        return False
    except RuntimeError as error:
        # A bug of Lark's: it has found more than one parse, of nothing and of ignored text.
        return "multiple start symbol items" in str(error)
    return True


_CACHE: dict[str, tuple[lark.Lark, Grammar]] = {}


def _loaded(name: str, text: str) -> tuple[lark.Lark, Grammar]:
    if name not in _CACHE:
        grammar = build(ConstraintSource("lark", text), SourceOptions()).grammar
        _CACHE[name] = (lark.Lark(text, parser="earley", lexer="dynamic_complete"), grammar)
    return _CACHE[name]
