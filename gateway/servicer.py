"""The gateway's RPCs: parse, call, build the reply."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, Final

import grpc.aio
from espalier.v1 import gateway_pb2 as pb
from espalier.v1 import gateway_pb2_grpc, types_pb2
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.unknown_fields import UnknownFieldSet

from gateway.clients.peer import Metadata, outgoing_metadata
from gateway.decode.beam import BeamSettings
from gateway.decode.interfaces import CompileOptions, Constraint
from gateway.decode.output import Delta
from gateway.decode.sampler import Sampling
from gateway.decode.score import TokenLogprob
from gateway.generation import GenerationResult
from gateway.request import (
    PRESETS,
    ChatPrompt,
    GenerationRequest,
    Message,
    Prompt,
    Reasoning,
    ScoreRequest,
    TextPrompt,
    TokenPrompt,
)
from gateway.service import Gateway
from services.rpckit.enums import number_of, words_of
from services.rpckit.status import InvalidRequest

FULL_SERVICE_NAME: Final[str] = pb.DESCRIPTOR.services_by_name["GatewayService"].full_name

_KINDS: Final = tuple(field.name for field in types_pb2.Constraint.DESCRIPTOR.oneofs_by_name["kind"].fields)

_Context = grpc.aio.ServicerContext


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """Errors are raised as `ServiceError`; the interceptor gives them to the caller."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def Generate(self, request: pb.GenerateRequest, context: _Context[Any, Any]) -> pb.GenerateResponse:
        """Write a text."""
        generation = read_generation(request, request.generation)

        async def drop(choice: int, piece: Delta | GenerationResult) -> None:
            """Wait for the whole."""

        results = await self._gateway.generate(
            generation, drop, deadline_s=context.time_remaining(), metadata=_trace(context), shows_pieces=False
        )
        first, *others = (pb.Choice(text=result.text, result=_result(result)) for result in results)
        return pb.GenerateResponse(text=first.text, result=first.result, others=others)

    async def GenerateStream(  # type: ignore[override]  # the stub knows only generators
        self, request: pb.GenerateStreamRequest, context: _Context[Any, Any]
    ) -> None:
        """Write a text as a stream.

        Writes to the context itself rather than being a generator: a cancelled call then raises in the decode loop.
        """
        generation = read_generation(request, request.generation)

        writing = asyncio.Lock()  # one message at a time, whichever text it is of

        async def send(choice: int, piece: Delta | GenerationResult) -> None:
            if isinstance(piece, GenerationResult):
                message = pb.GenerateStreamResponse(choice=choice, result=_result(piece))
            else:
                message = pb.GenerateStreamResponse(
                    choice=choice,
                    delta=piece.text,
                    num_tokens=piece.num_tokens,
                    num_forced_tokens=piece.num_forced_tokens,
                    reasoning_delta=piece.reasoning,
                    values=[pb.ValueEvent(pointer=value.pointer, json=value.json) for value in piece.values],
                )
            async with writing:
                await context.write(message)

        await self._gateway.generate(generation, send, deadline_s=context.time_remaining(), metadata=_trace(context))

    async def Score(self, request: pb.ScoreRequest, context: _Context[Any, Any]) -> pb.ScoreResponse:
        """Say how probable a text is."""
        _refuse_unknown_fields(request)
        with _fields_of_the_request():
            target_token_ids = None
            if request.WhichOneof("target") == "text_token_ids":
                target_token_ids = tuple(request.text_token_ids.ids)
            found, num_prompt_tokens = await self._gateway.score(
                ScoreRequest(_prompt(request), request.text, target_token_ids, request.num_top, request.with_end),
                deadline_s=context.time_remaining(),
                metadata=_trace(context),
            )
        return pb.ScoreResponse(
            logprob=found.logprob,
            tokens=map(_logprob, found.tokens),
            end_logprob=found.end_logprob,
            num_prompt_tokens=num_prompt_tokens,
        )

    async def Tokenize(self, request: pb.TokenizeRequest, context: _Context[Any, Any]) -> pb.TokenizeResponse:
        """Cut a prompt into tokens."""
        _refuse_unknown_fields(request)
        with _fields_of_the_request():
            tokens, model = await self._gateway.tokenize(_prompt(request))
        return pb.TokenizeResponse(
            tokens=[pb.Token(id=token_id, spelling=spelling) for token_id, spelling in tokens],
            context_length=model.context_length,
        )

    async def Detokenize(self, request: pb.DetokenizeRequest, context: _Context[Any, Any]) -> pb.DetokenizeResponse:
        """Put tokens together."""
        _refuse_unknown_fields(request)
        with _fields_of_the_request():
            return pb.DetokenizeResponse(text=await self._gateway.detokenize(tuple(request.token_ids.ids)))

    async def GetModelInfo(
        self, request: pb.GetModelInfoRequest, context: _Context[Any, Any]
    ) -> pb.GetModelInfoResponse:
        """Say what model answers."""
        _refuse_unknown_fields(request)
        model = await self._gateway.model()
        names = (field.name for field in pb.GetModelInfoResponse.DESCRIPTOR.fields)
        return pb.GetModelInfoResponse(**{name: getattr(model, name) for name in names})


def read_generation(request: ProtoMessage, generation: pb.Generation) -> GenerationRequest:
    """Read what a request asks for.

    Raises:
        InvalidRequest: a field is unknown, missing or out of range; names it.
    """
    _refuse_unknown_fields(request)
    return GenerationRequest(
        prompt=_prompt(generation),
        constraint=_constraint(generation.constraint) if generation.HasField("constraint") else None,
        compile_options=_compile_options(generation.compile_options),
        sampling=_sampling(generation.sampling),
        max_tokens=_given(generation, "max_tokens"),
        min_tokens=generation.min_tokens,
        stops=tuple(generation.stop),
        stop_token_ids=tuple(generation.stop_token_ids),
        n=generation.n if generation.HasField("n") else 1,
        best_of=_given(generation, "best_of"),
        beam=_beam(generation.beam) if generation.HasField("beam") else None,
        num_top_logprobs=generation.logprobs.num_top if generation.HasField("logprobs") else None,
        heals_prompt=generation.heals_prompt,
        value_events=generation.value_events,
        reasoning=_reasoning(generation.reasoning) if generation.HasField("reasoning") else None,
    )


def _given(message: ProtoMessage, name: str) -> Any:
    """Return an optional field, None where it is not set."""
    return getattr(message, name) if message.HasField(name) else None


def _sampling(sampling: pb.Sampling) -> Sampling:
    preset = words_of(sampling, "generation.sampling").get("preset")
    values = {
        name: getattr(sampling, name)
        for name in (field.name for field in fields(Sampling))
        if name != "logit_bias" and _given(sampling, name) is not None
    }
    values.setdefault("seed", secrets.randbits(64))
    bias = tuple(sorted(sampling.logit_bias.items()))
    return replace(Sampling() if preset is None else PRESETS[preset], logit_bias=bias, **values)


def _reasoning(reasoning: pb.Reasoning) -> Reasoning:
    given = {name: _given(reasoning, name) for name in ("end", "max_tokens")}
    return Reasoning(**{name: value for name, value in given.items() if value is not None})


def _beam(beam: pb.Beam) -> BeamSettings:
    length_penalty = beam.length_penalty if beam.HasField("length_penalty") else 1.0
    return BeamSettings(beam.width, length_penalty, **words_of(beam, "generation.beam"))


@contextmanager
def _fields_of_the_request() -> Iterator[None]:
    """Name fields as they are in requests that have no `generation`."""
    try:
        yield
    except InvalidRequest as error:
        error.field = error.field and error.field.removeprefix("generation.")
        raise


def _prompt(message: Any) -> Prompt:
    """Read the input of a `Generation`, or of a message that has the same fields."""
    match message.WhichOneof("input"):
        case "prompt":
            return TextPrompt(message.prompt)
        case "chat":
            return ChatPrompt(tuple(Message(said.role, said.content) for said in message.chat.messages))
        case "token_ids":
            return TokenPrompt(tuple(message.token_ids.ids))
    raise InvalidRequest("nothing to read: set one of `prompt`, `chat` and `token_ids`", field="generation.prompt")


def _constraint(constraint: types_pb2.Constraint) -> Constraint:
    kind = constraint.WhichOneof("kind")
    match kind:
        case "json_schema" | "lark" | "regex" | "grammar_name" | "literal" | "until" | "special_token":
            return Constraint(kind, text=getattr(constraint, kind))
        case "sequence" | "any_of":
            return Constraint(kind, parts=tuple(map(_constraint, getattr(constraint, kind).parts)))
        case "choices":
            return Constraint(kind, choices=tuple(constraint.choices.values))
    raise InvalidRequest(
        f"`constraint`, or a part of it, is empty: set one of {', '.join(_KINDS)}, or leave it out for free text",
        field="generation.constraint",
    )


def _compile_options(options: types_pb2.CompileOptions) -> CompileOptions:
    given = words_of(options, "generation.compile_options")
    if options.default_draft:
        given["default_draft"] = int(options.default_draft)
    return CompileOptions(
        **given, whitespace_pattern=options.whitespace_pattern, documents=tuple(sorted(options.documents.items()))
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
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        inner = f"{path}.{field.name}" if path else field.name
        if isinstance(value, ProtoMessage):
            yield from _unknown_fields(value, inner)
        else:
            for index, item in enumerate(value):
                yield from _unknown_fields(item, f"{inner}[{index}]")


def _trace(context: _Context[Any, Any]) -> Metadata:
    """Return the caller's trace context, or one that begins here, so that the services' logs can be put together."""
    metadata = outgoing_metadata(tuple(context.invocation_metadata() or ()))
    if any(key == "traceparent" for key, _ in metadata):
        return metadata
    return (("traceparent", f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"),)


def _logprob(logprob: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token=pb.Token(id=logprob.token_id, spelling=logprob.spelling),
        logprob=logprob.logprob,
        masked_logprob=logprob.masked_logprob,
        removed_mass=logprob.removed_mass,
        top=[
            pb.TopLogprob(
                token=pb.Token(id=top.token_id, spelling=top.spelling),
                logprob=top.logprob,
                is_allowed=top.is_allowed,
            )
            for top in logprob.top
        ],
    )


def _result(result: GenerationResult) -> pb.GenerationResult:
    return pb.GenerationResult(
        finish_reason=number_of(pb.FinishReason.DESCRIPTOR, result.finish_reason),
        is_complete=result.is_complete,
        is_validated=result.is_validated,
        token_ids=result.token_ids,
        usage=pb.Usage(
            num_prompt_tokens=result.num_prompt_tokens,
            num_completion_tokens=len(result.token_ids),
            num_forced_tokens=result.num_forced_tokens,
            num_steps=result.num_steps,
            num_dead_ends=result.num_dead_ends,
            num_rolled_back_tokens=result.num_rolled_back_tokens,
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
                enforcement=number_of(types_pb2.Enforcement.DESCRIPTOR, keyword.enforcement),
                note=keyword.note,
            )
            for keyword in result.keywords
        ],
        seed=result.seed,
        grammar_id=result.grammar_id,
        logprobs=[_logprob(logprob) for logprob in result.logprobs],
        logprob=result.logprob,
        score=result.score,
        reasoning=result.reasoning,
    )


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
