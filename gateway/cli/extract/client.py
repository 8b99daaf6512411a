"""A job as a client of a gateway: documents in plain types, `Extract` calls on the wire.

One call a document, rather than one stream for all: each call goes to any gateway behind the address, and one that
fails costs its own document an attempt.
"""

from __future__ import annotations

from typing import Any, Final

import grpc.aio
from espalier.v1 import gateway_pb2, gateway_pb2_grpc

from gateway.cli.client import errors_of, make_constraint, make_generation, settings_of_environment
from gateway.cli.extract.documents import Document
from gateway.cli.extract.results import Result
from services.rpckit.client_tls import ClientTls, open_channel
from services.rpckit.enums import word_of
from services.rpckit.options import CHANNEL_OPTIONS
from services.rpckit.rich_status import from_item_status

# What a gateway needs beyond a document's own time to say that this has passed.
_GRACE_S: Final = 30.0


class ExtractionClient:
    """Makes records of documents. Every method raises `ServiceError` for what a gateway answers."""

    def __init__(self, address: str, extraction: gateway_pb2.Extraction, *, timeout_s: float) -> None:
        """Connect when first called; `timeout_s` is what one document may take."""
        self._address = address
        options = (*CHANNEL_OPTIONS, ("grpc.lb_policy_name", "round_robin"))
        with settings_of_environment():
            self._channel: grpc.aio.Channel = open_channel(address, ClientTls.of_environment(), options)
        self._stub = gateway_pb2_grpc.GatewayServiceStub(self._channel)
        self._extraction = extraction
        self._timeout_s = timeout_s

    async def extract(self, document: Document) -> Result:
        """Make a record of a document."""
        request = gateway_pb2.ExtractRequest(
            extraction=self._extraction, document=gateway_pb2.Document(id=document.id, text=document.text)
        )
        with errors_of(self._address):
            response = await self._stub.Extract(request, timeout=self._timeout_s + _GRACE_S)  # type: ignore[misc]
        return _result(response.result)

    async def probe(self) -> None:
        """Write a text that takes every service and next to no time."""
        generation = make_generation(prompt="a", constraint=make_constraint(None, choices=("a",)), max_tokens=8)
        request = gateway_pb2.GenerateRequest(generation=generation)
        with errors_of(self._address):
            await self._stub.Generate(request, timeout=_GRACE_S)  # type: ignore[misc]

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()


def _result(message: gateway_pb2.ExtractionResult) -> Result:
    status = word_of(gateway_pb2.ExtractionStatus.DESCRIPTOR, message.status)
    seconds = round(message.timing.total_us / 1e6, 3)
    if message.HasField("error"):
        error = from_item_status(message.error)
        return Result(message.document_id, status, None, error.reason, error.message, {"seconds": seconds})
    # White space between tokens of JSON: within strings these two are escaped.
    record = message.record.replace("\n", " ").replace("\r", " ")
    usage = message.usage
    details: dict[str, Any] = {
        "fields": {field.pointer: _field(field) for field in message.fields},
        "removed_mass": [round(message.removed_mass.low, 6), round(message.removed_mass.high, 6)],
        "num_prompt_tokens": usage.num_prompt_tokens,
        "num_tokens": usage.num_completion_tokens,
        "num_forced_tokens": usage.num_forced_tokens,
        "seconds": seconds,
    }
    return Result(message.document_id, status, record, details=details)


def _field(field: gateway_pb2.FieldReport) -> dict[str, Any]:
    said: dict[str, Any] = {"num_tokens": field.num_tokens}
    if field.HasField("mean_logprob"):
        said["mean_logprob"] = round(field.mean_logprob, 4)
    if field.HasField("span"):
        said["span"] = [field.span.start, field.span.end]
    return said
