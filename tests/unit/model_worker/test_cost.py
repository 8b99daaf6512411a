"""What a token costs, beside torch's own count of the operations that run."""

from __future__ import annotations

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from services.model_worker.kv_cache import KvCache
from services.model_worker.model.cost import cost_of
from services.model_worker.runner import ModelRunner, RunnerInput
from tests.support.toy_model import random_tokens, shared_toy


def test_the_cost_is_what_torch_counts() -> None:
    model, num_tokens = shared_toy(), 48
    cost = cost_of(model)
    cache = KvCache(model.config, 8, model.dtype)
    runner = ModelRunner(model, cache)
    step = RunnerInput(random_tokens(num_tokens), 0, cache.allocate(3), num_tokens)
    # The plain kernel: the others' operations are not all counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        runner.forward([step])
    counts = counter.get_flop_counts()["Global"]
    products = sum(
        count for operation, count in counts.items() if "mm" in str(operation) and "bmm" not in str(operation)
    )
    assert products == num_tokens * cost.flops_per_token
    attention = sum(count for operation, count in counts.items() if "bmm" in str(operation))
    assert attention == num_tokens * num_tokens * cost.flops_per_context_token


def test_experts_that_rest_cost_nothing() -> None:
    model = shared_toy()
    config, cost = model.config, cost_of(model)
    expert = 2 * 3 * config.hidden_size * config.intermediate_size
    idle = config.num_hidden_layers * (config.num_experts - config.num_experts_per_tok) * expert
    assert cost.dense_flops_per_token - cost.flops_per_token == idle
    assert cost.weight_bytes == 4 * model.num_parameters()
