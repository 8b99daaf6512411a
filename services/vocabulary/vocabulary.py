"""A vocabulary: the exact bytes of every token, read from a Hugging Face `tokenizer.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from services.vocabulary.token_bytes import UnsupportedTokenizerError, exact_layout, piece_decoder, unknown_piece


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
            self._tokenizer = _load(tokenizer_json)
            self._plain_tokenizer = _load(tokenizer_json, is_plain=True)
            exact = exact_layout(layout)
            is_exact = exact == layout
            self._exact_tokenizer = (
                self._plain_tokenizer if is_exact else _load(json.dumps(exact).encode(), is_plain=True)
            )
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"not a tokenizer.json: {error}") from error
        if not eos_token_ids or not all(0 <= token_id < vocab_size for token_id in eos_token_ids):
            raise ValueError(
                f"end tokens {list(eos_token_ids)} must be given and lie below the vocabulary's size {vocab_size}"
            )
        self.tokenizer_json = tokenizer_json
        self.vocab_size = vocab_size
        self.eos_token_ids = tuple(sorted(set(eos_token_ids)))
        self.token_bytes = _token_bytes(layout, self._tokenizer, vocab_size, self.eos_token_ids)
        self.digest = self._digest()

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """The ids of the tokens that have a name instead of a text, by name; the end tokens are not among them."""
        return {
            token.content: token_id
            for token_id, token in sorted(self._tokenizer.get_added_tokens_decoder().items())
            if token.special and token_id not in self.eos_token_ids
        }

    def spelling(self, token_id: int) -> bytes:
        """Return a token's bytes, for a special or an end token those of its name; ids that have neither have none."""
        return self.token_bytes[token_id] or (self._tokenizer.id_to_token(token_id) or "").encode()

    def encode(self, text: str) -> list[int]:
        """Cut a text that goes on from another into tokens that spell it.

        As the tokenizer cuts it, but nothing is put before it and it is not normalised; no special token is added, and
        none is recognised by its spelling. Where that does not spell the text (SentencePiece takes a literal `▁` for a
        space), the longest tokens from left to right do. What no tokens spell, because the vocabulary lacks bytes,
        gives what the tokenizer makes of it: `decode` tells.

        Raises:
            UnicodeEncodeError: a lone surrogate, which no bytes stand for.
        """
        spelled = text.encode()
        token_ids = list(self._exact_tokenizer.encode(text, add_special_tokens=False).ids)
        return token_ids if self.decode(token_ids) == spelled else self._longest_tokens(spelled) or token_ids

    def encode_prompt(self, text: str) -> list[int]:
        """Cut a raw prompt as the tokenizer does, with what it puts around a text (often a start token).

        No special token is recognised by its spelling.
        """
        return list(self._plain_tokenizer.encode(text, add_special_tokens=True).ids)

    def encode_chat(self, text: str) -> list[int]:
        """Cut a rendered chat: special tokens are recognised by their spelling, none is added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> bytes:
        """Return the bytes of the tokens; special tokens and unknown ids have none."""
        return b"".join(self.token_bytes[token_id] or b"" for token_id in token_ids)

    def tokens_at(self, text: bytes) -> list[int]:
        """Return the tokens that a text begins with, the shortest first, of those with the same bytes one."""
        beginnings = (text[:length] for length in range(1, min(len(text), self._max_token_bytes) + 1))
        return [self._id_of_bytes[beginning] for beginning in beginnings if beginning in self._id_of_bytes]

    def _longest_tokens(self, text: bytes) -> list[int] | None:
        """Cut greedily; None where that finds no token to go on with."""
        token_ids: list[int] = []
        at = 0
        while at < len(text):
            found = self.tokens_at(text[at : at + self._max_token_bytes])
            if not found:
                return None
            token_ids.append(found[-1])
            at += len(self.token_bytes[found[-1]] or b"")
        return token_ids

    @cached_property
    def _max_token_bytes(self) -> int:
        return max(map(len, self._id_of_bytes), default=0)

    @cached_property
    def _id_of_bytes(self) -> dict[bytes, int]:
        # Where several tokens have the same bytes, SentencePiece's pieces for bytes come first and the usual one last.
        return {token: token_id for token_id, token in enumerate(self.token_bytes) if token is not None}

    def _digest(self) -> str:
        digest = hashlib.sha256()
        digest.update(json.dumps([self.vocab_size, self.eos_token_ids]).encode())
        digest.update(hashlib.sha256(self.tokenizer_json).digest())
        for token in self.token_bytes:
            # Lengths keep ["ab", "c"] and ["a", "bc"] apart; -1 marks a token without text.
            digest.update(b"-1:" if token is None else b"%d:%b" % (len(token), token))
        return digest.hexdigest()


def _load(tokenizer_json: bytes, *, is_plain: bool = False) -> Tokenizer:
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    # A file may carry defaults for batches that would cut or pad a prompt in silence.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Makes `<|im_end|>` in a document the characters that it is.
    tokenizer.encode_special_tokens = is_plain
    return tokenizer


def _token_bytes(
    layout: Mapping[str, Any], tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]
) -> tuple[bytes | None, ...]:
    pieces = tokenizer.get_vocab(with_added_tokens=True)
    if pieces and max(pieces.values()) >= vocab_size:
        raise UnsupportedTokenizerError(
            f"the tokenizer has ids up to {max(pieces.values())}, the model only {vocab_size} logits"
        )
    added = tokenizer.get_added_tokens_decoder()
    to_bytes = piece_decoder(layout)
    unknown = unknown_piece(layout)
    result: list[bytes | None] = [None] * vocab_size
    for piece, token_id in pieces.items():
        if piece == unknown:
            continue
        if token_id in added:
            result[token_id] = None if added[token_id].special else added[token_id].content.encode()
        else:
            result[token_id] = to_bytes(piece)
    for token_id in eos_token_ids:
        result[token_id] = None
    # A token of no bytes would let a mask allow a step that goes nowhere.
    return tuple(token or None for token in result)
