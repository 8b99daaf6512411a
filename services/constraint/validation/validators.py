"""Judges finished texts by libraries that had no part in making them: `jsonschema`, Lark's parser, `re`, `regex`.

`jsonschema` as it comes is not exact: `json_validator.py` says how it is run, and docs/json-schema.md lists it too. The
text is read with Decimals for numbers with a point or an exponent; one with a key twice in one object is invalid.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from itertools import islice
from typing import Any

import lark
from jsonschema.exceptions import ValidationError
from lark.exceptions import UnexpectedInput
from referencing.exceptions import Unresolvable

from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.sources.json_schema import document
from services.constraint.sources.lark import load
from services.constraint.sources.source import LarkLexer
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
    if source.kind == "choices":
        return [] if decoded in source.choices else [Violation("the text is none of the choices")]
    assert source.text is not None
    if source.kind == "regex":
        return (
            [] if re.fullmatch(source.text, decoded) else [Violation("the text as a whole does not match the pattern")]
        )
    if source.kind == "lark":
        return _validate_lark(source.text, options.lexer, decoded)
    return _validate_json(source.text, options, decoded)


@lru_cache(maxsize=16)
def _loaded(grammar: str, lexer: LarkLexer) -> lark.Lark:
    return load(grammar, lexer)


def _validate_lark(grammar: str, lexer: LarkLexer, text: str) -> list[Violation]:
    try:
        _loaded(grammar, lexer).parse(text)
    except UnexpectedInput as error:
        return [Violation(str(error).strip()[:_MAX_MESSAGE_CHARACTERS])]
    except RuntimeError as error:
        # A bug of Lark's Earley parser: it has parsed the text in more than one way, as nothing and as ignored text.
        if "multiple start symbol items" not in str(error):
            raise
    return []


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
