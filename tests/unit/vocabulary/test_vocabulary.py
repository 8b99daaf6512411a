from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from services.vocabulary import UnsupportedTokenizerError, Vocabulary
from tests.support.grammars import vocabulary

BYTES = vocabulary((("a", "b"), ("ab", "c")))


def sentencepiece(normalizer: normalizers.Normalizer | None = None) -> bytes:
    pieces = {"<unk>": 0, "</s>": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    pieces |= {"\u2581": 258, "a": 259, "\u2581a": 260}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[("\u2581", "a")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizer or normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer.to_str().encode()


@given(st.text())
def test_bytes_of_the_tokens_spell_the_text(text: str) -> None:
    assert BYTES.decode(BYTES.encode(text)) == text.encode()


@given(st.text(alphabet="ab é한😀"))
def test_bytes_of_sentencepiece_tokens_spell_the_text(text: str) -> None:
    pieces = Vocabulary(sentencepiece(), 261, [1])
    assert pieces.decode(pieces.encode(text)) == text.encode()


def test_special_tokens_are_text_in_a_document_and_themselves_in_a_chat() -> None:
    (eos,) = BYTES.eos_token_ids
    assert eos not in BYTES.encode("<|end|>")
    assert BYTES.decode(BYTES.encode("<|end|>")) == b"<|end|>"
    assert BYTES.encode_chat("<|end|>") == [eos]
    assert BYTES.token_bytes[eos] is None


def test_special_and_end_tokens_are_spelled_by_their_names() -> None:
    pieces = Vocabulary(sentencepiece(), 300, [1])
    assert [pieces.spelling(token_id) for token_id in (0, 1, 259, 299)] == [b"<unk>", b"</s>", b"a", b""]
    assert pieces.decode([0, 1, 259]) == b"a"


def test_padding_and_added_tokens() -> None:
    tokenizer = Tokenizer.from_str(BYTES.tokenizer_json.decode())
    tokenizer.add_tokens([AddedToken("hello there", special=False)])
    added = tokenizer.token_to_id("hello there")
    padded = Vocabulary(tokenizer.to_str().encode(), added + 40, BYTES.eos_token_ids)
    assert padded.token_bytes[added] == b"hello there"
    assert padded.token_bytes[added + 1 :] == (None,) * 39


def test_digest_tells_vocabularies_apart() -> None:
    again = Vocabulary(BYTES.tokenizer_json, BYTES.vocab_size, BYTES.eos_token_ids)
    others = [
        Vocabulary(BYTES.tokenizer_json, BYTES.vocab_size + 1, BYTES.eos_token_ids),
        Vocabulary(BYTES.tokenizer_json, BYTES.vocab_size, [5, *BYTES.eos_token_ids]),
        vocabulary((("a", "b"),)),
    ]
    assert again.digest == BYTES.digest
    assert len({BYTES.digest, *(other.digest for other in others)}) == 4


def test_a_lossy_normalizer_is_refused_by_name() -> None:
    lower = sentencepiece(normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "\u2581")]))
    with pytest.raises(UnsupportedTokenizerError, match="Lowercase"):
        Vocabulary(lower, 261, [1])


def test_a_tokenizer_without_exact_bytes_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UnsupportedTokenizerError, match="decoder is absent"):
        Vocabulary(tokenizer.to_str().encode(), 2, [1])


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[1]", json.dumps({"version": "1.0"}).encode()])
def test_what_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        Vocabulary(data, 10, [1])


@pytest.mark.parametrize("eos", [[], [10_000]])
def test_end_tokens_must_lie_in_the_vocabulary(eos: list[int]) -> None:
    with pytest.raises(ValueError, match="end tokens"):
        Vocabulary(BYTES.tokenizer_json, BYTES.vocab_size, eos)


def test_more_tokens_than_logits_are_refused() -> None:
    with pytest.raises(UnsupportedTokenizerError, match="only 200 logits"):
        Vocabulary(BYTES.tokenizer_json, 200, [1])
