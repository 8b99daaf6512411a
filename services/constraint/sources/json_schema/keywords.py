"""The keywords of JSON Schema by what is done with them.

What is in none of the tables is unknown to JSON Schema, which makes it an annotation.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache

ANNOTATIONS = frozenset(
    [
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "$comment",
        "$schema",
        "$id",
        "id",
        "$anchor",
        "$vocabulary",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
    ]
)
DEFINITIONS = frozenset(("$defs", "definitions"))

NUMBER_KEYWORDS = frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"])
STRING_KEYWORDS = frozenset(["minLength", "maxLength", "pattern", "format"])
ARRAY_KEYWORDS = frozenset(["items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"])
OBJECT_KEYWORDS = frozenset(["properties", "required", "additionalProperties", "minProperties", "maxProperties"])
# In the order in which a schema that combines them is read.
COMBINING_KEYWORDS = ("$ref", "allOf", "anyOf", "oneOf", "enum", "const")

# What is refused, and what to write instead.
REFUSED: dict[str, str] = {
    "patternProperties": "name the properties in properties, or use additionalProperties",
    "propertyNames": "name the properties in properties",
    "dependencies": "write the cases as options of anyOf",
    "dependentRequired": "write the cases as options of anyOf",
    "dependentSchemas": "write the cases as options of anyOf",
    "if": "write the cases as options of anyOf",
    "then": "write the cases as options of anyOf",
    "else": "write the cases as options of anyOf",
    "not": "say what the value may be",
    "contains": "constrain the items by items or prefixItems",
    "minContains": "constrain the items by items or prefixItems",
    "maxContains": "constrain the items by items or prefixItems",
    "unevaluatedProperties": "use additionalProperties beside properties",
    "unevaluatedItems": "use items beside prefixItems",
    "$dynamicRef": "use $ref",
    "$dynamicAnchor": "use $anchor and $ref",
    "$recursiveRef": "use $ref",
    "$recursiveAnchor": "use $ref to '#'",
}

DRAFTS = {
    "http://json-schema.org/draft-04/schema": 4,
    "http://json-schema.org/draft-06/schema": 6,
    "http://json-schema.org/draft-07/schema": 7,
    "https://json-schema.org/draft/2019-09/schema": 2019,
    "https://json-schema.org/draft/2020-12/schema": 2020,
}
DEFAULT_DRAFT = 2020

# First draft in which a keyword means anything; before, it is unknown.
SINCE = {
    "const": 6,
    "examples": 6,
    "$id": 6,
    "contains": 6,
    "propertyNames": 6,
    "if": 7,
    "then": 7,
    "else": 7,
    "$comment": 7,
    "readOnly": 7,
    "writeOnly": 7,
    "contentEncoding": 7,
    "contentMediaType": 7,
    "$defs": 2019,
    "$anchor": 2019,
    "$vocabulary": 2019,
    "deprecated": 2019,
    "contentSchema": 2019,
    "dependentRequired": 2019,
    "dependentSchemas": 2019,
    "minContains": 2019,
    "maxContains": 2019,
    "unevaluatedProperties": 2019,
    "unevaluatedItems": 2019,
    "$recursiveRef": 2019,
    "$recursiveAnchor": 2019,
    "prefixItems": 2020,
    "$dynamicRef": 2020,
    "$dynamicAnchor": 2020,
}
# Last draft in which a keyword means anything.
UNTIL = {"id": 4, "additionalItems": 2019, "$recursiveRef": 2019, "$recursiveAnchor": 2019}


def _kind(keyword: str, draft: int) -> str:
    if draft != DEFAULT_DRAFT and not SINCE.get(keyword, 0) <= draft <= UNTIL.get(keyword, 9999):
        return "unknown in this draft"
    for group, keywords in _GROUPS.items():
        if keyword in keywords:
            return "unknown in this draft" if draft > UNTIL.get(keyword, 9999) else group
    if keyword == "type":
        return "type"
    if keyword in COMBINING_KEYWORDS:
        return "combining"
    if keyword in ANNOTATIONS:
        return "annotation"
    return "definitions" if keyword in DEFINITIONS else "refused"


_GROUPS = {
    "number": NUMBER_KEYWORDS,
    "string": STRING_KEYWORDS,
    "array": ARRAY_KEYWORDS,
    "object": OBJECT_KEYWORDS,
}
_KNOWN = [
    *ANNOTATIONS,
    *DEFINITIONS,
    *NUMBER_KEYWORDS,
    *STRING_KEYWORDS,
    *ARRAY_KEYWORDS,
    *OBJECT_KEYWORDS,
    *COMBINING_KEYWORDS,
    *REFUSED,
    "type",
]

# What each keyword is in each draft: a constraint on one type (the type's name), "type", "combining", "annotation",
# "definitions", "refused" or "unknown in this draft".
KINDS = {draft: {keyword: _kind(keyword, draft) for keyword in _KNOWN} for draft in DRAFTS.values()}


@lru_cache(maxsize=1024)
def unknown_note(keyword: str) -> str:
    """Say that a keyword is unknown, and which one may have been meant."""
    meant = get_close_matches(keyword, _KNOWN, n=1, cutoff=0.8)
    return "unknown keyword" + (f"; did you mean {meant[0]}?" if meant else "")
