"""Replicas as processes of their own, beside a real Redis-compatible server: short forms of `make bench-cache`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from espalier.v1 import constraint_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.cli import cache as command
from gateway.cli.client import GatewayClient
from gateway.cli.errors import CommandError
from services.constraint.cache.entry import FORMAT_VERSION
from services.constraint.checking import Case, CaseTest
from services.constraint.sources import ConstraintSource
from tests.bench.cache import Fleet, Replica, faults, fleet, mutations, one_compile
from tests.support.grammars import vocabulary

pytestmark = pytest.mark.slow

SCHEMAS = [
    json.dumps({"type": "object", "properties": {name: {"type": kind}}, "required": [name], "$comment": name})
    for name, kind in (("a", "string"), ("b", "integer"), ("c", "boolean"), ("이름", "number"))
]


@pytest.fixture(scope="module")
def made() -> Iterator[Fleet]:
    with fleet(vocabulary()) as made:
        yield made


@pytest.fixture(scope="module")
def replicas(made: Fleet) -> list[Replica]:
    return made.start("a", "b", flags=["--redis-timeout-s", "0.5"])


@pytest.fixture(autouse=True)
def _environment(made: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_REDIS_URL", made.redis.url)
    monkeypatch.setenv("COLUMNS", "200")


def _until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_many_first_requests_are_one_compile_and_later_ones_none(replicas: list[Replica]) -> None:
    assert one_compile(replicas, SCHEMAS[:2], num_requests=100) == [1, 1]
    first, second = replicas
    assert first.compile('{"const": "known"}').cache_level == pb.CACHE_LEVEL_COMPILED
    compiles = second.lookups("compiled")
    _until(lambda: first.metrics()['espalier_constraint_cache_bytes_total{direction="written"}'])
    time.sleep(0.2)
    assert second.compile('{"const": "known"}').cache_level == pb.CACHE_LEVEL_REDIS
    assert second.lookups("compiled") == compiles


def test_warm_masks_travel(made: Fleet, replicas: list[Replica]) -> None:
    first, second = replicas
    schema = json.dumps({"type": "array", "items": {"enum": [f"word {i}" for i in range(30)]}, "maxItems": 5})
    tokens = made.vocabulary.encode('["word 1", "word 22", "word 7"]')
    compiled = first.compile(schema)
    assert len(first.write(compiled, tokens)) == len(tokens)
    _until(lambda: first.metrics()['espalier_constraint_warm_masks_total{direction="given"}'] > 0)
    time.sleep(0.5)
    taken = 'espalier_constraint_warm_masks_total{direction="taken"}'
    before = second.metrics()[taken]
    assert second.compile(schema).cache_level == pb.CACHE_LEVEL_REDIS
    _until(lambda: second.metrics()[taken] > before)
    assert len(second.write(second.compile(schema), tokens)) == len(tokens)


def test_faults_under_load(made: Fleet, replicas: list[Replica]) -> None:
    for name, row in faults(made, replicas, SCHEMAS, stop_s=1.0, second_s=0.3).items():
        assert (row["failed"], row["wrong"]) == (0, 0), (name, row)
        assert row["requests"] > 0, name


def test_mutated_entries(made: Fleet) -> None:
    cases = [
        Case(schema, ConstraintSource("json_schema", schema), tests=(CaseTest(True, '{"a": "x"}'),))
        for schema in SCHEMAS
    ]
    for name, counts in mutations(vocabulary(), cases, made.redis, 150).items():
        assert {key for key in counts if key.startswith(("failed", "wrong")) and counts[key]} == set(), (name, counts)
        assert counts["entries"] == 300


def test_health_says_whether_the_cache_is_there(made: Fleet, replicas: list[Replica]) -> None:
    with grpc.insecure_channel(made.stack.processes["a"].address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def is_serving(service: str) -> bool:
            return bool(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status == 1)

        name = "espalier.v1.ConstraintService"
        _until(lambda: is_serving(f"{name}/cache"))
        made.redis.kill()
        replicas[0].compile('{"const": "asked while it is away"}')
        _until(lambda: not is_serving(f"{name}/cache"))
        assert is_serving(name)
        made.redis.start()
        _until(lambda: is_serving(f"{name}/cache"))


def test_the_command(
    made: Fleet,
    replicas: list[Replica],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command.clear(None, is_stale_only=False)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "one.json").write_text('{"enum": ["for the command"]}')
    (tmp_path / "two.regex").write_text("[a-f]{3}")
    (tmp_path / "bad.json").write_text('{"type": 7}')
    (tmp_path / "other.txt").write_text("not looked at")
    digest = made.vocabulary.digest
    monkeypatch.setattr(GatewayClient, "model_info", lambda _: SimpleNamespace(vocabulary_digest=digest))
    address = made.stack.processes["a"].address
    with pytest.raises(CommandError, match="1 of 3 files"):
        command.warm(tmp_path, {}, constraint_address=address, gateway_address="unix:none", timeout_s=30)
    shown = capsys.readouterr().out
    assert "one.json: compiled" in shown
    assert "bad.json: refused" in shown
    _until(lambda: len(made.redis.client.keys("*:grammar:*")) == 2)
    command.list_entries(None)
    shown = capsys.readouterr().out
    assert "2 grammar" in shown
    assert "regex" in shown
    made.redis.client.set("espalier:1:grammar:old", "x")
    key = next(iter(made.redis.client.scan_iter(f"espalier:{FORMAT_VERSION}:grammar:*"))).decode()
    command.inspect(None, key.rpartition(":")[2][:12])
    assert "shortest text" in capsys.readouterr().out
    made.redis.client.set(key, b"damaged")
    command.list_entries(None)
    assert "unreadable" in capsys.readouterr().out
    with pytest.raises(CommandError, match="cannot be read"):
        command.inspect(None, key.rpartition(":")[2])
    with pytest.raises(CommandError, match="0 cached"):
        command.inspect(None, "no such")
    command.clear(None, is_stale_only=True)
    assert made.redis.client.get("espalier:1:grammar:old") is None
    command.clear(None, is_stale_only=False)
    assert not made.redis.client.keys("espalier:*")
    monkeypatch.setenv("ESPALIER_REDIS_URL", f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(CommandError, match="does not answer"):
        command.list_entries(None)
