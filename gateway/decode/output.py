"""Tokens written to text let out: whole characters, up to a stop text, with the count of tokens behind each piece.

Tokens that may have to be taken back are held as they are and reach neither decoder nor stop texts, so that taking one
back restores nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from gateway.decode.detokenize import Detokenizer
from gateway.decode.stop import StopMatcher
from gateway.decode.values import Value


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that follows what was let out before, and the tokens whose text it completes.

    `reasoning` is text before the answer, `values` are those of a JSON text that are whole now.
    """

    text: str
    num_tokens: int
    num_forced_tokens: int
    reasoning: str = ""
    values: tuple[Value, ...] = ()


@dataclass(slots=True)
class _Waiting:
    """A token whose text is not all out. `end` counts characters, known once its last byte is part of one."""

    num_bytes_end: int
    is_forced: bool
    end: int | None = None


class Output:
    """The text of one generation, with what must still be held back."""

    def __init__(self, stops: tuple[str, ...], *, is_strict: bool) -> None:
        self._detokenizer = Detokenizer(is_strict=is_strict)
        self._stop = StopMatcher(stops)
        self._held: list[tuple[bytes, bool]] = []
        self._waiting: deque[_Waiting] = deque()
        self._num_bytes = 0
        self._num_characters = 0
        self._pieces: list[str] = []
        self._num_out = 0
        self._fresh: list[str] = []

    @property
    def is_stopped(self) -> bool:
        """Whether a stop text was met."""
        return self._stop.is_stopped

    @property
    def text(self) -> str:
        """All that was taken as a delta."""
        return "".join(self._pieces)

    def push(self, token: bytes, *, is_forced: bool) -> None:
        """Take the bytes of one more token, which stays. Nothing is held when this is called.

        Raises:
            UnicodeDecodeError: strict, and the bytes are no UTF-8.
        """
        self._num_bytes += len(token)
        self._waiting.append(_Waiting(self._num_bytes, is_forced))
        text = self._detokenizer.push(token)
        self._num_characters += len(text)
        num_bytes_decoded = self._num_bytes - self._detokenizer.num_held_bytes
        for waiting in self._waiting:
            if waiting.end is None and waiting.num_bytes_end <= num_bytes_decoded:
                waiting.end = self._num_characters
        self._let_out(self._stop.push(text))

    def hold(self, token: bytes, *, is_forced: bool) -> None:
        """Take the bytes of one more token, which may be taken back until `settle`."""
        self._held.append((token, is_forced))

    def take_back(self, num_tokens: int) -> None:
        """Drop the last tokens; they are held."""
        del self._held[len(self._held) - num_tokens :]

    def settle(self) -> None:
        """Keep what is held for good.

        Raises:
            UnicodeDecodeError: as `push`.
        """
        for token, is_forced in self._held:
            self.push(token, is_forced=is_forced)
        self._held.clear()

    def take(self) -> Delta | None:
        """Return what may go out now, None when there is nothing new."""
        num_tokens = num_forced = 0
        while self._waiting and self._waiting[0].end is not None and self._waiting[0].end <= self._num_out:
            num_tokens += 1
            num_forced += self._waiting.popleft().is_forced
        text = "".join(self._fresh)
        self._fresh.clear()
        if not text and not num_tokens:
            return None
        self._pieces.append(text)
        return Delta(text, num_tokens, num_forced)

    def finish(self) -> Delta | None:
        """Return what was held back and the tokens not told yet, those of a stop text among them.

        Raises:
            UnicodeDecodeError: as `push`.
        """
        self.settle()
        if not self.is_stopped:
            self._let_out(self._stop.push(self._detokenizer.finish()))
            self._let_out(self._stop.finish())
        for waiting in self._waiting:
            waiting.end = 0
        return self.take()

    def _let_out(self, text: str) -> None:
        if text:
            self._fresh.append(text)
            self._num_out += len(text)
