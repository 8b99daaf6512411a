"""The command as a client of running services: plain values in, protobuf on the wire."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import grpc
from espalier.v1 import (
    constraint_pb2,
    constraint_pb2_grpc,
    gateway_pb2,
    gateway_pb2_grpc,
    model_worker_pb2,
    model_worker_pb2_grpc,
    types_pb2,
)
from google.protobuf.json_format import MessageToDict

from gateway.cli.errors import BAD_USAGE, CommandError
from services.rpckit.bad_settings import BadSettingsError
from services.rpckit.client_tls import ClientTls, open_blocking_channel
from services.rpckit.enums import with_words, word_of
from services.rpckit.options import CHANNEL_OPTIONS
from services.rpckit.rich_status import from_item_status, from_rpc_error
from services.rpckit.status import DeadlineExceeded, NotReady

ConstraintKind = Literal["json_schema", "lark", "regex", "grammar_name"]


def make_constraint(kind: ConstraintKind | None, text: str = "", *, choices: tuple[str, ...] = ()) -> Any:
    """Make a `Constraint`; without a kind, of the choices where there are some, else None."""
    if kind is not None:
        constraint = types_pb2.Constraint()
        setattr(constraint, kind, text)
        return constraint
    return types_pb2.Constraint(choices=types_pb2.Choices(values=choices)) if choices else None


def make_options(options: Mapping[str, Any]) -> types_pb2.CompileOptions:
    """Make `CompileOptions` of plain values by name; `documents` has (URI, text) pairs."""
    return with_words(types_pb2.CompileOptions, **{**options, "documents": dict(options.get("documents", ()))})


def make_generation(
    *,
    prompt: str | None = None,
    chat: list[tuple[str, str]] | None = None,
    constraint: Any = None,
    options: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    beam: Mapping[str, Any] | None = None,
    **fields: Any,
) -> gateway_pb2.Generation:
    """Make a `Generation` of plain values.

    `chat` has (role, content) pairs, `sampling` and `beam` the fields of those messages, `fields` the other ones; what
    is None is not set.
    """
    generation = gateway_pb2.Generation(constraint=constraint, **fields)
    if prompt is not None:
        generation.prompt = prompt
    if chat is not None:
        messages = [gateway_pb2.ChatMessage(role=role, content=content) for role, content in chat]
        generation.chat.CopyFrom(gateway_pb2.Chat(messages=messages))
    if options:
        generation.compile_options.CopyFrom(make_options(options))
    for message, given in ((gateway_pb2.Sampling, sampling), (gateway_pb2.Beam, beam)):
        if given is not None:
            values = {name: value for name, value in given.items() if value is not None}
            getattr(generation, message.DESCRIPTOR.name.lower()).CopyFrom(with_words(message, **values))
    return generation


class _Client:
    """What the clients of all services share: a channel that is open as long as they are used."""

    def __init__(self, address: str, *, timeout_s: float) -> None:
        """Connect when first called."""
        self._address = address
        self._channel = _channel(address)
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        """Use until left."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self._channel.close()


class GatewayClient(_Client):
    """Calls a gateway. Every method raises `ServiceError` for what it answers."""

    def __init__(self, address: str, *, timeout_s: float) -> None:
        """Connect when first called."""
        super().__init__(address, timeout_s=timeout_s)
        self._stub = gateway_pb2_grpc.GatewayServiceStub(self._channel)

    def generate(self, generation: gateway_pb2.Generation) -> gateway_pb2.GenerateResponse:
        """Write a text."""
        with errors_of(self._address):
            return self._stub.Generate(gateway_pb2.GenerateRequest(generation=generation), timeout=self._timeout_s)

    def stream(self, generation: gateway_pb2.Generation) -> Iterator[gateway_pb2.GenerateStreamResponse]:
        """Write a text, piece by piece."""
        request = gateway_pb2.GenerateStreamRequest(generation=generation)
        with errors_of(self._address):
            yield from self._stub.GenerateStream(request, timeout=self._timeout_s)

    def score(self, **fields: Any) -> gateway_pb2.ScoreResponse:
        """Say how probable a text is; fields as in `ScoreRequest`."""
        with errors_of(self._address):
            return self._stub.Score(gateway_pb2.ScoreRequest(**fields), timeout=self._timeout_s)

    def tokenize(self, **prompt: Any) -> gateway_pb2.TokenizeResponse:
        """Cut a prompt into tokens; fields as in `TokenizeRequest`."""
        with errors_of(self._address):
            return self._stub.Tokenize(gateway_pb2.TokenizeRequest(**prompt), timeout=self._timeout_s)

    def model_info(self) -> gateway_pb2.GetModelInfoResponse:
        """Ask what model answers."""
        with errors_of(self._address):
            return self._stub.GetModelInfo(gateway_pb2.GetModelInfoRequest(), timeout=self._timeout_s)


class ConstraintClient(_Client):
    """Calls a constraint service. Every method raises `ServiceError` for what it answers."""

    def __init__(self, address: str, *, timeout_s: float) -> None:
        """Connect when first called."""
        super().__init__(address, timeout_s=timeout_s)
        self._stub = constraint_pb2_grpc.ConstraintServiceStub(self._channel)

    def compile(self, constraint: Any, options: Any, vocabulary_digest: str) -> constraint_pb2.CompileResponse:
        """Compile a constraint."""
        request = constraint_pb2.CompileRequest(
            constraint=constraint, options=options, vocabulary_digest=vocabulary_digest
        )
        with errors_of(self._address):
            return self._stub.Compile(request, timeout=self._timeout_s)

    def validate(self, constraint: Any, options: Any, text: bytes) -> constraint_pb2.ValidateResponse:
        """Judge a text."""
        request = constraint_pb2.ValidateRequest(constraint=constraint, options=options, text=text)
        with errors_of(self._address):
            return self._stub.Validate(request, timeout=self._timeout_s)

    def list_grammars(self) -> list[tuple[str, str]]:
        """List the named grammars with what each describes."""
        with errors_of(self._address):
            answer = self._stub.ListGrammars(constraint_pb2.ListGrammarsRequest(), timeout=self._timeout_s)
        return [(grammar.name, grammar.description) for grammar in answer.grammars]


class WorkerClient(_Client):
    """Calls a model worker. Every method raises `ServiceError` for what it answers."""

    def __init__(self, address: str, *, timeout_s: float) -> None:
        """Connect when first called."""
        super().__init__(address, timeout_s=timeout_s)
        self._stub = model_worker_pb2_grpc.ModelWorkerServiceStub(self._channel)

    def model(self) -> model_worker_pb2.GetModelResponse:
        """Ask what model runs there."""
        with errors_of(self._address):
            return self._stub.GetModel(model_worker_pb2.GetModelRequest(), timeout=self._timeout_s)

    def route(self, token_ids: Sequence[int]) -> model_worker_pb2.StepResult:
        """Run tokens through the model, all of them in one step, and tell which experts they went to."""
        name = f"routing-{secrets.token_hex(8)}"
        step = model_worker_pb2.SequenceStep(
            sequence_id=name,
            token_ids=token_ids,
            logits=model_worker_pb2.LOGITS_SELECTION_NONE,
            wants_experts=True,
            wants_routing=True,
            ignores_cache=True,
        )
        with errors_of(self._address):
            request = model_worker_pb2.StepLogitsRequest(steps=[step])
            try:
                (result,) = self._stub.StepLogits(request, timeout=self._timeout_s).results
            finally:
                self._stub.ReleaseSequences(
                    model_worker_pb2.ReleaseSequencesRequest(sequence_ids=[name]), timeout=self._timeout_s
                )
        if result.HasField("error"):
            raise from_item_status(result.error)
        return result


def as_json(message: Any) -> dict[str, Any]:
    """Show a message as JSON values, with the contract's field names."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_json(message: Any) -> None:
    """Print a message as one line of JSON."""
    print(json.dumps(as_json(message), ensure_ascii=False), flush=True)


def finish_reason(result: gateway_pb2.GenerationResult) -> str:
    """Name why a text ended, in lower case."""
    return str(word_of(gateway_pb2.FinishReason.DESCRIPTOR, result.finish_reason))


def enforcement(report: types_pb2.KeywordReport) -> str:
    """Name how a keyword is honoured, in lower case."""
    return str(word_of(types_pb2.Enforcement.DESCRIPTOR, report.enforcement))


def _channel(address: str) -> grpc.Channel:
    with settings_of_environment():
        return open_blocking_channel(address, ClientTls.of_environment(), CHANNEL_OPTIONS)


@contextlib.contextmanager
def settings_of_environment() -> Iterator[None]:
    """Raise what is wrong with settings that the environment gives the command as `CommandError`."""
    try:
        yield
    except BadSettingsError as error:
        raise CommandError(str(error), BAD_USAGE) from None


@contextlib.contextmanager
def errors_of(address: str) -> Iterator[None]:
    """Raise what a service at an address answers, or that it does not, as `ServiceError`."""
    try:
        yield
    except grpc.RpcError as error:
        said = from_rpc_error(error)
        # Without metadata it was gRPC on this side that gave up, not a service of ours that knows why.
        if isinstance(said, NotReady) and not said.metadata:
            said.message = (
                f"no answer from {address}: is `espalier up` running, and is the address right? ({said.message})"
            )
        elif isinstance(said, DeadlineExceeded) and not said.metadata:
            said.message = f"no full answer from {address} in time: allow more by --timeout ({said.message})"
        raise said from None
