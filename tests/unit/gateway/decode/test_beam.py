"""Beam search against a naive one that asks for nothing ahead, and against all texts where the beam is wide enough."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.decode.beam import BeamSearch, BeamSettings, BeamText
from gateway.decode.guided import Guide
from gateway.decode.interfaces import CompileOptions, Constraint
from gateway.decode.limits import Limits
from gateway.decode.loop import plain_mask
from gateway.decode.sampler import Sampler, Sampling
from gateway.decode.sequence import ModelSequence
from services.rpckit.status import BudgetTooSmall, DeadEnd
from tests.support.decoding import PROMPT
from tests.support.fake_services import CheckedLanguage, FakeWorker, FiniteLanguage, noise_logits, vocabulary

TEXTS = ["a", "ab", "abc", "abcabc", "b", "ball", "bell", "bill", "10", "101", "1010", "c"]
EOS = tuple(vocabulary().eos_token_ids)


async def search(
    language: FiniteLanguage | None,
    beam: BeamSettings,
    *,
    max_tokens: int = 30,
    min_tokens: int = 0,
    sampling: Sampling | None = None,
    worker: FakeWorker | None = None,
    max_budget_draws: int = 1000,
    max_rollbacks: int = 1000,
    stop_token_ids: tuple[int, ...] = (),
) -> list[BeamText]:
    worker = worker or FakeWorker()
    numbers = itertools.count()
    sequences = [ModelSequence(worker, "root")]
    dropped: list[ModelSequence] = []

    def fork(sequence: ModelSequence) -> ModelSequence:
        sequences.append(sequence.fork(f"fork {next(numbers)}"))
        return sequences[-1]

    sequences[0].append(PROMPT)
    guide = None
    if language is not None:
        guide = Guide(language, Constraint("choices", choices=("x",)), CompileOptions())
        await guide.start()
    found = BeamSearch(
        sequence=sequences[0],
        fork=fork,
        drop=dropped.append,
        guide=guide,
        vocabulary=vocabulary(),
        plain_mask=plain_mask(vocabulary()),
        sampler=Sampler(sampling or Sampling(), PROMPT),
        stop_token_ids=stop_token_ids,
        limits=Limits(max_tokens, False, 0.0, max_budget_draws, max_rollbacks, max_rollbacks, min_tokens),
        settings=beam,
    )
    try:
        return await found.run()
    finally:
        for sequence in sequences:
            await sequence.close()
        assert worker.sequences == {}


def log_probs(token_ids: Sequence[int]) -> np.ndarray:
    logits = noise_logits([*PROMPT, *token_ids]).astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


def naive(language: FiniteLanguage, beam: BeamSettings, max_tokens: int) -> list[tuple[tuple[int, ...], float]]:
    """One text after another, all tokens of each, by the masks: as the definition says it."""
    running: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    finished: list[tuple[tuple[int, ...], float]] = []
    for length in range(1, max_tokens + 1):
        candidates = []
        for token_ids, logprob in running:
            row = log_probs(token_ids)
            for token_id in language.allowed(vocabulary().decode(token_ids)):
                if token_id not in EOS:
                    behind = vocabulary().decode([*token_ids, token_id])
                    if len(language.witness(behind)) > max_tokens - length:
                        continue
                candidates.append(((*token_ids, token_id), logprob + row[token_id]))
        num_kept = beam.width * (1 + len(EOS))
        candidates = sorted(candidates, key=lambda item: -item[1])[:num_kept]
        for rank, (token_ids, logprob) in enumerate(candidates):
            if rank < beam.width and (token_ids[-1] in EOS or length == max_tokens):
                text = token_ids[:-1] if token_ids[-1] in EOS else token_ids
                if text not in dict(finished):  # one text once, with its likeliest end token
                    finished.append((text, logprob / length**beam.length_penalty))
        finished = sorted(finished, key=lambda item: -item[1])[: beam.width]
        running = [item for item in candidates if item[0][-1] not in EOS][: beam.width]
        if not running:
            break
        if len(finished) == beam.width:
            is_far = beam.early_stopping == "never" and beam.length_penalty > 0
            best = running[0][1] / (max_tokens if is_far else length) ** beam.length_penalty
            if beam.early_stopping == "first" or best <= finished[-1][1]:
                break
    return finished


BEAMS = st.builds(
    BeamSettings,
    width=st.integers(1, 5),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.6, 1.0, 2.0]),
    early_stopping=st.sampled_from(["estimated", "first", "never"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, unique=True), BEAMS, st.integers(0, 4))
async def test_a_constrained_beam_is_a_naive_one(texts: list[str], beam: BeamSettings, more: int) -> None:
    # Where forcing is off a mask is all that may follow; canonical forcing is another constraint.
    language = FiniteLanguage(texts, forcing=False)
    max_tokens = len(language.witness(b"")) + more
    found = await search(language, beam, max_tokens=max_tokens)
    expected = naive(language, beam, max_tokens)
    assert [text.token_ids for text in found] == [token_ids for token_ids, _ in expected]
    np.testing.assert_allclose([text.score for text in found], [score for _, score in expected], atol=1e-5)
    for text in found:
        assert vocabulary().decode(text.token_ids).decode() in texts


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=5, unique=True), st.sampled_from([0.0, 0.5, 1.0]))
async def test_a_beam_as_wide_as_there_are_texts_finds_the_best_of_all(texts: list[str], length_penalty: float) -> None:
    language = FiniteLanguage(texts, forcing=False)

    def spelled(prefix: tuple[int, ...]) -> list[tuple[int, ...]]:
        """All token sequences of all texts, each with its end token."""
        found = []
        for token_id in language.allowed(vocabulary().decode(prefix)):
            found += [(*prefix, token_id)] if token_id in EOS else spelled((*prefix, token_id))
        return found

    everything = spelled(())
    beam = BeamSettings(len(everything), length_penalty, "never")
    scores = {}
    for token_ids in everything:
        total = sum(log_probs(token_ids[:i])[token_id] for i, token_id in enumerate(token_ids))
        scores[token_ids] = total / len(token_ids) ** length_penalty
    best = max(scores, key=lambda token_ids: scores[token_ids])
    found = await search(language, beam)
    assert found[0].token_ids == best[:-1]
    assert found[0].score == pytest.approx(scores[best], abs=1e-5)


@pytest.mark.parametrize("forcing", [False, True])
async def test_every_text_of_a_beam_is_complete_within_the_budget(forcing: bool) -> None:
    language = FiniteLanguage(TEXTS, forcing=forcing)
    for max_tokens in range(1, 8):
        for text in await search(language, BeamSettings(4), max_tokens=max_tokens, max_budget_draws=1):
            assert vocabulary().decode(text.token_ids).decode() in TEXTS
            assert len(text.token_ids) <= max_tokens
            assert text.finish_reason in ("stop", "budget_closed")
    with pytest.raises(BudgetTooSmall):
        await search(FiniteLanguage(["abcdefgh" * 3]), BeamSettings(2), max_tokens=3)


async def test_forced_tokens_count_as_the_model_has_them() -> None:
    language = FiniteLanguage(["abcabcabc", "xyz"])
    worker = FakeWorker()
    found = await search(language, BeamSettings(2, early_stopping="never"), worker=worker)
    assert max(len(step.token_ids) for step in worker.steps if step.position > 0) > 2  # a forced run is one step
    assert {vocabulary().decode(text.token_ids).decode() for text in found} == {"abcabcabc", "xyz"}
    for text in found:
        token_ids = [*text.token_ids, max(EOS, key=lambda eos: log_probs(text.token_ids)[eos])]
        total = sum(log_probs(token_ids[:i])[token_id] for i, token_id in enumerate(token_ids))
        assert text.score == pytest.approx(total / len(token_ids), abs=1e-5)
        assert text.num_forced_tokens > 0


async def test_dead_ends_count_as_masked() -> None:
    found = await search(CheckedLanguage(["ax", "ay", "bx"], ["ax", "ay"]), BeamSettings(2))
    assert [vocabulary().decode(text.token_ids) for text in found] == [b"bx"] * len(found)


async def test_a_beam_without_a_way_on_says_so() -> None:
    with pytest.raises(DeadEnd):
        await search(CheckedLanguage(["ax", "ay", "bx"], ["ax", "ay", "bx"]), BeamSettings(2), max_rollbacks=1)


async def test_a_lost_sequence_is_sent_again() -> None:
    def lose(number: int, worker: FakeWorker) -> None:
        if number == 5:
            worker.sequences.clear()

    expected = await search(None, BeamSettings(3), max_tokens=8)
    found = await search(None, BeamSettings(3), max_tokens=8, worker=FakeWorker(fail=lose))
    assert [text.token_ids for text in found] == [text.token_ids for text in expected]


async def test_min_tokens_and_stop_tokens() -> None:
    (free,) = await search(None, BeamSettings(1), max_tokens=3)
    assert free.finish_reason == "length"
    stopped = await search(None, BeamSettings(1), max_tokens=3, stop_token_ids=free.token_ids[:1])
    assert stopped[0].token_ids == ()
    assert stopped[0].finish_reason == "stop"
    late = await search(None, BeamSettings(1), max_tokens=3, stop_token_ids=free.token_ids[:1], min_tokens=2)
    assert len(late[0].token_ids) >= 2


async def test_a_forced_run_of_more_rows_than_a_reply_holds_goes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    language = FiniteLanguage(["abcabcabcabc", "xyz"])
    expected = await search(language, BeamSettings(2))
    monkeypatch.setattr("gateway.decode.sequence._MAX_ROWS", 2)
    worker = FakeWorker()
    found = await search(language, BeamSettings(2), worker=worker)
    assert [(text.token_ids, text.score) for text in found] == [(text.token_ids, text.score) for text in expected]
    assert max(len(step.token_ids) for step in worker.steps) == 2
