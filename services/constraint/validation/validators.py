"""Judges finished texts by libraries that had no part in making them: `jsonschema`, Lark's parser, `re`, `regex`.

`jsonschema` as it comes is not exact: `json_validator.py` says how it is run, and docs/json-schema.md lists it too. The
text is read with Decimals for numbers with a point or an exponent; one with a key twice in one object is invalid.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import islice
from typing import Any

from jsonschema.exceptions import ValidationError
from referencing.exceptions import Unresolvable

from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.sources.json_schema import document
from services.constraint.validation import lark_validator, parts_validator
from services.constraint.validation.json_validator import json_validator
from services.rpckit.status import InvalidRequest, UnsupportedConstruct

MAX_VIOLATIONS = 10
_MAX_MESSAGE_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Violation:
    """One reason why a text does not satisfy its constraint.

    Pointers are JSON Pointers, empty where there is none to give.
    """

    message: str
    instance_pointer: str = ""
    schema_pointer: str = ""


def validate(source: ConstraintSource, options: SourceOptions, text: bytes) -> list[Violation]:
    """Return why a text does not satisfy a constraint, at most MAX_VIOLATIONS reasons; none means that it does.

    May take very long on hostile input: run it through `ValidatorPool`.

    Raises:
        InvalidRequest, GrammarSyntax, UnsupportedConstruct, UnsatisfiableGrammar, GrammarTooLarge: as building the
        constraint does.
    """
    build(source, options)
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        return [Violation(f"the text is not UTF-8: {error.reason} at byte {error.start}")]
    return _validate(source, options, decoded)


def _validate(source: ConstraintSource, options: SourceOptions, text: str) -> list[Violation]:
    def is_valid(part: ConstraintSource, part_of_text: str) -> bool:
        return not _validate(part, options, part_of_text)

    match source.kind:
        case "choices":
            return [] if text in source.choices else [Violation("the text is none of the choices")]
        case "regex":
            matches = re.fullmatch(source.text or "", text)
            return [] if matches else [Violation("the text as a whole does not match the pattern")]
        case "lark":
            message = lark_validator.violation(source.text or "", options.lexer, text, is_valid)
            return [] if message is None else [Violation(message)]
        case "json_schema":
            return _validate_json(source.text or "", options, text)
        case "sequence":
            # Where only the last part can be to blame, it says more.
            *before, last = source.parts
            starts = parts_validator.ends_of_all(before, text, 0, is_valid, is_last=False)
            if len(starts) == 1:
                return _validate(last, options, text[starts.pop() :])
    if parts_validator.ends(source, text, 0, is_valid, is_last=True):
        return []
    return [Violation("the text cannot be divided into texts of the constraint's parts")]


def _validate_json(schema_text: str, options: SourceOptions, text: str) -> list[Violation]:
    try:
        value = json.loads(text, parse_float=_decimal, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        return [Violation(f"the text is not JSON: {error.msg} at line {error.lineno}, column {error.colno}")]
    except _RepeatedKeyError as error:
        return [Violation(f"the key {error} stands twice in one object")]
    except _NotJson as error:
        return [Violation(f"the text is not JSON: {error} is not a JSON value")]
    except InvalidOperation as error:
        return [Violation(f"a number is beyond what decimals hold: {error}")]
    except RecursionError:
        raise InvalidRequest("the text is nested deeper than the validator takes", field="text") from None
    try:
        errors = json_validator(schema_text, options).iter_errors(value)
        return [_violation(error) for error in islice(errors, MAX_VIOLATIONS)]
    except Unresolvable as error:
        raise UnsupportedConstruct(
            f"the validator finds nothing that {error.ref!r} names: see that what is beside it is a schema", name="$ref"
        ) from None


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise InvalidOperation(text[:40]) from None


def _violation(error: ValidationError) -> Violation:
    return Violation(
        error.message[:_MAX_MESSAGE_CHARACTERS], _pointer(error.absolute_path), _pointer(error.absolute_schema_path)
    )


def _pointer(path: Any) -> str:
    pointer = ""
    for part in path:
        pointer = document.step(pointer, part)
    return pointer


class _NotJson(ValueError):
    pass


class _RepeatedKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise _RepeatedKeyError(repr(key)[:_MAX_MESSAGE_CHARACTERS])
        members[key] = value
    return members


def _refuse_constant(name: str) -> None:
    raise _NotJson(name)
