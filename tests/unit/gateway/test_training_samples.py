"""Training data: every record is what its document says and satisfies its schema, and what judges is not trained on."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import Any

import jsonschema
import pytest

from gateway.samples.training.corpus import HELD_OUT_KINDS, Item, held_out_items, training_items, validation_items
from gateway.samples.training.documents import HELD_OUT_STYLES, STYLES, TRAINING_STYLES, invent
from gateway.samples.training.facts import LANGUAGES
from gateway.samples.training.families import HELD_OUT, TRAINING, Family

SPLITS = {
    "train": list(islice(training_items(0), 400)),
    "validation": list(islice(validation_items(0), 200)),
    "held out": list(islice(held_out_items(0), 300)),
}


@pytest.mark.parametrize("split", SPLITS)
def test_records_satisfy_their_schemas_in_order(split: str) -> None:
    for item in SPLITS[split]:
        schema = json.loads(item.schema)
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(item.record, schema, format_checker=jsonschema.FormatChecker())
        if item.template != "real" or item.family not in HELD_OUT_KINDS:
            assert list(item.record) == [name for name in schema["properties"] if name in item.record]


def is_said(value: Any, text: str) -> bool:
    """Whether a text has a value as digits or letters; dates, booleans and absent ones are looked at elsewhere."""
    if isinstance(value, list):
        return all(is_said(one, text) for one in value)
    if isinstance(value, dict):
        return all(is_said(one, text) for one in value.values())
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return str(value) in text or f"{value:,}" in text
    if isinstance(value, float):
        digits = [f"{value:.{places}f}" for places in (1, 2, 3)]
        return any(one in text or one.replace(".", ",") in text for one in digits)
    return str(value) in text


def invented(families: tuple[Family, ...], styles: tuple[str, ...]) -> list[Any]:
    return [
        invent(family, styles, language, f"{family.name}-{language}-{seed}")
        for family in families
        for language in LANGUAGES
        for seed in range(4)
    ]


@pytest.mark.parametrize(("families", "styles"), [(TRAINING, TRAINING_STYLES), (HELD_OUT, HELD_OUT_STYLES)])
def test_documents_say_what_records_hold(families: tuple[Family, ...], styles: tuple[str, ...]) -> None:
    num_dates = 0
    for made in invented(families, styles):
        for name, value in made.record.items():
            schema = made.schema["properties"][name]
            if schema.get("format") == "date" and value is not None:
                year, _, day = value.split("-")
                assert year in made.text
                assert str(int(day)) in made.text
                num_dates += 1
            else:
                assert is_said(value, made.text), (name, value, made.text)
    assert num_dates > 50


def test_absent_facts_are_absent_or_null() -> None:
    absent = Counter[str]()
    for made in invented(TRAINING, TRAINING_STYLES):
        for name, schema in made.schema["properties"].items():
            if name not in made.record:
                assert name not in made.schema["required"]
                absent["left out"] += 1
            elif made.record[name] is None:
                assert "null" in schema["type"]
                absent["null"] += 1
    assert absent["left out"] > 20
    assert absent["null"] > 20


def test_what_judges_was_not_trained_on() -> None:
    def of(split: str, part: str) -> set[str]:
        return {getattr(item, part) for item in SPLITS[split]}

    assert not {family.name for family in TRAINING} & {family.name for family in HELD_OUT}
    for seen in ("train", "validation"):
        assert not of(seen, "family") & of("held out", "family")
        assert not of(seen, "schema") & of("held out", "schema")
    assert not of("train", "text") & of("validation", "text")
    assert set(HELD_OUT_STYLES) - set(TRAINING_STYLES) == {"dotted", "equals", "arrows"}
    assert set(STYLES) == {*TRAINING_STYLES, *HELD_OUT_STYLES}
    # No key that only judges is trained under the same label in Korean, as a sample of all languages.
    labels = [{fact.labels["ko"] for family in families for fact in family.facts} for families in (TRAINING, HELD_OUT)]
    assert len(labels[0] & labels[1]) <= len(labels[1]) // 10


def test_languages_and_families_are_mixed() -> None:
    for items in SPLITS.values():
        languages = Counter(item.language for item in items)
        assert set(languages) == set(LANGUAGES)
        assert languages["ko"] >= len(items) // 8
    families = Counter(item.family for item in SPLITS["train"] if item.template != "real")
    assert families.keys() == {family.name for family in TRAINING}
    assert max(families.values()) <= min(families.values()) + 2


def test_the_same_seed_makes_the_same_items() -> None:
    def first(seed: int) -> list[Item]:
        return list(islice(training_items(seed), 30))

    assert first(0) == first(0)
    assert first(0) != first(1)
