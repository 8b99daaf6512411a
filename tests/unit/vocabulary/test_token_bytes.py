"""Which tokenizers have exact token bytes, and that these are exact: small tokenizers of each kind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer

from services.vocabulary import UnsupportedTokenizerError, Vocabulary

MARK = "\u2581"
TEXTS = st.text(alphabet="ab é한😀\u0301e\u2581\n")


def byte_level(
    merges: list[tuple[str, str]] | None = None, *, prefix: bool = False, normalizer: Normalizer | None = None
) -> Tokenizer:
    """256 bytes, merges and an end token; the normalizer may do the pre-tokenizer's work."""
    pieces = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in merges or []:
        pieces[left + right] = len(pieces)
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=merges or []))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def sentencepiece(*normalizer: Normalizer, metaspace: str | None = None, strips: bool = False) -> Tokenizer:
    """Bytes, `▁`, a few pieces; `metaspace` is the scheme of a Metaspace pre-tokenizer."""
    pieces = {"<unk>": 0, "</s>": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    for piece in (MARK, "a", "b", "e", f"{MARK}a", "ab"):
        pieces[piece] = len(pieces)
    merges = [(MARK, "a"), ("a", "b")]
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=merges, byte_fallback=True, unk_token="<unk>"))
    if normalizer:
        tokenizer.normalizer = normalizers.Sequence(list(normalizer))
    if metaspace is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace)
    end = [decoders.Strip(" ", 1, 0)] if strips else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *end])
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def read(tokenizer: Tokenizer, end: str, **changes: Any) -> Vocabulary:
    layout = json.loads(tokenizer.to_str()) | changes
    return Vocabulary(json.dumps(layout).encode(), tokenizer.get_vocab_size(), [tokenizer.token_to_id(end)])


SPACES = normalizers.Replace(" ", MARK)
EXACT = {
    "plain bytes": read(byte_level(), "<|end|>"),
    "byte-level": read(byte_level([("a", "b"), ("Ġ", "a"), ("Ì", "ģ")]), "<|end|>"),
    "byte-level, composed": read(byte_level([("Ã", "©")], normalizer=normalizers.NFC()), "<|end|>"),
    "byte-level, a space before": read(byte_level([("Ġ", "a")], prefix=True), "<|end|>"),
    "SentencePiece": read(sentencepiece(SPACES), "</s>"),
    "SentencePiece, a space before": read(sentencepiece(normalizers.Prepend(MARK), SPACES, strips=True), "</s>"),
    "SentencePiece, Metaspace": read(sentencepiece(metaspace="always", strips=True), "</s>"),
    "SentencePiece, composed": read(sentencepiece(normalizers.NFC(), SPACES), "</s>"),
}


@pytest.mark.parametrize("kind", EXACT)
@given(text=TEXTS)
def test_tokens_spell_the_very_text(kind: str, text: str) -> None:
    assert EXACT[kind].decode(EXACT[kind].encode(text)) == text.encode()


def test_all_tokens_of_plain_bytes_are_bytes() -> None:
    tokens = [token for token in EXACT["plain bytes"].token_bytes if token is not None]
    assert sorted(tokens) == [bytes([byte]) for byte in range(256)]


def test_all_tokens_of_sentencepiece() -> None:
    pieces = EXACT["SentencePiece"]
    assert pieces.token_bytes[:2] == (None, None)  # <unk>, which is not among the special tokens here, and the end
    assert pieces.token_bytes[2:258] == tuple(bytes([byte]) for byte in range(256))
    assert pieces.token_bytes[258:] == (b" ", b"a", b"b", b"e", b" a", b"ab")


def test_byte_level_as_a_normalizer() -> None:
    tokenizer = byte_level([("Ġ", "a")], normalizer=normalizers.ByteLevel())
    tokenizer.pre_tokenizer = None
    vocabulary = read(tokenizer, "<|end|>")
    assert vocabulary.decode(vocabulary.encode("é a")) == "é a".encode()


@pytest.mark.parametrize(
    "kind", ["byte-level, a space before", "SentencePiece, a space before", "SentencePiece, Metaspace"]
)
def test_a_space_goes_before_a_prompt_and_not_before_a_text_that_goes_on(kind: str) -> None:
    vocabulary = EXACT[kind]
    assert vocabulary.decode(vocabulary.encode_prompt("a")) == b" a"
    assert vocabulary.decode(vocabulary.encode("a")) == b"a"


def test_a_prompt_is_composed_and_a_text_that_goes_on_is_not() -> None:
    vocabulary = EXACT["byte-level, composed"]
    assert vocabulary.decode(vocabulary.encode_prompt("e\u0301")) == "é".encode()
    assert vocabulary.decode(vocabulary.encode("e\u0301")) == "e\u0301".encode()


def test_the_mark_itself_is_spelled_in_bytes() -> None:
    pieces = EXACT["SentencePiece"]
    assert pieces.decode(pieces.encode_prompt(MARK)) == b" "
    assert pieces.encode(f"a{MARK}") == [259, 2 + 0xE2, 2 + 0x96, 2 + 0x81]


def test_what_no_tokens_spell_is_told_by_decode() -> None:
    pieces = {piece: i for i, piece in enumerate(["a", "b", "<unk>"])}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.ByteLevel()
    vocabulary = read(tokenizer, "b")
    assert vocabulary.decode(vocabulary.encode("aé")) == b"a"


def test_a_random_cut_is_not_drawn() -> None:
    tokenizer = byte_level([("a", "b")])
    model = json.loads(tokenizer.to_str())["model"] | {"dropout": 0.9}
    vocabulary = read(tokenizer, "<|end|>", model=model)
    assert {tuple(vocabulary.encode("ab" * 20)) for _ in range(20)} == {(tokenizer.token_to_id("ab"),) * 20}


def test_special_tokens_are_kept_apart_and_others_are_text() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<tool>", special=False), AddedToken("Ġ", special=False, normalized=False)])
    tokenizer.add_special_tokens(["<|start|>"])
    vocabulary = Vocabulary(tokenizer.to_str().encode(), tokenizer.get_vocab_size() + 5, [256])
    assert vocabulary.token_bytes[tokenizer.token_to_id("<tool>")] == b"<tool>"
    assert vocabulary.token_bytes[tokenizer.token_to_id("<|start|>")] is None
    assert vocabulary.token_bytes[-5:] == (None,) * 5
    assert tokenizer.token_to_id("<|start|>") not in vocabulary.encode("<|start|>")


def test_an_end_token_is_no_text_even_where_it_is_not_special() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("</end>", special=False)])
    vocabulary = read(tokenizer, "</end>")
    assert vocabulary.token_bytes[tokenizer.token_to_id("</end>")] is None


@pytest.mark.parametrize(
    ("normalizer", "named"),
    [
        (normalizers.Lowercase(), "Lowercase"),
        (normalizers.NFKC(), "NFKC"),
        (normalizers.NFD(), "NFD"),
        (normalizers.StripAccents(), "StripAccents"),
        (normalizers.Replace("``", '"'), "Replace '``' by '\"'"),
        (normalizers.Replace(" ", "_"), "Replace ' ' by '_'"),
        (normalizers.Prepend("x"), "Prepend 'x'"),
        (normalizers.Strip(), "Strip"),
    ],
)
def test_what_changes_texts_is_refused_by_name(normalizer: Normalizer, named: str) -> None:
    with pytest.raises(UnsupportedTokenizerError, match="changes text") as refused:
        read(sentencepiece(normalizer, SPACES), "</s>")
    assert f"the normalizer {named} changes" in str(refused.value)


def test_a_mark_that_stays_a_mark_is_not_taken_for_a_space() -> None:
    with pytest.raises(UnsupportedTokenizerError, match="Replace ' ' by '▁'"):
        read(byte_level(normalizer=SPACES), "<|end|>")
    tokenizer = sentencepiece()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    assert read(tokenizer, "</s>").token_bytes[258] == MARK.encode()


@pytest.mark.parametrize(
    ("decoder", "says"),
    [
        (decoders.WordPiece(), "the decoder is WordPiece"),
        (decoders.BPEDecoder(), "the decoder is BPEDecoder"),
        (decoders.Metaspace(), "the decoder is Metaspace"),
        (decoders.Sequence([decoders.ByteLevel(), decoders.CTC()]), "the decoder is ByteLevel, CTC"),
        (decoders.Sequence([decoders.ByteFallback(), decoders.Replace("x", " ")]), "Replace 'x' by ' '"),
        (decoders.Sequence([decoders.ByteFallback(), decoders.Strip(" ", 1, 0)]), "off every piece"),
        (decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip("x", 1, 0)]), "Strip 'x' 1 0"),
    ],
)
def test_decoders_that_are_not_known_are_refused(decoder: decoders.Decoder, says: str) -> None:
    tokenizer = sentencepiece()
    tokenizer.decoder = decoder
    with pytest.raises(UnsupportedTokenizerError) as refused:
        read(tokenizer, "</s>")
    assert says in str(refused.value)


def test_pieces_with_marks_for_words_are_refused() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a</w>": 0, "b": 1}, merges=[], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.ByteLevel()
    with pytest.raises(UnsupportedTokenizerError, match="end_of_word_suffix"):
        read(tokenizer, "b")


def test_pieces_outside_of_the_byte_alphabet_are_refused() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a b": 0, "b": 1}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    with pytest.raises(UnsupportedTokenizerError, match="the piece 'a b' has ' '"):
        read(tokenizer, "b")
