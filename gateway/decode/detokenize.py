"""Bytes of tokens to whole characters: a character may be split over tokens, a token may be half a character."""

from __future__ import annotations

import codecs


class Detokenizer:
    """Turns bytes into text as they come.

    Bytes that may still become a character are held back. For free text, a sequence that can never become one turns
    into U+FFFD, as `bytes.decode(errors="replace")` has it; constrained text raises UnicodeDecodeError there.
    """

    def __init__(self, *, is_strict: bool) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict" if is_strict else "replace")

    def push(self, data: bytes) -> str:
        """Return the characters that `data` completes."""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """Return what the bytes held back are worth now that nothing follows."""
        return self._decoder.decode(b"", final=True)

    @property
    def num_held_bytes(self) -> int:
        """Bytes that wait for the rest of their character."""
        return len(self._decoder.getstate()[0])
