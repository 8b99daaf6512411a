"""What runs next: the queue of steps, their order, and the tokens of one forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from services.model_worker.sequence import Logits, Step, Transaction


@dataclass(frozen=True)
class StepOutcome:
    """The answer to one step."""

    position: int
    """Tokens in the sequence now."""
    logits: Logits
    """`(num_rows, vocab_size)` float32."""
    queue_s: float
    forward_s: float


@dataclass(eq=False)
class PendingStep:
    """A step from its arrival to its answer. Cancelling `future` drops it, whether it waits or runs."""

    step: Step
    arrived_s: float
    future: Future[StepOutcome] = field(default_factory=Future)
    transaction: Transaction | None = None
    num_done: int = 0
    """Tokens of the step that have been through the model."""
    started_s: float | None = None
    forward_s: float = 0.0
    rows: list[Logits] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        """The sequences that the step reads or changes."""
        return {self.step.sequence_id} if self.step.fork_of is None else {self.step.sequence_id, self.step.fork_of}

    @property
    def num_left(self) -> int:
        """Tokens that have not been through the model."""
        return len(self.step.token_ids) - self.num_done


@dataclass(frozen=True)
class Chunk:
    """The part of a step that goes into one forward pass."""

    pending: PendingStep
    num_tokens: int


def startable(waiting: Iterable[PendingStep], running: Iterable[PendingStep]) -> list[PendingStep]:
    """Return the waiting steps that need not wait for an earlier one: those of one sequence keep their order."""
    busy: set[str] = set()
    for pending in running:
        busy |= pending.names
    result = []
    for pending in waiting:
        if busy.isdisjoint(pending.names):
            result.append(pending)
        busy |= pending.names
    return result


def plan_batch(running: Iterable[PendingStep], max_tokens: int, min_prefill_tokens: int) -> list[Chunk]:
    """Fill one forward pass with at most `max_tokens`.

    Decode steps (one token left) come first, oldest first: they cost little and somebody waits for each of them. What
    is left goes to longer steps, oldest first; the first always gets `min_prefill_tokens`, so that it ends some time.
    """
    by_age = sorted(running, key=lambda pending: pending.arrived_s)
    short = [pending for pending in by_age if pending.num_left == 1]
    long = [pending for pending in by_age if pending.num_left > 1]
    reserved = min(long[0].num_left, min_prefill_tokens) if long else 0
    chunks = [Chunk(pending, 1) for pending in short[: max(max_tokens - reserved, 0)]]
    budget = max_tokens - len(chunks)
    for pending in long:
        if budget <= 0:
            break
        chunks.append(Chunk(pending, min(pending.num_left, budget)))
        budget -= chunks[-1].num_tokens
    return chunks
