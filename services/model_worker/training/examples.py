"""What is learned from: prompts and the completions that should follow them, as tokens, in batches."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer


class ExamplesError(ValueError):
    """A file of examples that cannot be used; the message names file and line."""


@dataclass(frozen=True)
class Example:
    """A prompt and its completion; only the completion's tokens are learned."""

    token_ids: tuple[int, ...]
    num_prompt_tokens: int


def read_examples(file: Path, tokenizer: Tokenizer) -> list[Example]:
    """Read lines of JSON with `prompt` and `completion`, texts with special tokens written out.

    Raises:
        ExamplesError: the file cannot be read, a line is something else, or there is none.
    """
    examples = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ExamplesError(f"cannot read {file}: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            prompt, completion = (
                tokenizer.encode(content[part], add_special_tokens=False).ids for part in ("prompt", "completion")
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ExamplesError(f"{file}, line {number}, has no texts `prompt` and `completion`: {error}") from None
        if not prompt or not completion:
            raise ExamplesError(f"{file}, line {number}, has an empty prompt or completion")
        examples.append(Example((*prompt, *completion), len(prompt)))
    if not examples:
        raise ExamplesError(f"{file} has no examples")
    return examples


def batches(lengths: Sequence[int], max_tokens: int, seed: int) -> Iterator[list[int]]:
    """Yield the indices of examples in an order that the seed gives, as many together as `max_tokens` has room for."""
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    batch: list[int] = []
    num_tokens = 0
    for index in order:
        if batch and num_tokens + lengths[index] > max_tokens:
            yield batch
            batch, num_tokens = [], 0
        batch.append(index)
        num_tokens += lengths[index]
    if batch:
        yield batch
