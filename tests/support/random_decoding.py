"""The decode loop in one process: a model that writes at random, and the engine behind no server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from gateway.decode.guided import Guide
from gateway.decode.interfaces import (
    Compiled,
    CompileOptions,
    Constraint,
    Guidance,
    Logits,
    MatcherState,
    Step,
    StepReply,
    Violation,
)
from gateway.decode.limits import Account, Limits
from gateway.decode.loop import DecodeLoop, FinishReason
from gateway.decode.output import Delta
from gateway.decode.sampler import Sampler, Sampling
from gateway.decode.sequence import ModelSequence
from services.constraint.composite_matcher import AnyMatcher
from services.constraint.core.engine import TERMINATED
from services.rpckit.status import DeadlineExceeded, ServiceError
from services.vocabulary import Vocabulary

# Rows of noise are taken from one long one, at a place of their own.
_NUM_PLACES: Final = 1 << 20
# Tokens after which one that begins with what ends a string or a container is e times as likely, and the most of it.
_PATIENCE: Final = 24
_MAX_IMPATIENCE: Final = 12
_ENDS: Final = frozenset(b'"]}')
_ENDS_FIRST: Final = (b'"', b"]", b"}")


class RandomModel:
    """Logits of a model that knows nothing but that texts end.

    Greedy decoding of them is sampling: each token's logit has Gumbel noise in it, of a seed and the position alone.
    Tokens that end a string or a container weigh as much as all others together, and those that do so at once weigh
    ever more.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        num_tokens = vocabulary.vocab_size
        self._noise = np.random.default_rng(0).gumbel(size=num_tokens + _NUM_PLACES).astype(np.float32)
        texts = [text or b"" for text in vocabulary.token_bytes]
        ends = np.array([not _ENDS.isdisjoint(text) for text in texts])
        self._bias = np.where(ends, np.log((num_tokens - ends.sum()) / ends.sum()), 0).astype(np.float32)
        impatient = [text[:1] in _ENDS_FIRST for text in texts]
        self._impatient = np.array(impatient, np.float32)
        self._end_token_ids = list(vocabulary.eos_token_ids)

    def logits(self, seed: int, position: int) -> Logits:
        """Return `(V,)` logits of the token that comes behind `position` others."""
        place = int(np.random.default_rng((seed, position)).integers(_NUM_PLACES))
        impatience = np.float32(min(position / _PATIENCE, _MAX_IMPATIENCE))
        row: Logits = self._noise[place : place + len(self._bias)] + self._bias + impatience * self._impatient
        row[self._end_token_ids] += np.float32(np.log(len(row)))
        return row


class RandomSteps:
    """A `StepStream` of a random model, whose sequences have one token of prompt."""

    def __init__(self, model: RandomModel, seed: int) -> None:
        self._model = model
        self._seed = seed

    def submit(self, step: Step) -> asyncio.Future[StepReply]:
        """Answer at once."""
        future: asyncio.Future[StepReply] = asyncio.get_running_loop().create_future()
        num_tokens = step.position + len(step.token_ids)
        future.set_result(StepReply(self._model.logits(self._seed, num_tokens - 1)[None], 0))
        return future

    async def release(self, sequence_ids: Sequence[str]) -> None:
        """Nothing is held."""


class EngineStream:
    """A `ConstraintStream` of one matcher."""

    def __init__(self, matcher: AnyMatcher) -> None:
        self._matcher = matcher

    async def compile(self, constraint: Constraint, options: CompileOptions) -> Compiled:
        """Return what comes first; the constraint is the matcher's, whatever is asked for."""
        return Compiled("", self._guidance(self._matcher.start), (), 0)

    def advance(
        self, grammar_id: str, state: MatcherState | None, token_ids: Sequence[int]
    ) -> asyncio.Future[Guidance]:
        """Answer at once."""
        future: asyncio.Future[Guidance] = asyncio.get_running_loop().create_future()
        begin = self._matcher.start if state is None else state.configuration_id
        try:
            future.set_result(self._guidance(self._matcher.accept(begin, token_ids)))
        except ServiceError as error:
            future.set_exception(error)
        return future

    async def validate(self, constraint: Constraint, options: CompileOptions, text: bytes) -> Sequence[Violation]:
        """Leave that to the caller."""
        raise NotImplementedError

    def _guidance(self, state: int) -> Guidance:
        guidance = self._matcher.guidance(state)
        return Guidance(
            state=self._state(guidance.state),
            forced_token_ids=guidance.forced_token_ids,
            after_forced=self._state(guidance.after_forced),
            bitmask=guidance.bitmask,
            num_allowed=guidance.num_allowed,
            is_accepting=guidance.is_accepting,
            witness_num_tokens=guidance.witness_num_tokens,
            witness_token_id=guidance.witness_token_id,
            is_settled=guidance.is_settled,
        )

    def _state(self, state: int) -> MatcherState:
        return MatcherState(self._matcher.epoch, state, is_terminated=state == TERMINATED)


@dataclass(frozen=True, slots=True)
class Written:
    """What one generation did; `error` is None where it wrote a text, and `text` empty where it did not."""

    text: str
    reason: FinishReason | None
    error: ServiceError | None
    account: Account


async def write(
    matcher: AnyMatcher, vocabulary: Vocabulary, model: RandomModel, *, seed: int, limits: Limits, limit_s: float
) -> Written:
    """Write one text, by the gateway's own loop, or stop after `limit_s` seconds."""
    sequence = ModelSequence(RandomSteps(model, seed), "s")
    sequence.append(vocabulary.eos_token_ids[:1])
    guide = Guide(EngineStream(matcher), Constraint("json_schema"), CompileOptions())
    await guide.start()
    loop = DecodeLoop(
        sequence=sequence,
        guide=guide,
        vocabulary=vocabulary,
        plain_mask=np.zeros(vocabulary.vocab_size, np.bool_),
        sampler=Sampler(Sampling()),
        stops=(),
        limits=limits,
        emit=_ignore,
    )
    try:
        async with asyncio.timeout(limit_s):
            reason = await loop.run()
    except TimeoutError:
        return Written("", None, DeadlineExceeded(f"no text within {limit_s} s"), loop.account)
    except ServiceError as error:
        return Written("", None, error, loop.account)
    finally:
        await sequence.close()
    return Written(loop.output.text, reason, None, loop.account)


async def _ignore(delta: Delta) -> None:
    """Let a delta go."""
