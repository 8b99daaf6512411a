"""A batch does what its sequences do one by one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from services.constraint.core.engine import REJECTED, TERMINATED, Batch, Matcher, TokenTrie, compile_grammar
from services.constraint.core.grammar import Alternation, ByteRange, Bytes, Expression, Grammar, Repeat, Sequence
from services.rpckit.status import LeaseExpired, TokenRejected
from services.vocabulary import bitmask_words
from tests.support.grammars import vocabulary

TRIE = TokenTrie(vocabulary((("a", "b"),)))
EXPRESSIONS: tuple[Expression, ...] = (
    Repeat(ByteRange(97, 122), 1, 400),
    Sequence((Bytes(b"ab"), Repeat(Alternation((Bytes(b"a"), Bytes(b"b"))), 0, None))),
    Bytes(b"a"),
)


def matchers(forcing: str) -> list[Matcher]:
    made = [Matcher(compile_grammar(Grammar("start", {"start": body})), TRIE, forcing=forcing) for body in EXPRESSIONS]
    return [matcher for matcher in made for _ in range(3)]


@pytest.mark.parametrize("forcing", ["off", "canonical"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_batch_is_one_by_one(forcing: str, num_threads: int) -> None:
    size = TRIE.vocabulary.vocab_size
    token_of = {token: token_id for token_id, token in enumerate(TRIE.vocabulary.token_bytes)}
    choices = [token_of[b"a"], token_of[b"b"], token_of[b"ab"], TRIE.vocabulary.eos_token_ids[0], size - 1, size + 5]
    rng = np.random.default_rng(7)
    together, alone = matchers(forcing), matchers(forcing)
    states = np.array([matcher.start for matcher in together], np.int64)
    mine = [matcher.start for matcher in alone]
    out = np.full((len(together), bitmask_words(size)), -1, np.int32)
    with ThreadPoolExecutor(1) as executor:
        batch = Batch(together, executor=executor, num_threads=num_threads)
        for _ in range(60):
            token_ids = rng.choice(choices, len(together), p=[0.4, 0.3, 0.2, 0.02, 0.04, 0.04])
            batch.advance(states, token_ids, out)
            for item, matcher in enumerate(alone):
                try:
                    mine[item] = matcher.accept(mine[item], [int(token_ids[item])])
                    expected = np.zeros_like(out[item])
                    matcher.fill_bitmask(mine[item], expected)
                except TokenRejected:
                    expected = np.zeros_like(out[item])
                    assert states[item] == REJECTED
                    states[item] = together[item].start
                    mine[item] = matcher.start
                else:
                    assert (states[item] == TERMINATED) == (mine[item] == TERMINATED)
                assert (out[item] == expected).all()


def test_unknown_state_is_named() -> None:
    matcher = matchers("off")[0]
    states = np.array([12345], np.int64)
    out = np.zeros((1, bitmask_words(TRIE.vocabulary.vocab_size)), np.int32)
    batch = Batch([matcher])
    with pytest.raises(LeaseExpired, match="12345"):
        batch.advance(states, np.zeros(1, np.int64), out)
