"""What the gateway does, in plain types: requests let in, their prompts cut, the model behind them kept the same."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import structlog

from gateway import metrics
from gateway.admission import Admission
from gateway.chat import ChatTemplate
from gateway.clients.constraint import ConstraintCalls, ConstraintClient
from gateway.clients.model_worker import Model, ModelWorkerClient
from gateway.clients.peer import Metadata
from gateway.clients.replicas import Replicas
from gateway.decode.limits import Limits
from gateway.decode.loop import plain_mask
from gateway.decode.output import Delta
from gateway.decode.score import TextScore, score
from gateway.decode.sequence import ModelSequence
from gateway.genai_span import describe_request, describe_results
from gateway.generation import Emit, Generation, GenerationResult
from gateway.request import (
    DEFAULT_MAX_TOKENS,
    ChatPrompt,
    GenerationRequest,
    Prompt,
    ScoreRequest,
    TextPrompt,
    TokenPrompt,
    check_token_ids,
)
from gateway.settings import GatewaySettings
from services.rpckit.client_tls import ClientTls
from services.rpckit.status import (
    ContextExceeded,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    ServiceError,
    VocabularyMismatch,
)
from services.vocabulary import Vocabulary

if TYPE_CHECKING:
    from services.rpckit.spans import CallSpan

_T = TypeVar("_T")

_log = structlog.get_logger()


class _ModelChangedError(Exception):
    """The worker runs another model than the one whose tokens were sent; nothing has gone out yet."""


class Gateway:
    """Generations over the replicas of the model worker and of the constraint service."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.draining = asyncio.Event()
        """Set when the server is told to stop: streams that could go on for ever end what they have begun."""
        vocabularies: WeakValueDictionary[str, Vocabulary] = WeakValueDictionary()
        tls = ClientTls.of(settings)
        self._workers = Replicas(
            "worker",
            settings.worker_address,
            lambda peer: ModelWorkerClient(peer, step_timeout_s=settings.max_step_s, vocabularies=vocabularies),
            resolve_interval_s=settings.resolve_interval_s,
            tls=tls,
        )
        self._constraints = Replicas(
            "constraint",
            settings.constraint_address,
            ConstraintClient,
            resolve_interval_s=settings.resolve_interval_s,
            tls=tls,
        )
        self._admission = Admission(settings.max_running, settings.max_queued)
        self._closing: set[asyncio.Task[None]] = set()
        self._template_of = lru_cache(maxsize=2)(_template)
        self._plain_mask_of = lru_cache(maxsize=2)(plain_mask)

    async def start(self) -> None:
        """Wait until a worker is reached and a constraint service has its vocabulary, `startup_wait_s` at most.

        After that the gateway serves all the same, and each request is told which service is away.
        """
        until = time.monotonic() + self.settings.startup_wait_s
        last_logged = float("-inf")
        while True:
            try:
                model = await self.model()
                calls = self._open_calls(model, time.monotonic() + 10, ())
                try:
                    await calls.agree()
                finally:
                    await calls.close()
                _log.info("peers agree", model=model.name, vocabulary_digest=model.vocabulary_digest)
                return
            except ServiceError as error:
                if time.monotonic() >= until:
                    _log.warning("serving without all services", missing=error.message)
                    return
                if time.monotonic() - last_logged > 5:
                    last_logged = time.monotonic()
                    _log.info("waiting", reason=error.reason, message=error.message)
                await asyncio.sleep(0.5)

    async def stop(self) -> None:
        """Finish the releases under way, within a second, and disconnect."""
        if self._closing:
            await asyncio.wait(self._closing, timeout=1)
        await self._workers.close()
        await self._constraints.close()

    async def model(self) -> Model:
        """Say what model answers now."""

        async def ask(worker: ModelWorkerClient, model: Model) -> Model:
            return model if await worker.check(model, ()) else await worker.refresh(model)

        return await self._with_worker(ask)

    async def generate(
        self,
        request: GenerationRequest,
        emit: Emit | None,
        *,
        deadline_s: float | None = None,
        metadata: Metadata = (),
        is_patient: bool = False,
        span: CallSpan | None = None,
    ) -> list[GenerationResult]:
        """Write the texts of a request; pieces go to `emit` as they are written, then each text's result.

        Where a worker fails, another begins again, unless `emit` has had something; None: nobody reads along.
        `deadline_s` is what the caller has left; a caller that `is_patient` waits for its turn however many others do.
        `span` is that of a call that is for this alone. Everything the generation opened is released when this
        returns, raises or is cancelled.

        Raises:
            ServiceError: see the contract of `GatewayService.Generate`.
        """
        arrived = time.perf_counter()
        outcome = "CANCELLED"

        is_begun = False

        async def begin(choice: int, piece: Delta | GenerationResult) -> None:
            nonlocal is_begun
            if emit is not None:
                is_begun = True
                await emit(choice, piece)

        async def write(deadline: float) -> list[GenerationResult]:
            return await self._with_worker(
                lambda worker, model: self._generate(request, begin, arrived, deadline, metadata, worker, model, span),
                may_move=lambda: not is_begun,
            )

        try:
            results = await self._in_turn(write, deadline_s, is_patient=is_patient)
            outcome = results[0].finish_reason
            _count(results, time.perf_counter() - arrived)
            return results
        except ServiceError as error:
            outcome = error.reason
            raise
        except Exception:
            outcome = ServiceError.reason
            raise
        finally:
            metrics.FINISHED.labels(outcome).inc()

    async def score(
        self, request: ScoreRequest, *, deadline_s: float | None = None, metadata: Metadata = ()
    ) -> tuple[TextScore, int]:
        """Say how probable a text is behind a prompt; returns the number of the prompt's tokens as well.

        Raises:
            ServiceError: see the contract of `GatewayService.Score`.
        """

        async def ask(deadline: float) -> tuple[TextScore, int]:
            return await self._with_worker(
                lambda worker, model: self._score(request, deadline, metadata, worker, model)
            )

        return await self._in_turn(ask, deadline_s)

    async def tokenize(self, prompt: Prompt) -> tuple[list[tuple[int, bytes]], Model]:
        """Cut a prompt as `generate` does: ids and spellings, and the model whose tokens they are."""
        model = await self.model()
        token_ids = await self._encode(prompt, model)
        return [(token_id, model.vocabulary.spelling(token_id)) for token_id in token_ids], model

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Put tokens together; what is no UTF-8 is U+FFFD."""
        model = await self.model()
        check_token_ids("token_ids.ids", token_ids, model.vocab_size)
        spellings = (model.vocabulary.spelling(token_id) for token_id in token_ids)
        return b"".join(spellings).decode(errors="replace")

    async def _in_turn(
        self, work: Callable[[float], Awaitable[_T]], deadline_s: float | None, *, is_patient: bool = False
    ) -> _T:
        """Do what the limits let in, which gets the `time.monotonic` it must end by.

        Raises:
            OutOfCapacity: too many others wait.
            DeadlineExceeded: it takes longer than the caller or the settings allow.
        """
        seconds = min(self.settings.max_request_s, deadline_s if deadline_s is not None else float("inf"))
        deadline = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds), self._admission.turn(is_patient=is_patient):
                return await work(deadline)
        except TimeoutError:
            raise DeadlineExceeded(f"the text was not finished within {seconds:.3g} seconds") from None

    async def _with_worker(
        self, work: Callable[[ModelWorkerClient, Model], Awaitable[_T]], may_move: Callable[[], bool] = lambda: True
    ) -> _T:
        """Do what needs a worker: the least loaded, and where that fails, others, as long as the work `may_move`."""
        tried: set[str] = set()
        while True:
            replica = await self._workers.pick(self.settings.connect_wait_s, avoid=tried)
            try:
                with replica.request() as worker:
                    return await self._with_model(worker, partial(work, worker))
            except (NotReady, VocabularyMismatch) as error:
                if error.metadata.get("service") == "constraint":
                    raise
                tried.add(replica.address)
                if isinstance(error, NotReady):
                    self._workers.suspect(replica, error)
                if not may_move() or not self._workers.has_other(tried):
                    raise

    async def _with_model(self, worker: ModelWorkerClient, work: Callable[[Model], Awaitable[_T]]) -> _T:
        """Do what needs the worker's model, and once more where the worker has got another one meanwhile."""
        model = await worker.model()
        for _ in range(2):
            try:
                return await work(model)
            except _ModelChangedError:
                model = await worker.refresh(model)
        raise worker.peer.away("keeps changing its model; try again")

    def _open_calls(self, model: Model, deadline: float, metadata: Metadata) -> ConstraintCalls:
        return ConstraintCalls(
            self._constraints,
            vocabulary_digest=model.vocabulary_digest,
            deadline=deadline,
            connect_wait_s=self.settings.connect_wait_s,
            advance_timeout_s=self.settings.max_advance_s,
            metadata=metadata,
        )

    async def _score(
        self, request: ScoreRequest, deadline: float, metadata: Metadata, worker: ModelWorkerClient, model: Model
    ) -> tuple[TextScore, int]:
        vocabulary = model.vocabulary
        prompt_token_ids = await self._encode(request.prompt, model)
        if request.target_token_ids is None:
            self._check_size("text", len(request.target.encode()))
            token_ids = await asyncio.to_thread(vocabulary.encode, request.target)
        else:
            token_ids = list(request.target_token_ids)
        for field, ids in (("token_ids.ids", prompt_token_ids), ("text_token_ids.ids", token_ids)):
            check_token_ids(field, ids, model.vocab_size)
        num_tokens = len(prompt_token_ids) + len(token_ids)
        if num_tokens > model.context_length:
            raise ContextExceeded(
                f"the prompt's {len(prompt_token_ids)} tokens and the text's {len(token_ids)} do not fit into the "
                f"model's context of {model.context_length}: shorten one of them",
                num_prompt_tokens=len(prompt_token_ids),
                num_text_tokens=len(token_ids),
                context_length=model.context_length,
            )
        steps = worker.open_steps(deadline=deadline, metadata=metadata)
        sequence = ModelSequence(steps, f"gateway-{secrets.token_hex(12)}")
        try:
            sequence.append(prompt_token_ids)
            found = await score(
                sequence,
                token_ids,
                vocabulary,
                num_top=request.num_top,
                end_token_ids=vocabulary.eos_token_ids if request.with_end else (),
            )
            if not await worker.check(model, metadata):
                raise _ModelChangedError
            return found, len(prompt_token_ids)
        finally:

            async def close() -> None:
                await sequence.close()
                await steps.close()

            self._close(close())

    async def _generate(
        self,
        request: GenerationRequest,
        emit: Emit,
        arrived: float,
        deadline: float,
        metadata: Metadata,
        worker: ModelWorkerClient,
        model: Model,
        span: CallSpan | None,
    ) -> list[GenerationResult]:
        if span is not None:
            describe_request(span, request, model.name)
        request.check_tokens(model.vocab_size)
        prompt_token_ids = await self._encode(request.prompt, model)
        limits = self._limits(request, model, len(prompt_token_ids))
        # Asked while the prompt is on its way, so that it costs no time.
        checked = asyncio.ensure_future(worker.check(model, metadata))

        async def emit_checked(choice: int, piece: Delta | GenerationResult) -> None:
            if not await checked:
                raise _ModelChangedError
            await emit(choice, piece)

        generation = Generation(
            request,
            prompt_token_ids=prompt_token_ids,
            vocabulary=model.vocabulary,
            plain_mask=self._plain_mask_of(model.vocabulary),
            limits=limits,
            steps=worker.open_steps(deadline=deadline, metadata=metadata),
            calls=self._open_calls(model, deadline, metadata),
            arrived=arrived,
            emit=emit_checked,
        )
        try:
            results = await generation.run()
            if span is not None:
                describe_results(span, model.name, results)
            return results
        except Exception as error:
            # Another vocabulary explains errors that would be riddles else.
            await asyncio.wait({checked}, timeout=1)
            if checked.done() and checked.exception() is None and not checked.result():
                raise _ModelChangedError from error
            raise
        finally:
            checked.cancel()

            async def close() -> None:
                await asyncio.gather(checked, return_exceptions=True)
                await generation.close()

            self._close(close())

    def _close(self, closing: Coroutine[Any, Any, None]) -> None:
        """Free what a request held, in a task of its own: not the caller's time, nor cancelled with it."""
        task = asyncio.ensure_future(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _encode(self, prompt: Prompt, model: Model) -> list[int]:
        match prompt:
            case TokenPrompt():
                return list(prompt.token_ids)
            case TextPrompt():
                self._check_size("prompt", len(prompt.text.encode()))
                return await asyncio.to_thread(model.vocabulary.encode_prompt, prompt.text)
            case ChatPrompt(plain=str(plain)) if model.chat_template is None:
                return await self._encode(TextPrompt(plain), model)
            case ChatPrompt():
                self._check_size("chat", sum(len(message.content.encode()) for message in prompt.messages))
                return await asyncio.to_thread(self._template_of(model).encode, prompt)

    def _check_size(self, name: str, num_bytes: int) -> None:
        limit = self.settings.max_input_bytes
        if num_bytes > limit:
            raise InvalidRequest(
                f"`{name}` has {num_bytes} bytes; at most {limit} are taken", field=f"generation.{name}", limit=limit
            )

    def _limits(self, request: GenerationRequest, model: Model, num_prompt_tokens: int) -> Limits:
        num_left = model.context_length - num_prompt_tokens
        if num_prompt_tokens == 0:
            raise InvalidRequest("the prompt has no tokens", field="generation.prompt")
        if num_left < (request.max_tokens or 1):
            what = "one token more" if request.max_tokens is None else f"max_tokens {request.max_tokens}"
            raise ContextExceeded(
                f"the prompt's {num_prompt_tokens} tokens and {what} do not fit into the model's context of "
                f"{model.context_length}: shorten the prompt"
                + ("" if request.max_tokens is None else " or max_tokens"),
                num_prompt_tokens=num_prompt_tokens,
                max_tokens=request.max_tokens or 1,
                context_length=model.context_length,
            )
        is_context_bound = request.max_tokens is None and num_left < DEFAULT_MAX_TOKENS
        return Limits(
            max_tokens=request.max_tokens or min(DEFAULT_MAX_TOKENS, num_left),
            is_context_bound=is_context_bound,
            forced_grace_s=self.settings.forced_grace_ms / 1e3,
            max_budget_draws=self.settings.max_budget_draws,
            max_rollbacks=self.settings.max_rollbacks,
            max_rollback_tokens=self.settings.max_rollback_tokens,
            min_tokens=request.min_tokens,
        )


def _count(results: Sequence[GenerationResult], seconds: float) -> None:
    """Count a request that has all its texts."""
    kind = "guided" if results[0].is_validated else "free"
    metrics.REQUEST_SECONDS.labels(kind).observe(seconds)
    metrics.REQUEST_PROMPT_TOKENS.observe(results[0].num_prompt_tokens)
    metrics.REQUEST_COMPLETION_TOKENS.observe(sum(len(result.token_ids) for result in results))


def _template(model: Model) -> ChatTemplate:
    return ChatTemplate(model.chat_template, model.vocabulary, bos_token_id=model.bos_token_id)
