"""Finds the `tokenizer.json` of a Hugging Face directory, or makes one out of GGUF metadata.

A GGUF file carries tokens, merges and token types, but of the pre-tokenizer only a name (`tokenizer.ggml.pre`). What
each name means is written down here; a name that is not here is refused, because text would be cut in other places than
in training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from services.model_worker.model.checkpoint import CheckpointError
from services.model_worker.model.gguf_file import GgufFile
from services.model_worker.model.huggingface import read_json
from services.vocabulary.files import TokenizerFileError, read_vocabulary
from services.vocabulary.token_bytes import SPACE_MARK

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


def _split_then_bytes(digits: str) -> PreTokenizer:
    """Cut as tokenizers after GPT-4's do; `digits` says how many stand together."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@dataclass(frozen=True)
class _Pre:
    """What a name in `tokenizer.ggml.pre` means."""

    make: Callable[[], PreTokenizer]
    takes_whole_words: bool = False
    """Whether a piece of text that is a token stays one, whatever merges would make of it."""
    adds_bos: bool = False
    """Whether a prompt begins with the start token where the file does not say."""
    normalizer: Normalizer | None = None


_PRE_TOKENIZERS: Final = {
    "smollm": _Pre(_digits_then_bytes),
    "gpt-2": _Pre(_bytes),
    "llama-bpe": _Pre(lambda: _split_then_bytes(r"\p{N}{1,3}"), takes_whole_words=True, adds_bos=True),
    "qwen2": _Pre(lambda: _split_then_bytes(r"\p{N}"), normalizer=normalizers.NFC()),
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
        raise CheckpointError(
            f"{directory} has no tokenizer.json; tokenizers of other kinds cannot be read. `transformers` makes one: "
            "AutoTokenizer.from_pretrained(directory, use_fast=True).save_pretrained(directory)"
        )
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
    if kind not in _KINDS:
        raise CheckpointError(
            f"{file.path} has a tokenizer of kind `{kind}`; supported are: gpt2 (byte-level BPE) and llama "
            "(SentencePiece BPE)"
        )
    tokens: list[str] = file.require("tokenizer.ggml.tokens")
    types: list[int] = file.get("tokenizer.ggml.token_type") or [_TYPE_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise CheckpointError(f"{file.path} has {len(tokens)} tokens but {len(types)} token types")
    tokenizer = _KINDS[kind](file, tokens, types)
    tokenizer.add_tokens(
        [
            AddedToken(token, special=token_type == _TYPE_CONTROL, normalized=False)
            for token, token_type in zip(tokens, types, strict=True)
            if token_type in (_TYPE_CONTROL, _TYPE_USER_DEFINED)
        ]
    )
    bos_token_id = _token_id(file, "tokenizer.ggml.bos_token_id", len(tokens))
    adds_bos = file.get("tokenizer.ggml.add_bos_token")
    if adds_bos is None:  # as llama.cpp has it
        adds_bos = kind == "llama" or _PRE_TOKENIZERS[file.require("tokenizer.ggml.pre")].adds_bos
    if bos_token_id is not None and adds_bos:
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


def _byte_level(file: GgufFile, tokens: list[str], types: list[int]) -> Tokenizer:
    name = file.get("tokenizer.ggml.pre")
    if name not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f"{file.path} cuts text by the pre-tokenizer `{name}`; supported are: {', '.join(_PRE_TOKENIZERS)}"
        )
    pre = _PRE_TOKENIZERS[name]
    merges = [_pair(file, merge) for merge in file.require("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(_bpe(file, tokens, merges, ignore_merges=pre.takes_whole_words))
    tokenizer.pre_tokenizer = pre.make()
    tokenizer.decoder = decoders.ByteLevel()
    if pre.normalizer is not None:
        tokenizer.normalizer = pre.normalizer
    return tokenizer


def _sentencepiece(file: GgufFile, tokens: list[str], types: list[int]) -> Tokenizer:
    """Make merges of scores: SentencePiece joins the neighbours whose joint piece has the largest.

    T. Kudo, J. Richardson, "SentencePiece: A simple and language independent subword tokenizer", 2018.
    """
    scores: list[float] = file.require("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise CheckpointError(f"{file.path} has {len(tokens)} tokens but {len(scores)} scores")
    if file.get("tokenizer.ggml.remove_extra_whitespaces"):
        raise CheckpointError(f"{file.path} asks for `tokenizer.ggml.remove_extra_whitespaces`, which changes texts")
    id_of = {token: token_id for token_id, token in enumerate(tokens) if types[token_id] == _TYPE_NORMAL}
    found = [
        (-scores[token_id], id_of[token[:cut]], id_of[token[cut:]])
        for token, token_id in id_of.items()
        for cut in range(1, len(token))
        if token[:cut] in id_of and token[cut:] in id_of
    ]
    merges = [(tokens[left], tokens[right]) for _, left, right in sorted(found)]
    unknown = next((tokens[i] for i, kind in enumerate(types) if kind == _TYPE_UNKNOWN), None)
    tokenizer = Tokenizer(_bpe(file, tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    adds_space = file.get("tokenizer.ggml.add_space_prefix") in (None, True)
    marks = [normalizers.Prepend(SPACE_MARK)] if adds_space else []
    tokenizer.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", SPACE_MARK)])
    strips = [decoders.Strip(content=" ", left=1)] if adds_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *strips]
    )
    return tokenizer


_KINDS: Final[dict[str, Callable[[GgufFile, list[str], list[int]], Tokenizer]]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
}


def _bpe(file: GgufFile, tokens: list[str], merges: list[tuple[str, str]], **options: Any) -> BPE:
    try:
        return BPE({token: token_id for token_id, token in enumerate(tokens)}, merges, **options)
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{file.path} has tokens and merges that do not fit together: {error}") from None


def _pair(file: GgufFile, merge: str) -> tuple[str, str]:
    left, separator, right = merge.partition(" ")
    if not separator:
        raise CheckpointError(f"{file.path} has a merge that is none: {merge!r}")
    return left, right


def _token_id(file: GgufFile, key: str, num_tokens: int) -> int | None:
    token_id: int | None = file.get(key)
    if token_id is not None and not 0 <= token_id < num_tokens:
        raise CheckpointError(f"{file.path} has `{key}` = {token_id}, but only {num_tokens} tokens")
    return token_id
