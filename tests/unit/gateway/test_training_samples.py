"""Training samples: records that are right by other means than those that made them, and splits that share nothing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from itertools import islice
from random import Random
from typing import Any

import jsonschema
import pytest
from faker import Faker

from gateway.extraction.request import DEFAULT_INSTRUCTIONS
from gateway.request import ChatPrompt
from gateway.samples import schema_text
from gateway.samples.training import real
from gateway.samples.training.documents import Document, can_lay_out, invent, label_of, languages_of
from gateway.samples.training.families import Family, Field, held_out_families, training_families, words
from gateway.samples.training.kinds import Choice, Clock, Code, Day, Flag, ListOf, Number, Rows, Source, Text
from gateway.samples.training.schemas import ask
from gateway.samples.training.splits import Example, Reader, Splits
from services.constraint.checking import Case, CaseTest, Checker
from services.constraint.sources import ConstraintSource, SourceOptions
from services.model_worker.toy import toy_tokenizer
from services.vocabulary import Vocabulary

PLACE = re.compile(r"\{(\w+)(?:\?([^}]*))?\}")
MONTHS = {
    "en": "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec",
    "de": "Jan Feb Mär Apr Mai Jun Jul Aug Sep Okt Nov Dez",
    "fr": "janv févr mars avr mai juin juil août sept oct nov déc",
    "es": "enero feb marzo abril mayo junio julio agosto sept oct nov dic",
}
ALL = (*training_families(), *held_out_families())


def render(chat: ChatPrompt) -> tuple[str, int]:
    text = "".join(f"<|{message.role}|>{message.content}" for message in chat.messages) + "<|assistant|>"
    return text, len(text) // 4


def splits(seed: int = 0) -> Splits:
    return Splits(Reader(render, lambda text: len(text) // 4, "<|end|>"), seed)


def documents(family: Family, count: int) -> Iterator[tuple[Document, Source]]:
    fakes = {"en": "en_US", "de": "de_DE", "fr": "fr_FR", "es": "es_ES", "ko": "ko_KR"}
    for language in languages_of(family):
        fake = FAKES.setdefault(language, Faker(fakes[language]))
        for index in range(count):
            rng = Random(f"{family.name}/{language}/{index}")
            fake.seed_instance(rng.getrandbits(64))
            source = Source(rng, fake, language)
            yield invent(family, source), source


FAKES: dict[str, Faker] = {}


@pytest.fixture(scope="module")
def made() -> dict[str, list[Example]]:
    all_splits = splits()
    return {
        "train": [example for example, _ in all_splits.training(120_000)],
        "validation": [example for example, _ in all_splits.validation()],
        "held_out": [example for example, _ in all_splits.held_out(120)],
    }


@pytest.mark.parametrize("split", ["train", "validation", "held_out"])
def test_records_satisfy_their_schemas_in_their_order(made: dict[str, list[Example]], split: str) -> None:
    for example in made[split]:
        schema = json.loads(example.schema)
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(example.record)
        assert_order(schema, example.record)
        assert example.completion == json.dumps(example.record, ensure_ascii=False) + "<|end|>"
        assert example.schema.strip() in example.prompt
        assert example.text.strip() in example.prompt


def assert_order(schema: dict[str, Any], record: dict[str, Any]) -> None:
    assert [name for name in schema["properties"] if name in record] == list(record)
    for name, value in record.items():
        inner = schema["properties"][name]
        if isinstance(value, dict):
            assert_order(inner, value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for one in value:
                assert_order(inner["items"], one)


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_what_a_document_says_is_in_its_text(family: Family) -> None:
    for document, source in documents(family, 3):
        assert document.values
        for name, value in document.values.items():
            assert_said(value, document.fields[name], document)
        asked = ask(document, source)
        schema = json.loads(asked.schema)
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(asked.record)


def assert_said(value: Any, field: Field, document: Document) -> None:
    text, kind = document.text, field.kind
    if isinstance(kind, ListOf):
        for one in value:
            assert_said(one, Field(field.name, kind.item, field.keys), document)
    elif isinstance(kind, Rows):
        for row in value:
            for name, one in row.items():
                assert_said(one, Field(name, kind.fields[name], (name,)), document)
    elif isinstance(kind, Text | Code):
        assert value in text
    elif isinstance(kind, Day):
        day = date.fromisoformat(value)
        assert str(day.year) in text
        assert re.search(rf"(?<!\d)0?{day.day}(?!\d)", text)
        name = MONTHS.get(document.language, "- " * 12).split()[day.month - 1]
        assert re.search(rf"(?<!\d)0?{day.month}(?!\d)", text) or name in text
    elif isinstance(kind, Clock):
        hour, minute = map(int, value.split(":"))
        hours = {hour, hour % 12 or 12}
        assert any(re.search(rf"(?<!\d)0?{one}(\D{{1,3}}{minute:02}|시 {minute}분|시)", text) for one in hours)
    elif isinstance(kind, Number):
        written = f"{value:.{kind.places}f}"
        whole, _, decimals = written.partition(".")
        groups = r"[., ]?".join(re.sub(r"(?<=\d)(?=(\d{3})+$)", " ", whole).split(" "))
        assert re.search(rf"(?<!\d){groups}" + (rf"[.,]{decimals}" if decimals else "") + r"(?!\d)", text)
    else:
        assert isinstance(kind, Choice | Flag)


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_texts_name_fields_and_each_of_their_words(family: Family) -> None:
    for language, texts in family.texts.items():
        for text in texts:
            outside = re.sub(r"\[[^\]]*\]", "", text)
            for name, said in PLACE.findall(text):
                kind = family.fields[name].kind
                if said and isinstance(kind, Choice):
                    chosen = dict(one.split(":", 1) for one in said.split("|"))
                    assert set(chosen) == set(kind.values)
                    assert len(set(chosen.values())) == len(chosen), (language, text)
                elif said:
                    assert isinstance(kind, Flag)
                    yes, no = said.split("|")
                    assert yes != no
            required = {name for name, field in family.fields.items() if not field.is_optional}
            # A part that may be left out says nothing that every text has to say.
            assert required <= {name for name, _ in PLACE.findall(outside)}, (language, text)


def test_words_of_a_choice_differ_in_each_language() -> None:
    for family in training_families():
        for field in family.fields.values():
            if isinstance(field.kind, Choice):
                for language in ("en", "de", "fr", "es", "ko"):
                    called = [field.kind.word(value, language) for value in field.kind.values]
                    assert len(set(called)) == len(called), (family.name, field.name, language)


def test_absent_facts_are_absent() -> None:
    family = next(family for family in training_families() if family.name == "invoice")
    absent = Counter[bool]()
    for document, source in documents(family, 40):
        optional = [name for name, field in family.fields.items() if field.is_optional]
        gone = [name for name in optional if name not in document.values]
        asked = ask(document, source)
        properties = json.loads(asked.schema)["properties"]
        assert len(asked.record) <= len(properties)
        for name in gone:
            absent[name in "due paid"] += 1
            for key in family.fields[name].keys:
                # Where the schema names it at all, the record has null or nothing.
                assert asked.record.get(key) is None
    assert absent[True] > 20


def test_dates_that_could_be_read_in_two_ways_are_not_written(made: dict[str, list[Example]]) -> None:
    slashed = [found for one in made["train"] for found in re.findall(r"\b(\d\d)/(\d\d)/\d{4}\b", one.text)]
    assert slashed
    assert all((int(first) > 12) != (int(second) > 12) for first, second in slashed)


def test_splits_share_no_text_and_held_out_shares_no_family(made: dict[str, list[Example]]) -> None:
    texts = {split: {example.text for example in examples} for split, examples in made.items()}
    families = {split: {example.family for example in examples} for split, examples in made.items()}
    templates = {split: {example.template for example in examples} for split, examples in made.items()}
    schemas = {split: {example.schema for example in examples} for split, examples in made.items()}
    assert not texts["train"] & texts["validation"]
    assert not (texts["train"] | texts["validation"]) & texts["held_out"]
    for shared in (families, templates, schemas):
        assert not (shared["train"] | shared["validation"]) & shared["held_out"]
    originals = {json.dumps(json.loads(schema_text(kind))) for kind in real.HELD_OUT_KINDS}
    assert not originals & {json.dumps(json.loads(schema)) for schema in schemas["train"]}
    assert all(DEFAULT_INSTRUCTIONS in one.prompt for one in (*made["validation"], *made["held_out"]))
    assert any(DEFAULT_INSTRUCTIONS not in one.prompt for one in made["train"])


def test_held_out_families_are_about_other_things() -> None:
    assert len(training_families()) >= 40
    assert len(held_out_families()) >= 12
    keys = [
        {key for family in families for field in family.fields.values() for key in field.keys}
        for families in (training_families(), held_out_families())
    ]
    assert not keys[0] & keys[1]
    texts = [
        {text for family in families for one in family.texts.values() for text in one}
        for families in (training_families(), held_out_families())
    ]
    assert not texts[0] & texts[1]
    assert not any(family.has_layouts for family in held_out_families())


def test_families_are_mixed_evenly_and_in_many_languages(made: dict[str, list[Example]]) -> None:
    invented = Counter(one.family for one in made["train"] if one.family not in real.TRAINING_KINDS)
    assert set(invented) == {family.name for family in training_families()}
    assert max(invented.values()) - min(invented.values()) <= 4
    languages = Counter(one.language for one in made["train"])
    assert all(languages[language] >= 10 for language in ("en", "de", "fr", "es", "ko"))
    assert languages["ko"] > len(made["train"]) / 10
    hangul = [one for one in made["train"] if re.search(r"[가-힣]", one.text)]
    assert len(hangul) >= languages["ko"]
    assert sum("ko" in family.texts for family in training_families()) > 40
    assert sum(can_lay_out(family, "ko") for family in training_families()) >= 15


def test_schemas_differ_in_all_the_ways_they_may(made: dict[str, list[Example]]) -> None:
    invented = [one for one in made["train"] if one.family not in real.TRAINING_KINDS]
    assert len({one.schema for one in invented}) > 0.95 * len(invented)
    schemas = "".join(one.schema for one in invented)
    for keyword in ("description", "enum", "format", "pattern", "maxLength", "minimum", "maxItems", "title", "null"):
        assert f'"{keyword}"' in schemas
    assert all(2 <= len(json.loads(one.schema)["properties"]) <= 8 for one in invented)


def test_the_same_seed_makes_the_same_examples() -> None:
    first, again, other = (
        [asdict(example) for example, _ in islice(splits(seed).training(10**9), 30)] for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_patterns_have_no_escape_that_ecma_refuses() -> None:
    assert Code("AB-## C.#").pattern == r"^AB-[0-9]{2} C\.[0-9]$"


def test_words_have_a_translation_for_each_language() -> None:
    for table in (words().labels, words().values):
        assert all(set(line) == {"de", "fr", "es", "ko"} and all(line.values()) for line in table.values())


def test_the_engine_takes_schemas_and_records(made: dict[str, list[Example]]) -> None:
    files = toy_tokenizer()
    checker = Checker(Vocabulary(files.tokenizer_json, 300, files.eos_token_ids))
    chosen = [*made["train"][:40], *made["held_out"][:20]]
    for example in chosen:
        text = json.dumps(example.record, ensure_ascii=False)
        source = ConstraintSource("json_schema", example.schema)
        case = Case(example.id, source, SourceOptions(whitespace="spaced"), tests=(CaseTest(True, text),))
        outcome = checker.run(case, num_passes=1)
        assert outcome.status == "ok", outcome
        assert [test.is_accepted for test in outcome.tests] == [True], example


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_no_two_fields_of_a_family_are_called_alike(family: Family) -> None:
    keys = [key for field in family.fields.values() for key in field.keys]
    assert len(set(keys)) == len(keys)
    for language in ("de", "fr", "es", "ko"):
        labels = [words().labels.get(label_of(field), {}).get(language) for field in family.fields.values()]
        known = [label for label in labels if label is not None]
        assert len(set(known)) == len(known)
