"""What is added to Lark's language, and that Lark's own texts are left as they are."""

from __future__ import annotations

import itertools
from pathlib import Path

import lark
import pytest
from hypothesis import HealthCheck, given, settings

from services.constraint.core.engine import TokenTrie
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.sources.lark import extensions
from services.constraint.sources.source import LarkLexer
from services.constraint.validation.lark_validator import violation
from services.rpckit.status import GrammarSyntax, TokenRejected, UnsatisfiableGrammar, UnsupportedConstruct
from tests.support.acceptance import matcher_of_source
from tests.support.grammars import vocabulary
from tests.support.lark_grammars import lark_grammars

NAME = "<|go|>"
VOCABULARY = vocabulary(special=(NAME, "[INST]"))
TRIE = TokenTrie(VOCABULARY)
TOKEN_OF = {token: token_id for token_id, token in enumerate(VOCABULARY.token_bytes) if token is not None}
LEXERS: tuple[LarkLexer, ...] = ("dynamic_complete", "contextual")
LARKS_OWN = sorted(
    [*(Path(lark.__file__).parent / "grammars").glob("*.lark"), *Path("grammars").glob("*.lark")],
    key=lambda path: path.name,
)


def takes(grammar: str, lexer: LarkLexer, *pieces: str) -> bool:
    """Tell whether the masks let a text pass, in single bytes; NAME and [INST] are the special tokens."""
    options = SourceOptions(lexer=lexer, whitespace="compact")
    matcher = matcher_of_source(ConstraintSource("lark", grammar), options, TRIE)
    return accepts(matcher, pieces)


def accepts(matcher: object, pieces: tuple[str, ...]) -> bool:
    token_ids = [
        token
        for piece in pieces
        for token in (
            [VOCABULARY.special_tokens[piece]]
            if piece in VOCABULARY.special_tokens
            else [TOKEN_OF[bytes([byte])] for byte in piece.encode()]
        )
    ]
    try:
        return matcher.is_accepting(matcher.accept(matcher.start, token_ids))  # type: ignore[attr-defined]
    except TokenRejected:
        return False


@pytest.mark.parametrize("path", LARKS_OWN, ids=lambda path: path.name)
def test_what_is_lark_is_left_alone(path: Path) -> None:
    text = path.read_text()
    assert extensions.read(text) == extensions.Extended(text, {}, {})


@pytest.mark.parametrize("lexer", LEXERS)
def test_an_addition_inside_of_lark_s_own_tokens_is_none(lexer: LarkLexer) -> None:
    grammar = 'start: "%json {}" /<x>|%until/ // <|go|> %json\n  | "<|go|>"i # %special "x"'
    assert takes(grammar, lexer, "%json {}", "<x>")
    assert takes(grammar, lexer, "%json {}", "%until")
    assert takes(grammar, lexer, "<|GO", "|>")
    assert not takes(grammar, lexer, NAME)


@pytest.mark.parametrize("lexer", LEXERS)
def test_a_schema_is_a_rule_s_part(lexer: LarkLexer) -> None:
    grammar = """
        start: "call " NAME "(" arguments ")"
        arguments: %json {
            "type": "object",
            "properties": {"x": {"type": "integer", "minimum": 3}},
            "required": ["x"]
        } | %json {"type": "boolean"}
        NAME: /[a-z]+/
        %ignore " "
    """
    assert takes(grammar, lexer, 'call f({"x":3})')
    assert takes(grammar, lexer, 'call f ( {"x":3,"y":[1]} )')
    assert takes(grammar, lexer, "call f(true)")
    assert not takes(grammar, lexer, 'call f({"x":2})')
    assert not takes(grammar, lexer, 'call f({"x":3,"x":4})')
    assert not takes(grammar, lexer, "call f()")


@pytest.mark.parametrize("lexer", LEXERS)
def test_special_tokens_and_free_text(lexer: LarkLexer) -> None:
    grammar = f'start: %special "[INST]" %until {NAME} %until "\\n--/\\\\" "!"'
    assert takes(grammar, lexer, "[INST]", "think <|go|", ">", NAME, "a-- /\n--/\\", "!")
    assert takes(grammar, lexer, "[INST]", NAME, "\n--/\\", "!")
    assert not takes(grammar, lexer, "[INST]", NAME, "\n--/\\", "\n--/\\", "!")
    assert not takes(grammar, lexer, "[INST]", "think", NAME, NAME, "\n--/\\!")
    assert not takes(grammar, lexer, "[", "INST]", NAME, "\n--/\\!")


@pytest.mark.parametrize("lexer", LEXERS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(text_of_grammar=lark_grammars())
def test_random_grammars_with_parts_take_what_lark_does(lexer: LarkLexer, text_of_grammar: str) -> None:
    rules, _, terminals = text_of_grammar.partition("\nA")
    grammar = rules.replace("C", NAME).replace("D", '%json {"type": "boolean"}') + "\nA" + terminals
    try:
        matcher = matcher_of_source(ConstraintSource("lark", grammar), SourceOptions(lexer=lexer), TRIE)
    except (GrammarSyntax, UnsatisfiableGrammar):
        return
    for length in range(4):
        for pieces in itertools.product(("a", "b", ".", NAME, "true"), repeat=length):
            error = violation(grammar, lexer, "".join(pieces), lambda _, text: text in ("true", "false"))
            assert accepts(matcher, pieces) == (error is None), pieces


def test_a_schema_must_not_stand_where_a_lexer_would_go_on() -> None:
    grammar = 'start: NUMBER %json {"type": "integer"}\nNUMBER: /[0-9]+/'
    with pytest.raises(UnsupportedConstruct, match="could still go on with NUMBER"):
        build(ConstraintSource("lark", grammar), SourceOptions(lexer="contextual"))
    assert takes(grammar, "dynamic_complete", "12")
    assert not takes(grammar, "dynamic_complete", "1")


BROKEN = {
    "no JSON": ('start: "a"\n  | %json {"type": }', "behind %json stands no JSON value", 2, 20),
    "an empty delimiter": ('start: %until ""', "must not be empty", 1, 15),
    "a flag": ('start: %until "x"i', "the flag i has no meaning", 1, 15),
    "behind several lines": ('start: %json {\n\n } "a" | )', "does not parse", 3, 10),
    "behind a special token": ("start: <|im_start|> )", "does not parse", 1, 21),
}


@pytest.mark.parametrize("lexer", LEXERS)
@pytest.mark.parametrize("name", BROKEN)
def test_errors_say_where(lexer: LarkLexer, name: str) -> None:
    grammar, message, line, column = BROKEN[name]
    with pytest.raises(GrammarSyntax, match=message) as caught:
        build(ConstraintSource("lark", grammar), SourceOptions(lexer=lexer))
    assert (caught.value.metadata["line"], caught.value.metadata["column"]) == (str(line), str(column))


def test_errors_of_lark_name_a_part_as_it_is_written() -> None:
    with pytest.raises(GrammarSyntax, match=r"<\|go\|>") as caught:
        build(ConstraintSource("lark", f"start: a | b\na: {NAME} \nb: {NAME}"), SourceOptions(lexer="contextual"))
    assert "X0" not in caught.value.message


def test_errors_of_a_part_say_which() -> None:
    with pytest.raises(UnsupportedConstruct, match="part /json_schema/1: ") as caught:
        build(ConstraintSource("lark", 'start: %json {"type": "null"} %json {"$ref": "http://x/y"}'), SourceOptions())
    assert caught.value.metadata["part"] == "/json_schema/1"


def test_an_unknown_special_token_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(UnsupportedConstruct, match=r"no special token '<\|stop\|>'.*it has: '<\|go\|>', '\[INST\]'"):
        takes("start: <|stop|>", "contextual")


def test_an_end_token_is_no_part() -> None:
    with pytest.raises(UnsupportedConstruct, match=r"no special token '<\|end\|>' that may stand inside a text"):
        takes("start: <|end|>", "contextual")
