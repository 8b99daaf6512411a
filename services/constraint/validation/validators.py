"""Judges finished texts by libraries that had no part in making them: `jsonschema`, Lark's parser, `re`, `regex`.

`jsonschema` as it comes is not exact, so it is run with these differences (docs/json-schema.md lists them):

- numbers with a point or an exponent are Decimals, in the schema and in the text;
- a text with a key twice in one object is invalid;
- `integer` takes 1.0 from draft 6 on;
- keywords that the library does not judge exactly are those of `keywords.py`; patterns mean what ECMA-262 says
  (`ecma.py`, with `regex`), so `^a$` refuses "a" with a line break behind it;
- `format` is checked in every draft, by what `formats.py` lists, unless the options make it an annotation;
- a schema is judged by the draft of the resource that it belongs to;
- what `$ref` names is in the documents of the options or a metaschema; nothing is ever fetched.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from itertools import islice
from typing import Any

import attrs
import jsonschema
import lark
import referencing.jsonschema
from jsonschema import validators
from jsonschema.exceptions import ValidationError
from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
from lark.exceptions import UnexpectedInput
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable

from services.constraint.sources import ConstraintSource, SourceOptions, build, lark_source
from services.constraint.sources.json_schema import document
from services.constraint.validation import keywords
from services.constraint.validation.formats import format_checker
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
        return _validate_lark(source.text, decoded)
    return _validate_json(source.text, options, decoded)


@lru_cache(maxsize=16)
def _loaded(grammar: str) -> lark.Lark:
    return lark_source.load(grammar)


def _validate_lark(grammar: str, text: str) -> list[Violation]:
    try:
        _loaded(grammar).parse(text)
    except UnexpectedInput as error:
        return [Violation(str(error).strip()[:_MAX_MESSAGE_CHARACTERS])]
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
        errors = _validator(schema_text, options).iter_errors(value)
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


@lru_cache(maxsize=64)
def _validator(schema_text: str, options: SourceOptions) -> Any:
    schema = document.parse(schema_text)
    draft = document.draft_of(schema, options.default_draft)
    resource = _SPECIFICATIONS[draft].create_resource(schema)
    # A resource without a URI would be in no dynamic scope.
    uri = resource.id() or "urn:the-schema"
    return _validator_class(draft)(
        schema,
        registry=Registry(),  # with the default one, the library would fetch
        _resolver=_registry(options).with_resource(uri, resource).resolver(uri),
        format_checker=format_checker() if options.format == "assert" else None,
    )


def _registry(options: SourceOptions) -> Any:
    registry: Any = REGISTRY
    for uri, text in options.documents:
        resource = Resource.from_contents(
            document.parse(text), default_specification=_SPECIFICATIONS[options.default_draft]
        )
        try:
            Registry().with_resource(uri, resource).crawl()
        except (AttributeError, TypeError):  # it has what is no schema; then nothing should refer to it
            continue
        registry = registry.with_resource(uri, resource)
    return registry


_CLASSES: dict[int, Any] = {
    4: jsonschema.Draft4Validator,
    6: jsonschema.Draft6Validator,
    7: jsonschema.Draft7Validator,
    2019: jsonschema.Draft201909Validator,
    2020: jsonschema.Draft202012Validator,
}
_SPECIFICATIONS: dict[int, Any] = {
    4: referencing.jsonschema.DRAFT4,
    6: referencing.jsonschema.DRAFT6,
    7: referencing.jsonschema.DRAFT7,
    2019: referencing.jsonschema.DRAFT201909,
    2020: referencing.jsonschema.DRAFT202012,
}
_DRAFTS = {specification.name: draft for draft, specification in _SPECIFICATIONS.items()}


@lru_cache(maxsize=8)
def _validator_class(draft: int) -> Any:
    base = _CLASSES[draft]
    types = base.TYPE_CHECKER.redefine_many({"number": _is_number, "integer": _is_int if draft == 4 else _is_integral})
    exact = {name: function for name, function in _EXACT.items() if name in base.VALIDATORS}
    extend: Any = validators.extend
    cls = extend(base, exact, type_checker=types)
    cls.evolve = _evolve
    return cls


_EXACT = {
    "multipleOf": keywords.multiple_of,
    "pattern": keywords.pattern,
    "patternProperties": keywords.pattern_properties,
    "additionalProperties": keywords.additional_properties,
    "uniqueItems": keywords.unique_items,
    "unevaluatedProperties": keywords.unevaluated_properties,
    "unevaluatedItems": keywords.unevaluated_items,
    "$recursiveRef": keywords.recursive_ref,
}


def _evolve(self: Any, **changes: Any) -> Any:
    """Return a validator of another schema, in the place of the library's method, which would choose its own class.

    That of the draft of the resource that the schema belongs to; where the registry has not met it, that of `$schema`.
    """
    schema = changes.setdefault("schema", self.schema)
    resolver = changes.get("_resolver", self._resolver)
    if resolver._base_uri != self._resolver._base_uri and resolver._previous is self._resolver._previous:
        # A resource that was entered where it stands; `referencing` forgets the one around it.
        resolver = changes["_resolver"] = self._resolver._evolve(resolver._base_uri)
    resource = resolver._registry.get(resolver._base_uri)
    if resource is not None:
        cls = _validator_class(_DRAFTS[resource._specification.name])
    elif isinstance(schema, dict) and "$schema" in schema:
        cls = _validator_class(document.draft_of(schema))
    else:
        cls = type(self)
    for field in attrs.fields(cls):
        if field.init:
            changes.setdefault(field.alias, getattr(self, field.name))
    return cls(**changes)


def _is_number(_: object, value: object) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _is_int(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_integral(checker: object, value: object) -> bool:
    return _is_int(checker, value) or (isinstance(value, Decimal) and value == value.to_integral_value())
