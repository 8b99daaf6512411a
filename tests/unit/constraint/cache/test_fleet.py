"""One compile for all replicas, refusals that are remembered, and what happens when the store or a replica fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from services.constraint import metrics
from services.constraint.cache import EntryName, FleetCache, NoStore, RedisOptions, RedisStore, Store
from services.rpckit.status import GrammarTooLarge, ServiceError, UnsupportedConstruct
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("f"))
    yield server
    server.kill()


class Replica:
    """A cache of texts, on a connection of its own."""

    def __init__(self, store: Store, **changes: Any) -> None:
        values: dict[str, Any] = {"limits": "l", "lock_s": 0.5, "max_lock_wait_s": 5, "refusal_ttl_s": 5}
        self.store = store
        self.num_made = 0
        self.cache = FleetCache(store, encode=str.encode, **(values | changes))

    async def find(self, digest: str, *, seconds: float = 0.1, error: Exception | None = None) -> tuple[str, bool]:
        async def make() -> str:
            self.num_made += 1
            await asyncio.sleep(seconds)
            if error is not None:
                raise error
            return f"made {digest}"

        return await self.cache.find_or_make(digest, decode=self._decode, make=make)

    @staticmethod
    async def _decode(payload: bytes) -> str:
        if not payload.startswith(b"made"):
            raise ValueError("not made here")
        return payload.decode()


@contextlib.asynccontextmanager
async def replicas(url: str, number: int = 2, **changes: Any) -> AsyncIterator[list[Replica]]:
    stores = [RedisStore(RedisOptions(url, timeout_s=1.0)) for _ in range(number)]
    made = []
    for store in stores:
        await store.start()
        made.append(Replica(store, **changes))
    yield made
    for replica in made:
        await replica.cache.close()
        await replica.store.close()


async def test_many_first_requests_to_several_replicas_are_one_compile(server: RedisServer) -> None:
    async with replicas(server.url, 4) as fleet:
        before = metrics.LOCK_WAITS.labels("found")._value.get()
        found = await asyncio.gather(*(replica.find("a") for replica in fleet for _ in range(10)))
        assert {text for text, _ in found} == {"made a"}
        assert sum(replica.num_made for replica in fleet) == 1
        assert sum(not is_found for _, is_found in found) == 1
        assert metrics.LOCK_WAITS.labels("found")._value.get() > before


async def test_a_compile_that_takes_longer_than_the_lock_lives_keeps_it(server: RedisServer) -> None:
    async with replicas(server.url, lock_s=0.3) as fleet:
        await asyncio.gather(*(replica.find("long", seconds=1.0) for replica in fleet))
        assert sum(replica.num_made for replica in fleet) == 1


async def test_a_replica_that_dies_with_the_lock_holds_others_up_until_it_expires(server: RedisServer) -> None:
    async with replicas(server.url) as (dead, other):
        assert await dead.store.try_lock("orphan", expiry_s=0.3) is not None
        async with asyncio.timeout(3):
            assert await other.find("orphan") == ("made orphan", False)


async def test_who_has_waited_for_too_long_compiles(server: RedisServer) -> None:
    async with replicas(server.url, max_lock_wait_s=0.2) as (slow, other):
        assert await slow.store.try_lock("slow", expiry_s=30) is not None
        async with asyncio.timeout(3):
            assert await other.find("slow") == ("made slow", False)


async def test_refusals_are_shared_under_the_same_limits(server: RedisServer) -> None:
    error = UnsupportedConstruct("no `x` here", field="f", name="x", pointer="/x")
    async with replicas(server.url, 3) as (first, second, third):
        third.cache._limits = "larger ones"
        for replica in (first, first, second):
            with pytest.raises(UnsupportedConstruct) as caught:
                await replica.find("refused", error=error)
            assert (caught.value.message, caught.value.field) == (error.message, "f")
            assert caught.value.metadata == {"name": "x", "pointer": "/x"}
            await asyncio.gather(*replica.cache._background)
        assert (first.num_made, second.num_made) == (1, 0)
        assert await third.find("refused") == ("made refused", False)


async def test_a_failure_that_is_not_the_sources_is_not_remembered(server: RedisServer) -> None:
    async with replicas(server.url, 1) as (only,):
        with pytest.raises(ServiceError):
            await only.find("bug", error=ServiceError("a bug"))
        assert await only.find("bug") == ("made bug", False)


async def test_refusals_are_forgotten_in_time_and_without_a_store_too() -> None:
    only = Replica(NoStore(), refusal_ttl_s=0.2)
    for _ in range(3):
        with pytest.raises(GrammarTooLarge):
            await only.find("large", error=GrammarTooLarge("too large"))
    assert only.num_made == 1
    await asyncio.sleep(0.25)
    assert await only.find("large") == ("made large", False)


async def test_an_entry_that_cannot_be_decoded_is_dropped_and_made_anew(server: RedisServer) -> None:
    async with replicas(server.url, 1) as (only,):
        await only.store.put(EntryName("grammar", "odd"), b"something else")
        assert await only.find("odd") == ("made odd", False)
        await asyncio.gather(*only.cache._background)
        assert await only.find("odd") == ("made odd", True)


async def test_a_cancelled_compile_lets_go_of_its_lock(server: RedisServer) -> None:
    async with replicas(server.url) as (first, second):
        running = asyncio.create_task(first.find("gone", seconds=30))
        await asyncio.sleep(0.1)
        running.cancel()
        async with asyncio.timeout(0.4):
            assert await second.find("gone", seconds=0) == ("made gone", False)
