"""What is trained is what is served: the network, the composed model and `transformers` give the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from services.model_worker.loading import load_model
from services.model_worker.model.checkpoint import CheckpointError
from services.model_worker.model.export import ExportError, write_huggingface
from services.model_worker.model.rope import halve_rows, interleave_rows
from services.model_worker.toy import toy_tokenizer
from services.model_worker.training.compose import with_experts, write_tokenizer
from services.model_worker.training.experts_file import Experts
from services.model_worker.training.mixture import MixtureShape
from services.model_worker.training.network import Network, Rows, split_rows
from tests.support.toy_model import prefill_logits, random_tokens
from tests.support.trained_toy import FIRST_LAYER, SHAPE, dense_toy, toy_network

TEXTS = [random_tokens(length, seed=length) for length in (17, 1, 40)]
LONE = MixtureShape(num_experts=1, num_experts_per_tok=1, expert_width=16)


@torch.no_grad()
def network_logits(network: Network) -> list[torch.Tensor]:
    """Return the logits of each text, all texts in one pass."""
    rows = Rows(tuple(map(len, TEXTS)))
    token_ids = torch.tensor([token_id for text in TEXTS for token_id in text])
    logits, _ = network.eval()(network.lower(token_ids, rows), rows, torch.arange(len(token_ids)))
    return list(torch.split(logits, list(rows.lengths)))


def test_the_base_can_be_asked_alone() -> None:
    network = toy_network()
    rows = Rows(tuple(map(len, TEXTS)))
    x = network.lower(torch.tensor([token_id for text in TEXTS for token_id in text]), rows)
    expected = torch.cat([torch.tensor(prefill_logits(text, dense_toy())) for text in TEXTS])
    chosen = torch.tensor([3, 17, 57])
    torch.testing.assert_close(network.base_logits(x, rows, chosen), expected[chosen], atol=2e-5, rtol=0)


def test_each_row_says_the_token_after_it() -> None:
    prompts, completions = split_rows([3, 1], Rows((5, 4)))
    assert prompts.tolist() == [0, 1]
    assert completions.tolist() == [2, 3, 5, 6, 7]


def experts_of(network: Network) -> Experts:
    return Experts.of(network.first_layer, network.shape, network.layers)


def test_experts_that_are_new_change_nothing() -> None:
    network = toy_network(is_trained=False)
    composed = with_experts(dense_toy(), experts_of(network))
    for text, found in zip(TEXTS, network_logits(network), strict=True):
        expected = prefill_logits(text, dense_toy())
        torch.testing.assert_close(found, torch.tensor(expected), atol=2e-5, rtol=0)
        assert torch.equal(torch.tensor(prefill_logits(text, composed)), torch.tensor(expected))


@pytest.mark.parametrize("shape", [SHAPE, MixtureShape(num_experts=3, num_experts_per_tok=3, expert_width=8), LONE])
def test_the_composed_model_is_the_network(shape: MixtureShape) -> None:
    network = toy_network(shape)
    composed = with_experts(dense_toy(), experts_of(network))
    for text, found in zip(TEXTS, network_logits(network), strict=True):
        torch.testing.assert_close(torch.tensor(prefill_logits(text, composed)), found, atol=5e-5, rtol=0)
        assert (found - torch.tensor(prefill_logits(text, dense_toy()))).abs().max() > 0.1


@pytest.mark.parametrize("shape", [SHAPE, LONE])
def test_experts_need_not_reach_to_the_top(shape: MixtureShape) -> None:
    network = toy_network(shape, first_layer=1)
    experts = experts_of(network)
    assert experts.layers == {1, 2}
    composed = with_experts(dense_toy(), experts)
    for text, found in zip(TEXTS, network_logits(network), strict=True):
        torch.testing.assert_close(torch.tensor(prefill_logits(text, composed)), found, atol=5e-5, rtol=0)


@pytest.mark.parametrize("shape", [SHAPE, LONE])
def test_transformers_and_the_worker_read_what_is_written(tmp_path: Path, shape: MixtureShape) -> None:
    network = toy_network(shape)
    composed = with_experts(dense_toy(), experts_of(network))
    write_tokenizer(toy_tokenizer(), tmp_path)
    write_huggingface(composed, tmp_path, torch.float32, {"eos_token_id": [0, 2], "bos_token_id": None})
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1, "who may read one file of a model may read all"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    loaded = load_model(str(tmp_path), torch.float32)
    assert loaded.tokenizer == toy_tokenizer()
    for text in TEXTS:
        expected = torch.tensor(prefill_logits(text, composed))
        assert torch.equal(torch.tensor(prefill_logits(text, loaded.model)), expected)
        with torch.no_grad():
            found = theirs(torch.tensor([text])).logits[0]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_rows_come_back_in_their_order() -> None:
    weight = torch.randn(24, 5)
    assert torch.equal(halve_rows(interleave_rows(weight, 3), 3), weight)


def test_experts_are_the_same_from_a_file(tmp_path: Path) -> None:
    saved = experts_of(toy_network())
    saved.save(tmp_path / "experts.safetensors", torch.float32, {"base": "toy"})
    loaded = Experts.load(tmp_path / "experts.safetensors")
    assert (loaded.layers, loaded.shape) == ({FIRST_LAYER, FIRST_LAYER + 1}, SHAPE)
    assert loaded.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in saved.tensors.items())


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    for shape in (SHAPE, LONE):
        missing = dict(experts_of(toy_network(shape)).tensors)
        del missing["model.layers.3.mlp.experts.0.up_proj.weight"]
        with pytest.raises(CheckpointError, match=r"layers\.3\.mlp\.experts\.0\.up_proj"):
            with_experts(dense_toy(), Experts(shape, missing))
    (tmp_path / "none.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        Experts.load(tmp_path / "none.safetensors")
    large = dense_toy()
    large.norm.weight.data[0] = 1e9
    with pytest.raises(ExportError, match="too large for float16"):
        write_huggingface(large, tmp_path / "large", torch.float16, {})
    with pytest.raises(ValueError, match="first_layer"):
        Network(dense_toy(), 4, 1, SHAPE)
    with pytest.raises(ValueError, match="num_layers is 0"):
        Network(dense_toy(), FIRST_LAYER, 0, SHAPE)
