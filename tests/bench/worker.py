"""Times the decoder alone: `python -m tests.bench.worker MODEL [--threads N] [--dtype float32]`.

Prints time to load, milliseconds of one token at batch 1 after 200 tokens of context, of one token of each of 8
sequences, and tokens a second of a prompt of 512 in pieces of 128: the best of several runs.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from services.model_worker.kv_cache import KvCache
from services.model_worker.loading import load_model
from services.model_worker.model.kernels import FAST
from services.model_worker.runner import ModelRunner, RunnerInput


def best_s(run: Callable[[], object], num_runs: int) -> float:
    times = []
    for _ in range(num_runs):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    loaded = load_model(options.model, getattr(torch, options.dtype))
    loaded.model.prepare(FAST)
    print(f"load: {time.perf_counter() - started:.2f} s")
    cache = KvCache(loaded.model.config, 256, loaded.model.dtype)
    runner = ModelRunner(loaded.model, cache)
    blocks = [cache.allocate(32) for _ in range(8)]
    one = [RunnerInput([100], 200, blocks[0], 1)]
    eight = [RunnerInput([100], 200, block_ids, 1) for block_ids in blocks]
    pieces = [RunnerInput([100] * 128, start, blocks[0], 0) for start in range(0, 512, 128)]
    print(f"decode, batch 1: {best_s(lambda: runner.forward(one), 20) * 1e3:.1f} ms/token")
    print(f"decode, batch 8: {best_s(lambda: runner.forward(eight), 10) * 1e3 / 8:.1f} ms/token")
    print(f"prefill: {512 / best_s(lambda: [runner.forward([piece]) for piece in pieces], 3):.0f} tokens/s")


if __name__ == "__main__":
    main()
