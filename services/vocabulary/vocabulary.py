"""A vocabulary: the exact bytes of every token, read from a Hugging Face `tokenizer.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

_SPACE_MARK = "\u2581"  # what SentencePiece writes for a space


class UnsupportedTokenizerError(ValueError):
    """The tokenizer does not say the exact bytes of its tokens; the message tells what it has and what is supported."""


class Vocabulary:
    """Token ids, their bytes and the tokenizer that cuts text into them. Immutable.

    `token_bytes[i]` is None for ids that never stand for text: special tokens, and ids up to `vocab_size` (the width of
    the logits) that the tokenizer does not know.
    """

    def __init__(self, tokenizer_json: bytes, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """Read the tokenizer.

        Raises:
            UnsupportedTokenizerError: neither byte-level nor SentencePiece with byte fallback; or more tokens than
            `vocab_size`. ValueError: not a tokenizer file, or end tokens beyond `vocab_size`.
        """
        try:
            layout = json.loads(tokenizer_json)
            self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
            self._plain_tokenizer = Tokenizer.from_buffer(tokenizer_json)
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"not a tokenizer.json: {error}") from error
        # Makes `<|im_end|>` in a document the characters that it is.
        self._plain_tokenizer.encode_special_tokens = True
        for tokenizer in (self._tokenizer, self._plain_tokenizer):
            # A file may carry defaults for batches that would cut or pad a prompt in silence.
            tokenizer.no_truncation()
            tokenizer.no_padding()
        if not eos_token_ids or not all(0 <= token_id < vocab_size for token_id in eos_token_ids):
            raise ValueError(
                f"end tokens {list(eos_token_ids)} must be given and lie below the vocabulary's size {vocab_size}"
            )
        self.tokenizer_json = tokenizer_json
        self.vocab_size = vocab_size
        self.eos_token_ids = tuple(sorted(set(eos_token_ids)))
        self.token_bytes = _token_bytes(layout, self._tokenizer, vocab_size, self.eos_token_ids)
        self.digest = self._digest()

    def encode(self, text: str) -> list[int]:
        """Cut text into token ids: no special token is added, and none is recognised by its spelling."""
        return list(self._plain_tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, text: str) -> list[int]:
        """Cut a raw prompt: as `encode`, with what the tokenizer puts around a text (often a start token)."""
        return list(self._plain_tokenizer.encode(text, add_special_tokens=True).ids)

    def encode_chat(self, text: str) -> list[int]:
        """Cut a rendered chat: special tokens are recognised by their spelling, none is added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> bytes:
        """Return the bytes of the tokens; special tokens and unknown ids have none."""
        return b"".join(self.token_bytes[token_id] or b"" for token_id in token_ids)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        digest.update(json.dumps([self.vocab_size, self.eos_token_ids]).encode())
        digest.update(hashlib.sha256(self.tokenizer_json).digest())
        for token in self.token_bytes:
            # Lengths keep ["ab", "c"] and ["a", "bc"] apart; -1 marks a token without text.
            digest.update(b"-1:" if token is None else b"%d:%b" % (len(token), token))
        return digest.hexdigest()


def _token_bytes(
    layout: Any, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]
) -> tuple[bytes | None, ...]:
    pieces = tokenizer.get_vocab(with_added_tokens=True)
    if pieces and max(pieces.values()) >= vocab_size:
        raise UnsupportedTokenizerError(
            f"the tokenizer has ids up to {max(pieces.values())}, the model only {vocab_size} logits"
        )
    added = tokenizer.get_added_tokens_decoder()
    to_bytes = _piece_decoder(layout)
    result: list[bytes | None] = [None] * vocab_size
    for piece, token_id in pieces.items():
        if token_id in added:
            result[token_id] = None if added[token_id].special else added[token_id].content.encode()
        else:
            result[token_id] = to_bytes(piece)
    for token_id in eos_token_ids:
        result[token_id] = None
    # A token of no bytes would let a mask allow a step that goes nowhere.
    return tuple(token or None for token in result)


def _piece_decoder(layout: Any) -> Any:
    if layout.get("normalizer") is not None:
        lossy = sorted(set(_types(layout["normalizer"])) - {"Sequence", "Replace", "Prepend", "NFC"})
        if lossy:
            raise UnsupportedTokenizerError(
                f"the normalizer {', '.join(lossy)} changes text before it is cut, so tokens have no exact bytes"
            )
    decoders = set(_types(layout.get("decoder")))
    if "ByteLevel" in decoders:
        return _byte_level
    if "ByteFallback" in decoders:
        return _sentencepiece
    raise UnsupportedTokenizerError(
        f"the decoder is {', '.join(sorted(decoders)) or 'absent'}; supported are ByteLevel, and SentencePiece "
        "with ByteFallback"
    )


def _types(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            yield part["type"]
        for key in ("normalizers", "decoders", "pretokenizers"):
            for child in part.get(key, ()):
                yield from _types(child)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes.

    Printable Latin-1 stands for itself, the others for U+0100 onwards, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_alphabet()


def _byte_level(piece: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in piece)
    except KeyError as error:
        raise UnsupportedTokenizerError(
            f"the piece {piece!r} has {error.args[0]!r}, which is not in the byte-level alphabet"
        ) from None


def _sentencepiece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE_MARK, " ").encode()
