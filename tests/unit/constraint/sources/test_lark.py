"""What Lark's lexers do that is easily taken for something else: all texts up to a length, against Lark itself."""

import itertools

import lark
import pytest

from services.constraint.core.engine import compile_grammar
from services.constraint.core.grammar import Grammar
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.sources.source import LarkLexer
from services.constraint.validation.validators import validate
from services.rpckit.status import GrammarSyntax, UnsatisfiableGrammar, UnsupportedConstruct
from tests.support.derivation import matches

# grammar, alphabet, characters of the longest text
CASES = {
    "a name takes the mark that the grammar waits for": ('start: NAME "!"\nNAME: /[a-z]+!?/', "a!", 6),
    "keywords are no names, but the beginnings of some": (
        'start: (IF NAME | NAME)+\nIF: "if"\nNAME: /[a-z]+/\n%ignore " "',
        "if ",
        6,
    ),
    "a keyword is a name where only a name can stand": ('start: "k" "." NAME | NAME\nNAME: /k+/', "k.", 7),
    "a keyword of another case": ('start: IF NAME\nIF: "if"i\nNAME: /[a-z]+/i\n%ignore " "', "iF ", 5),
    "a keyword of higher priority cuts names": ('start: (IF | NAME)+\nIF.2: "if"\nNAME: /[a-z]+/', "if", 7),
    "the first alternative, not the longest": ("start: A B?\nA: /a|ab/\nB: /b+/", "ab", 6),
    "a lazy match": ("start: (A | B)+\nA: /a+?b/\nB: /b/", "ab", 7),
    "a number and a dot, until a digit comes": (r'start: NUM ("." NUM?)*' + "\nNUM: /[0-9]+([.][0-9]+)?/", "1.", 7),
    "operators that begin with operators": ('start: (A | B | C | E)*\nA: "<"\nB: "<<"\nC: "<<="\nE: "="', "<=", 6),
    "a conflict that is resolved by shifting": ('start: s\ns: "i" s | "i" s "e" s | "x"', "iex", 6),
    "a conflict that shifting resolves to nothing": ('start: x "b" | "a" "b" "c"\nx: "a"', "abc", 5),
    "a conflict that loses texts": ('start: a "b"\na: "a" c\nc: "b"?', "ab", 4),
    "rules of different priority": ('start: x "c" | y "d"\nx.2: "a"\ny: "a"', "acd", 4),
    "rules of different priority before the same": ('start: x "c" | y "c" "d"\nx.2: "a"\ny: "a"', "acd", 4),
    "ignored text that could go on": ('start: ("a" | "c")*\nW: /b(cd)?/\n%ignore W', "abcd", 5),
    "ignored text that is also asked for": ('start: "a" SPACE "b" | "b"\nSPACE: " "\n%ignore SPACE', "ab ", 5),
    "ignored text of two kinds, one the beginning of the other": (
        'start: "a"*\nW: " "\nC: / #[^.]*/\n%ignore W\n%ignore C',
        "a #.",
        5,
    ),
    "nullable rules between tokens": ('start: o "a" o "b" o\no: "c"?\n%ignore " "', "abc ", 5),
    "hidden left recursion": ('start: e\ne: o e "+" "x" | "x"\no:', "x+", 7),
}
# As above, where the text behind a terminal's match counts: `contextual` alone has one meaning for that.
LOOKING_AHEAD = {
    "a string that is not the beginning of a long one": ("start: STRING+\n%import python.STRING", "\"'r", 7),
    "a zero and no other digit": ('start: (DEC_NUMBER | "1" | "_")+\n%import python.DEC_NUMBER', "01_", 6),
    "a mark before anything but a letter": ("start: (OP | RULE)+\n%import lark.OP\n%import lark.RULE", "?a*_", 5),
    "a word that another one must follow": ('start: (A | B | C)*\nA: /a(?=b*c)/\nB: "b"\nC: "c"', "abc", 6),
    "what a word looks ahead to may be ignored": ('start: A B\nA: /a(?= )/\nB: "b"\n%ignore " "', "ab ", 5),
}
LEXERS: dict[LarkLexer, str] = {"dynamic_complete": "earley", "contextual": "lalr"}


@pytest.mark.parametrize(
    ("name", "lexer"),
    [*((name, lexer) for name in CASES for lexer in LEXERS), *((name, "contextual") for name in LOOKING_AHEAD)],
)
def test_takes_what_lark_takes(name: str, lexer: LarkLexer) -> None:
    text_of_grammar, alphabet, longest = (CASES | LOOKING_AHEAD)[name]
    try:
        parser = lark.Lark(text_of_grammar, parser=LEXERS[lexer], lexer=lexer)
    except lark.exceptions.GrammarError as error:
        with pytest.raises(GrammarSyntax, match=str(error).splitlines()[0][:40]):
            build_grammar(text_of_grammar, lexer)
        return
    grammar = build_grammar(text_of_grammar, lexer)
    for length in range(longest + 1):
        for characters in itertools.product(alphabet, repeat=length):
            text = "".join(characters)
            assert matches(grammar, text.encode()) == is_accepted(parser, text), text


def test_the_lexer_of_the_options_judges() -> None:
    source = ConstraintSource("lark", 'start: NAME "!"\nNAME: /[a-z]+!?/')
    assert validate(source, SourceOptions(), b"a!") == []
    (violation,) = validate(source, SourceOptions(lexer="contextual"), b"a!")
    assert "Unexpected" in violation.message


def test_declared_terminals_are_never_found_by_lalr() -> None:
    grammar = build_grammar('start: X "b" | "a"\n%declare X', "contextual")
    assert matches(grammar, b"a")
    with pytest.raises(UnsatisfiableGrammar):
        compile_grammar(build_grammar("start: X\n%declare X", "contextual"))


def build_grammar(text: str, lexer: LarkLexer) -> Grammar:
    return build(ConstraintSource("lark", text), SourceOptions(lexer=lexer)).grammar


def is_accepted(parser: lark.Lark, text: str) -> bool:
    try:
        parser.parse(text)
    except lark.exceptions.UnexpectedInput:
        return False
    return True


@pytest.mark.parametrize("name", LOOKING_AHEAD)
def test_look_ahead_behind_a_match_is_refused_where_lark_has_two_meanings_for_it(name: str) -> None:
    with pytest.raises(UnsupportedConstruct, match=r"terminal [A-Z_]+: .* may see beyond"):
        build_grammar(LOOKING_AHEAD[name][0], "dynamic_complete")
