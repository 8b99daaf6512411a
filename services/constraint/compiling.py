"""One compile, as it runs in a process of its own: a source in, bytes out."""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from services.constraint.core.engine import DEFAULT_MAX_STATES, compile_grammar
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.stored_grammar import GrammarReport, StoredGrammar
from services.rpckit.status import GrammarTooLarge, ServiceError

# Where the limits of sources are met: deep inside of recursive walks, so each is a constant beside its walk.
_HOMES: Final = {
    "max_schema_bytes": "sources.json_schema.document:MAX_SCHEMA_BYTES",
    "max_schema_depth": "sources.json_schema.document:MAX_SCHEMA_DEPTH",
    "max_combined_cases": "sources.json_schema.combine:MAX_LEAVES",
    "max_counted_properties": "sources.json_schema.lower:MAX_COUNTED_PROPERTIES",
    "max_grammar_characters": "sources.lark.loading:MAX_GRAMMAR_CHARACTERS",
    "max_lexer_variants": "sources.lark.lowering:MAX_VARIANTS",
    "max_choices_bytes": "sources.choices:MAX_CHOICES_BYTES",
    "max_pattern_characters": "core.regex.parse:MAX_PATTERN_CHARACTERS",
    "max_group_depth": "core.regex.parse:MAX_GROUP_DEPTH",
    "max_nfa_states": "core.regex.nfa:MAX_NFA_STATES",
    "max_dfa_states": "core.regex.automaton:MAX_DFA_STATES",
    "max_formula_nodes": "core.regex.formulas:MAX_FORMULA_NODES",
    "max_formula_depth": "core.regex.formulas:MAX_FORMULA_DEPTH",
}
_PACKAGE: Final = "services.constraint."
# Python's own limit fits the default depths; each level more takes at most so many frames.
_FRAMES_PER_LEVEL: Final = 40


@dataclass(frozen=True, slots=True)
class CompileLimits:
    """What a source may hold; fields as in `ConstraintSettings`, the defaults too."""

    max_states: int = DEFAULT_MAX_STATES
    max_schema_bytes: int = 2_000_000
    max_schema_depth: int = 80
    max_combined_cases: int = 512
    max_counted_properties: int = 60
    max_grammar_characters: int = 500_000
    max_lexer_variants: int = 50_000
    max_choices_bytes: int = 1_000_000
    max_pattern_characters: int = 20_000
    max_group_depth: int = 100
    max_nfa_states: int = 20_000
    max_dfa_states: int = 5_000
    max_formula_nodes: int = 200_000
    max_formula_depth: int = 150

    @classmethod
    def of(cls, settings: Any) -> Self:
        """Take the limits out of an object that has them among its attributes."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})


DEFAULT_LIMITS: Final = CompileLimits()
_in_force = DEFAULT_LIMITS


def compile_source(
    source: ConstraintSource, options: SourceOptions, limits: CompileLimits = DEFAULT_LIMITS
) -> StoredGrammar:
    """Build the grammar of a source and compile it.

    The limits hold for the process from then on: it is a helper process, which has one service and so one set of them.

    Raises:
        GrammarSyntax, UnsupportedConstruct, UnsatisfiableGrammar, GrammarTooLarge: as the source deserves.
        ServiceError: a bug; its traceback is on stderr.
    """
    put_in_force(limits)
    started = time.perf_counter()
    try:
        built = build(source, options)
        compiled = compile_grammar(built.grammar, max_states=limits.max_states)
        min_bytes = None
        if built.holes:
            filled = compile_grammar(built.grammar, max_states=limits.max_states, are_holes_filled=True)
            min_bytes = filled.min_bytes
        seconds = time.perf_counter() - started
        report = GrammarReport(built.keywords, built.inexact, built.holes, min_bytes, source.kind, seconds)
        return StoredGrammar(compiled.to_bytes(), report)
    except RecursionError:
        name = "max_schema_depth" if source.kind == "json_schema" else "max_group_depth"
        value = getattr(limits, name)
        raise GrammarTooLarge(
            f"the constraint is nested too deeply (limit {name} is {value})", limit=name, value=value
        ) from None
    except (ServiceError, MemoryError):
        raise
    except Exception as error:
        traceback.print_exc()
        raise ServiceError(
            f"an unexpected {type(error).__name__}, a bug of the constraint service: its log has the details"
        ) from None


def put_in_force(limits: CompileLimits) -> None:
    """Make these the limits of the sources in this process."""
    global _in_force  # noqa: PLW0603
    if limits == _in_force:
        return
    for name, home in _HOMES.items():
        module, _, constant = home.partition(":")
        importlib.import_module(_PACKAGE + module)
        # A module that was loaded before has a copy of what it imported from another one.
        for loaded in [loaded for key, loaded in sys.modules.items() if key.startswith(_PACKAGE)]:
            if hasattr(loaded, constant):
                setattr(loaded, constant, getattr(limits, name))
    deeper = max(0, limits.max_schema_depth - DEFAULT_LIMITS.max_schema_depth)
    deeper += max(0, limits.max_group_depth - DEFAULT_LIMITS.max_group_depth)
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + _FRAMES_PER_LEVEL * deeper))
    _in_force = limits
