from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.decode.interfaces import Guidance, Logits, MatcherState
from gateway.decode.sampler import Sampler, Sampling
from services.rpckit.status import BudgetTooSmall, ContextExceeded, LeaseExpired, NotReady, OutOfFuel, ServiceError
from tests.support.decoding import PROMPT, decode
from tests.support.fake_services import EOS, VOCAB_SIZE, FakeWorker, FiniteLanguage, noise_logits, vocabulary

RECORDS = tuple(
    f'{{"name":"{name}","size":{size}{extra}}}'
    for name in ("김치", "abc", "", "😀ll")
    for size in (1, 10, 100)
    for extra in ("", ',"tags":["abc","한국"]')
)


def one_at_a_time(language: FiniteLanguage, sampling: Sampling, max_tokens: int) -> list[int]:
    """What the loop must write: full mask, full logits, one token after the other, nothing overlapped."""
    tokens: list[int] = []
    while True:
        prefix = vocabulary().decode(tokens)
        left = max_tokens - len(tokens)
        allowed, witness = language.allowed(prefix), language.witness(prefix)
        if not set(allowed) - set(vocabulary().eos_token_ids) or (left == 0 and not witness):
            return tokens
        mask = np.zeros(VOCAB_SIZE, np.bool_)
        mask[allowed if len(witness) < left else witness[:1]] = True
        excluded: set[int] = set()
        while True:
            token_id = Sampler(sampling).draw(noise_logits([*PROMPT, *tokens]), mask, tokens, excluded=excluded)
            assert token_id is not None
            if token_id in vocabulary().eos_token_ids:
                return tokens
            after = prefix + (vocabulary().token_bytes[token_id] or b"")
            if len(language.witness(after)) <= left - 1:
                break
            excluded.add(token_id)
        tokens.append(token_id)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    texts=st.lists(st.sampled_from(RECORDS), min_size=1, max_size=12, unique=True),
    slack=st.integers(0, 12),
    temperature=st.sampled_from([0.0, 1.0, 5.0]),
    top_p=st.sampled_from([1.0, 0.7]),
    forcing=st.booleans(),
    timing=st.sampled_from(
        [(0.0, 0.0, 0.0), (0.01, 0.0, 0.0), (0.01, 0.0005, 0.0), (0.0, 0.001, 0.0), (0.0, 0.0, 0.001)]
    ),
)
def test_any_overlap_writes_what_one_token_at_a_time_writes(
    seed: int,
    texts: list[str],
    slack: int,
    temperature: float,
    top_p: float,
    forcing: bool,
    timing: tuple[float, float, float],
) -> None:
    grace_s, mask_delay_s, step_delay_s = timing
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    language = FiniteLanguage(texts, delay_s=mask_delay_s, forcing=forcing)
    max_tokens = len(language.witness(b"")) + slack
    run = asyncio.run(
        decode(
            language,
            FakeWorker(delay_s=step_delay_s),
            sampling=sampling,
            max_tokens=max_tokens,
            grace_s=grace_s,
            max_budget_draws=1000,
        )
    )

    assert run.token_ids == one_at_a_time(language, sampling, max_tokens)
    assert run.text in texts
    assert run.text.encode() == vocabulary().decode(run.token_ids)
    assert len(run.token_ids) <= max_tokens
    assert sum(delta.num_tokens for delta in run.deltas) == len(run.token_ids)
    assert sum(delta.num_forced_tokens for delta in run.deltas) == run.loop.account.num_forced_tokens


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), slack=st.integers(0, 20), max_budget_draws=st.integers(1, 2))
def test_a_constrained_text_is_never_cut(seed: int, slack: int, max_budget_draws: int) -> None:
    language = FiniteLanguage(RECORDS)
    max_tokens = len(language.witness(b"")) + slack
    run = asyncio.run(
        decode(
            language,
            sampling=Sampling(temperature=3, seed=seed),
            max_tokens=max_tokens,
            max_budget_draws=max_budget_draws,
        )
    )
    assert run.text in RECORDS
    assert len(run.token_ids) <= max_tokens


async def test_the_tightest_budget_takes_the_witness_without_the_model() -> None:
    language = FiniteLanguage(RECORDS)
    run = await decode(language, max_tokens=len(language.witness(b"")))
    assert run.reason == "budget_closed"
    assert run.token_ids == language.witness(b"")
    assert run.sequence.num_steps == 1  # the prompt's, which was under way before the budget was known


async def test_a_budget_below_the_witness_is_refused_with_both_numbers() -> None:
    language = FiniteLanguage(RECORDS)
    needed = len(language.witness(b""))
    with pytest.raises(BudgetTooSmall) as caught:
        await decode(language, max_tokens=needed - 1)
    assert caught.value.metadata == {"max_tokens": str(needed - 1), "num_needed": str(needed)}


async def test_a_context_too_short_for_the_witness_is_refused() -> None:
    with pytest.raises(ContextExceeded):
        await decode(FiniteLanguage(RECORDS), max_tokens=3, is_context_bound=True)


async def test_a_mask_is_asked_for_while_the_worker_has_the_token() -> None:
    worker = FakeWorker()

    class Waiting(FiniteLanguage):
        """Answers once the worker has been sent what was asked for."""

        def advance(
            self, grammar_id: str, state: MatcherState | None, token_ids: Sequence[int]
        ) -> asyncio.Future[Guidance]:
            num_steps = len(worker.steps)

            async def answer() -> Guidance:
                while len(worker.steps) == num_steps:
                    await asyncio.sleep(0)
                return await self._advance(state, token_ids)

            return asyncio.ensure_future(answer())

    run = await asyncio.wait_for(decode(Waiting(RECORDS, forcing=False), worker), timeout=60)
    assert run.text in RECORDS
    assert [step.token_ids for step in worker.steps[1:]] == [(token_id,) for token_id in run.token_ids]


async def test_forced_tokens_share_a_step_within_the_grace_and_follow_in_one_without() -> None:
    texts = ["abc: forced tail one", "xyz: forced tail two"]
    with_grace = await decode(FiniteLanguage(texts), grace_s=0.05)
    without = await decode(FiniteLanguage([*texts, "abc: forced tail one, then more"], delay_s=0.002), grace_s=0.0)
    assert with_grace.token_ids
    assert with_grace.loop.account.num_forced_tokens > 10
    # The prompt, then x alone or nothing: after the forced tail only the end is left, and the model is not asked.
    assert with_grace.sequence.num_steps == 1
    sizes = [len(step.token_ids) for step in without.worker.steps]
    assert sizes[:2] == [len(PROMPT), 1]
    assert len(sizes) == 2 or sizes[2] > 5


async def test_a_text_that_is_forced_whole_needs_no_logits() -> None:
    run = await decode(FiniteLanguage(["only this"]))
    assert (run.text, run.reason, run.sequence.num_steps) == ("only this", "stop", 1)
    assert run.loop.account.num_forced_tokens == len(run.token_ids)


async def test_the_model_may_end_where_the_text_is_complete() -> None:
    def wants_to_end(token_ids: Sequence[int]) -> Logits:
        logits = noise_logits(token_ids)
        logits[EOS] = 100
        return logits

    run = await decode(FiniteLanguage(["ab", "abc", "abcd"]), FakeWorker(wants_to_end))
    assert (run.text, run.reason) == ("ab", "stop")
    assert EOS not in run.token_ids


async def test_free_text_ends_at_max_tokens() -> None:
    def never_ends(token_ids: Sequence[int]) -> Logits:
        logits = noise_logits(token_ids)
        logits[[0, EOS]] = -100
        return logits

    run = await decode(None, FakeWorker(never_ends), max_tokens=7)
    assert run.reason == "length"
    assert len(run.token_ids) == 7
    assert run.sequence.num_steps == 7  # the seventh token is not sent
    assert run.text == vocabulary().decode(run.token_ids).decode(errors="replace")


async def test_free_text_ends_at_a_stop_text() -> None:
    script = [ord(character) for character in "one two STOP three"]
    byte_ids = {token: i for i, token in enumerate(vocabulary().token_bytes) if token and len(token) == 1}

    def reads_script(token_ids: Sequence[int]) -> Logits:
        logits = np.zeros(VOCAB_SIZE, np.float32)
        logits[byte_ids[bytes([script[len(token_ids) - len(PROMPT)]])]] = 1
        return logits

    run = await decode(None, FakeWorker(reads_script), stops=("STOP",))
    assert (run.text, run.reason) == ("one two ", "stop")
    assert len(run.token_ids) == len("one two STOP")


async def test_free_text_never_takes_padding_or_special_tokens() -> None:
    def likes_padding(token_ids: Sequence[int]) -> Logits:
        logits = noise_logits(token_ids)
        logits[VOCAB_SIZE - 1] = logits[1] = 50
        return logits

    run = await decode(None, FakeWorker(likes_padding), max_tokens=5)
    assert {1, VOCAB_SIZE - 1}.isdisjoint(run.token_ids)


async def test_states_lost_by_the_constraint_service_are_rebuilt() -> None:
    expected = await decode(FiniteLanguage(RECORDS), sampling=Sampling(temperature=1, seed=4))
    language = FiniteLanguage(RECORDS)

    def restart(number: int, worker: FakeWorker) -> None:
        if number == 2:
            language.restart()

    run = await decode(language, FakeWorker(fail=restart), sampling=Sampling(temperature=1, seed=4))
    assert run.token_ids == expected.token_ids
    assert language.num_compiles == 2


async def test_states_lost_again_and_again_are_an_error() -> None:
    language = FiniteLanguage(RECORDS)

    def restart(number: int, worker: FakeWorker) -> None:
        language.restart()

    with pytest.raises(NotReady, match="lost the state 3 times"):
        await decode(language, FakeWorker(fail=restart), sampling=Sampling(temperature=1, seed=4))


async def test_a_sequence_lost_by_the_worker_is_sent_again_once() -> None:
    expected = await decode(FiniteLanguage(RECORDS), sampling=Sampling(temperature=1, seed=4))

    def lose(number: int, worker: FakeWorker) -> None:
        if number == 2:
            worker.sequences.clear()

    run = await decode(FiniteLanguage(RECORDS), FakeWorker(fail=lose), sampling=Sampling(temperature=1, seed=4))
    assert run.token_ids == expected.token_ids
    assert [step.position for step in run.worker.steps].count(0) == 2


async def test_a_worker_that_keeps_losing_the_sequence_is_an_error() -> None:
    def lose(number: int, worker: FakeWorker) -> None:
        if number > 0:
            raise LeaseExpired("no such sequence")

    with pytest.raises(NotReady, match="lost the sequence"):
        await decode(FiniteLanguage(RECORDS), FakeWorker(fail=lose))


async def test_the_first_of_several_errors_is_told() -> None:
    def fail(number: int, worker: FakeWorker) -> None:
        if number == 1:
            raise NotReady("gone")

    with pytest.raises(NotReady, match="gone"):
        await decode(None, FakeWorker(fail=fail))


async def test_an_error_of_one_mask_ends_the_generation_and_frees_the_sequence() -> None:
    language, worker = FiniteLanguage(RECORDS), FakeWorker()
    language.fail_next(OutOfFuel("too dear"))
    with pytest.raises(OutOfFuel):
        await decode(language, worker)
    assert worker.sequences == {}


async def test_cancelling_frees_the_sequence_even_while_its_prompt_is_read() -> None:
    worker = FakeWorker(delay_s=0.05)
    task = asyncio.ensure_future(decode(FiniteLanguage(RECORDS), worker))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert worker.num_replies == len(worker.steps)  # all came before the last release
    assert worker.sequences == {}


async def test_a_mask_without_tokens_is_named_a_bug() -> None:
    language = FiniteLanguage(RECORDS)
    language.allowed = lambda prefix: []  # type: ignore[method-assign]
    language.witness = lambda prefix: []  # type: ignore[method-assign]
    with pytest.raises(ServiceError, match="dead end"):
        await decode(language)


@pytest.mark.parametrize("grace_s", [0.0, 1.0])
async def test_each_token_that_is_drawn_is_observed(grace_s: float) -> None:
    run = await decode(FiniteLanguage(RECORDS), sampling=Sampling(temperature=1.0, seed=5), grace_s=grace_s)
    account = run.loop.account
    assert len(account.draws) == len(account.token_ids)
    seen = [draw for draw in account.draws if draw is not None]
    assert len(seen) == len(account.token_ids) - account.num_forced_tokens > 0
    assert all(draw.logprob < 0 and 0.5 < draw.removed_mass <= 1 for draw in seen)  # few of 288 tokens are allowed


async def test_draws_of_free_text_are_not_observed() -> None:
    assert (await decode(None, max_tokens=5)).loop.account.draws == []
