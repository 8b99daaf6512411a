"""The experts that ship, beside the dense model: `transformers` agrees, and they know how to extract."""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer

from gateway.samples.training.__main__ import reader_of
from gateway.samples.training.splits import Example, Splits
from services.model_worker.loading import LoadedModel, load_model
from services.model_worker.routing import Routing, collapse_limit
from services.model_worker.training.compose import CARD, SHIPPED_EXPERTS
from tests.bench.mixtures import run_all
from tests.support.real_model import real_mixture_path, real_model_path
from tests.support.toy_model import prefill_logits

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

MOST_BYTES = 30_000_000
NUM_DOCUMENTS = 6


@cache
def loaded(path: Path) -> LoadedModel:
    torch.set_num_threads(1)
    return load_model(str(path), torch.float32)


@cache
def held_out() -> list[Example]:
    return [example for example, _ in Splits(reader_of(real_model_path()), seed=1).held_out(NUM_DOCUMENTS)]


def tokens_of(example: Example) -> tuple[list[int], int]:
    tokenizer = Tokenizer.from_buffer(loaded(real_model_path()).tokenizer.tokenizer_json)
    prompt, completion = (
        tokenizer.encode(text, add_special_tokens=False).ids for text in (example.prompt, example.completion)
    )
    return [*prompt, *completion], len(prompt)


def loss_of(model: LoadedModel) -> float:
    """Return the mean loss of the held-out records' tokens."""
    total, count = 0.0, 0
    for example in held_out():
        token_ids, num_prompt_tokens = tokens_of(example)
        logits = torch.from_numpy(prefill_logits(token_ids, model.model)[num_prompt_tokens - 1 : -1])
        targets = torch.tensor(token_ids[num_prompt_tokens:])
        total += float(F.cross_entropy(logits, targets, reduction="sum"))
        count += len(targets)
    return total / count


def test_the_file_is_the_one_of_the_card() -> None:
    digest = hashlib.sha256(SHIPPED_EXPERTS.read_bytes()).hexdigest()
    assert digest in SHIPPED_EXPERTS.with_name(CARD).read_text(encoding="utf-8")
    assert SHIPPED_EXPERTS.stat().st_size <= MOST_BYTES
    assert (real_mixture_path() / CARD).read_bytes() == SHIPPED_EXPERTS.with_name(CARD).read_bytes()


def test_logits_are_those_of_transformers() -> None:
    oracle = transformers.AutoModelForCausalLM.from_pretrained(real_mixture_path(), dtype=torch.float32).eval()
    token_ids, _ = tokens_of(held_out()[0])
    with torch.inference_mode():
        expected = oracle(torch.tensor([token_ids])).logits[0].numpy()
    np.testing.assert_allclose(
        prefill_logits(token_ids, loaded(real_mixture_path()).model), expected, atol=2e-3, rtol=1e-4
    )


def test_records_of_unseen_schemas_surprise_the_mixture_less_than_half_as_much() -> None:
    assert loss_of(loaded(real_mixture_path())) < loss_of(loaded(real_model_path())) / 2


def test_all_experts_are_used() -> None:
    model = loaded(real_mixture_path()).model
    found = Routing.nothing(10, 8)
    for example in held_out():
        routing = run_all(model, tokens_of(example)[0], num_logit_rows=0).routing
        assert routing is not None
        found += routing
    assert found.tokens_per_expert.min() > 0
    assert (found.balance < collapse_limit(8, 2, 0.5)).all()
