"""`python -m gateway.samples.training`: writes `train.jsonl`, `validation.jsonl` and `held_out.jsonl`.

Each line has a prompt as `Extract` would send it to the model, and the completion that it should give.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from gateway.chat import ChatTemplate
from gateway.extraction.prompt import prompt_of
from gateway.extraction.request import DEFAULT_INSTRUCTIONS, Extraction
from gateway.samples.training.corpus import Item, held_out_items, training_items, validation_items
from services.model_worker.model.gguf_file import GgufFile, gguf_config
from services.model_worker.tokenizer import gguf_tokenizer
from services.vocabulary import Vocabulary

_MAX_TOKENS: Final = 480
_NUM_VALIDATION: Final = 100
_INSTRUCTIONS: Final = (
    DEFAULT_INSTRUCTIONS,
    DEFAULT_INSTRUCTIONS,
    DEFAULT_INSTRUCTIONS,
    "Extract the record as JSON.",
    "Fill in the schema with what the document says.",
    "Give the fields of the schema as a JSON object.",
)


class Renderer:
    """Writes what a model reads and should answer, by its own chat template."""

    def __init__(self, model: Path) -> None:
        file = GgufFile(model)
        files = gguf_tokenizer(file)
        self._tokenizer = Tokenizer.from_str(files.tokenizer_json.decode())
        vocab_size = gguf_config(file).vocab_size
        vocabulary = Vocabulary(files.tokenizer_json, vocab_size, files.eos_token_ids)
        self._template = ChatTemplate(files.chat_template, vocabulary, bos_token_id=files.bos_token_id)
        ends = [self._tokenizer.id_to_token(token_id) or "" for token_id in files.eos_token_ids]
        # What ends a turn stands in the template; what ends a text does not.
        self._end = next((end for end in ends if files.chat_template and end in files.chat_template), ends[0])

    def line(self, item: Item, instructions: str) -> tuple[dict[str, Any], int]:
        """Return an item as it is written, and the tokens of prompt and completion."""
        prompt = self._template.encode(prompt_of(Extraction(item.schema, instructions=instructions), item.text))
        completion = json.dumps(item.record, ensure_ascii=False) + self._end
        num_tokens = len(prompt) + len(self._tokenizer.encode(completion, add_special_tokens=False).ids)
        text = self._tokenizer.decode(prompt, skip_special_tokens=False)
        return asdict(item) | {"prompt": text, "completion": completion}, num_tokens


def main() -> int:
    """Write the three files."""
    parser = argparse.ArgumentParser(
        prog="python -m gateway.samples.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="GGUF file: its tokenizer and chat template are used")
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--tokens", type=int, default=500_000, help="tokens of prompts and completions to train on")
    parser.add_argument("--held-out", type=int, default=320, help="documents to judge by")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    renderer = Renderer(arguments.model)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(arguments.seed)
    seed, out = arguments.seed, arguments.out
    training = _lines(renderer, ((item, rng.choice(_INSTRUCTIONS)) for item in training_items(seed)))
    _write(out / "train.jsonl", training, max_tokens=arguments.tokens)
    validation = _lines(renderer, ((item, DEFAULT_INSTRUCTIONS) for item in validation_items(seed)))
    _write(out / "validation.jsonl", validation, max_lines=_NUM_VALIDATION)
    held_out = _lines(renderer, ((item, DEFAULT_INSTRUCTIONS) for item in held_out_items(seed)))
    _write(out / "held_out.jsonl", held_out, max_lines=arguments.held_out)
    return 0


def _lines(renderer: Renderer, asked: Iterable[tuple[Item, str]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield lines that are short enough, no prompt twice."""
    seen: set[str] = set()
    for item, instructions in asked:
        line, num_tokens = renderer.line(item, instructions)
        if num_tokens <= _MAX_TOKENS and line["prompt"] not in seen:
            seen.add(line["prompt"])
            yield line, num_tokens


def _write(
    file: Path,
    lines: Iterable[tuple[dict[str, Any], int]],
    *,
    max_tokens: int = sys.maxsize,
    max_lines: int = sys.maxsize,
) -> None:
    """Write lines up to one of the limits, and tell what they are."""
    num_tokens, languages = 0, Counter[str]()
    with file.open("w", encoding="utf-8") as opened:
        for line, more_tokens in lines:
            if num_tokens + more_tokens > max_tokens or languages.total() == max_lines:
                break
            opened.write(json.dumps(line, ensure_ascii=False) + "\n")
            num_tokens += more_tokens
            languages[line["language"]] += 1
    count = languages.total()
    print(f"{file}: {count} documents of {num_tokens / count:.0f} tokens, by language {dict(languages.most_common())}")


if __name__ == "__main__":
    sys.exit(main())
