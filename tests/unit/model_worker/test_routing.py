"""What the routers did: counted by the plainest way beside the engine's own, and a collapse that is noticed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from services.model_worker import metrics
from services.model_worker.batching import StepOutcome
from services.model_worker.model.moe import MoeFeedForward, RoutingLog
from services.model_worker.routing import Routing, RoutingMonitor
from services.model_worker.sequence import Step
from services.model_worker.toy import toy_model
from tests.support.toy_model import DrivenEngine, deterministic_toy, prefill_logits, random_tokens, serving_toy

TOKENS = random_tokens(120)


def monitor_of(model: Any, **options: Any) -> RoutingMonitor:
    config = model.config
    settings = {"window_tokens": 1000, "collapse": 0.5} | options
    return RoutingMonitor(model.routed_layers, config.num_experts, config.num_experts_per_tok, **settings)


def test_what_is_told_is_what_the_routers_gave() -> None:
    model = serving_toy()
    given: dict[int, list[torch.Tensor]] = {layer: [] for layer in model.routed_layers}
    hooks = []
    for layer in model.routed_layers:
        block = model.blocks[layer].feed_forward
        assert isinstance(block, MoeFeedForward)
        hooks.append(block.router.register_forward_hook(lambda _, __, out, at=layer: given[at].append(out)))
    monitor = monitor_of(model)
    driven = DrivenEngine(model, routing=monitor, max_batch_tokens=48)
    for name, tokens in (("a", TOKENS[:70]), ("b", TOKENS[70:]), ("c", TOKENS[30:33])):
        driven.one(name, 0, tokens)
    driven.one("a", 70, TOKENS[:1])
    for hook in hooks:
        hook.remove()

    total = monitor.total
    assert total.num_tokens == 124
    num_experts, num_chosen = model.config.num_experts, model.config.num_experts_per_tok
    for row, layer in enumerate(model.routed_layers):
        logits = torch.cat(given[layer]).double()
        probabilities = (logits.exp() / logits.exp().sum(dim=-1, keepdim=True)).numpy()
        counts = np.zeros(num_experts, int)
        for token in probabilities:
            counts[np.argsort(-token, kind="stable")[:num_chosen]] += 1
        assert total.tokens_per_expert[row].tolist() == counts.tolist()
        np.testing.assert_allclose(total.mean_probabilities[row], probabilities.mean(axis=0), atol=1e-6)
        entropy = -(probabilities * np.log(probabilities)).sum(axis=1).mean()
        np.testing.assert_allclose(total.mean_entropy[row], entropy, atol=1e-5)
        balance = num_experts * sum(counts / counts.sum() * probabilities.mean(axis=0))
        np.testing.assert_allclose(total.balance[row], balance, atol=1e-5)


def test_logits_are_the_same_bits_with_a_monitor() -> None:
    model = deterministic_toy()
    seen = DrivenEngine(model, routing=monitor_of(model)).one("a", 0, TOKENS, logits="all").logits
    assert np.array_equal(seen, DrivenEngine(model).one("a", 0, TOKENS, logits="all").logits)


def routed(choice: torch.Tensor, num_experts: int, certainty: float = 12.0) -> RoutingLog:
    """One layer's log in which each token chooses one expert, nearly for certain."""
    logits = torch.zeros(len(choice), num_experts)
    logits[torch.arange(len(choice)), choice] = certainty
    return RoutingLog([logits.softmax(dim=-1)], [choice.unsqueeze(-1)])


def test_the_balance_is_one_at_uniform_and_the_number_of_experts_at_collapse() -> None:
    uniform = Routing.of(routed(torch.arange(80) % 8, 8))
    np.testing.assert_allclose(uniform.balance, [1.0], atol=1e-4)
    collapsed = Routing.of(routed(torch.zeros(80, dtype=torch.int64), 8))
    np.testing.assert_allclose(collapsed.balance, [8.0], atol=1e-2)
    undecided = RoutingLog([torch.full((80, 8), 1 / 8)], [torch.arange(80).unsqueeze(-1) % 8])
    np.testing.assert_allclose(Routing.of(undecided).mean_entropy, [np.log(8)], atol=1e-5)
    assert Routing.nothing(2, 8).balance.tolist() == [1.0, 1.0]


def test_a_collapse_is_told_once_until_it_is_over() -> None:
    monitor = RoutingMonitor([3], 8, 1, window_tokens=40, collapse=0.5)
    spread, collapsed = torch.arange(40) % 8, torch.zeros(40, dtype=torch.int64)
    with capture_logs() as logs:
        for choice in (spread, collapsed[:20], collapsed[:20], collapsed, spread, collapsed):
            monitor.observe(routed(choice, 8))
    assert [(entry["log_level"], entry["layers"]) for entry in logs] == [
        ("warning", [3]),
        ("info", [3]),
        ("warning", [3]),
    ]
    assert metrics.COLLAPSED_LAYERS._value.get() == 1
    assert metrics.ROUTING_BALANCE.labels(3)._value.get() == pytest.approx(8, abs=0.01)
    assert monitor.total.num_tokens == 200


def test_a_mixture_that_uses_all_experts_never_collapses() -> None:
    monitor = RoutingMonitor([0], 8, 8, window_tokens=64, collapse=0.5)
    with capture_logs() as logs:
        for seed in range(20):
            probabilities = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)
            monitor.observe(RoutingLog([probabilities], [torch.arange(8).expand(64, 8).contiguous()]))
    assert not logs


def test_a_model_with_many_experts_has_no_metric_for_each() -> None:
    before = metrics.EXPERT_TOKENS.labels(0, "all")._value.get()
    monitor = RoutingMonitor([0], 4096, 1, window_tokens=10, collapse=0.5)
    monitor.observe(routed(torch.arange(5), 4096))
    monitor.observe(routed(torch.arange(5), 4096))
    assert metrics.EXPERT_TOKENS.labels(0, "all")._value.get() == before + 10


def test_experts_that_get_nothing_are_shown_too() -> None:
    monitor = RoutingMonitor([77], 8, 1, window_tokens=10, collapse=0.5)
    shown = [metrics.EXPERT_TOKENS.labels(77, expert)._value.get() for expert in range(8)]
    assert shown == [0.0] * 8
    monitor.observe(routed(torch.zeros(10, dtype=torch.int64), 8))
    collected = {
        sample.labels["expert"]: sample.value
        for metric in metrics.EXPERT_TOKENS.collect()
        for sample in metric.samples
        if sample.labels["layer"] == "77" and sample.name.endswith("_total")
    }
    assert collected == {"0": 10.0} | {str(expert): 0.0 for expert in range(1, 8)}


def test_the_experts_of_each_token_are_told_where_asked_for() -> None:
    model = toy_model(3)
    chosen: list[list[torch.Tensor]] = [[] for _ in model.routed_layers]
    for number, layer in enumerate(model.routed_layers):
        router = model.blocks[layer].feed_forward.router
        router.register_forward_hook(lambda _, __, out, number=number: chosen[number].append(out))
    tokens = random_tokens(45)
    prefill_logits(tokens, model)
    num_chosen = model.config.num_experts_per_tok
    expected = torch.stack([torch.cat(rows).topk(num_chosen).indices for rows in chosen], dim=1).numpy()

    whole = DrivenEngine(model).one("a", 0, tokens, wants_experts=True).experts
    assert whole is not None
    np.testing.assert_array_equal(whole, expected)
    pieces = DrivenEngine(model, max_batch_tokens=16)
    in_pieces = pieces.run(
        Step(sequence_id="b", position=0, token_ids=random_tokens(30, seed=4)),
        Step(sequence_id="a", position=0, token_ids=tokens, wants_experts=True),
    )
    np.testing.assert_array_equal(in_pieces[1].experts, expected)  # type: ignore[union-attr]
    assert in_pieces[0].experts is None  # type: ignore[union-attr]
    # What was in the cache already went through no router.
    again = pieces.one("c", 0, tokens, wants_experts=True)
    assert again.num_cached_tokens == 32
    np.testing.assert_array_equal(again.experts, expected[32:])
    assert pieces.one("c", 45, tokens[:1]).experts is None


def test_what_the_routers_did_over_a_step_is_told_where_asked_for() -> None:
    model = toy_model(3)
    tokens = random_tokens(45)
    engine = DrivenEngine(model, max_batch_tokens=16)
    asked, other = engine.run(
        Step(sequence_id="a", position=0, token_ids=tokens, wants_experts=True, wants_routing=True),
        Step(sequence_id="b", position=0, token_ids=random_tokens(30, seed=4)),
    )
    assert isinstance(asked, StepOutcome)
    assert isinstance(other, StepOutcome)
    assert other.routing is None
    assert asked.routing is not None
    assert asked.experts is not None
    assert asked.routing.num_tokens == 45
    for number, counts in enumerate(asked.routing.tokens_per_expert):
        np.testing.assert_array_equal(counts, np.bincount(asked.experts[:, number].flatten(), minlength=4))
    alone = DrivenEngine(model).one("a", 0, tokens, wants_routing=True).routing
    assert alone is not None
    np.testing.assert_allclose(asked.routing.mean_entropy, alone.mean_entropy, rtol=1e-4)
    np.testing.assert_allclose(asked.routing.balance, alone.balance, rtol=1e-4)


def test_a_step_that_ignores_the_cache_runs_all_of_its_tokens() -> None:
    engine = DrivenEngine(toy_model(3))
    tokens = random_tokens(45)
    first = engine.one("a", 0, tokens, wants_experts=True)
    again = engine.one("b", 0, tokens, logits="none", wants_experts=True, ignores_cache=True)
    assert (again.num_cached_tokens, len(again.logits)) == (0, 0)
    np.testing.assert_array_equal(again.experts, first.experts)
    assert engine.one("c", 0, tokens).num_cached_tokens == 32  # what is there is there still
    assert engine.release("a", "b", "c") == 3
    assert engine.num_used_blocks == 0
