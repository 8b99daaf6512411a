"""What the gateway does, in plain types: one generation, from request to validated text."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import structlog

from gateway import metrics
from gateway.admission import Admission
from gateway.chat import ChatTemplate
from gateway.clients.constraint import ConstraintCalls, ConstraintClient
from gateway.clients.model_worker import Model, ModelWorkerClient, WorkerSteps
from gateway.clients.peer import Metadata
from gateway.decode.guided import Guide
from gateway.decode.interfaces import KeywordReport
from gateway.decode.limits import Limits
from gateway.decode.loop import DecodeLoop, FinishReason, plain_mask
from gateway.decode.output import Delta
from gateway.decode.sequence import ModelSequence
from gateway.request import DEFAULT_MAX_TOKENS, ChatPrompt, GenerationRequest, Prompt, TextPrompt, TokenPrompt
from gateway.settings import GatewaySettings
from services.rpckit.status import (
    ContextExceeded,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    ServiceError,
    ValidationFailed,
)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A finished text and how it came about; fields as in the proto messages GenerationResult, Usage and Timing."""

    text: str
    finish_reason: FinishReason
    is_complete: bool
    is_validated: bool
    token_ids: tuple[int, ...]
    keywords: tuple[KeywordReport, ...]
    seed: int
    grammar_id: str
    num_prompt_tokens: int
    num_forced_tokens: int
    num_steps: int
    num_dead_ends: int
    num_rolled_back_tokens: int
    ttft_s: float
    tpot_s: float
    total_s: float
    compile_us: int
    mask_us: int
    forward_us: int
    mask_wait_s: float
    validate_s: float


class _ModelChangedError(Exception):
    """The worker runs another model than the one whose tokens were sent; nothing has gone out yet."""


class Gateway:
    """Generations over one model worker and one constraint service."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._worker = ModelWorkerClient(settings.worker_address, step_timeout_s=settings.max_step_s)
        self._constraint = ConstraintClient(settings.constraint_address, advance_timeout_s=settings.max_advance_s)
        self._admission = Admission(settings.max_running, settings.max_queued)
        self._closing: set[asyncio.Task[None]] = set()
        self._template_of = lru_cache(maxsize=2)(_template)
        self._plain_mask_of = lru_cache(maxsize=2)(plain_mask)

    async def start(self) -> None:
        """Wait until the worker is reached and the vocabularies agree, `startup_wait_s` at most.

        After that the gateway serves all the same, and each request is told which service is away.
        """
        until = time.monotonic() + self._settings.startup_wait_s
        last_logged = float("-inf")
        while True:
            try:
                model = await self._worker.refresh(None)
                await self._constraint.agree(model.vocabulary_digest, timeout_s=10)
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
        await self._worker.close()
        await self._constraint.close()

    async def model(self) -> Model:
        """Say what model answers now."""
        await self._worker.peer.connect(self._settings.connect_wait_s)
        model = await self._worker.model()
        return model if await self._worker.check(model, ()) else await self._worker.refresh(model)

    async def generate(
        self,
        request: GenerationRequest,
        emit: Callable[[Delta], Awaitable[None]],
        *,
        deadline_s: float | None = None,
        metadata: Metadata = (),
    ) -> GenerationResult:
        """Write a text; pieces go to `emit` as they are written.

        `deadline_s` is what the caller has left. Everything the generation opened is released when this returns,
        raises or is cancelled.

        Raises:
            ServiceError: see the contract of `GatewayService.Generate`.
        """
        arrived = time.perf_counter()
        seconds = min(self._settings.max_request_s, deadline_s if deadline_s is not None else float("inf"))
        deadline = time.monotonic() + seconds
        outcome = "CANCELLED"
        try:
            async with asyncio.timeout(seconds), self._admission.turn():
                result = await self._generate_with_model(request, emit, arrived, deadline, metadata)
            outcome = result.finish_reason
            return result
        except ServiceError as error:
            outcome = error.reason
            raise
        except TimeoutError:
            outcome = DeadlineExceeded.reason
            raise DeadlineExceeded(f"the text was not finished within {seconds:.3g} seconds") from None
        except Exception:
            outcome = ServiceError.reason
            raise
        finally:
            metrics.FINISHED.labels(outcome).inc()

    async def _generate_with_model(
        self,
        request: GenerationRequest,
        emit: Callable[[Delta], Awaitable[None]],
        arrived: float,
        deadline: float,
        metadata: Metadata,
    ) -> GenerationResult:
        await self._connect(request)
        model = await self._worker.model()
        for _ in range(2):
            try:
                return await self._generate(request, emit, arrived, deadline, metadata, model)
            except _ModelChangedError:
                model = await self._worker.refresh(model)
        raise NotReady("the model worker keeps changing its model; try again", service=self._worker.peer.name)

    async def _connect(self, request: GenerationRequest) -> None:
        wait_s = self._settings.connect_wait_s
        await self._worker.peer.connect(wait_s)
        if request.constraint is not None:
            await self._constraint.peer.connect(wait_s)

    async def _generate(
        self,
        request: GenerationRequest,
        emit: Callable[[Delta], Awaitable[None]],
        arrived: float,
        deadline: float,
        metadata: Metadata,
        model: Model,
    ) -> GenerationResult:
        prompt_token_ids = await self._encode(request.prompt, model)
        limits = self._limits(request, model, len(prompt_token_ids))
        steps = self._worker.open_steps(deadline=deadline, metadata=metadata)
        calls = self._constraint.open(vocabulary_digest=model.vocabulary_digest, deadline=deadline, metadata=metadata)
        sequence = ModelSequence(steps, f"gateway-{secrets.token_hex(12)}")
        guide = None
        if request.constraint is not None:
            guide = Guide(calls, request.constraint, request.compile_options)
        # Asked while the prompt is on its way, so that it costs no time.
        checked = asyncio.ensure_future(self._worker.check(model, metadata))

        async def emit_checked(delta: Delta) -> None:
            if not await checked:
                raise _ModelChangedError
            await emit(delta)

        try:
            sequence.append(prompt_token_ids)

            loop = DecodeLoop(
                sequence=sequence,
                guide=guide,
                vocabulary=model.vocabulary,
                plain_mask=self._plain_mask_of(model.vocabulary),
                sampling=request.sampling,
                stops=request.stops,
                limits=limits,
                emit=emit_checked,
            )
            try:
                finish_reason = await loop.run()
            except Exception as error:
                # Another vocabulary explains errors that would be riddles else.
                await asyncio.wait({checked}, timeout=1)
                if checked.done() and checked.exception() is None and not checked.result():
                    raise _ModelChangedError from error
                raise
            if not await checked:
                raise _ModelChangedError
            validated_from = time.perf_counter()
            if guide is not None:
                await self._validate(request, calls, loop.output.text)
            return self._account(
                request, loop, sequence, guide, finish_reason, len(prompt_token_ids), arrived, validated_from
            )
        finally:
            checked.cancel()
            self._close(sequence, steps, calls, checked)

    def _close(
        self, sequence: ModelSequence, steps: WorkerSteps, calls: ConstraintCalls, checked: asyncio.Task[bool]
    ) -> None:
        """Free the sequence and end the streams, in a task of its own: not the caller's time, nor cancelled with it."""

        async def close() -> None:
            await asyncio.gather(checked, return_exceptions=True)
            await calls.close()
            await sequence.close()
            await steps.close()

        task = asyncio.ensure_future(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _encode(self, prompt: Prompt, model: Model) -> list[int]:
        match prompt:
            case TokenPrompt():
                prompt.check(model.vocab_size)
                return list(prompt.token_ids)
            case TextPrompt():
                self._check_size("prompt", len(prompt.text.encode()))
                return await asyncio.to_thread(model.vocabulary.encode_prompt, prompt.text)
            case ChatPrompt():
                self._check_size("chat", sum(len(message.content.encode()) for message in prompt.messages))
                return await asyncio.to_thread(self._template_of(model).encode, prompt)

    def _check_size(self, name: str, num_bytes: int) -> None:
        limit = self._settings.max_input_bytes
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
            forced_grace_s=self._settings.forced_grace_ms / 1e3,
            max_budget_draws=self._settings.max_budget_draws,
            max_rollbacks=self._settings.max_rollbacks,
            max_rollback_tokens=self._settings.max_rollback_tokens,
        )

    async def _validate(self, request: GenerationRequest, calls: ConstraintCalls, text: str) -> None:
        assert request.constraint is not None
        violations = await calls.validate(request.constraint, request.compile_options, text.encode())
        if not violations:
            return
        metrics.VALIDATION_FAILURES.inc()
        places = [violation.schema_pointer for violation in violations]
        _log.error("the validator refused a text that the masks let through", schema_pointers=places)
        raise ValidationFailed(
            "the finished text does not satisfy its constraint, by an independent validator: a bug of Espalier; "
            "the text is withheld",
            schema_pointer=places[0],
            num_violations=len(places),
        )

    def _account(
        self,
        request: GenerationRequest,
        loop: DecodeLoop,
        sequence: ModelSequence,
        guide: Guide | None,
        finish_reason: FinishReason,
        num_prompt_tokens: int,
        arrived: float,
        validated_from: float,
    ) -> GenerationResult:
        now, account = time.perf_counter(), loop.account
        written_at = account.written_at or [validated_from]
        gaps_s = [later - earlier for earlier, later in pairwise(written_at)]
        compiled = guide.compiled if guide is not None else None
        result = GenerationResult(
            text=loop.output.text,
            finish_reason=finish_reason,
            is_complete=finish_reason != "length",
            is_validated=guide is not None,
            token_ids=tuple(account.token_ids),
            keywords=compiled.keywords if compiled is not None else (),
            seed=request.sampling.seed,
            grammar_id=compiled.grammar_id if compiled is not None else "",
            num_prompt_tokens=num_prompt_tokens,
            num_forced_tokens=account.num_forced_tokens,
            num_steps=sequence.num_steps,
            num_dead_ends=account.num_dead_ends,
            num_rolled_back_tokens=account.num_rolled_back_tokens,
            ttft_s=written_at[0] - arrived,
            tpot_s=sum(gaps_s) / len(gaps_s) if gaps_s else 0.0,
            total_s=now - arrived,
            compile_us=compiled.compile_us if compiled is not None else 0,
            mask_us=guide.mask_us if guide is not None else 0,
            forward_us=sequence.forward_us,
            mask_wait_s=account.mask_wait_s,
            validate_s=now - validated_from if guide is not None else 0.0,
        )
        _count(result, gaps_s, account.num_budget_rollbacks)
        return result


def _count(result: GenerationResult, token_gaps_s: list[float], num_budget_rollbacks: int) -> None:
    kind = "guided" if result.is_validated else "free"
    metrics.TTFT_SECONDS.labels(kind).observe(result.ttft_s)
    gaps = metrics.INTER_TOKEN_SECONDS.labels(kind)
    for seconds in token_gaps_s:
        gaps.observe(seconds)
    metrics.PROMPT_TOKENS.inc(result.num_prompt_tokens)
    metrics.COMPLETION_TOKENS.inc(len(result.token_ids))
    metrics.FORCED_TOKENS.inc(result.num_forced_tokens)
    metrics.STEPS.inc(result.num_steps)
    metrics.BUDGET_ROLLBACKS.inc(num_budget_rollbacks)
    metrics.DEAD_ENDS.inc(result.num_dead_ends)
    metrics.ROLLED_BACK_TOKENS.inc(result.num_rolled_back_tokens)
    if result.is_validated:
        metrics.MASK_WAIT_SECONDS.observe(result.mask_wait_s)


def _template(model: Model) -> ChatTemplate:
    return ChatTemplate(model.chat_template, model.vocabulary, bos_token_id=model.bos_token_id)
