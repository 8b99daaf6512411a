"""Lets Lark load a grammar: imports, templates, EBNF, aliases, priorities. Nothing of that is parsed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import lark
from lark.exceptions import GrammarError, UnexpectedInput

from services.constraint.sources.lark import extensions
from services.constraint.sources.source import ConstraintSource, LarkLexer
from services.rpckit.status import GrammarSyntax, GrammarTooLarge, ServiceError, UnsupportedConstruct

MAX_GRAMMAR_CHARACTERS: Final = 500_000
START: Final = "start"

_PARSER: Final[dict[LarkLexer, Literal["earley", "lalr"]]] = {"dynamic_complete": "earley", "contextual": "lalr"}
_BUNDLED: Final = frozenset(("common.lark", "python.lark", "unicode.lark", "lark.lark"))


@dataclass(frozen=True, slots=True)
class LoadedGrammar:
    """A grammar as Lark loaded it, and the parts that its terminals without a text stand for, by their names."""

    lark: lark.Lark
    parts: dict[str, ConstraintSource]


def load(text: str, lexer: LarkLexer) -> LoadedGrammar:
    """Let Lark load a grammar: nothing but its own bundled grammars can be imported.

    Raises:
        GrammarSyntax: Lark refuses it: its message is passed on, with line and column where it has them; or an addition
        to its language (`extensions.py`) cannot be read.
        UnsupportedConstruct: an import from a file.
        GrammarTooLarge: beyond MAX_GRAMMAR_CHARACTERS, or nested deeper than Lark takes.
    """
    if len(text) > MAX_GRAMMAR_CHARACTERS:
        raise GrammarTooLarge(
            f"the grammar has {len(text)} characters; the limit max_grammar_characters is {MAX_GRAMMAR_CHARACTERS}",
            limit="max_grammar_characters",
            value=MAX_GRAMMAR_CHARACTERS,
        )
    extended = extensions.read(text)
    try:
        return LoadedGrammar(_load(extended.text, lexer), extended.parts)
    except GrammarSyntax as error:
        for name, spelling in extended.spellings.items():
            error.message = error.message.replace(name, spelling)
        error.args = (error.message,)
        raise


def _load(text: str, lexer: LarkLexer) -> lark.Lark:
    # Lark asks a callable in import_paths first; whatever it does not refuse goes on to Lark's own loader.
    try:
        return lark.Lark(
            text,
            parser=_PARSER[lexer],
            lexer=lexer,
            start=START,
            import_paths=[_allow_bundled],  # type: ignore[list-item]
        )
    except UnexpectedInput as error:
        raise GrammarSyntax(
            f"the Lark grammar does not parse: {_message(error)}", line=error.line, column=error.column
        ) from None
    except GrammarError as error:
        raise _grammar_error(error) from None
    except RecursionError:
        raise GrammarTooLarge(
            "the Lark grammar is nested deeper than Lark takes (limit max_nesting)",
            limit="max_nesting",
            value="Python's recursion limit",
        ) from None
    except ServiceError:
        raise
    except Exception as error:
        # Lark has no error of its own for much of what can be wrong with a grammar: a bad regex raises whatever the
        # regex compiler raises.
        raise GrammarSyntax(f"the Lark grammar does not load: {type(error).__name__}: {_message(error)}") from None


def _allow_bundled(base_path: object, grammar_path: str) -> tuple[Any, str]:
    # A grammar that came with Lark imports from its own directory; one from the wire has no directory.
    if grammar_path in _BUNDLED and (base_path is None or isinstance(base_path, tuple)):
        raise FileNotFoundError  # for Lark: go on to the next loader
    name = grammar_path.removesuffix(".lark").replace("/", ".")
    raise UnsupportedConstruct(
        f"%import of {name}: a grammar can import only what comes with Lark (common, unicode, python, "
        "lark); put the rules into the grammar",
        name="%import",
        module=name,
    )


def _message(error: BaseException) -> str:
    return str(error).strip()[:2000]


def _grammar_error(error: GrammarError) -> GrammarSyntax:
    message = _message(error)
    if message == f"Using an undefined rule: NonTerminal('{START}')":
        return GrammarSyntax(
            f"the Lark grammar has no rule named {START}, with which every text begins: {message}", rule=START
        )
    place = error.__context__
    if isinstance(place, UnexpectedInput):
        return GrammarSyntax(f"the Lark grammar does not parse: {message}", line=place.line, column=place.column)
    return GrammarSyntax(f"the Lark grammar does not load: {message}")
