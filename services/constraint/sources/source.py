"""What a source is given and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from services.constraint.core.grammar import Grammar
from services.rpckit.status import InvalidRequest

if TYPE_CHECKING:
    from services.constraint.sources.json_schema.schema import Schema

Kind: TypeAlias = Literal[
    "json_schema", "lark", "regex", "choices", "literal", "until", "special_token", "sequence", "any_of"
]
Whitespace: TypeAlias = Literal["bounded", "compact", "spaced", "pretty", "pattern"]
PropertyOrder: TypeAlias = Literal["schema", "any"]
FormatMode: TypeAlias = Literal["assert", "annotation"]
UnknownFormats: TypeAlias = Literal["annotation", "error"]
Spelling: TypeAlias = Literal["any", "plain"]
Draft: TypeAlias = Literal[4, 6, 7, 2019, 2020]
Enforcement: TypeAlias = Literal["masked", "checked", "annotation"]
LarkLexer: TypeAlias = Literal["dynamic_complete", "contextual"]


@dataclass(frozen=True, slots=True)
class ConstraintSource:
    """A constraint as it was sent.

    `choices` is for that kind only, `parts` for "sequence" and "any_of"; the others have `text`. Named grammars are of
    kind "lark".
    """

    kind: Kind
    text: str | None = None
    choices: tuple[str, ...] = ()
    parts: tuple[ConstraintSource, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a constraint is read. All of it means something for JSON Schema only, but `lexer`, which is for Lark."""

    whitespace: Whitespace = "bounded"
    whitespace_pattern: str = ""
    """What may stand wherever JSON allows white space, a regex in Python's syntax; for `whitespace` "pattern"."""
    property_order: PropertyOrder = "schema"
    format: FormatMode = "assert"
    unknown_formats: UnknownFormats = "annotation"
    integers: Spelling = "any"
    """Whether an integer may be written `1.0` or `1e2`, or in plain digits only."""
    escapes: Spelling = "any"
    """Whether a string may have every escape that JSON has, or only those that it needs."""
    default_draft: Draft = 2020
    """The draft of a schema without `$schema`."""
    documents: tuple[tuple[str, str], ...] = ()
    """Other schemas that `$ref` may name: (absolute URI, schema as JSON text). Nothing is ever fetched."""
    lexer: LarkLexer = "dynamic_complete"
    """Which of Lark's lexers, each with its parser, says what a grammar means: with Earley or with LALR(1)."""

    def __post_init__(self) -> None:
        """Raise InvalidRequest where options do not go together."""
        if (self.whitespace == "pattern") != bool(self.whitespace_pattern):
            raise InvalidRequest(
                "set `whitespace_pattern` exactly when `whitespace` is pattern", field="options.whitespace_pattern"
            )
        if self.default_draft not in get_args(Draft):
            raise InvalidRequest(
                f"`default_draft` is {self.default_draft}; it must be one of {', '.join(map(str, get_args(Draft)))}",
                field="options.default_draft",
            )


@dataclass(frozen=True, slots=True)
class KeywordReport:
    """How one occurrence of a keyword is honoured. `pointer` is the JSON Pointer of the keyword in the schema."""

    pointer: str
    keyword: str
    enforcement: Enforcement
    note: str = ""


@dataclass(frozen=True, slots=True)
class BuiltSource:
    """A grammar and, for JSON Schemas, how each keyword is honoured, in the order of the source.

    `inexact` has the pointers of what the grammar takes texts too many for, None where there is nothing to check;
    `schema` is then what a check reads. `holes` are the parts that stand in the grammar's holes, by their numbers.
    """

    grammar: Grammar
    keywords: tuple[KeywordReport, ...] = ()
    inexact: frozenset[str] | None = None
    schema: Schema | None = None
    holes: tuple[ConstraintSource, ...] = ()
