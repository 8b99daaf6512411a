"""The gateway's RPCs: parse, call, build the reply."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any, Final, Literal

import grpc.aio
from espalier.v1 import gateway_pb2 as pb
from espalier.v1 import gateway_pb2_grpc, types_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.unknown_fields import UnknownFieldSet

from gateway.clients.peer import Metadata, outgoing_metadata
from gateway.decode.interfaces import CompileOptions, Constraint
from gateway.decode.output import Delta
from gateway.decode.sampler import Sampling
from gateway.request import ChatPrompt, GenerationRequest, Message, Prompt, TextPrompt, TokenPrompt
from gateway.service import Gateway, GenerationResult
from services.rpckit.status import InvalidRequest

FULL_SERVICE_NAME: Final[str] = pb.DESCRIPTOR.services_by_name["GatewayService"].full_name

_Context = grpc.aio.ServicerContext

_WHITESPACE: Final[dict[int, Literal["bounded", "compact", "spaced"]]] = {
    types_pb2.WHITESPACE_UNSPECIFIED: "bounded",
    types_pb2.WHITESPACE_BOUNDED: "bounded",
    types_pb2.WHITESPACE_COMPACT: "compact",
    types_pb2.WHITESPACE_SPACED: "spaced",
}
_FORCING: Final[dict[int, Literal["canonical", "off"]]] = {
    types_pb2.FORCING_UNSPECIFIED: "canonical",
    types_pb2.FORCING_CANONICAL: "canonical",
    types_pb2.FORCING_OFF: "off",
}
_ENFORCEMENT: Final = {
    "masked": types_pb2.ENFORCEMENT_MASKED,
    "checked": types_pb2.ENFORCEMENT_CHECKED,
    "annotation": types_pb2.ENFORCEMENT_ANNOTATION,
}
_FINISH_REASON: Final = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "budget_closed": pb.FINISH_REASON_BUDGET_CLOSED,
}


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """Errors are raised as `ServiceError`; the interceptor gives them to the caller."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def Generate(self, request: pb.GenerateRequest, context: _Context[Any, Any]) -> pb.GenerateResponse:
        """Write a text."""
        generation = read_generation(request, request.generation)

        async def drop(_: Delta) -> None:
            return None

        result = await self._gateway.generate(
            generation, drop, deadline_s=context.time_remaining(), metadata=_trace(context)
        )
        return pb.GenerateResponse(text=result.text, result=_result(result))

    async def GenerateStream(  # type: ignore[override]  # the stub knows only generators
        self, request: pb.GenerateStreamRequest, context: _Context[Any, Any]
    ) -> None:
        """Write a text as a stream.

        Writes to the context itself rather than being a generator: a cancelled call then raises in the decode loop.
        """
        generation = read_generation(request, request.generation)

        async def send(delta: Delta) -> None:
            await context.write(
                pb.GenerateStreamResponse(
                    delta=delta.text, num_tokens=delta.num_tokens, num_forced_tokens=delta.num_forced_tokens
                )
            )

        result = await self._gateway.generate(
            generation, send, deadline_s=context.time_remaining(), metadata=_trace(context)
        )
        await context.write(pb.GenerateStreamResponse(result=_result(result)))

    async def GetModelInfo(
        self, request: pb.GetModelInfoRequest, context: _Context[Any, Any]
    ) -> pb.GetModelInfoResponse:
        """Say what model answers."""
        _refuse_unknown_fields(request)
        model = await self._gateway.model()
        return pb.GetModelInfoResponse(
            name=model.name,
            context_length=model.context_length,
            vocab_size=model.vocab_size,
            vocabulary_digest=model.vocabulary_digest,
            num_parameters=model.num_parameters,
            num_active_parameters=model.num_active_parameters,
        )


def read_generation(request: ProtoMessage, generation: pb.Generation) -> GenerationRequest:
    """Read what a request asks for.

    Raises:
        InvalidRequest: a field is unknown, missing or out of range; names it.
    """
    _refuse_unknown_fields(request)
    options = generation.compile_options
    if options.whitespace not in _WHITESPACE:
        raise _unknown_value("compile_options.whitespace", options.whitespace)
    if options.forcing not in _FORCING:
        raise _unknown_value("compile_options.forcing", options.forcing)
    sampling = generation.sampling
    return GenerationRequest(
        prompt=_prompt(generation),
        constraint=_constraint(generation.constraint) if generation.HasField("constraint") else None,
        compile_options=CompileOptions(_WHITESPACE[options.whitespace], _FORCING[options.forcing]),
        sampling=Sampling(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p if sampling.HasField("top_p") else 1.0,
            seed=sampling.seed if sampling.HasField("seed") else secrets.randbits(64),
        ),
        max_tokens=generation.max_tokens if generation.HasField("max_tokens") else None,
        stops=tuple(generation.stop),
    )


def _prompt(generation: pb.Generation) -> Prompt:
    match generation.WhichOneof("input"):
        case "prompt":
            return TextPrompt(generation.prompt)
        case "chat":
            return ChatPrompt(tuple(Message(message.role, message.content) for message in generation.chat.messages))
        case "token_ids":
            return TokenPrompt(tuple(generation.token_ids.ids))
    raise InvalidRequest("nothing to read: set one of `prompt`, `chat` and `token_ids`", field="generation.prompt")


def _constraint(constraint: types_pb2.Constraint) -> Constraint:
    kind = constraint.WhichOneof("kind")
    match kind:
        case "json_schema" | "lark" | "regex" | "grammar_name":
            return Constraint(kind, text=getattr(constraint, kind))
        case "choices":
            return Constraint(kind, choices=tuple(constraint.choices.values))
    raise InvalidRequest(
        "`constraint` is empty: set json_schema, lark, regex, choices or grammar_name, or leave it out for free text",
        field="generation.constraint",
    )


def _refuse_unknown_fields(message: ProtoMessage) -> None:
    for name in _unknown_fields(message, ""):
        raise InvalidRequest(
            f"{name} is not known here and would be ignored: leave it out, or call a gateway that knows it", field=name
        )


def _unknown_fields(message: ProtoMessage, path: str) -> Iterator[str]:
    for unknown in UnknownFieldSet(message):  # type: ignore[attr-defined]  # a sequence at run time
        yield f"{path or message.DESCRIPTOR.name}.<field {unknown.field_number}>"
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        inner = f"{path}.{field.name}" if path else field.name
        if isinstance(value, ProtoMessage):
            yield from _unknown_fields(value, inner)
        else:
            for index, item in enumerate(value):
                yield from _unknown_fields(item, f"{inner}[{index}]")


def _unknown_value(name: str, value: int) -> InvalidRequest:
    return InvalidRequest(f"`{name}` {value} is not known here", field=f"generation.{name}")


def _trace(context: _Context[Any, Any]) -> Metadata:
    """Return the caller's trace context, or one that begins here, so that the services' logs can be put together."""
    metadata = outgoing_metadata(tuple(context.invocation_metadata() or ()))
    if any(key == "traceparent" for key, _ in metadata):
        return metadata
    return (("traceparent", f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"),)


def _result(result: GenerationResult) -> pb.GenerationResult:
    return pb.GenerationResult(
        finish_reason=_FINISH_REASON[result.finish_reason],
        is_complete=result.is_complete,
        is_validated=result.is_validated,
        token_ids=result.token_ids,
        usage=pb.Usage(
            num_prompt_tokens=result.num_prompt_tokens,
            num_completion_tokens=len(result.token_ids),
            num_forced_tokens=result.num_forced_tokens,
            num_steps=result.num_steps,
        ),
        timing=pb.Timing(
            ttft_us=_us(result.ttft_s),
            tpot_us=_us(result.tpot_s),
            total_us=_us(result.total_s),
            compile_us=result.compile_us,
            mask_us=result.mask_us,
            forward_us=result.forward_us,
            mask_wait_us=_us(result.mask_wait_s),
            validate_us=_us(result.validate_s),
        ),
        keywords=[
            types_pb2.KeywordReport(
                pointer=keyword.pointer,
                keyword=keyword.keyword,
                enforcement=_ENFORCEMENT[keyword.enforcement],
                note=keyword.note,
            )
            for keyword in result.keywords
        ],
        seed=result.seed,
        grammar_id=result.grammar_id,
    )


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
