"""The worker on a GPU: without one, that nothing of a pass stays behind; with one (`pytest -m cuda`), what it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from services.model_worker.kv_cache import KvCache
from services.model_worker.model.attention import Attention, SequenceSlice, plan_attention
from services.model_worker.model.config import ModelConfig
from services.model_worker.model.device import device_of
from services.model_worker.model.kernels import FAST, NotDeterministicError, deterministic_kernels
from services.model_worker.toy import CONFIG, toy_model
from tests.support.toy_model import DrivenEngine, random_tokens

# Everything that a dense pass can have: windows, norms of queries and keys, biases.
DENSE = ModelConfig(
    architecture="toy",
    num_hidden_layers=2,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=300,
    context_length=128,
    has_qkv_bias=True,
    qk_norm="head",
    windows=(None, 20),
)


ELSEWHERE = torch.device("meta")
"""A device that every build has. Its tensors have no numbers, but they are not on the CPU."""


class OnlyElsewhere(TorchDispatchMode):
    """Fails where an operation meets a tensor that was left on the CPU, as it would beside a GPU."""

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        for value in tree_leaves((arguments, named)):
            if isinstance(value, torch.Tensor) and value.dim() > 0 and value.device != ELSEWHERE:
                raise AssertionError(f"{function} meets a tensor on {value.device}")
        return function(*arguments, **(named or {}))


KERNELS = {"fast": FAST, "deterministic": deterministic_kernels(DENSE)}


@pytest.mark.parametrize("name", KERNELS)
def test_no_tensor_of_a_pass_stays_on_the_cpu(name: str) -> None:
    kernels = KERNELS[name]
    model = toy_model(1, config=DENSE, device=ELSEWHERE)
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = kernels.attend
    cache = KvCache(DENSE, 20, torch.float32, ELSEWHERE)
    slices = [SequenceSlice(range(3), 0, 40), SequenceSlice((5, 7, 6), 33, 1), SequenceSlice((9, 8, 11), 41, 1)]
    plan = plan_attention(slices, DENSE, torch.float32, padding_block=20, key_tile=kernels.key_tile, windows={None, 20})
    token_ids, last = torch.zeros(42, dtype=torch.int64, device=ELSEWHERE), torch.tensor([41], device=ELSEWHERE)
    moved = plan.to(ELSEWHERE)
    with OnlyElsewhere():
        rows = model(token_ids, moved, cache.memory, last)
        assert (rows.device, tuple(rows.shape)) == (ELSEWHERE, (1, 300))
        with pytest.raises(AssertionError, match="tensor on cpu"):  # a plan left behind is found out
            model(token_ids, plan, cache.memory, last)


def test_a_device_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == device_of("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"the device is cuda:1, but PyTorch .* finds no GPU here"):
        device_of("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of("auto") == torch.device("cuda")
    with pytest.raises(ValueError, match="only 1 GPUs"):
        device_of("cuda:1")


@pytest.mark.cuda
@pytest.mark.parametrize("config", [CONFIG, DENSE], ids=["mixture", "dense"])
def test_a_gpu_gives_the_logits_of_the_cpu(config: ModelConfig) -> None:
    token_ids = random_tokens(70)
    rows = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        model = toy_model(3, config=config, device=device)
        model.prepare(FAST)
        driven = DrivenEngine(model)
        rows.append(driven.one("a", 0, token_ids[:50], logits="all").logits)
        rows.append(driven.one("b", 30, token_ids[50:], fork_of="a", logits="all").logits)
    for ours, theirs in zip(rows[:2], rows[2:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.cuda
def test_a_gpu_is_deterministic_or_says_that_it_is_not() -> None:
    device = torch.device("cuda")
    model = toy_model(3, device=device)
    try:
        model.prepare(deterministic_kernels(model.config, device))
    except NotDeterministicError:
        return
    texts = [random_tokens(5 + 9 * i, seed=i) for i in range(6)]
    alone = [DrivenEngine(model).one("a", 0, text).logits.tobytes() for text in texts]
    driven = DrivenEngine(model)
    assert [driven.one(str(i), 0, text).logits.tobytes() for i, text in enumerate(texts)] == alone
