"""Second stage: nodes become rules.

Every array, object and choice is one rule, made when something first asks for it and written from a work list, so
that nothing here recurses with the schema's depth. What many schemas share (any value, strings, numbers, white space)
is built once per white space mode, at import.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal

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
from services.constraint.sources.json_schema import numeric
from services.constraint.sources.json_schema.combine import Combiner
from services.constraint.sources.json_schema.keys import any_key_but, key_bytes
from services.constraint.sources.json_schema.nodes import (
    ANY,
    AllOf,
    AnyOf,
    AnyValue,
    Array,
    Boolean,
    Constants,
    Json,
    Node,
    NoValue,
    Null,
    Number,
    Object,
    OneOf,
    Ref,
    String,
)
from services.constraint.sources.json_schema.schema import Schema
from services.constraint.sources.json_schema.strings import (
    ANY_CHARACTER,
    ANY_STRING,
    PLAIN_CHARACTER,
    PLAIN_STRING,
    string,
)
from services.constraint.sources.source import Whitespace
from services.rpckit.status import GrammarSyntax, GrammarTooLarge, UnsatisfiableGrammar, UnsupportedConstruct

# Line breaks are followed by at most this many spaces or tabs (the contract's WHITESPACE_BOUNDED).
MAX_INDENT = 40
# Declared properties beside minProperties or maxProperties: one rule per pair of property and count.
MAX_COUNTED_PROPERTIES = 60

_INDENT = Alternation((Bytes(b" "), Bytes(b"\t")))
_WS_RULE = Alternation((EMPTY, Bytes(b" "), Sequence((Bytes(b"\n"), Repeat(_INDENT, 0, MAX_INDENT)))))
_WS = Reference("ws")
_COMMA: dict[Whitespace, Expression] = {"bounded": Reference("comma"), "compact": Bytes(b","), "spaced": Bytes(b", ")}
_COLON: dict[Whitespace, Expression] = {"bounded": Reference("colon"), "compact": Bytes(b":"), "spaced": Bytes(b": ")}
_TRUE_FALSE = Literals((b"true", b"false"))
_NULL = Bytes(b"null")
_STRING = Reference("string")
_INTEGER = Reference("integer")
_NUMBER = Reference("number")
_ANY = Reference("any")
_encode = json.JSONEncoder(ensure_ascii=False).encode


def _enclose(
    whitespace: Whitespace, opening: bytes, inner: Expression | None, closing: bytes, *, may_be_empty: bool
) -> Expression:
    """Return brackets around an expression that is never empty (None: it has no text), with white space inside."""
    ws = (_WS,) if whitespace == "bounded" else ()
    if inner is None:
        return Sequence((Bytes(opening), *ws, Bytes(closing))) if ws else Bytes(opening + closing)
    body = Sequence((inner, *ws)) if ws else inner
    return Sequence((Bytes(opening), *ws, optional(body) if may_be_empty else body, Bytes(closing)))


def _library(whitespace: Whitespace) -> dict[str, Expression]:
    comma, colon = _COMMA[whitespace], _COLON[whitespace]
    member = Sequence((Reference("key"), colon, _ANY))
    members = Sequence((member, Repeat(Sequence((comma, member)), 0, None)))
    items = Sequence((_ANY, Repeat(Sequence((comma, _ANY)), 0, None)))
    return {
        "ws": _WS_RULE,
        "comma": Sequence((_WS, Bytes(b","), _WS)),
        "colon": Sequence((_WS, Bytes(b":"), _WS)),
        "string": ANY_STRING,
        "key": PLAIN_STRING,
        "integer": numeric.INTEGER,
        "number": numeric.NUMBER,
        "any object": _enclose(whitespace, b"{", members, b"}", may_be_empty=True),
        "any array": _enclose(whitespace, b"[", items, b"]", may_be_empty=True),
        "any": Alternation(
            (Reference("any object"), Reference("any array"), _STRING, _NUMBER, Literals((b"true", b"false", b"null")))
        ),
    }


_LIBRARIES: dict[Whitespace, dict[str, Expression]] = {
    mode: _library(mode) for mode in ("bounded", "compact", "spaced")
}


def common_grammar() -> Grammar:
    """Return a grammar of what nearly every schema's grammar has in it, for the engine to know ahead."""
    characters = [ANY_CHARACTER, PLAIN_CHARACTER]
    rules = dict(_LIBRARIES["bounded"])
    rules["start"] = Alternation(
        (*map(Reference, _LIBRARIES["bounded"]), *(Repeat(character, 1, 1000) for character in characters))
    )
    return Grammar("start", rules)


def lower(schema: Schema, whitespace: Whitespace) -> Grammar:
    """Return the grammar of a read schema.

    Raises:
        UnsupportedConstruct: a `oneOf` whose options may overlap, or a number that no automaton of ours expresses.
        UnsatisfiableGrammar: the schema has no value. (Not all such schemas are known here; the core finds the others.)
        GrammarTooLarge: beyond a limit on patterns, bounds or combinations.
    """
    return _Lowering(schema, whitespace).run()


class _Lowering:
    def __init__(self, schema: Schema, whitespace: Whitespace) -> None:
        self._schema = schema
        self._whitespace = whitespace
        self._comma, self._colon = _COMMA[whitespace], _COLON[whitespace]
        self._ws: tuple[Expression, ...] = (_WS,) if whitespace == "bounded" else ()
        self._rules = dict(_LIBRARIES[whitespace])
        self._combiner = Combiner(schema.targets)
        self._expressions: dict[int, Expression] = {}
        self._shared: dict[object, Expression] = {}
        self._waiting: list[tuple[str, Callable[[], Expression]]] = []
        self._num_rules = 0
        self._kept: list[Node] = []  # ids are keys, so what they name must live

    def run(self) -> Grammar:
        start = self._value(self._schema.root)
        while self._waiting:
            name, make = self._waiting.pop()
            self._rules[name] = make()
        self._rules["start"] = start
        if start is NOTHING:
            raise UnsatisfiableGrammar("no value satisfies the schema", pointer="")
        return Grammar("start", self._rules)

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
            case OneOf(options):
                self._combiner.check_disjoint(node)
                return self._choice(options)
            case AllOf():
                return self._choice(self._combiner.leaves(node))

    def _choice(self, options: tuple[Node, ...]) -> Expression:
        values = [value for option in options if (value := self._value(option)) is not NOTHING]
        if len(values) <= 1:
            return values[0] if values else NOTHING
        if any(value is _ANY for value in values):
            return _ANY
        return self._rule(lambda: Alternation(tuple(dict.fromkeys(values))), "choice")

    def _number(self, node: Number) -> Expression:
        if node.low is None and node.high is None and node.multiple_of is None:
            return _INTEGER if node.is_integer else _NUMBER
        key = (node.is_integer, node.low, node.high, node.multiple_of)
        if key not in self._shared:
            expression = _number(node)
            self._shared[key] = self._rule(lambda: expression, "number")
        return self._shared[key]

    def _string(self, node: String) -> Expression:
        if node.min_length == 0 and node.max_length is None and not node.patterns and not node.formats:
            return _STRING
        key = (node.min_length, node.max_length, node.patterns, node.formats)
        if key not in self._shared:
            try:
                expression = string(node)
            except (GrammarSyntax, UnsupportedConstruct, GrammarTooLarge) as error:
                pointer = error.metadata.setdefault("pointer", f"{node.pointer}/pattern")
                error.message = f"{pointer}: {error.message}"
                error.args = (error.message,)
                raise
            self._shared[key] = expression if expression is NOTHING else self._rule(lambda: expression, "string")
        return self._shared[key]

    # Constants

    def _constants(self, node: Constants) -> Expression:
        scalars = tuple(dict.fromkeys(_scalar(value) for value in node.values if not isinstance(value, list | dict)))
        options = [self._constant(value) for value in node.values if isinstance(value, list | dict)]
        if scalars:
            options.insert(0, Bytes(scalars[0]) if len(scalars) == 1 else Literals(scalars))
        if not options:
            return NOTHING
        if len(options) == 1 and (isinstance(options[0], Bytes) or len(scalars) <= 4):
            return options[0]
        return self._rule(lambda: Alternation(tuple(options)), "enum")

    def _constant(self, value: Json) -> Expression:
        if not isinstance(value, list | dict):
            return Bytes(_scalar(value))
        parts: list[Expression] = []
        if isinstance(value, list):
            for item in value:
                parts += [*((self._comma,) if parts else ()), self._constant(item)]
            return _enclose(self._whitespace, b"[", Sequence(tuple(parts)) if parts else None, b"]", may_be_empty=False)
        for key, item in value.items():
            parts += [*((self._comma,) if parts else ()), self._key(key), self._constant(item)]
        return _enclose(self._whitespace, b"{", Sequence(tuple(parts)) if parts else None, b"}", may_be_empty=False)

    # Arrays

    def _array(self, node: Array) -> Expression:
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
            if node.min_items > maximum:
                return NOTHING
            del prefix[maximum:]
        may_be_empty = node.min_items == 0
        if maximum == 0:
            return _enclose(self._whitespace, b"[", None, b"]", may_be_empty=True)
        # From the last item to the first: what may follow item i, its comma included.
        count = max(len(prefix), 1)
        tail: Expression = EMPTY
        if maximum is None or maximum > count:
            further = Repeat(
                Sequence((self._comma, rest)),
                max(0, node.min_items - count),
                None if maximum is None else maximum - count,
            )
            tail = further
        for index in range(count - 1, 0, -1):
            tail = Sequence((self._comma, prefix[index], tail))
            if index >= node.min_items:
                tail = optional(tail)
        inner = Sequence((prefix[0] if prefix else rest, tail))
        return _enclose(self._whitespace, b"[", inner, b"]", may_be_empty=may_be_empty)

    # Objects

    def _key(self, name: str) -> Expression:
        if self._whitespace == "bounded":
            return Sequence((Bytes(key_bytes(name)), self._colon))
        return Bytes(key_bytes(name) + (b":" if self._whitespace == "compact" else b": "))

    def _object(self, node: Object) -> Expression:
        members: list[tuple[Expression, bool]] = []
        for name, child in node.properties.items():
            value = self._value(child)
            is_required = name in node.required
            if value is NOTHING:
                if is_required:
                    return NOTHING
                continue
            members.append((Sequence((self._key(name), value)), is_required))
        extra = self._extra(node)
        num_required = len(node.required)
        maximum = node.max_properties
        if maximum is not None and extra is None and maximum >= len(members):
            maximum = None
        may_be_empty = node.min_properties == 0 and num_required == 0
        inner: Expression | None
        if node.min_properties > max(num_required, 0 if may_be_empty else 1) or maximum is not None:
            inner = self._counted(members, extra, node.min_properties, maximum)
        elif num_required:
            inner = self._around_required(members, extra)
        else:
            inner = self._all_optional(members, extra)
        if inner is None and not may_be_empty:
            if extra is not None and node.min_properties > len(members):
                raise UnsupportedConstruct(
                    f"{node.pointer}/minProperties: only one additional property is sure to count, "
                    "since two may have the "
                    "same key; declare more properties, or ask for fewer",
                    name="minProperties",
                    keyword="minProperties",
                    pointer=f"{node.pointer}/minProperties",
                )
            return NOTHING
        return _enclose(self._whitespace, b"{", inner, b"}", may_be_empty=may_be_empty)

    def _extra(self, node: Object) -> Expression | None:
        value = self._value(node.additional)
        if value is NOTHING:
            return None
        names = tuple(node.properties)
        if not names:
            return Sequence((Reference("key"), self._colon, value))
        key = ("keys", frozenset(names))
        if key not in self._shared:
            automaton = any_key_but(names)
            self._shared[key] = self._rule(lambda: automaton, "other key")
        return Sequence((self._shared[key], self._colon, value))

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
        """Return what may follow `count` declared members: additional ones."""
        if maximum is not None and count > maximum:
            return NOTHING
        if extra is None:
            return EMPTY if count > 0 and count >= minimum else NOTHING
        # Two additional keys may be equal, so that only the first of them surely counts as a property.
        if count + 1 < minimum or (count == maximum and count < minimum):
            return NOTHING
        further = Sequence((self._comma, extra))
        if count:
            return Repeat(further, max(0, minimum - count), None if maximum is None else maximum - count)
        if maximum == 0:
            return NOTHING
        return Sequence((extra, Repeat(further, 0, None if maximum is None else maximum - 1)))


def _scalar(value: Json) -> bytes:
    """Return a value as `json.dumps(ensure_ascii=False)` writes it.

    Numbers that binary floating point cannot hold keep their digits.
    """
    if isinstance(value, Decimal):
        return repr(float(value)).encode() if Decimal(repr(float(value))) == value else str(value).encode()
    return _encode(value).encode()


def _number(node: Number) -> Expression:
    if node.multiple_of is None:
        return numeric.integers(node.low, node.high) if node.is_integer else numeric.decimals(node.low, node.high)
    step, exponent = node.multiple_of, node.multiple_of.normalize().as_tuple().exponent
    expression: Expression | None = None
    if step == int(step):
        # A multiple of a whole number is a whole number, whatever its type.
        expression = numeric.multiples(int(step), node.low, node.high)
    elif node.is_integer and step.normalize().as_tuple().digits == (1,):
        return numeric.integers(node.low, node.high)
    elif node.low is None and node.high is None and step.normalize().as_tuple().digits == (1,):
        assert isinstance(exponent, int)
        expression = numeric.decimal_places(-exponent)
    if expression is None:
        raise UnsupportedConstruct(
            f"{node.pointer}/multipleOf: this multipleOf with these bounds is not enforced yet; whole "
            f"numbers (up to {numeric.MAX_DIVISOR} without "
            f"bounds or from 0 on, up to {numeric.MAX_LISTED_MULTIPLES} multiples between bounds) and "
            "powers of ten without bounds are",
            name="multipleOf",
            keyword="multipleOf",
            pointer=f"{node.pointer}/multipleOf",
        )
    return expression


__all__ = ["ANY", "MAX_COUNTED_PROPERTIES", "MAX_INDENT", "lower"]
