"""One compile, as it runs in a process of its own: a source in, bytes out."""

from __future__ import annotations

from services.constraint.core.engine import compile_grammar
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.stored_grammar import StoredGrammar


def compile_source(source: ConstraintSource, options: SourceOptions) -> StoredGrammar:
    """Build the grammar of a source and compile it.

    Raises:
        GrammarSyntax, UnsupportedConstruct, UnsatisfiableGrammar, GrammarTooLarge: as the source deserves.
    """
    built = build(source, options)
    return StoredGrammar(compile_grammar(built.grammar).to_bytes(), tuple(built.keywords))
