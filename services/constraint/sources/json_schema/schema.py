"""First stage: a schema document becomes nodes, and every keyword on the way a line of the report.

A keyword that constrains one type leaves the others free, so a schema without `type` becomes a choice over all types.
Keywords that combine schemas become `AllOf` of their parts; `combine.py` merges them when the grammar is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from operator import itemgetter
from typing import NoReturn, TypeAlias

from services.constraint.sources.json_schema import keywords as kw
from services.constraint.sources.json_schema.combine import common_number
from services.constraint.sources.json_schema.document import MAX_SCHEMA_DEPTH, draft_of, step, too_deep
from services.constraint.sources.json_schema.formats import FORMATS, NUMBER_FORMATS
from services.constraint.sources.json_schema.nodes import (
    ANY,
    ARRAY,
    BOOLEAN,
    INTEGER,
    NONE,
    NULL,
    NUMBER,
    OBJECT,
    PLAIN_INTEGER,
    STRING,
    AllOf,
    AnyOf,
    Array,
    Conditional,
    Constants,
    Contains,
    Json,
    Leaf,
    Members,
    Node,
    Not,
    Number,
    Object,
    OneOf,
    Ref,
    String,
    Unevaluated,
)
from services.constraint.sources.json_schema.numeric import Bound
from services.constraint.sources.json_schema.references import References, Scope
from services.constraint.sources.json_schema.strings import tree_of
from services.constraint.sources.source import Enforcement, KeywordReport, SourceOptions
from services.rpckit.status import GrammarSyntax, GrammarTooLarge, ServiceError, UnsupportedConstruct

# How a keyword is honoured, and the note on it.
_Report: TypeAlias = tuple[Enforcement, str]

# Where something stands in the document: the number of each value on the way to it among its neighbours.
_Order: TypeAlias = tuple[int, ...]

_TYPES: dict[str, Leaf] = {
    "null": NULL,
    "boolean": BOOLEAN,
    "integer": INTEGER,
    "number": NUMBER,
    "string": STRING,
    "array": ARRAY,
    "object": OBJECT,
}
_EVERY_TYPE = ("null", "boolean", "number", "string", "array", "object")
_MASKED: _Report = ("masked", "")
_ANNOTATION: _Report = ("annotation", "")
_UNKNOWN_IN_DRAFT: _Report = ("annotation", "unknown keyword in this draft")

MAX_MINIMUM_COUNT = 1_000_000
"""Largest `minLength`, `minItems` or `minProperties`: no context holds a text of that length."""

_ENDLESS = 1 << 28
"""A maximum from here on bounds nothing: a text that long is beyond any context and is refused by the validator.
Schemas made by programs have such numbers (2147483647), and the core counts up to 2^29."""


@dataclass(slots=True)
class Schema:
    """A read schema: its root, the nodes that references name, and the report.

    `needs_no_space` tells whether texts may always go on without white space.
    """

    root: Node
    targets: dict[str, Node] = field(default_factory=dict)
    keywords: tuple[KeywordReport, ...] = ()
    needs_no_space: bool = True


def read(document: Json, options: SourceOptions) -> Schema:
    """Read a schema document.

    The report says "masked" of every keyword that is enforced; what the grammar leaves to a check is known later.

    Raises:
        GrammarSyntax: a keyword's value is not one it may have; metadata has its JSON Pointer.
        UnsupportedConstruct: a dialect, a reference or a format that is not known; metadata has its name and pointer.
        GrammarTooLarge: nested too deep.
    """
    return _Reader(document, options).read_document()


def located(error: ServiceError, at: str) -> ServiceError:
    """Return an error about a part of a schema with the part's pointer, in its message and its metadata."""
    pointer = error.metadata.setdefault("pointer", at)
    error.message = f"{pointer}: {error.message}"
    error.args = (error.message,)
    return error


class _Reader:
    def __init__(self, document: Json, options: SourceOptions) -> None:
        self._document = document
        self._options = options
        self._draft = draft_of(document, options.default_draft)
        self._references = References(document, options)
        self._scope: Scope | None = None  # None until it matters
        self._schema = Schema(ANY, needs_no_space=options.whitespace != "pattern")
        self._reports: list[tuple[_Order, KeywordReport]] = []
        self._order: dict[str, _Order] = {}  # of each schema that was read, by its pointer
        self._depth = 0
        self._waiting: list[tuple[str, str, Scope]] = []  # target, its place and the scope that it is read in
        self._targets: set[str] = set()
        self._read_at: dict[tuple[str, Scope | None], Node] = {}
        self._reported: set[str] = set()
        self._definitions: list[str] = []

    def read_document(self) -> Schema:
        self._schema.root = self.read(self._document, "", ())
        while self._waiting:
            target, place, self._scope = self._waiting.pop()
            self._draft = self._references.draft_at(place)
            node = self.read(self._references.get(place), place, self._references.order(place))
            self._schema.targets[target] = node
        for pointer in self._definitions:
            self._report_unused(pointer)
        # Definitions are read when something refers to them, but reported where they stand.
        self._reports.sort(key=itemgetter(0))
        self._schema.keywords = tuple([report for _, report in self._reports])
        return self._schema

    # Reporting

    def _report(self, order: _Order, line: KeywordReport) -> None:
        # A schema may be read in several scopes.
        if line.pointer not in self._reported:
            self._reported.add(line.pointer)
            self._reports.append((order, line))

    def _report_unused(self, pointer: str) -> None:
        """Report the definitions at a pointer of which nothing was read."""
        definitions = self._references.get(pointer)
        assert isinstance(definitions, dict)
        start = len(pointer) + 1
        used = {read[start:].partition("/")[0] for read, _ in self._read_at if read.startswith(f"{pointer}/")}
        order = self._references.order(pointer)
        for index, name in enumerate(definitions):
            if step("", name)[1:] not in used:
                report = KeywordReport(step(pointer, name), name, "annotation", "a definition that nothing refers to")
                self._report((*order, index), report)

    def _refuse(self, pointer: str, keyword: str, why: str) -> NoReturn:
        at = step(pointer, keyword)
        raise UnsupportedConstruct(f"{at}: {why}", name=keyword, keyword=keyword, pointer=at)

    def _wrong(self, pointer: str, keyword: str, expected: str) -> NoReturn:
        at = step(pointer, keyword)
        raise GrammarSyntax(f"{at}: {keyword} must be {expected}", keyword=keyword, pointer=at)

    # Reading

    def _order_of(self, schema: dict[str, Json], pointer: str, keyword: str) -> _Order:
        return (*self._order[pointer], list(schema).index(keyword))

    def read(self, schema: Json, pointer: str, order: _Order) -> Node:
        """Return the node of the schema at a pointer, which stands at `order` in the document."""
        if (known := self._read_at.get((pointer, self._scope))) is not None:
            return known
        if schema is True:
            node: Node = ANY
        elif schema is False:
            node = NONE
        elif isinstance(schema, dict):
            self._depth += 1
            if self._depth > MAX_SCHEMA_DEPTH:
                raise too_deep(pointer)
            self._order[pointer] = order
            if pointer and ("$id" in schema or "$schema" in schema):
                node = self._read_resource(schema, pointer)
            else:
                node = self._read_object(schema, pointer)
            self._depth -= 1
        else:
            raise GrammarSyntax(
                f"{pointer or 'the schema'}: a schema must be an object, true or false", pointer=pointer
            )
        self._read_at[pointer, self._scope] = node
        return node

    def _read_resource(self, schema: dict[str, Json], pointer: str) -> Node:
        """Read a schema that may have a draft of its own, and is a scope of its own."""
        draft, scope = self._draft, self._scope
        self._draft = self._references.draft_at(pointer)
        if self._references.has_dynamic:
            self._scope = self._references.entered(self._scope_at_root() if scope is None else scope, pointer)
        node = self._read_object(schema, pointer)
        self._draft, self._scope = draft, scope
        return node

    def _scope_at_root(self) -> Scope:
        return self._references.entered((), "")

    def _read_object(self, schema: dict[str, Json], pointer: str) -> Node:
        if "$ref" in schema and self._draft <= 7:
            return self._read_old_ref(schema, pointer)
        order = self._order[pointer]
        groups: set[str] = set()
        kinds: set[str] = set()
        known = kw.KINDS[self._draft]
        for index, keyword in enumerate(schema):
            report = _MASKED
            kind = known.get(keyword)
            if kind is None:
                report = ("annotation", kw.unknown_note(keyword))
            elif kind == "annotation":
                if keyword in kw.NAMES and not isinstance(schema[keyword], str):
                    self._wrong(pointer, keyword, "a string")
                report = _ANNOTATION
            elif kind == "unknown in this draft":
                report = _UNKNOWN_IN_DRAFT
            elif keyword in kw.NEEDS and kw.NEEDS[keyword] not in schema:
                report = ("annotation", f"without {kw.NEEDS[keyword]} it says nothing")
            elif kind in _TYPES:
                groups.add(kind)
            elif kind == "format":
                report = self._report_format(schema, pointer, groups)
            elif kind == "definitions":
                report = self._define(schema, pointer, keyword)
            elif kind == "combining":
                kinds.add(keyword)
            at = step(pointer, keyword) if kind is None else f"{pointer}/{keyword}"
            self._report((*order, index), KeywordReport(at, keyword, *report))
        base = self._read_types(schema, pointer, groups)
        return self._combine(schema, pointer, base, kinds) if kinds else base

    def _report_format(self, schema: dict[str, Json], pointer: str, groups: set[str]) -> _Report:
        name = schema["format"]
        if not isinstance(name, str):
            self._wrong(pointer, "format", "a string")
        if self._options.format == "annotation":
            return "annotation", "formats are annotations by option"
        if name in NUMBER_FORMATS:
            groups.add("number")
            return "masked", ""
        if name not in FORMATS:
            if self._options.unknown_formats == "error":
                self._refuse(
                    pointer,
                    "format",
                    f"the format {name!r} is not known; use pattern, or one of {', '.join(sorted(FORMATS))}",
                )
            return "annotation", f"the format {name!r} is not known"
        groups.add("string")
        return "masked", FORMATS[name].note

    def _define(self, schema: dict[str, Json], pointer: str, keyword: str) -> _Report:
        if not isinstance(schema[keyword], dict):
            self._wrong(pointer, keyword, "an object")
        self._definitions.append(f"{pointer}/{keyword}")
        return "annotation", "read where $ref names one"

    def _read_old_ref(self, schema: dict[str, Json], pointer: str) -> Node:
        """Read a `$ref` of draft 7 and before, where it hides all other keywords beside it."""
        for index, keyword in enumerate(schema):
            if keyword == "$ref":
                report = _MASKED
            elif keyword in kw.DEFINITIONS:
                report = self._define(schema, pointer, keyword)
            else:
                report = ("annotation", "beside $ref it says nothing up to draft 7")
            self._report((*self._order[pointer], index), KeywordReport(step(pointer, keyword), keyword, *report))
        return self._read_ref(schema, pointer, "$ref")

    def _read_ref(self, schema: dict[str, Json], pointer: str, keyword: str) -> Ref:
        reference = schema[keyword]
        if not isinstance(reference, str):
            self._wrong(pointer, keyword, "a string")
        references, scope = self._references, self._scope
        if scope is None:
            scope = self._scope_at_root()
        if keyword == "$dynamicRef":
            place = references.resolve_dynamic(reference, pointer, scope)
        elif keyword == "$recursiveRef":
            place = references.resolve_recursive(reference, pointer, scope)
        else:
            place = references.resolve(reference, pointer)
        scope = references.entered(scope, place)
        # What a schema means depends on the scope only where there are dynamic references.
        target = " in ".join((place, *scope)) if references.has_dynamic else place
        if target not in self._targets:
            self._targets.add(target)
            self._waiting.append((target, place, scope))
        return Ref(target)

    def _read_types(self, schema: dict[str, Json], pointer: str, groups: set[str]) -> Node:
        if "type" in schema:
            names = self._type_names(schema, pointer)
        elif groups:
            names = _EVERY_TYPE
        else:
            return ANY
        if not groups and len(names) == 1 and not (self._draft == 4 and names[0] == "integer"):
            return _TYPES[names[0]]
        # A keyword's value is checked even where its type cannot occur.
        leaves: dict[str, Node] = {}
        if self._draft == 4 and "integer" in names:
            leaves["integer"] = PLAIN_INTEGER
        if "number" in groups:
            leaves["number"] = self._read_number(schema, pointer, is_integer=False)
            leaves["integer"] = self._read_number(schema, pointer, is_integer=True) if "integer" in names else NONE
        if "string" in groups:
            leaves["string"] = self._read_string(schema, pointer)
        if "array" in groups:
            leaves["array"] = self._read_array(schema, pointer)
        if "object" in groups:
            leaves["object"] = self._read_properties(schema, pointer)
        options = tuple(leaves.get(name) or _TYPES[name] for name in names)
        return options[0] if len(options) == 1 else AnyOf(options)

    def _type_names(self, schema: dict[str, Json], pointer: str) -> tuple[str, ...]:
        value = schema["type"]
        if isinstance(value, str) and value in _TYPES:
            return (value,)
        names = [value] if isinstance(value, str) else value
        if (
            not isinstance(names, list)
            or not names
            or not all(isinstance(name, str) and name in _TYPES for name in names)
        ):
            self._wrong(
                pointer,
                "type",
                "one of null, boolean, integer, number, string, array and object, or a list of some of them",
            )
        unique = tuple(dict.fromkeys(name for name in names if isinstance(name, str)))
        return tuple(name for name in unique if name != "integer") if "number" in unique else unique

    # One type each

    def _number(self, schema: dict[str, Json], pointer: str, keyword: str) -> Decimal | None:
        if keyword not in schema:
            return None
        value = schema[keyword]
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            self._wrong(pointer, keyword, "a number")
        return Decimal(value)

    def _count(self, schema: dict[str, Json], pointer: str, keyword: str) -> int | None:
        if keyword not in schema:
            return None
        value = self._number(schema, pointer, keyword)
        assert value is not None
        if value < 0 or value.adjusted() > 18 or value != value.to_integral_value():
            self._wrong(pointer, keyword, "a whole number from 0 to 10^18")
        if keyword.startswith("max"):
            return int(value) if value < _ENDLESS else None
        if value > MAX_MINIMUM_COUNT:
            raise GrammarTooLarge(
                f"{pointer}/{keyword}: {keyword} is over {MAX_MINIMUM_COUNT} (limit max_minimum_count); ask for less",
                limit="max_minimum_count",
                value=MAX_MINIMUM_COUNT,
                pointer=f"{pointer}/{keyword}",
            )
        return int(value)

    def _read_number(self, schema: dict[str, Json], pointer: str, *, is_integer: bool) -> Number:
        low, high = (
            self._bound(schema, pointer, "minimum", "exclusiveMinimum"),
            self._bound(schema, pointer, "maximum", "exclusiveMaximum"),
        )
        multiple_of = self._number(schema, pointer, "multipleOf")
        if multiple_of is not None and multiple_of <= 0:
            self._wrong(pointer, "multipleOf", "greater than 0")
        number = Number(
            is_integer, low, high, () if multiple_of is None else (multiple_of,), self._draft == 4, pointer=pointer
        )
        range_ = NUMBER_FORMATS.get(self._format(schema))
        if range_ is None:
            return number
        return common_number(number, Number(range_[2], range_[0], range_[1]))

    def _bound(self, schema: dict[str, Json], pointer: str, inclusive: str, exclusive: str) -> Bound | None:
        value = self._number(schema, pointer, inclusive)
        if self._draft == 4:
            is_exclusive = schema.get(exclusive, False)
            if not isinstance(is_exclusive, bool):
                self._wrong(pointer, exclusive, "true or false in draft 4")
            return None if value is None else Bound(value, is_exclusive)
        if isinstance(schema.get(exclusive), bool):
            self._wrong(
                pointer, exclusive, "a number (true and false are of draft 4; name that draft in $schema to use them)"
            )
        other = self._number(schema, pointer, exclusive)
        if value is None or other is None:
            return Bound(other, True) if other is not None else Bound(value, False) if value is not None else None
        is_tighter = other >= value if inclusive == "minimum" else other <= value
        return Bound(other, True) if is_tighter else Bound(value, False)

    def _read_string(self, schema: dict[str, Json], pointer: str) -> String:
        pattern, format_name = schema.get("pattern"), self._format(schema)
        if "pattern" in schema and not isinstance(pattern, str):
            self._wrong(pointer, "pattern", "a string")
        return String(
            self._count(schema, pointer, "minLength") or 0,
            self._count(schema, pointer, "maxLength"),
            (pattern,) if isinstance(pattern, str) else (),
            (format_name,) if format_name in FORMATS else (),
            pointer,
        )

    def _format(self, schema: dict[str, Json]) -> str:
        """Return the format that is to be asserted, empty where there is none."""
        name = schema.get("format")
        return name if isinstance(name, str) and self._options.format == "assert" else ""

    def _read_array(self, schema: dict[str, Json], pointer: str) -> Array:
        is_unique = schema.get("uniqueItems", False)
        if not isinstance(is_unique, bool):
            self._wrong(pointer, "uniqueItems", "true or false")
        prefix: tuple[Node, ...] = ()
        rest: Node = ANY
        items = schema.get("items", True)
        prefix_keyword = "prefixItems" if self._draft >= 2020 else "items"
        rest_keyword = "items" if self._draft >= 2020 or not isinstance(items, list) else "additionalItems"
        listed = schema.get(prefix_keyword)
        if isinstance(listed, list):
            prefix = tuple(self._read_list(schema, pointer, prefix_keyword, listed))
        elif prefix_keyword == "prefixItems" and "prefixItems" in schema:
            self._wrong(pointer, "prefixItems", "a list of schemas")
        if isinstance(items, list) and rest_keyword == "items":
            self._wrong(
                pointer,
                "items",
                "a schema (a list is of draft 7 and before: write prefixItems, or name that draft in $schema)",
            )
        if rest_keyword in schema:
            rest = self._read_one(schema, pointer, rest_keyword)
        return Array(
            prefix,
            rest,
            self._count(schema, pointer, "minItems") or 0,
            self._count(schema, pointer, "maxItems"),
            self._read_contains(schema, pointer),
            is_unique,
            evaluates_rest=rest_keyword in schema,
            evaluates_contained=self._draft >= 2020,
            pointer=pointer,
        )

    def _read_contains(self, schema: dict[str, Json], pointer: str) -> tuple[Contains, ...]:
        if "contains" not in schema or self._draft < 6:
            return ()
        minimum, maximum = None, None
        if self._draft >= 2019:
            minimum, maximum = (self._count(schema, pointer, name) for name in ("minContains", "maxContains"))
        node = self._read_one(schema, pointer, "contains")
        return (Contains(node, 1 if minimum is None else minimum, maximum),)

    def _read_properties(self, schema: dict[str, Json], pointer: str) -> Object:
        declared = schema.get("properties", {})
        if not isinstance(declared, dict):
            self._wrong(pointer, "properties", "an object")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            self._wrong(pointer, "required", "a list of strings")
        properties = dict(self._read_members(schema, pointer, "properties")) if declared else {}
        patterns: list[tuple[str, Node]] = []
        if "patternProperties" in schema:
            for pattern, node in self._read_members(schema, pointer, "patternProperties"):
                self._check_pattern(pattern, step(f"{pointer}/patternProperties", pattern))
                patterns.append((pattern, node))
        additional: Node = ANY
        if "additionalProperties" in schema:
            additional = self._read_one(schema, pointer, "additionalProperties")
        names: Node = ANY
        if "propertyNames" in schema and self._draft >= 6:
            names = self._read_one(schema, pointer, "propertyNames")
        return Object(
            (Members(properties, additional, tuple(patterns), evaluates_rest="additionalProperties" in schema),),
            frozenset(str(name) for name in required),
            self._count(schema, pointer, "minProperties") or 0,
            self._count(schema, pointer, "maxProperties"),
            names,
            pointer,
        )

    def _check_pattern(self, pattern: str, at: str) -> None:
        try:
            tree_of(pattern)
        except ServiceError as error:
            raise located(error, at) from None

    # Combining

    def _combine(self, schema: dict[str, Json], pointer: str, base: Node, kinds: set[str]) -> Node:
        parts: list[Node] = [] if base is ANY else [base]
        for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
            if keyword in kinds:
                parts.append(self._read_ref(schema, pointer, keyword))
        if "allOf" in kinds:
            parts.extend(self._read_choices(schema, pointer, "allOf"))
        if "anyOf" in kinds:
            parts.append(AnyOf(tuple(self._read_choices(schema, pointer, "anyOf"))))
        if "oneOf" in kinds:
            parts.append(OneOf(tuple(self._read_choices(schema, pointer, "oneOf")), f"{pointer}/oneOf"))
        if "not" in kinds:
            parts.append(Not(self._read_one(schema, pointer, "not"), f"{pointer}/not"))
        if "if" in kinds:
            condition, then, otherwise = (
                self._read_one(schema, pointer, keyword) if keyword in schema else ANY
                for keyword in ("if", "then", "else")
            )
            parts.append(Conditional(condition, then, otherwise, f"{pointer}/if"))
        for keyword in ("dependencies", "dependentRequired", "dependentSchemas"):
            if keyword in kinds:
                parts.extend(self._read_dependents(schema, pointer, keyword))
        if "enum" in kinds:
            values = schema["enum"]
            if not isinstance(values, list):
                self._wrong(pointer, "enum", "a list")
            parts.append(Constants(tuple(values)))
        if "const" in kinds:
            parts.append(Constants((schema["const"],)))
        members, items = (
            self._read_one(schema, pointer, keyword) if keyword in kinds else None
            for keyword in ("unevaluatedProperties", "unevaluatedItems")
        )
        node: Node = ANY if not parts else parts[0] if len(parts) == 1 else AllOf(tuple(parts), f"{pointer}/*")
        return node if members is None and items is None else Unevaluated(node, members, items, pointer)

    def _read_dependents(self, schema: dict[str, Json], pointer: str, keyword: str) -> list[Node]:
        dependents: list[Node] = []
        at = f"{pointer}/{keyword}"
        values = schema[keyword]
        if not isinstance(values, dict):
            self._wrong(pointer, keyword, "an object")
        order = self._order_of(schema, pointer, keyword)
        for index, (name, value) in enumerate(values.items()):
            then: Node
            if isinstance(value, list) and keyword != "dependentSchemas":
                if not all(isinstance(other, str) for other in value):
                    self._wrong(at, name, "a list of strings")
                then = Object(required=frozenset(map(str, value)), pointer=at)
            elif keyword == "dependentRequired":
                self._wrong(at, name, "a list of strings")
            else:
                then = self.read(value, step(at, name), (*order, index))
            dependents.append(Conditional(Object(required=frozenset([name]), pointer=at), then, ANY, at))
        return dependents

    def _read_choices(self, schema: dict[str, Json], pointer: str, keyword: str) -> list[Node]:
        options = schema[keyword]
        if not isinstance(options, list) or not options:
            self._wrong(pointer, keyword, "a list of schemas, not empty")
        return self._read_list(schema, pointer, keyword, options)

    def _read_one(self, schema: dict[str, Json], pointer: str, keyword: str) -> Node:
        return self.read(schema[keyword], f"{pointer}/{keyword}", self._order_of(schema, pointer, keyword))

    def _read_members(self, schema: dict[str, Json], pointer: str, keyword: str) -> Iterator[tuple[str, Node]]:
        members = schema[keyword]
        if not isinstance(members, dict):
            self._wrong(pointer, keyword, "an object")
        order = self._order_of(schema, pointer, keyword)
        for index, (name, value) in enumerate(members.items()):
            yield name, self.read(value, step(f"{pointer}/{keyword}", name), (*order, index))

    def _read_list(self, schema: dict[str, Json], pointer: str, keyword: str, values: list[Json]) -> list[Node]:
        order = self._order_of(schema, pointer, keyword)
        return [self.read(value, f"{pointer}/{keyword}/{index}", (*order, index)) for index, value in enumerate(values)]
