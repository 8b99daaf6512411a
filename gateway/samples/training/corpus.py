"""What is trained on, what is watched meanwhile, and what is kept to judge by, of other families and schemas."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

from gateway.samples.collection import collect, schema_text
from gateway.samples.training.documents import HELD_OUT_STYLES, TRAINING_STYLES, invent
from gateway.samples.training.families import HELD_OUT, TRAINING

TRAINING_KINDS: Final = ("changelog", "copyright")
HELD_OUT_KINDS: Final = ("package", "email", "notice-en", "notice-ko")
"""Of `gateway.samples`: real documents, and the shipped notices."""

_LANGUAGES: Final = ("en", "en", "en", "en", "ko", "ko", "de", "fr", "es")
_REAL_SHARE: Final = 0.12
_MAX_REAL_CHARACTERS: Final = 700


@dataclass(frozen=True)
class Item:
    """A document with its schema and record."""

    id: str
    family: str
    template: str
    language: str
    schema: str
    text: str
    record: dict[str, Any]


def training_items(seed: int) -> Iterator[Item]:
    """Yield items to train on, invented ones and real ones, without end."""
    yield from _mixed(f"train-{seed}", _real(TRAINING_KINDS, seed))


def validation_items(seed: int) -> Iterator[Item]:
    """Yield others of the families that are trained on, without end."""
    yield from _mixed(f"validation-{seed}", [])


def held_out_items(seed: int) -> Iterator[Item]:
    """Yield items of families and schemas that no training has seen, without end; some are real, as far as they go."""
    real = [
        Item(f"{kind}/{sample.id}", kind, "real", kind.partition("-")[2] or "en", schema, sample.text, sample.record)
        for kind in HELD_OUT_KINDS
        for schema in [_compact(json.loads(schema_text(kind)))]
        for sample in collect(kind, max_characters=_MAX_REAL_CHARACTERS)
    ]
    random.Random(seed).shuffle(real)
    for number in count():
        if real:
            yield real.pop()
        yield _invented(f"held-out-{seed}-{number}", HELD_OUT[number % len(HELD_OUT)], HELD_OUT_STYLES)


def _mixed(name: str, real: list[Callable[[random.Random], Item]]) -> Iterator[Item]:
    rng = random.Random(name)
    rng.shuffle(real)
    number = 0
    while True:
        order = list(TRAINING)
        rng.shuffle(order)
        for family in order:
            if real and rng.random() < _REAL_SHARE:
                yield real.pop()(rng)
            yield _invented(f"{name}-{number}", family, TRAINING_STYLES)
            number += 1


def _invented(name: str, family: Any, styles: tuple[str, ...]) -> Item:
    language = random.Random(f"{name}-language").choice(_LANGUAGES)
    made = invent(family, styles, language, name)
    return Item(name, made.family, made.style, language, _compact(made.schema), made.text, made.record)


def _real(kinds: tuple[str, ...], seed: int) -> list[Callable[[random.Random], Item]]:
    """Return what makes an item of each real document: with the whole schema, or some of its properties."""

    def maker(kind: str, sample: Any) -> Callable[[random.Random], Item]:
        def make(rng: random.Random) -> Item:
            schema = json.loads(schema_text(kind))
            names = list(schema["properties"])
            if rng.random() < 0.7:
                names = rng.sample(names, rng.randint(2, min(5, len(names))))
            schema["properties"] = {name: schema["properties"][name] for name in names}
            schema["required"] = [name for name in schema.get("required", []) if name in names]
            record = {name: sample.record[name] for name in names if name in sample.record}
            return Item(f"{kind}/{sample.id}", kind, "real", "en", _compact(schema), sample.text, record)

        return make

    return [maker(kind, sample) for kind in kinds for sample in collect(kind, max_characters=_MAX_REAL_CHARACTERS)]


def _compact(schema: dict[str, Any]) -> str:
    return json.dumps(schema, ensure_ascii=False, separators=(", ", ": "))
