"""The two inner services in this process, as plain classes, for tests of the decode loop.

The worker's logits are a pure function of the tokens it holds. The constraint is a finite list of texts, so that masks,
witnesses and forced tokens come from looking at all of them.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from gateway.decode.interfaces import (
    Compiled,
    CompileOptions,
    Constraint,
    Guidance,
    Logits,
    MatcherState,
    Step,
    StepReply,
    Violation,
)
from services.rpckit.status import LeaseExpired, PositionMismatch, ServiceError, TokenRejected
from services.vocabulary import Vocabulary, pack_bool_mask

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("a", "b"), ("ab", "c"), ("ê", "°"), ("ê°", "Ģ"), ("ð", "Ł"), ("l", "l"), ("1", "0"), ('"', ":"), ("Ċ", "Ċ"))
EOS = 2
VOCAB_SIZE = 288


@lru_cache
def vocabulary() -> Vocabulary:
    """Three special tokens, 256 bytes, a few merges, some padding; two end tokens."""
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return Vocabulary(tokenizer.to_str().encode(), VOCAB_SIZE, [0, EOS])


def noise_logits(token_ids: Sequence[int]) -> Logits:
    """Logits that look random and depend on all tokens."""
    generator = np.random.default_rng(zlib.crc32(np.array(token_ids, np.int64).tobytes()))
    return generator.normal(scale=3, size=VOCAB_SIZE).astype(np.float32)


class FakeWorker:
    """Applies steps in order; `before_reply` may delay or fail the step of that number (from 0)."""

    def __init__(
        self,
        logits_of: Callable[[Sequence[int]], Logits] = noise_logits,
        *,
        delay_s: float = 0.0,
        fail: Callable[[int, FakeWorker], None] | None = None,
    ) -> None:
        self.sequences: dict[str, list[int]] = {}
        self.steps: list[Step] = []
        self.num_replies = 0
        self._logits_of = logits_of
        self._delay_s = delay_s
        self._fail = fail
        self._turn = asyncio.Lock()

    def submit(self, step: Step) -> asyncio.Future[StepReply]:
        self.steps.append(step)
        return asyncio.ensure_future(self._apply(len(self.steps) - 1, step))

    async def release(self, sequence_ids: Sequence[str]) -> None:
        for sequence_id in sequence_ids:
            self.sequences.pop(sequence_id, None)

    async def _apply(self, number: int, step: Step) -> StepReply:
        async with self._turn:
            await asyncio.sleep(self._delay_s)
            if self._fail is not None:
                self._fail(number, self)
            if step.fork_of is not None:
                if step.fork_of not in self.sequences:
                    raise LeaseExpired("no such parent")
                self.sequences[step.sequence_id] = self.sequences[step.fork_of][: step.position]
            elif step.position == 0:
                self.sequences[step.sequence_id] = []
            if step.sequence_id not in self.sequences:
                raise LeaseExpired("no such sequence")
            tokens = self.sequences[step.sequence_id]
            if step.truncate_to is not None:
                del tokens[step.truncate_to :]
            if step.position != len(tokens):
                raise PositionMismatch(f"at {len(tokens)}, not {step.position}")
            tokens.extend(step.token_ids)
            self.num_replies += 1
            first = len(tokens) - len(step.token_ids) if step.wants_all_rows else len(tokens) - 1
            rows = [self._logits_of(tokens[: end + 1]) for end in range(first, len(tokens))]
            return StepReply(np.stack(rows), forward_us=1000)


class FiniteLanguage:
    """A constraint that is a list of texts. A state is the number of a prefix; the tokens behind it are remembered."""

    def __init__(self, texts: Sequence[str], *, delay_s: float = 0.0, forcing: bool = True) -> None:
        self.texts = sorted(text.encode() for text in texts)
        self.epoch = 1
        self.num_compiles = 0
        self.refuses_all = False
        self._delay_s = delay_s
        self._forcing = forcing
        self._prefixes: list[bytes] = [b""]
        self._fail_next: list[ServiceError] = []

    def fail_next(self, error: ServiceError) -> None:
        """Make the next advance fail."""
        self._fail_next.append(error)

    def restart(self) -> None:
        """Forget all states."""
        self.epoch += 1
        self._prefixes = [b""]

    async def compile(self, constraint: Constraint, options: CompileOptions) -> Compiled:
        self.num_compiles += 1
        await asyncio.sleep(self._delay_s)
        return Compiled("grammar", self._guidance(b""), (), 7)

    def advance(
        self, grammar_id: str, state: MatcherState | None, token_ids: Sequence[int]
    ) -> asyncio.Future[Guidance]:
        return asyncio.ensure_future(self._advance(state, token_ids))

    async def validate(self, constraint: Constraint, options: CompileOptions, text: bytes) -> Sequence[Violation]:
        return [Violation("/x")] if self.refuses_all or text not in self.texts else []

    async def _advance(self, state: MatcherState | None, token_ids: Sequence[int]) -> Guidance:
        await asyncio.sleep(self._delay_s)
        if self._fail_next:
            raise self._fail_next.pop()
        if state is not None and state.epoch != self.epoch:
            raise LeaseExpired("another epoch")
        prefix = b"" if state is None else self._prefixes[state.configuration_id]
        for token_id in token_ids:
            if token_id not in self.allowed(prefix):
                raise TokenRejected("outside the mask")
            prefix += vocabulary().token_bytes[token_id] or b""
        return self._guidance(prefix)

    def allowed(self, prefix: bytes) -> list[int]:
        """Ids of the tokens that may follow, by trying them all; end tokens where a text is whole."""
        behind = [text[len(prefix) :] for text in self.texts if text.startswith(prefix)]
        tokens = [
            token_id
            for token_id, token in enumerate(vocabulary().token_bytes)
            if token and any(text.startswith(token) for text in behind)
        ]
        return tokens + (list(vocabulary().eos_token_ids) if b"" in behind else [])

    def witness(self, prefix: bytes) -> list[int]:
        """Tokens of one short completion: the shortest text, always the longest token; the same way all along."""
        tokens: list[int] = []
        while prefix not in self.texts:
            shortest = min((text for text in self.texts if text.startswith(prefix)), key=lambda text: (len(text), text))
            behind = shortest[len(prefix) :]
            fitting = [i for i, token in enumerate(vocabulary().token_bytes) if token and behind.startswith(token)]
            tokens.append(max(fitting, key=lambda i: len(vocabulary().token_bytes[i] or b"")))
            prefix += vocabulary().token_bytes[tokens[-1]] or b""
        return tokens

    def is_valid(self, prefix: bytes) -> bool:
        """Whether the text may end here."""
        return prefix in self.texts

    def is_settled(self, prefix: bytes) -> bool:
        """Whether nothing will have to be taken back."""
        return True

    def forced(self, prefix: bytes) -> list[int]:
        """Tokens that are each the only one allowed."""
        tokens: list[int] = []
        while self._forcing and len(allowed := self.allowed(prefix)) == 1:
            tokens += allowed
            prefix += vocabulary().token_bytes[allowed[0]] or b""
        return tokens

    def _guidance(self, prefix: bytes) -> Guidance:
        forced = self.forced(prefix)
        after = prefix + vocabulary().decode(forced)
        allowed, witness = self.allowed(after), self.witness(after)
        bool_mask = np.zeros(VOCAB_SIZE, np.bool_)
        bool_mask[allowed] = True
        return Guidance(
            state=self._state(prefix),
            forced_token_ids=tuple(forced),
            after_forced=self._state(after),
            bitmask=pack_bool_mask(bool_mask),
            num_allowed=len(allowed),
            is_accepting=self.is_valid(after),
            witness_num_tokens=len(witness),
            witness_token_id=witness[0] if witness else None,
            mask_us=3,
            is_settled=self.is_settled(after),
        )

    def _state(self, prefix: bytes) -> MatcherState:
        if prefix not in self._prefixes:
            self._prefixes.append(prefix)
        return MatcherState(self.epoch, self._prefixes.index(prefix))


class CheckedLanguage(FiniteLanguage):
    """A constraint whose masks allow all of `texts`, and whose check refuses some of them at the end.

    With `looks_ahead` the token that would end a refused text is off the mask; without, there is a dead end behind it.
    `settles` says when a text counts as settled: when all texts that begin so are valid, as soon as one is, or never.
    """

    def __init__(
        self,
        texts: Sequence[str],
        refused: Sequence[str],
        *,
        looks_ahead: bool = True,
        settles: Literal["late", "early", "never"] = "late",
        delay_s: float = 0.0,
        forcing: bool = True,
    ) -> None:
        super().__init__(texts, delay_s=delay_s, forcing=forcing)
        self.valid = frozenset(self.texts) - {text.encode() for text in refused}
        self._looks_ahead = looks_ahead
        self._settles = settles

    def is_valid(self, prefix: bytes) -> bool:
        return prefix in self.valid

    def is_settled(self, prefix: bytes) -> bool:
        judged = [text in self.valid for text in self.texts if text.startswith(prefix)]
        match self._settles:
            case "late":
                return all(judged)
            case "early":
                return any(judged)
            case "never":
                return False

    def allowed(self, prefix: bytes) -> list[int]:
        tokens = [
            token_id
            for token_id, token in enumerate(vocabulary().token_bytes)
            if token and self._may_go_on(prefix + token)
        ]
        return tokens + (list(vocabulary().eos_token_ids) if self.is_valid(prefix) else [])

    def witness(self, prefix: bytes) -> list[int]:
        """Tokens to the end of the shortest text that an allowed token begins, whatever its check will say."""
        if self.is_valid(prefix):
            return []
        allowed = self.allowed(prefix)
        for text in sorted(self.texts, key=lambda text: (len(text), text)):
            fitting = [i for i in allowed if text.startswith(prefix + (vocabulary().token_bytes[i] or b""))]
            if text.startswith(prefix) and fitting:
                first = max(fitting, key=lambda i: len(vocabulary().token_bytes[i] or b""))
                return [first, *self._longest_tokens(text[len(prefix) + len(vocabulary().token_bytes[first] or b"") :])]
        return []

    def has_way(self, prefix: bytes) -> bool:
        """Whether a valid text begins so: the oracle that a mask is not."""
        return any(text.startswith(prefix) for text in self.valid)

    def _may_go_on(self, prefix: bytes) -> bool:
        begun = [text for text in self.texts if text.startswith(prefix)]
        return bool(begun) and not (self._looks_ahead and begun == [prefix] and prefix not in self.valid)

    def _longest_tokens(self, text: bytes) -> list[int]:
        tokens: list[int] = []
        while text:
            fitting = [i for i, token in enumerate(vocabulary().token_bytes) if token and text.startswith(token)]
            tokens.append(max(fitting, key=lambda i: len(vocabulary().token_bytes[i] or b"")))
            text = text[len(vocabulary().token_bytes[tokens[-1]] or b"") :]
        return tokens
