"""The Redis store against a real server: working, absent, dead, slow, full, read-only, closed, full of rubbish."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.constraint import metrics
from services.constraint.cache import EntryName, NoStore, RedisOptions, RedisStore, seal
from services.constraint.cache.entry import FORMAT_VERSION
from tests.support.redis_server import RedisServer

A, B = EntryName("grammar", "a"), EntryName("grammar", "b")
TIMEOUT_S = 0.5  # of a loaded machine; what is measured below has its own


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("r"))
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _empty(server: RedisServer) -> None:
    server.client.flushall()
    server.client.config_set("maxmemory", 0)


@contextlib.asynccontextmanager
async def running(url: str, **options: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(RedisOptions(url, **({"timeout_s": TIMEOUT_S, "ttl_s": 60} | options)))
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[RedisStore]:
    async with running(server.url) as store:
        yield store


async def _until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def _failures(operation: str) -> float:
    return metrics.STORE_FAILURES.labels(operation)._value.get()


def _key(name: EntryName, prefix: str = "espalier") -> str:
    return f"{prefix}:{FORMAT_VERSION}:{name}"


async def test_what_is_put_is_found_for_its_time(store: RedisStore, server: RedisServer) -> None:
    assert await store.get(A) == [None]
    assert await store.put(A, b"payload")
    assert await store.get(B, A) == [None, b"payload"]
    assert 53_000 < server.client.pttl(_key(A)) <= 66_000
    await store.put(B, b"brief", ttl_s=1)
    assert 0 < server.client.pttl(_key(B)) <= 1100
    await store.discard(A, "no good")
    assert await store.get(A) == [None]


async def test_lifetimes_differ(store: RedisStore, server: RedisServer) -> None:
    for number in range(20):
        await store.put(EntryName("grammar", str(number)), b"x")
    lifetimes = [server.client.pttl(_key(EntryName("grammar", str(number)))) for number in range(20)]
    assert max(lifetimes) - min(lifetimes) > 2000


async def test_a_value_that_is_too_large_is_not_kept(server: RedisServer) -> None:
    async with running(server.url, max_value_bytes=60) as store:
        assert not await store.put(A, bytes(range(256)))
        assert await store.get(A) == [None]
        assert store.can_write


async def test_a_large_value_comes_back(store: RedisStore) -> None:
    payload = bytes(1 << 20) + b"end"
    assert await store.put(A, payload)
    assert await store.get(A) == [payload]


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"x" * 200,
        seal(str(A), b"payload", key=None)[:-1],
        seal(str(B), b"payload", key=None),
        seal(str(A), b"payload", key=b"k" * 16),
    ],
)
async def test_rubbish_is_a_miss_dropped_and_counted(store: RedisStore, server: RedisServer, rubbish: bytes) -> None:
    before = _failures("decode")
    server.client.set(_key(A), rubbish)
    assert await store.get(A) == [None]
    assert server.client.get(_key(A)) is None
    assert _failures("decode") == before + 1
    assert store.can_read
    assert store.can_write


async def test_a_key_of_another_type_is_a_miss(store: RedisStore, server: RedisServer) -> None:
    server.client.rpush(_key(A), "x")
    assert await store.get(A) == [None]
    assert await store.put(A, b"payload")
    assert await store.get(A) == [b"payload"]


async def test_prefixes_do_not_meet(store: RedisStore, server: RedisServer) -> None:
    async with running(server.url, prefix="other") as other:
        await other.put(A, b"theirs")
        assert await store.get(A) == [None]
        assert server.client.get(_key(A, "other")) is not None


async def test_a_lock_is_held_by_one_and_expires(store: RedisStore, server: RedisServer) -> None:
    async with running(server.url) as other:
        lock = await store.try_lock("a", expiry_s=0.3)
        assert lock is not None
        assert await other.try_lock("a", expiry_s=0.3) is None
        await store.renew(lock)
        await store.unlock(lock)
        mine = await other.try_lock("a", expiry_s=0.05)
        assert mine is not None
        await asyncio.sleep(0.1)
        theirs = await store.try_lock("a", expiry_s=10)
        assert theirs is not None
        await other.renew(mine)  # whose time has passed
        await other.unlock(mine)
        assert server.client.exists(f"espalier:{FORMAT_VERSION}:lock:a")
        assert other.can_write


async def test_an_absent_server_is_a_miss_at_once(tmp_path: Path) -> None:
    async with running(f"unix://{tmp_path}/nothing.sock") as store:
        assert not store.can_read
        assert not store.can_write
        started = time.monotonic()
        for _ in range(100):
            assert not await store.put(A, b"x")
            assert await store.get(A) == [None]
            await store.discard(A, "test")
            assert await store.try_lock("a", expiry_s=1) is None
        assert time.monotonic() - started < 0.5
        assert metrics.CACHE_AVAILABLE.labels("read")._value.get() == 0


async def test_a_server_that_never_answers_costs_one_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        async with running(f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.05) as store:
            assert time.monotonic() - started < 1
            started = time.monotonic()
            for _ in range(50):
                assert await store.get(A) == [None]
            assert time.monotonic() - started < 0.2


async def test_a_server_that_hangs_costs_those_that_ask_then_one_time_out(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    async with running(server.url, timeout_s=0.05) as store:
        await _until(lambda: store.can_read and store.can_write)
        server.stop_answering()
        started = time.monotonic()
        await asyncio.gather(*(store.get(A) for _ in range(400)))
        assert time.monotonic() - started < 10  # one after the other they would take 20 s
        assert not store.can_read
        server.go_on()
        await _until(lambda: store.can_read and store.can_write)
        assert await store.put(A, b"payload")
    server.kill()


async def test_a_server_that_dies_and_comes_back_is_found_again(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    async with running(server.url) as store:
        await store.put(A, b"payload")
        server.kill()
        states = store.states()
        assert await anext(states)
        assert await store.get(A) == [None]
        assert not store.can_read
        assert not await asyncio.wait_for(anext(states), 1)
        server.start()
        await _until(lambda: store.can_read and store.can_write)
        assert metrics.CACHE_AVAILABLE.labels("read")._value.get() == 1
        await store.put(A, b"payload")
        server.kill()
        server.start()
        # Nobody asked in between: connections that the old one closed are tried once more.
        assert await store.get(A) == [None]
        assert await store.put(A, b"payload")
        assert await store.get(A) == [b"payload"]
    server.kill()


async def test_a_full_server_is_read_and_written_to_again_when_there_is_room(
    store: RedisStore, server: RedisServer
) -> None:
    await store.put(A, b"payload")
    server.client.config_set("maxmemory", 1)
    assert not await store.put(B, b"payload")
    assert not store.can_write
    assert await store.try_lock("a", expiry_s=1) is None
    assert await store.get(A) == [b"payload"]
    server.client.config_set("maxmemory", 0)
    await _until(lambda: store.can_write)
    assert await store.put(B, b"payload")


async def test_a_replica_that_takes_no_writes_is_read(tmp_path: Path, server: RedisServer) -> None:
    replica = RedisServer(tmp_path, "--replicaof", "127.0.0.1", "1", "--replica-serve-stale-data", "yes")
    async with running(replica.url) as store:
        assert store.can_read
        assert not store.can_write
        assert await store.get(A) == [None]
        replica.client.execute_command("REPLICAOF", "NO", "ONE")
        await _until(lambda: store.can_write)
    replica.kill()


async def test_a_wrong_password_is_an_outage_and_an_acl_user_needs_little(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    rights = ("~espalier:*", "+get", "+mget", "+set", "+del", "+pexpire", "+pttl", "+evalsha", "+eval", "+script|load")
    server.client.execute_command("ACL", "SETUSER", "cache", "on", ">secret", *rights)
    server.client.execute_command("ACL", "SETUSER", "default", "off")
    async with running(server.url, username="cache", password="wrong") as store:
        assert not store.can_read
        assert await store.get(A) == [None]
    async with running(server.url, username="cache", password="secret") as store:
        assert await store.put(A, b"payload")
        assert await store.get(A) == [b"payload"]
        lock = await store.try_lock("a", expiry_s=1)
        assert lock is not None
        await store.renew(lock)
        await store.unlock(lock)
        await store.discard(A, "test")
        assert store.can_write
    server.kill()


async def test_tls_with_both_sides_certificates(tmp_path: Path, server: RedisServer) -> None:
    _certificates(tmp_path)
    names = {"ca": "ca.crt", "cert": "server.crt", "key": "server.key"}
    files = {f"{name}_file": str(tmp_path / file) for name, file in names.items()}
    async with _tls_in_front(server, files) as port:
        async with running(f"rediss://127.0.0.1:{port}", **files) as store:
            assert await store.put(A, b"payload")
            assert await store.get(A) == [b"payload"]
        async with running(f"rediss://127.0.0.1:{port}", ca_file=files["ca_file"]) as store:
            assert not store.can_read  # without a certificate of its own
        async with running(f"rediss://127.0.0.1:{port}") as store:
            assert not store.can_read  # nothing says that this server is to be trusted


@contextlib.asynccontextmanager
async def _tls_in_front(server: RedisServer, files: dict[str, str]) -> AsyncIterator[int]:
    """Speak TLS in front of a server, which may have been built without it."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_unix_connection(server.socket)
        await asyncio.gather(pass_on(reader, behind_writer), pass_on(behind_reader, writer))

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files["ca_file"])
    context.load_cert_chain(files["cert_file"], files["key_file"])
    context.verify_mode = ssl.CERT_REQUIRED
    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield listening.sockets[0].getsockname()[1]
    listening.close()


def _certificates(directory: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=s")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1")
    signing = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
    openssl("x509", "-req", "-in", "server.csr", *signing, "-out", "server.crt", "-days", "2")


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [("no url", {}, "scheme"), ("redis://x", {"ca_file": "ca.pem"}, "rediss://")],
)
def test_what_is_no_url_or_does_not_go_with_it(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RedisStore(RedisOptions(url, **options))


async def test_no_store_keeps_nothing() -> None:
    store = NoStore()
    await store.start()
    assert not await store.put(A, b"payload")
    assert await store.get(A) == [None]
    assert await store.try_lock("a", expiry_s=1) is None
