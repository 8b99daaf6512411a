"""`ServiceError` to and from `google.rpc.Status`, as it goes in `grpc-status-details-bin` and in items of a stream."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
import grpc.aio
from espalier.v1 import types_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.rpckit.status import (
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    OutOfCapacity,
    ServiceError,
)

DOMAIN = "espalier.v1"

_DETAILS_KEY = "grpc-status-details-bin"

# gRPC peers drop an answer whose metadata exceeds 8 KiB by default. The message travels there twice, once with each
# byte beyond ASCII written as three (`%EC`), once inside the details in base64.
_MAX_MESSAGE_BYTES = 1000
_MAX_DESCRIPTION_BYTES = 300
_MAX_VALUE_BYTES = 500
_MAX_METADATA_BYTES = 2000
_DEFAULT_RETRY_AFTER_S = 1.0

# What grpc.aio says, as INTERNAL, when it writes to a stream whose connection has broken but has not been found broken.
_WRITE_FAILED = "Internal error from Core"

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def to_status(error: ServiceError) -> status_pb2.Status:
    """Render an error with its ErrorInfo, and BadRequest, RetryInfo and RequestInfo where they fit.

    Long texts are cut to what metadata may hold.
    """
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason,
            domain=DOMAIN,
            metadata=_bounded(error.metadata),
        )
    ]
    message = _cut(error.message, _MAX_MESSAGE_BYTES)
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=_cut(message, _MAX_DESCRIPTION_BYTES)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    retry_after_s = error.retry_after_s
    if retry_after_s is None and isinstance(error, NotReady | OutOfCapacity):
        retry_after_s = _DEFAULT_RETRY_AFTER_S
    if retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if error.request_id is not None:
        details.append(error_details_pb2.RequestInfo(request_id=error.request_id))
    status = status_pb2.Status(code=error.code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def to_item_status(error: ServiceError) -> types_pb2.Status:
    """Render an error for an item of a batch or stream."""
    status = to_status(error)
    return types_pb2.Status(code=status.code, message=status.message, details=status.details)


def to_trailing_metadata(error: ServiceError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]:
    """Render an error as the three arguments of `context.abort`."""
    status = rpc_status.to_status(to_status(error))
    return status.code, status.details, status.trailing_metadata


def from_item_status(status: types_pb2.Status) -> ServiceError:
    """Restore the error of an item, of the class that its reason names."""
    return _restore(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, status.details)


def from_rpc_error(error: grpc.RpcError) -> ServiceError:
    """Restore the error that another service answered; one without details gets the class nearest to its code.

    A broken connection (UNAVAILABLE, or a write that failed) becomes `NotReady`, a passed deadline `DeadlineExceeded`.
    """
    assert isinstance(error, grpc.aio.AioRpcError | grpc.Call)
    message = error.details() or error.code().name
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break
            return _restore(error.code(), status.message or message, status.details)
    if error.code() is grpc.StatusCode.INTERNAL and message.startswith(_WRITE_FAILED):
        return NotReady(f"the connection broke ({message})")
    return _restore(error.code(), message, ())


def _restore(code: grpc.StatusCode, message: str, details: Iterable[AnyMessage]) -> ServiceError:
    info, bad_request, retry, request = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.RequestInfo(),
    )
    for detail in details:
        for target in (info, bad_request, retry, request):
            if detail.Is(target.DESCRIPTOR):
                detail.Unpack(target)
    restored = (_class_of(info.reason) if info.domain == DOMAIN else None) or _nearest(code)
    error = restored(message)
    error.metadata = dict(info.metadata)
    error.request_id = request.request_id or None
    if bad_request.field_violations:
        error.field = bad_request.field_violations[0].field
    if retry.HasField("retry_delay"):
        error.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return error


def _class_of(reason: str) -> type[ServiceError] | None:
    pending: list[type[ServiceError]] = [ServiceError]
    while pending:
        candidate = pending.pop()
        if candidate.reason == reason:
            return candidate
        pending.extend(candidate.__subclasses__())
    return None


def _nearest(code: grpc.StatusCode) -> type[ServiceError]:
    return {
        grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
        grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
        grpc.StatusCode.UNAVAILABLE: NotReady,
        grpc.StatusCode.RESOURCE_EXHAUSTED: OutOfCapacity,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    }.get(code, ServiceError)


def _bounded(metadata: dict[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    num_bytes = 0
    for key, value in metadata.items():
        value = _cut(value, _MAX_VALUE_BYTES)
        num_bytes += len(key.encode()) + len(value.encode())
        if num_bytes <= _MAX_METADATA_BYTES:
            kept[key] = value
    return kept


def _cut(text: str, limit: int) -> str:
    """Shorten a text to `limit` bytes at most, between characters."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: limit - 3].decode("utf-8", "ignore") + "..."
