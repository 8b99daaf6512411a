"""A small dense model, experts beside it that are no zeros, and examples to learn from."""

from __future__ import annotations

from dataclasses import replace

import torch

from services.model_worker.model.transformer import Transformer
from services.model_worker.toy import CONFIG, toy_model
from services.model_worker.training.examples import Example
from services.model_worker.training.mixture import PLAIN_GATING, GatingOptions, MixtureShape
from services.model_worker.training.network import Network
from tests.support.toy_model import random_tokens

DENSE_CONFIG = replace(
    CONFIG,
    architecture="LlamaForCausalLM",
    num_hidden_layers=4,
    num_experts=1,
    num_experts_per_tok=1,
    tie_word_embeddings=True,
)
SHAPE = MixtureShape(num_experts=4, num_experts_per_tok=2, expert_width=8)
FIRST_LAYER = 2
NUM_LAYERS = 2


def dense_toy() -> Transformer:
    return toy_model(1, config=DENSE_CONFIG)


def toy_network(
    shape: MixtureShape = SHAPE,
    options: GatingOptions = PLAIN_GATING,
    *,
    is_trained: bool = True,
    first_layer: int = FIRST_LAYER,
) -> Network:
    """Return a network; one that counts as trained has experts that do something."""
    generator = torch.Generator().manual_seed(3)
    network = Network(dense_toy(), first_layer, NUM_LAYERS, shape, options, generator)
    if is_trained:
        for mixture in network.layers:
            mixture.down.data.normal_(std=0.1, generator=generator)
    return network


def toy_examples(count: int = 12) -> list[Example]:
    """Return examples in which the completion is the prompt's beginning."""
    examples = []
    for seed in range(count):
        prompt = random_tokens(10 + seed % 5, seed=seed)
        examples.append(Example((*prompt, *prompt[:4]), len(prompt)))
    return examples
