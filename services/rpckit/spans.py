"""Spans of calls, by OpenTelemetry: the one module that imports it, and `tracing` imports this one only when needed.

Each call is a SERVER span below the caller's. What one stream does for a sequence, step by step, are its children: each
is made when it is over, of two points in time, so that the work itself carries no span along.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Final

import grpc
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    set_span_in_context,
)

from services.rpckit.calls import TraceContext

AttributeValue = str | bool | int | float | Sequence[str]

_STOP_TIMEOUT_S: Final = 2.0
# By OpenTelemetry's conventions for RPCs; the other codes are the caller's business.
_SERVER_ERRORS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class Tracing:
    """Makes the spans of calls. Sampler, batches and the resource are as OpenTelemetry's own variables say."""

    def __init__(self, service: str, exporter: SpanExporter, *, starts_traces: bool, max_spans: int) -> None:
        """Start the thread that exports. A call has at most `max_spans` children.

        Without `starts_traces` a call that comes without a trace gets no span: between services that is housekeeping.
        """
        own = Resource({"service.name": f"espalier-{service}", "service.version": version("espalier")})
        # What the environment says of the resource goes before ours.
        resource = Resource.create().merge(own).merge(OTELResourceDetector().detect())
        self._processor = BatchSpanProcessor(exporter)
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        self.sampler: Final = provider.sampler.get_description()
        self._tracer = provider.get_tracer("espalier", version("espalier"))
        self._starts_traces = starts_traces
        self._max_spans = max_spans

    def start(self, method: str, parent: TraceContext | None, request_id: str) -> tuple[TraceContext, CallSpan | None]:
        """Begin the span of a call; returns its place in the trace, and None for a span that is not sampled."""
        if parent is None and not self._starts_traces:
            return TraceContext.new(), None
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name, "espalier.request.id": request_id}
        span = self._tracer.start_span(name, _context(parent), kind=SpanKind.SERVER, attributes=attributes)
        own = span.get_span_context()
        is_recorded = span.is_recording()
        # Below a span that nobody will see, calls and log lines belong to the caller's.
        span_id = f"{own.span_id:016x}" if is_recorded or parent is None else parent.span_id
        place = TraceContext(f"{own.trace_id:032x}", span_id, int(own.trace_flags), own.trace_state.to_header())
        return place, CallSpan(self._tracer, span, self._max_spans) if is_recorded else None

    def stop(self) -> None:
        """Send what is left, for two seconds at most: a collector that is away would be asked for half a minute."""
        stopping = threading.Thread(target=self._processor.shutdown, daemon=True)
        stopping.start()
        stopping.join(_STOP_TIMEOUT_S)


class CallSpan:
    """The span of one call that is sampled. Points in time are nanoseconds since the epoch."""

    def __init__(self, tracer: Tracer, span: Span, max_children: int) -> None:
        self._tracer = tracer
        self._span = span
        self._as_parent = set_span_in_context(span)
        self._max_children = max_children
        self._num_children = 0

    def describe(self, attributes: Mapping[str, AttributeValue], *, name: str | None = None) -> None:
        """Add attributes, and replace the name where one is given."""
        self._span.set_attributes(attributes)
        if name is not None:
            self._span.update_name(name)

    def add_child(
        self, name: str, started_ns: int, ended_ns: int, attributes: Mapping[str, AttributeValue], *, error: str = ""
    ) -> None:
        """Record a part of the call that is over, and the reason where it failed. Of too many, the rest is counted."""
        self._num_children += 1
        if self._num_children > self._max_children:
            return
        child = self._tracer.start_span(name, self._as_parent, attributes=attributes, start_time=started_ns)
        if error:
            _fail(child, error)
        child.end(ended_ns)

    def end(self, code: grpc.StatusCode, reason: str | None) -> None:
        """End the call, `reason` being that of its error."""
        self._span.set_attribute("rpc.response.status_code", code.name)
        if self._num_children > self._max_children:
            self._span.set_attribute("espalier.spans_left_out", self._num_children - self._max_children)
        if code in _SERVER_ERRORS:
            _fail(self._span, reason or code.name)
        elif reason is not None:
            self._span.set_attribute("error.type", reason)
        self._span.end()


def _fail(span: Span, reason: str) -> None:
    span.set_attribute("error.type", reason)
    span.set_status(StatusCode.ERROR, reason)


def _context(parent: TraceContext | None) -> Context:
    if parent is None:
        return Context()
    place = SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(parent.flags),
        trace_state=TraceState.from_header([parent.state]),
    )
    return set_span_in_context(NonRecordingSpan(place), Context())
