"""Decoding against `transformers` with the same weights and settings: a small model with random ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gateway.decode.beam import BeamSettings
from gateway.decode.interfaces import Logits
from gateway.decode.logits import apply_temperature, keep_min_p, keep_top_k, keep_top_p
from gateway.decode.loop import plain_mask
from gateway.decode.sampler import Sampler, Sampling
from gateway.decode.score import score
from gateway.decode.sequence import ModelSequence
from tests.support.decoding import PROMPT, decode
from tests.support.fake_services import VOCAB_SIZE, FakeWorker, vocabulary
from tests.unit.gateway.decode.test_beam import search

EOS = list(vocabulary().eos_token_ids)
NEVER = [token_id for token_id in np.flatnonzero(~plain_mask(vocabulary())).tolist() if token_id not in EOS]


@lru_cache
def model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.5,
    )
    made: LlamaForCausalLM = LlamaForCausalLM(config).eval()
    made.generation_config.pad_token_id = 0
    return made


@torch.inference_mode()
def logits_of(token_ids: Sequence[int]) -> Logits:
    result: Logits = model()(torch.tensor([list(token_ids)])).logits[0, -1].float().numpy()
    return result


def generated(**settings: Any) -> Any:
    """What `transformers` writes behind the prompt, without end tokens and padding."""
    settings = {"do_sample": False, "eos_token_id": EOS, "suppress_tokens": NEVER} | settings
    output = model().generate(
        torch.tensor([list(PROMPT)]), return_dict_in_generate=True, output_scores=True, **settings
    )
    texts = []
    for row in output.sequences[:, len(PROMPT) :].tolist():
        end = next((i for i, token_id in enumerate(row) if token_id in settings["eos_token_id"]), len(row))
        texts.append(tuple(row[:end]))
    return texts, output


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(repetition_penalty=1.3), Sampling(logit_bias=((80, 3.0),))])
async def test_greedy_is_token_for_token_the_same(sampling: Sampling) -> None:
    settings: dict[str, Any] = {"repetition_penalty": sampling.repetition_penalty}
    if sampling.logit_bias:
        settings["sequence_bias"] = {(80,): 3.0}
    (expected,), _ = generated(max_new_tokens=40, **settings)
    run = await decode(None, FakeWorker(logits_of), sampling=sampling, max_tokens=40)
    assert tuple(run.token_ids) == expected


@pytest.mark.parametrize("early_stopping", ["estimated", "first", "never"])
@pytest.mark.parametrize(("width", "length_penalty"), [(1, 1.0), (2, 0.0), (3, 1.0), (4, 2.0), (4, -0.5), (8, 0.6)])
async def test_beam_search_is_token_for_token_the_same(width: int, length_penalty: float, early_stopping: Any) -> None:
    # One end token, and one that is likely: many texts end, and early stopping has something to stop.
    bias = {80: 2.0}
    expected, output = generated(
        num_beams=width,
        num_return_sequences=width,
        length_penalty=length_penalty,
        early_stopping={"estimated": False, "first": True, "never": "never"}[early_stopping],
        eos_token_id=[80],
        sequence_bias={(80,): bias[80]},
        suppress_tokens=[*NEVER, *EOS],
        max_new_tokens=12,
    )
    ends_masked = tuple((token_id, -1e9) for token_id in EOS)
    found = await search(
        None,
        BeamSettings(width, length_penalty, early_stopping),
        max_tokens=12,
        worker=FakeWorker(logits_of),
        sampling=Sampling(logit_bias=(*bias.items(), *ends_masked)),
        stop_token_ids=(80,),
    )
    if width == 1:  # `transformers` does without a search then, and has no score
        assert [text.token_ids for text in found] == expected
        return
    assert [text.token_ids for text in found] == expected
    np.testing.assert_allclose([text.score for text in found], output.sequences_scores.numpy(), atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_processors_leave_the_same_logits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=4, size=VOCAB_SIZE).astype(np.float32)
    token_ids = rng.integers(0, VOCAB_SIZE, 30).tolist()
    bias = {int(token_id): float(rng.normal()) for token_id in rng.integers(0, VOCAB_SIZE, 5)}
    everything = np.ones(VOCAB_SIZE, np.bool_)

    def theirs(*processors: Any) -> np.ndarray:
        result = LogitsProcessorList(processors)(torch.tensor([token_ids]), torch.tensor(logits)[None].clone())
        return np.asarray(result[0].numpy())

    ours = Sampler(Sampling(repetition_penalty=1.4, logit_bias=tuple(bias.items())), token_ids[:10])
    processed = ours.processed(logits, everything, token_ids[10:])
    biased = SequenceBiasLogitsProcessor({(token_id,): value for token_id, value in bias.items()})
    expected = theirs(biased, RepetitionPenaltyLogitsProcessor(1.4))
    np.testing.assert_allclose(processed, expected, atol=1e-5)

    warm = apply_temperature(logits, 0.7)
    for name, filtered, warper in (
        ("top_k", keep_top_k(warm, 20), TopKLogitsWarper(20)),
        ("top_p", keep_top_p(warm, 0.8), TopPLogitsWarper(0.8)),
        ("min_p", keep_min_p(warm, 0.05), MinPLogitsWarper(0.05)),
    ):
        expected = theirs(TemperatureLogitsWarper(0.7), warper)
        # Ours has the largest logit at 0; probabilities do not know the difference.
        np.testing.assert_array_equal(np.isfinite(filtered), np.isfinite(expected), err_msg=name)
        kept = np.isfinite(expected)
        np.testing.assert_allclose(
            filtered[kept] - filtered[kept].max(), expected[kept] - expected[kept].max(), atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, top_k=50, top_p=0.9, seed=1),
        Sampling(temperature=1.5, min_p=0.1, seed=2),
        Sampling(temperature=1.0, top_k=12, top_p=0.8, min_p=0.02, seed=3),
        Sampling(temperature=1.2, repetition_penalty=1.5, top_k=20, seed=4),
    ],
)
def test_drawn_tokens_have_the_distribution_of_transformers(sampling: Sampling) -> None:
    logits = np.random.default_rng(8).normal(scale=2, size=VOCAB_SIZE).astype(np.float32)
    prompt = list(range(0, VOCAB_SIZE, 3))
    warpers: list[Any] = [RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)]
    warpers += [TemperatureLogitsWarper(sampling.temperature)]
    warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    warpers += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    scores = LogitsProcessorList(warpers)(torch.tensor([prompt]), torch.tensor(logits)[None].clone())
    probs = torch.softmax(scores[0].double(), dim=-1).numpy()

    everything, num_draws = np.ones(VOCAB_SIZE, np.bool_), 20_000
    drawn = [Sampler(sampling, prompt, choice=i).draw(logits, everything, ()) for i in range(num_draws)]
    counts = np.bincount(np.array(drawn), minlength=VOCAB_SIZE)
    assert counts[probs == 0].sum() == 0
    # Cells of at least five expected draws, the rest together.
    is_common = probs * num_draws >= 5
    expected = np.append(probs[is_common], probs[~is_common].sum()) * num_draws
    observed = np.append(counts[is_common], counts[~is_common].sum())
    kept = expected > 0
    statistic = float(((observed[kept] - expected[kept]) ** 2 / expected[kept]).sum())
    freedom = int(kept.sum()) - 1
    # The 0.9999 quantile of chi-square, by E. Wilson and M. Hilferty's approximation (1931).
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.719 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_presence_and_frequency_penalties_are_as_they_are_defined() -> None:
    logits = np.zeros(VOCAB_SIZE, np.float32)
    sampler = Sampler(Sampling(presence_penalty=0.5, frequency_penalty=0.25), (7, 7))
    processed = sampler.processed(logits, np.ones(VOCAB_SIZE, np.bool_), (5, 5, 9))
    assert processed[[5, 7, 9, 11]].tolist() == [-1.0, 0.0, -0.75, 0.0]  # the prompt does not count


async def test_a_score_is_the_sum_of_what_the_model_says() -> None:
    token_ids = np.random.default_rng(2).integers(3, 260, 300 - 100).tolist()
    sequence = ModelSequence(FakeWorker(logits_of), "s")
    sequence.append(PROMPT)
    found = await score(sequence, token_ids, vocabulary(), num_top=3, end_token_ids=EOS)
    with torch.inference_mode():
        rows = torch.log_softmax(model()(torch.tensor([[*PROMPT, *token_ids]])).logits[0].double(), dim=-1).numpy()
    rows = rows[len(PROMPT) - 1 :]
    expected = [rows[i, token_id] for i, token_id in enumerate(token_ids)]
    np.testing.assert_allclose([token.logprob for token in found.tokens], expected, atol=1e-4)
    assert found.end_logprob == pytest.approx(np.logaddexp.reduce(rows[-1, EOS]), abs=1e-4)
    assert found.logprob == pytest.approx(sum(expected) + found.end_logprob, abs=1e-2)
    for token, row in zip(found.tokens, rows, strict=False):
        assert [top.token_id for top in token.top] == np.argsort(-row, kind="stable")[:3].tolist()
    await sequence.close()
