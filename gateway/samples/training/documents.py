"""Documents with the facts that they say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.samples.training.families import Family, Field, words
from gateway.samples.training.kinds import Choice, Fact, Source

_PART = re.compile(r"\[([^\]]*)\]")
_PLACE = re.compile(r"\{(\w+)(?:\?([^}]*))?\}")


@dataclass(frozen=True)
class Document:
    """A text, what may be asked about it, and what it says: values by names of fields."""

    family: str
    template: str
    language: str
    text: str
    fields: Mapping[str, Field]
    values: Mapping[str, Any]


def invent(family: Family, source: Source) -> Document:
    """Write a document of a family, in the source's language."""
    facts = {name: field.kind.draw(source) for name, field in family.fields.items()}
    missing = {name for name, field in family.fields.items() if field.is_optional and source.chance(0.35)}
    texts = family.texts.get(source.language, ())
    if family.has_layouts and (not texts or source.chance(0.4)) and can_lay_out(family, source.language):
        template, text = _lay_out(family, facts, missing, source)
        said = set(facts) - missing
    else:
        index = source.rng.randrange(len(texts))
        template, text = str(index), _without(texts[index], missing)
        said = {match[1] for match in _PLACE.finditer(text)}
        text = _PLACE.sub(lambda match: _phrase(family.fields[match[1]], facts[match[1]], match[2]), text)
    return Document(
        family.name,
        f"{family.name}/{source.language}/{template}",
        source.language,
        _with_noise(text.strip(), source),
        family.fields,
        {name: fact.value for name, fact in facts.items() if name in said},
    )


def languages_of(family: Family) -> list[str]:
    """Return the languages that documents of a family can be written in."""
    languages = ("en", "de", "fr", "es", "ko")
    return [one for one in languages if one in family.texts or (family.has_layouts and can_lay_out(family, one))]


def can_lay_out(family: Family, language: str) -> bool:
    """Say whether there is a word for each of the family's fields."""
    return language == "en" or all(language in words().labels.get(label_of(f), {}) for f in family.fields.values())


def label_of(field: Field) -> str:
    """Return what a field is called in English."""
    return field.keys[0].replace("_", " ")


def _without(text: str, missing: set[str]) -> str:
    """Take out the parts that say what is missing."""

    def keep(match: re.Match[str]) -> str:
        says = {place[1] for place in _PLACE.finditer(match[1])}
        return "" if says & missing else match[1]

    return _PART.sub(keep, text)


def _phrase(field: Field, fact: Fact, choices: str | None) -> str:
    if choices is None:
        return fact.written
    said = choices.split("|")
    if isinstance(field.kind, Choice):
        return dict(one.split(":", 1) for one in said)[fact.value]
    return said[0 if fact.value else 1]


def _lay_out(family: Family, facts: Mapping[str, Fact], missing: set[str], source: Source) -> tuple[str, str]:
    """Write the facts as a list of one of several looks."""
    rng, language = source.rng, source.language
    names = list(facts)
    if source.chance(0.6):
        rng.shuffle(names)
    shows_missing = source.chance(0.3)
    sign = rng.choice(words().absent[language])
    pairs = [
        (_label(family.fields[name], source), sign if name in missing else facts[name].written)
        for name in names
        if name not in missing or shows_missing
    ]
    look = rng.choice(["lines", "bullets", "table", "line", "columns", "upper"])
    if look == "table":
        text = "\n".join(f"| {label} | {value} |" for label, value in pairs)
    elif look == "line":
        text = rng.choice(["; ", " | ", " / "]).join(f"{label}: {value}" for label, value in pairs)
    elif look == "columns":
        text = "\n".join(f"{label}\t{value}" for label, value in pairs)
    elif look == "upper":
        text = "\n".join(f"{label.upper()} = {value}" for label, value in pairs)
    else:
        start = "- " if look == "bullets" else ""
        text = "\n".join(f"{start}{label}: {value}" for label, value in pairs)
    if source.chance(0.3) and language == "en":
        text = f"{family.name.replace('_', ' ').capitalize()}\n\n{text}"
    return look, text


def _label(field: Field, source: Source) -> str:
    if source.language == "en":
        return source.rng.choice(field.keys).replace("_", " ").capitalize()
    return words().labels[label_of(field)][source.language]


def _with_noise(text: str, source: Source) -> str:
    """Put a sentence around the text, sometimes, that says nothing of what a schema asks."""
    if not source.chance(0.35):
        return text
    sentence = source.rng.choice(words().noise[source.language])
    mark = "\n" if "\n" in text or source.chance(0.3) else " "
    return f"{sentence}{mark}{text}" if source.chance(0.4) else f"{text}{mark}{sentence}"
