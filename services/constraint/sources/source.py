"""What a source is given and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from services.constraint.core.grammar import Grammar

Kind: TypeAlias = Literal["json_schema", "lark", "regex", "choices"]
Whitespace: TypeAlias = Literal["bounded", "compact", "spaced"]
Enforcement: TypeAlias = Literal["masked", "checked", "annotation"]


@dataclass(frozen=True, slots=True)
class ConstraintSource:
    """A constraint as it was sent.

    `choices` is for that kind only; the others have `text`. Named grammars are of kind "lark".
    """

    kind: Kind
    text: str | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a constraint is read. `whitespace` means something for JSON only."""

    whitespace: Whitespace = "bounded"


@dataclass(frozen=True, slots=True)
class KeywordReport:
    """How one occurrence of a keyword is honoured. `pointer` is the JSON Pointer of the keyword in the schema."""

    pointer: str
    keyword: str
    enforcement: Enforcement
    note: str = ""


@dataclass(frozen=True, slots=True)
class BuiltSource:
    """A grammar and, for JSON Schema, how each keyword is honoured, in the order of the source."""

    grammar: Grammar
    keywords: tuple[KeywordReport, ...] = ()
