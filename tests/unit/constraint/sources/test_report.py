"""Every keyword occurrence is in the report, in the order of the source.

And the documentation says what the code does.
"""

import json
import re
from pathlib import Path

from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.sources.json_schema import keywords as kw
from services.constraint.sources.json_schema.formats import FORMATS

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Order",
    "type": "object",
    "x-note": 1,
    "properties": {
        "이름": {"type": "string", "description": "a name", "maxLength": 9},
        "count": {"type": "integer", "minimum": 0, "minLength": 2},
        "a/b": {"$ref": "#/$defs/used"},
    },
    "required": ["이름"],
    "additionalProperties": False,
    "$defs": {"used": {"enum": ["x"]}, "unused": {"not": {}}},
}


def test_every_keyword_is_reported_in_order() -> None:
    report = build(ConstraintSource("json_schema", json.dumps(SCHEMA)), SourceOptions()).keywords
    assert [(line.pointer, line.enforcement) for line in report] == [
        ("/$schema", "annotation"),
        ("/title", "annotation"),
        ("/type", "masked"),
        ("/x-note", "annotation"),
        ("/properties", "masked"),
        ("/properties/이름/type", "masked"),
        ("/properties/이름/description", "annotation"),
        ("/properties/이름/maxLength", "masked"),
        ("/properties/count/type", "masked"),
        ("/properties/count/minimum", "masked"),
        ("/properties/count/minLength", "masked"),
        ("/properties/a~1b/$ref", "masked"),
        ("/required", "masked"),
        ("/additionalProperties", "masked"),
        ("/$defs", "annotation"),
        ("/$defs/used/enum", "masked"),
        ("/$defs/unused", "annotation"),
    ]
    notes = {line.pointer: line.note for line in report}
    assert notes["/x-note"] == "unknown keyword"
    assert notes["/$defs/unused"] == "a definition that nothing refers to"


def documented(section: str) -> dict[str, str]:
    """Return the names in a section's table and what the documentation says of each."""
    text = (Path(__file__).parents[4] / "docs" / "json-schema.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \| (\w+)", text.split(f"## {section}\n")[1].split("\n## ")[0], re.M)
    return {name: status for names, status in rows for name in re.findall(r"`([^`]+)`", names)}


def test_documentation_lists_every_keyword_as_the_code_has_it() -> None:
    masked = {
        *kw.NUMBER_KEYWORDS,
        *kw.STRING_KEYWORDS,
        *kw.ARRAY_KEYWORDS,
        *kw.OBJECT_KEYWORDS,
        *kw.COMBINING_KEYWORDS,
        "type",
    }
    expected = (
        dict.fromkeys(masked, "masked")
        | dict.fromkeys(kw.ANNOTATIONS | kw.DEFINITIONS, "annotation")
        | dict.fromkeys(kw.REFUSED, "refused")
    )
    assert documented("Keywords") == expected


def test_documentation_lists_every_format_as_the_code_has_it() -> None:
    expected = {name: "masked" if known.check is None else "checked" for name, known in FORMATS.items()}
    assert documented("Formats") == expected
