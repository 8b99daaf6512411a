"""Finds the `tokenizer.json` of a Hugging Face directory, or makes one out of GGUF metadata.

A GGUF file carries tokens, merges and token types, but of the pre-tokenizer only a name (`tokenizer.ggml.pre`). What
each name means is written down here; a name that is not here is refused, because text would be cut in other places than
in training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import PreTokenizer

from services.model_worker.model.huggingface import read_json
from services.model_worker.model.weights import CheckpointError, GgufFile
from services.vocabulary.files import TokenizerFileError, read_vocabulary

_TYPE_NORMAL, _TYPE_UNKNOWN, _TYPE_CONTROL, _TYPE_USER_DEFINED, _TYPE_UNUSED, _TYPE_BYTE = range(1, 7)

_CHAT_END_TOKENS: Final = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
"""Tokens that end a turn of a chat in templates of the field; those that a model has end its answers."""


def _digits_then_bytes() -> PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _bytes() -> PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


_PRE_TOKENIZERS: Final[dict[str, Callable[[], PreTokenizer]]] = {
    "smollm": _digits_then_bytes,
    "gpt-2": _bytes,
}


@dataclass(frozen=True)
class TokenizerFiles:
    """What other services need to turn text into this model's tokens and back."""

    tokenizer_json: bytes
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    chat_template: str | None


def huggingface_tokenizer(directory: Path, vocab_size: int) -> TokenizerFiles:
    """Take a directory's `tokenizer.json` as it is, with the end tokens that the files beside it name.

    Raises:
        CheckpointError: there is none, it cannot be read, or it does not fit the model.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{directory} has no tokenizer.json; tokenizers of other kinds cannot be read")
    beside = [
        read_json(directory / name)
        for name in ("generation_config.json", "config.json")
        if (directory / name).is_file()
    ]
    try:
        vocabulary = read_vocabulary(directory, vocab_size=vocab_size)
    except TokenizerFileError as error:
        raise CheckpointError(str(error)) from None
    bos_token_id = next(
        (found for found in (content.get("bos_token_id") for content in beside) if found is not None), None
    )
    if bos_token_id is not None and (type(bos_token_id) is not int or not 0 <= bos_token_id < vocab_size):
        raise CheckpointError(f"{directory} has `bos_token_id` = {bos_token_id!r}, but only {vocab_size} tokens")
    return TokenizerFiles(
        tokenizer_json=file.read_bytes(),
        bos_token_id=bos_token_id,
        eos_token_ids=tuple(sorted(vocabulary.eos_token_ids)),
        chat_template=_chat_template(directory),
    )


def _chat_template(directory: Path) -> str | None:
    """Read `chat_template.jinja`, else the one in `tokenizer_config.json`: a text, or a list with one named default."""
    if (file := directory / "chat_template.jinja").is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {file}: {error}") from None
    if not (file := directory / "tokenizer_config.json").is_file():
        return None
    template = read_json(file).get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{file} has a `chat_template` that is no text but a {type(template).__name__}")
    return template


def gguf_tokenizer(file: GgufFile) -> TokenizerFiles:
    """Build the tokenizer that the metadata describe.

    Raises:
        CheckpointError: a kind of tokenizer or pre-tokenizer that is not supported, or metadata that do not agree.
    """
    kind = file.require("tokenizer.ggml.model")
    if kind != "gpt2":
        raise CheckpointError(f"{file.path} has a tokenizer of kind `{kind}`; supported is: gpt2 (byte-level BPE)")
    pre = file.get("tokenizer.ggml.pre")
    if pre not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f"{file.path} cuts text by the pre-tokenizer `{pre}`; supported are: {', '.join(_PRE_TOKENIZERS)}"
        )
    tokens: list[str] = file.require("tokenizer.ggml.tokens")
    types: list[int] = file.get("tokenizer.ggml.token_type") or [_TYPE_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError(f"{file.path} has {len(tokens)} tokens but {len(types)} token types")
    merges = [tuple(merge.split(" ")) for merge in file.require("tokenizer.ggml.merges")]
    added = [
        AddedToken(token, special=kind == _TYPE_CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_TYPE_CONTROL, _TYPE_USER_DEFINED)
    ]
    try:
        model = BPE({token: token_id for token_id, token in enumerate(tokens)}, merges)
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{file.path} has tokens and merges that do not fit together: {error}") from None
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(added)
    bos_token_id = _token_id(file, "tokenizer.ggml.bos_token_id", len(tokens))
    if bos_token_id is not None and file.get("tokenizer.ggml.add_bos_token"):
        bos = tokens[bos_token_id]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_token_id)]
        )
    eos_token_id = _token_id(file, "tokenizer.ggml.eos_token_id", len(tokens))
    chat_ends = [tokens.index(token) for token in _CHAT_END_TOKENS if token in tokens]
    text_ends = [tokens.index("<|endoftext|>")] if "<|endoftext|>" in tokens else []
    eos_token_ids = sorted({*chat_ends, *text_ends, *([] if eos_token_id is None else [eos_token_id])})
    if not eos_token_ids:
        raise CheckpointError(f"{file.path} names no token that ends a text (`tokenizer.ggml.eos_token_id`)")
    return TokenizerFiles(
        tokenizer_json=tokenizer.to_str().encode(),
        bos_token_id=bos_token_id,
        eos_token_ids=tuple(eos_token_ids),
        chat_template=file.get("tokenizer.chat_template"),
    )


def _token_id(file: GgufFile, key: str, num_tokens: int) -> int | None:
    token_id: int | None = file.get(key)
    if token_id is not None and not 0 <= token_id < num_tokens:
        raise CheckpointError(f"{file.path} has `{key}` = {token_id}, but only {num_tokens} tokens")
    return token_id
