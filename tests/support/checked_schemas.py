"""Random schemas that combine what masks and checks enforce, over few names and values so that they meet."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = ("a", "b", "ab", "c")
SCALARS = (None, True, False, 0, 1, 2, "a", "b", "ab", "")


def instances() -> st.SearchStrategy[Any]:
    """Small values of few scalars."""
    return st.recursive(
        st.sampled_from(SCALARS),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
        max_leaves=6,
    )


def schemas() -> st.SearchStrategy[Any]:
    """Schemas of draft 2020-12, nested two or three levels."""
    return st.recursive(_leaves(), _combined, max_leaves=6)


def within(schema: Any, place: str) -> Any:
    """Return a schema of the values that `place_in` makes of those of `schema`."""
    if place == "member":
        return {"type": "object", "properties": {"x": schema}}
    return {"items": schema} if place == "item" else schema


def place_in(value: Any, place: str) -> Any:
    """Put a value where `within` has its schema."""
    return {"x": value} if place == "member" else [value] if place == "item" else value


def _leaves() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.sampled_from([True, {}, {"type": "string"}, {"type": "integer"}, {"type": ["object", "string"]}]),
        st.sampled_from([{"type": "array"}, {"type": "object"}, {"type": "null"}, False]),
        st.lists(st.sampled_from(SCALARS), min_size=1, max_size=3).map(lambda values: {"enum": values}),
        st.sampled_from(SCALARS).map(lambda value: {"const": value}),
        st.sampled_from([{"minLength": 1}, {"maxLength": 1}, {"pattern": "^a"}, {"minimum": 1}, {"maximum": 0}]),
        st.sampled_from([{"required": ["a"]}, {"required": ["a", "b"]}, {"maxProperties": 1}, {"minItems": 1}]),
        st.sampled_from([{"uniqueItems": True}, {"multipleOf": 2}, {"format": "regex"}]),
    )


def _combined(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    members = st.dictionaries(st.sampled_from(NAMES), inner, max_size=2)
    keywords: dict[str, st.SearchStrategy[Any]] = {
        "properties": members,
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "b$", "."]), inner, max_size=2),
        "additionalProperties": inner,
        "propertyNames": st.sampled_from([{"maxLength": 1}, {"pattern": "a"}, {"enum": ["a", "b"]}, True]),
        "required": st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
        "minProperties": st.integers(0, 2),
        "maxProperties": st.integers(0, 2),
        "dependentRequired": st.dictionaries(
            st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), max_size=2, unique=True), max_size=2
        ),
        "dependentSchemas": members,
        "items": inner,
        "prefixItems": several,
        "contains": inner,
        "minContains": st.integers(0, 2),
        "maxContains": st.integers(0, 2),
        "minItems": st.integers(0, 2),
        "maxItems": st.integers(0, 3),
        "uniqueItems": st.booleans(),
        "allOf": several,
        "anyOf": several,
        "oneOf": several,
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
        "unevaluatedProperties": inner,
        "unevaluatedItems": inner,
    }
    return st.lists(st.sampled_from(sorted(keywords)), min_size=1, max_size=4, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({keyword: keywords[keyword] for keyword in chosen})
    )
