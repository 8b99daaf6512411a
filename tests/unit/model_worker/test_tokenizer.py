"""Tokenizers out of GGUF metadata against those that they were: SentencePiece itself, and the pattern of the field."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from services.model_worker.loading import load_model
from services.model_worker.model.checkpoint import CheckpointError
from services.vocabulary import Vocabulary
from tests.support.gguf_files import random_tensors, write_gguf

CORPUS = [
    "The quick brown fox jumps over the lazy dog; it's 12345 times quicker, they'll say.",
    "한국어 문장은 여기에 있습니다. 김치찌개와 불고기를 먹었다.",
    "def main():\n    return [1, 22, 333]\n\n\t# done  here",
    "Grüße aus Köln, naïve café — “quoted” 😀👩‍👩‍👧 é vs é",
] * 20
TEXTS = st.text(st.sampled_from(list("abc dehTq'sl12 3,.\n\t한국é́😀€ü▁<0x")), max_size=40)


def written(path: Path, tokens: list[str], **metadata: Any) -> Path:
    """Write a model of random weights whose vocabulary is this one."""
    tensors = random_tensors()
    for name in ("token_embd.weight", "output.weight"):
        rows = tensors[name]
        tensors[name] = rows[[i % len(rows) for i in range(len(tokens))]]
    keys = {f"tokenizer__ggml__{key}": value for key, value in metadata.items()}
    return write_gguf(path, tensors, tokenizer__ggml__tokens=tokens, **keys)


def vocabulary_of(path: Path) -> Vocabulary:
    loaded = load_model(str(path), torch.float32)
    tokenizer = loaded.tokenizer
    return Vocabulary(tokenizer.tokenizer_json, loaded.model.config.vocab_size, tokenizer.eos_token_ids)


@pytest.fixture(scope="module")
def sentences() -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=520,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def sentencepiece_file(
    sentences: sentencepiece.SentencePieceProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    number = range(sentences.get_piece_size())
    types = [
        2 if sentences.is_unknown(i) else 3 if sentences.is_control(i) else 6 if sentences.is_byte(i) else 1
        for i in number
    ]
    return written(
        tmp_path_factory.mktemp("sp") / "m.gguf",
        [sentences.id_to_piece(i) for i in number],
        model="llama",
        pre=None,
        merges=None,
        scores=[float(sentences.get_score(i)) for i in number],
        token_type=types,
        bos_token_id=sentences.bos_id(),
        eos_token_id=sentences.eos_id(),
    )


@pytest.fixture(scope="module")
def from_sentencepiece(sentencepiece_file: Path) -> Vocabulary:
    return vocabulary_of(sentencepiece_file)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_sentencepiece_cuts_and_spells_as_it_does(
    sentences: sentencepiece.SentencePieceProcessor, from_sentencepiece: Vocabulary, text: str
) -> None:
    expected = sentences.encode(text)
    if text and "▁" not in text:  # the mark itself is a space to both, and does not come back
        assert from_sentencepiece.encode_prompt(text) == [sentences.bos_id(), *expected]
        spelled = b"".join(from_sentencepiece.token_bytes[token_id] or b"" for token_id in expected)
        assert spelled == b" " + text.encode()  # with the space that it puts before a text


def test_every_byte_has_a_token(from_sentencepiece: Vocabulary) -> None:
    spelled = {token for token in from_sentencepiece.token_bytes if token is not None and len(token) == 1}
    assert spelled == {bytes([byte]) for byte in range(256)}


@pytest.mark.parametrize(
    ("pre", "said", "expected"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("gpt-2", None, False), ("gpt-2", True, True)],
)
def test_a_prompt_begins_with_the_start_token_where_the_field_has_it(
    tmp_path: Path, pre: str, said: bool | None, expected: bool
) -> None:
    file = write_gguf(
        tmp_path / "m.gguf",
        random_tensors(),
        pre=pre,
        tokenizer__ggml__bos_token_id=1,
        tokenizer__ggml__add_bos_token=said,
    )
    token_ids = vocabulary_of(file).encode_prompt("ab")
    assert (token_ids[0] == 1) == expected


PATTERNS = {
    "llama-bpe": (r"\p{N}{1,3}", True, None),
    "qwen2": (r"\p{N}", False, normalizers.NFC()),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_byte_level_tokenizers_cut_as_the_one_that_was_written(tmp_path: Path, name: str) -> None:
    digits, is_whole, normalizer = PATTERNS[name]
    original = Tokenizer(models.BPE(ignore_merges=is_whole))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    original.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    original.decoder = decoders.ByteLevel()
    if normalizer is not None:
        original.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    original.train_from_iterator(CORPUS, trainer)
    content = json.loads(original.to_str())
    tokens = [original.id_to_token(i) for i in range(original.get_vocab_size())]
    path = written(
        tmp_path / "m.gguf",
        tokens,
        pre=name,
        merges=[" ".join(pair) for pair in content["model"]["merges"]],
        token_type=[3 if token == "<|end|>" else 1 for token in tokens],
        eos_token_id=0,
    )
    vocabulary = vocabulary_of(path)
    for text in [*CORPUS[:4], "it's 1234567\r\n\n  x", "e\u0301 \u00e9 \t 12 한국123", "Q'LL don'T"]:
        assert vocabulary.encode_prompt(text) == original.encode(text).ids


def test_what_a_tokenizer_lacks_is_named(sentencepiece_file: Path, tmp_path: Path) -> None:
    tokens = ["<unk>", "a", "b"]
    with pytest.raises(CheckpointError, match="3 tokens but 2 scores"):
        load_model(
            str(written(tmp_path / "m.gguf", tokens, model="llama", scores=[0.0, 1.0], token_type=[2, 1, 1])),
            torch.float32,
        )
    with pytest.raises(CheckpointError, match=r"tokenizer of kind `bert`; supported are: gpt2 .* and llama"):
        load_model(str(written(tmp_path / "n.gguf", tokens, model="bert", token_type=[2, 1, 1])), torch.float32)
