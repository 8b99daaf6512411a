"""Whether and where spans are made: one process, a collector over gRPC."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from services.rpckit.calls import TraceContext
from services.rpckit.settings import ServiceSettings
from services.rpckit.spans import CallSpan, Tracing
from services.rpckit.tracing import since_epoch_ns, start_tracing
from tests.support.otlp import Collector, Span, running_collector

METHOD = "/espalier.v1.GatewayService/Generate"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class FrontSettings(ServiceSettings):
    service: ClassVar[str] = "gateway"
    starts_traces: ClassVar[bool] = True


class InnerSettings(ServiceSettings):
    service: ClassVar[str] = "worker"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


def _start(settings: ServiceSettings) -> Tracing:
    tracing = start_tracing(settings)
    assert tracing is not None
    return tracing


def _span(tracing: Tracing, parent: TraceContext | None) -> tuple[TraceContext, CallSpan]:
    place, span = tracing.start(METHOD, parent, "r1")
    assert span is not None
    return place, span


def _arrived(collector: Collector, trace_id: str, num_spans: int) -> dict[str, Span]:
    return {span.name: span for span in collector.wait_for(lambda spans: len(spans) >= num_spans, trace_id=trace_id)}


def test_a_call_and_its_parts_arrive(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    tracing = _start(FrontSettings(trace_max_spans=2))
    place, span = _span(tracing, TraceContext(TRACE, PARENT, 1, "a=1"))
    assert (place.trace_id, place.flags & 1, place.state) == (TRACE, 1, "a=1")
    span.describe({"gen_ai.operation.name": "chat"}, name="chat toy")
    now_ns = time.time_ns()
    span.add_child("decode", now_ns, now_ns + 5000, {"n": 1})
    span.add_child("failed", now_ns, now_ns, {}, error="LEASE_EXPIRED")
    span.add_child("too many", now_ns, now_ns, {})
    span.end(grpc.StatusCode.INTERNAL, "VALIDATION_FAILED")
    tracing.stop()

    spans = _arrived(collector, TRACE, 3)
    assert set(spans) == {"chat toy", "decode", "failed"}
    call = spans["chat toy"]
    assert (call.service, call.kind, call.parent_id, call.span_id) == (
        "espalier-gateway",
        "SERVER",
        PARENT,
        place.span_id,
    )
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": METHOD.removeprefix("/"),
        "rpc.response.status_code": "INTERNAL",
        "error.type": "VALIDATION_FAILED",
        "espalier.request.id": "r1",
        "espalier.spans_left_out": 1,
        "gen_ai.operation.name": "chat",
    }
    assert call.is_error
    decode = spans["decode"]
    assert (decode.parent_id, decode.end_ns - decode.start_ns, decode.is_error) == (call.span_id, 5000, False)
    assert spans["failed"].is_error
    assert spans["failed"].attributes == {"error.type": "LEASE_EXPIRED"}


def test_what_the_caller_does_wrong_is_no_error_of_the_server(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.endpoint)
    tracing = _start(FrontSettings())
    place, span = _span(tracing, None)
    span.end(grpc.StatusCode.INVALID_ARGUMENT, "GRAMMAR_SYNTAX")
    tracing.stop()
    (call,) = _arrived(collector, place.trace_id, 1).values()
    assert (call.parent_id, call.is_error, call.attributes["error.type"]) == ("", False, "GRAMMAR_SYNTAX")


def test_a_caller_that_does_not_sample_is_not_sampled(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    tracing = _start(FrontSettings())
    place, span = tracing.start(METHOD, TraceContext(TRACE, PARENT, 0), "r1")
    tracing.stop()
    assert span is None
    assert place == TraceContext(TRACE, PARENT, 0)


def test_a_sampler_that_says_no_is_heard_further_on(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracing = _start(FrontSettings())
    place, span = tracing.start(METHOD, TraceContext(TRACE, PARENT, 1), "r1")
    tracing.stop()
    assert (place, span) == (TraceContext(TRACE, PARENT, 0), None)


def test_the_sampler_of_the_environment_counts(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    tracing = _start(FrontSettings())
    assert tracing.start(METHOD, None, "r1")[1] is None
    assert tracing.start(METHOD, TraceContext(TRACE, PARENT, 1), "r1")[1] is not None
    tracing.stop()


def test_between_services_no_trace_begins(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-worker")
    tracing = _start(InnerSettings())
    place, span = tracing.start(METHOD, None, "r1")
    assert (span, place.flags) == (None, 0)
    trace_id = TRACE[::-1]
    _span(tracing, TraceContext(trace_id, PARENT, 1))[1].end(grpc.StatusCode.OK, None)
    tracing.stop()
    (call,) = _arrived(collector, trace_id, 1).values()
    assert call.service == "my-worker"


def test_the_protocol_may_be_http(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            received.append(ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        tracing = _start(FrontSettings())
        _span(tracing, None)[1].end(grpc.StatusCode.OK, None)
        tracing.stop()
        server.shutdown()
    spans = [
        span for request in received for sent in request.resource_spans for of in sent.scope_spans for span in of.spans
    ]
    assert [span.name for span in spans] == [METHOD.removeprefix("/")]


def test_a_collector_that_is_away_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    tracing = _start(FrontSettings())
    _span(tracing, None)[1].end(grpc.StatusCode.OK, None)
    started = time.monotonic()
    tracing.stop()
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
    ],
)
def test_the_environment_may_say_no(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    assert start_tracing(FrontSettings()) is None


def _python(code: str, **variables: str) -> str:
    root = Path(__file__).parents[3]
    environment = {"PYTHONPATH": f"{root}:{root / 'gen'}"} | variables
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=True
    )
    return done.stdout


def test_without_a_collector_nothing_is_imported() -> None:
    # Of the constraint service, redis imports it by itself where it is installed.
    code = (
        "import sys, gateway.servicer, services.rpckit.server, services.model_worker.step_spans\n"
        "from services.rpckit.tracing import start_tracing\n"
        "from gateway.settings import GatewaySettings\n"
        "assert start_tracing(GatewaySettings()) is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert _python(code) == "[]\n"


def test_without_the_extra_the_log_says_so() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from services.rpckit.tracing import start_tracing\n"
        "from gateway.settings import GatewaySettings\n"
        "print(start_tracing(GatewaySettings()))"
    )
    said = _python(code, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", NO_COLOR="1")
    assert "no traces: a package is missing, see the extra `otel`" in said
    assert said.endswith("None\n")


def test_a_clock_that_counts_from_the_start_is_turned_into_time() -> None:
    assert abs(since_epoch_ns(time.monotonic()) - time.time_ns()) < 50_000_000
