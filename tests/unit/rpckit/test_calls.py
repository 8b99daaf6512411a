"""What a call is known by."""

import pytest

from services.rpckit import calls
from services.rpckit.calls import TraceContext

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_place_in_a_trace_is_read_and_written() -> None:
    read = TraceContext.read(f"00-{TRACE}-{SPAN}-01", "a=1,b=2")
    assert read == TraceContext(TRACE, SPAN, 1, "a=1,b=2")
    assert read.traceparent == f"00-{TRACE}-{SPAN}-01"


def test_a_later_version_is_read_as_this_one() -> None:
    read = TraceContext.read(f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like")
    assert read is not None
    assert read.traceparent == f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"00",
        "",
        f"00-{TRACE}-{SPAN}",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f" 00-{TRACE}-{SPAN}-01",
    ],
)
def test_what_is_no_traceparent_is_not_taken(header: object) -> None:
    assert TraceContext.read(header, "a=1") is None


def test_what_came_is_carried_on() -> None:
    metadata = {"x-request-id": "mine", "traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=1"}
    call = calls.begin("/p.S/M", metadata, None)
    assert (call.request_id, call.is_named_here, call.span) == ("mine", False, None)
    assert dict(calls.outgoing_metadata()) == metadata


@pytest.mark.parametrize("given", [None, "", "a b", "é", "x" * 129, b"bytes", "line\nbreak"])
def test_a_request_id_that_cannot_be_kept_is_made_anew(given: object) -> None:
    call = calls.begin("/p.S/M", {} if given is None else {"x-request-id": given}, None)
    assert call.is_named_here
    assert call.request_id != given
    carried = dict(calls.outgoing_metadata())
    assert carried["x-request-id"] == call.request_id
    # A trace that nobody records, and one all the same for all that is called.
    assert carried["traceparent"] == call.trace.traceparent
    assert carried["traceparent"].endswith("-00")


def test_two_calls_are_two() -> None:
    first, second = (calls.begin("/p.S/M", {}, None) for _ in range(2))
    assert first.request_id != second.request_id
    assert first.trace.trace_id != second.trace.trace_id
