"""Other engines on the cases of `espalier check`: llguidance and xgrammar, each by its fastest documented calls.

They run as ours does (`services/constraint/checking.py`): in a process of their own that can be killed, one thread, the
same tokens, the bit of each token looked up in the buffer that the engine wrote. A case is cold at its start; its texts
follow one another on one matcher, which is reset between them, so that what one text taught serves the next.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from time import perf_counter_ns
from typing import Any, Protocol

import numpy as np

from services.constraint.checking import Case, CaseOutcome, TokenizerChoice, no_collection, spell, text_outcome
from services.constraint.sources import ConstraintSource
from services.vocabulary import Vocabulary, bitmask_words, has_token
from services.vocabulary.files import read_vocabulary

TARGET = "tests.bench.peers:answer"
PREPARE = None
"""The task that only has the engine made."""


class RefusedError(Exception):
    """An engine does not take a constraint."""


class Peer(Protocol):
    """An engine with one vocabulary and, once a constraint is compiled, one matcher."""

    row: np.ndarray[Any, np.dtype[np.int32]]

    def compile(self, source: ConstraintSource) -> None:
        """Make the matcher, ready to be asked: a grammar (kind "lark") is in the engine's own dialect.

        Raises RefusedError.
        """

    def fill(self) -> None:
        """Write the mask to `row`; this is what is timed."""

    def take(self, token_id: int) -> None:
        """Go on behind a token that the mask allows."""

    def reset(self) -> None:
        """Go back to the start."""


class Llguidance:
    """https://github.com/guidance-ai/llguidance with its defaults.

    Its other slices, `json_slices()`, are no faster over these schemas and take longer to compile.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        from llguidance import LLMatcher, LLTokenizer

        self._matcher_type = LLMatcher
        self._tokenizer = LLTokenizer(
            vocabulary.tokenizer_json.decode(),
            n_vocab=vocabulary.vocab_size,
            eos_token=list(vocabulary.eos_token_ids),
        )
        self.row = np.zeros(bitmask_words(vocabulary.vocab_size), np.int32)
        self._address, self._num_bytes = self.row.ctypes.data, self.row.nbytes

    def matcher(self, schema: str) -> Any:
        """Compile a schema; white space is flexible by default, so that `json.dumps` is accepted."""
        return self._made(self._matcher_type.grammar_from_json_schema, schema)

    def compile(self, source: ConstraintSource) -> None:
        text = source.text or ""
        is_grammar = source.kind == "lark"
        self._matcher = self._made(self._matcher_type.grammar_from_lark, text) if is_grammar else self.matcher(text)

    def _made(self, read: Callable[[str], str], text: str) -> Any:
        try:
            grammar = read(text)
        except ValueError as error:
            raise RefusedError(str(error)) from None
        matcher = self._matcher_type(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise RefusedError(matcher.get_error())
        return matcher

    def fill(self) -> None:
        # What llguidance.numpy.fill_next_token_bitmask calls, less the time for the array's address.
        self._matcher.unsafe_compute_mask_ptr(self._address, self._num_bytes)

    def take(self, token_id: int) -> None:
        if not self._matcher.consume_token(token_id):
            raise RuntimeError(self._matcher.get_error())

    def reset(self) -> None:
        self._matcher.reset()


class Xgrammar:
    """https://github.com/mlc-ai/xgrammar, not strict: objects are open as JSON Schema has them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        import xgrammar

        self._xgrammar = xgrammar
        tokens = [token or b"" for token in vocabulary.token_bytes]
        info = xgrammar.TokenizerInfo(
            tokens,
            xgrammar.VocabType.RAW,
            vocab_size=vocabulary.vocab_size,
            stop_token_ids=list(vocabulary.eos_token_ids),
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._bitmask = xgrammar.allocate_token_bitmask(1, vocabulary.vocab_size)
        self.row = self._bitmask.numpy()[0]

    def matcher(self, schema: str) -> Any:
        return self._made(partial(self._compiler.compile_json_schema, any_whitespace=True, strict_mode=False), schema)

    def compile(self, source: ConstraintSource) -> None:
        text = source.text or ""
        is_grammar = source.kind == "lark"
        self._matcher = self._made(self._compiler.compile_grammar, text) if is_grammar else self.matcher(text)

    def _made(self, compile_text: Callable[[str], Any], text: str) -> Any:
        try:
            compiled = compile_text(text)
        except Exception as error:  # it raises its runtime's errors
            raise RefusedError(str(error)) from None
        return self._xgrammar.GrammarMatcher(compiled)

    def fill(self) -> None:
        self._matcher.fill_next_token_bitmask(self._bitmask)

    def take(self, token_id: int) -> None:
        if not self._matcher.accept_token(token_id):
            raise RuntimeError("a token that the mask allows was not accepted")

    def reset(self) -> None:
        self._matcher.reset()


PEERS: dict[str, type[Llguidance] | type[Xgrammar]] = {"llguidance": Llguidance, "xgrammar": Xgrammar}


def installed() -> list[str]:
    """Name the peers that can be imported."""
    return [name for name in PEERS if importlib.util.find_spec(name) is not None]


@dataclass(frozen=True, slots=True)
class PeerChoice:
    """A peer and whose tokens it has."""

    name: str
    tokenizer: TokenizerChoice


def answer(choice: PeerChoice, case: Case | None) -> Any:
    """Run a case, in a process that can be killed; without one, only have the engine made."""
    runner = _runner(choice)
    return None if case is None else runner.run(case)


@lru_cache(maxsize=1)
def _runner(choice: PeerChoice) -> PeerRunner:
    tokenizer = choice.tokenizer
    vocabulary = read_vocabulary(tokenizer.path, eos_tokens=tokenizer.eos_tokens, vocab_size=tokenizer.vocab_size)
    runner = PeerRunner(PEERS[choice.name](vocabulary), vocabulary)
    gc.collect()
    gc.freeze()
    return runner


class PeerRunner:
    """Runs cases on a peer, as `checking.Checker` does on ours."""

    def __init__(self, peer: Peer, vocabulary: Vocabulary) -> None:
        self._peer = peer
        self._vocabulary = vocabulary

    def run(self, case: Case) -> CaseOutcome:
        """Compile the constraint and walk the texts twice."""
        texts = [spell(self._vocabulary, test.text) for test in case.tests]
        with no_collection():
            started = perf_counter_ns()
            try:
                self._peer.compile(case.source)
            except RefusedError as error:
                return CaseOutcome(case.case_id, "rejected", message=str(error)[:500])
            outcome = CaseOutcome(case.case_id, "ok", compile_us=(perf_counter_ns() - started) / 1e3)
            try:
                found = [self._walk(token_ids, outcome.mask_us) for token_ids in texts]
                for token_ids in texts:
                    self._walk(token_ids, outcome.warm_mask_us)
            except Exception as error:  # engines raise what they like once a limit of theirs is hit
                return CaseOutcome(case.case_id, "error", message=f"{type(error).__name__}: {error}"[:500])
        outcome.tests = list(map(text_outcome, case.tests, texts, found))
        outcome.first_mask_us = outcome.mask_us[0] if outcome.mask_us else None
        return outcome

    def _walk(self, token_ids: Sequence[int] | None, times_us: list[float]) -> int | None:
        if token_ids is None:
            return None
        peer = self._peer
        try:
            for index, token_id in enumerate(token_ids):
                times_us.append(self._timed_mask())
                if not self._allows(token_id):
                    return index
                peer.take(token_id)
            times_us.append(self._timed_mask())
            return None if any(map(self._allows, self._vocabulary.eos_token_ids)) else len(token_ids)
        finally:
            peer.reset()

    def _timed_mask(self) -> float:
        fill = self._peer.fill
        started = perf_counter_ns()
        fill()
        return (perf_counter_ns() - started) / 1e3

    def _allows(self, token_id: int) -> bool:
        return has_token(self._peer.row, token_id)
