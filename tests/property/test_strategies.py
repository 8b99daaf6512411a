"""Every strategy under every kind of constraint ends in a text that the independent validators take."""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import suppress
from typing import Any, Final

import pytest

from gateway.decode.beam import BeamSearch, BeamSettings
from gateway.decode.guided import Guide
from gateway.decode.interfaces import CompileOptions, Constraint
from gateway.decode.limits import FinishReason, Limits
from gateway.decode.loop import DecodeLoop, plain_mask
from gateway.decode.sampler import Sampler, Sampling
from gateway.decode.sequence import ModelSequence
from services.constraint.checking import matcher_of_built
from services.constraint.checks import TokenClasses
from services.constraint.core.engine import Forcing, TokenTrie
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.constraint.validation.validators import validate
from services.rpckit.status import BudgetTooSmall, DeadEnd, UnsatisfiableGrammar
from tests.support.acceptance import matcher_of_source
from tests.support.fake_services import FakeWorker, vocabulary
from tests.support.random_decoding import EngineStream
from tests.support.schemas import random_schema

PROMPT: Final = (70, 71)
VOCABULARY: Final = vocabulary()
TRIE: Final = TokenTrie(VOCABULARY)
CLASSES: Final = TokenClasses(TRIE)


def schema(value: Any) -> ConstraintSource:
    return ConstraintSource("json_schema", json.dumps(value))


RECORD = schema(
    {
        "type": "object",
        "properties": {
            "a": {"type": "string", "maxLength": 6},
            "b": {"enum": ["x", 10, None]},
            "c": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        },
        "required": ["a", "b"],
        "additionalProperties": False,
    }
)
UNIQUE = schema({"type": "array", "items": {"enum": [1, 2, 10, "a"]}, "uniqueItems": True, "minItems": 2})
# The kinds of constraint; those with a check may end in an error that says so.
SOURCES: Final[dict[str, tuple[ConstraintSource, bool]]] = {
    "schema": (RECORD, False),
    "schema with a check": (UNIQUE, True),
    "number": (schema({"type": "number", "minimum": 3, "maximum": 12, "multipleOf": 0.5}), False),
    "lark": (ConstraintSource("lark", 'start: term ("+" term)*\nterm: /[0-9]{1,3}/ | "(" start ")"'), False),
    "regex": (ConstraintSource("regex", "(abc|b{2,5}l)+[한국]?"), False),
    "choices": (ConstraintSource("choices", choices=("abc", "ab", "ball", "한국")), False),
    "sequence": (
        ConstraintSource(
            "sequence",
            parts=(ConstraintSource("until", "::"), ConstraintSource("regex", "[0-9]{2}"), UNIQUE),
        ),
        True,
    ),
    "any_of": (ConstraintSource("any_of", parts=(RECORD, ConstraintSource("literal", "none"))), False),
}


def sampling_of(rng: random.Random) -> Sampling:
    return Sampling(
        temperature=rng.choice([0.0, 0.5, 1.0, 3.0]),
        top_k=rng.choice([0, 1, 5, 40]),
        top_p=rng.choice([1.0, 0.9, 0.3]),
        min_p=rng.choice([0.0, 0.1, 1.0]),
        repetition_penalty=rng.choice([1.0, 1.3, 0.8]),
        presence_penalty=rng.choice([0.0, 1.5]),
        frequency_penalty=rng.choice([0.0, 0.7]),
        logit_bias=tuple((rng.randrange(260), rng.uniform(-100, 100)) for _ in range(rng.choice([0, 3]))),
        seed=rng.getrandbits(64),
    )


async def write(
    guide: Guide, rng: random.Random, max_tokens: int, min_tokens: int
) -> list[tuple[tuple[int, ...], FinishReason]]:
    worker = FakeWorker()
    sequence = ModelSequence(worker, "s")
    sequence.append(PROMPT)
    limits = Limits(max_tokens, False, 0.0, rng.choice([1, 16]), 200, 2000, min_tokens)
    common: dict[str, Any] = {
        "guide": guide,
        "vocabulary": VOCABULARY,
        "plain_mask": plain_mask(VOCABULARY),
        "sampler": Sampler(sampling_of(rng), PROMPT),
        "limits": limits,
    }
    if rng.random() < 0.3:
        names = iter(range(10_000))
        beam = BeamSettings(rng.randint(1, 4), rng.choice([0.0, 0.7, 2.0]), rng.choice(["estimated", "first", "never"]))
        found = await BeamSearch(
            sequence=sequence,
            fork=lambda parent: parent.fork(f"f{next(names)}"),
            drop=lambda _: None,
            settings=beam,
            **common,
        ).run()
        return [(text.token_ids, text.finish_reason) for text in found]

    async def emit(_: Any) -> None:
        """Let it go."""

    loop = DecodeLoop(sequence=sequence, stops=(), emit=emit, **common)
    reason = await loop.run()
    return [(tuple(loop.account.token_ids), reason)]


@pytest.mark.parametrize("name", SOURCES)
async def test_a_thousand_combinations_end_valid(name: str) -> None:
    source, has_check = SOURCES[name]
    forcings: tuple[Forcing, ...] = ("off", "canonical")
    matchers = [matcher_of_source(source, SourceOptions(), TRIE, forcing=forcing) for forcing in forcings]
    rng, reasons = random.Random(name), Counter[str]()
    for _ in range(1000 // len(SOURCES)):
        guide = Guide(EngineStream(rng.choice(matchers)), Constraint("regex"), CompileOptions())
        needed = (await guide.start()).start.num_needed
        max_tokens = needed + rng.choice([0, 1, 3, 20, 60])
        # Only where something is checked may there be no text, and then an error says so.
        texts: list[tuple[tuple[int, ...], FinishReason]] = []
        with suppress(*([DeadEnd, BudgetTooSmall, UnsatisfiableGrammar] if has_check else [])):
            texts = await write(guide, rng, max_tokens, rng.choice([0, 0, max_tokens]))
        for token_ids, reason in texts:
            text = VOCABULARY.decode(token_ids)
            assert len(token_ids) <= max_tokens
            assert reason != "length"
            assert not validate(source, SourceOptions(), text), text
            reasons[reason] += 1
    assert sum(reasons.values()) > 100


async def test_texts_end_complete_within_any_budget_that_holds_one() -> None:
    """200 schemas in which nothing is checked; below the shortest text a request is refused, from there on all end."""
    rng, num_schemas, reasons = random.Random(5), 0, Counter[str]()
    while num_schemas < 200:
        value = random_schema(rng, depth=2)
        source = ConstraintSource("json_schema", json.dumps(value, ensure_ascii=False))
        built = build(source, SourceOptions())
        if any(report.enforcement == "checked" for report in built.keywords):
            continue
        num_schemas += 1
        matcher = matcher_of_built(built, SourceOptions(), TRIE, CLASSES, rng.choice(("off", "canonical")))
        guide = Guide(EngineStream(matcher), Constraint("json_schema"), CompileOptions())
        needed = (await guide.start()).start.num_needed
        if needed > 1:
            with pytest.raises(BudgetTooSmall):
                await write(guide.fork(), rng, needed - 1, 0)
        for max_tokens in (needed, needed + 1, needed + 2, needed + rng.randint(3, 30)):
            for token_ids, reason in await write(guide.fork(), rng, max_tokens, 0):
                text = VOCABULARY.decode(token_ids)
                assert len(token_ids) <= max_tokens
                assert not validate(source, SourceOptions(), text), (value, text)
                reasons[reason] += 1
    assert set(reasons) == {"stop", "budget_closed"}
