"""One request under way: its calls to the other services, its texts, and the release of all that it holds."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Any, TypeAlias, TypeVar

import structlog

from gateway import metrics
from gateway.clients.constraint import ConstraintCalls
from gateway.clients.model_worker import WorkerSteps
from gateway.decode.beam import BeamSearch, BeamSettings, BeamText
from gateway.decode.draws import Draw
from gateway.decode.guided import Guide
from gateway.decode.interfaces import KeywordReport
from gateway.decode.limits import Account, FinishReason, Limits
from gateway.decode.loop import DecodeLoop
from gateway.decode.output import Delta, Output
from gateway.decode.preamble import Preamble, taken_back
from gateway.decode.sampler import Sampler
from gateway.decode.score import TextScore, TokenLogprob, score
from gateway.decode.sequence import ModelSequence
from gateway.decode.values import ValueScanner
from gateway.request import GenerationRequest
from services.rpckit.status import ValidationFailed
from services.vocabulary import Vocabulary
from services.vocabulary.bitmask import Bitmask, BoolMask

_T = TypeVar("_T")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A finished text and how it came about; fields as in the proto messages GenerationResult, Usage and Timing."""

    text: str
    finish_reason: FinishReason
    is_complete: bool
    is_validated: bool
    token_ids: tuple[int, ...]
    spellings: tuple[bytes, ...]
    """The bytes of each token."""
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
    logprobs: tuple[TokenLogprob, ...] = ()
    logprob: float | None = None
    score: float | None = None
    reasoning: str = ""
    draws: tuple[Draw | None, ...] = ()
    """What the model thought of each token of a constrained text, None where it was not drawn but forced."""


Emit: TypeAlias = Callable[[int, Delta | GenerationResult], Awaitable[None]]
"""Takes what is new of the text of a number: pieces, then its result."""


class Generation:
    """The texts of one request: drawn side by side, or searched by a beam. Opened sequences are freed by `close`."""

    def __init__(
        self,
        request: GenerationRequest,
        *,
        prompt_token_ids: list[int],
        vocabulary: Vocabulary,
        plain_mask: BoolMask,
        limits: Limits,
        steps: WorkerSteps,
        calls: ConstraintCalls,
        arrived: float,
        emit: Emit,
    ) -> None:
        """Send the prompt. `plain_mask` is as for `DecodeLoop`, `arrived` when (`time.perf_counter`) this came."""
        self._request = request
        self._vocabulary = vocabulary
        self._plain_mask = plain_mask
        self._limits = limits
        self._steps = steps
        self._calls = calls
        self._arrived = arrived
        self._emit = emit
        self._name = f"gateway-{secrets.token_hex(12)}"
        self._healed = ""
        if request.heals_prompt:
            prompt_token_ids, self._healed = taken_back(prompt_token_ids, vocabulary)
        self._prompt_token_ids = prompt_token_ids
        self._prompt = ModelSequence(steps, self._name)
        self._open = {self._prompt}
        self._numbers = count()
        self._dropping: set[asyncio.Task[None]] = set()
        self._guide: Guide | None = None
        if request.constraint is not None:
            constraint = self._preamble().constraint_behind(request.constraint)
            self._guide = Guide(calls, constraint, request.compile_options)
        self._prompt.append(prompt_token_ids)

    async def run(self) -> list[GenerationResult]:
        """Return the texts: best first where they are ranked, else in the order of their numbers.

        Raises:
            ServiceError: as the contract of `GatewayService.Generate` says; one text's error is the request's.
        """
        request = self._request
        if self._guide is not None:
            await self._guide.start()  # while the prompt is on its way
        if request.beam is not None:
            return await self._search(request.beam)
        if not request.is_ranked:
            return await _together([self._draw(choice, self._emit) for choice in range(request.n)])

        async def hold(choice: int, piece: Delta | GenerationResult) -> None:
            """Let nothing out before all are ranked."""

        drawn = await _together([self._draw(choice, hold) for choice in range(request.num_drawn)])
        ranked = sorted(drawn, key=lambda result: -(result.score or 0.0))[: request.n]
        await self._tell(ranked)
        return ranked

    async def close(self) -> None:
        """Free all sequences and end the streams."""
        await self._calls.close()
        await asyncio.gather(*self._dropping, *(sequence.close() for sequence in self._open))
        await self._steps.close()

    async def _draw(self, choice: int, emit: Emit) -> GenerationResult:
        """Write the text of a number by drawing its tokens."""
        request = self._request
        is_alone = request.num_drawn == 1 and not request.needs_score
        sequence = self._prompt if is_alone else self._fork(self._prompt)
        guide = None if self._guide is None else self._guide.fork()
        preamble, values = self._preamble(), ValueScanner()

        async def part(delta: Delta) -> None:
            """Tell apart what is the answer."""
            parted = preamble.push(delta.text)
            found = values.push(parted.answer) if request.value_events else ()
            await emit(choice, replace(delta, text=parted.answer, reasoning=parted.reasoning, values=found))

        loop = DecodeLoop(
            sequence=sequence,
            guide=guide,
            vocabulary=self._vocabulary,
            plain_mask=self._plain_mask,
            sampler=Sampler(request.sampling, self._prompt_token_ids, choice=choice),
            stops=request.stops,
            stop_token_ids=request.stop_token_ids,
            limits=self._limits,
            emit=part,
            prefix=self._healed.encode(),
            interjection=self._reasoning_end(preamble),
            keeps_masks=request.num_top_logprobs is not None,
        )
        finish_reason = await loop.run()
        if request.value_events and (rest := values.finish()):
            await emit(choice, Delta("", 0, 0, values=rest))
        result = self._result(
            preamble.answer,
            finish_reason,
            loop.account,
            num_steps=sequence.num_steps,
            forward_us=sequence.forward_us,
            mask_us=0 if guide is None else guide.mask_us,
        )
        result = replace(result, reasoning=preamble.reasoning, draws=tuple(loop.account.draws))
        result = await self._judged(await self._scored(result, loop.account.masks))
        if request.is_ranked and result.logprob is not None:
            result = replace(result, score=result.logprob / max(1, len(result.token_ids)))
        self._count(result, loop.account)
        await emit(choice, result)
        return result

    def _preamble(self) -> Preamble:
        reasoning = self._request.reasoning
        return Preamble(healed=self._healed, reasoning_end=None if reasoning is None else reasoning.end)

    def _reasoning_end(self, preamble: Preamble) -> Callable[[int], Sequence[int]]:
        """Return what says which tokens must follow so many of the text: the end of a reasoning that is too long."""
        reasoning = self._request.reasoning
        if reasoning is None:
            return lambda num_tokens: ()
        limit = reasoning.max_tokens or self._limits.max_tokens // 2
        end = self._vocabulary.encode(reasoning.end)
        return lambda num_tokens: end if preamble.is_reasoning and num_tokens >= limit else ()

    async def _search(self, settings: BeamSettings) -> list[GenerationResult]:
        """Search texts by a beam."""
        request = self._request
        search = BeamSearch(
            sequence=self._fork(self._prompt),
            fork=self._fork,
            drop=self._drop,
            guide=None if self._guide is None else self._guide.fork(),
            vocabulary=self._vocabulary,
            plain_mask=self._plain_mask,
            sampler=Sampler(request.sampling, self._prompt_token_ids),
            stop_token_ids=request.stop_token_ids,
            limits=self._limits,
            settings=settings,
            keeps_masks=request.num_top_logprobs is not None,
        )
        found = await search.run()
        results = await _together([self._found(search, text) for text in found[: request.n]])
        await self._tell(results)
        return results

    async def _found(self, search: BeamSearch, text: BeamText) -> GenerationResult:
        output = Output((), is_strict=self._guide is not None)
        for token_id in text.token_ids:
            output.push(self._vocabulary.spelling(token_id), is_forced=False)
        output.finish()
        account = Account(
            token_ids=list(text.token_ids),
            num_forced_tokens=text.num_forced_tokens,
            num_dead_ends=search.num_dead_ends,
            written_at=[time.perf_counter()] * len(text.token_ids),
        )
        result = self._result(
            output.text,
            text.finish_reason,
            account,
            num_steps=search.num_steps,
            forward_us=text.forward_us,
            mask_us=text.mask_us,
        )
        result = replace(await self._judged(await self._scored(result, text.masks)), score=text.score)
        self._count(result, account)
        return result

    async def _tell(self, ranked: Sequence[GenerationResult]) -> None:
        """Let out whole texts, best first."""
        for rank, result in enumerate(ranked):
            scanner = ValueScanner()
            values = (*scanner.push(result.text), *scanner.finish()) if self._request.value_events else ()
            whole = Delta(result.text, len(result.token_ids), result.num_forced_tokens, result.reasoning, values)
            await self._emit(rank, whole)
            await self._emit(rank, result)

    async def _scored(self, result: GenerationResult, masks: Sequence[Bitmask]) -> GenerationResult:
        """Add what the model thought of the text, where that is needed: by one pass over all of it."""
        request = self._request
        if not request.needs_score:
            return result
        sequence = self._fork(self._prompt)
        found: TextScore = await score(
            sequence,
            result.token_ids,
            self._vocabulary,
            masks=None if request.num_top_logprobs is None else masks,
            num_top=request.num_top_logprobs or 0,
        )
        self._drop(sequence)
        return replace(
            result,
            logprobs=() if request.num_top_logprobs is None else found.tokens,
            logprob=found.logprob,
            num_steps=result.num_steps + sequence.num_steps - self._prompt.num_steps,
            forward_us=result.forward_us + sequence.forward_us - self._prompt.forward_us,
        )

    async def _judged(self, result: GenerationResult) -> GenerationResult:
        """Have a constrained text judged by the independent validator.

        Raises:
            ValidationFailed: it does not satisfy its constraint.
        """
        request = self._request
        if request.constraint is None:
            return result
        started = time.perf_counter()
        violations = await self._calls.validate(request.constraint, request.compile_options, result.text.encode())
        if violations:
            metrics.VALIDATION_FAILURES.inc()
            places = [violation.schema_pointer for violation in violations]
            _log.error("the validator refused a text that the masks let through", schema_pointers=places)
            raise ValidationFailed(
                "the finished text does not satisfy its constraint, by an independent validator: a bug of Espalier; "
                "the text is withheld",
                schema_pointer=places[0],
                num_violations=len(places),
            )
        now = time.perf_counter()
        return replace(result, is_validated=True, validate_s=now - started, total_s=now - self._arrived)

    def _result(
        self, text: str, finish_reason: FinishReason, account: Account, *, num_steps: int, forward_us: int, mask_us: int
    ) -> GenerationResult:
        now = time.perf_counter()
        written_at = account.written_at or [now]
        compiled = self._guide.compiled if self._guide is not None else None
        return GenerationResult(
            text=text,
            finish_reason=finish_reason,
            is_complete=finish_reason != "length",
            is_validated=False,
            token_ids=tuple(account.token_ids),
            spellings=tuple(map(self._vocabulary.spelling, account.token_ids)),
            keywords=compiled.keywords if compiled is not None else (),
            seed=self._request.sampling.seed,
            grammar_id=compiled.grammar_id if compiled is not None else "",
            num_prompt_tokens=len(self._prompt_token_ids),
            num_forced_tokens=account.num_forced_tokens,
            num_steps=num_steps,
            num_dead_ends=account.num_dead_ends,
            num_rolled_back_tokens=account.num_rolled_back_tokens,
            ttft_s=written_at[0] - self._arrived,
            tpot_s=(written_at[-1] - written_at[0]) / max(1, len(written_at) - 1),
            total_s=now - self._arrived,
            compile_us=compiled.compile_us if compiled is not None else 0,
            mask_us=mask_us,
            forward_us=forward_us,
            mask_wait_s=account.mask_wait_s,
            validate_s=0.0,
        )

    def _count(self, result: GenerationResult, account: Account) -> None:
        kind = "guided" if result.is_validated else "free"
        metrics.TTFT_SECONDS.labels(kind).observe(result.ttft_s)
        gaps = metrics.INTER_TOKEN_SECONDS.labels(kind)
        for earlier, later in pairwise(account.written_at):
            gaps.observe(later - earlier)
        if len(result.token_ids) > 1:
            metrics.TPOT_SECONDS.labels(kind).observe(result.tpot_s)
        for draw in account.draws:
            if draw is not None:
                metrics.REMOVED_MASS.observe(draw.removed_mass)
        metrics.PROMPT_TOKENS.inc(result.num_prompt_tokens)
        metrics.COMPLETION_TOKENS.inc(len(result.token_ids))
        metrics.FORCED_TOKENS.inc(result.num_forced_tokens)
        metrics.STEPS.inc(result.num_steps)
        metrics.BUDGET_ROLLBACKS.inc(account.num_budget_rollbacks)
        metrics.DEAD_ENDS.inc(result.num_dead_ends)
        metrics.ROLLED_BACK_TOKENS.inc(result.num_rolled_back_tokens)
        if result.is_validated:
            metrics.MASK_WAIT_SECONDS.observe(result.mask_wait_s)

    def _fork(self, sequence: ModelSequence) -> ModelSequence:
        child = sequence.fork(f"{self._name}-f{next(self._numbers)}")
        self._open.add(child)
        return child

    def _drop(self, sequence: ModelSequence) -> None:
        """Free a sequence that nobody needs any more, without waiting."""
        self._open.discard(sequence)
        task = asyncio.ensure_future(sequence.close())
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)


async def _together(parts: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Run all at once; the first error ends the others."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
