"""What a stored grammar says of itself: the first answer of a replica that finds it, before it reads the tables."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.constraint.cache import seal, unseal
from services.constraint.cache.entry import FORMAT_VERSION
from services.constraint.compiler import Found
from services.constraint.service import ConstraintService, Move, Moved
from services.constraint.settings import ConstraintSettings
from services.constraint.sources import ConstraintSource, SourceOptions
from services.constraint.stored_grammar import StoredGrammar
from services.rpckit.status import LeaseExpired
from services.vocabulary import Vocabulary, bitmask_of, count_tokens
from tests.support.grammars import vocabulary
from tests.support.redis_server import RedisServer

VOCABULARY = vocabulary((("a", "b"), ("1", "2")))
SCHEMAS = [
    {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]},
    {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 2},  # has a check
    {"enum": ["a", "ab", 12]},
]


@pytest.fixture
def server(tmp_path: Path) -> Any:
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@asynccontextmanager
async def replica(server: RedisServer) -> AsyncIterator[ConstraintService]:
    async def fetch(_: str | None) -> Vocabulary:
        return VOCABULARY

    settings = ConstraintSettings(
        redis_url=server.url, redis_timeout_s=2, num_compile_processes=1, num_validate_processes=1, num_mask_threads=2
    )
    service = ConstraintService(settings, fetch)
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def compiled(service: ConstraintService, schema: object) -> tuple[Found, Moved]:
    source = ConstraintSource("json_schema", json.dumps(schema))
    return await service.compile(source, SourceOptions(), "canonical", VOCABULARY.digest)


async def behind(service: ConstraintService, found: Found, moved: Moved) -> Moved | Exception:
    """Take the shortest text's first token, if any, behind the first answer."""
    token_id = moved.guidance.witness_token_id
    assert token_id is not None
    (result,) = await service.advance([Move(found.grammar_id, [token_id], moved.epoch, moved.guidance.after_forced)])
    return result


def entry(grammar_id: str) -> str:
    return f"espalier:{FORMAT_VERSION}:grammar:{grammar_id}"


async def stored(server: RedisServer, found: Found) -> StoredGrammar:
    while not (value := server.client.get(entry(found.grammar_id))):
        await asyncio.sleep(0.01)
    return StoredGrammar.from_bytes(unseal(f"grammar:{found.grammar_id}", value, key=None))


def change(server: RedisServer, grammar_id: str, grammar: StoredGrammar, **changes: Any) -> None:
    """Put the grammar with another opening in its place, as anybody can who may write and where there is no key."""
    assert grammar.opening is not None
    opening = replace(grammar.opening, guidance=replace(grammar.opening.guidance, **changes))
    payload = replace(grammar, opening=opening).to_bytes()
    server.client.set(entry(grammar_id), seal(f"grammar:{grammar_id}", payload, key=None))


async def test_what_is_told_early_is_what_the_tables_say(server: RedisServer) -> None:
    expected = {}
    async with replica(server) as first:
        for number, schema in enumerate(SCHEMAS):
            found, moved = await compiled(first, schema)
            expected[number] = (found, moved, await behind(first, found, moved))
            await stored(server, found)
    async with replica(server) as second:
        for number, schema in enumerate(SCHEMAS):
            then, then_moved, then_behind = expected[number]
            found, moved = await compiled(second, schema)
            assert (then.level, found.level, found.mask_seconds) == ("compiled", "redis", 0)  # no table was read
            assert replace(found, level="", epoch=0, start=None) == replace(
                then, level="", epoch=0, start=None, mask_seconds=0
            )
            assert_same(moved, then_moved)
            assert_same(await behind(second, found, moved), then_behind)
            again, moved_again = await compiled(second, schema)
            assert again.level == "memory"
            assert_same(moved_again, moved)


def assert_same(one: Moved | Exception, other: Moved | Exception) -> None:
    assert isinstance(one, Moved)
    assert isinstance(other, Moved)
    assert replace(one.guidance, bitmask=None) == replace(other.guidance, bitmask=None)
    assert one.guidance.bitmask.tobytes() == other.guidance.bitmask.tobytes()


async def test_an_opening_that_is_not_the_grammars_is_found_out_before_a_token_is_taken(server: RedisServer) -> None:
    async with replica(server) as first:
        expected, expected_moved = await compiled(first, SCHEMAS[2])
        mask = bitmask_of([VOCABULARY.encode("a")[0]], VOCABULARY.vocab_size)
        change(server, expected.grammar_id, await stored(server, expected), bitmask=mask, num_allowed=1)
    async with replica(server) as second:
        found, moved = await compiled(second, SCHEMAS[2])
        assert count_tokens(moved.guidance.bitmask) == 1
        assert isinstance(await behind(second, found, moved), LeaseExpired)
        again, moved_again = await compiled(second, SCHEMAS[2])
        assert_same(moved_again, expected_moved)
        assert isinstance(await behind(second, again, moved_again), Moved)


async def test_an_opening_that_contradicts_itself_is_a_miss(server: RedisServer) -> None:
    wild: list[dict[str, Any]] = [
        {"bitmask": np.zeros(1, np.int32)},
        {"forced_token_ids": (10**6,)},
        {"num_allowed": 10**6},
    ]
    async with replica(server) as first:
        for changes, schema in zip(wild, SCHEMAS, strict=True):
            found, _ = await compiled(first, schema)
            change(server, found.grammar_id, await stored(server, found), **changes)
    async with replica(server) as second:
        for schema in SCHEMAS:
            found, moved = await compiled(second, schema)
            assert found.level == "compiled"
            assert isinstance(await behind(second, found, moved), Moved)
