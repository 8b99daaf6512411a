"""A collector of traces: a real receiver of OTLP over gRPC that keeps the spans it is sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
from opentelemetry.proto.trace.v1.trace_pb2 import Status


@dataclass(frozen=True)
class Span:
    """A span as it arrived; ids in hexadecimal, times in nanoseconds since the epoch."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    is_error: bool

    def overlap_ns(self, other: Span) -> int:
        """How long both were under way."""
        return max(0, min(self.end_ns, other.end_ns) - max(self.start_ns, other.start_ns))


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps spans in the order of arrival."""

    endpoint = ""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._changed = threading.Condition()

    def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._changed:
            for of_resource in request.resource_spans:
                resource = _attributes(of_resource.resource.attributes)
                for of_scope in of_resource.scope_spans:
                    self._spans += [_span(resource["service.name"], span) for span in of_scope.spans]
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self, trace_id: str | None = None) -> list[Span]:
        with self._changed:
            return [span for span in self._spans if trace_id in (None, span.trace_id)]

    def wait_for(self, is_enough: Callable[[list[Span]], bool], *, trace_id: str, timeout_s: float = 20) -> list[Span]:
        """Wait until a trace has what is expected of it."""
        until = time.monotonic() + timeout_s
        while not is_enough(spans := self.spans(trace_id)):
            with self._changed:
                assert time.monotonic() < until, sorted((span.service, span.name) for span in spans)
                self._changed.wait(0.2)
        return spans


@contextmanager
def running_collector() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def _span(service: str, span: Message) -> Span:
    return Span(
        service,
        span.name,
        Message.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _attributes(span.attributes),
        span.status.code == Status.STATUS_CODE_ERROR,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return None if kind is None else getattr(value, kind)
