"""Families of invented documents: the facts that one may hold and the texts that say them, as `data/*.toml` has them.

A field is one line: its kind, and with bars between its keys, the usual one first, and what it is.

    due = "date? | due_date pay_by | Last day to pay"

The question mark says that a text may leave it out. Kinds are names of `faker`'s methods and those of `_KINDS`.

In a text `{due}` stands for a fact, `{paid?is paid|is not paid}` and `{size?small:petit|large:grand}` for one said in
other words, and `[...]` for a part that is left out with the facts in it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from gateway.samples.training.kinds import Choice, Clock, Code, Day, Flag, Kind, ListOf, Number, Rows, Text

TRAINING_FILES: Final = ("trade", "travel", "people", "records", "home", "works", "public")
HELD_OUT_FILES: Final = ("held_out",)

_TRANSLATED: Final = ("de", "fr", "es", "ko")
_FAKED: Final[Mapping[str, tuple[str, str | None]]] = {
    "name": ("name", None),
    "company": ("company", None),
    "city": ("city", None),
    "country": ("country", None),
    "address": ("street_address", None),
    "job": ("job", None),
    "phone": ("phone_number", None),
    "email": ("ascii_safe_email", "email"),
    "work_email": ("ascii_company_email", "email"),
    "url": ("url", "uri"),
    "domain": ("domain_name", None),
    "plate": ("license_plate", None),
    "iban": ("iban", None),
    "user": ("user_name", None),
    "ip": ("ipv4_private", "ipv4"),
    "file": ("file_name", None),
}


@dataclass(frozen=True)
class Words:
    """What things are called in other languages."""

    labels: Mapping[str, Mapping[str, str]]
    values: Mapping[str, Mapping[str, str]]
    yes_no: Mapping[str, tuple[str, str]]
    pools: Mapping[str, Mapping[str, Sequence[str]]]
    noise: Mapping[str, Sequence[str]]
    absent: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Field:
    """A fact that documents of a family may hold."""

    name: str
    kind: Kind
    keys: tuple[str, ...]
    description: str = ""
    is_optional: bool = False


@dataclass(frozen=True)
class Family:
    """Documents that say the same facts in several ways."""

    name: str
    fields: Mapping[str, Field]
    texts: Mapping[str, Sequence[str]]
    has_layouts: bool = True
    """Whether its facts may be written as plain lists, too, which look the same in all families."""


@cache
def words() -> Words:
    """Read the words that families share."""
    content = _read("words")
    return Words(
        labels={name: _translations(line) for name, line in content["labels"].items()},
        values={name: _translations(line) for name, line in content["values"].items()},
        yes_no={language: (pair[0], pair[1]) for language, pair in content["yes_no"].items()},
        pools={
            name: {language: _cut(line, ";") for language, line in pool.items()}
            for name, pool in content["pools"].items()
        },
        noise=content["noise"],
        absent=content["absent"],
    )


@cache
def training_families() -> tuple[Family, ...]:
    """Return the families to learn from."""
    return tuple(family for file in TRAINING_FILES for family in _families(file, has_layouts=True))


@cache
def held_out_families() -> tuple[Family, ...]:
    """Return the families to judge by, of which nothing is learned."""
    return tuple(family for file in HELD_OUT_FILES for family in _families(file, has_layouts=False))


def _families(file: str, *, has_layouts: bool) -> list[Family]:
    return [
        Family(
            name,
            {key: _field(key, line) for key, line in content["fields"].items()},
            {language: tuple(text.strip() for text in texts) for language, texts in content["texts"].items()},
            has_layouts,
        )
        for name, content in _read(file).items()
    ]


def _field(name: str, line: str) -> Field:
    kind, keys, description = (*_cut(line, "|"), "", "")[:3]
    word, _, argument = kind.partition(" ")
    return Field(
        name,
        kind_of(word.removesuffix("?"), argument.strip()),
        tuple(keys.split()) or (name,),
        description,
        is_optional=word.endswith("?"),
    )


def kind_of(word: str, argument: str = "") -> Kind:
    """Return the kind that a line names.

    Raises:
        KeyError: there is none of this name.
    """
    if word in _FAKED:
        method, format = _FAKED[word]
        return Text(method, format=format)
    return _KINDS[word](argument)


def _pick(argument: str) -> Kind:
    pool = words().pools[argument[1:]] if argument.startswith("@") else {"en": _cut(argument, ";")}
    return Text(choices=pool)


def _number(argument: str, *, is_plain: bool = False) -> Kind:
    low, high, *places = argument.split()
    return Number(float(low), float(high), int(places[0]) if places else 0, is_plain)


def _list(argument: str) -> Kind:
    word, _, rest = argument.partition(" ")
    return ListOf(kind_of(word, rest))


def _rows(argument: str) -> Kind:
    template, *fields = _cut(argument, ";;")
    named = [_cut(field, ":") for field in fields]
    return Rows({name: kind_of(*kind.split(" ", 1)) for name, kind in named}, template)


_KINDS: Final[Mapping[str, Callable[[str], Kind]]] = {
    "code": Code,
    "pick": _pick,
    "enum": lambda argument: Choice(tuple(_cut(argument, ";")), words().values),
    "flag": lambda _: Flag(words().yes_no),
    "int": _number,
    "num": _number,
    "plain": lambda argument: _number(argument, is_plain=True),
    "date": lambda _: Day(),
    "time": lambda _: Clock(),
    "list": _list,
    "rows": _rows,
}


def _cut(line: str, mark: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in line.split(mark))


def _translations(line: str) -> Mapping[str, str]:
    return dict(zip(_TRANSLATED, _cut(line, "|"), strict=True))


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((resources.files(__package__) / "data" / f"{name}.toml").read_text(encoding="utf-8"))
