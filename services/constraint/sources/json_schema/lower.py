"""Second stage: nodes become rules.

Every array, object and choice is one rule, made when something first asks for it and written from a work list, so
that nothing here recurses with the schema's depth. What many schemas share (any value, strings, numbers, white space)
is built once per white space mode, at import.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache

from services.constraint.core.grammar import (
    EMPTY,
    NOTHING,
    Alternation,
    Bytes,
    Expression,
    Grammar,
    Literals,
    Reference,
    Repeat,
    Sequence,
    optional,
)
from services.constraint.core.regex import anchors, automaton, encoding, lookaround
from services.constraint.core.regex.parse import parse
from services.constraint.sources.json_schema import numeric
from services.constraint.sources.json_schema.combine import Combiner
from services.constraint.sources.json_schema.formats import FORMATS
from services.constraint.sources.json_schema.key_classes import KeyClass, key_classes
from services.constraint.sources.json_schema.keys import key_bytes
from services.constraint.sources.json_schema.nodes import (
    NONE,
    AllOf,
    AnyOf,
    AnyValue,
    Array,
    Boolean,
    Conditional,
    Constants,
    Json,
    Node,
    Not,
    NoValue,
    Null,
    Number,
    Object,
    OneOf,
    Ref,
    String,
    Unevaluated,
)
from services.constraint.sources.json_schema.schema import Schema, located
from services.constraint.sources.json_schema.strings import (
    ANY_CHARACTER,
    ANY_STRING,
    PLAIN_CHARACTER,
    PLAIN_STRING,
    matches,
    string,
)
from services.constraint.sources.source import SourceOptions, Spelling, Whitespace
from services.rpckit.status import GrammarSyntax, GrammarTooLarge, UnsatisfiableGrammar, UnsupportedConstruct

# Line breaks are followed by at most this many spaces or tabs (the contract's WHITESPACE_BOUNDED).
MAX_INDENT = 40
# Declared properties beside minProperties or maxProperties: one rule per pair of property and count.
MAX_COUNTED_PROPERTIES = 60
# Required properties of which each is seen to in any order: one rule per set of them that is still to come.
MAX_REQUIRED_IN_ANY_ORDER = 4
# Numbers of one enum up to which each may be written in all forms that are the same number.
MAX_NUMBERS_WITH_FORMS = 64

_INDENT = Alternation((Bytes(b" "), Bytes(b"\t")))
_LINE = Sequence((Bytes(b"\n"), Repeat(_INDENT, 0, MAX_INDENT)))
_WS = Reference("ws")
_TRUE_FALSE = Literals((b"true", b"false"))
_NULL = Bytes(b"null")
_STRING = Reference("string")
_INTEGER = Reference("integer")
_NUMBER = Reference("number")
_ANY = Reference("any")
_WHITE_SPACE = " \t\n\r"
_encode = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class _Layout:
    """White space by place: `ws` is the rule of that name, `inside` stands within each bracket of what is not empty.

    `empty` stands between the brackets of what is.
    """

    ws: Expression
    inside: Expression
    empty: Expression
    comma: Expression
    colon: Expression

    def enclose(self, opening: bytes, inner: Expression | None, closing: bytes, *, may_be_empty: bool) -> Expression:
        """Return brackets around an expression that is never empty (None: it has no text)."""
        empty = _sequence(Bytes(opening), self.empty, Bytes(closing))
        if inner is None:
            return empty
        if self.inside == self.empty:
            # The white space of the empty one is that before the inner.
            body = _sequence(inner, self.inside)
            return _sequence(Bytes(opening), self.inside, optional(body) if may_be_empty else body, Bytes(closing))
        filled = _sequence(Bytes(opening), self.inside, inner, self.inside, Bytes(closing))
        return Alternation((empty, filled)) if may_be_empty else filled


def _sequence(*parts: Expression) -> Expression:
    """Return a sequence without its empty parts, bytes beside bytes as one."""
    kept: list[Expression] = []
    for part in parts:
        if isinstance(part, Bytes) and kept and isinstance(kept[-1], Bytes):
            kept[-1] = Bytes(kept[-1].value + part.value)
        elif part != EMPTY:
            kept.append(part)
    return kept[0] if len(kept) == 1 else Sequence(tuple(kept))


def _anywhere(ws: Expression) -> _Layout:
    """Return the layout with the same white space at every place."""
    return _Layout(ws, _WS, _WS, Reference("comma"), Reference("colon"))


_LAYOUTS: dict[Whitespace, _Layout] = {
    "bounded": _anywhere(Alternation((EMPTY, Bytes(b" "), _LINE))),
    "compact": _Layout(EMPTY, EMPTY, EMPTY, Bytes(b","), Bytes(b":")),
    "spaced": _Layout(EMPTY, EMPTY, EMPTY, Bytes(b", "), Bytes(b": ")),
    "pretty": _Layout(_LINE, _WS, EMPTY, Sequence((Bytes(b","), _WS)), Bytes(b": ")),
}


def _library(layout: _Layout, integers: Spelling, escapes: Spelling) -> dict[str, Expression]:
    member = Sequence((Reference("key"), layout.colon, _ANY))
    members = Sequence((member, Repeat(Sequence((layout.comma, member)), 0, None)))
    items = Sequence((_ANY, Repeat(Sequence((layout.comma, _ANY)), 0, None)))
    return {
        "ws": layout.ws,
        "comma": Sequence((_WS, Bytes(b","), _WS)),
        "colon": Sequence((_WS, Bytes(b":"), _WS)),
        "string": ANY_STRING if escapes == "any" else PLAIN_STRING,
        "key": PLAIN_STRING,
        "integer": numeric.number(True, None, None, (), integers)[0],
        "number": numeric.NUMBER,
        "any object": layout.enclose(b"{", members, b"}", may_be_empty=True),
        "any array": layout.enclose(b"[", items, b"]", may_be_empty=True),
        "any": Alternation(
            (Reference("any object"), Reference("any array"), _STRING, _NUMBER, Literals((b"true", b"false", b"null")))
        ),
    }


@lru_cache(maxsize=64)
def _library_of(
    whitespace: Whitespace, whitespace_pattern: str, integers: Spelling, escapes: Spelling
) -> tuple[_Layout, dict[str, Expression]]:
    layout = _anywhere(white_space(whitespace_pattern)) if whitespace == "pattern" else _LAYOUTS[whitespace]
    return layout, _library(layout, integers, escapes)


def common_grammar() -> Grammar:
    """Return a grammar of what nearly every schema's grammar has in it, for the engine to know ahead."""
    characters = [ANY_CHARACTER, PLAIN_CHARACTER]
    options = SourceOptions()
    rules = dict(_library_of(options.whitespace, "", options.integers, options.escapes)[1])
    rules["start"] = Alternation((*map(Reference, rules), *(Repeat(character, 1, 1000) for character in characters)))
    return Grammar("start", rules)


@dataclass(frozen=True, slots=True)
class Lowered:
    """A grammar, and the pointers of the keywords and schemas of which it takes values too many (see `combine.py`)."""

    grammar: Grammar
    inexact: frozenset[str]


def lower(schema: Schema, options: SourceOptions) -> Lowered:
    """Return the grammar of a read schema.

    Raises:
        UnsatisfiableGrammar: the schema has no value. (Not all such schemas are known here; the core finds the others.)
        GrammarSyntax: `whitespace_pattern` is no pattern of white space.
        UnsupportedConstruct, GrammarTooLarge: beyond a limit on patterns, bounds or combinations.
    """
    return _Lowering(schema, options).run()


class _Lowering:
    def __init__(self, schema: Schema, options: SourceOptions) -> None:
        self._schema = schema
        self._options = options
        self._layout, library = _library_of(
            options.whitespace, options.whitespace_pattern, options.integers, options.escapes
        )
        self._rules = dict(library)
        self._comma, self._colon = self._layout.comma, self._layout.colon
        self._combiner = Combiner(schema.targets)
        self._expressions: dict[int, Expression] = {}
        self._shared: dict[object, Expression] = {}
        self._waiting: list[tuple[str, Callable[[], Expression]]] = []
        self._num_rules = 0
        self._kept: list[Node] = []  # ids are keys, so what they name must live
        self._inexact_numbers: set[object] = set()
        self._without_lengths: set[object] = set()  # strings
        self._key_classes: dict[object, tuple[tuple[KeyClass, ...], bool]] = {}

    def run(self) -> Lowered:
        start = self._value(self._schema.root)
        while self._waiting:
            name, make = self._waiting.pop()
            self._rules[name] = make()
        self._rules["start"] = start
        if start is NOTHING:
            raise UnsatisfiableGrammar("no value satisfies the schema", pointer="")
        return Lowered(Grammar("start", self._rules), frozenset(self._combiner.inexact))

    def _rule(self, make: Callable[[], Expression], kind: str) -> Reference:
        self._num_rules += 1
        name = f"{kind} {self._num_rules}"
        self._waiting.append((name, make))
        return Reference(name)

    def _value(self, node: Node) -> Expression:
        """Return the expression of a node's values; the same for the same node, and small: what is large is a rule."""
        expression = self._expressions.get(id(node))
        if expression is None:
            expression = self._expressions[id(node)] = self._make(node)
            self._kept.append(node)
        return expression

    def _make(self, node: Node) -> Expression:
        match node:
            case String():
                return self._string(node)
            case Object():
                return self._rule(lambda: self._object(node), "object")
            case Array():
                return self._rule(lambda: self._array(node), "array")
            case Number():
                return self._number(node)
            case Constants():
                return self._constants(node)
            case AnyValue():
                return _ANY
            case NoValue():
                return NOTHING
            case Null():
                return _NULL
            case Boolean():
                return _TRUE_FALSE
            case Ref(target):
                name = f"#{target}"
                if name not in self._rules:
                    self._rules[name] = NOTHING
                    self._waiting.append((name, lambda: self._value(self._schema.targets[target])))
                return Reference(name)
            case AnyOf(options):
                return self._choice(options)
            case OneOf():
                return self._choice(self._combiner.alternatives(node))
            case AllOf() | Not() | Conditional() | Unevaluated():
                return self._choice(self._combiner.leaves(node))

    def _choice(self, options: tuple[Node, ...]) -> Expression:
        values = [value for option in options if (value := self._value(option)) is not NOTHING]
        if len(values) <= 1:
            return values[0] if values else NOTHING
        if any(value is _ANY for value in values):
            return _ANY
        return self._rule(lambda: Alternation(tuple(dict.fromkeys(values))), "choice")

    def _number(self, node: Number) -> Expression:
        spelling: Spelling = "plain" if node.is_plain else self._options.integers
        if node.low is None and node.high is None and not node.multiples_of and spelling == self._options.integers:
            return _INTEGER if node.is_integer else _NUMBER
        key = (node.is_integer, node.low, node.high, node.multiples_of, spelling)
        if key not in self._shared:
            expression, is_exact = numeric.number(*key)
            self._shared[key] = expression if expression is NOTHING else self._rule(lambda: expression, "number")
            if not is_exact:
                self._inexact_numbers.add(key)
        if key in self._inexact_numbers:
            self._combiner.blame(node, "multipleOf")
        return self._shared[key]

    def _string(self, node: String) -> Expression:
        if node.min_length == 0 and node.max_length is None and not node.patterns and not node.formats:
            return _STRING
        if any(FORMATS[name].check is not None for name in node.formats):
            self._combiner.blame(node, "format")
        key = (node.min_length, node.max_length, node.patterns, node.formats)
        if key not in self._shared:
            expression, has_lengths = self._string_expression(node)
            self._shared[key] = expression if expression is NOTHING else self._rule(lambda: expression, "string")
            if not has_lengths:
                self._without_lengths.add(key)
        if key in self._without_lengths:
            self._combiner.blame(node, "minLength")
            self._combiner.blame(node, "maxLength")
        return self._shared[key]

    def _string_expression(self, node: String) -> tuple[Expression, bool]:
        """Return the expression of a string, and whether its lengths are in it: not where they take too much."""
        try:
            return string(node, self._options.escapes), True
        except GrammarTooLarge as error:
            if node.min_length == 0 and node.max_length is None:
                raise located(error, f"{node.pointer}/pattern") from None
        except (GrammarSyntax, UnsupportedConstruct) as error:
            raise located(error, f"{node.pointer}/pattern") from None
        return self._string_expression(String(0, None, node.patterns, node.formats, node.pointer))[0], False

    # Constants

    def _constants(self, node: Constants) -> Expression:
        num_numbers = sum(map(_is_number, node.values))
        has_forms = self._options.integers == "any" and num_numbers <= MAX_NUMBERS_WITH_FORMS
        texts: dict[bytes, None] = {}
        options: list[Expression] = []
        for value in node.values:
            if isinstance(value, list | dict) or (has_forms and _is_number(value)):
                options.append(self._constant(value, has_forms=has_forms))
            else:
                texts[_scalar(value)] = None
        if texts:
            options.insert(0, Bytes(next(iter(texts))) if len(texts) == 1 else Literals(tuple(texts)))
        if not options:
            return NOTHING
        if len(options) == 1 and (isinstance(options[0], Bytes) or len(texts) <= 4):
            return options[0]
        return self._rule(lambda: Alternation(tuple(options)), "enum")

    def _constant(self, value: Json, *, has_forms: bool) -> Expression:
        """Return the expression of one value; numbers in every form that is the same number where it `has_forms`."""
        if has_forms and _is_number(value):
            assert isinstance(value, int | Decimal)
            bound = numeric.Bound(Decimal(value), is_exclusive=False)
            if abs(bound.value.adjusted()) < numeric.MAX_BOUND_DIGITS:
                return numeric.number(False, bound, bound, (), "any")[0]
        if not isinstance(value, list | dict):
            return Bytes(_scalar(value))
        parts: list[Expression] = []
        if isinstance(value, list):
            for item in value:
                parts += [*((self._comma,) if parts else ()), self._constant(item, has_forms=has_forms)]
            return self._layout.enclose(b"[", Sequence(tuple(parts)) if parts else None, b"]", may_be_empty=False)
        members: list[Expression] = [
            Sequence((self._key(key), self._constant(item, has_forms=has_forms))) for key, item in value.items()
        ]
        if self._options.property_order == "any":
            # As many as there are, and none twice, which a check sees to: so each of them once.
            inner = self._some_of(members, len(members), len(members)) if members else None
            return self._layout.enclose(b"{", inner, b"}", may_be_empty=False)
        for member in members:
            parts += [*((self._comma,) if parts else ()), member]
        return self._layout.enclose(b"{", Sequence(tuple(parts)) if parts else None, b"}", may_be_empty=False)

    # Arrays

    def _array(self, node: Array) -> Expression:
        minimum = node.min_items
        if node.is_unique and (node.max_items is None or node.max_items > 1):
            self._combiner.blame(node, "uniqueItems")
        for contains in node.contains:
            minimum = max(minimum, contains.minimum)
            if contains.minimum or contains.maximum is not None:
                self._combiner.blame(node, "contains")
        prefix = [self._value(item) for item in node.prefix]
        rest = self._value(node.rest)
        maximum = node.max_items
        if rest is NOTHING:
            maximum = len(prefix) if maximum is None else min(maximum, len(prefix))
        for index, item in enumerate(prefix):
            if item is NOTHING:
                maximum = index if maximum is None else min(maximum, index)
                break
        if maximum is not None:
            if minimum > maximum:
                return NOTHING
            del prefix[maximum:]
        may_be_empty = minimum == 0
        if maximum == 0:
            return self._layout.enclose(b"[", None, b"]", may_be_empty=True)
        # From the last item to the first: what may follow item i, its comma included.
        count = max(len(prefix), 1)
        tail: Expression = EMPTY
        if maximum is None or maximum > count:
            further = Repeat(
                Sequence((self._comma, rest)),
                max(0, minimum - count),
                None if maximum is None else maximum - count,
            )
            tail = further
        for index in range(count - 1, 0, -1):
            tail = Sequence((self._comma, prefix[index], tail))
            if index >= minimum:
                tail = optional(tail)
        inner = Sequence((prefix[0] if prefix else rest, tail))
        return self._layout.enclose(b"[", inner, b"]", may_be_empty=may_be_empty)

    # Objects

    def _key(self, name: str) -> Expression:
        return _sequence(Bytes(key_bytes(name)), self._colon)

    def _object(self, node: Object) -> Expression:
        members: list[tuple[Expression, bool]] = []
        names = self._names(node)
        for name in names.declared:
            value = self._value(self._combiner.member(node, name)) if names.allow(name) else NOTHING
            is_required = name in node.required
            if value is NOTHING:
                if is_required:
                    return NOTHING
                continue
            members.append((Sequence((self._key(name), value)), is_required))
        extra = self._extra(node, names)
        minimum, maximum = max(node.min_properties, len(node.required)), node.max_properties
        if extra is None and (maximum is None or maximum >= len(members)):
            maximum = None if self._options.property_order == "schema" else len(members)
        may_be_empty = minimum == 0
        inner: Expression | None
        if maximum is not None and (maximum == 0 or maximum < minimum):
            inner = None
        elif self._options.property_order == "any":
            inner = self._in_any_order(node, members, extra, minimum, maximum)
        elif node.min_properties > max(len(node.required), 0 if may_be_empty else 1) or maximum is not None:
            inner = self._counted(members, extra, node.min_properties, maximum)
        elif node.required:
            inner = self._around_required(members, extra)
        else:
            inner = self._all_optional(members, extra)
        if inner is None and not may_be_empty:
            return NOTHING
        return self._layout.enclose(b"{", inner, b"}", may_be_empty=may_be_empty)

    def _names(self, node: Object) -> _Names:
        """Return the names that have a place of their own in an object, and what other names there may be."""
        declared = dict.fromkeys(name for members in node.members for name in members.properties)
        # What is required and not declared comes behind, in one order everywhere.
        declared.update(dict.fromkeys(sorted(node.required)))
        leaves = self._combiner.leaves(node.names)
        texts = [leaf for leaf in leaves if isinstance(leaf, String)]
        listed = [
            value
            for leaf in leaves
            if isinstance(leaf, Constants)
            for value in leaf.values
            if isinstance(value, str)  # a name is nothing else
        ]
        if any(isinstance(leaf, AnyValue) for leaf in leaves):
            return _Names(declared, None, None)
        if not texts:
            known = dict.fromkeys(listed)
            return _Names({**declared, **known}, frozenset(known), NONE)
        if len(texts) == 1 and not listed:
            if any(FORMATS[name].check is not None for name in texts[0].formats):
                self._combiner.blame(texts[0], "format")
                self._combiner.blame(node, "propertyNames")
            return _Names(declared, None, texts[0])
        self._combiner.blame(node, "propertyNames")
        return _Names(declared, None, None)

    def _extra(self, node: Object, names: _Names) -> Expression | None:
        """Return a member with another name than the declared ones, or None where there can be none."""
        if isinstance(names.others, NoValue):
            return None
        patterns = tuple(dict.fromkeys(pattern for members in node.members for pattern, _ in members.patterns))
        declared = frozenset(names.declared)
        among = names.others
        key = (
            "keys",
            declared,
            patterns,
            among and (among.min_length, among.max_length, among.patterns, among.formats),
        )
        if key not in self._key_classes:
            try:
                self._key_classes[key] = key_classes(declared, patterns, among)
            except GrammarTooLarge as error:
                if among is None:
                    raise located(error, f"{node.pointer}/patternProperties") from None
                self._combiner.blame(node, "propertyNames")
                return self._extra(node, replace(names, others=None))
            except (GrammarSyntax, UnsupportedConstruct) as error:
                raise located(error, f"{node.pointer}/propertyNames") from None
        classes, is_exact = self._key_classes[key]
        if not is_exact:
            self._combiner.blame(node, "patternProperties")
        options: list[Expression] = []
        for index, keys in enumerate(classes):
            found = {patterns[number] for number in keys.matched}
            value = self._value(self._combiner.all_of(*_parts_of_others(node, found)))
            if value is NOTHING:
                continue
            if (key, index) not in self._shared:
                self._shared[key, index] = self._key_rule(keys.keys)
            options.append(Sequence((self._shared[key, index], self._colon, value)))
        if not options:
            return None
        return options[0] if len(options) == 1 else self._rule(lambda: Alternation(tuple(options)), "other member")

    def _key_rule(self, keys: Expression) -> Expression:
        return Reference("key") if keys is PLAIN_STRING else self._rule(lambda: keys, "other key")

    def _in_any_order(
        self,
        node: Object,
        members: list[tuple[Expression, bool]],
        extra: Expression | None,
        minimum: int,
        maximum: int | None,
    ) -> Expression | None:
        """Return members as they come. That none comes twice is for a check to see."""
        required = [member for member, is_required in members if is_required]
        others = [member for member, is_required in members if not is_required]
        if extra is not None:
            others.append(extra)
        if not required or not others or node.min_properties > len(required) or node.max_properties is not None:
            # Where all are required and there are no others, each comes because as many come as there are.
            if required and others:
                self._combiner.blame(node, "required")
            options = required + others
            return self._some_of(options, max(minimum, 1), maximum) if options else None
        if len(required) > MAX_REQUIRED_IN_ANY_ORDER:
            self._combiner.blame(node, "required")
            others += required[MAX_REQUIRED_IN_ANY_ORDER:]
        return self._with_each_of(tuple(required[:MAX_REQUIRED_IN_ANY_ORDER]), tuple(others))

    def _with_each_of(self, required: tuple[Expression, ...], others: tuple[Expression, ...]) -> Expression:
        """Return members in any order, among which each of `required` comes once: a rule for each set of them."""
        other = self._rule(lambda: Alternation(others), "member")
        rules: dict[tuple[Expression, ...], Expression] = {}

        def begun_with(left: tuple[Expression, ...]) -> Expression:
            if left not in rules:
                options = tuple(Sequence((member, behind(_without(left, member)))) for member in left)
                several = Sequence((Repeat(Sequence((other, self._comma)), 0, None), Alternation(options)))
                rules[left] = self._rule(lambda: several, "members")
            return rules[left]

        def behind(left: tuple[Expression, ...]) -> Expression:
            return (
                Sequence((self._comma, begun_with(left))) if left else Repeat(Sequence((self._comma, other)), 0, None)
            )

        return begun_with(required)

    def _some_of(self, options: list[Expression], minimum: int, maximum: int | None) -> Expression:
        """Return members, at least one, in any order."""
        member = self._rule(lambda: Alternation(tuple(options)), "member")
        further = Repeat(Sequence((self._comma, member)), minimum - 1, None if maximum is None else maximum - 1)
        return Sequence((member, further))

    def _more(self, extra: Expression | None) -> tuple[Expression, ...]:
        return () if extra is None else (Repeat(Sequence((self._comma, extra)), 0, None),)

    def _around_required(self, members: list[tuple[Expression, bool]], extra: Expression | None) -> Expression:
        """Return members of which one is required: the first such has no comma, those before it bring theirs."""
        parts: list[Expression] = []
        is_anchored = False
        for member, is_required in members:
            if is_anchored:
                part = Sequence((self._comma, member))
                parts.append(part if is_required else optional(part))
            elif is_required:
                parts.append(member)
                is_anchored = True
            else:
                parts.append(optional(Sequence((member, self._comma))))
        return Sequence((*parts, *self._more(extra)))

    def _all_optional(self, members: list[tuple[Expression, bool]], extra: Expression | None) -> Expression | None:
        """Any member may be the first; what may follow it is one rule per place, shared by all that come before."""
        more = self._more(extra)
        options: list[Expression] = [Sequence((extra, *more))] if extra is not None else []
        rest: Expression = Sequence(more)
        for index in range(len(members) - 1, -1, -1):
            member = members[index][0]
            options.append(Sequence((member, rest)))
            if index > 0:
                following = Sequence((optional(Sequence((self._comma, member))), rest))
                rest = self._rule(lambda following=following: following, "members")  # type: ignore[misc]
        return Alternation(tuple(reversed(options))) if options else None

    def _counted(
        self, members: list[tuple[Expression, bool]], extra: Expression | None, minimum: int, maximum: int | None
    ) -> Expression | None:
        """Return members by how many have been written; never empty."""
        if len(members) > MAX_COUNTED_PROPERTIES:
            raise GrammarTooLarge(
                f"minProperties or maxProperties beside {len(members)} declared properties; the limit "
                "max_counted_properties is "
                f"{MAX_COUNTED_PROPERTIES}",
                limit="max_counted_properties",
                value=MAX_COUNTED_PROPERTIES,
            )
        rows: dict[int, Expression] = {
            count: self._last(extra, count, minimum, maximum) for count in range(len(members) + 1)
        }
        for index in range(len(members) - 1, -1, -1):
            member, is_required = members[index]
            row: dict[int, Expression] = {}
            for count in range(index + 1):
                options = [] if is_required else [rows[count]]
                if (maximum is None or count < maximum) and rows[count + 1] is not NOTHING:
                    options.append(Sequence((*((self._comma,) if count else ()), member, rows[count + 1])))
                options = [option for option in options if option is not NOTHING]
                if len(options) > 1:
                    alternation = Alternation(tuple(options))
                    row[count] = self._rule(lambda alternation=alternation: alternation, "members")  # type: ignore[misc]
                else:
                    row[count] = options[0] if options else NOTHING
            rows = row
        return None if rows[0] is NOTHING else rows[0]

    def _last(self, extra: Expression | None, count: int, minimum: int, maximum: int | None) -> Expression:
        """Return what may follow `count` declared members: additional ones, no two of one name."""
        if maximum is not None and count > maximum:
            return NOTHING
        if extra is None:
            return EMPTY if count > 0 and count >= minimum else NOTHING
        further = Sequence((self._comma, extra))
        if count:
            return Repeat(further, max(0, minimum - count), None if maximum is None else maximum - count)
        if maximum == 0:
            return NOTHING
        return Sequence((extra, Repeat(further, max(0, minimum - 1), None if maximum is None else maximum - 1)))


@dataclass(frozen=True, slots=True)
class _Names:
    """The names of an object's members: `declared` ones have a place of their own, `others` are by a node.

    `others` is None where there is nothing to say of them, NONE where there are none. Of the declared ones, only those
    in `known` and those of `others` are allowed, where these say something.
    """

    declared: dict[str, None]
    known: frozenset[str] | None
    others: String | NoValue | None

    def allow(self, name: str) -> bool:
        """Tell whether a member may have a declared name."""
        if self.known is not None:
            return name in self.known
        return not isinstance(self.others, String) or matches(self.others, name)


def _parts_of_others(node: Object, found: set[str]) -> Iterator[Node]:
    """Yield the nodes of a member whose name is not declared and has these patterns found in it."""
    for members in node.members:
        parts = [part for pattern, part in members.patterns if pattern in found]
        yield from parts or (members.additional,)


def _without(members: tuple[Expression, ...], member: Expression) -> tuple[Expression, ...]:
    return tuple(other for other in members if other is not member)


def _is_number(value: Json) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _scalar(value: Json) -> bytes:
    """Return a value as `json.dumps(ensure_ascii=False)` writes it.

    Numbers that binary floating point cannot hold keep their digits.
    """
    if isinstance(value, Decimal):
        return repr(float(value)).encode() if Decimal(repr(float(value))) == value else str(value).encode()
    return _encode(value).encode()


def white_space(pattern: str) -> Expression:
    """Return the expression of a pattern, in Python's syntax, that matches white space alone.

    Raises:
        GrammarSyntax, UnsupportedConstruct, GrammarTooLarge: as parsing does; GrammarSyntax where it matches more.
    """
    tree = anchors.full_match(parse(pattern, "python"))
    dfa = lookaround.full_match(parse(pattern, "python")) if tree is None else automaton.to_dfa(tree)
    for out in dfa.edges:
        if any(chr(point) not in _WHITE_SPACE for ranges, _ in out for low, high in ranges for point in {low, high}):
            raise GrammarSyntax(
                f"whitespace_pattern {pattern!r} matches more than spaces, tabs and line breaks", pointer=""
            )
    return dfa.to_automaton(encoding.utf8)


__all__ = ["MAX_COUNTED_PROPERTIES", "MAX_INDENT", "Lowered", "lower"]
