"""Whose turn it is, and replicas that come and go: real health servers behind a resolver of the test's own."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from gateway.clients.peer import Peer
from gateway.clients.replicas import Replicas, least_loaded
from services.rpckit.options import SERVER_OPTIONS
from services.rpckit.status import NotReady

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class Standing:
    num_open: int = 0
    num_picked: int = 0
    is_serving: bool = True
    is_connected: bool = True


standings = st.lists(st.builds(Standing, st.integers(0, 5), st.integers(0, 5), st.booleans(), st.booleans()))


@given(standings)
def test_one_that_serves_is_taken_where_there_is_one(replicas: list[Standing]) -> None:
    best = least_loaded(replicas)
    if best is None:
        assert not any(replica.is_serving for replica in replicas)
        return
    assert best.is_serving
    alike = [one for one in replicas if one.is_serving and one.is_connected == best.is_connected]
    assert best.num_open == min(one.num_open for one in alike)
    assert best.is_connected or not any(one.is_serving and one.is_connected for one in replicas)


@given(st.integers(1, 7), st.lists(st.integers(0, 3), max_size=60))
def test_equal_requests_are_spread_within_one(num_replicas: int, lengths: list[int]) -> None:
    """All last the same number of turns, whatever else goes on."""
    replicas = [Standing() for _ in range(num_replicas)]
    duration = max(lengths, default=0)
    running: list[Standing] = []
    for _ in lengths:
        best = least_loaded(replicas)
        assert best is not None
        best.num_open += 1
        best.num_picked += 1
        running.append(best)
        if len(running) > duration:
            running.pop(0).num_open -= 1
        picked = [replica.num_picked for replica in replicas]
        assert max(picked) - min(picked) <= 1


class Client:
    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    async def close(self) -> None:
        await self.peer.close()


@dataclass
class Hosts:
    """Servers on loopback addresses with one port, and the name that stands for them."""

    port: int = 0
    addresses: list[str] = field(default_factory=list)
    servers: dict[str, tuple[grpc.aio.Server, health.aio.HealthServicer]] = field(default_factory=dict)

    async def lookup(self, host: str, port: int) -> list[str]:
        assert host == "workers"
        if not self.addresses:
            raise OSError(-2, "not known")
        return self.addresses

    async def start(self, ip: str) -> None:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        self.port = server.add_insecure_port(f"{ip}:{self.port}")
        await server.start()
        self.servers[ip] = server, servicer

    async def kill(self, ip: str) -> None:
        await self.servers.pop(ip)[0].stop(0)

    async def set_health(self, ip: str, status: Any) -> None:
        await self.servers[ip][1].set("", status)


@asynccontextmanager
async def _replicas(*ips: str) -> AsyncIterator[tuple[Hosts, Replicas[Client]]]:
    hosts = Hosts(addresses=list(ips))
    for ip in ips:
        await hosts.start(ip)
    replicas = Replicas("worker", f"workers:{hosts.port}", Client, resolve_interval_s=0.1, lookup=hosts.lookup)
    try:
        yield hosts, replicas
    finally:
        await replicas.close()
        for ip in list(hosts.servers):
            await hosts.kill(ip)


async def _picked(replicas: Replicas[Client], num: int = 10) -> Counter[str]:
    picked: Counter[str] = Counter()
    for _ in range(num):
        replica = await replicas.pick(5)
        with replica.request():
            picked[replica.address.partition(":")[0]] += 1
    return picked


async def _until(replicas: Replicas[Client], is_so: Callable[[Counter[str]], bool]) -> Counter[str]:
    async with asyncio.timeout(10):
        while not is_so(picked := await _picked(replicas)):
            await asyncio.sleep(0.05)
    return picked


async def test_all_addresses_of_a_name_get_their_share() -> None:
    async with _replicas("127.0.0.1", "127.0.0.2", "127.0.0.3") as (_, replicas):
        await _until(replicas, lambda picked: len(picked) == 3)
        await _picked(replicas, 30)  # those that answered later have caught up
        picked = await _picked(replicas, 30)
    # One apart in all that were picked is two apart at most among the latest.
    assert max(picked.values()) - min(picked.values()) <= 2


async def test_one_that_fails_is_taken_out_and_put_back_when_it_is_well() -> None:
    async with _replicas("127.0.0.1", "127.0.0.2") as (hosts, replicas):
        await _until(replicas, lambda picked: len(picked) == 2)
        await hosts.set_health("127.0.0.2", NOT_SERVING)
        failed = await replicas.pick(5, avoid={f"127.0.0.1:{hosts.port}"})
        replicas.suspect(failed, NotReady("drains"))
        await asyncio.sleep(0.5)
        assert await _picked(replicas) == {"127.0.0.1": 10}
        assert not replicas.has_other({f"127.0.0.1:{hosts.port}"})
        await hosts.set_health("127.0.0.2", SERVING)
        await _until(replicas, lambda picked: picked["127.0.0.2"] == 5)


async def test_one_that_died_is_not_picked_while_another_lives() -> None:
    async with _replicas("127.0.0.1", "127.0.0.2") as (hosts, replicas):
        await _until(replicas, lambda picked: len(picked) == 2)
        await hosts.kill("127.0.0.1")
        await _until(replicas, lambda picked: picked == {"127.0.0.2": 10})
        await hosts.start("127.0.0.1")
        await _until(replicas, lambda picked: len(picked) == 2)


async def test_a_name_is_resolved_again() -> None:
    async with _replicas("127.0.0.1") as (hosts, replicas):
        assert await _picked(replicas) == {"127.0.0.1": 10}
        await hosts.start("127.0.0.2")
        hosts.addresses = ["127.0.0.2"]
        await _until(replicas, lambda picked: picked == {"127.0.0.2": 10})
        hosts.addresses = []  # the resolver is away: what is known stays
        await asyncio.sleep(0.3)
        assert await _picked(replicas) == {"127.0.0.2": 10}


async def test_where_none_serves_the_error_says_why() -> None:
    async with _replicas("127.0.0.1") as (hosts, replicas):
        await hosts.set_health("127.0.0.1", NOT_SERVING)
        with pytest.raises(NotReady, match="loads or drains"):
            await replicas.pick(0.5)
        unknown = Replicas("worker", "workers:1", Client, resolve_interval_s=1, lookup=Hosts().lookup)
        with pytest.raises(NotReady, match="cannot be resolved"):
            await unknown.pick(0.2)
        await unknown.close()
