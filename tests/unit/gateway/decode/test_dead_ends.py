from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.decode.interfaces import Guidance, Logits, MatcherState
from gateway.decode.output import Output
from gateway.decode.sampler import Sampler, Sampling
from gateway.decode.sequence import ModelSequence
from services.rpckit.status import BudgetTooSmall, ContextExceeded, DeadEnd, NotReady, UnsatisfiableGrammar
from tests.support.decoding import PROMPT, decode
from tests.support.fake_services import (
    VOCAB_SIZE,
    CheckedLanguage,
    FakeWorker,
    FiniteLanguage,
    noise_logits,
    vocabulary,
)

# The mask allows all of them; a check that refuses those with a "b" in front leaves dead ends of all depths.
TEXTS = tuple(
    f"{first}: {second}{third}"
    for first in ("a", "b", "ab")
    for second in ("all", "10")
    for third in ("c", "가", "abc")
)
REFUSED = tuple(text for text in TEXTS if not text.startswith("a:"))
TIMINGS = ((0.0, 0.0, 0.0), (0.01, 0.0, 0.0), (0.01, 0.0005, 0.0), (0.0, 0.001, 0.0), (0.0, 0.0, 0.001))

checked_texts = st.lists(st.text("abc", min_size=1, max_size=5), min_size=2, max_size=9, unique=True)


def drawn(
    token_ids: Sequence[int], allowed: Sequence[int], sampling: Sampling, refused: frozenset[int] = frozenset()
) -> int | None:
    mask = np.zeros(VOCAB_SIZE, np.bool_)
    mask[list(allowed)] = True
    logits = noise_logits([*PROMPT, *token_ids])
    return Sampler(sampling).draw(logits, mask, token_ids, excluded=refused)


def with_pruned_masks(language: CheckedLanguage, sampling: Sampling) -> list[int]:
    """One token after the other, on masks from which all that leads to no valid text was taken beforehand."""
    token_ids: list[int] = []
    while True:
        prefix = vocabulary().decode(token_ids)
        ends = set(vocabulary().eos_token_ids)
        allowed = [
            token_id
            for token_id in language.allowed(prefix)
            if token_id in ends or language.has_way(prefix + (vocabulary().token_bytes[token_id] or b""))
        ]
        if set(allowed) <= ends:
            return token_ids
        token_id = drawn(token_ids, allowed, sampling)
        assert token_id is not None
        if token_id in ends:
            return token_ids
        token_ids.append(token_id)


class NoTextError(Exception):
    """What is settled leads nowhere within the budget."""


def with_masks_of_the_found(language: CheckedLanguage, sampling: Sampling, max_tokens: int) -> list[int]:
    """The definition as a recursion: draw, mask what was found to lead nowhere. Budgets as docs/decoding.md says."""

    def behind(token_ids: list[int]) -> list[int] | None:
        prefix = vocabulary().decode(token_ids)
        left = max_tokens - len(token_ids)
        allowed, witness = language.allowed(prefix), language.witness(prefix)
        is_end = set(allowed) <= set(vocabulary().eos_token_ids) or left == 0
        if language.is_valid(prefix) and is_end:
            return token_ids
        refused: set[int] = set()
        while len(refused) < len(allowed):
            if len(witness) == left and witness[0] not in refused:
                token_id = witness[0]
            else:
                token = drawn(token_ids, allowed, sampling, frozenset(refused))
                assert token is not None
                token_id = token
            if token_id in vocabulary().eos_token_ids:
                return token_ids
            after = prefix + (vocabulary().token_bytes[token_id] or b"")
            forced = language.forced(after)
            end = after + vocabulary().decode(forced)
            is_dead_end = not language.allowed(end) and not language.is_valid(end)
            if not is_dead_end and len(forced) + len(language.witness(end)) <= left - 1:
                found = behind([*token_ids, token_id, *forced])
                if found is not None:
                    return found
                if language.is_settled(end):
                    raise NoTextError
            refused.add(token_id)
        return None

    found = behind(language.forced(b""))
    if found is None:
        raise NoTextError
    return found


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    texts=checked_texts,
    is_refused=st.lists(st.booleans(), min_size=9, max_size=9),
    temperature=st.sampled_from([0.0, 1.0, 5.0]),
    forcing=st.booleans(),
    looks_ahead=st.booleans(),
    settles=st.sampled_from(["late", "early", "never"]),
    timing=st.sampled_from(TIMINGS),
)
def test_what_is_written_is_what_masks_without_dead_ends_give(
    seed: int,
    texts: list[str],
    is_refused: list[bool],
    temperature: float,
    forcing: bool,
    looks_ahead: bool,
    settles: Literal["late", "early", "never"],
    timing: tuple[float, float, float],
) -> None:
    grace_s, mask_delay_s, step_delay_s = timing
    refused = [text for text, is_one in zip(texts[1:], is_refused, strict=False) if is_one]
    language = CheckedLanguage(
        texts, refused, looks_ahead=looks_ahead, settles=settles, delay_s=mask_delay_s, forcing=forcing
    )
    sampling = Sampling(temperature=temperature, seed=seed)
    run = asyncio.run(decode(language, FakeWorker(delay_s=step_delay_s), sampling=sampling, grace_s=grace_s))

    assert run.token_ids == with_pruned_masks(language, sampling)
    assert run.text.encode() == vocabulary().decode(run.token_ids)
    assert run.text.encode() in language.valid
    account = run.loop.account
    assert len(account.written_at) == len(run.token_ids)
    assert sum(delta.num_tokens for delta in run.deltas) == len(run.token_ids)
    assert sum(delta.num_forced_tokens for delta in run.deltas) == account.num_forced_tokens


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    texts=checked_texts,
    is_refused=st.lists(st.booleans(), min_size=9, max_size=9),
    slack=st.integers(0, 4),
    temperature=st.sampled_from([0.0, 1.0, 5.0]),
    top=st.sampled_from([(0, 1.0), (2, 1.0), (0, 0.7)]),
    forcing=st.booleans(),
    looks_ahead=st.booleans(),
    settles=st.sampled_from(["late", "early", "never"]),
    timing=st.sampled_from(TIMINGS[:3]),
)
def test_budgets_and_dead_ends_together(
    seed: int,
    texts: list[str],
    is_refused: list[bool],
    slack: int,
    temperature: float,
    top: tuple[int, float],
    forcing: bool,
    looks_ahead: bool,
    settles: Literal["late", "early", "never"],
    timing: tuple[float, float, float],
) -> None:
    grace_s, mask_delay_s, step_delay_s = timing
    refused = [text for text, is_one in zip(texts, is_refused, strict=False) if is_one]
    language = CheckedLanguage(
        texts, refused, looks_ahead=looks_ahead, settles=settles, delay_s=mask_delay_s, forcing=forcing
    )
    sampling = Sampling(temperature=temperature, top_k=top[0], top_p=top[1], seed=seed)
    start = language.forced(b"")
    max_tokens = max(1, len(start) + len(language.witness(vocabulary().decode(start))) + slack)
    writing = decode(
        language,
        FakeWorker(delay_s=step_delay_s),
        sampling=sampling,
        max_tokens=max_tokens,
        grace_s=grace_s,
        max_budget_draws=1000,
    )
    try:
        expected = with_masks_of_the_found(language, sampling, max_tokens)
    except NoTextError:
        with pytest.raises((BudgetTooSmall, UnsatisfiableGrammar, DeadEnd)):
            asyncio.run(writing)
        return
    run = asyncio.run(writing)
    assert run.token_ids == expected
    assert run.text.encode() in language.valid
    assert len(run.token_ids) <= max_tokens


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    middles=st.lists(st.sampled_from(["a", "ab", "abc", "k"]), min_size=1, unique=True),
    max_tokens=st.integers(3, 9),
    forcing=st.booleans(),
)
def test_a_state_is_dead_with_so_many_tokens_left(
    seed: int, middles: list[str], max_tokens: int, forcing: bool
) -> None:
    # "ll", "ab" and "abc" are tokens, so that a state is reached with more left or less.
    texts = [f"ll{middle}ab{end}" for middle in middles for end in ("x", "123", "4567")]
    refused = [text for text in texts if text.endswith("x")]
    language = CheckedLanguage(texts, refused, looks_ahead=False, settles="never", forcing=forcing)
    sampling = Sampling(temperature=5, seed=seed)
    writing = decode(language, sampling=sampling, max_tokens=max_tokens, max_budget_draws=1000)
    try:
        expected = with_masks_of_the_found(language, sampling, max_tokens)
    except NoTextError:
        with pytest.raises(BudgetTooSmall):
            asyncio.run(writing)
        return
    assert asyncio.run(writing).token_ids == expected


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), slack=st.integers(0, 12), max_budget_draws=st.integers(1, 3))
def test_few_budget_draws_give_a_valid_text_or_an_error(seed: int, slack: int, max_budget_draws: int) -> None:
    language = CheckedLanguage(TEXTS, REFUSED, settles="never")
    max_tokens = len(language.witness(b"")) + slack
    sampling = Sampling(temperature=3, seed=seed)
    try:
        run = asyncio.run(decode(language, sampling=sampling, max_tokens=max_tokens, max_budget_draws=max_budget_draws))
    except BudgetTooSmall:
        return
    assert run.text.encode() in language.valid
    assert len(run.token_ids) <= max_tokens


def likes(text: str) -> FakeWorker:
    """A model that wants to write `text`, longest token first, and is indifferent after any other way."""

    def logits(token_ids: Sequence[int]) -> Logits:
        row = noise_logits(token_ids) / 100
        written = vocabulary().decode(list(token_ids[len(PROMPT) :]))
        if text.encode().startswith(written):
            rest = text.encode()[len(written) :]
            for token_id, token in enumerate(vocabulary().token_bytes):
                if token and rest.startswith(token):
                    row[token_id] += 100 + len(token)
        return row

    return FakeWorker(logits)


async def test_forced_tokens_are_passed_over_and_counted() -> None:
    # Behind the first "b" all is forced up to a choice between two refused texts.
    language = CheckedLanguage(["a", "bccc1", "bccc2"], ["bccc1", "bccc2"], looks_ahead=False)
    run = await decode(language, likes("bccc1"))
    account = run.loop.account
    assert (run.text, account.num_forced_tokens) == ("a", 0)
    assert account.num_dead_ends == 3  # each of the two texts, and "b" before them
    assert account.num_rolled_back_tokens == 4
    assert run.sequence.num_steps == len(run.worker.steps)
    assert run.worker.sequences == {}


async def test_a_dead_end_behind_forced_tokens_costs_no_written_token() -> None:
    language = CheckedLanguage(["a", "bccc"], ["bccc"], looks_ahead=False)
    run = await decode(language, likes("bccc"))
    account = run.loop.account
    assert (run.text, account.num_dead_ends, account.num_rolled_back_tokens) == ("a", 1, 0)


async def test_a_state_found_dead_is_not_searched_again_behind_another_way_to_it() -> None:
    # "a" and the "b" that it forces lead where "ab" led.
    refused = [f"ab{end}{last}" for end in "123456789" for last in "xyz"]
    run = await decode(CheckedLanguage([*refused, "l"], refused, looks_ahead=False), likes("ab1x"))
    assert run.text == "l"
    assert run.loop.account.num_dead_ends == len(refused) + 9 + 1 + 1  # the ends, "ab1" to "ab9", "ab", "a"


@pytest.mark.parametrize("forcing", [True, False])
async def test_a_state_dead_with_few_tokens_left_is_searched_again_with_more(forcing: bool) -> None:
    language = CheckedLanguage(["abkx", "abk123"], ["abkx"], looks_ahead=False, settles="never", forcing=forcing)

    def likes_single_bytes(token_ids: Sequence[int]) -> Logits:
        return np.array([len(token or b"") == 1 for token in vocabulary().token_bytes] + [0] * 20)[:VOCAB_SIZE] * 9.0

    run = await decode(language, FakeWorker(likes_single_bytes), max_tokens=5)
    assert [vocabulary().token_bytes[token_id] for token_id in run.token_ids] == [b"ab", b"k", b"1", b"2", b"3"]


async def test_text_is_held_until_it_is_settled() -> None:
    # In the second half only, a check is pending.
    firsts, seconds = ("aaa", "bbb"), ("1c", "1b", "2c")
    texts = [f"{first}-{second}-end" for first in firsts for second in seconds]
    refused = [text for text in texts if "-1" in text]

    class Settling(CheckedLanguage):
        def is_settled(self, prefix: bytes) -> bool:
            return len(prefix) <= 4 or prefix[4:5] == b"2"

    run = await decode(Settling(texts, refused, forcing=False), likes("aaa-1c-end"))
    pieces = [delta.text for delta in run.deltas]
    assert "".join(pieces) == "aaa-2c-end"
    assert run.loop.account.num_rolled_back_tokens > 3
    assert "1" not in "".join(pieces)
    assert pieces[:4] == ["a", "a", "a", "-"]  # let out one by one before the check began
    assert len(pieces) > 5  # and after it was decided


async def test_a_text_that_settles_only_at_its_end_is_one_delta() -> None:
    run = await decode(CheckedLanguage(TEXTS, REFUSED, settles="never"))
    assert [delta.text for delta in run.deltas] == [run.text]
    assert run.deltas[0].num_tokens == len(run.token_ids)


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1]])
async def test_going_back_to_the_prompt(prompt: Sequence[int]) -> None:
    language = CheckedLanguage(["ab1x", "ab2x", "c1", "c2"], ["ab1x", "ab2x"])
    expected = await decode(CheckedLanguage(["c1", "c2"], []), prompt=prompt, sampling=Sampling(temperature=2, seed=1))
    run = await decode(
        language,
        FakeWorker(lambda token_ids: noise_logits(token_ids) + prefers_ab(token_ids)),
        prompt=prompt,
        sampling=Sampling(temperature=2, seed=1),
    )
    assert run.text[0] == "c"
    assert run.loop.account.num_rolled_back_tokens > 0
    assert len(expected.token_ids) == len(run.token_ids)
    # The last token of the prompt is sent again for its logits.
    again = [step.token_ids for step in run.worker.steps if step.truncate_to == len(prompt) - 1]
    assert again == [tuple(prompt[-1:])]


def prefers_ab(token_ids: Sequence[int]) -> Logits:
    row = np.zeros(VOCAB_SIZE, np.float32)
    row[[i for i, token in enumerate(vocabulary().token_bytes) if token in {b"a", b"ab"}]] = 100
    return row


async def test_a_token_sent_in_vain_is_cut_off_when_the_next_one_is_sent_with_what_it_forces() -> None:
    class SlowToRefuse(CheckedLanguage):
        async def _advance(self, state: MatcherState | None, token_ids: Sequence[int]) -> Guidance:
            guidance = await super()._advance(state, token_ids)
            await asyncio.sleep(0.1 if guidance.is_dead_end else 0)
            return guidance

    language = SlowToRefuse(["a1", "bcccc1", "bcccc2"], ["a1"], looks_ahead=False)
    run = await decode(language, likes("a1"), grace_s=0.03)
    assert run.text.startswith("bcccc")
    in_vain, kept = run.worker.steps[1:3]
    assert len(in_vain.token_ids) == 1
    assert (kept.truncate_to, len(kept.token_ids)) == (len(PROMPT), 5)


async def test_a_sequence_lost_while_going_back_is_sent_again() -> None:
    sampling = Sampling(temperature=2, seed=3)
    expected = await decode(CheckedLanguage(TEXTS, REFUSED, settles="never"), likes("b: 10c"), sampling=sampling)
    is_lost = False

    def lose(number: int, worker: FakeWorker) -> None:
        nonlocal is_lost
        if worker.steps[number].truncate_to is not None and not is_lost:
            is_lost = True
            worker.sequences.clear()

    worker = likes("b: 10c")
    worker._fail = lose
    run = await decode(CheckedLanguage(TEXTS, REFUSED, settles="never"), worker, sampling=sampling)
    assert is_lost
    assert run.token_ids == expected.token_ids
    assert expected.loop.account.num_rolled_back_tokens > 0


async def test_states_lost_before_going_back_are_lost_once() -> None:
    # The whole history is of the service before its restart: each state of it is replayed, and none counts as a loss.
    sampling = Sampling(temperature=2, seed=3)
    texts = [f"{'a' * num}{end}" for num in range(1, 9) for end in "12"] + ["c"]
    language = CheckedLanguage(texts, texts[:-1], looks_ahead=False, settles="never")
    is_restarted = False

    def restart(number: int, worker: FakeWorker) -> None:
        nonlocal is_restarted
        if number == 6 and not is_restarted:
            is_restarted = True
            language.restart()

    worker = likes("a" * 8 + "1")
    worker._fail = restart
    run = await decode(language, worker, sampling=sampling)
    assert is_restarted
    assert run.text == "c"
    assert language.num_compiles == 2


async def test_a_limit_on_dead_ends() -> None:
    language = CheckedLanguage(TEXTS, REFUSED, settles="never")
    full = await decode(language, likes("b: 10c"))
    num_dead_ends = full.loop.account.num_dead_ends
    enough = await decode(language, likes("b: 10c"), max_rollbacks=num_dead_ends)
    assert enough.token_ids == full.token_ids
    with pytest.raises(DeadEnd, match=f"max_rollbacks allows {num_dead_ends - 1}") as caught:
        await decode(language, likes("b: 10c"), max_rollbacks=num_dead_ends - 1)
    assert caught.value.metadata == {"limit": "max_rollbacks", "value": str(num_dead_ends - 1)}


async def test_a_limit_on_tokens_taken_back() -> None:
    language = CheckedLanguage(TEXTS, REFUSED, settles="never")
    num_tokens = (await decode(language, likes("b: 10c"))).loop.account.num_rolled_back_tokens
    await decode(language, likes("b: 10c"), max_rollback_tokens=num_tokens)
    with pytest.raises(DeadEnd) as caught:
        await decode(language, likes("b: 10c"), max_rollback_tokens=num_tokens - 1)
    assert caught.value.metadata["limit"] == "max_rollback_tokens"


@pytest.mark.parametrize("looks_ahead", [True, False])
@pytest.mark.parametrize("texts", [["abc"], list(TEXTS)])
async def test_a_constraint_that_refuses_all_is_unsatisfiable(texts: list[str], looks_ahead: bool) -> None:
    with pytest.raises(UnsatisfiableGrammar):
        await decode(CheckedLanguage(texts, texts, looks_ahead=looks_ahead))


@pytest.mark.parametrize(("is_context_bound", "error"), [(False, BudgetTooSmall), (True, ContextExceeded)])
async def test_a_budget_in_which_checks_leave_nothing(is_context_bound: bool, error: type[Exception]) -> None:
    texts = ["ll", "abcabcabcabc"]
    with pytest.raises(error, match="checks refuse short ones"):
        await decode(CheckedLanguage(texts, texts[:1]), max_tokens=3, is_context_bound=is_context_bound)


async def test_a_state_whose_witness_is_refused_is_left_after_so_many_budget_draws() -> None:
    class Counting(CheckedLanguage):
        num_moves = 0

        async def _advance(self, state: MatcherState | None, token_ids: Sequence[int]) -> Guidance:
            self.num_moves += 1
            return await super()._advance(state, token_ids)

    language = Counting(["xy", *(f"{first}abababababab" for first in "123456789")], ["xy"])
    with pytest.raises(BudgetTooSmall):
        await decode(language, max_tokens=2, max_budget_draws=3)
    assert language.num_moves == 1 + 3


async def test_settled_text_without_a_way_on_is_an_error() -> None:
    class Hasty(CheckedLanguage):
        def is_settled(self, prefix: bytes) -> bool:
            return True

    with pytest.raises(DeadEnd, match="is settled"):
        await decode(Hasty(["ab1x", "ab2x", "c"], ["ab1x", "ab2x"]), likes("ab1x"))


async def test_a_text_whose_end_is_refused_is_not_complete_though_its_witness_has_no_token() -> None:
    class OfTheGrammar(CheckedLanguage):
        def witness(self, prefix: bytes) -> list[int]:
            return [] if prefix in self.texts else super().witness(prefix)

    language = OfTheGrammar(["ab", "abcc"], ["ab"], forcing=False)
    assert (await decode(language)).text == "abcc"
    with pytest.raises(BudgetTooSmall):
        await decode(language, max_tokens=1)


async def test_a_complete_text_ends_when_nothing_longer_fits() -> None:
    # The witness of a complete text is to end it.
    run = await decode(FiniteLanguage(["ab", *(f"ab{i}cccc" for i in range(9))]), max_tokens=3, max_budget_draws=2)
    assert (run.text, run.reason) == ("ab", "budget_closed")


async def test_nothing_is_held_or_sent_again_where_nothing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("only for texts that may be taken back")

    monkeypatch.setattr(Output, "hold", refuse)
    run = await decode(FiniteLanguage(TEXTS), sampling=Sampling(temperature=1, seed=5))
    assert run.text in TEXTS
    assert len(run.loop._points) == 1
    assert run.loop.account.num_dead_ends == run.loop.account.num_rolled_back_tokens == 0
    assert all(step.truncate_to is None for step in run.worker.steps)


async def test_a_sequence_that_goes_back_has_the_same_logits_again() -> None:
    worker = FakeWorker()
    sequence = ModelSequence(worker, "s")
    sequence.append([5, 6, 7])
    before = await sequence.logits()
    sequence.append([8, 9])
    sequence.back_to(3)
    assert np.array_equal(await sequence.logits(), before)
    assert worker.sequences == {"s": [5, 6, 7]}
    sequence.back_to(3)
    assert len(worker.steps) == 3  # nothing to do
    await sequence.close()


async def test_a_worker_that_loses_the_sequence_twice_while_going_back_is_an_error() -> None:
    def lose(number: int, worker: FakeWorker) -> None:
        if number > 2:
            worker.sequences.clear()

    worker = likes("b: 10c")
    worker._fail = lose
    with pytest.raises(NotReady, match="lost the sequence"):
        await decode(CheckedLanguage(TEXTS, REFUSED, settles="never"), worker)
