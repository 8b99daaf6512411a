"""The gateway's messages between their forms: protobuf on the wire, plain types inside."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, Final

from espalier.v1 import gateway_pb2 as pb
from espalier.v1 import types_pb2
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.unknown_fields import UnknownFieldSet

from gateway.decode.beam import BeamSettings
from gateway.decode.interfaces import CompileOptions, Constraint
from gateway.decode.sampler import Sampling
from gateway.decode.score import TokenLogprob
from gateway.extraction.extractor import ExtractionResult
from gateway.extraction.request import Document, Example, Extraction
from gateway.generation import GenerationResult
from gateway.request import (
    PRESETS,
    ChatPrompt,
    GenerationRequest,
    Message,
    Prompt,
    Reasoning,
    TextPrompt,
    TokenPrompt,
)
from services.rpckit.enums import number_of, words_of
from services.rpckit.rich_status import to_item_status
from services.rpckit.status import InvalidRequest, ServiceError

_DEFAULT_BATCH_CONCURRENT: Final = 8
_KINDS: Final = tuple(field.name for field in types_pb2.Constraint.DESCRIPTOR.oneofs_by_name["kind"].fields)


def read_generation(request: ProtoMessage, generation: pb.Generation) -> GenerationRequest:
    """Read what a request asks for.

    Raises:
        InvalidRequest: a field is unknown, missing or out of range; names it.
    """
    refuse_unknown_fields(request)
    return GenerationRequest(
        prompt=read_prompt(generation),
        constraint=_constraint(generation.constraint) if generation.HasField("constraint") else None,
        compile_options=_compile_options(generation.compile_options),
        sampling=_sampling(generation.sampling, default_seed=secrets.randbits(64)),
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


def read_extraction(request: ProtoMessage, extraction: pb.Extraction) -> Extraction:
    """Read what a request asks to extract.

    Raises:
        InvalidRequest: a field is unknown, missing or out of range; names it.
    """
    refuse_unknown_fields(request)
    timeout_ms = _given(extraction, "timeout_ms")
    given = {"instructions": extraction.instructions or None, "shows_schema": _given(extraction, "shows_schema")}
    with fields_of("extraction"):
        return Extraction(
            json_schema=extraction.json_schema,
            compile_options=_compile_options(extraction.compile_options, whitespace="spaced"),
            examples=tuple(Example(example.text, example.record) for example in extraction.examples),
            # Documents of a job differ, so the same seed does for all, and a record can be made again.
            sampling=_sampling(extraction.sampling, default_seed=0),
            beam=_beam(extraction.beam) if extraction.HasField("beam") else None,
            max_tokens=_given(extraction, "max_tokens"),
            timeout_s=None if timeout_ms is None else timeout_ms / 1e3,
            provenance=extraction.provenance,
            exact_scores=extraction.exact_scores,
            **{name: value for name, value in given.items() if value is not None},
        )


def read_batch(first: pb.ExtractBatchRequest, most_concurrent: int) -> tuple[Extraction, int]:
    """Read the first message of a batch: what to extract, and from how many documents at a time.

    Raises:
        InvalidRequest: as `read_extraction`; it has a document; more at a time than `most_concurrent`.
    """
    extraction = read_extraction(first, first.extraction)
    if not first.HasField("extraction") or first.HasField("document"):
        raise InvalidRequest("the first message has the extraction, and no document", field="extraction")
    given = _given(first, "max_concurrent")
    max_concurrent: int = min(_DEFAULT_BATCH_CONCURRENT, most_concurrent) if given is None else given
    if not 1 <= max_concurrent <= most_concurrent:
        raise InvalidRequest(
            f"`max_concurrent` is {max_concurrent}; it must be from 1 to {most_concurrent}", field="max_concurrent"
        )
    return extraction, max_concurrent


def read_document_of_batch(message: pb.ExtractBatchRequest) -> Document:
    """Read a later message of a batch.

    Raises:
        InvalidRequest: it has no document, or something else.
    """
    refuse_unknown_fields(message)
    if not message.HasField("document") or message.HasField("extraction"):
        raise InvalidRequest("each message but the first has a document, and nothing else", field="document")
    return read_document(message.document)


def read_document(document: pb.Document) -> Document:
    """Read a document."""
    return Document(document.id, document.text)


def _given(message: ProtoMessage, name: str) -> Any:
    """Return an optional field, None where it is not set."""
    return getattr(message, name) if message.HasField(name) else None


def _sampling(sampling: pb.Sampling, *, default_seed: int) -> Sampling:
    preset = words_of(sampling, "generation.sampling").get("preset")
    values = {
        name: getattr(sampling, name)
        for name in (field.name for field in fields(Sampling))
        if name != "logit_bias" and _given(sampling, name) is not None
    }
    values.setdefault("seed", default_seed)
    bias = tuple(sorted(sampling.logit_bias.items()))
    return replace(Sampling() if preset is None else PRESETS[preset], logit_bias=bias, **values)


def _reasoning(reasoning: pb.Reasoning) -> Reasoning:
    given = {name: _given(reasoning, name) for name in ("end", "max_tokens")}
    return Reasoning(**{name: value for name, value in given.items() if value is not None})


def _beam(beam: pb.Beam) -> BeamSettings:
    length_penalty = beam.length_penalty if beam.HasField("length_penalty") else 1.0
    return BeamSettings(beam.width, length_penalty, **words_of(beam, "generation.beam"))


@contextmanager
def fields_of(name: str) -> Iterator[None]:
    """Name fields in errors as they are in a request that has no `generation` but this message, or "" for none."""
    try:
        yield
    except ServiceError as error:
        if error.field is not None and error.field.startswith("generation."):
            inner = error.field.removeprefix("generation.").removeprefix("constraint.")
            inner = "json_schema" if inner == "constraint" else inner
            error.field = f"{name}.{inner}" if name else inner
        raise


def read_prompt(message: Any) -> Prompt:
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


def _compile_options(options: types_pb2.CompileOptions, **defaults: Any) -> CompileOptions:
    given = defaults | words_of(options, "generation.compile_options")
    if options.default_draft:
        given["default_draft"] = int(options.default_draft)
    return CompileOptions(
        **given, whitespace_pattern=options.whitespace_pattern, documents=tuple(sorted(options.documents.items()))
    )


def refuse_unknown_fields(message: ProtoMessage) -> None:
    """Raise InvalidRequest for what a newer client says and nobody here would heed."""
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


def logprob_message(logprob: TokenLogprob) -> pb.TokenLogprob:
    """Write what the model thought of a token."""
    return pb.TokenLogprob(
        token=pb.Token(id=logprob.token_id, spelling=logprob.spelling),
        logprob=logprob.logprob,
        masked_logprob=logprob.masked_logprob,
        removed_mass=logprob.removed_mass,
        num_allowed=logprob.num_allowed,
        top=[
            pb.TopLogprob(
                token=pb.Token(id=top.token_id, spelling=top.spelling),
                logprob=top.logprob,
                is_allowed=top.is_allowed,
            )
            for top in logprob.top
        ],
    )


def extraction_result_message(result: ExtractionResult) -> pb.ExtractionResult:
    """Write what came of a document."""
    message = pb.ExtractionResult(
        document_id=result.document_id,
        status=number_of(pb.ExtractionStatus.DESCRIPTOR, result.status),
        seed=result.seed,
        timing=pb.Timing(total_us=_us(result.total_s)),
        fields=[
            pb.FieldReport(
                pointer=field.pointer,
                mean_logprob=field.mean_logprob,
                num_tokens=field.num_tokens,
                span=None if field.span is None else pb.ByteSpan(start=field.span.start, end=field.span.end),
            )
            for field in result.fields
        ],
    )
    if result.generation is not None:
        message.record = result.generation.text
        message.usage.CopyFrom(_usage(result.generation))
        message.timing.CopyFrom(_timing(result.generation))
    if result.removed_mass is not None:
        message.removed_mass.CopyFrom(pb.Interval(low=result.removed_mass.low, high=result.removed_mass.high))
    if result.error is not None:
        message.error.CopyFrom(to_item_status(result.error))
    return message


def result_message(result: GenerationResult) -> pb.GenerationResult:
    """Write how a text came about."""
    return pb.GenerationResult(
        finish_reason=number_of(pb.FinishReason.DESCRIPTOR, result.finish_reason),
        is_complete=result.is_complete,
        is_validated=result.is_validated,
        token_ids=result.token_ids,
        usage=_usage(result),
        timing=_timing(result),
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
        logprobs=[logprob_message(logprob) for logprob in result.logprobs],
        logprob=result.logprob,
        score=result.score,
        reasoning=result.reasoning,
    )


def _usage(result: GenerationResult) -> pb.Usage:
    return pb.Usage(
        num_prompt_tokens=result.num_prompt_tokens,
        num_completion_tokens=len(result.token_ids),
        num_forced_tokens=result.num_forced_tokens,
        num_steps=result.num_steps,
        num_dead_ends=result.num_dead_ends,
        num_rolled_back_tokens=result.num_rolled_back_tokens,
    )


def _timing(result: GenerationResult) -> pb.Timing:
    return pb.Timing(
        ttft_us=_us(result.ttft_s),
        tpot_us=_us(result.tpot_s),
        total_us=_us(result.total_s),
        compile_us=result.compile_us,
        mask_us=result.mask_us,
        forward_us=result.forward_us,
        mask_wait_us=_us(result.mask_wait_s),
        validate_us=_us(result.validate_s),
    )


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
