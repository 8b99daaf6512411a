"""Runs many sequences at once for a while: `python -m tests.bench.soak_worker [--minutes N]` (`make soak-worker`).

64 callers, each in a loop: start a text, of which half begin like others', append, decode, fork, cut, send a step
again, drop a step under way, release or simply go. The worker is the toy model in deterministic mode behind the
engine's own thread, with a cache too small for all of them, so that refusals and evictions happen all the time. Now
and then the logits are compared with one prefill of the same tokens, bit for bit. At the end no block may be held and
memory may not have grown. Prints what happened; exits with 1 where a check failed.
"""

from __future__ import annotations

import argparse
import gc
import os
import queue
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import logging

import numpy as np
import structlog

from services.model_worker.engine import Engine
from services.model_worker.kv_cache import KvCache
from services.model_worker.sequence import Logits, Step
from services.rpckit.status import LeaseExpired, OutOfCapacity
from tests.support.toy_model import deterministic_toy, prefill_logits, random_tokens

NUM_CALLERS = 64
NUM_BLOCKS = 600
"""Less than a third of what the callers would like to have."""
LEASE_S = 2.0
MAX_TEXT_TOKENS = 600
SPOT_CHECK_EVERY = 20
COMMON = [random_tokens(MAX_TEXT_TOKENS, seed=i) for i in range(4)]
"""What many texts begin with."""


Answer = tuple[str, tuple[int, ...], Logits]
"""Kind of step, the sequence's tokens, the row of logits behind them."""


@dataclass
class Report:
    """What happened."""

    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    num_checked: int = 0
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    resident_mb: list[float] = field(default_factory=list)
    """After a third of the time and at the end."""

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        return (
            f"{self.seconds:.0f} s: {counts}; {self.num_checked} answers equal a fresh prefill bit for bit; "
            f"resident memory {' -> '.join(f'{size:.0f} MB' for size in self.resident_mb)}; "
            f"{len(self.failures)} failures {self.failures[:5] or ''}"
        )


class Caller:
    """One of those who send steps; keeps its own record of what its sequences hold."""

    def __init__(self, name: str, engine: Engine, report: Report, answers: queue.SimpleQueue[Answer]) -> None:
        self._name = name
        self._engine = engine
        self._report = report
        self._answers = answers
        self._random = random.Random(name)
        self._num_opened = 0
        self._num_answers = 0
        self._tokens: dict[str, tuple[int, ...]] = {}

    def run(self, until: float) -> None:
        """Go on until then; any surprise is a failure."""
        try:
            while time.monotonic() < until:
                self._once()
            self._engine.release(list(self._tokens)).result(timeout=60)
        except Exception as error:
            self._report.failures.append(f"{self._name}: {error!r}")

    def _once(self) -> None:
        kind = self._random.choice(
            ["start", "append", "decode", "decode", "decode", "fork", "cut", "retry", "drop", "end"]
        )
        if kind == "start" or not self._tokens:
            self._step("start", self._new_name(), (), self._text())
            return
        name = self._random.choice(list(self._tokens))
        held = self._tokens[name]
        if kind == "end" or len(self._tokens) > 3:
            del self._tokens[name]
            if self._random.random() < 0.8:  # else it goes without a word and its lease ends
                self._engine.release([name]).result(timeout=60)
            self._count("release")
        elif kind == "append":
            self._step(kind, name, held, self._text()[: self._random.randint(1, 100)])
        elif kind == "fork":
            position = self._random.randint(1, len(held))
            self._step(kind, self._new_name(), held[:position], self._text()[:5], fork_of=name)
        elif kind == "cut":
            position = self._random.randint(0, len(held))
            self._step(kind, name, held[:position], self._text()[:20], truncate_to=position)
        elif kind == "drop":
            step = Step(sequence_id=name, position=len(held), token_ids=self._text())
            (future,) = self._engine.submit([step])
            time.sleep(self._random.random() * 0.02)
            if future.cancel():
                self._count("dropped")
            else:
                self._engine.release([name]).result(timeout=60)
                del self._tokens[name]
        else:
            for _ in range(self._random.randint(1, 10)):
                new = self._text()[:1]
                if not self._step(kind, name, self._tokens[name], new):
                    break
                if kind == "retry":
                    self._step(kind, name, self._tokens[name][:-1], new)

    def _step(
        self,
        kind: str,
        name: str,
        held: tuple[int, ...],
        new: tuple[int, ...],
        fork_of: str | None = None,
        truncate_to: int | None = None,
    ) -> bool:
        """Send a step and wait for its answer; says whether it was applied."""
        step = Step(sequence_id=name, position=len(held), token_ids=new, fork_of=fork_of, truncate_to=truncate_to)
        (future,) = self._engine.submit([step])
        try:
            outcome = future.result(timeout=120)
        except OutOfCapacity:
            self._count("refused")
            time.sleep(self._random.random() * 0.05)
            return False
        except LeaseExpired:
            self._count("lease expired")
            self._tokens.pop(fork_of or name, None)
            return False
        self._tokens[name] = held + new
        if outcome.position != len(held + new):
            self._report.failures.append(f"{kind}: position {outcome.position}, not {len(held + new)}")
        self._count(kind)
        self._count("tokens found in the cache", outcome.num_cached_tokens)
        self._num_answers += 1
        if self._num_answers % SPOT_CHECK_EVERY == 0:
            self._answers.put((kind, held + new, outcome.logits))
        return True

    def _count(self, name: str, number: int = 1) -> None:
        with self._report.lock:
            self._report.counts[name] += number

    def _new_name(self) -> str:
        self._num_opened += 1
        return f"{self._name}-{self._num_opened}"

    def _text(self) -> tuple[int, ...]:
        own = random_tokens(self._random.randint(1, 60), seed=self._random.randrange(10**6))
        if self._random.random() < 0.5:
            return own
        return self._random.choice(COMMON)[: self._random.randint(1, MAX_TEXT_TOKENS)] + own


def soak(seconds: float) -> Report:
    """Run for so long and check everything."""
    report = Report()
    model = deterministic_toy()
    cache = KvCache(model.config, NUM_BLOCKS, model.dtype)
    engine = Engine(
        model,
        cache,
        context_length=model.config.context_length,
        max_batch_tokens=64,
        max_queued_steps=1000,
        max_sequences=150,
        lease_s=LEASE_S,
    )
    engine.start()
    started = time.monotonic()
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    callers = [Caller(str(i), engine, report, answers) for i in range(NUM_CALLERS)]
    threads = [threading.Thread(target=caller.run, args=(started + seconds,)) for caller in callers]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if not report.resident_mb and time.monotonic() > started + seconds / 3:
            report.resident_mb.append(_resident_mb())
        try:
            _check(*answers.get(timeout=0.1), report)
        except queue.Empty:
            continue
    deadline = time.monotonic() + 5 * LEASE_S
    while cache.num_free_blocks < cache.num_blocks and time.monotonic() < deadline:
        time.sleep(0.2)  # those that went without a word
    engine.stop()
    report.seconds = time.monotonic() - started
    if cache.num_free_blocks != cache.num_blocks:
        report.failures.append(f"{cache.num_blocks - cache.num_free_blocks} blocks are held by nobody")
    gc.collect()
    report.resident_mb.append(_resident_mb())
    if report.resident_mb[1] > 1.1 * report.resident_mb[0] + 10:
        report.failures.append(f"memory has grown: {report.resident_mb}")
    for name in ("start", "fork", "cut", "retry", "dropped", "refused", "release", "tokens found in the cache"):
        if not report.counts[name]:
            report.failures.append(f"no step was of the kind {name!r}: nothing is shown")
    return report


def _check(kind: str, token_ids: tuple[int, ...], logits: Logits, report: Report) -> None:
    """Compare an answer with one prefill."""
    report.num_checked += 1
    expected = prefill_logits(token_ids, deterministic_toy())[-1:]
    if not np.array_equal(logits, expected):
        report.failures.append(f"{kind}: {len(token_ids)} tokens, {np.abs(logits - expected).max()} off")


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))  # leases end all the time
    report = soak(60 * options.minutes)
    print(report)
    sys.exit(1 if report.failures else 0)


if __name__ == "__main__":
    main()
