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
        "$dynamicAnchor",
        "$recursiveAnchor",
        "$vocabulary",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
    ]
)
# What gives a schema a name.
NAMES = frozenset(("$id", "id", "$anchor", "$dynamicAnchor"))
DEFINITIONS = frozenset(("$defs", "definitions"))

NUMBER_KEYWORDS = frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"])
STRING_KEYWORDS = frozenset(["minLength", "maxLength", "pattern"])
ARRAY_KEYWORDS = frozenset(
    [
        "items",
        "prefixItems",
        "additionalItems",
        "minItems",
        "maxItems",
        "uniqueItems",
        "contains",
        "minContains",
        "maxContains",
    ]
)
OBJECT_KEYWORDS = frozenset(
    [
        "properties",
        "patternProperties",
        "required",
        "additionalProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
    ]
)
# What says something of any value, by other schemas or by values.
COMBINING_KEYWORDS = frozenset(
    [
        "$ref",
        "$dynamicRef",
        "$recursiveRef",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "unevaluatedProperties",
        "unevaluatedItems",
        "enum",
        "const",
    ]
)
# What says something only beside another keyword.
NEEDS = {
    "then": "if",
    "else": "if",
    "minContains": "contains",
    "maxContains": "contains",
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
UNTIL = {
    "id": 4,
    "dependencies": 7,
    "additionalItems": 2019,
    "$recursiveRef": 2019,
    "$recursiveAnchor": 2019,
}


def _kind(keyword: str, draft: int) -> str:
    if not SINCE.get(keyword, 0) <= draft <= UNTIL.get(keyword, 9999):
        return "unknown in this draft"
    for group, keywords in _GROUPS.items():
        if keyword in keywords:
            return group
    if keyword in ("type", "format"):
        return keyword
    if keyword in COMBINING_KEYWORDS:
        return "combining"
    return "definitions" if keyword in DEFINITIONS else "annotation"


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
    "type",
    "format",
]

# What each keyword is in each draft: a constraint on one type (the type's name), "type", "format", "combining",
# "annotation", "definitions" or "unknown in this draft".
KINDS = {draft: {keyword: _kind(keyword, draft) for keyword in _KNOWN} for draft in DRAFTS.values()}


@lru_cache(maxsize=1024)
def unknown_note(keyword: str) -> str:
    """Say that a keyword is unknown, and which one may have been meant."""
    meant = get_close_matches(keyword, _KNOWN, n=1, cutoff=0.8)
    return "unknown keyword" + (f"; did you mean {meant[0]}?" if meant else "")
