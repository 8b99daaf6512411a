"""Lark grammars, with the meaning of one of Lark's own parsers and lexers."""

from __future__ import annotations

from services.constraint.sources.lark import contextual, dynamic
from services.constraint.sources.lark.embedded import Embedded
from services.constraint.sources.lark.loading import START, LoadedGrammar, load
from services.constraint.sources.lark.lowering import lower
from services.constraint.sources.parts import Parts
from services.constraint.sources.source import BuiltSource, LarkLexer


def build(text: str, lexer: LarkLexer, parts: Parts, pointer: str) -> BuiltSource:
    """Build the grammar of the texts that Lark parses by a grammar, with its parser that has this lexer.

    What the grammar adds to Lark's language becomes one of the `parts`, below the grammar's own `pointer`.

    Raises:
        GrammarSyntax: Lark refuses it; its message is passed on, with line and column where it has them.
        UnsupportedConstruct: a terminal that looks at text before its own, or, with `dynamic_complete`, behind it, or
        has no automaton; an import from a file.
        GrammarTooLarge: beyond a limit on the text, a terminal's automaton, or the lexers' states.
        ServiceError: as building a part does.
    """
    loaded = load(text, lexer)
    source = dynamic if lexer == "dynamic_complete" else contextual
    embedded = {
        name: Embedded.of(part, parts.expression(part, f"{pointer}/{part.kind}/{number}"))
        for number, (name, part) in enumerate(loaded.parts.items())
    }
    return BuiltSource(lower(source.token_grammar(loaded.lark, START, embedded), embedded))


__all__ = ["LoadedGrammar", "build", "load"]
