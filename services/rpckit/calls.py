"""What a call is known by across the services: its request id, and its place in a trace (W3C Trace Context).

A caller may send both, as the metadata `x-request-id` and `traceparent`; what it does not send is made here. The
interceptor binds them to the log lines of the call, and `outgoing_metadata` carries them on to the calls made for it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from services.rpckit.spans import CallSpan, Tracing

REQUEST_ID_KEY: Final = "x-request-id"
_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A place in a trace; ids in lower-case hexadecimal, as `traceparent` has them."""

    trace_id: str
    span_id: str
    flags: int = 0
    state: str = ""

    @classmethod
    def read(cls, traceparent: object, tracestate: object = "") -> TraceContext | None:
        """Parse the two headers; None where the first is none: its second part says nothing then."""
        match = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
        if match is None or (match[1] == "00" and match[5]):
            return None
        return cls(match[2], match[3], int(match[4], 16), tracestate if isinstance(tracestate, str) else "")

    @classmethod
    def new(cls) -> TraceContext:
        """Begin a trace that nobody records, so that the log lines of all services can be put together."""
        return cls(secrets.token_hex(16), secrets.token_hex(8))

    @property
    def traceparent(self) -> str:
        """The header that hands this place on."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


@dataclass(frozen=True, slots=True)
class CallIdentity:
    """One call. `span` is there where the call is traced, and `trace` is the span's own place then."""

    request_id: str
    trace: TraceContext
    is_named_here: bool
    """Whether the caller sent no request id that could be kept."""
    span: CallSpan | None = None


_current: ContextVar[CallIdentity | None] = ContextVar("call", default=None)


def begin(method: str, metadata: Mapping[str, object], tracing: Tracing | None) -> CallIdentity:
    """Identify the call that the current task answers; `method` is its full name."""
    given = metadata.get(REQUEST_ID_KEY)
    is_kept = isinstance(given, str) and _REQUEST_ID.fullmatch(given) is not None
    request_id = str(given) if is_kept else secrets.token_hex(16)
    parent = TraceContext.read(metadata.get("traceparent"), metadata.get("tracestate", ""))
    if tracing is None:
        call = CallIdentity(request_id, parent or TraceContext.new(), not is_kept)
    else:
        trace, span = tracing.start(method, parent, request_id)
        call = CallIdentity(request_id, trace, not is_kept, span)
    _current.set(call)
    return call


def current_span() -> CallSpan | None:
    """Return the span of the call that the current task answers, where it is traced."""
    call = _current.get()
    return None if call is None else call.span


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """Return what the calls made for the current one carry; nothing outside of a call."""
    call = _current.get()
    if call is None:
        return ()
    state = (("tracestate", call.trace.state),) if call.trace.state else ()
    return ((REQUEST_ID_KEY, call.request_id), ("traceparent", call.trace.traceparent), *state)
