"""A constraint between its forms: the contract's message, what people write in a JSON file, and the plain type."""

from __future__ import annotations

import json
from typing import Any, Final

from espalier.v1 import types_pb2
from google.protobuf.json_format import ParseDict, ParseError

from services.constraint.sources import ConstraintSource, named
from services.rpckit.status import InvalidRequest

KINDS: Final = tuple(field.name for field in types_pb2.Constraint.DESCRIPTOR.oneofs_by_name["kind"].fields)


def source_of(constraint: types_pb2.Constraint) -> ConstraintSource:
    """Return a constraint as the sources take it.

    Raises:
        InvalidRequest: it is empty, or a part of it is.
        UnknownGrammar: no grammar has this name.
    """
    kind = constraint.WhichOneof("kind")
    match kind:
        case "json_schema" | "lark" | "regex" | "literal" | "until" | "special_token":
            return ConstraintSource(kind, getattr(constraint, kind))
        case "sequence" | "any_of":
            return ConstraintSource(kind, parts=tuple(map(source_of, getattr(constraint, kind).parts)))
        case "choices":
            return ConstraintSource(kind, choices=tuple(constraint.choices.values))
        case "grammar_name":
            return ConstraintSource("lark", named.grammar_text(constraint.grammar_name))
    raise InvalidRequest(
        f"set exactly one kind of constraint, here and in each part: {', '.join(KINDS)}", field="constraint"
    )


def from_json(value: Any) -> types_pb2.Constraint:
    """Read a constraint as it is written in JSON: an object with one member, named as the field of the contract.

    A JSON Schema is written as it is, `choices`, `sequence` and `any_of` as an array.

    Raises:
        InvalidRequest: it is something else.
    """
    try:
        return ParseDict(_as_protobuf(value), types_pb2.Constraint())
    except (ParseError, RecursionError) as error:
        raise InvalidRequest(f"not a constraint: {error}", field="constraint") from None


def _as_protobuf(value: Any) -> Any:
    """Return protobuf's JSON form."""
    if not isinstance(value, dict) or len(value) != 1:
        raise ParseError(f"an object with exactly one of {', '.join(KINDS)}, not {json.dumps(value)[:100]}")
    ((kind, inner),) = value.items()
    if kind == "json_schema":
        return {kind: json.dumps(inner, ensure_ascii=False)}
    if kind == "choices":
        return {kind: {"values": inner}}
    if kind in ("sequence", "any_of"):
        return {kind: {"parts": [_as_protobuf(part) for part in _listed(kind, inner)]}}
    return value


def _listed(kind: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ParseError(f"{kind} is an array of constraints")
    return value
