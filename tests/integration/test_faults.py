"""Each of the four processes is killed during a request: a clear error in time, the rest serves, the next one works."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from espalier.v1 import gateway_pb2, types_pb2

from services.rpckit.rich_status import from_rpc_error
from services.rpckit.status import ServiceError
from tests.support.up import Up, gateway_stub, generation

DEADLINE_S = 30
CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500)]
SCHEMA = {"enum": ["one 하나", "two 둘"]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("f"))
    yield up.wait_until_ready()
    assert up.stop() == 0


@pytest.fixture
def up(shared: Up) -> Up:
    """All of it running again, whatever the test before did to it."""
    for name in ("worker", "constraint", "gateway"):
        shared.wait_until_serving(name)
    return shared


@contextlib.contextmanager
def _gateway(up: Up) -> Iterator[Any]:
    with grpc.insecure_channel(up.addresses["gateway"], options=CHANNEL_OPTIONS) as channel:
        yield gateway_stub(channel)


def _slow_request() -> Any:
    """A guided text of many steps: both other services are asked for each of its tokens."""
    request = generation(max_tokens=900)
    request.constraint.CopyFrom(types_pb2.Constraint(regex="[a-z]{800}"))
    return gateway_pb2.GenerateStreamRequest(generation=request)


def _works(up: Up) -> None:
    request = gateway_pb2.GenerateRequest(generation=generation(SCHEMA))
    with _gateway(up) as stub:
        answer = stub.Generate(request, timeout=DEADLINE_S, wait_for_ready=True)
    assert json.loads(answer.text) in SCHEMA["enum"]
    assert answer.result.is_validated


def _kill_in_the_middle(up: Up, name: str) -> tuple[str, ServiceError | None, float]:
    """Return the text that came, the error if one did, and the seconds from the kill to the end."""
    text = ""
    killed_at = 0.0
    with _gateway(up) as stub:
        try:
            for piece in stub.GenerateStream(_slow_request(), timeout=DEADLINE_S):
                text += piece.delta
                if len(text) > 5 and not killed_at:
                    up.kill(name)
                    killed_at = time.monotonic()
        except grpc.RpcError as error:
            return text, from_rpc_error(error), time.monotonic() - killed_at
    return text, None, time.monotonic() - killed_at


@pytest.mark.parametrize("name", ["worker", "constraint", "gateway"])
def test_a_service_is_killed_during_a_request(up: Up, name: str) -> None:
    _works(up)
    since = len(up.lines)
    others = {other: pid for other, pid in up.pids().items() if other != name}
    text, error, seconds = _kill_in_the_middle(up, name)
    assert error is not None, f"finished with {len(text)} characters"
    assert error.code is grpc.StatusCode.UNAVAILABLE, error.message
    assert seconds < DEADLINE_S - 1
    if name != "gateway":  # which cannot say anything about itself
        assert name in f"{error.message} {error.metadata}"
        assert error.retry_after_s is not None
    died = up.wait_for(f"{name} died: signal 9 (SIGKILL)", since=since)
    assert "its last lines" in died["event"]
    up.wait_until_serving(name)
    assert {other: pid for other, pid in up.pids().items() if other != name} == others
    for other in ("worker", "constraint", "gateway"):
        up.wait_until_serving(other, timeout_s=20)
    _works(up)


def test_the_cache_is_killed_during_a_request(up: Up) -> None:
    _works(up)
    text, error, _ = _kill_in_the_middle(up, "cache")
    assert error is None
    assert len(text) == 800
    _works(up)


def test_what_was_asked_while_a_service_was_away_fails_in_time(up: Up) -> None:
    _works(up)
    up.kill("worker")
    started = time.monotonic()
    with _gateway(up) as stub, contextlib.suppress(grpc.RpcError):
        stub.Generate(gateway_pb2.GenerateRequest(generation=generation(SCHEMA)), timeout=DEADLINE_S)
    assert time.monotonic() - started < DEADLINE_S
    up.wait_until_serving("worker")
    _works(up)


def test_the_constraint_service_returns_under_running_requests(up: Up) -> None:
    """Free text does not need it and is not disturbed."""
    _works(up)
    outcome: list[Any] = []

    def write() -> None:
        with _gateway(up) as stub:
            request = gateway_pb2.GenerateRequest(generation=generation(max_tokens=400))
            outcome.append(stub.Generate(request, timeout=DEADLINE_S))

    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(0.1)
    up.kill("constraint")
    thread.join(DEADLINE_S)
    assert outcome
    assert outcome[0].result.usage.num_completion_tokens > 0
    up.wait_until_serving("constraint")
    _works(up)


def test_without_restarts_a_death_stops_everything(tmp_path: Path) -> None:
    up = Up(tmp_path, "--no-restart").wait_until_ready()
    up.kill("constraint")
    assert up.process.wait(60) == 1
    assert "signal 9" in up.wait_for("constraint died")["event"]


@pytest.mark.parametrize("url", ["unix:///nowhere/redis.sock", "redis://127.0.0.1:9", "none"])
def test_redis_that_is_not_there(tmp_path: Path, url: str) -> None:
    up = Up(tmp_path, "--redis-url", url).wait_until_ready()
    assert "cache" not in up.pids()
    _works(up)
    assert up.stop() == 0
