"""Keywords that `jsonschema` does not judge exactly, as functions of the kind that it takes.

- `multipleOf` is computed on fractions.
- Patterns, also those of properties, mean what ECMA-262 says.
- `uniqueItems` tells `[1]` from `[true]` wherever they stand; there the library relies on sorting.
- `unevaluatedProperties` and `unevaluatedItems` follow the specification in draft 2019-09 too, where the library has
  bugs.
- `$recursiveRef` names the outermost schema with `$recursiveAnchor`, whatever lies between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeAlias

from jsonschema.exceptions import ValidationError

from services.constraint.validation.ecma import compiled

Errors: TypeAlias = Iterator[ValidationError]


def multiple_of(validator: Any, divisor: int | Decimal, instance: Any, schema: object) -> Errors:
    """Judge `multipleOf`."""
    if validator.is_type(instance, "number") and (Fraction(instance) / Fraction(divisor)).denominator != 1:
        yield ValidationError(f"{instance} is not a multiple of {divisor}")


def pattern(validator: Any, pattern: str, instance: Any, schema: object) -> Errors:
    """Judge `pattern`."""
    if validator.is_type(instance, "string") and not _is_found(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def pattern_properties(validator: Any, patterns: dict[str, Any], instance: Any, schema: object) -> Errors:
    """Judge `patternProperties`."""
    if validator.is_type(instance, "object"):
        for pattern, inner in patterns.items():
            for name, value in instance.items():
                if _is_found(pattern, name):
                    yield from validator.descend(value, inner, path=name, schema_path=pattern)


def additional_properties(validator: Any, inner: Any, instance: Any, schema: dict[str, Any]) -> Errors:
    """Judge `additionalProperties`."""
    if validator.is_type(instance, "object"):
        for name in _additional(instance, schema):
            yield from validator.descend(instance[name], inner, path=name)


def unique_items(validator: Any, is_unique: bool, instance: Any, schema: object) -> Errors:
    """Judge `uniqueItems`."""
    if is_unique and validator.is_type(instance, "array") and len(set(map(_identity, instance))) < len(instance):
        yield ValidationError(f"{instance!r} has items that are equal")


def unevaluated_properties(validator: Any, inner: Any, instance: Any, schema: dict[str, Any]) -> Errors:
    """Judge `unevaluatedProperties`."""
    if validator.is_type(instance, "object"):
        evaluated = _evaluated(validator, instance, _without(schema, "unevaluatedProperties"), _evaluated_names)
        for name in instance.keys() - evaluated:
            yield from validator.descend(instance[name], inner, path=name)


def unevaluated_items(validator: Any, inner: Any, instance: Any, schema: dict[str, Any]) -> Errors:
    """Judge `unevaluatedItems`."""
    if validator.is_type(instance, "array"):
        evaluated = _evaluated(validator, instance, _without(schema, "unevaluatedItems"), _evaluated_indexes)
        for index, item in enumerate(instance):
            if index not in evaluated:
                yield from validator.descend(item, inner, path=index)


def recursive_ref(validator: Any, reference: str, instance: Any, schema: object) -> Errors:
    """Judge `$recursiveRef`."""
    found = _recursive(validator)
    yield from validator.descend(instance, found.contents, resolver=found.resolver)


def _is_found(pattern: str, text: str) -> bool:
    return compiled(pattern).search(text) is not None


def _additional(instance: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Return the names that neither `properties` nor `patternProperties` speaks of."""
    declared, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    return [name for name in instance if name not in declared and not any(_is_found(each, name) for each in patterns)]


def _identity(value: Any) -> Any:
    """Return what is equal exactly for values that are equal in JSON Schema: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return type(value).__name__, value
    if isinstance(value, list):
        return "list", tuple(map(_identity, value))
    if isinstance(value, dict):
        return "object", frozenset((name, _identity(member)) for name, member in value.items())
    return "number", value


_Own: TypeAlias = Callable[[Any, Any, dict[str, Any]], Iterable[Any]]


def _evaluated(validator: Any, instance: Any, schema: Any, own: _Own) -> set[Any]:
    """Return what a schema that holds for the instance evaluates of it: names or indexes, as `own` tells."""
    if not isinstance(schema, dict):
        return set()
    evaluated = set(own(validator, instance, schema))
    for inner in _in_place(validator, instance, schema):
        evaluated |= _evaluated(inner, instance, inner.schema, own)
    return evaluated


def _in_place(validator: Any, instance: Any, schema: dict[str, Any]) -> Iterator[Any]:
    """Yield validators of the schemas that a schema applies to the same instance and that hold."""
    for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
        # A keyword of another draft is none.
        if keyword in schema and keyword in validator.VALIDATORS:
            found = _recursive(validator) if keyword == "$recursiveRef" else validator._resolver.lookup(schema[keyword])
            yield validator.evolve(schema=found.contents, _resolver=found.resolver)
    for keyword in ("allOf", "anyOf", "oneOf"):
        for each in schema.get(keyword, ()):
            inner = validator.evolve(schema=each)
            if inner.is_valid(instance):
                yield inner
    if "if" in schema:
        condition = validator.evolve(schema=schema["if"])
        holds = condition.is_valid(instance)
        if holds:
            yield condition
        branch = "then" if holds else "else"
        if branch in schema:
            yield validator.evolve(schema=schema[branch])
    if isinstance(instance, dict):
        for name, each in schema.get("dependentSchemas", {}).items():
            if name in instance:
                yield validator.evolve(schema=each)


def _evaluated_names(_: Any, instance: dict[str, Any], schema: dict[str, Any]) -> Iterable[str]:
    if "additionalProperties" in schema or "unevaluatedProperties" in schema:
        return instance
    additional = set(_additional(instance, schema))
    return [name for name in instance if name not in additional]


def _evaluated_indexes(validator: Any, instance: list[Any], schema: dict[str, Any]) -> Iterable[int]:
    everything = range(len(instance))
    is_2020 = "prefixItems" in validator.VALIDATORS
    prefix = schema.get("prefixItems" if is_2020 else "items", [])
    rest = "items" if is_2020 or not isinstance(prefix, list) else "additionalItems"
    if "unevaluatedItems" in schema or (rest in schema and (is_2020 or "items" in schema)):
        return everything
    indexes = list(everything[: len(prefix)])
    if is_2020 and "contains" in schema:
        contained = validator.evolve(schema=schema["contains"])
        indexes += [index for index, item in enumerate(instance) if contained.is_valid(item)]
    return indexes


def _without(schema: dict[str, Any], keyword: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != keyword}


def _recursive(validator: Any) -> Any:
    resolver = validator._resolver
    found = resolver.lookup("#")
    if _is_anchor(found):
        for uri, _ in resolver.dynamic_scope():  # the innermost first
            outer = resolver.lookup(uri)
            if _is_anchor(outer):
                found = outer
    return found


def _is_anchor(found: Any) -> bool:
    return isinstance(found.contents, dict) and found.contents.get("$recursiveAnchor") is True
