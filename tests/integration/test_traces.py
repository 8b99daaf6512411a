"""Traces and log lines of requests to `espalier up`, whose services send their spans to a collector in this process."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from espalier.v1 import gateway_pb2 as pb

from services.rpckit.rich_status import from_rpc_error
from tests.support.otlp import Collector, Span, running_collector
from tests.support.up import Up, gateway_stub, generation

CALLER = "00f067aa0ba902b7"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 20, "maxLength": 40}, "is_hot": {"type": "boolean"}},
    "required": ["name", "is_hot"],
    "additionalProperties": False,
}
MAX_SPANS = 150


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


@pytest.fixture(scope="module")
def up(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(
        tmp_path_factory.mktemp("u"),
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_BSP_SCHEDULE_DELAY="100",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment=test",
        ESPALIER_LOG_LEVEL="debug",
        ESPALIER_TRACE_MAX_SPANS=str(MAX_SPANS),
    )
    yield up.wait_until_ready()
    assert up.stop() == 0


@pytest.fixture
def stub(up: Up) -> Iterator[Any]:
    with grpc.insecure_channel(up.addresses["gateway"]) as channel:
        yield gateway_stub(channel)


def _metadata(trace_id: str, flags: str = "01", **more: str) -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{trace_id}-{CALLER}-{flags}"), *more.items())


FREE = ("Generate", "StreamStepLogits", "ReleaseSequences")
GUIDED = (*FREE, "Compile", "StreamAdvance", "Validate")


def _trace(collector: Collector, trace_id: str, methods: tuple[str, ...]) -> list[Span]:
    """Wait for the calls of these methods; a call's parts leave its process before it."""
    wanted = set(methods)

    def is_whole(spans: list[Span]) -> bool:
        return wanted <= {span.attributes.get("rpc.method", "").rpartition("/")[2] for span in spans}

    return collector.wait_for(is_whole, trace_id=trace_id)


def _called(spans: list[Span], method: str) -> Span:
    (found,) = [span for span in spans if span.attributes.get("rpc.method", "").endswith(f"/{method}")]
    return found


def _below(spans: list[Span], parent: Span) -> list[Span]:
    return [span for span in spans if span.parent_id == parent.span_id]


def test_one_trace_of_a_guided_request(collector: Collector, stub: Any) -> None:
    trace_id = secrets.token_hex(16)
    asked = generation(SCHEMA, max_tokens=100, prompt="word " * 100)
    reply, call = stub.Generate.with_call(
        pb.GenerateRequest(generation=asked), metadata=_metadata(trace_id, **{"x-request-id": "guided-1"})
    )
    assert dict(call.trailing_metadata())["x-request-id"] == "guided-1"
    spans = _trace(collector, trace_id, GUIDED)

    request = _called(spans, "Generate")
    assert (request.service, request.kind, request.parent_id) == ("espalier-gateway", "SERVER", CALLER)
    assert request.name == "text_completion toy"
    usage = reply.result.usage
    expected = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "espalier",
        "gen_ai.request.model": "toy",
        "gen_ai.response.model": "toy",
        "gen_ai.output.type": "json",
        "gen_ai.request.max_tokens": 100,
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.seed": 1,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": usage.num_prompt_tokens,
        "gen_ai.usage.output_tokens": usage.num_completion_tokens,
        "espalier.usage.num_steps": usage.num_steps,
        "espalier.constraint.kind": "json_schema",
        "rpc.response.status_code": "OK",
    }
    assert {key: request.attributes[key] for key in expected} == expected
    assert not any(span.is_error for span in spans)

    below = {span.name.rpartition("/")[2]: span for span in _below(spans, request)}
    assert set(below) == {
        "queue",
        "Compile",
        "GetModel",
        "StreamStepLogits",
        "StreamAdvance",
        "Validate",
        "ReleaseSequences",
    }
    assert {name: span.service for name, span in below.items() if span.kind == "SERVER"} == {
        "Compile": "espalier-constraint",
        "StreamAdvance": "espalier-constraint",
        "Validate": "espalier-constraint",
        "GetModel": "espalier-worker",
        "StreamStepLogits": "espalier-worker",
        "ReleaseSequences": "espalier-worker",
    }
    assert {span.attributes["espalier.request.id"] for span in spans if span.kind == "SERVER"} == {"guided-1"}
    steps = sorted(_below(spans, below["StreamStepLogits"]), key=lambda span: span.start_ns)
    moves = _below(spans, below["StreamAdvance"])
    assert len(steps) == usage.num_steps
    assert steps[0].name == "prefill"
    assert {span.name for span in steps[1:]} == {"decode"}
    assert {span.name for span in moves} == {"advance"}
    # Compile and prefill at the same time.
    assert below["Compile"].overlap_ns(steps[0]) > 0
    for span in (*below.values(), *steps, *moves):
        assert span.start_ns <= span.end_ns
        assert request.start_ns <= span.start_ns


def test_steps_and_moves_overlap(collector: Collector, stub: Any) -> None:
    trace_id = secrets.token_hex(16)
    asked = generation(SCHEMA, max_tokens=100)
    asked.n = 8
    stub.Generate(pb.GenerateRequest(generation=asked), metadata=_metadata(trace_id))
    spans = _trace(collector, trace_id, GUIDED)
    steps, moves = ([span for span in spans if span.name == name] for name in ("decode", "advance"))
    assert max(step.overlap_ns(move) for step in steps for move in moves) > 0


def test_the_spans_of_a_call_are_bounded(collector: Collector, stub: Any) -> None:
    trace_id = secrets.token_hex(16)
    reply = stub.Generate(
        pb.GenerateRequest(generation=generation(max_tokens=MAX_SPANS + 40)), metadata=_metadata(trace_id)
    )
    assert reply.result.usage.num_steps > MAX_SPANS
    spans = _trace(collector, trace_id, FREE)
    stream = _called(spans, "StreamStepLogits")
    assert len(_below(spans, stream)) == MAX_SPANS
    assert stream.attributes["espalier.spans_left_out"] == reply.result.usage.num_steps - MAX_SPANS


def test_a_beam_is_one_trace(collector: Collector, stub: Any) -> None:
    trace_id = secrets.token_hex(16)
    asked = pb.Generation(prompt="Write.", max_tokens=6, beam=pb.Beam(width=3), n=2)
    stub.Generate(pb.GenerateRequest(generation=asked), metadata=_metadata(trace_id))
    spans = _trace(collector, trace_id, FREE)
    request = _called(spans, "Generate")
    assert request.attributes["espalier.beam.width"] == 3
    assert len(request.attributes["gen_ai.response.finish_reasons"]) == 2
    steps = _below(spans, _called(spans, "StreamStepLogits"))
    assert len({span.attributes["espalier.sequence.id"] for span in steps}) >= 3


def test_a_request_without_a_trace_begins_one(collector: Collector, stub: Any) -> None:
    _, call = stub.Generate.with_call(pb.GenerateRequest(generation=generation(max_tokens=4)))
    request_id = dict(call.initial_metadata())["x-request-id"]
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = [span for span in collector.spans() if span.attributes.get("espalier.request.id") == request_id]
        if any(span.service == "espalier-gateway" for span in found):
            break
        time.sleep(0.05)
    assert [span.parent_id for span in found if span.service == "espalier-gateway"] == [""]
    assert len({span.trace_id for span in found}) == 1


def test_a_caller_that_does_not_sample_is_not_traced(collector: Collector, up: Up, stub: Any) -> None:
    trace_id = secrets.token_hex(16)
    num_lines = len(up.lines)
    stub.Generate(pb.GenerateRequest(generation=generation(SCHEMA)), metadata=_metadata(trace_id, "00"))
    up.wait_for("call ended", service="gateway", since=num_lines)
    time.sleep(0.5)  # several times the delay of a batch
    assert collector.spans(trace_id) == []
    # Its log lines belong to the caller's trace all the same.
    assert any(line.get("trace_id") == trace_id for line in up.lines if line.get("service") == "constraint")


def test_a_request_that_fails(collector: Collector, up: Up, stub: Any) -> None:
    trace_id = secrets.token_hex(16)
    num_lines = len(up.lines)
    asked = generation({"type": "strin"})
    with pytest.raises(grpc.RpcError) as caught:
        stub.Generate(pb.GenerateRequest(generation=asked), metadata=_metadata(trace_id))
    request_id = dict(caught.value.initial_metadata())["x-request-id"]
    assert from_rpc_error(caught.value).request_id == request_id
    spans = _trace(collector, trace_id, ("Generate", "Compile"))
    for method in ("Generate", "Compile"):
        span = _called(spans, method)
        assert span.attributes["error.type"] == "GRAMMAR_SYNTAX"
        assert span.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
        assert not span.is_error  # of the server's

    for service, method in (("gateway", "Generate"), ("constraint", "Compile")):
        line = up.wait_for("call failed", service=service, since=num_lines)
        assert line["request_id"] == request_id
        assert line["trace_id"] == trace_id
        assert line["span_id"] == _called(spans, method).span_id


def test_every_line_of_a_call_names_it(up: Up, stub: Any) -> None:
    num_lines = len(up.lines)
    # A constraint that nobody has compiled, so that the compiler speaks too.
    schema = {"const": secrets.token_hex(8)}
    stub.Generate(pb.GenerateRequest(generation=generation(schema)), metadata=(("x-request-id", "named"),), timeout=60)
    deadline = time.monotonic() + 20
    ended: list[dict[str, Any]] = []
    while not any(line["method"].endswith("/ReleaseSequences") for line in ended):
        assert time.monotonic() < deadline, ended
        time.sleep(0.05)
        ended = [line for line in up.lines[num_lines:] if line["event"] == "call ended"]
    assert {line["request_id"] for line in ended} == {"named"}
    assert {line["service"] for line in ended} == {"gateway", "worker", "constraint"}
    assert len({line["trace_id"] for line in ended}) == 1
    compiled = up.wait_for("compiled", service="constraint", since=num_lines)
    assert compiled["request_id"] == "named"
