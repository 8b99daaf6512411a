"""Times the worker's engine: `python -m tests.bench.worker [MODEL] [--threads N] [--dtype float32] [--beside]`.

Prints the time of all matrix products of the layers, as PyTorch's `F.linear` and as the worker has them. Then, for the
fast kernels and in deterministic mode: tokens a second of 1, 8 and 32 sequences that decode together behind 200 tokens
each, and of one that reads a prompt (the best of several, as other processes disturb); the time to a prompt's first
token without and with a beginning of 1,000 tokens that another had brought into the cache; the time of a fork behind
few and many tokens; the time between the tokens of one sequence, alone and while another reads 4,000 tokens. With
`--beside`, decoding of `transformers` on that file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from services.model_worker.engine import Engine
from services.model_worker.kv_cache import KvCache
from services.model_worker.loading import LoadedModel, find_gguf, load_model
from services.model_worker.model.kernels import FAST, deterministic_kernels
from services.model_worker.model.linear import Linear, MakeProduct, PlainProduct, fastest_product
from services.model_worker.model.transformer import Transformer
from services.model_worker.sequence import Step

BATCHES = (1, 8, 32)
ROWS = (1, 2, 8, 32, 128)
CONTEXT_TOKENS = 200
DECODED_TOKENS = 12
PREFIX_TOKENS = 1000
LONG_TOKENS = 4000
FORKED_TOKENS = (130, 1030, 4030)
MAX_BATCH_TOKENS = 128


class Bench:
    """An engine that runs, and what is asked of it."""

    def __init__(self, loaded: LoadedModel) -> None:
        model = loaded.model
        self._engine = Engine(
            model,
            KvCache(model.config, 1200, model.dtype),
            context_length=model.config.context_length,
            max_batch_tokens=MAX_BATCH_TOKENS,
            max_queued_steps=1000,
            max_sequences=100,
            lease_s=600,
        )
        self._engine.start()
        self._vocab_size = model.config.vocab_size

    def stop(self) -> None:
        self._engine.stop()

    def tokens(self, num_tokens: int, seed: int) -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randint(self._vocab_size, (num_tokens,), generator=generator).tolist())

    def run(self, steps: Sequence[Step]) -> float:
        """Send steps together; returns seconds to the last answer."""
        started = time.perf_counter()
        for future in self._engine.submit(steps):
            future.result()
        return time.perf_counter() - started

    def release(self, names: Sequence[str]) -> None:
        self._engine.release(names).result()

    def decode(self, num_sequences: int) -> float:
        """Return tokens a second of so many sequences, by the best step."""
        names = [str(i) for i in range(num_sequences)]
        for i, name in enumerate(names):
            self.run([Step(sequence_id=name, position=0, token_ids=self.tokens(CONTEXT_TOKENS, i))])
        times = [
            self.run(
                [Step(sequence_id=name, position=CONTEXT_TOKENS + token, token_ids=(100 + token,)) for name in names]
            )
            for token in range(DECODED_TOKENS)
        ]
        self.release(names)
        return num_sequences / min(times)

    def prefill(self) -> float:
        """Return tokens a second of a prompt of 512 that nobody has seen, the best of three."""
        times = []
        for seed in range(3):
            times.append(self.run([Step(sequence_id="prompt", position=0, token_ids=self.tokens(512, 1000 + seed))]))
            self.release(["prompt"])
        return 512 / min(times)

    def first_token_s(self) -> tuple[float, float]:
        """Return the time to the first token of a prompt without and with a beginning that is in the cache."""
        prefix = self.tokens(PREFIX_TOKENS, 2000)
        times = []
        for seed in range(4):
            step = Step(sequence_id="prefix", position=0, token_ids=prefix + self.tokens(10, 3000 + seed))
            times.append(self.run([step]))
            self.release(["prefix"])
        return times[0], statistics.median(times[1:])

    def fork_s(self, num_tokens: int) -> float:
        """Return the median time of a fork of a sequence of so many tokens, which appends nothing."""
        self.run([Step(sequence_id="parent", position=0, token_ids=self.tokens(num_tokens, 6000))])
        names = [f"child {i}" for i in range(50)]
        times = [
            self.run([Step(sequence_id=name, position=num_tokens, token_ids=(), fork_of="parent", logits="none")])
            for name in names
        ]
        self.release(["parent", *names])
        return statistics.median(times)

    def times_between_tokens(self) -> tuple[list[float], list[float], float]:
        """Return those of one sequence alone, and beside a long prompt, and the seconds that the prompt took."""
        position = CONTEXT_TOKENS
        self.run([Step(sequence_id="decode", position=0, token_ids=self.tokens(position, 4000))])
        alone = []
        for _ in range(20):
            alone.append(self.run([Step(sequence_id="decode", position=position, token_ids=(7,))]))
            position += 1
        started = time.perf_counter()
        (prompt,) = self._engine.submit(
            [Step(sequence_id="long", position=0, token_ids=self.tokens(LONG_TOKENS, 5000))]
        )
        beside = []
        while not prompt.done():
            beside.append(self.run([Step(sequence_id="decode", position=position, token_ids=(7,))]))
            position += 1
        seconds = time.perf_counter() - started
        self.release(["decode", "long"])
        return alone, beside, seconds


def measure(bench: Bench) -> None:
    print(f"  decode, {CONTEXT_TOKENS} tokens of context: ", end="")
    print(", ".join(f"batch {size}: {bench.decode(size):.1f} tokens/s" for size in BATCHES))
    print(f"  prompt of 512: {bench.prefill():.0f} tokens/s")
    without, with_hit = bench.first_token_s()
    print(
        f"  first token of a prompt of {PREFIX_TOKENS + 10}: {without * 1e3:.0f} ms, with {PREFIX_TOKENS} in the cache "
        f"{with_hit * 1e3:.0f} ms: {without / with_hit:.1f} times shorter"
    )
    forks = ", ".join(f"{size} tokens {bench.fork_s(size) * 1e6:.0f} us" for size in FORKED_TOKENS)
    print(f"  fork of a sequence of {forks}")
    alone, beside, seconds = bench.times_between_tokens()
    num_chunks = -(-LONG_TOKENS // (MAX_BATCH_TOKENS - 1))
    print(
        f"  between tokens: alone median {statistics.median(alone) * 1e3:.0f} ms, longest {max(alone) * 1e3:.0f} ms; "
        f"beside a prompt of {LONG_TOKENS} median {statistics.median(beside) * 1e3:.0f} ms, "
        f"longest {max(beside) * 1e3:.0f} ms: {len(beside)} tokens in {num_chunks} chunks, {seconds:.1f} s"
    )


@torch.inference_mode()
def measure_products(model: Transformer) -> None:
    """Time the products of all layers with some rows: as PyTorch has them, and as they are prepared."""
    weights = [module.weight for block in model.blocks for module in block.modules() if isinstance(module, Linear)]
    kinds: dict[str, MakeProduct] = {
        "F.linear": PlainProduct,
        "fast": fastest_product,
        "deterministic": deterministic_kernels(model.config).make_product,
    }
    print(f"products with the {len(weights)} matrices of all layers")
    for name, make in kinds.items():
        products = [(make(weight), weight) for weight in weights]
        results = []
        for num_rows in ROWS:
            inputs = {weight.shape[1]: torch.randn(num_rows, weight.shape[1]).to(weight.dtype) for weight in weights}
            times = []
            for _ in range(6):
                started = time.perf_counter()
                for product, weight in products:
                    product(inputs[weight.shape[1]])
                times.append(time.perf_counter() - started)
            results.append(f"{num_rows} rows: {min(times) * 1e3:.1f} ms")
        print(f"  {name}: {', '.join(results)}", flush=True)


def measure_transformers(path: Path, dtype: torch.dtype) -> None:
    """Time the same decoding; padding-free, as all sequences are equally long."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype).eval()
    results = []
    with torch.inference_mode():
        for size in BATCHES:
            prompt = torch.randint(model.config.vocab_size, (size, CONTEXT_TOKENS))
            past = model(prompt, use_cache=True, logits_to_keep=1).past_key_values
            times = []
            for _ in range(DECODED_TOKENS):
                started = time.perf_counter()
                past = model(torch.full((size, 1), 100), past_key_values=past).past_key_values
                times.append(time.perf_counter() - started)
            results.append(f"batch {size}: {size / min(times):.1f} tokens/s")
    print(
        f"transformers {transformers.__version__}\n  decode, {CONTEXT_TOKENS} tokens of context: {', '.join(results)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="models")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--beside", action="store_true", help="time transformers too; MODEL must be a GGUF file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    measure_products(load_model(options.model, dtype).model)
    for title in ("fast", "deterministic"):
        started = time.perf_counter()
        loaded = load_model(options.model, dtype)
        read = time.perf_counter()
        loaded.model.prepare(FAST if title == "fast" else deterministic_kernels(loaded.model.config))
        print(f"{title}: loaded in {read - started:.1f} s, prepared in {time.perf_counter() - read:.1f} s", flush=True)
        bench = Bench(loaded)
        bench.decode(1)  # the first pass of a shape makes its kernels
        measure(bench)
        bench.stop()
    if options.beside:
        measure_transformers(find_gguf(Path(options.model)), dtype)


if __name__ == "__main__":
    main()
