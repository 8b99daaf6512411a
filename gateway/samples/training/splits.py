"""Examples to train with, to validate and to judge by: a document, a schema, the prompt and the answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from random import Random
from typing import Any, Final

from faker import Faker

from gateway.extraction.prompt import prompt_of
from gateway.extraction.request import DEFAULT_INSTRUCTIONS, Extraction
from gateway.request import ChatPrompt
from gateway.samples.collection import collect, schema_text
from gateway.samples.training import real
from gateway.samples.training.documents import Document, invent, languages_of
from gateway.samples.training.families import Family, held_out_families, training_families
from gateway.samples.training.kinds import Source
from gateway.samples.training.schemas import Asked, ask

MAX_TOKENS: Final = 480
"""Longer examples are left out; but the real documents to judge by are as long as they are, up to the next bound."""
MAX_REAL_HELD_OUT_TOKENS: Final = 1024
NUM_VALIDATION: Final = 100

_LOCALES: Final = {"en": "en_US", "de": "de_DE", "fr": "fr_FR", "es": "es_ES", "ko": "ko_KR"}
_WEIGHTS: Final = {"en": 45, "de": 12, "fr": 10, "es": 10, "ko": 23}
# Every so many examples one is real: 12 in 100.
_REAL_EVERY: Final = 25
_NUM_REAL: Final = 3
# Documents tried for one example: some are too long.
_MAX_TRIES: Final = 20
_CHANGELOGS: Final = 0.75
_ORIGINAL_SCHEMAS: Final = 0.2
_HELD_OUT_INVENTED: Final = 2 / 3
_INSTRUCTIONS: Final = (
    "Extract the fields as JSON.",
    "Fill in the schema from the document.",
    "Return a JSON object that follows the schema.",
    "Read the document and answer with its record as JSON.",
    "What does the document say? Answer as a JSON object.",
    "Give the record of this document.",
)


@dataclass(frozen=True, slots=True)
class Example:
    """A line of a file: what the model reads, and what it shall write."""

    id: str
    family: str
    template: str
    language: str
    schema: str
    text: str
    record: dict[str, Any]
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Reader:
    """How the model reads: a conversation as text and the number of its tokens, a text's tokens, the end of a turn."""

    render: Callable[[ChatPrompt], tuple[str, int]]
    count: Callable[[str], int]
    end: str


class Splits:
    """Makes the examples of one seed; the same ones for the same model on the same machine."""

    def __init__(self, reader: Reader, seed: int) -> None:
        self._reader = reader
        self._seed = seed
        self._fakes = {language: Faker(locale) for language, locale in _LOCALES.items()}
        self._texts: set[str] = set()

    def training(self, num_tokens: int) -> Iterator[tuple[Example, int]]:
        """Yield examples with the number of their tokens, until all have so many."""
        left = num_tokens
        for example, tokens in self._mixed("train", training_families(), real_part=0):
            yield example, tokens
            left -= tokens
            if left <= 0:
                return

    def validation(self, num_examples: int = NUM_VALIDATION) -> Iterator[tuple[Example, int]]:
        """Yield examples of the families that are trained, of other documents."""
        examples = self._mixed("validation", training_families(), real_part=1)
        for _, pair in zip(range(num_examples), examples, strict=False):
            yield pair

    def held_out(self, num_examples: int) -> Iterator[tuple[Example, int]]:
        """Yield examples of families and real kinds of which none is trained."""
        reals = list(self._held_out_real(num_examples - round(num_examples * _HELD_OUT_INVENTED)))
        families = held_out_families()
        found = 0
        for index in count():
            if found == num_examples - len(reals):
                break
            pair = self._invented(f"held_out/{index}", families[index % len(families)], varies=False)
            if pair is not None:
                found += 1
                yield pair
        yield from reals

    def _mixed(self, split: str, families: Sequence[Family], *, real_part: int) -> Iterator[tuple[Example, int]]:
        """Mix families evenly, and real documents in between."""
        rng = Random(f"{self._seed}/{split}")
        reals = {kind: self._real_documents(kind, real_part) for kind in real.TRAINING_KINDS}
        order: list[Family] = []
        for index in count():
            name = f"{split}/{index}"
            if index % _REAL_EVERY < _NUM_REAL:
                kind = real.TRAINING_KINDS[0 if rng.random() < _CHANGELOGS else 1]
                pair = self._asked_real(name, reals[kind], varies=split == "train")
            else:
                order = order or rng.sample(families, len(families))
                pair = self._invented(name, order.pop(), varies=split == "train")
            if pair is not None:
                yield pair

    def _real_documents(self, kind: str, part: int) -> Iterator[Document]:
        """Yield one in six documents to validate with, again and again all others to train with."""
        documents = real.training_documents(kind)
        chosen = [one for index, one in enumerate(documents) if (index % 6 == 0) == (part == 1)]
        while chosen:
            yield from chosen

    def _invented(self, name: str, family: Family, *, varies: bool) -> tuple[Example, int] | None:
        languages = languages_of(family)
        rng = Random(f"{self._seed}/{name}")
        (language,) = rng.choices(languages, weights=[_WEIGHTS[one] for one in languages])
        source = self._source(rng, language)
        document = invent(family, source)
        if document.text in self._texts:
            return None
        pair = self._example(name, document, ask(document, source), self._instructions(rng, varies))
        if pair is not None:
            self._texts.add(document.text)
        return pair

    def _asked_real(self, name: str, documents: Iterator[Document], *, varies: bool) -> tuple[Example, int] | None:
        """Take the next document that is short enough; none where there are none."""
        rng = Random(f"{self._seed}/{name}")
        for document in islice(documents, _MAX_TRIES):
            source = self._source(rng, document.language)
            asked = (
                Asked(schema_text(document.family), dict(document.values))
                if source.chance(_ORIGINAL_SCHEMAS)
                else ask(document, source)
            )
            if (pair := self._example(name, document, asked, self._instructions(rng, varies))) is not None:
                return pair
        return None

    def _held_out_real(self, num_examples: int) -> Iterator[tuple[Example, int]]:
        """Yield documents of the kinds held out, of each as many as it has or as there is room for."""
        kinds = sorted(real.HELD_OUT_KINDS, key=lambda kind: len(collect(kind)))
        left = num_examples
        for place, kind in enumerate(kinds):
            room = left // (len(kinds) - place)
            for sample in collect(kind):
                language = "ko" if kind.endswith("-ko") else "en"
                document = Document(kind, f"{kind}/{sample.id}", language, sample.text, {}, sample.record)
                asked = Asked(schema_text(kind), sample.record)
                pair = self._example(
                    f"held_out/{kind}/{sample.id}", document, asked, DEFAULT_INSTRUCTIONS, MAX_REAL_HELD_OUT_TOKENS
                )
                if pair is not None and room > 0:
                    room, left = room - 1, left - 1
                    yield pair

    def _source(self, rng: Random, language: str) -> Source:
        fake = self._fakes[language]
        fake.seed_instance(rng.getrandbits(64))
        return Source(rng, fake, language)

    def _instructions(self, rng: Random, varies: bool) -> str:
        return rng.choice(_INSTRUCTIONS) if varies and rng.random() < 0.3 else DEFAULT_INSTRUCTIONS

    def _example(
        self, name: str, document: Document, asked: Asked, instructions: str, max_tokens: int = MAX_TOKENS
    ) -> tuple[Example, int] | None:
        extraction = Extraction(json_schema=asked.schema, instructions=instructions)
        prompt, num_tokens = self._reader.render(prompt_of(extraction, document.text))
        completion = json.dumps(asked.record, ensure_ascii=False) + self._reader.end
        num_tokens += self._reader.count(completion)
        if num_tokens > max_tokens:
            return None
        example = Example(
            name,
            document.family,
            document.template,
            document.language,
            asked.schema,
            document.text,
            asked.record,
            prompt,
            completion,
        )
        return example, num_tokens
