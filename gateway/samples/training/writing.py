"""The ways in which people write dates, times, numbers and lists, by language."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, time
from random import Random
from typing import Final

LANGUAGES: Final = ("en", "de", "fr", "es", "ko")


def _cut(words: str) -> list[str]:
    return words.split()


_MONTHS: Final = {
    "en": _cut("January February March April May June July August September October November December"),
    "de": _cut("Januar Februar März April Mai Juni Juli August September Oktober November Dezember"),
    "fr": _cut("janvier février mars avril mai juin juillet août septembre octobre novembre décembre"),
    "es": _cut("enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre"),
}
_DAYS: Final = {
    "en": _cut("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "de": _cut("Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag"),
    "ko": _cut("월 화 수 목 금 토 일"),
}
_AND: Final = {"en": " and ", "de": " und ", "fr": " et ", "es": " y ", "ko": " 및 "}
# What stands between thousands, and before decimals.
_MARKS: Final = {"en": (",", "."), "de": (".", ","), "fr": (" ", ","), "es": (".", ","), "ko": (",", ".")}


def write_date(day: date, language: str, rng: Random) -> str:
    """Write a day; as numbers with slashes only where the day cannot be taken for a month."""
    ways = [day.isoformat(), *_dates(day, language)]
    return rng.choice(ways)


def _dates(day: date, language: str) -> list[str]:
    y, m, d = day.year, day.month, day.day
    if language == "ko":
        in_words = f"{y}년 {m}월 {d}일"
        return [
            in_words,
            in_words,
            f"{in_words}({_DAYS['ko'][day.weekday()]})",
            f"{y}.{m:02}.{d:02}",
            f"{y}. {m}. {d}.",
        ]
    month = _MONTHS[language][m - 1]
    slashes = [f"{d:02}/{m:02}/{y}"] if d > 12 else []
    if language == "de":
        in_words = f"{d}. {month} {y}"
        return [in_words, in_words, f"{_DAYS['de'][day.weekday()]}, {in_words}", f"{d:02}.{m:02}.{y}", f"{d}.{m}.{y}"]
    if language == "fr":
        first = "1er" if d == 1 else str(d)
        return [f"{first} {month} {y}", f"{first} {month} {y}", *slashes]
    if language == "es":
        return [f"{d} de {month} de {y}", f"{d} de {month} de {y}", *slashes]
    weekday = _DAYS["en"][day.weekday()]
    american = [f"{m:02}/{d:02}/{y}"] if d > 12 else []
    return [
        f"{d} {month} {y}",
        f"{month} {d}, {y}",
        f"{month[:3]} {d}, {y}",
        f"{d} {month[:3]} {y}",
        f"{d}{_ordinal(d)} of {month} {y}",
        f"{weekday}, {d} {month} {y}",
        f"{y}/{m:02}/{d:02}",
        *slashes,
        *american,
    ]


def _ordinal(number: int) -> str:
    return "th" if 10 < number < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def write_time(at: time, language: str, rng: Random) -> str:
    """Write a time of day, on a clock of 24 hours or, where people do, of 12."""
    h, m, plain = at.hour, at.minute, f"{at:%H:%M}"
    hour = h % 12 or 12
    ways = {
        "en": [f"{hour}:{m:02} {'pm' if h >= 12 else 'am'}", f"{hour}:{m:02} {'PM' if h >= 12 else 'AM'}"],
        "de": [f"{plain} Uhr", f"{h}.{m:02} Uhr"],
        "fr": [f"{h}h{m:02}", f"{h} h {m:02}"],
        "es": [f"{plain} h", f"{plain} horas"],
        "ko": [f"{'오후' if h >= 12 else '오전'} {hour}시" + (f" {m}분" if m else ""), f"{h}시 {m:02}분"],
    }
    return rng.choice([plain, plain, *ways[language]])


def write_number(value: float, places: int, language: str, rng: Random, *, is_plain: bool = False) -> str:
    """Write a number with the language's decimal mark and, sometimes, marks between thousands."""
    between, before = _MARKS[language]
    groups = not is_plain and rng.random() < 0.6
    whole, _, decimals = f"{value:,.{places}f}".partition(".")
    written = whole.replace(",", between if groups else "")
    return written + (before + decimals if decimals else "")


def write_list(items: Sequence[str], language: str, rng: Random) -> str:
    """Write items one after another."""
    if len(items) > 1 and rng.random() < 0.5:
        return ", ".join(items[:-1]) + _AND[language] + items[-1]
    return rng.choice([", ", ", ", "; "]).join(items)
