"""Masks of many sequences at once: `make bench-mask ARGS=--batch`.

64 sequences over 32 schemas, two each, cold at the start. In each step every sequence takes one token and the mask
behind it is written to its row of the caller's buffer; both count. Groups of 32 schemas follow one another, each with
grammars of its own, compiled anew for every measurement and outside of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from services.constraint.checking import Case, Checker, no_collection
from services.constraint.core.batch import REJECTED, Batch
from services.vocabulary import Vocabulary, bitmask_words
from tests.bench.peers import Llguidance, RefusedError, Xgrammar

NUM_SCHEMAS = 32
NUM_STEPS = 64


@dataclass(frozen=True)
class Group:
    """Schemas, and for each of them the first `NUM_STEPS` tokens of two texts (the same one, where it has but one)."""

    schemas: tuple[str, ...]
    token_ids: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    @property
    def num_masks(self) -> int:
        """How many masks a run over it writes."""
        return 2 * len(self.schemas) * NUM_STEPS


def groups(cases: list[Case], checker: Checker, peer: Llguidance, *, at_most: int) -> Iterator[Group]:
    """Make groups of schemas that ours and the peer compile, with texts that both accept and that are long enough."""
    chosen: list[tuple[str, tuple[tuple[int, ...], tuple[int, ...]]]] = []
    num_groups = 0
    for case in cases:
        texts = _long_texts(case, checker)
        if texts is None or not _takes(peer, case, texts):
            continue
        chosen.append((case.source.text or "", texts))
        if len(chosen) == NUM_SCHEMAS:
            schemas, token_ids = zip(*chosen, strict=True)
            yield Group(schemas, token_ids)
            chosen.clear()
            num_groups += 1
            if num_groups == at_most:
                return


def _long_texts(case: Case, checker: Checker) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    outcome = checker.run(case, num_passes=1)
    texts = [
        tuple(checker.vocabulary.encode(test.text)[:NUM_STEPS])
        for test, found in zip(case.tests, outcome.tests, strict=False)
        if test.is_valid and found.is_accepted
    ]
    texts = [text for text in texts if len(text) == NUM_STEPS]
    return (texts[0], texts[-1]) if texts else None


def _takes(peer: Llguidance, case: Case, texts: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
    try:
        matcher = peer.matcher(case.source.text or "")
    except RefusedError:
        return False
    return all(matcher.validate_tokens(list(text)) == len(text) for text in texts)


Runner = Callable[[Group, int], float]
"""Runs a group on some threads and returns the seconds of all its steps."""


def masks_per_second(run: Runner, chosen: list[Group], num_threads: int) -> float:
    """Run all groups."""
    with no_collection():
        seconds = sum(run(group, num_threads) for group in chosen)
    return sum(group.num_masks for group in chosen) / seconds


def ours_batch(checker: Checker) -> Runner:
    """Ours, by `services.constraint.core.batch`."""
    bitmask = np.zeros((2 * NUM_SCHEMAS, bitmask_words(checker.vocabulary.vocab_size)), np.int32)

    def run(group: Group, num_threads: int) -> float:
        made = [checker.matcher(schema) for schema in group.schemas]
        matchers = [matcher for one in made for matcher in (one, one)]
        states = np.array([matcher.start for matcher in matchers], np.int64)
        steps = [np.array(column, np.int64) for column in _columns(group)]
        with ThreadPoolExecutor(max(1, num_threads - 1)) as executor:
            batch = Batch(matchers, executor=executor, num_threads=num_threads)
            started = perf_counter()
            for token_ids in steps:
                batch.advance(states, token_ids, bitmask)
            seconds = perf_counter() - started
        if (states == REJECTED).any():
            raise AssertionError("a token of a valid text was refused")
        return seconds

    return run


def llguidance_batch(peer: Llguidance, vocabulary: Vocabulary) -> Runner:
    """Advance by `consume_token_par` and `fill_next_token_bitmask_par`; on one thread by a loop, if that is faster."""
    from llguidance import LLExecutor
    from llguidance.numpy import consume_token_par, fill_next_token_bitmask_par

    bitmask = np.zeros((2 * NUM_SCHEMAS, bitmask_words(vocabulary.vocab_size)), np.int32)

    def matchers(group: Group) -> list[Any]:
        first = [peer.matcher(schema) for schema in group.schemas]
        return [matcher for one in first for matcher in (one, one.deep_copy())]

    def by_executor(group: Group, num_threads: int) -> float:
        executor = LLExecutor(num_threads)
        made = matchers(group)
        rows = [(matcher, index) for index, matcher in enumerate(made)]
        steps = [list(zip(made, column, strict=True)) for column in _columns(group)]
        started = perf_counter()
        for moves in steps:
            consume_token_par(executor, moves)
            fill_next_token_bitmask_par(executor, rows, bitmask)
        return perf_counter() - started

    def by_loop(group: Group) -> float:
        made = matchers(group)
        addresses = [bitmask[index].ctypes.data for index in range(len(bitmask))]
        num_bytes = bitmask[0].nbytes
        steps = [list(zip(made, column, addresses, strict=True)) for column in _columns(group)]
        started = perf_counter()
        for moves in steps:
            for matcher, token_id, address in moves:
                matcher.consume_token(token_id)
                matcher.unsafe_compute_mask_ptr(address, num_bytes)
        return perf_counter() - started

    def run(group: Group, num_threads: int) -> float:
        return by_executor(group, num_threads) if num_threads > 1 else min(by_executor(group, 1), by_loop(group))

    return run


def xgrammar_batch(peer: Xgrammar, vocabulary: Vocabulary) -> Runner:
    """Advance by `accept_token` and `BatchGrammarMatcher.batch_fill_next_token_bitmask`."""
    import xgrammar

    bitmask = xgrammar.allocate_token_bitmask(2 * NUM_SCHEMAS, vocabulary.vocab_size)

    def run(group: Group, num_threads: int) -> float:
        batch = xgrammar.BatchGrammarMatcher(max_threads=num_threads)
        made = [matcher for schema in group.schemas for matcher in (peer.matcher(schema), peer.matcher(schema))]
        steps = [list(column) for column in _columns(group)]
        started = perf_counter()
        for column in steps:
            batch.batch_accept_token(made, column)
            batch.batch_fill_next_token_bitmask(made, bitmask)
        return perf_counter() - started

    return run


def _columns(group: Group) -> list[tuple[int, ...]]:
    """Return the tokens of each step, one for each sequence."""
    sequences = [text for texts in group.token_ids for text in texts]
    return list(zip(*sequences, strict=True))
