"""Invented documents: facts of a family, said in one of several styles, and a schema that asks for some of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from faker import Faker

from gateway.samples.training.facts import LANGUAGES, Fact, Source, Value
from gateway.samples.training.families import Family


@dataclass(frozen=True)
class Invented:
    """A document, its schema and the record that it holds."""

    family: str
    style: str
    language: str
    schema: dict[str, Any]
    text: str
    record: dict[str, Any]


@dataclass(frozen=True)
class _Said:
    """A fact of a document, with what the document says of it; None: nothing."""

    fact: Fact
    value: Value | None


def invent(family: Family, styles: Sequence[str], language: str, seed: str) -> Invented:
    """Make the document that a seed gives. `styles` are names in `STYLES`; not all go with every language."""
    rng = random.Random(seed)
    source = Source(rng, _faker(language), language)
    source.fake.seed_instance(seed)
    style = rng.choice([style for style in styles if language == "en" or style not in _ENGLISH_ALONE])
    facts = rng.sample(family.facts, rng.randint(4, len(family.facts)))
    said = [_Said(fact, fact.kind.make(source)) for fact in facts]
    silent = [_Said(fact, None) for fact in family.facts if fact not in facts]
    text = STYLES[style](family, said, source)
    schema, record = _schema(family, said, silent, rng)
    return Invented(family.name, style, language, schema, text, record)


@cache
def _faker(language: str) -> Faker:
    return Faker(LANGUAGES[language])


def _sentence(one: _Said, source: Source) -> str:
    """Say a fact in English."""
    assert one.value is not None
    if isinstance(one.value.value, bool):
        return one.fact.phrases[0 if one.value.value else 1]
    return source.rng.choice(one.fact.phrases).format(one.value.spoken)


def _label(one: _Said, source: Source) -> str:
    label = one.fact.labels[source.language]
    return label[0].upper() + label[1:]


def _pairs(separator: str, end: str) -> Callable[[Family, list[_Said], Source], str]:
    def write(family: Family, said: list[_Said], source: Source) -> str:
        lines = [f"{_label(one, source)}{separator}{one.value.spoken}" for one in said if one.value]
        return f"{family.titles[source.language]}\n" + end.join(lines)

    return write


def _prose(family: Family, said: list[_Said], source: Source) -> str:
    return f"{family.titles['en']}. " + " ".join(_sentence(one, source) for one in said)


def _letter(family: Family, said: list[_Said], source: Source) -> str:
    name = source.fake.first_name()
    opening = source.rng.choice(["Hello,", "Dear all,", "To whom it may concern,", "Good morning,"])
    closing = source.rng.choice(["Best wishes", "Kind regards", "Thank you", "Yours"])
    body = " ".join(_sentence(one, source) for one in said)
    return f"Subject: {family.titles['en']}\n\n{opening}\n\n{body}\n\n{closing}\n{name}"


def _notes(family: Family, said: list[_Said], source: Source) -> str:
    return "\n".join([f"* {family.titles['en']}", *(f"- {_sentence(one, source).rstrip('.')}" for one in said)])


def _spoken(family: Family, said: list[_Said], source: Source) -> str:
    """Sentences of other languages, as plain as can be: label and value."""
    form = {"ko": "{}: {}입니다.", "de": "{} ist {}.", "fr": "{} : {}.", "es": "{} es {}.", "en": "{} is {}."}
    parts = [form[source.language].format(_label(one, source), one.value.spoken) for one in said if one.value]
    return f"{family.titles[source.language]}. " + " ".join(parts)


STYLES: Final[Mapping[str, Callable[[Family, list[_Said], Source], str]]] = {
    "prose": _prose,
    "letter": _letter,
    "notes": _notes,
    "form": _pairs(": ", "\n"),
    "table": _pairs(" | ", "\n"),
    "line": _pairs(" ", "; "),
    "spoken": _spoken,
    "dotted": _pairs(" ..... ", "\n"),
    "equals": _pairs(" = ", ", "),
    "arrows": _pairs(" -> ", "\n"),
}
TRAINING_STYLES: Final = ("prose", "letter", "notes", "form", "table", "line", "spoken")
HELD_OUT_STYLES: Final = ("prose", "notes", "form", "spoken", "dotted", "equals", "arrows")
"""Some are those of training, because their sentences are others; three are not."""
_ENGLISH_ALONE: Final = frozenset({"prose", "letter", "notes"})


def _schema(
    family: Family, said: list[_Said], silent: list[_Said], rng: random.Random
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ask for some facts that the document has, and perhaps for one that it has not."""
    asked = rng.sample(said, rng.randint(2, min(6, len(said))))
    if silent and rng.random() < 0.4:
        asked.append(rng.choice(silent))
    rng.shuffle(asked)
    style, describes, nullable = _naming(rng), rng.random() < 0.3, rng.random() < 0.3
    properties: dict[str, Any] = {}
    required: list[str] = []
    record: dict[str, Any] = {}
    taken: set[str] = set()
    for one in asked:
        names = [key for key in one.fact.keys if style(key) not in taken]
        if not names:
            continue
        name = style(names[0] if rng.random() < 0.5 else rng.choice(names))
        taken.add(name)
        properties[name] = _property(one.fact, rng, describes=describes)
        if one.value is not None:
            record[name] = one.value.value
            if rng.random() < 0.8:
                required.append(name)
        elif nullable and "enum" not in properties[name]:
            properties[name]["type"] = [properties[name]["type"], "null"]
            record[name] = None
            required.append(name)
    schema: dict[str, Any] = {"type": "object"}
    if rng.random() < 0.2:
        schema["title"] = family.titles["en"]
    schema |= {"properties": properties, "required": required}
    if rng.random() < 0.6:
        schema["additionalProperties"] = False
    return schema, record


def _property(fact: Fact, rng: random.Random, *, describes: bool) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(json.dumps(fact.kind.schema))
    if describes and rng.random() < 0.6:
        schema["description"] = fact.labels["en"]
    if schema["type"] == "integer" and rng.random() < 0.2:
        schema["minimum"] = 0
    if schema["type"] == "string" and "enum" not in schema and "format" not in schema and rng.random() < 0.1:
        schema["maxLength"] = 100
    return schema


def _naming(rng: random.Random) -> Callable[[str], str]:
    def camel(key: str) -> str:
        first, *rest = key.split("_")
        return first + "".join(part.capitalize() for part in rest)

    def kebab(key: str) -> str:
        return key.replace("_", "-")

    def snake(key: str) -> str:
        return key

    return rng.choice([snake, snake, camel, kebab])
