"""The Redis store against a real server: working, absent, dead, slow, full of rubbish."""

import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from services.constraint.cache import NoStore, RedisStore
from services.constraint.sources import KeywordReport
from services.constraint.stored_grammar import FORMAT_VERSION, StoredGrammar
from tests.support.redis_server import RedisServer

GRAMMAR = StoredGrammar(b"\x00compiled\xff", (KeywordReport("/properties/이름/type", "type", "masked", "note"),))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("r")


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[RedisServer]:
    server = RedisServer(directory)
    yield server
    server.kill()


def _store(url: str, max_value_bytes: int = 1 << 20) -> RedisStore:
    return RedisStore(url, timeout_s=0.3, ttl_s=60, max_value_bytes=max_value_bytes)


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[RedisStore]:
    store = _store(server.url)
    yield store
    await store.close()


async def test_what_is_put_is_found(store: RedisStore, server: RedisServer) -> None:
    assert await store.get("a") is None
    await store.put("a", GRAMMAR)
    assert await store.get("a") == GRAMMAR
    assert 0 < redis.Redis.from_url(server.url).ttl(f"espalier:{FORMAT_VERSION}:a") <= 60
    await store.discard("a")
    assert await store.get("a") is None


async def test_a_value_that_is_too_large_is_not_kept(server: RedisServer) -> None:
    store = _store(server.url, max_value_bytes=10)
    await store.put("large", GRAMMAR)
    assert await store.get("large") is None
    await store.close()


@pytest.mark.parametrize(
    "rubbish",
    [b"", b"x" * 200, GRAMMAR.to_bytes()[:-1], GRAMMAR.to_bytes()[:60] + b"y" + GRAMMAR.to_bytes()[61:]],
)
async def test_rubbish_is_a_miss_and_is_dropped(store: RedisStore, server: RedisServer, rubbish: bytes) -> None:
    client = redis.Redis.from_url(server.url)
    client.set(f"espalier:{FORMAT_VERSION}:bad", rubbish)
    assert await store.get("bad") is None
    assert client.get(f"espalier:{FORMAT_VERSION}:bad") is None


async def test_a_key_of_another_type_is_a_miss(store: RedisStore, server: RedisServer) -> None:
    redis.Redis.from_url(server.url).rpush(f"espalier:{FORMAT_VERSION}:list", "x")
    assert await store.get("list") is None


async def test_an_absent_server_is_a_miss(tmp_path: Path) -> None:
    store = _store(f"unix://{tmp_path}/nothing.sock")
    await store.put("a", GRAMMAR)
    assert await store.get("a") is None
    await store.discard("a")
    await store.close()


async def test_a_slow_server_costs_one_time_out_and_then_a_pause() -> None:
    # Accepts connections and never answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = _store(f"redis://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        assert await store.get("a") is None
        first = time.monotonic() - started
        for _ in range(20):
            assert await store.get("a") is None
        assert first < 2
        assert time.monotonic() - started - first < 0.2
        await store.close()


async def test_a_server_that_dies_and_comes_back(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    store = _store(server.url)
    await store.put("a", GRAMMAR)
    server.kill()
    assert await store.get("a") is None
    server.start()
    store._paused_until = 0.0
    await store.put("a", GRAMMAR)
    assert await store.get("a") == GRAMMAR
    server.kill()
    await store.close()


def test_not_a_url() -> None:
    with pytest.raises(ValueError, match="scheme"):
        _store("no url")


async def test_no_store_keeps_nothing() -> None:
    store = NoStore()
    await store.put("a", GRAMMAR)
    assert await store.get("a") is None
