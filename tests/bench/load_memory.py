"""What memory a checkpoint takes while it is loaded: `python -m tests.bench.load_memory PATH` (`make bench-load`).

Anonymous memory is what the process owns; the most of it, sampled every few milliseconds, is set beside what is left
when the model is ready to serve. Pages of the file that are mapped meanwhile are the system's, which takes them back
when it needs them; they are told apart. What the process holds before it loads is taken off.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import threading
import time
from pathlib import Path

import torch

from services.model_worker.loading import load_model
from services.model_worker.model.kernels import FAST


def memory_mb() -> tuple[float, float]:
    """Return anonymous memory, and mapped pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {
        line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("RssAnon", "RssFile"))
    }
    return found["RssAnon"], found["RssFile"]


class Sampler(threading.Thread):
    """Notes the most of both."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = (0.0, 0.0)
        self.is_stopped = False

    def run(self) -> None:
        while not self.is_stopped:
            anonymous, mapped = memory_mb()
            self.most = max(self.most[0], anonymous), max(self.most[1], mapped)
            time.sleep(0.002)


def main() -> int:
    """Load and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file or a Hugging Face directory")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    gc.collect()
    before = memory_mb()
    sampler = Sampler()
    sampler.start()
    started = time.perf_counter()
    loaded = load_model(arguments.model, getattr(torch, arguments.dtype))
    loaded.model.prepare(FAST)
    seconds = time.perf_counter() - started
    gc.collect()
    final = memory_mb()
    sampler.is_stopped = True
    sampler.join()
    report = {
        "weights_mb": round(loaded.cost.weight_bytes / 2**20),
        "final_mb": round(final[0] - before[0]),
        "most_mb": round(sampler.most[0] - before[0]),
        "most_over_final": round((sampler.most[0] - before[0]) / (final[0] - before[0]), 3),
        "most_mapped_mb": round(sampler.most[1] - before[1]),
        "seconds": round(seconds, 2),
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
