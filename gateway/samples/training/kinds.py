"""Kinds of facts: how one is invented, how a text says it, and how a schema asks for it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from random import Random
from typing import Any, Final

from faker import Faker

from gateway.samples.training.writing import write_date, write_list, write_number, write_time

Property = dict[str, Any]

_FIRST_DAY: Final = date(2015, 1, 1)
_NUM_DAYS: Final = 365 * 16
_TIME_PATTERN: Final = "^([01][0-9]|2[0-3]):[0-5][0-9]$"
# What `re.escape` escapes beside these, ECMA-262 refuses to see escaped.
_SYNTAX: Final = re.compile(r"[.*+?^${}()|\[\]\\/]")
_TIME_WORDS: Final = ("HH:MM", "as HH:MM", "24 hours, HH:MM", "Time of day, as HH:MM")


@dataclass(frozen=True, slots=True)
class Source:
    """What facts are drawn from: numbers that a seed decides, names of a place, a language."""

    rng: Random
    fake: Faker
    language: str

    def chance(self, probability: float) -> bool:
        """Say yes as often as that."""
        return self.rng.random() < probability


@dataclass(frozen=True, slots=True)
class Fact:
    """A value as a record has it, and as a text says it."""

    value: Any
    written: str


class Kind(ABC):
    """A kind of fact."""

    is_copied = False
    """Whether the value stands in the text as it is."""

    @abstractmethod
    def draw(self, source: Source) -> Fact:
        """Invent one."""

    @abstractmethod
    def ask(self, value: Any, source: Source) -> tuple[Any, Property]:
        """Return the value as the record shall have it, and a schema that it satisfies.

        `value` None stands for a fact that the text does not say.
        """


@dataclass(frozen=True)
class Text(Kind):
    """A short string that is copied: of `faker`'s, or one of a few."""

    method: str = ""
    choices: Mapping[str, Sequence[str]] | None = None
    format: str | None = None
    is_copied = True

    def draw(self, source: Source) -> Fact:
        """Invent one in the document's language."""
        if self.choices is None:
            text = " ".join(str(getattr(source.fake, self.method)()).split())
        else:
            text = source.rng.choice(self.choices.get(source.language) or self.choices["en"])
        return Fact(text, text)

    def ask(self, value: Any, source: Source) -> tuple[Any, Property]:
        """Ask for a string, sometimes with bounds of its length."""
        schema: Property = {"type": "string"}
        if self.format is not None and source.chance(0.6):
            schema["format"] = self.format
        if source.chance(0.2):
            schema["minLength"] = 1
        if source.chance(0.25):
            schema["maxLength"] = _bound(len(value or ""), (40, 60, 80, 100, 120, 200))
        return value, schema


@dataclass(frozen=True)
class Code(Kind):
    """A string after a mask: `#` stands for a digit, `@` for a capital letter."""

    mask: str
    is_copied = True

    def draw(self, source: Source) -> Fact:
        """Fill in the mask."""
        letters = {"#": "0123456789", "@": "ABCDEFGHJKLMNPRSTUVWXYZ"}
        text = "".join(source.rng.choice(letters.get(mark, mark)) for mark in self.mask)
        return Fact(text, text)

    def ask(self, value: Any, source: Source) -> tuple[Any, Property]:
        """Ask for a string, sometimes with the mask as a pattern."""
        schema: Property = {"type": "string"}
        if source.chance(0.3):
            schema["pattern"] = self.pattern
        elif source.chance(0.2):
            schema["maxLength"] = _bound(len(self.mask), (20, 30, 40, 60))
        return value, schema

    @property
    def pattern(self) -> str:
        """The mask as a regular expression."""
        parts = re.findall(r"#+|@+|[^#@]", self.mask)
        classes = {"#": "[0-9]", "@": "[A-Z]"}
        return (
            "^"
            + "".join(
                _repeated(classes[p[0]], len(p)) if p[0] in classes else re.sub(_SYNTAX, r"\\\g<0>", p) for p in parts
            )
            + "$"
        )


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few words, which the text says in its own language."""

    values: tuple[str, ...]
    words: Mapping[str, Mapping[str, str]]

    def word(self, value: str, language: str) -> str:
        """Return what a value is called."""
        return self.words.get(value, {}).get(language, value.replace("_", " "))

    def draw(self, source: Source) -> Fact:
        """Choose one."""
        value = source.rng.choice(self.values)
        return Fact(value, self.word(value, source.language))

    def ask(self, value: Any, source: Source) -> tuple[Any, Property]:
        """Ask for one of the words, sometimes of those in the document's language, in any order."""
        called = {value: value for value in self.values}
        if source.chance(0.15):
            called = {value: value.upper() for value in self.values}
        elif source.chance(0.25):
            called = {value: self.word(value, source.language) for value in self.values}
        values = source.rng.sample(list(called.values()), len(called))
        schema: Property = {"type": "string", "enum": values} if source.chance(0.4) else {"enum": values}
        return None if value is None else called[value], schema


@dataclass(frozen=True)
class Flag(Kind):
    """Yes or no."""

    yes_no: Mapping[str, tuple[str, str]]

    def draw(self, source: Source) -> Fact:
        """Toss a coin."""
        value = source.chance(0.5)
        return Fact(value, self.yes_no[source.language][0 if value else 1])

    def ask(self, value: Any, source: Source) -> tuple[Any, Property]:
        """Ask for a boolean."""
        return value, {"type": "boolean"}


@dataclass(frozen=True)
class Number(Kind):
    """A number in a range, with so many decimals; none make an integer."""

    low: float
    high: float
    places: int = 0
    is_plain: bool = False
    """Whether nothing stands between its thousands, as in years."""

    def draw(self, source: Source) -> Fact:
        """Choose one."""
        value: float = source.rng.randint(int(self.low), int(self.high))
        if self.places:
            value = round(source.rng.uniform(self.low, self.high), self.places)
        written = write_number(value, self.places, source.language, source.rng, is_plain=self.is_plain)
        return Fact(value, written)

    def ask(self, value: Any, source: Source) -> tuple[Any, Property]:
        """Ask for a number, sometimes with bounds."""
        schema: Property = {"type": "number" if self.places else "integer"}
        if source.chance(0.25) and self.low >= 0:
            schema["minimum"] = 0 if self.low == 0 or source.chance(0.7) else int(self.low)
            if source.chance(0.4):
                schema["maximum"] = _bound(int(self.high) + 1, (10, 100, 1000, 9999, 99999, 999999, 99999999))
        return value, schema


@dataclass(frozen=True)
class Day(Kind):
    """A date, which texts write in many ways and records in one."""

    def draw(self, source: Source) -> Fact:
        """Choose one."""
        day = _FIRST_DAY + timedelta(days=source.rng.randrange(_NUM_DAYS))
        return Fact(day.isoformat(), write_date(day, source.language, source.rng))

    def ask(self, value: Any, source: Source) -> tuple[Any, Property]:
        """Ask for it by its format."""
        schema: Property = {"type": "string", "format": "date"}
        if source.chance(0.2):
            schema["description"] = source.rng.choice(["YYYY-MM-DD", "Date, as YYYY-MM-DD", "as YYYY-MM-DD"])
        return value, schema


@dataclass(frozen=True)
class Clock(Kind):
    """A time of day, which records write as HH:MM."""

    def draw(self, source: Source) -> Fact:
        """Choose one that people agree upon."""
        at = time(source.rng.randrange(6, 23), source.rng.choice([0, 0, 5, 10, 15, 20, 30, 30, 40, 45, 50]))
        return Fact(f"{at:%H:%M}", write_time(at, source.language, source.rng))

    def ask(self, value: Any, source: Source) -> tuple[Any, Property]:
        """Ask for it with a pattern or a word on its form: no format of JSON Schema is just this."""
        schema: Property = {"type": "string"}
        if source.chance(0.5):
            return value, {**schema, "pattern": _TIME_PATTERN}
        return value, {**schema, "description": source.rng.choice(_TIME_WORDS)}


@dataclass(frozen=True)
class ListOf(Kind):
    """One to four facts of a kind, none twice."""

    item: Kind

    def draw(self, source: Source) -> Fact:
        """Invent some."""
        by_value: dict[Any, str] = {}
        for _ in range(source.rng.choice([1, 2, 2, 3, 3, 4])):
            fact = self.item.draw(source)
            by_value[fact.value] = fact.written
        return Fact(list(by_value), write_list(list(by_value.values()), source.language, source.rng))

    def ask(self, value: Any, source: Source) -> tuple[Any, Property]:
        """Ask for an array."""
        longest = max(value or [""], key=lambda one: len(str(one)))
        _, items = self.item.ask(longest, source)
        if "minimum" in items:
            items = {"type": items["type"]}
        schema: Property = {"type": "array", "items": items}
        if source.chance(0.2):
            schema["maxItems"] = max(len(value or ()), source.rng.choice([5, 8, 10, 20]))
        return value, schema


@dataclass(frozen=True)
class Rows(Kind):
    """One to three small objects, each written after a template."""

    fields: Mapping[str, Kind]
    template: str

    def draw(self, source: Source) -> Fact:
        """Invent some."""
        rows = [
            {name: kind.draw(source) for name, kind in self.fields.items()} for _ in range(source.rng.randint(1, 3))
        ]
        written = [self.template.format(**{name: fact.written for name, fact in row.items()}) for row in rows]
        return Fact([{name: fact.value for name, fact in row.items()} for row in rows], "; ".join(written))

    def ask(self, value: Any, source: Source) -> tuple[Any, Property]:
        """Ask for an array of objects, or for a part of each."""
        size = source.rng.randint(min(2, len(self.fields)), len(self.fields))
        names = source.rng.sample(list(self.fields), size)
        properties = {name: {"type": self.fields[name].ask(None, source)[1]["type"]} for name in names}
        items = {"type": "object", "properties": properties, "required": names, "additionalProperties": False}
        rows = None if value is None else [{name: row[name] for name in names} for row in value]
        return rows, {"type": "array", "items": items}


def _repeated(regex: str, count: int) -> str:
    return regex if count == 1 else f"{regex}{{{count}}}"


def _bound(least: int, bounds: Sequence[int]) -> int:
    return next((bound for bound in bounds if bound >= least), least)
