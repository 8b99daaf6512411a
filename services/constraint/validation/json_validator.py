"""Makes validators of JSON Schema that are exact: `jsonschema`, run with differences.

- Numbers with a point or an exponent are Decimals; `integer` takes 1.0 from draft 6 on.
- Keywords that the library does not judge exactly are those of `keywords.py`.
- `format` is checked in every draft, by what `formats.py` lists, unless the options make it an annotation.
- A schema is judged by the draft of the resource that it belongs to, with that resource's base URI wherever it stands;
  dynamic scopes begin at the schema and hold what is entered in place.
- What `$ref` names is in the documents of the options or a metaschema; nothing is ever fetched.
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from typing import Any

import attrs
import jsonschema
import referencing.jsonschema
from jsonschema import validators
from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
from referencing import Registry, Resource

from services.constraint.sources import SourceOptions
from services.constraint.sources.json_schema import document
from services.constraint.validation import keywords
from services.constraint.validation.formats import format_checker


@lru_cache(maxsize=64)
def json_validator(schema_text: str, options: SourceOptions) -> Any:
    """Return the validator of a schema.

    Its methods raise `referencing.exceptions.Unresolvable` where a reference names nothing.
    """
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
    if "_resolver" not in changes and schema is not self.schema:
        # The library says nothing of where it is within `oneOf`, `not`, `if` and `contains`.
        specification = referencing.jsonschema.specification_with(self.ID_OF(self.META_SCHEMA))
        resolver = resolver.in_subresource(specification.create_resource(schema))
    if resolver._base_uri != self._resolver._base_uri and resolver._previous is self._resolver._previous:
        # A resource that was entered where it stands; `referencing` forgets the one around it.
        resolver = self._resolver._evolve(resolver._base_uri)
    changes["_resolver"] = resolver
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
