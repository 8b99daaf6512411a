"""Sequences and the steps that change them.

A step is a transaction: `SequenceTable.begin` takes everything it needs (the blocks above all), or raises and changes
nothing; `SequenceTable.commit` makes the change. A transaction that is given up instead leaves the sequence as it was,
even when half of a long prompt has run. What has run is published in the cache, and taken from there by others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from services.model_worker.kv_cache import ROOT_KEY, KvCache, OutOfBlocksError, block_keys, num_blocks_for
from services.model_worker.model.attention import BLOCK_TOKENS
from services.rpckit.status import ContextExceeded, InvalidRequest, LeaseExpired, OutOfCapacity, PositionMismatch

LogitsSelection = Literal["none", "last", "all"]
Logits = npt.NDArray[np.float32]
Experts = npt.NDArray[np.uint16]
"""`(num_rows, vocab_size)`."""

MAX_SEQUENCE_ID_BYTES = 128

_MAX_RETRY_AFTER_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """Appends tokens to a sequence, which it may create, fork or cut first."""

    sequence_id: str
    position: int
    token_ids: tuple[int, ...]
    truncate_to: int | None = None
    fork_of: str | None = None
    logits: LogitsSelection = "last"
    wants_experts: bool = False
    """Whether to tell which experts the tokens went to."""
    wants_routing: bool = False
    """Whether to tell what the routers did over all of them."""
    ignores_cache: bool = False
    """Whether to compute tokens that are in the cache, too."""

    @property
    def num_without_logits(self) -> int:
        """Tokens, from the first, whose logits nobody asks for."""
        return {"none": len(self.token_ids), "last": len(self.token_ids) - 1, "all": 0}[self.logits]


@dataclass(frozen=True)
class AppliedStep:
    """The latest step of a sequence and the logits behind its last token, so that a retry can be answered."""

    position: int
    token_ids: tuple[int, ...]
    fork_of: str | None
    last_logits: Logits | None
    """`(1, vocab_size)`, where the step asked for any."""

    def is_retried_by(self, step: Step) -> bool:
        """Say whether the step is this one, sent again."""
        return (self.position, self.token_ids, self.fork_of) == (step.position, step.token_ids, step.fork_of)


@dataclass
class Sequence:
    """Tokens in the cache under a name."""

    sequence_id: str
    last_used_s: float
    token_ids: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    """Of the full blocks."""
    latest: AppliedStep | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens in the cache."""
        return len(self.token_ids)


class Transaction:
    """A step under way. Blocks it took are its own until the end; blocks that fall away are kept until then."""

    def __init__(self, step: Step, source: Sequence | None, cache: KvCache) -> None:
        """Take what the step needs; `source` is the sequence it builds on.

        Raises:
            OutOfBlocksError: there is no room; nothing was taken.
        """
        self.step = step
        self._cache = cache
        num_full, num_partial = divmod(step.position, BLOCK_TOKENS)
        source = source or Sequence(step.sequence_id, 0.0)
        self.keys = source.keys[:num_full]
        """Of all blocks that will be full."""
        begun = source.token_ids[num_full * BLOCK_TOKENS : step.position]
        self.keys += block_keys(self.keys[-1] if num_full else ROOT_KEY, [*begun, *step.token_ids])
        num_replaceable = 0 if step.ignores_cache else step.num_without_logits
        self._num_reusable = (step.position + num_replaceable) // BLOCK_TOKENS
        """Blocks in whose place an equal one will do, as nobody asks for logits of their tokens."""
        self._num_published = num_full
        self.parent_token_ids = source.token_ids[: step.position] if step.fork_of is not None else []
        """What a fork begins with, even when its parent is released meanwhile."""

        held = source.block_ids[: num_blocks_for(step.position)]
        is_copied = num_partial > 0 and self._is_partial_block_copied(source, held[-1])
        kept = held[:-1] if is_copied else held
        found = [] if num_partial else self._find(num_full)
        self.num_cached_tokens = len(found) * BLOCK_TOKENS
        """Tokens of the step that were in the cache when it began."""
        # A fork holds the parent's blocks once more. What is found must be held before others are allocated.
        self._taken = [*kept, *found] if step.fork_of is not None else [*found]
        self._dropped = [] if step.fork_of is not None else source.block_ids[len(kept) :]
        cache.hold(self._taken)
        num_blocks = num_blocks_for(step.position + len(step.token_ids))
        try:
            fresh = cache.allocate(num_blocks - len(kept) - len(found))
        except OutOfBlocksError:
            cache.release(self._taken)
            raise
        if is_copied:
            cache.copy_block(held[-1], fresh[0])
        self._taken += fresh
        self.block_ids = [*kept, *found, *fresh]
        """What the sequence will have: room for all tokens of the step."""

    def _is_partial_block_copied(self, source: Sequence, block_id: int) -> bool:
        """Say whether the block that the step's first token goes into must stay as it is for somebody."""
        if self.step.fork_of is not None:
            return bool(self.step.token_ids)
        return self.step.position < source.num_tokens or not self._cache.is_writable(block_id)

    def _find(self, first: int) -> list[int]:
        """Return the published blocks, from the block number `first` on, that can stand for the step's own."""
        found = []
        for key in self.keys[first : self._num_reusable]:
            block_id = self._cache.find(key)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def next_key(self, num_done: int) -> bytes | None:
        """Return the key of the block that the next token starts, if an equal one would do."""
        number, offset = divmod(self.step.position + num_done, BLOCK_TOKENS)
        return self.keys[number] if offset == 0 and number < self._num_reusable else None

    def reuse(self, num_done: int) -> int:
        """Take blocks that others have published in place of those to be computed next; returns the tokens saved."""
        number = (self.step.position + num_done) // BLOCK_TOKENS
        found = self._find(number) if self.next_key(num_done) is not None else []
        self._cache.hold(found)
        for i, block_id in enumerate(found, number):
            self._taken[self._taken.index(self.block_ids[i])] = block_id
            self._cache.release([self.block_ids[i]])
            self.block_ids[i] = block_id
        return len(found) * BLOCK_TOKENS

    def publish(self, num_done: int) -> None:
        """Let others find the blocks that are full now that so many tokens of the step have run."""
        num_full = (self.step.position + num_done) // BLOCK_TOKENS
        for number in range(self._num_published, num_full):
            self._cache.publish(self.block_ids[number], self.keys[number])
        self._num_published = max(self._num_published, num_full)

    def finish(self, is_applied: bool) -> None:
        """Let go of the blocks that the outcome does not need."""
        self._cache.release(self._dropped if is_applied else self._taken)


class SequenceTable:
    """All open sequences of a worker. Used by one thread."""

    def __init__(
        self,
        cache: KvCache,
        *,
        vocab_size: int,
        context_length: int,
        max_sequences: int,
        lease_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._max_sequences = max_sequences
        self._lease_s = lease_s
        self._clock = clock
        self._sequences: dict[str, Sequence] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    def answer_retry(self, step: Step) -> tuple[int, Logits] | None:
        """Return position and logits where the step is the sequence's latest and its logits are still there."""
        sequence = self._sequences.get(step.sequence_id)
        if sequence is None or sequence.latest is None or not sequence.latest.is_retried_by(step):
            return None
        sequence.last_used_s = self._clock()
        no_rows = np.empty((0, self._vocab_size), dtype=np.float32)
        if step.wants_experts or step.wants_routing:
            return None  # neither is kept
        if step.logits == "none" or not step.token_ids:
            return sequence.num_tokens, no_rows
        if sequence.latest.last_logits is None or (step.logits == "all" and len(step.token_ids) > 1):
            return None  # `begin` applies it again, which gives the same
        return sequence.num_tokens, sequence.latest.last_logits

    def begin(self, step: Step) -> Transaction:
        """Check the step and take what it needs.

        Raises:
            InvalidRequest, ContextExceeded, PositionMismatch, LeaseExpired, OutOfCapacity: as the contract says.
        """
        self._check_fields(step)
        now = self._clock()
        sequence = self._sequences.get(step.sequence_id)
        source = self._source(step, sequence)
        if source is not None:
            source.last_used_s = now
        if sequence is None and len(self._sequences) >= self._max_sequences:
            raise OutOfCapacity(
                f"{self._max_sequences} sequences are open, no more are allowed; release some or try again",
                retry_after_s=self._retry_after_s(),
                max_sequences=self._max_sequences,
            )
        try:
            return Transaction(step, source, self._cache)
        except OutOfBlocksError:
            raise OutOfCapacity(
                f"the cache has no room for {len(step.token_ids)} more tokens; release sequences or try again",
                retry_after_s=self._retry_after_s(),
                num_free_tokens=self._cache.num_free_blocks * BLOCK_TOKENS,
            ) from None

    def commit(self, transaction: Transaction, last_logits: Logits | None) -> int:
        """Make the step's change; returns the number of tokens in the sequence now."""
        step = transaction.step
        transaction.finish(is_applied=True)
        sequence = self._sequences.get(step.sequence_id)
        if sequence is None:
            sequence = Sequence(step.sequence_id, self._clock(), transaction.parent_token_ids)
            self._sequences[step.sequence_id] = sequence
        sequence.token_ids[step.position :] = step.token_ids
        sequence.block_ids, sequence.keys = transaction.block_ids, transaction.keys
        sequence.last_used_s = self._clock()
        sequence.latest = AppliedStep(step.position, step.token_ids, step.fork_of, last_logits)
        return sequence.num_tokens

    def release(self, sequence_id: str) -> bool:
        """Free a sequence; returns whether it was known. No step of it may be under way."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return False
        self._cache.release(sequence.block_ids)
        return True

    def expire(self, in_use: frozenset[str] | set[str]) -> list[str]:
        """Free the sequences that nobody has used for as long as a lease, except those in use; returns their ids."""
        limit = self._clock() - self._lease_s
        expired = [item.sequence_id for item in self._sequences.values() if item.last_used_s <= limit]
        expired = [sequence_id for sequence_id in expired if sequence_id not in in_use]
        for sequence_id in expired:
            self.release(sequence_id)
        return expired

    def _check_fields(self, step: Step) -> None:
        if not step.sequence_id or len(step.sequence_id.encode()) > MAX_SEQUENCE_ID_BYTES:
            raise InvalidRequest(
                f"a step needs a sequence id of 1 to {MAX_SEQUENCE_ID_BYTES} bytes", field="sequence_id"
            )
        if step.truncate_to is not None and step.truncate_to != step.position:
            raise InvalidRequest(
                f"truncate_to is {step.truncate_to}, it must equal position, {step.position}", field="truncate_to"
            )
        if step.fork_of == step.sequence_id:
            raise InvalidRequest("a sequence cannot be a fork of itself; give the new one another id", field="fork_of")
        if not step.token_ids and (step.fork_of is None or step.position == 0):
            raise InvalidRequest(
                "a step needs tokens; only a fork of one token or more may have none", field="token_ids"
            )
        for index, token_id in enumerate(step.token_ids):
            if not 0 <= token_id < self._vocab_size:
                raise InvalidRequest(
                    f"token id {token_id} is outside the vocabulary of {self._vocab_size}", field=f"token_ids[{index}]"
                )
        num_tokens = step.position + len(step.token_ids)
        if num_tokens > self._context_length:
            raise ContextExceeded(
                f"the sequence would have {num_tokens} tokens, the context holds {self._context_length}",
                num_tokens=num_tokens,
                context_length=self._context_length,
            )

    def _source(self, step: Step, sequence: Sequence | None) -> Sequence | None:
        """Return the sequence whose first tokens the step builds on: itself, the parent of a fork, or nothing."""
        if step.fork_of is not None:
            if sequence is not None:
                raise InvalidRequest(
                    f"the sequence {step.sequence_id!r} exists; fork into another id, or release it first",
                    field="sequence_id",
                )
            parent = self._sequences.get(step.fork_of)
            if parent is None:
                raise LeaseExpired(
                    f"the parent {step.fork_of!r} is not known here: released, expired, or of another worker",
                    sequence_id=step.fork_of,
                )
            if step.position > parent.num_tokens:
                raise self._mismatch(step, parent)
            return parent
        if sequence is None:
            if step.position > 0:
                raise LeaseExpired(
                    f"the sequence {step.sequence_id!r} is not known here: released, expired, or of another worker; "
                    "send it again from position 0",
                    sequence_id=step.sequence_id,
                )
            return None
        is_retry = sequence.latest is not None and sequence.latest.is_retried_by(step)
        is_cut = step.truncate_to is not None and step.position <= sequence.num_tokens
        if step.position != sequence.num_tokens and not is_retry and not is_cut:
            raise self._mismatch(step, sequence)
        return sequence

    def _mismatch(self, step: Step, sequence: Sequence) -> PositionMismatch:
        return PositionMismatch(
            f"the step is for position {step.position}, the sequence {sequence.sequence_id!r} stands at "
            f"{sequence.num_tokens}; set truncate_to to go back",
            position=step.position,
            sequence_position=sequence.num_tokens,
        )

    def _retry_after_s(self) -> float:
        """Say when the next lease ends, at most a few seconds: sequences are mostly released long before."""
        if not self._sequences:
            return _MAX_RETRY_AFTER_S
        oldest = min(item.last_used_s for item in self._sequences.values())
        return min(max(oldest + self._lease_s - self._clock(), 0.1), _MAX_RETRY_AFTER_S)
