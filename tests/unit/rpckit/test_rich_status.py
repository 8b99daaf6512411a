import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from services.rpckit import status as errors
from services.rpckit.rich_status import (
    from_item_status,
    from_rpc_error,
    to_item_status,
    to_status,
    to_trailing_metadata,
)
from services.rpckit.status import InvalidRequest, NotReady, OutOfCapacity, ServiceError, TokenRejected


def _all_classes() -> list[type[ServiceError]]:
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ServiceError)]


@pytest.mark.parametrize("kind", _all_classes())
def test_every_class_comes_back_from_its_reason(kind: type[ServiceError]) -> None:
    error = kind("한국어 message", field="a.b", retry_after_s=0.25, index=3)
    restored = from_item_status(to_item_status(error))
    assert type(restored) is kind
    assert (restored.message, restored.field, restored.retry_after_s) == ("한국어 message", "a.b", 0.25)
    assert restored.metadata == {"index": "3"}


def test_reasons_are_unique() -> None:
    reasons = [kind.reason for kind in _all_classes()]
    assert len(set(reasons)) == len(reasons)


def test_details() -> None:
    status = to_status(InvalidRequest("too big", field="sampling.top_p", limit=1))
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert (info.reason, info.domain, dict(info.metadata)) == ("INVALID_REQUEST", "espalier.v1", {"limit": "1"})
    assert (bad.field_violations[0].field, bad.field_violations[0].description) == ("sampling.top_p", "too big")
    assert len(status.details) == 2


@pytest.mark.parametrize("kind", [NotReady, OutOfCapacity])
def test_what_passes_by_itself_says_when_to_retry(kind: type[ServiceError]) -> None:
    retry = error_details_pb2.RetryInfo()
    assert to_status(kind("later")).details[1].Unpack(retry)
    assert retry.retry_delay.ToNanoseconds() > 0


def test_details_fit_into_grpc_metadata() -> None:
    # 8 KiB is what a peer takes by default, for all metadata together.
    error = TokenRejected("字" * 100_000, field="f" * 100, **{f"k{i}": "v" * 10_000 for i in range(50)})
    code, details, trailing = to_trailing_metadata(error)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(trailing[0][1]) * 4 / 3 + len(details.encode()) * 3 < 8_000


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", NotReady),
        (grpc.StatusCode.INTERNAL, "Internal error from Core", NotReady),  # a write to a connection that broke
        (grpc.StatusCode.INTERNAL, "division by zero", ServiceError),
    ],
)
def test_what_grpc_says_of_a_broken_connection(code: grpc.StatusCode, details: str, kind: type[ServiceError]) -> None:
    nothing = grpc.aio.Metadata()
    restored = from_rpc_error(grpc.aio.AioRpcError(code, nothing, nothing, details))
    assert type(restored) is kind
    assert details in restored.message
