"""A compiled grammar against a vocabulary: states in, masks out.

Made once per grammar and vocabulary and shared by all sequences. A state is a configuration's number, an immutable
value: to fork is to copy the integer, to roll back is to use an older one. `TERMINATED` is the state behind an end
token.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from services.constraint.core import kernel
from services.constraint.core.compiled_grammar import CompiledGrammar
from services.constraint.core.configuration import Configurations
from services.constraint.core.holes import STAND_IN_BYTES
from services.constraint.core.tables import DEAD, FIRST_CONFIGURATION, TERMINATED
from services.constraint.core.trie import TokenTrie
from services.rpckit.status import LeaseExpired, OutOfFuel, TokenRejected
from services.vocabulary import bitmask_of, bitmask_words, count_tokens

Forcing = Literal["canonical", "off"]

# Bytes of forced text that are cut at once. Longer runs are cut piece by piece; longer than nearly every token, short
# enough to cut in microseconds.
_FORCED_WINDOW_BYTES: Final = 128
# Forced tokens per answer: bounds one answer, not the run, which goes on with the next.
_MAX_FORCED_TOKENS: Final = 1024


@dataclass(frozen=True, slots=True)
class MatcherLimits:
    """What one grammar may take. Hitting a limit is OutOfFuel, for that request only."""

    max_mask_fuel: int = 20_000_000  # states that one mask may visit: about 0.2 s
    max_grammar_bytes: int = 256 << 20  # interned configurations of one grammar
    max_mask_bytes: int = 64 << 20  # remembered masks of one grammar; beyond it all are forgotten
    max_witness_tokens: int = 32_768  # of the shortest completion, found token by token
    max_readings: int = 1_000  # of one text by a grammar with holes


@dataclass(frozen=True, slots=True)
class Guidance:
    """A state and what may follow it; fields as in the proto message of this name.

    `bitmask` (words,) int32 is read-only and shared. All fields but the first two speak of `after_forced`.
    """

    state: int
    forced_token_ids: tuple[int, ...]
    after_forced: int
    bitmask: npt.NDArray[np.int32]
    num_allowed: int
    is_accepting: bool
    witness_num_tokens: int
    witness_token_id: int | None
    is_settled: bool = True  # no check is pending: nothing up to `after_forced` will have to be taken back


def unknown_state(state: int) -> LeaseExpired:
    """Return the error of a state that was never numbered, or is forgotten."""
    return LeaseExpired(
        f"no state {state} of this grammar is known here; compile again and replay the tokens", state=state
    )


class Matcher:
    """Answers for one grammar. Thread-safe: one call at a time, the kernels run without the GIL."""

    def __init__(
        self,
        compiled: CompiledGrammar,
        trie: TokenTrie,
        *,
        forcing: Forcing = "canonical",
        limits: MatcherLimits | None = None,
        is_common: bool = False,
        has_holes: bool = False,
        epoch: int | None = None,
    ) -> None:
        """Intern the start state.

        What can be known ahead of a grammar that `is_common` is made, for all grammars of this vocabulary to come. One
        that `has_holes` is run by who knows what stands in them (`holes.py`); it has no `guidance` of its own.

        Raises:
            UnsatisfiableGrammar: the vocabulary lacks bytes that every text needs.
            OutOfFuel: the start alone is beyond the limits.
        """
        limits = limits or MatcherLimits()
        self._usable_bytes = trie.usable_bytes | STAND_IN_BYTES if has_holes else trie.usable_bytes
        compiled = compiled.restricted_to(self._usable_bytes)
        # Tells the states of this matcher from those of an earlier one of the same grammar.
        self.epoch: int = secrets.randbits(64) if epoch is None else epoch
        self.min_bytes = compiled.min_bytes
        self._vocabulary = trie.vocabulary
        self._max_witness_tokens = limits.max_witness_tokens
        self.trie: Final = trie
        self.forcing: Final = forcing
        self.lock: Final = threading.Lock()  # whoever calls a kernel on `configurations` holds it
        self.configurations: Final = Configurations(
            compiled,
            trie,
            max_bytes=limits.max_grammar_bytes,
            max_mask_bytes=limits.max_mask_bytes,
            max_fuel=limits.max_mask_fuel,
            is_common=is_common,
        )
        self._window = np.zeros(max(_FORCED_WINDOW_BYTES, trie.max_token_bytes), np.uint8)
        self.known_forced: Final[dict[int, int | None]] = {}  # state -> forced token
        self.known_witnesses: Final[dict[int, tuple[int, int | None]]] = {}  # state -> number of tokens, first
        self._no_mask = np.zeros(bitmask_words(trie.vocabulary.vocab_size), np.int32)
        self._no_mask.flags.writeable = False
        self.start = self.configurations.start

    @property
    def is_plain(self) -> bool:
        """Whether its states and masks are what the kernels alone say: no token is forced."""
        return self.forcing == "off"

    @property
    def num_bytes(self) -> int:
        """About how many bytes this matcher holds now."""
        # 200: a Python dictionary entry with its tuple and integers, about.
        return self.configurations.num_bytes + 200 * (len(self.known_forced) + len(self.known_witnesses))

    def accept(self, state: int, token_ids: Sequence[int]) -> int:
        """Return the state behind `token_ids`.

        Raises:
            TokenRejected: a token is outside its mask; the metadata has its index and id.
            LeaseExpired: no such state.
            OutOfFuel: beyond the limits.
        """
        with self.lock:
            self._check(state)
            for index, token_id in enumerate(token_ids):
                state = DEAD if state == TERMINATED else self._accept_one(state, token_id)
                if state == DEAD:
                    raise TokenRejected(
                        f"token {token_id} at index {index} is outside the mask", index=index, token_id=token_id
                    )
        return state

    def guidance(self, state: int) -> Guidance:
        """Return what may follow `state`.

        Raises:
            LeaseExpired: no such state.
            OutOfFuel: beyond the limits.
        """
        with self.lock:
            self._check(state)
            if state == TERMINATED:
                return Guidance(TERMINATED, (), TERMINATED, self._no_mask, 0, True, 0, None)
            forced: list[int] = []
            behind = state
            while len(forced) < _MAX_FORCED_TOKENS and (token_id := self._forced_token(behind)) is not None:
                forced.append(token_id)
                behind = self._advance(behind, token_id)
            bitmask = np.array(self._mask(behind))
            bitmask.flags.writeable = False
            num_tokens, first = self._witness(behind)
            return Guidance(
                state,
                tuple(forced),
                behind,
                bitmask,
                count_tokens(bitmask),
                self.configurations.is_accepting(behind),
                num_tokens,
                first,
            )

    def fill_bitmask(self, state: int, out: npt.NDArray[np.int32]) -> None:
        """Write the mask of `state` to `out` (words,), the caller's own.

        Raises:
            LeaseExpired: no such state.
            OutOfFuel: beyond the limits.
        """
        if self.forcing == "off":
            # What is known needs no lock, unless it is forgotten in between: its row may then be written over.
            row = self.configurations.known_mask(state)
            if row is not None:
                out.data[:] = row
                if self.configurations.known_mask(state) is row:
                    return
        with self.lock:
            self._check(state)
            out.data[:] = self._no_mask.data if state == TERMINATED else self._mask(state)

    def is_accepting(self, state: int) -> bool:
        """Tell whether the text is complete in `state`.

        Raises:
            LeaseExpired: no such state.
        """
        self._check(state)
        return state == TERMINATED or self.configurations.is_accepting(state)

    def walk(self, state: int, text: bytes) -> int | None:
        """Return the state behind some bytes, None where they may not follow; no end token has led to `state`.

        Raises:
            LeaseExpired: no such state.
            OutOfFuel: beyond the limits.
        """
        with self.lock:
            self._check(state)
            for byte in text:
                state = self.configurations.call(kernel.transition, state, byte)
                if state == DEAD:
                    return None
        return state

    def shortest_text(self, state: int) -> bytes:
        """Return the beginning of a shortest completion of `state`: at least a token, unless the text ends before.

        Raises:
            LeaseExpired: no such state.
            OutOfFuel: beyond the limits.
        """
        with self.lock:
            self._check(state)
            return self._shortest_text(state)

    def forced_token(self, state: int) -> int | None:
        """Return the only token that the mask of `state` admits because bytes are forced there, or None.

        Raises:
            LeaseExpired: no such state.
            OutOfFuel: beyond the limits.
        """
        with self.lock:
            self._check(state)
            return self._forced_token(state)

    def has_state(self, state: int) -> bool:
        """Tell whether a state was numbered here."""
        return state == TERMINATED or FIRST_CONFIGURATION <= state < len(self.configurations)

    def _check(self, state: int) -> None:
        if not self.has_state(state):
            raise unknown_state(state)

    def _accept_one(self, state: int, token_id: int) -> int:
        """Return the state behind one token, DEAD when it is outside the mask."""
        if token_id in self._vocabulary.eos_token_ids:
            return TERMINATED if self.configurations.is_accepting(state) else DEAD
        forced = self._forced_token(state)
        if forced is not None and token_id != forced:
            return DEAD
        return self._advance(state, token_id)

    def _advance(self, state: int, token_id: int) -> int:
        if not 0 <= token_id < self._vocabulary.vocab_size or self._vocabulary.token_bytes[token_id] is None:
            return DEAD
        return int(self.configurations.call(kernel.accept_token, state, token_id))

    def _mask(self, state: int) -> memoryview:
        """Return the bitmask (words,) of a state, which is not to be kept."""
        forced = self._forced_token(state)
        if forced is None:
            return self.configurations.known_mask(state) or self.configurations.mask(state)
        return bitmask_of((forced,), self._vocabulary.vocab_size).data

    def _forced_token(self, state: int) -> int | None:
        if self.forcing == "off":
            return None
        if state not in self.known_forced:
            self.known_forced[state] = self._find_forced_token(state)
        return self.known_forced[state]

    def _find_forced_token(self, state: int) -> int | None:
        window = self._window[:_FORCED_WINDOW_BYTES]
        num_bytes, behind = self.configurations.call(kernel.forced_bytes, state, window)
        text = _whole_characters(window[:num_bytes].tobytes())
        if not text:
            return None
        first = self._vocabulary.encode(text.decode())[0]
        token = self._vocabulary.token_bytes[first]
        if token is None or not text.startswith(token):
            return None  # the tokenizer puts something before a text, or changes it
        ends_here = len(text) == num_bytes < len(window) and self.configurations.is_final(behind)
        if not ends_here and self.trie.reaches_past(np.frombuffer(text, np.uint8), len(token)):
            return None  # what follows could have been cut together with this
        return first

    def _shortest_text(self, state: int) -> bytes:
        window = self._window[: self.trie.max_token_bytes]
        num_bytes = self.configurations.call(kernel.shortest_bytes, state, self._usable_bytes, window)
        return window[:num_bytes].tobytes()

    def _witness(self, state: int) -> tuple[int, int | None]:
        """Return the number of tokens of one short completion of `state`, and its first token."""
        chain: list[tuple[int, int]] = []
        at = state
        while at not in self.known_witnesses:
            if self.configurations.is_accepting(at):
                self.known_witnesses[at] = 0, None
                break
            token_id = self._forced_token(at)
            if token_id is None:
                found = self.trie.longest_prefix(np.frombuffer(self._shortest_text(at), np.uint8))
                assert found is not None  # each usable byte has a token of its own
                token_id = found[0]
            if len(chain) >= self._max_witness_tokens:
                raise OutOfFuel(
                    f"the shortest text takes more than {self._max_witness_tokens} tokens (limit max_witness_tokens)",
                    limit="max_witness_tokens",
                    value=self._max_witness_tokens,
                )
            chain.append((at, token_id))
            at = self._advance(at, token_id)
        num_tokens = self.known_witnesses[at][0]
        for at, token_id in reversed(chain):
            num_tokens += 1
            self.known_witnesses[at] = num_tokens, token_id
        return self.known_witnesses[state]


def _whole_characters(text: bytes) -> bytes:
    """Cut off what is not whole characters at the end; empty when `text` starts inside a character."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start]
    return text
