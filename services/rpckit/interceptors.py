"""What wraps every call of every server: identity, readiness, errors as rich statuses, a log line, metrics, a span."""

from __future__ import annotations

import inspect
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Gauge, Histogram

from services.rpckit import calls
from services.rpckit.rich_status import from_rpc_error, to_trailing_metadata
from services.rpckit.status import InvalidRequest, NotReady, ServiceError

if TYPE_CHECKING:
    from services.rpckit.spans import Tracing

RPC_SECONDS = Histogram(
    "espalier_rpc_seconds",
    "Time of a call from its arrival to its end.",
    ["method", "code"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
RPCS_IN_FLIGHT = Gauge("espalier_rpcs_in_flight", "Calls that have not ended.", ["method"])

# Health and reflection answer while the service itself does not, and their calls say nothing worth a log line.
_INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.")

_log = structlog.get_logger()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Turns a `ServiceError` from a handler into its rich status, and anything unexpected into INTERNAL.

    The log has the traceback of the unexpected, under an id that the caller gets as well.

    Calls that come while `is_ready()` is false are refused with NOT_READY before the handler sees them.

    The request id goes back in the trailing metadata; one that is made here in the initial metadata as well, so that
    the caller knows it while the call is open.
    """

    def __init__(self, service_name: str, is_ready: Callable[[], bool], tracing: Tracing | None = None) -> None:
        self._service_name = service_name
        self._is_ready = is_ready
        self._tracing = tracing

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler, whichever of the four shapes it has."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_INFRASTRUCTURE):
            return handler
        behavior = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        # gRPC itself would answer UNKNOWN to bytes that are no message. Streams are between our services: left to it.
        read, deserializer = _reader(handler)

        async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with self._watch(method, context) as call:
                try:
                    await call.open()
                    self._refuse_unless_ready()
                    return await behavior(read(request), context)
                except Exception as error:
                    await call.abort(error)

        async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            with self._watch(method, context) as call:
                try:
                    await call.open()
                    self._refuse_unless_ready()
                    produced = behavior(read(request), context)
                    if inspect.isawaitable(produced):  # a handler that writes to the context itself
                        await produced
                        return
                    async for response in produced:
                        yield response
                except Exception as error:
                    await call.abort(error)

        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        return make(
            stream if handler.response_streaming else answer,
            request_deserializer=deserializer,
            response_serializer=handler.response_serializer,
        )

    def _refuse_unless_ready(self) -> None:
        if not self._is_ready():
            raise NotReady(
                f"the {self._service_name} service is starting or stopping; try again", service=self._service_name
            )

    @contextmanager
    def _watch(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[_Call]:
        identity = calls.begin(method, dict(context.invocation_metadata() or ()), self._tracing)
        call = _Call(method, context, identity)
        RPCS_IN_FLIGHT.labels(method).inc()
        started = time.perf_counter()
        try:
            yield call
        except grpc.aio.AbortError:  # `call.abort` has said the code, or a handler has aborted by itself
            if call.code is None:
                call.code = _code_of(context)
            raise
        except BaseException:  # cancelled: the caller has gone, or its deadline has passed
            call.code = grpc.StatusCode.CANCELLED
            raise
        finally:
            RPCS_IN_FLIGHT.labels(method).dec()
            seconds = time.perf_counter() - started
            code = call.code or grpc.StatusCode.OK
            RPC_SECONDS.labels(method, code.name).observe(seconds)
            call.log.debug("call ended", code=code.name, ms=round(seconds * 1e3, 2))
            if identity.span is not None:
                identity.span.end(code, call.reason)


class _Call:
    """One call: how it ends, and where its log lines go."""

    def __init__(self, method: str, context: grpc.aio.ServicerContext[Any, Any], identity: calls.CallIdentity) -> None:
        self.code: grpc.StatusCode | None = None
        self.reason: str | None = None
        self._context = context
        self._identity = identity
        # Every line of the call's task, and of those it starts. A task has a context of its own: nothing to undo.
        trace = identity.trace
        structlog.contextvars.bind_contextvars(
            request_id=identity.request_id, trace_id=trace.trace_id, span_id=trace.span_id
        )
        self.log = _log.bind(method=method)

    async def open(self) -> None:
        """Tell the caller what the call is known by."""
        named = ((calls.REQUEST_ID_KEY, self._identity.request_id),)
        self._context.set_trailing_metadata(named)
        if self._identity.is_named_here:
            await self._context.send_initial_metadata(named)

    async def abort(self, error: Exception) -> None:
        """End the call with what `error` says; always raises."""
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if isinstance(error, grpc.aio.AioRpcError):
            error = from_rpc_error(error)
        if not isinstance(error, ServiceError):
            error_id = secrets.token_hex(6)
            self.log.error("unexpected error", error_id=error_id, exc_info=error)
            error = ServiceError(
                f"an unexpected error, a bug of the service: its log has the details under the id {error_id}",
                error_id=error_id,
            )
        else:
            level = self.log.warning if error.code is grpc.StatusCode.INTERNAL else self.log.info
            level(
                "call failed",
                code=error.code.name,
                reason=error.reason,
                message=error.message[:500],
                **_safe(error.metadata),
            )
        self.code, self.reason = error.code, error.reason
        error.request_id = self._identity.request_id
        code, details, trailing = to_trailing_metadata(error)
        await self._context.abort(code, details, (*trailing, (calls.REQUEST_ID_KEY, error.request_id)))


def _reader(handler: Any) -> tuple[Callable[[Any], Any], Any]:
    """Return what parses a request within the handler, and what gRPC is to parse with before it."""
    if handler.request_streaming:
        return (lambda requests: requests), handler.request_deserializer

    def read(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data)
        except DecodeError as error:
            raise InvalidRequest(f"the request is not a message of this method: {error}") from None

    return read, None


def _safe(metadata: dict[str, str]) -> dict[str, str]:
    """Prefix the names, which must not meet the log's own."""
    return {f"error_{key}": value[:200] for key, value in metadata.items()}


def _code_of(context: grpc.aio.ServicerContext[Any, Any]) -> grpc.StatusCode:
    code: Any = context.code()  # grpc.aio keeps the integer
    return next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN)
