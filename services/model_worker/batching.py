"""What runs next: the queue of steps, their order, and the tokens of one forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from services.model_worker.routing import Routing
from services.model_worker.sequence import Experts, Logits, Step, Transaction

SHORT_TOKENS = 16
"""A step with so many tokens left, or fewer, comes before the others."""

StepKind = Literal["prefill", "decode"]


@dataclass(frozen=True)
class StepOutcome:
    """The answer to one step."""

    position: int
    """Tokens in the sequence now."""
    logits: Logits
    """`(num_rows, vocab_size)` float32."""
    queue_s: float
    forward_s: float
    num_cached_tokens: int = 0
    """Tokens of the step that were in the cache already."""
    experts: Experts | None = None
    """`(T, L, A)` of the tokens that were not, where the step asks for it."""
    routing: Routing | None = None
    """Sums over them, where the step asks for it."""
    kind: StepKind = "decode"
    started_s: float = 0.0
    """When its first forward pass began, by the engine's clock; it was answered at `ended_s`."""
    ended_s: float = 0.0


@dataclass(eq=False)
class PendingStep:
    """A step from its arrival to its answer. Cancelling `future` drops it, whether it waits or runs."""

    step: Step
    arrived_s: float
    stream: object = None
    """Whose it is: callers have their turns, however many sequences one has."""
    future: Future[StepOutcome] = field(default_factory=Future)
    transaction: Transaction | None = None
    num_done: int = 0
    """Tokens of the step that are in the cache."""
    num_cached_tokens: int = 0
    """Those among them that others had put there."""
    latest_round: int = 0
    """When the step began, or a part of it went through the model last."""
    started_s: float | None = None
    forward_s: float = 0.0
    rows: list[Logits] = field(default_factory=list)
    experts: list[Experts] = field(default_factory=list)
    routing: Routing | None = None

    @property
    def names(self) -> set[str]:
        """The sequences that the step reads or changes."""
        return {self.step.sequence_id} if self.step.fork_of is None else {self.step.sequence_id, self.step.fork_of}

    @property
    def kind(self) -> StepKind:
        """Whether the step creates a sequence or appends many tokens, or goes on by a few."""
        return "prefill" if self.step.position == 0 or len(self.step.token_ids) > SHORT_TOKENS else "decode"

    @property
    def num_left(self) -> int:
        """Tokens that must still go through the model."""
        return len(self.step.token_ids) - self.num_done

    def reuse(self) -> None:
        """Skip tokens that others have put into the cache meanwhile."""
        assert self.transaction is not None
        num_tokens = self.transaction.reuse(self.num_done)
        self.num_done += num_tokens
        self.num_cached_tokens += num_tokens


@dataclass(frozen=True)
class Chunk:
    """The part of a step that goes into one forward pass."""

    pending: PendingStep
    num_tokens: int


def startable(waiting: Iterable[PendingStep], running: Iterable[PendingStep]) -> list[PendingStep]:
    """Return the waiting steps that need not wait for an earlier one: those of one sequence keep their order.

    A fork takes what it needs of its parent when it begins, so that the parent and other forks of it may go on at once:
    all children of a beam are in one pass. They begin in the order of this list.
    """
    changed = {pending.step.sequence_id for pending in running}
    read: set[str] = set()
    """Parents of forks that have to wait."""
    result = []
    for pending in waiting:
        name, parent = pending.step.sequence_id, pending.step.fork_of
        if name in changed or name in read or parent in changed:
            read |= {parent} if parent is not None else set()
        else:
            result.append(pending)
        changed.add(name)
    return result


def plan_batch(running: Iterable[PendingStep], max_tokens: int) -> list[Chunk]:
    """Fill one forward pass with at most `max_tokens`.

    Short steps come first, the oldest of each stream, then the next of each: decode steps and what is forced with them
    cost little, and somebody waits for each of them. What is left, and a little that is kept for it so that nothing
    starves, goes to the long ones in turn: first the stream, and in it the step, that has waited longest since its
    latest part. Whoever would compute the same block as somebody before it waits a round and finds it in the cache.
    """
    by_age = sorted(running, key=lambda pending: pending.arrived_s)
    short = _one_of_each([pending for pending in by_age if pending.num_left <= SHORT_TOKENS])
    long = sorted((pending for pending in by_age if pending.num_left > SHORT_TOKENS), key=_latest_round)
    served = {pending.stream: pending.latest_round for pending in long}  # the latest of each stream is the last here
    in_turn = _one_of_each(sorted(long, key=lambda pending: served[pending.stream]))
    chunks = []
    kept = min(SHORT_TOKENS, max_tokens // 2) if long else 0
    budget = max_tokens - kept
    for pending in short:
        if budget > 0:
            chunks.append(Chunk(pending, min(pending.num_left, budget)))
            budget -= chunks[-1].num_tokens
    budget += kept
    planned_keys: set[bytes] = set()
    for pending in in_turn:
        assert pending.transaction is not None
        key = pending.transaction.next_key(pending.num_done)
        if budget == 0 or key in planned_keys:
            continue
        if key is not None:
            planned_keys.add(key)
        chunks.append(Chunk(pending, min(pending.num_left, budget)))
        budget -= chunks[-1].num_tokens
    return chunks


def _latest_round(pending: PendingStep) -> int:
    return pending.latest_round


def _one_of_each(steps: Iterable[PendingStep]) -> list[PendingStep]:
    """Put the first of each stream first, then the second of each, and so on; each in the order given."""
    num_before: Counter[object] = Counter()
    ranked: list[tuple[int, PendingStep]] = []
    for pending in steps:
        ranked.append((num_before[pending.stream], pending))
        num_before[pending.stream] += 1
    return [pending for _, pending in sorted(ranked, key=lambda item: item[0])]
