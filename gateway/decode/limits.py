"""What bounds one generation, what it did, and the errors where a bound is met."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gateway.decode.draws import Draw
from services.rpckit.status import BudgetTooSmall, ContextExceeded, DeadEnd, ServiceError, UnsatisfiableGrammar
from services.vocabulary.bitmask import Bitmask

FinishReason = Literal["stop", "length", "budget_closed"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds one generation and how it waits."""

    max_tokens: int
    """Most tokens to write."""
    is_context_bound: bool
    """Whether `max_tokens` is what the context leaves, rather than what was asked for."""
    forced_grace_s: float
    """How long a drawn token may wait for the mask behind it, so that the tokens forced there share its step."""
    max_budget_draws: int
    """Tokens drawn in vain because their shortest completion does not fit, before the witness is taken."""
    max_rollbacks: int
    """Dead ends that one generation may meet."""
    max_rollback_tokens: int
    """Tokens that one generation may take back because of them."""
    min_tokens: int = 0
    """Fewest tokens to write; with a constraint only where something else than the end may follow."""


@dataclass(slots=True)
class Account:
    """What a generation did, filled as it goes. What was taken back is only in the last three counts."""

    token_ids: list[int] = field(default_factory=list)
    written_at: list[float] = field(default_factory=list)
    """When (`time.perf_counter`) each token was written."""
    masks: list[Bitmask] = field(default_factory=list)
    """What was allowed in the place of each token, where that is kept."""
    draws: list[Draw | None] = field(default_factory=list)
    """What the model thought of each token of a constrained text; None: it had no say in it."""
    num_forced_tokens: int = 0
    mask_wait_s: float = 0.0
    num_budget_rollbacks: int = 0
    num_dead_ends: int = 0
    num_rolled_back_tokens: int = 0


def refuse_small_budget(limits: Limits, num_needed: int) -> None:
    """Refuse a generation whose shortest text, of `num_needed` tokens, does not fit.

    Raises:
        BudgetTooSmall, ContextExceeded: which of the two bounds it.
    """
    max_tokens = limits.max_tokens
    if num_needed <= max_tokens:
        return
    if limits.is_context_bound:
        raise ContextExceeded(
            f"a complete text takes at least {num_needed} tokens here and the prompt leaves {max_tokens} of the "
            "context: shorten the prompt",
            num_needed=num_needed,
            num_left=max_tokens,
        )
    raise BudgetTooSmall(
        f"max_tokens is {max_tokens}, but a complete text takes {num_needed} tokens here: allow at least that many",
        field="generation.max_tokens",
        max_tokens=max_tokens,
        num_needed=num_needed,
    )


def check_rollbacks(limits: Limits, account: Account, *, is_bound_by_budget: bool) -> None:
    """Refuse to go on past a limit.

    Raises:
        DeadEnd: says which.
    """
    for limit, value, most in (
        ("max_rollbacks", account.num_dead_ends, limits.max_rollbacks),
        ("max_rollback_tokens", account.num_rolled_back_tokens, limits.max_rollback_tokens),
    ):
        if value > most:
            raise DeadEnd(
                f"the constraint's checks left {account.num_dead_ends} ways without an end and "
                f"{account.num_rolled_back_tokens} tokens were taken back; {limit} allows {most}: try another seed or "
                "temperature, or relax what the report of keywords calls checked"
                + (", or allow more max_tokens" if is_bound_by_budget else ""),
                limit=limit,
                value=most,
            )


def no_text(limits: Limits, num_tokens: int, *, is_start: bool, is_bound_by_budget: bool) -> ServiceError:
    """Return the error for a text that no token may follow and of which nothing may be taken back.

    `num_tokens` are written; `is_start` says that they were forced from the start.
    """
    max_tokens = limits.max_tokens
    if is_bound_by_budget and limits.is_context_bound:
        return ContextExceeded(
            "no complete text was found in what the prompt leaves of the context, because the constraint's checks "
            f"refuse short ones: shorten the prompt, which leaves {max_tokens} tokens",
            num_left=max_tokens,
        )
    if is_bound_by_budget:
        return BudgetTooSmall(
            f"max_tokens is {max_tokens}, and no complete text was found within it, because the constraint's checks "
            "refuse short ones: allow more",
            field="generation.max_tokens",
            max_tokens=max_tokens,
        )
    if is_start:
        return UnsatisfiableGrammar(
            "no text satisfies the constraint: its checks leave every way in a dead end", field="generation.constraint"
        )
    return DeadEnd(
        f"the constraint's checks leave every way behind token {num_tokens} in a dead end, and what comes before is "
        "settled: something optional was begun that has no valid text; another seed may leave it out"
    )
