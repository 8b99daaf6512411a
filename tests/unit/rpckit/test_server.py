"""Servers run for real: in this process where one is enough, in their own where signals and exit codes matter."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from espalier.v1 import constraint_pb2, constraint_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.rpckit.interceptors import CallInterceptor
from services.rpckit.options import CHANNEL_OPTIONS, server_options
from services.rpckit.rich_status import from_rpc_error
from services.rpckit.status import InvalidRequest, LeaseExpired, NotReady, ServiceError, TokenRejected

pb = constraint_pb2


class Servicer(constraint_pb2_grpc.ConstraintServiceServicer):
    """Fails in every way there is, as `grammar_id` says."""

    async def Compile(self, request: pb.CompileRequest, context: Any) -> pb.CompileResponse:
        match request.vocabulary_digest:
            case "lease":
                raise LeaseExpired("gone", grammar="g")
            case "bug":
                raise KeyError("a secret of the house")
            case "abort":
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, "by hand")
            case "peer":
                return pb.CompileResponse(grammar_id=context.peer())
        return pb.CompileResponse(grammar_id="ok")

    async def StreamAdvance(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.StreamAdvanceResponse]:
        async for request in request_iterator:
            if request.request_id == 2:
                raise TokenRejected("no", index=0)
            yield pb.StreamAdvanceResponse(request_id=request.request_id)


@pytest.fixture
async def ready() -> list[bool]:
    return [True]


@pytest.fixture
async def channel(ready: list[bool]) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(interceptors=[CallInterceptor("constraint", lambda: ready[0])])
    constraint_pb2_grpc.add_ConstraintServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
        yield channel
    await server.stop(None)


@pytest.fixture
async def stub(channel: grpc.aio.Channel) -> Any:
    return constraint_pb2_grpc.ConstraintServiceStub(channel)


async def _error_of(call: Any) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_an_answer(stub: Any) -> None:
    assert (await stub.Compile(pb.CompileRequest())).grammar_id == "ok"


async def test_a_service_error_arrives_whole(stub: Any) -> None:
    error = await _error_of(stub.Compile(pb.CompileRequest(vocabulary_digest="lease")))
    assert isinstance(error, LeaseExpired)
    assert (error.message, error.metadata) == ("gone", {"grammar": "g"})


async def test_a_bug_is_internal_and_tells_nothing_but_an_id(stub: Any) -> None:
    error = await _error_of(stub.Compile(pb.CompileRequest(vocabulary_digest="bug")))
    assert type(error) is ServiceError
    assert "secret" not in error.message
    assert error.metadata["error_id"] in error.message


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x1a\x02\xff\xfe"])
async def test_bytes_that_are_no_message_or_no_utf8_are_refused(channel: grpc.aio.Channel, data: bytes) -> None:
    call: Any = channel.unary_unary("/espalier.v1.ConstraintService/Compile")
    assert isinstance(await _error_of(call(data)), InvalidRequest)


async def test_a_handler_may_abort_by_itself(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Compile(pb.CompileRequest(vocabulary_digest="abort"))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.OUT_OF_RANGE, "by hand")


async def test_a_stream_fails_after_its_answers(stub: Any) -> None:
    async def requests() -> AsyncIterator[pb.StreamAdvanceRequest]:
        for request_id in (1, 2, 3):
            yield pb.StreamAdvanceRequest(request_id=request_id)

    call = stub.StreamAdvance(requests())
    assert (await call.read()).request_id == 1
    assert isinstance(await _error_of(call.read()), TokenRejected)


async def test_a_request_without_an_id_gets_one_at_once(stub: Any) -> None:
    call = stub.Compile(pb.CompileRequest())
    begun = dict(await call.initial_metadata())
    await call
    assert begun["x-request-id"]
    assert dict(await call.trailing_metadata())["x-request-id"] == begun["x-request-id"]


async def test_a_request_keeps_the_id_that_it_has(stub: Any) -> None:
    call = stub.Compile(pb.CompileRequest(), metadata=(("x-request-id", "mine"),))
    await call
    # Nothing that its caller does not know: between services that would be one message more for each call.
    assert "x-request-id" not in dict(await call.initial_metadata())
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine"


@pytest.mark.parametrize("how", ["lease", "bug"])
async def test_an_error_names_its_request(stub: Any, how: str) -> None:
    call = stub.Compile(pb.CompileRequest(vocabulary_digest=how), metadata=(("x-request-id", "mine"),))
    assert (await _error_of(call)).request_id == "mine"
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine"


async def test_a_stream_and_its_error_have_an_id(stub: Any) -> None:
    async def requests() -> AsyncIterator[pb.StreamAdvanceRequest]:
        yield pb.StreamAdvanceRequest(request_id=2)

    call = stub.StreamAdvance(requests())
    error = await _error_of(call.read())
    assert error.request_id == dict(await call.initial_metadata())["x-request-id"]


async def test_not_ready(stub: Any, ready: list[bool]) -> None:
    ready[0] = False
    error = await _error_of(stub.Compile(pb.CompileRequest()))
    assert isinstance(error, NotReady)
    assert error.retry_after_s == 1.0


async def test_new_calls_leave_an_old_connection_and_open_ones_stay() -> None:
    server = grpc.aio.server(options=server_options(1))
    constraint_pb2_grpc.add_ConstraintServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
        stub: Any = constraint_pb2_grpc.ConstraintServiceStub(channel)
        stream = stub.StreamAdvance()
        peers = set()
        for _ in range(25):
            await stream.write(pb.StreamAdvanceRequest(request_id=1))
            assert (await stream.read()).request_id == 1
            peers.add((await stub.Compile(pb.CompileRequest(vocabulary_digest="peer"))).grammar_id)
            await asyncio.sleep(0.1)
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK
    await server.stop(None)
    assert len(peers) > 1


def _run(*argv: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'gen'}"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.slow_server", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=root,
    )


async def _health(stub: Any, service: str = "") -> int:
    return int(
        (await stub.Check(health_pb2.HealthCheckRequest(service=service), wait_for_ready=True, timeout=20)).status
    )


async def test_life_of_a_server(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/server.sock"
    process = _run("1.0", "--address", address)
    try:
        async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            health_stub = health_pb2_grpc.HealthStub(channel)
            assert await _health(health_stub) == health_pb2.HealthCheckResponse.NOT_SERVING
            watch = health_stub.Watch(health_pb2.HealthCheckRequest())
            assert [(await watch.read()).status for _ in range(2)] == [
                health_pb2.HealthCheckResponse.NOT_SERVING,
                health_pb2.HealthCheckResponse.SERVING,
            ]
            watch.cancel()
            assert await _health(health_stub, "espalier.v1.ConstraintService") == health_pb2.HealthCheckResponse.SERVING

            # SIGTERM: what is open ends well, then the process ends.
            call = asyncio.ensure_future(
                constraint_pb2_grpc.ConstraintServiceStub(channel).ListGrammars(pb.ListGrammarsRequest())
            )
            await asyncio.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            assert await call == pb.ListGrammarsResponse()
        out, _ = await asyncio.to_thread(process.communicate, timeout=20)
        assert (process.returncode, out) == (0, "stop called\n")
    finally:
        process.kill()


async def test_liveness_is_served_while_loading_and_while_draining(tmp_path: Path) -> None:
    """At the second address, which stops last; the first refuses all calls when the drain begins."""
    address, health_address = f"unix:{tmp_path}/server.sock", f"unix:{tmp_path}/health.sock"
    process = _run("2.0", "--address", address, "--health-address", health_address)
    try:
        async with (
            grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel,
            grpc.aio.insecure_channel(health_address, options=CHANNEL_OPTIONS) as probes,
        ):
            health_stub = health_pb2_grpc.HealthStub(probes)
            status = health_pb2.HealthCheckResponse
            assert (await _health(health_stub, "liveness"), await _health(health_stub)) == (
                status.SERVING,
                status.NOT_SERVING,
            )
            watch = health_stub.Watch(health_pb2.HealthCheckRequest())
            assert [(await watch.read()).status for _ in range(2)] == [status.NOT_SERVING, status.SERVING]
            call = asyncio.ensure_future(
                constraint_pb2_grpc.ConstraintServiceStub(channel).ListGrammars(pb.ListGrammarsRequest())
            )
            await asyncio.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == status.NOT_SERVING
            assert await _health(health_stub, "liveness") == status.SERVING
            assert await call == pb.ListGrammarsResponse()
        await asyncio.to_thread(process.communicate, timeout=20)
        assert process.returncode == 0
    finally:
        process.kill()


def test_sigterm_while_starting() -> None:
    process = _run("60", "--address", "127.0.0.1:0")
    assert process.stderr is not None
    for line in process.stderr:
        if "listening" in line:
            break
    process.terminate()
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "stop called\n")


def test_a_failing_start_ends_with_1() -> None:
    process = _run("-1", "--address", "127.0.0.1:0")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "no model" in err


def test_a_port_in_use_ends_with_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        process = _run("0", "--address", f"127.0.0.1:{port}")
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: it is in use" in err


def test_two_servers_never_share_a_port() -> None:
    first = _run("0", "--address", "127.0.0.1:0")
    assert first.stderr is not None
    address = next(line for line in first.stderr if '"ready"' in line).split('"address": "')[1].split('"')[0]
    second = _run("0", "--address", address)
    _, err = second.communicate(timeout=30)
    first.kill()
    first.communicate(timeout=10)
    assert second.returncode == 1
    assert f"cannot listen on {address}" in err


def test_a_unix_socket_in_use_ends_with_1(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(str(tmp_path / "s"))
        holder.listen()
        process = _run("0", "--address", f"unix:{tmp_path / 's'}")
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "another server listens on it" in err


def test_metrics_port_in_use_ends_with_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        process = _run("0", "--address", "127.0.0.1:0", "--metrics-port", str(holder.getsockname()[1]))
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "cannot serve metrics on 127.0.0.1:" in err


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_traceback_in_the_log_has_no_variables(log_format: str) -> None:
    program = """
import structlog, sys
from services.constraint.settings import ConstraintSettings
from services.rpckit.server import configure_logs
def handle(prompt):
    raise KeyError("what went wrong")
configure_logs(ConstraintSettings.load(["--log-format", sys.argv[1]]))
try:
    handle("a caller's " + "private prompt")
except KeyError as error:
    structlog.get_logger().error("unexpected", exc_info=error)
"""
    root = Path(__file__).parents[3]
    logged = subprocess.run(
        [sys.executable, "-c", program, log_format],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'gen'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stderr
    assert "what went wrong" in logged
    assert "handle" in logged
    assert "private prompt" not in logged
