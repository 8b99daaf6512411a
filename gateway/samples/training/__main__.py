"""Writes `train.jsonl`, `validation.jsonl` and `held_out.jsonl`: `python -m gateway.samples.training --help`."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tokenizers import Tokenizer

from gateway.chat import ChatTemplate
from gateway.request import ChatPrompt
from gateway.samples.training.splits import Example, Reader, Splits
from services.model_worker.model.gguf_file import GgufFile
from services.model_worker.tokenizer import gguf_tokenizer
from services.vocabulary import Vocabulary


def reader_of(model: Path) -> Reader:
    """Read a GGUF file's tokenizer and chat template.

    Raises:
        CheckpointError: the file has none that can be used.
    """
    file = GgufFile(model)
    files = gguf_tokenizer(file)
    tokens: list[str] = file.require("tokenizer.ggml.tokens")
    vocabulary = Vocabulary(files.tokenizer_json, len(tokens), files.eos_token_ids)
    template = ChatTemplate(files.chat_template, vocabulary, bos_token_id=files.bos_token_id)
    tokenizer = Tokenizer.from_buffer(files.tokenizer_json)

    def render(chat: ChatPrompt) -> tuple[str, int]:
        token_ids = template.encode(chat)
        return tokenizer.decode(token_ids, skip_special_tokens=False), len(token_ids)

    end = tokens[file.require("tokenizer.ggml.eos_token_id")]
    return Reader(render, lambda text: len(tokenizer.encode(text, add_special_tokens=False)), end)


def write(path: Path, examples: Iterable[tuple[Example, int]]) -> None:
    """Write a file of examples, and say what is in it."""
    languages: Counter[str] = Counter()
    families: set[str] = set()
    num_tokens = 0
    with path.open("w", encoding="utf-8") as file:
        for example, tokens in examples:
            file.write(json.dumps(asdict(example), ensure_ascii=False) + "\n")
            languages[example.language] += 1
            families.add(example.family)
            num_tokens += tokens
    total = languages.total()
    shares = ", ".join(f"{language} {number}" for language, number in languages.most_common())
    print(
        f"{path.name}: {total} examples of {len(families)} families, {num_tokens} tokens, "
        f"{num_tokens / max(1, total):.0f} each; {shares}"
    )


def main() -> int:
    """Write what the flags ask for."""
    parser = argparse.ArgumentParser(description="Writes examples to train and to judge a small model with.")
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file: its tokenizer and chat template")
    parser.add_argument("--out", type=Path, required=True, help="the directory to write to")
    parser.add_argument("--tokens", type=int, default=900_000, help="of prompts and answers to train with")
    parser.add_argument("--held-out", type=int, default=320, help="examples to judge by")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    splits = Splits(reader_of(arguments.model), arguments.seed)
    write(arguments.out / "train.jsonl", splits.training(arguments.tokens))
    write(arguments.out / "validation.jsonl", splits.validation())
    write(arguments.out / "held_out.jsonl", splits.held_out(arguments.held_out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
