"""Who goes where, and what it costs: against plain loops and by properties."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.model_worker.training import losses
from services.model_worker.training.gating import assign, expert_capacity, gating_noise, within_capacity
from services.model_worker.training.mixture import GatingOptions, MixtureShape, TrainableMixture

HIDDEN = 6


@pytest.mark.parametrize(("num_experts", "num_per_token"), [(4, 1), (8, 2), (6, 3), (5, 5)])
def test_balance_is_1_at_uniform_and_n_over_k_at_collapse(num_experts: int, num_per_token: int) -> None:
    uniform = torch.full((num_experts, num_experts), 1 / num_experts)
    turns = torch.tensor([[(token + i) % num_experts for i in range(num_per_token)] for token in range(num_experts)])
    assert losses.load_balancing_loss(uniform, turns).item() == pytest.approx(1)
    same = torch.arange(num_per_token).expand(10, -1)
    certain = torch.zeros(10, num_experts)
    certain[:, :num_per_token] = 1 / num_per_token
    assert losses.load_balancing_loss(certain, same).item() == pytest.approx(num_experts / num_per_token)


@given(seed=st.integers(0, 2**32), num_tokens=st.integers(1, 40), num_per_token=st.integers(1, 4))
def test_losses_are_what_their_formulas_say(seed: int, num_tokens: int, num_per_token: int) -> None:
    logits = torch.randn(num_tokens, 4, generator=torch.Generator().manual_seed(seed)).double() * 3
    probs = logits.softmax(dim=-1)
    ids = probs.topk(num_per_token).indices
    counts = Counter(ids.flatten().tolist())
    shares = [counts[expert] / (num_tokens * num_per_token) for expert in range(4)]
    means = [sum(token[expert] for token in probs.tolist()) / num_tokens for expert in range(4)]
    balance = 4 * sum(f * p for f, p in zip(shares, means, strict=True))
    assert losses.load_balancing_loss(probs, ids).item() == pytest.approx(balance)
    z = sum(torch.tensor(token).double().exp().sum().log().item() ** 2 for token in logits.tolist()) / num_tokens
    assert losses.router_z_loss(logits).item() == pytest.approx(z, rel=1e-5)
    entropy = torch.distributions.Categorical(probs=probs).entropy().mean().item()
    assert losses.entropy_loss(probs).item() == pytest.approx(entropy, abs=1e-9)
    importance = probs.sum(dim=0).numpy()
    assert losses.importance_loss(probs).item() == pytest.approx((importance.std() / importance.mean()) ** 2, abs=1e-9)


def test_retention_is_how_far_predictions_are_from_the_base() -> None:
    now, base = torch.randn(2, 5, 20, generator=torch.Generator().manual_seed(1)).double()
    distributions = [torch.distributions.Categorical(logits=logits) for logits in (base, now)]
    expected = torch.distributions.kl_divergence(*distributions).mean().item()
    assert losses.retention_loss(now, base).item() == pytest.approx(expected)
    assert losses.retention_loss(base + 3, base).item() == pytest.approx(0, abs=1e-9)


def test_diversity_is_0_for_orthogonal_experts_and_1_for_the_same() -> None:
    assert losses.diversity_loss(torch.eye(4).view(4, 2, 2)).item() == pytest.approx(0, abs=1e-7)
    assert losses.diversity_loss(torch.ones(4, 3, 2)).item() == pytest.approx(1)


@given(
    seed=st.integers(0, 2**32),
    num_tokens=st.integers(1, 30),
    num_per_token=st.integers(1, 3),
    capacity=st.integers(0, 12),
)
def test_capacity_drops_exactly_the_overflow(seed: int, num_tokens: int, num_per_token: int, capacity: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    decided = assign(
        torch.randn(num_tokens, 3, generator=generator), num_per_token, norm_topk_prob=True, capacity=capacity
    )
    room = Counter(dict.fromkeys(range(3), capacity))
    kept = [[False] * num_per_token for _ in range(num_tokens)]
    for choice in range(num_per_token):
        for token in range(num_tokens):
            expert = int(decided.expert_ids[token, choice])
            if room[expert]:
                room[expert] -= 1
                kept[token][choice] = True
    assert decided.is_kept.tolist() == kept
    counts = Counter(decided.expert_ids.flatten().tolist())
    assert decided.num_dropped == sum(max(0, count - capacity) for count in counts.values())
    assert not decided.weights[~decided.is_kept].any()
    assert torch.equal(within_capacity(decided.expert_ids, 3, capacity), decided.is_kept)


def test_capacity_is_a_share_rounded_up() -> None:
    assert expert_capacity(10, 4, 2, 1.0) == 5
    assert expert_capacity(10, 4, 1, 1.25) == 4


def test_a_dropped_token_passes_by_its_expert() -> None:
    shape = MixtureShape(num_experts=2, num_experts_per_tok=1, expert_width=4, norm_topk_prob=False)
    mixture = TrainableMixture(HIDDEN, shape, GatingOptions(capacity_factor=0.5), torch.Generator().manual_seed(0))
    mixture.down.data.normal_()
    mixture.router.data[0], mixture.router.data[1] = 1.0, -1.0
    out, decided = mixture(torch.rand(8, HIDDEN) + 0.1)  # all to expert 0, which has room for two
    assert decided is not None
    assert decided.num_dropped == 6
    assert [bool(row.any()) for row in out] == [True] * 2 + [False] * 6


@torch.no_grad()
def plain_mixture(mixture: TrainableMixture, x: torch.Tensor) -> torch.Tensor:
    """The definition: token by token, expert by expert."""
    rows = []
    for token in x:
        probs = (mixture.router @ token).softmax(dim=0)
        best = sorted(range(len(probs)), key=lambda expert: -float(probs[expert]))[: mixture.shape.num_experts_per_tok]
        scale = sum(float(probs[expert]) for expert in best) if mixture.shape.norm_topk_prob else 1.0
        row = torch.zeros_like(token)
        for expert in best:
            gate, up = (mixture.gate_up[expert] @ token).chunk(2)
            row += float(probs[expert]) / scale * (mixture.down[expert] @ (gate * gate.sigmoid() * up))
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize(("num_per_token", "norms"), [(1, False), (2, False), (2, True), (4, True)])
def test_a_mixture_is_its_definition(num_per_token: int, norms: bool) -> None:
    shape = MixtureShape(num_experts=4, num_experts_per_tok=num_per_token, expert_width=5, norm_topk_prob=norms)
    mixture = TrainableMixture(HIDDEN, shape, generator=torch.Generator().manual_seed(0))
    mixture.router.data.normal_()
    mixture.down.data.normal_()
    x = torch.randn(20, HIDDEN)
    torch.testing.assert_close(mixture(x)[0].detach(), plain_mixture(mixture, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("num_per_token", "norms"), [(1, False), (2, True)])
def test_gradients_reach_router_noise_and_experts(num_per_token: int, norms: bool) -> None:
    shape = MixtureShape(num_experts=4, num_experts_per_tok=num_per_token, expert_width=5, norm_topk_prob=norms)
    mixture = TrainableMixture(HIDDEN, shape, GatingOptions(noise_scale=1.0), torch.Generator().manual_seed(0))
    mixture.down.data.normal_()
    out, decided = mixture(torch.randn(64, HIDDEN), torch.Generator().manual_seed(1))
    out.square().sum().backward()
    for name in ("router", "noise", "gate_up", "down"):
        assert getattr(mixture, name).grad.abs().max() > 0, name
    mixture.zero_grad()
    _, decided = mixture(torch.randn(64, HIDDEN))
    assert decided is not None
    losses.load_balancing_loss(decided.probs, decided.expert_ids).backward()
    assert mixture.router.grad is not None
    assert mixture.router.grad.abs().max() > 0


def test_a_router_that_could_not_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="norm_topk_prob"):
        MixtureShape(num_experts_per_tok=1, norm_topk_prob=True)


def test_noise_is_there_in_training_alone() -> None:
    options = GatingOptions(noise_scale=1.0, capacity_factor=0.5)
    mixture = TrainableMixture(HIDDEN, MixtureShape(num_experts=4), options)
    x = torch.randn(30, HIDDEN)
    first, second = mixture(x)[1], mixture(x)[1]
    assert first is not None
    assert second is not None
    assert not torch.equal(first.probs, second.probs)
    assert first.num_dropped > 0
    mixture.eval()
    first, second = mixture(x)[1], mixture(x)[1]
    assert first is not None
    assert second is not None
    assert torch.equal(first.probs, second.probs)
    assert torch.equal(first.probs, first.logits.softmax(dim=-1))
    assert first.num_dropped == 0


def test_noise_is_as_wide_as_softplus_says() -> None:
    x, weight = torch.randn(1, HIDDEN), torch.randn(2, HIDDEN)
    drawn = gating_noise(x.expand(20_000, -1), weight, 0.5, torch.Generator().manual_seed(0))
    expected = 0.5 * torch.nn.functional.softplus(x @ weight.T)[0]
    torch.testing.assert_close(drawn.std(dim=0), expected, rtol=0.03, atol=0)
    torch.testing.assert_close(drawn.mean(dim=0), torch.zeros(2), atol=0.03, rtol=0)
