"""Judges finished texts by libraries that had no part in making them: `jsonschema`, Lark's parser, `re`, `regex`.

`jsonschema` as it comes is not exact, so it is run with these differences (docs/json-schema.md lists them):

- numbers with a point or an exponent are Decimals, in the schema and in the text, and `multipleOf` is computed on
  fractions;
- `integer` takes 1.0 from draft 6 on;
- `pattern` means what ECMA-262 says (`ecma.py`, with `regex`), so `^a$` refuses "a" with a line break behind it;
- `format` is checked in every draft, by what `formats.py` lists;
- nothing is ever fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from typing import Any

import jsonschema
import lark
from jsonschema import validators
from jsonschema.exceptions import ValidationError
from lark.exceptions import UnexpectedInput
from referencing import Registry

from services.constraint.sources import ConstraintSource, SourceOptions, build, lark_source
from services.constraint.sources.json_schema import document
from services.constraint.validation.ecma import compiled
from services.constraint.validation.formats import format_checker
from services.rpckit.status import InvalidRequest

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
        return _validate_lark(source.text, decoded)
    return _validate_json(source.text, decoded)


@lru_cache(maxsize=16)
def _loaded(grammar: str) -> lark.Lark:
    return lark_source.load(grammar)


def _validate_lark(grammar: str, text: str) -> list[Violation]:
    try:
        _loaded(grammar).parse(text)
    except UnexpectedInput as error:
        return [Violation(str(error).strip()[:_MAX_MESSAGE_CHARACTERS])]
    return []


def _validate_json(schema_text: str, text: str) -> list[Violation]:
    try:
        value = json.loads(text, parse_float=_decimal, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        return [Violation(f"the text is not JSON: {error.msg} at line {error.lineno}, column {error.colno}")]
    except _NotJson as error:
        return [Violation(f"the text is not JSON: {error} is not a JSON value")]
    except InvalidOperation as error:
        return [Violation(f"a number is beyond what decimals hold: {error}")]
    except RecursionError:
        raise InvalidRequest("the text is nested deeper than the validator takes", field="text") from None
    errors = _validator(schema_text).iter_errors(value)
    return [_violation(error) for error in islice(errors, MAX_VIOLATIONS)]


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


def _refuse_constant(name: str) -> None:
    raise _NotJson(name)


@lru_cache(maxsize=64)
def _validator(schema_text: str) -> Any:
    schema = document.parse(schema_text)
    cls = _validator_class(document.draft_of(schema))
    return cls(schema, registry=Registry(), format_checker=format_checker())


_CLASSES: dict[int, Any] = {
    4: jsonschema.Draft4Validator,
    6: jsonschema.Draft6Validator,
    7: jsonschema.Draft7Validator,
    2019: jsonschema.Draft201909Validator,
    2020: jsonschema.Draft202012Validator,
}


@lru_cache(maxsize=8)
def _validator_class(draft: int) -> Any:
    base = _CLASSES[draft]
    types = base.TYPE_CHECKER.redefine_many({"number": _is_number, "integer": _is_int if draft == 4 else _is_integral})
    extend: Any = validators.extend
    return extend(base, {"multipleOf": _multiple_of, "pattern": _pattern}, type_checker=types)


def _is_number(_: object, value: object) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _is_int(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_integral(checker: object, value: object) -> bool:
    return _is_int(checker, value) or (isinstance(value, Decimal) and value == value.to_integral_value())


def _multiple_of(validator: Any, divisor: int | Decimal, instance: Any, schema: object) -> Iterator[ValidationError]:
    if validator.is_type(instance, "number") and (Fraction(instance) / Fraction(divisor)).denominator != 1:
        yield ValidationError(f"{instance} is not a multiple of {divisor}")


def _pattern(validator: Any, pattern: str, instance: Any, schema: object) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and compiled(pattern).search(instance) is None:
        yield ValidationError(f"{instance!r} does not match {pattern!r}")
