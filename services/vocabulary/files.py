"""Reads a vocabulary from the files that models are published with, without the model itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from services.vocabulary.vocabulary import Vocabulary

_BESIDE: Final = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "config.json")
"""Files that name end tokens; all that are there count, since models end turns and texts by different ones."""

_COMMON_END_TOKENS: Final = (
    "</s>",
    "<eos>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
)
"""What ends a text in the models of the field; for a `tokenizer.json` that stands alone."""


class TokenizerFileError(ValueError):
    """A tokenizer that cannot be read from its files; the message names the file and what would do."""


def read_vocabulary(path: Path, *, eos_tokens: Sequence[str] = (), vocab_size: int | None = None) -> Vocabulary:
    """Read a `tokenizer.json`, or the one in a directory.

    `eos_tokens` are tokens or ids that end a text; without any, those that the files beside it name, else the common
    ones that it has as special tokens. `vocab_size` is the width of the model's logits where they are padded.

    Raises:
        TokenizerFileError: it cannot be read, has no end token, or its tokens have no exact bytes.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    tokenizer_json = _read(file)
    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerFileError(f"{file} is not a tokenizer.json: {error}") from None
    end_ids = [_token_id(tokenizer, token, file) for token in eos_tokens] or _end_ids(tokenizer, file)
    if not end_ids:
        raise TokenizerFileError(f"{file} and the files beside it name no end token: give one by --eos-token")
    num_ids = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if vocab_size is not None and vocab_size < num_ids:
        raise TokenizerFileError(
            f"{file} has ids up to {num_ids - 1}: a vocabulary of {vocab_size} has no room for them"
        )
    try:
        return Vocabulary(tokenizer_json, vocab_size or num_ids, end_ids)
    except ValueError as error:
        raise TokenizerFileError(f"{file}: {error}") from None


def _read(file: Path) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise TokenizerFileError(f"cannot read {file}: {error.strerror}") from None
    if content.startswith(b"GGUF"):
        raise TokenizerFileError(
            f"{file} is a GGUF file, which only the model worker reads: give the tokenizer.json of the model"
        )
    return content


def _token_id(tokenizer: Tokenizer, token: str, file: Path) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None and token.isdecimal() and tokenizer.id_to_token(int(token)) is not None:
        token_id = int(token)
    if token_id is None:
        raise TokenizerFileError(f"{file} has no token {token!r}")
    return int(token_id)


def _end_ids(tokenizer: Tokenizer, file: Path) -> list[int]:
    named = [token for name in _BESIDE for token in _end_tokens_in(file.parent / name)]
    ids = [token if isinstance(token, int) else tokenizer.token_to_id(token) for token in named]
    known = [token_id for token_id in ids if token_id is not None and tokenizer.id_to_token(token_id) is not None]
    if known:
        return known
    added = tokenizer.get_added_tokens_decoder().items()
    return [token_id for token_id, token in added if token.special and token.content in _COMMON_END_TOKENS]


def _end_tokens_in(file: Path) -> Iterator[int | str]:
    """Iterate over the tokens and ids that a file calls the end; none where there is no such file."""
    if not file.is_file():
        return
    try:
        content = json.loads(_read(file))
    except ValueError as error:
        raise TokenizerFileError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict):
        return
    for name in ("eos_token", "eos_token_id"):
        given: Any = content.get(name)
        for token in given if isinstance(given, list) else [given]:
            if isinstance(token, dict):  # an AddedToken
                token = token.get("content")
            if isinstance(token, int | str) and not isinstance(token, bool):
                yield token
