"""The values of a record: their tokens, what the model thought of them, and where the document has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from json import loads

from gateway.decode.values import Value, ValueScanner


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` to `end` (not included) of a document's UTF-8."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Field:
    """A string, number, boolean or null of a record; fields as in the contract's `FieldReport`."""

    pointer: str
    mean_logprob: float | None
    num_tokens: int
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """What a number lies between."""

    low: float
    high: float


def read_fields(
    record: str, spellings: Sequence[bytes], logprobs: Sequence[float | None], *, document: str | None = None
) -> tuple[Field, ...]:
    """Return the fields of a record that was written with tokens of these spellings, one log-probability for each.

    A log-probability is None where it is not known. With the text of a `document`, strings are looked for in it.
    """
    edges = list(accumulate(map(len, spellings), initial=0))
    places = None if document is None else _Places(document)
    fields = []
    for value in leaves(record):
        start = len(record[: value.start].encode())
        end = start + len(value.json.encode())
        # A token belongs to a value when it has one of its bytes, the quotes of a string among them.
        own = [index for index in range(len(spellings)) if edges[index] < end and edges[index + 1] > start]
        known = [logprob for index in own if (logprob := logprobs[index]) is not None]
        fields.append(
            Field(
                pointer=value.pointer,
                mean_logprob=sum(known) / len(known) if known else None,
                num_tokens=len(own),
                span=None if places is None or value.json[0] != '"' else places.take(loads(value.json)),
            )
        )
    return tuple(fields)


def leaves(record: str) -> list[Value]:
    """Return the values of a JSON text that have no others inside, in order."""
    scanner = ValueScanner()
    return [value for value in (*scanner.push(record), *scanner.finish()) if value.json[0] not in "{["]


def mean_removed_mass(removed: Sequence[float | None]) -> Interval:
    """Return the mean over a record's tokens of the probability that masks took out; what is not known is 0 to 1."""
    known = [mass for mass in removed if mass is not None]
    num_tokens = max(1, len(removed))
    return Interval(sum(known) / num_tokens, (sum(known) + len(removed) - len(known)) / num_tokens)


class _Places:
    """Where strings stand in a document: as they are, or else with other white space between their words."""

    def __init__(self, document: str) -> None:
        self._document = document
        self._next: dict[str, int] = {}
        """Where an equal string is looked for next."""

    def take(self, text: str) -> Span | None:
        """Return the first place of a string that no equal one has; the first of all where there are no more."""
        if not text.strip():
            return None
        words = r"\s+".join(map(re.escape, text.split()))
        for pattern in (re.compile(re.escape(text)), re.compile(words)):
            found = pattern.search(self._document, self._next.get(text, 0)) or pattern.search(self._document)
            if found is not None:
                self._next[text] = found.end()
                start = len(self._document[: found.start()].encode())
                return Span(start, start + len(found[0].encode()))
        return None
