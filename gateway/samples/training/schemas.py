"""Schemas that ask for some of what a document says, each in its own way, and the records that satisfy them.

So a model has to read the schema: which facts, in which order, by which names and of which form differ from document
to document, even in a family.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.samples.training.documents import Document, label_of
from gateway.samples.training.families import Field, words
from gateway.samples.training.kinds import Property, Source

_GROUPS: Final = ("details", "info", "data", "facts", "about")
_STYLES: Final = {"snake": 50, "camel": 26, "words": 6, "kebab": 4, "translated": 8, "letters": 6}


@dataclass(frozen=True, slots=True)
class Asked:
    """A schema as JSON text, and the record of a document under it."""

    schema: str
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Part:
    """A property: what its schema is, its value, and whether a record has it, and must."""

    schema: Property
    value: Any
    is_said: bool
    is_required: bool


def ask(document: Document, source: Source) -> Asked:
    """Ask a document for 2 to 8 facts in some order, among them at least one that it says."""
    rng = source.rng
    said = [name for name in document.fields if name in document.values]
    # Of what the document does not say, only what it might have said is worth a question.
    missing = [name for name, field in document.fields.items() if field.is_optional and name not in document.values]
    num_missing = min(len(missing), rng.choice([0, 0, 1, 1, 2]))
    num_said = min(len(said), max(2, rng.choice([2, 3, 3, 4, 4, 5, 5, 6, 7])))
    names = [*rng.sample(said, num_said), *rng.sample(missing, min(num_missing, 8 - num_said))]
    if source.chance(0.35):
        names.sort(key=list(document.fields).index)
    else:
        rng.shuffle(names)
    keys = _keys({name: document.fields[name] for name in names}, source)
    says_more = source.chance(0.3)
    requires = source.chance(0.92)
    parts = {
        keys[name]: _part(name, keys[name], document, source, says_more=says_more, requires=requires) for name in names
    }
    if len(parts) > 3 and source.chance(0.08):
        parts = _grouped(parts, source)
    schema = _object(parts, is_closed=source.chance(0.9))
    if source.chance(0.2):
        schema = {"title": document.family.replace("_", " ").capitalize(), **schema}
    return Asked(_written(schema, source), {key: part.value for key, part in parts.items() if part.is_said})


def _part(name: str, key: str, document: Document, source: Source, *, says_more: bool, requires: bool) -> _Part:
    field = document.fields[name]
    is_said = name in document.values
    value, schema = field.kind.ask(document.values.get(name), source)
    is_nullable = field.is_optional and source.chance(0.35)
    if is_nullable:
        schema = _or_null(schema)
    # A letter says nothing, so its description has to.
    if len(key) == 1 or ("description" not in schema and says_more and source.chance(0.6)):
        described = [_description(field, source), schema.get("description")]
        schema = {**schema, "description": ", ".join(one for one in described if one)}
    has_it = is_said or is_nullable
    is_required = is_nullable or not field.is_optional or (is_said and source.chance(0.3))
    return _Part(schema, value, has_it, is_required and requires)


def _object(parts: Mapping[str, _Part], *, is_closed: bool) -> Property:
    schema: Property = {"type": "object", "properties": {key: part.schema for key, part in parts.items()}}
    if required := [key for key, part in parts.items() if part.is_required]:
        schema["required"] = required
    if is_closed:
        schema["additionalProperties"] = False
    return schema


def _grouped(parts: Mapping[str, _Part], source: Source) -> dict[str, _Part]:
    """Put two or three neighbours into an object of their own."""
    keys = list(parts)
    start = source.rng.randrange(len(keys) - 2)
    inside = {key: parts[key] for key in keys[start : start + source.rng.choice([2, 3])]}
    if not any(part.is_said for part in inside.values()):
        return dict(parts)
    record = {key: part.value for key, part in inside.items() if part.is_said}
    group = _Part(_object(inside, is_closed=True), record, True, True)
    outside = [(key, parts[key]) for key in keys if key not in inside]
    outside.insert(start, (source.rng.choice([name for name in _GROUPS if name not in parts]), group))
    return dict(outside)


def _or_null(schema: Property) -> Property:
    changed = dict(schema)
    if "type" in changed:
        changed["type"] = [changed["type"], "null"]
    if "enum" in changed:
        changed["enum"] = [*changed["enum"], None]
    return changed


def _description(field: Field, source: Source) -> str:
    """Say what a field is, by its description or by another name of it."""
    if field.description:
        return field.description
    translated = words().labels.get(label_of(field), {}).get(source.language)
    if translated is not None and source.chance(0.4):
        return translated
    return source.rng.choice(field.keys).replace("_", " ").capitalize()


def _keys(fields: Mapping[str, Field], source: Source) -> dict[str, str]:
    """Name the properties in one style; no two alike."""
    rng = source.rng
    (style,) = rng.choices(list(_STYLES), weights=list(_STYLES.values()))
    if style == "letters":
        return {name: "abcdefgh"[index] for index, name in enumerate(fields)}
    keys: dict[str, str] = {}
    for name, field in fields.items():
        names = [field.keys[0] if source.chance(0.6) else rng.choice(field.keys), *field.keys, name, f"{name}_2"]
        keys[name] = next(key for key in (_styled(one, style, source) for one in names) if key not in keys.values())
    return keys


def _styled(key: str, style: str, source: Source) -> str:
    parts = key.split("_")
    if style == "camel":
        return parts[0] + "".join(part.capitalize() for part in parts[1:])
    if style == "words":
        return " ".join(parts).capitalize()
    if style == "kebab":
        return "-".join(parts)
    if style == "translated":
        return words().labels.get(" ".join(parts), {}).get(source.language, key)
    return key


def _written(schema: Property, source: Source) -> str:
    """Write the schema: mostly without spaces, else as people do."""
    (way,) = source.rng.choices(["compact", "spaced", "lines"], weights=[70, 18, 12])
    if way == "compact":
        return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    if way == "spaced":
        return json.dumps(schema, ensure_ascii=False)
    lines = ",\n".join(
        f"    {json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in schema["properties"].items()
    )
    others = {key: value for key, value in schema.items() if key != "properties"}
    ends = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in others.items()]
    return "{\n" + ",\n".join([ends[0], f'  "properties": {{\n{lines}\n  }}', *ends[1:]]) + "\n}"
