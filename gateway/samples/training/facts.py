"""What invented documents say: a fact has a value for the record, and a way to say it in the document's language."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from faker import Faker

LANGUAGES: Final[Mapping[str, str]] = {"en": "en_US", "ko": "ko_KR", "de": "de_DE", "fr": "fr_FR", "es": "es_ES"}
"""By language, where the invented names come from."""

_MONTHS: Final[Mapping[str, tuple[str, ...]]] = {
    "en": tuple(
        "January February March April May June July August September October November December".split()  # noqa: SIM905
    ),
    "de": tuple("Januar Februar März April Mai Juni Juli August September Oktober November Dezember".split()),  # noqa: SIM905
    "fr": tuple(
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre".split()  # noqa: SIM905
    ),
    "es": tuple(
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre".split()  # noqa: SIM905
    ),
}
_YES_NO: Final[Mapping[str, tuple[str, str]]] = {
    "en": ("yes", "no"),
    "ko": ("예", "아니오"),
    "de": ("ja", "nein"),
    "fr": ("oui", "non"),
    "es": ("sí", "no"),
}
_AND: Final[Mapping[str, str]] = {"en": " and ", "de": " und ", "fr": " et ", "es": " y ", "ko": ", "}


@dataclass(frozen=True)
class Source:
    """Where values come from: chance, and names of a language."""

    rng: random.Random
    fake: Faker
    language: str


@dataclass(frozen=True)
class Value:
    """A value as the record has it, and as the text says it."""

    value: Any
    spoken: str


@dataclass(frozen=True)
class Kind:
    """A kind of value: how one is made, and the JSON Schema of all of them."""

    make: Callable[[Source], Value]
    schema: Mapping[str, Any]
    is_copied: bool = False
    """Whether a text has it as the record does."""


@dataclass(frozen=True)
class Fact:
    """Something that a document of a family says."""

    keys: tuple[str, ...]
    """What a schema may call it, in snake case."""
    kind: Kind
    phrases: tuple[str, ...]
    """English sentences with `{}` for what is said; for a boolean one that says yes, then one that says no."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What a form calls it, by language."""


def _copied(make: Callable[[Source], str], **schema: Any) -> Kind:
    def value(source: Source) -> Value:
        text = make(source)
        return Value(text, text)

    return Kind(value, {"type": "string", **schema}, is_copied=True)


def one_of(*texts: str) -> Kind:
    """Return texts of a list, which the schema does not know."""
    return _copied(lambda source: source.rng.choice(texts))


def code(pattern: str) -> Kind:
    """Return codes; `#` is a digit and `?` a capital letter."""
    letters = {"#": "0123456789", "?": "ABCDEFGHKLMNPRSTUVWXZ"}
    return _copied(lambda source: "".join(source.rng.choice(letters.get(c, c)) for c in pattern))


PERSON: Final = _copied(lambda source: str(source.fake.name()))
COMPANY: Final = _copied(lambda source: str(source.fake.company()))
CITY: Final = _copied(lambda source: str(source.fake.city()))
STREET: Final = _copied(lambda source: str(source.fake.street_address()).replace("\n", " "))
PHONE: Final = _copied(lambda source: str(source.fake.phone_number()))
EMAIL: Final = _copied(lambda source: str(source.fake.ascii_safe_email()), format="email")
URL: Final = _copied(lambda source: str(source.fake.url()), format="uri")
CLOCK: Final = _copied(lambda source: f"{source.rng.randrange(6, 23):02}:{source.rng.randrange(0, 60, 5):02}")


def _day(source: Source) -> Value:
    rng, language = source.rng, source.language
    day = datetime.date(1995, 1, 1) + datetime.timedelta(days=rng.randrange(12_500))
    if language == "ko":
        styles = [f"{day.year}년 {day.month}월 {day.day}일", f"{day:%Y. %-m. %-d}.", f"{day:%Y-%m-%d}"]
    else:
        month = _MONTHS[language][day.month - 1]
        styles = {
            "en": [
                f"{day.day} {month} {day.year}",
                f"{month} {day.day}, {day.year}",
                f"{day.day} {month[:3]} {day.year}",
                f"{day:%Y-%m-%d}",
                f"{day:%Y/%m/%d}",
            ],
            "de": [f"{day.day}. {month} {day.year}", f"{day:%d.%m.%Y}"],
            "fr": [f"{day.day} {month} {day.year}", f"le {day.day} {month} {day.year}"],
            "es": [f"{day.day} de {month} de {day.year}", f"{day.day} {month} {day.year}"],
        }[language]
    return Value(day.isoformat(), rng.choice(styles))


DATE: Final = Kind(_day, {"type": "string", "format": "date"})


def count(low: int, high: int, unit: str = "") -> Kind:
    """Return whole numbers, said with a unit."""

    def value(source: Source) -> Value:
        number = source.rng.randint(low, high)
        digits = f"{number:,}" if source.language == "en" and source.rng.random() < 0.3 else str(number)
        return Value(number, f"{digits} {unit}".strip())

    return Kind(value, {"type": "integer"})


def amount(low: float, high: float, unit: str = "", digits: int = 1) -> Kind:
    """Return numbers, said with a unit, and with a comma where the language has one."""

    def value(source: Source) -> Value:
        number = round(source.rng.uniform(low, high), digits)
        text = f"{number:.{digits}f}"
        if source.language in ("de", "fr", "es"):
            text = text.replace(".", ",")
        return Value(number, f"{text} {unit}".strip())

    return Kind(value, {"type": "number"})


def money(low: float, high: float) -> Kind:
    """Return sums of money in some currency."""

    def value(source: Source) -> Value:
        said = amount(low, high, digits=2).make(source)
        currency = source.rng.choice({"en": ["$", "EUR ", "£"], "ko": ["₩ ", "USD "]}.get(source.language, [""]))
        return Value(said.value, f"{currency}{said.spoken}" if currency else f"{said.spoken} €")

    return Kind(value, {"type": "number"})


def choice(*options: str) -> Kind:
    """Return one of a few words, which the schema lists."""

    def value(source: Source) -> Value:
        word = source.rng.choice(options)
        return Value(word, word)

    return Kind(value, {"type": "string", "enum": list(options)}, is_copied=True)


def several(*texts: str, most: int = 4) -> Kind:
    """Return lists of texts."""

    def value(source: Source) -> Value:
        chosen = source.rng.sample(texts, source.rng.randint(1, min(most, len(texts))))
        last = _AND[source.language] if source.rng.random() < 0.5 else ", "
        return Value(chosen, last.join([", ".join(chosen[:-1]), chosen[-1]]) if len(chosen) > 1 else chosen[0])

    return Kind(value, {"type": "array", "items": {"type": "string"}})


def numbers(low: int, high: int, most: int = 4) -> Kind:
    """Return lists of whole numbers."""

    def value(source: Source) -> Value:
        chosen = [source.rng.randint(low, high) for _ in range(source.rng.randint(2, most))]
        return Value(chosen, ", ".join(map(str, chosen)))

    return Kind(value, {"type": "array", "items": {"type": "integer"}})


def pieces(name_key: str, count_key: str, *names: str) -> Kind:
    """Return lists of objects: things, and how many of each."""

    def value(source: Source) -> Value:
        chosen = source.rng.sample(names, source.rng.randint(1, 3))
        counts = [source.rng.randint(1, 12) for _ in chosen]
        record = [{name_key: name, count_key: number} for name, number in zip(chosen, counts, strict=True)]
        return Value(record, ", ".join(f"{number} x {name}" for name, number in zip(chosen, counts, strict=True)))

    item = {
        "type": "object",
        "properties": {name_key: {"type": "string"}, count_key: {"type": "integer"}},
        "required": [name_key, count_key],
    }
    return Kind(value, {"type": "array", "items": item})


def _boolean(source: Source) -> Value:
    is_so = source.rng.random() < 0.5
    return Value(is_so, _YES_NO[source.language][not is_so])


BOOLEAN: Final = Kind(_boolean, {"type": "boolean"})
