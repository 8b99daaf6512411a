"""The step protocol, on the toy model, one round at a time. The oracle of all logits is one prefill of the tokens."""

import os
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch

from services.model_worker.batching import StepOutcome
from services.model_worker.engine import ENGINE_FAILED_EXIT_CODE
from services.model_worker.runner import ModelRunner, RunnerInput, RunnerOutput
from services.model_worker.sequence import Step
from services.rpckit.status import (
    ContextExceeded,
    InvalidRequest,
    LeaseExpired,
    NotReady,
    OutOfCapacity,
    PositionMismatch,
    ServiceError,
)
from tests.support.toy_model import (
    TOLERANCE,
    DrivenEngine,
    deterministic_toy,
    prefill_logits,
    random_tokens,
    shared_toy,
)

TOKENS = random_tokens(150)


def assert_logits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE)


def test_decode_with_the_cache_is_one_prefill() -> None:
    driven = DrivenEngine()
    rows = [driven.one("a", 0, TOKENS[:20]).logits]
    rows += [driven.one("a", position, TOKENS[position : position + 1]).logits for position in range(20, 60)]
    assert_logits(np.concatenate(rows), prefill_logits(TOKENS[:60])[19:])


@pytest.mark.parametrize("max_batch_tokens", [16, 17, 64, 1000])
def test_a_prompt_in_pieces_is_the_whole_prompt(max_batch_tokens: int) -> None:
    driven = DrivenEngine(max_batch_tokens=max_batch_tokens)
    outcome = driven.one("a", 0, TOKENS, logits="all")
    assert outcome.position == len(TOKENS)
    assert_logits(outcome.logits, prefill_logits(TOKENS))


def test_logits_come_for_the_rows_that_are_asked_for() -> None:
    driven = DrivenEngine()
    assert driven.one("a", 0, TOKENS[:10], logits="none").logits.shape == (0, 300)
    assert_logits(driven.one("a", 10, TOKENS[10:13]).logits, prefill_logits(TOKENS[:13])[-1:])
    assert_logits(driven.one("a", 13, TOKENS[13:17], logits="all").logits, prefill_logits(TOKENS[:17])[-4:])


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_sixty_four_sequences_interleaved_are_each_alone(is_deterministic: bool) -> None:
    driven = DrivenEngine(deterministic_toy() if is_deterministic else None, num_blocks=1000)
    oracle = deterministic_toy() if is_deterministic else shared_toy()
    prompts = [random_tokens(5 + 3 * i, seed=i) for i in range(64)]
    first = driven.run(*(Step(sequence_id=str(i), position=0, token_ids=prompt) for i, prompt in enumerate(prompts)))
    second = driven.run(
        *(Step(sequence_id=str(i), position=len(prompt), token_ids=(i + 3,)) for i, prompt in enumerate(prompts))
    )
    for i, prompt in enumerate(prompts):
        expected = prefill_logits([*prompt, i + 3], oracle)[-2:]
        actual = np.concatenate([first[i].logits, second[i].logits])
        np.testing.assert_allclose(actual, expected, atol=0 if is_deterministic else TOLERANCE, rtol=0)
    assert second[0].forward_s == 0.0  # the clock stands; all were in flight
    assert driven.release(*map(str, range(64)), "never was") == 64
    assert driven.num_used_blocks == 0


@pytest.mark.parametrize("position", [1, 15, 16, 17, 32, 40])
def test_a_fork_and_its_parent_are_two_fresh_sequences(position: int) -> None:
    driven = DrivenEngine()
    driven.one("parent", 0, TOKENS[:40])
    other = random_tokens(20, seed=9)
    fork = driven.one("fork", position, other[:1], fork_of="parent")
    assert_logits(fork.logits, prefill_logits([*TOKENS[:position], other[0]])[-1:])
    parent = driven.one("parent", 40, TOKENS[40:45], logits="all")
    assert_logits(parent.logits, prefill_logits(TOKENS[:45])[-5:])
    fork = driven.one("fork", position + 1, other[1:], logits="all")
    assert_logits(fork.logits, prefill_logits([*TOKENS[:position], *other])[-19:])
    driven.release("parent")
    fork = driven.one("fork", position + 20, TOKENS[:1])
    assert_logits(fork.logits, prefill_logits([*TOKENS[:position], *other, TOKENS[0]])[-1:])
    driven.release("fork")
    assert driven.num_used_blocks == 0


def test_a_fork_that_appends_nothing_takes_no_block() -> None:
    driven = DrivenEngine()
    driven.one("parent", 0, TOKENS[:40])
    used = driven.num_used_blocks
    outcome = driven.one("fork", 39, (), fork_of="parent")
    assert (outcome.position, len(outcome.logits), driven.num_used_blocks) == (39, 0, used)
    # Both write into the block that they share; neither sees the other.
    assert_logits(driven.one("parent", 40, (7,)).logits, prefill_logits([*TOKENS[:40], 7])[-1:])
    assert_logits(driven.one("fork", 39, (8,)).logits, prefill_logits([*TOKENS[:39], 8])[-1:])


@pytest.mark.parametrize("position", [0, 1, 16, 31, 39, 40])
def test_a_cut_sequence_never_had_what_was_cut(position: int) -> None:
    driven = DrivenEngine()
    driven.one("a", 0, TOKENS[:40])
    outcome = driven.one("a", position, TOKENS[50:60], truncate_to=position, logits="all")
    assert outcome.position == position + 10
    assert_logits(outcome.logits, prefill_logits([*TOKENS[:position], *TOKENS[50:60]])[-10:])
    driven.release("a")
    assert driven.num_used_blocks == 0


def test_a_retry_is_answered_again_and_not_applied_twice() -> None:
    driven = DrivenEngine()
    driven.one("a", 0, TOKENS[:20])
    first = driven.one("a", 20, TOKENS[20:23])
    again = driven.one("a", 20, TOKENS[20:23])
    assert again.position == first.position == 23
    assert again.logits.tobytes() == first.logits.tobytes()
    # Asked for more than is kept, it is computed again in its place.
    assert_logits(driven.one("a", 20, TOKENS[20:23], logits="all").logits, prefill_logits(TOKENS[:23])[-3:])
    assert_logits(driven.one("a", 23, TOKENS[23:24]).logits, prefill_logits(TOKENS[:24])[-1:])


def test_a_retried_creation_and_a_retried_fork_are_recognised() -> None:
    driven = DrivenEngine()
    assert driven.one("a", 0, TOKENS[:20]).logits.tobytes() == driven.one("a", 0, TOKENS[:20]).logits.tobytes()
    first = driven.one("b", 10, (5,), fork_of="a")
    assert driven.one("b", 10, (5,), fork_of="a").logits.tobytes() == first.logits.tobytes()


def test_steps_of_one_batch_on_one_sequence_are_applied_in_order() -> None:
    driven = DrivenEngine()
    outcomes = driven.run(
        Step(sequence_id="a", position=0, token_ids=TOKENS[:100]),
        Step(sequence_id="b", position=50, token_ids=(5,), fork_of="a"),
        Step(sequence_id="a", position=20, token_ids=(6,), truncate_to=20),
        Step(sequence_id="c", position=21, token_ids=(7,), fork_of="a"),
    )
    expected = [TOKENS[:100], (*TOKENS[:50], 5), (*TOKENS[:20], 6), (*TOKENS[:20], 6, 7)]
    for outcome, token_ids in zip(outcomes, expected, strict=True):
        assert isinstance(outcome, StepOutcome)
        assert_logits(outcome.logits, prefill_logits(token_ids)[-1:])


def test_a_stream_with_many_sequences_does_not_hold_up_one_with_a_single_one() -> None:
    driven = DrivenEngine(max_batch_tokens=16, num_blocks=1000)
    prompts = [Step(sequence_id=f"m{i}", position=0, token_ids=random_tokens(3, seed=i)) for i in range(60)]
    many = driven.submit(*prompts, stream="many")
    (alone,) = driven.submit(Step(sequence_id="alone", position=0, token_ids=(5, 6)), stream="alone")
    driven.engine.step()
    assert alone.done()
    assert 0 < sum(future.done() for future in many) < 10


def test_long_prompts_of_streams_take_turns_however_many_a_stream_has() -> None:
    driven = DrivenEngine(max_batch_tokens=16, num_blocks=1000)
    prompts = [Step(sequence_id=f"m{i}", position=0, token_ids=random_tokens(90, seed=i)) for i in range(8)]
    many = driven.submit(*prompts, stream="many")
    driven.engine.step()
    (alone,) = driven.submit(Step(sequence_id="alone", position=0, token_ids=TOKENS[:90]), stream="alone")
    num_rounds = 0
    while not alone.done():
        driven.engine.step()
        num_rounds += 1
    assert num_rounds <= 2 * 6 + 1  # six parts, and one of the others between two of them
    assert sum(future.done() for future in many) <= 1


def test_the_children_of_a_beam_share_a_pass() -> None:
    driven = DrivenEngine()
    driven.one("a", 0, TOKENS[:37])
    futures = driven.submit(
        Step(sequence_id="b", position=37, token_ids=(5,), fork_of="a"),
        Step(sequence_id="c", position=37, token_ids=(6,), fork_of="a"),
        Step(sequence_id="a", position=37, token_ids=(7,)),
    )
    driven.engine.step()
    for future, token_id in zip(futures, (5, 6, 7), strict=True):
        assert_logits(future.result(timeout=0).logits, prefill_logits((*TOKENS[:37], token_id))[-1:])


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"sequence_id": ""}, InvalidRequest),
        ({"sequence_id": "x" * 129}, InvalidRequest),
        ({"token_ids": (300,)}, InvalidRequest),
        ({"token_ids": ()}, InvalidRequest),
        ({"sequence_id": "new", "position": 0, "token_ids": ()}, InvalidRequest),
        ({"truncate_to": 3}, InvalidRequest),
        ({"fork_of": "a"}, InvalidRequest),
        ({"sequence_id": "b", "fork_of": "a"}, InvalidRequest),
        ({"sequence_id": "new", "position": 0, "token_ids": (), "fork_of": "a"}, InvalidRequest),
        ({"token_ids": (3,) * 4090}, ContextExceeded),
        ({"position": 9}, PositionMismatch),
        ({"position": 11}, PositionMismatch),
        ({"position": 11, "truncate_to": 11}, PositionMismatch),
        ({"position": 0}, PositionMismatch),
        ({"sequence_id": "new", "position": 11, "fork_of": "a"}, PositionMismatch),
        ({"sequence_id": "new", "position": 5}, LeaseExpired),
        ({"sequence_id": "new", "position": 5, "fork_of": "gone"}, LeaseExpired),
    ],
)
def test_a_bad_step_is_refused_and_changes_nothing(fields: dict[str, object], error: type[ServiceError]) -> None:
    driven = DrivenEngine()
    driven.one("a", 0, TOKENS[:10])
    driven.one("b", 0, TOKENS[:3])
    used = driven.num_used_blocks
    step = Step(**({"sequence_id": "a", "position": 10, "token_ids": (5,)} | fields))
    outcomes = driven.run(step, Step(sequence_id="c", position=0, token_ids=TOKENS[:4]))
    assert type(outcomes[0]) is error
    assert isinstance(outcomes[1], StepOutcome)
    assert driven.num_used_blocks == used + 1
    assert_logits(driven.one("a", 10, (5,)).logits, prefill_logits([*TOKENS[:10], 5])[-1:])


def test_numbers_are_in_the_errors() -> None:
    driven = DrivenEngine(context_length=32)
    driven.one("a", 0, TOKENS[:10])
    mismatch, exceeded = driven.run(
        Step(sequence_id="a", position=12, token_ids=(5,)), Step(sequence_id="b", position=0, token_ids=TOKENS[:33])
    )
    assert isinstance(mismatch, PositionMismatch)
    assert mismatch.metadata == {"position": "12", "sequence_position": "10"}
    assert isinstance(exceeded, ContextExceeded)
    assert exceeded.metadata == {"num_tokens": "33", "context_length": "32"}


def test_a_full_cache_refuses_and_leaves_the_sequence_as_it_was() -> None:
    driven = DrivenEngine(num_blocks=4)
    driven.one("a", 0, TOKENS[:40])
    driven.one("b", 0, TOKENS[:10])
    with pytest.raises(OutOfCapacity) as caught:
        driven.one("a", 5, TOKENS[:60], truncate_to=5)
    assert caught.value.retry_after_s == 5.0
    assert_logits(driven.one("a", 40, (5,)).logits, prefill_logits([*TOKENS[:40], 5])[-1:])
    driven.release("b")
    assert driven.one("a", 41, TOKENS[:23]).position == 64


def test_too_many_sequences_and_too_many_steps_are_refused() -> None:
    driven = DrivenEngine(max_sequences=1, max_queued_steps=2)
    driven.one("a", 0, (5,))
    with pytest.raises(OutOfCapacity, match="1 sequences are open"):
        driven.one("b", 0, (5,))
    driven.submit(Step(sequence_id="a", position=1, token_ids=(5,)), Step(sequence_id="a", position=2, token_ids=(5,)))
    with pytest.raises(OutOfCapacity, match="2 steps are queued"):
        driven.one("a", 3, (5,))


def test_a_lease_ends_when_nobody_uses_the_sequence() -> None:
    driven = DrivenEngine(lease_s=60)
    driven.one("idle", 0, TOKENS[:20])
    driven.one("busy", 0, TOKENS[:20])
    driven.clock.now_s += 59
    driven.one("busy", 20, (5,))
    driven.clock.now_s += 2
    driven.engine.step()
    with pytest.raises(LeaseExpired, match="idle"):
        driven.one("idle", 20, (5,))
    assert driven.one("busy", 21, (5,)).position == 22
    driven.release("busy")
    assert driven.num_used_blocks == 0


def test_a_cancelled_step_that_waits_never_runs() -> None:
    driven = DrivenEngine()
    driven.one("a", 0, TOKENS[:20])
    (future,) = driven.submit(Step(sequence_id="a", position=20, token_ids=(5,)))
    assert future.cancel()
    driven.engine.step()
    assert_logits(driven.one("a", 20, (6,)).logits, prefill_logits([*TOKENS[:20], 6])[-1:])


@pytest.mark.parametrize("truncate_to", [None, 5])
def test_a_step_cancelled_half_way_leaves_the_sequence_as_it_was(truncate_to: int | None) -> None:
    driven = DrivenEngine(max_batch_tokens=16)
    driven.one("a", 0, TOKENS[:20])
    used = driven.num_used_blocks
    position = 20 if truncate_to is None else truncate_to
    (future,) = driven.submit(
        Step(sequence_id="a", position=position, token_ids=TOKENS[50:100], truncate_to=truncate_to)
    )
    driven.engine.step()
    driven.engine.step()
    assert driven.num_used_blocks > used
    assert future.cancel()
    driven.engine.step()
    assert driven.num_used_blocks == used
    assert_logits(driven.one("a", 20, (6,)).logits, prefill_logits([*TOKENS[:20], 6])[-1:])


def test_a_step_cancelled_in_its_last_moment_is_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    driven = DrivenEngine()
    driven.one("a", 0, TOKENS[:20])
    (future,) = driven.submit(Step(sequence_id="a", position=20, token_ids=(5,)))
    forward = ModelRunner.forward

    def cancel_meanwhile(runner: ModelRunner, inputs: list[RunnerInput]) -> list[RunnerOutput]:
        assert future.cancel()
        return forward(runner, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "forward", cancel_meanwhile)
        driven.engine.step()
    assert_logits(driven.one("a", 20, (6,)).logits, prefill_logits([*TOKENS[:20], 6])[-1:])


def test_a_release_drops_the_sequence_and_its_steps() -> None:
    driven = DrivenEngine(max_batch_tokens=16)
    futures = driven.submit(
        Step(sequence_id="a", position=0, token_ids=TOKENS[:100]), Step(sequence_id="a", position=100, token_ids=(5,))
    )
    driven.engine.step()
    assert driven.release("a", "a") == 1
    assert [type(future.exception(timeout=0)) for future in futures] == [LeaseExpired, LeaseExpired]
    assert driven.num_used_blocks == 0


def test_a_long_prompt_does_not_stall_the_others() -> None:
    driven = DrivenEngine(max_batch_tokens=32, num_blocks=300)
    driven.one("short", 0, TOKENS[:4])
    (long,) = driven.submit(Step(sequence_id="long", position=0, token_ids=random_tokens(2000)))
    for position in range(4, 34):
        (short,) = driven.submit(Step(sequence_id="short", position=position, token_ids=(5,)))
        driven.engine.step()
        assert short.done()
    assert not long.done()


def test_long_prompts_take_turns_and_a_short_step_waits_for_none() -> None:
    driven = DrivenEngine(max_batch_tokens=32, num_blocks=600)
    driven.one("decode", 0, TOKENS[:4])
    longs = driven.submit(
        *(Step(sequence_id=str(i), position=0, token_ids=random_tokens(2000, seed=i)) for i in range(3))
    )
    driven.engine.step()
    (middle,) = driven.submit(Step(sequence_id="middle", position=0, token_ids=TOKENS[:60]))
    # Five forced tokens of a guided text are no prompt.
    (forced,) = driven.submit(Step(sequence_id="decode", position=4, token_ids=TOKENS[4:9]))
    driven.engine.step()
    assert forced.done()
    num_rounds = 0
    while not middle.done():
        driven.engine.step()
        num_rounds += 1
    assert num_rounds <= 8
    assert not any(future.done() for future in longs)


def test_the_next_token_waits_for_one_piece_of_anothers_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_forward(_: ModelRunner, inputs: list[RunnerInput]) -> list[RunnerOutput]:
        time.sleep(0.1)
        return [RunnerOutput(np.zeros((item.num_logit_rows, 300), dtype=np.float32)) for item in inputs]

    monkeypatch.setattr(ModelRunner, "forward", slow_forward)
    driven = DrivenEngine(max_batch_tokens=64, clock=time.monotonic)
    driven.engine.start()
    (prompt,) = driven.submit(Step(sequence_id="long", position=0, token_ids=random_tokens(900)))
    num_tokens = 0
    while not prompt.done():
        (token,) = driven.submit(Step(sequence_id="decode", position=num_tokens, token_ids=(5,)))
        token.result(timeout=5)
        num_tokens += 1
    driven.engine.stop()
    # Of some 15 batches each takes the next token along: it is sent a moment after the one before was answered.
    assert num_tokens >= 11


def test_new_prompts_all_the_time_do_not_hold_up_an_old_one() -> None:
    driven = DrivenEngine(max_batch_tokens=32, num_blocks=600)
    (old,) = driven.submit(Step(sequence_id="old", position=0, token_ids=random_tokens(200)))
    for i in range(40):
        driven.submit(Step(sequence_id=str(i), position=0, token_ids=random_tokens(60, seed=1 + i)))
        driven.engine.step()
    assert old.done()


@pytest.mark.parametrize("max_batch_tokens", [16, 32])
def test_the_end_of_a_prompt_and_many_decode_steps_do_not_hold_up_each_other(max_batch_tokens: int) -> None:
    driven = DrivenEngine(max_batch_tokens=max_batch_tokens, num_blocks=600)
    for i in range(64):
        driven.one(str(i), 0, (5,))
    positions = [1] * 64
    decodes: list[Future[StepOutcome] | None] = [None] * 64
    (prompt,) = driven.submit(Step(sequence_id="prompt", position=0, token_ids=TOKENS[:50]))
    for _ in range(24):  # each sends its next step as soon as it has an answer: more than a batch holds, all the time
        for i, future in enumerate(decodes):
            if future is None or future.done():
                (decodes[i],) = driven.submit(Step(sequence_id=str(i), position=positions[i], token_ids=(5,)))
                positions[i] += 1
        driven.engine.step()
    assert prompt.done()
    assert min(positions) >= 3


def test_more_short_steps_than_one_batch_holds_leave_room_for_a_prompt() -> None:
    driven = DrivenEngine(max_batch_tokens=32, num_blocks=600)
    for i in range(64):
        driven.one(str(i), 0, (5,))
    (prompt,) = driven.submit(Step(sequence_id="prompt", position=0, token_ids=TOKENS[:64]))
    position = 1
    decodes: list[Future[StepOutcome]] = []
    for _ in range(16):  # the 64 send their next step as soon as they all have an answer
        if all(future.done() for future in decodes):
            decodes = driven.submit(*(Step(sequence_id=str(i), position=position, token_ids=(5,)) for i in range(64)))
            position += 1
        driven.engine.step()
    assert prompt.done()
    assert position >= 4


def test_a_prompt_that_was_there_before_is_found() -> None:
    driven = DrivenEngine()
    assert driven.one("a", 0, TOKENS[:100]).num_cached_tokens == 0
    used = driven.num_used_blocks
    shared = driven.one("b", 0, TOKENS[:120])
    assert (shared.num_cached_tokens, driven.num_used_blocks) == (96, used + 2)
    assert_logits(shared.logits, prefill_logits(TOKENS[:120])[-1:])
    driven.release("a", "b")
    assert driven.num_used_blocks == 0
    # Whoever let go of it, it is found; a token whose logits are wanted is computed.
    for name, length, logits, num_cached_tokens in (
        ("same", 120, "last", 112),
        ("edge", 112, "last", 96),
        ("silent", 112, "none", 112),
        ("scored", 112, "all", 0),
        ("other", 120, "last", 112),
    ):
        outcome = driven.one(name, 0, TOKENS[:length], logits=logits)
        assert (outcome.num_cached_tokens, outcome.position) == (num_cached_tokens, length)
        assert_logits(outcome.logits, prefill_logits(TOKENS[:length])[length - len(outcome.logits) :])
    assert driven.one("shifted", 0, TOKENS[1:100]).num_cached_tokens == 0
    assert driven.one("different", 0, (TOKENS[0] + 1, *TOKENS[1:100])).num_cached_tokens == 0


def test_a_conversation_that_goes_on_finds_what_another_said() -> None:
    driven = DrivenEngine()
    driven.one("a", 0, TOKENS[:100])
    driven.one("b", 0, TOKENS[:32])
    later = driven.one("b", 32, TOKENS[32:110])
    assert later.num_cached_tokens == 64
    cut = driven.one("b", 16, TOKENS[16:100], truncate_to=16)
    assert cut.num_cached_tokens == 80
    assert_logits(cut.logits, prefill_logits(TOKENS[:100])[-1:])


def test_the_same_prompt_many_times_at_once_is_computed_once() -> None:
    driven = DrivenEngine(max_batch_tokens=32)
    tails = [random_tokens(5, seed=i) for i in range(6)]
    outcomes = driven.run(
        *(Step(sequence_id=str(i), position=0, token_ids=TOKENS[:144] + tail) for i, tail in enumerate(tails))
    )
    assert sum(outcome.num_cached_tokens for outcome in outcomes) == 5 * 144  # they take turns
    assert driven.num_used_blocks == 9 + 6
    for tail, outcome in zip(tails, outcomes, strict=True):
        assert_logits(outcome.logits, prefill_logits(TOKENS[:144] + tail)[-1:])
    # The first goes away half way: another takes over.
    other = random_tokens(100, seed=7)
    first, second = driven.submit(*(Step(sequence_id=name, position=0, token_ids=other) for name in ("x", "y")))
    driven.engine.step()
    assert first.cancel()
    driven.run(Step(sequence_id="z", position=0, token_ids=(5,)))
    driven.engine.step()
    driven.engine.step()
    driven.engine.step()
    assert second.result(timeout=0).num_cached_tokens == 32
    assert_logits(second.result(timeout=0).logits, prefill_logits(other)[-1:])


def test_a_block_that_was_published_and_not_committed_is_not_written_again() -> None:
    driven = DrivenEngine(max_batch_tokens=16)
    driven.one("a", 0, TOKENS[:10])
    (future,) = driven.submit(Step(sequence_id="a", position=10, token_ids=TOKENS[10:80]))
    driven.engine.step()  # the first block is full and published now, and the step given up
    assert future.cancel()
    driven.one("a", 10, random_tokens(6, seed=5))
    found = driven.one("b", 0, TOKENS[:40])
    assert found.num_cached_tokens == 16
    assert_logits(found.logits, prefill_logits(TOKENS[:40])[-1:])


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_what_is_wrong_with_one_sequence_reaches_no_other(is_deterministic: bool) -> None:
    driven = DrivenEngine(deterministic_toy() if is_deterministic else None, num_blocks=12)
    driven.one("bad", 0, TOKENS[:100])
    driven.cache.memory[:, :, :, : driven.num_used_blocks] = torch.nan  # as numbers that overflow leave it
    prompts = {name: random_tokens(length, seed=length) for name, length in (("short", 10), ("longer", 20))}
    driven.run(*(Step(sequence_id=name, position=0, token_ids=prompt) for name, prompt in prompts.items()))
    decoded = driven.run(
        *(Step(sequence_id=name, position=len(prompt), token_ids=(5,)) for name, prompt in prompts.items())
    )
    for prompt, outcome in zip(prompts.values(), decoded, strict=True):
        assert_logits(outcome.logits, prefill_logits([*prompt, 5])[-1:])
    driven.release("bad", "short", "longer")
    after = random_tokens(150, seed=9)
    assert_logits(driven.one("after", 0, after).logits, prefill_logits(after)[-1:])


def test_the_longest_unused_is_forgotten_first_and_its_end_before_its_beginning() -> None:
    driven = DrivenEngine(num_blocks=8)
    texts = [random_tokens(48, seed=i) for i in range(3)]
    for text in texts[:2]:
        driven.one("x", 0, text)
        driven.release("x")
    driven.one("new", 0, texts[2][:33])  # two blocks were never used; the third is the last of the oldest
    assert driven.one("y", 0, texts[1], logits="none").num_cached_tokens == 48
    driven.release("new")
    assert driven.one("z", 0, texts[0], logits="none").num_cached_tokens == 32


def test_a_stopped_engine_answers_what_is_left() -> None:
    driven = DrivenEngine()
    (queued,) = driven.submit(Step(sequence_id="a", position=0, token_ids=(5,)))
    driven.engine.stop()
    driven.engine.start()
    assert isinstance(queued.exception(timeout=5), NotReady)
    (late,) = driven.submit(Step(sequence_id="a", position=0, token_ids=(5,)))
    assert isinstance(late.exception(timeout=0), NotReady)
    assert driven.engine.release(["a"]).result(timeout=0) == 0


def test_a_failed_forward_pass_fails_its_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    driven = DrivenEngine()
    driven.one("a", 0, TOKENS[:20])
    used = driven.num_used_blocks
    with monkeypatch.context() as patch:
        patch.setattr("services.model_worker.runner.ModelRunner.forward", lambda *_: 1 / 0)
        outcomes = driven.run(
            Step(sequence_id="a", position=20, token_ids=(5,)), Step(sequence_id="b", position=0, token_ids=(5,))
        )
    assert [type(outcome) for outcome in outcomes] == [ServiceError, ServiceError]
    assert driven.num_used_blocks == used
    assert_logits(driven.one("a", 20, (5,)).logits, prefill_logits([*TOKENS[:20], 5])[-1:])


def test_a_failed_engine_ends_the_worker_rather_than_leave_callers_waiting() -> None:
    program = """
from services.model_worker.runner import ModelRunner, RunnerInput
from services.model_worker.sequence import Step
from tests.support.toy_model import DrivenEngine
driven = DrivenEngine()
driven.engine.step = lambda: 1 / 0
driven.engine.start()
(step,) = driven.submit(Step(sequence_id="a", position=0, token_ids=(5,)))
step.result(timeout=20)
"""
    root = Path(__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'gen'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == ENGINE_FAILED_EXIT_CODE
    assert "ZeroDivisionError" in ended.stdout + ended.stderr
