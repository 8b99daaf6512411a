"""Writes texts of a schema at random, in a process that can be killed: what `tests/bench/dead_ends.py` counts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from gateway.decode.limits import Limits
from services.constraint.checking import Case, TokenizerChoice
from services.constraint.checks import TokenClasses, checked
from services.constraint.core.engine import Matcher, TokenTrie, compile_grammar, warm_up
from services.constraint.sources import build, common_grammar
from services.constraint.validation.validators import validate
from services.rpckit.status import ServiceError
from services.vocabulary.files import read_vocabulary
from tests.support.random_decoding import RandomModel, write

TARGET = "tests.bench.random_texts:answer"
PropertyOrder = Literal["schema", "any"]
_NO_LIMIT = 1 << 40


@dataclass(frozen=True, slots=True)
class Generation:
    """What one generation did. `error` is the reason where it wrote no text; `is_valid` is the validator's."""

    seed: int
    num_tokens: int
    num_dead_ends: int
    num_rolled_back_tokens: int
    error: str | None = None
    is_valid: bool = True


@dataclass(frozen=True, slots=True)
class SchemaRun:
    """A schema with checked keywords in one property order, and its generations; `error` where it is refused."""

    case_id: Any
    order: PropertyOrder
    keywords: tuple[str, ...] = ()
    generations: tuple[Generation, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class GenerateTexts:
    """Write texts of one schema; seeds count from 0."""

    case: Case
    order: PropertyOrder
    num_seeds: int
    max_tokens: int
    limit_s: float

    def run(self, writer: Writer) -> SchemaRun:
        """Run in the process."""
        return writer.run(self)


class Writer:
    """Writes texts with one vocabulary."""

    def __init__(self, choice: TokenizerChoice) -> None:
        """Make all that comes from the vocabulary alone."""
        self._vocabulary = read_vocabulary(choice.path)
        self._trie = TokenTrie(self._vocabulary)
        self._classes = TokenClasses(self._trie)
        self._classes.warm_up()
        self._model = RandomModel(self._vocabulary)
        warm_up(self._trie, common_grammar())

    def run(self, task: GenerateTexts) -> SchemaRun:
        """Write the texts of a schema, none where nothing in it is checked."""
        source, options = task.case.source, replace(task.case.options, property_order=task.order)
        run = SchemaRun(task.case.case_id, task.order)
        try:
            built = build(source, options)
            keywords = sorted({report.keyword for report in built.keywords if report.enforcement == "checked"})
            if not keywords:
                return run
            run = replace(run, keywords=tuple(keywords))
            grammar = Matcher(compile_grammar(built.grammar), self._trie)
            assert built.schema is not None, "keywords are of a JSON Schema"
            matcher = checked(grammar, built.schema, built.inexact or frozenset(), self._classes)
        except ServiceError as error:
            return replace(run, error=error.reason)
        limits = Limits(task.max_tokens, False, 0.0, 16, _NO_LIMIT, _NO_LIMIT)

        async def generate(seed: int) -> Generation:
            written = await write(
                matcher, self._vocabulary, self._model, seed=seed, limits=limits, limit_s=task.limit_s
            )
            account, error = written.account, written.error
            return Generation(
                seed,
                len(account.token_ids),
                account.num_dead_ends,
                account.num_rolled_back_tokens,
                None if error is None else error.reason,
                is_valid=error is not None or not validate(source, options, written.text.encode()),
            )

        return replace(run, generations=tuple(asyncio.run(generate(seed)) for seed in range(task.num_seeds)))


def answer(choice: TokenizerChoice, task: GenerateTexts | None) -> SchemaRun | None:
    """Do a task, in a process that can be killed; without one, only prepare."""
    writer = _writer(choice)
    return None if task is None else task.run(writer)


@lru_cache(maxsize=1)
def _writer(choice: TokenizerChoice) -> Writer:
    return Writer(choice)
