"""First stage: a schema document becomes nodes, and every keyword on the way a line of the report.

A keyword that constrains one type leaves the others free, so a schema without `type` becomes a choice over all types.
Keywords that combine schemas become `AllOf` of their parts; `combine.py` merges them when the grammar is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from operator import itemgetter
from typing import NoReturn, TypeAlias

from services.constraint.sources.json_schema import keywords as kw
from services.constraint.sources.json_schema.document import MAX_SCHEMA_DEPTH, References, draft_of, step, too_deep
from services.constraint.sources.json_schema.formats import FORMATS
from services.constraint.sources.json_schema.nodes import (
    ANY,
    ARRAY,
    BOOLEAN,
    INTEGER,
    NONE,
    NULL,
    NUMBER,
    OBJECT,
    STRING,
    AllOf,
    AnyOf,
    Array,
    Constants,
    Json,
    Leaf,
    Node,
    Number,
    Object,
    OneOf,
    Ref,
    String,
)
from services.constraint.sources.json_schema.numeric import Bound
from services.constraint.sources.source import Enforcement, KeywordReport
from services.rpckit.status import GrammarSyntax, GrammarTooLarge, UnsupportedConstruct

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
_UNBOUNDED_NOTE = "integers are written with digits alone"
_BOUNDED_NOTE = "numbers with a bound are written without an exponent"


@dataclass(slots=True)
class Schema:
    """A read schema: its root, the nodes that references name, and the report."""

    root: Node
    targets: dict[str, Node] = field(default_factory=dict)
    keywords: tuple[KeywordReport, ...] = ()


def read(document: Json) -> Schema:
    """Read a schema document.

    Raises:
        GrammarSyntax: a keyword's value is not one it may have; metadata has its JSON Pointer.
        UnsupportedConstruct: a keyword that is not enforced; metadata has its name and pointer.
        GrammarTooLarge: nested too deep.
    """
    reader = _Reader(document)
    return reader.read_document()


class _Reader:
    def __init__(self, document: Json) -> None:
        self._document = document
        self._draft = draft_of(document)
        self._references = References(document, self._draft)
        self._kinds = kw.KINDS[self._draft]
        self._schema = Schema(ANY)
        self._reports: list[tuple[_Order, KeywordReport]] = []
        self._order: dict[str, _Order] = {}  # of each schema that was read, by its pointer
        self._depth = 0
        self._waiting: list[str] = []
        self._read_at: dict[str, Node] = {}
        self._definitions: list[str] = []

    def read_document(self) -> Schema:
        self._schema.root = self.read(self._document, "", ())
        while self._waiting:
            pointer = self._waiting.pop()
            node = self._read_at.get(pointer)
            if node is None:
                node = self.read(self._references.get(pointer), pointer, self._references.order(pointer))
            self._schema.targets[pointer] = node
        for pointer in self._definitions:
            self._report_unused(pointer)
        # Definitions are read when something refers to them, but reported where they stand.
        self._reports.sort(key=itemgetter(0))
        self._schema.keywords = tuple([report for _, report in self._reports])
        return self._schema

    # Reporting

    def _report_unused(self, pointer: str) -> None:
        """Report the definitions at a pointer of which nothing was read."""
        definitions = self._references.get(pointer)
        assert isinstance(definitions, dict)
        start = len(pointer) + 1
        used = {read[start:].partition("/")[0] for read in self._read_at if read.startswith(f"{pointer}/")}
        order = self._references.order(pointer)
        for index, name in enumerate(definitions):
            if step("", name)[1:] not in used:
                report = KeywordReport(step(pointer, name), name, "annotation", "a definition that nothing refers to")
                self._reports.append(((*order, index), report))

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
        if (known := self._read_at.get(pointer)) is not None:
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
            node = self._read_object(schema, pointer)
            self._depth -= 1
        else:
            raise GrammarSyntax(
                f"{pointer or 'the schema'}: a schema must be an object, true or false", pointer=pointer
            )
        self._read_at[pointer] = node
        return node

    def _read_object(self, schema: dict[str, Json], pointer: str) -> Node:
        if "$ref" in schema and self._draft <= 7:
            return self._read_old_ref(schema, pointer)
        order = self._order[pointer]
        groups: set[str] = set()
        combining = False
        for index, keyword in enumerate(schema):
            report = _MASKED
            kind = self._kinds.get(keyword)
            if kind is None:
                report = ("annotation", kw.unknown_note(keyword))
            elif kind == "annotation":
                report = _ANNOTATION
            elif kind == "type":
                if schema["type"] == "integer":
                    report = ("masked", _UNBOUNDED_NOTE)
            elif kind in _TYPES:
                groups.add(kind)
                report = ("masked", self._note(keyword, kind, schema))
            elif kind == "combining":
                combining = True
            elif kind == "definitions":
                report = self._define(schema, pointer, keyword)
            elif kind == "refused":
                report = self._read_refused(schema, pointer, keyword)
            else:
                report = _UNKNOWN_IN_DRAFT
            at = step(pointer, keyword) if kind is None else f"{pointer}/{keyword}"
            self._reports.append(((*order, index), KeywordReport(at, keyword, *report)))
        base = self._read_types(schema, pointer, groups)
        return self._combine(schema, pointer, base) if combining else base

    def _note(self, keyword: str, kind: str, schema: dict[str, Json]) -> str:
        if kind == "number":
            return _BOUNDED_NOTE if schema.get("type") != "integer" else ""
        if keyword == "format" and isinstance(schema["format"], str) and schema["format"] in FORMATS:
            return FORMATS[schema["format"]].note
        return ""

    def _define(self, schema: dict[str, Json], pointer: str, keyword: str) -> _Report:
        if not isinstance(schema[keyword], dict):
            self._wrong(pointer, keyword, "an object")
        self._definitions.append(f"{pointer}/{keyword}")
        return "annotation", "read where $ref names one"

    def _read_refused(self, schema: dict[str, Json], pointer: str, keyword: str) -> _Report:
        """Return the report of a keyword that is refused where it says anything."""
        if keyword in ("then", "else") and "if" not in schema:
            return "annotation", "without if it says nothing"
        if keyword in ("minContains", "maxContains") and "contains" not in schema:
            return "annotation", "without contains it says nothing"
        if (
            keyword in ("patternProperties", "dependencies", "dependentRequired", "dependentSchemas")
            and schema[keyword] == {}
        ):
            return "masked", "empty: it says nothing"
        if keyword in ("propertyNames", "unevaluatedProperties", "unevaluatedItems") and schema[keyword] in (True, {}):
            return "masked", "it allows everything"
        self._refuse(pointer, keyword, f"{keyword} is not enforced yet; {kw.REFUSED[keyword]}")

    def _read_old_ref(self, schema: dict[str, Json], pointer: str) -> Node:
        """Read a `$ref` of draft 7 and before, where it hides all other keywords beside it."""
        for index, keyword in enumerate(schema):
            if keyword == "$ref":
                report = _MASKED
            elif keyword in kw.DEFINITIONS:
                report = self._define(schema, pointer, keyword)
            else:
                report = ("annotation", "beside $ref it says nothing up to draft 7")
            self._reports.append(
                ((*self._order[pointer], index), KeywordReport(step(pointer, keyword), keyword, *report))
            )
        return self._read_ref(schema, pointer)

    def _read_ref(self, schema: dict[str, Json], pointer: str) -> Ref:
        reference = schema["$ref"]
        if not isinstance(reference, str):
            self._wrong(pointer, "$ref", "a string")
        target = self._references.resolve(reference, pointer)
        if target not in self._schema.targets and target not in self._waiting:
            self._waiting.append(target)
        return Ref(target)

    def _read_types(self, schema: dict[str, Json], pointer: str, groups: set[str]) -> Node:
        if "type" in schema:
            names = self._type_names(schema, pointer)
        elif groups:
            names = _EVERY_TYPE
        else:
            return ANY
        if not groups and len(names) == 1:
            return _TYPES[names[0]]
        # A keyword's value is checked even where its type cannot occur.
        leaves: dict[str, Node] = {}
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
        return Number(is_integer, low, high, multiple_of, pointer)

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
        pattern, format_name = schema.get("pattern"), schema.get("format")
        if "pattern" in schema and not isinstance(pattern, str):
            self._wrong(pointer, "pattern", "a string")
        if "format" in schema:
            if not isinstance(format_name, str):
                self._wrong(pointer, "format", "a string")
            if format_name not in FORMATS:
                self._refuse(
                    pointer,
                    "format",
                    f"the format {format_name!r} is not enforced yet; use pattern, or one of "
                    f"{', '.join(sorted(FORMATS))}",
                )
        return String(
            self._count(schema, pointer, "minLength") or 0,
            self._count(schema, pointer, "maxLength"),
            (pattern,) if isinstance(pattern, str) else (),
            (format_name,) if isinstance(format_name, str) else (),
            pointer,
        )

    def _read_array(self, schema: dict[str, Json], pointer: str) -> Array:
        if schema.get("uniqueItems") not in (None, False):
            if schema["uniqueItems"] is not True:
                self._wrong(pointer, "uniqueItems", "true or false")
            self._refuse(pointer, "uniqueItems", "uniqueItems is not enforced yet; leave it out")
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
            prefix, rest, self._count(schema, pointer, "minItems") or 0, self._count(schema, pointer, "maxItems")
        )

    def _read_properties(self, schema: dict[str, Json], pointer: str) -> Object:
        declared = schema.get("properties", {})
        if not isinstance(declared, dict):
            self._wrong(pointer, "properties", "an object")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            self._wrong(pointer, "required", "a list of strings")
        at = f"{pointer}/properties"
        properties: dict[str, Node] = {}
        if declared:
            order = self._order_of(schema, pointer, "properties")
            for index, (property_name, value) in enumerate(declared.items()):
                properties[property_name] = self.read(value, step(at, property_name), (*order, index))
        additional: Node = ANY
        if "additionalProperties" in schema:
            additional = self._read_one(schema, pointer, "additionalProperties")
        for name in required:
            properties.setdefault(str(name), additional)
        return Object(
            properties,
            frozenset(str(name) for name in required),
            additional,
            self._count(schema, pointer, "minProperties") or 0,
            self._count(schema, pointer, "maxProperties"),
            pointer,
        )

    # Combining

    def _combine(self, schema: dict[str, Json], pointer: str, base: Node) -> Node:
        parts: list[Node] = [] if base is ANY else [base]
        if "$ref" in schema:
            parts.append(self._read_ref(schema, pointer))
        if "allOf" in schema:
            parts.extend(self._options(schema, pointer, "allOf"))
        if "anyOf" in schema:
            parts.append(AnyOf(tuple(self._options(schema, pointer, "anyOf"))))
        if "oneOf" in schema:
            parts.append(OneOf(tuple(self._options(schema, pointer, "oneOf")), f"{pointer}/oneOf"))
        if "enum" in schema:
            values = schema["enum"]
            if not isinstance(values, list):
                self._wrong(pointer, "enum", "a list")
            parts.append(Constants(tuple(values)))
        if "const" in schema:
            parts.append(Constants((schema["const"],)))
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts), pointer)

    def _options(self, schema: dict[str, Json], pointer: str, keyword: str) -> list[Node]:
        options = schema[keyword]
        if not isinstance(options, list) or not options:
            self._wrong(pointer, keyword, "a list of schemas, not empty")
        return self._read_list(schema, pointer, keyword, options)

    def _read_one(self, schema: dict[str, Json], pointer: str, keyword: str) -> Node:
        return self.read(schema[keyword], f"{pointer}/{keyword}", self._order_of(schema, pointer, keyword))

    def _read_list(self, schema: dict[str, Json], pointer: str, keyword: str, values: list[Json]) -> list[Node]:
        order = self._order_of(schema, pointer, keyword)
        return [self.read(value, f"{pointer}/{keyword}/{index}", (*order, index)) for index, value in enumerate(values)]
