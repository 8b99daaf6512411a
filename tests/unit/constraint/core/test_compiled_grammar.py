from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest

from services.constraint.core.compiled_grammar import CompiledGrammar, CorruptGrammarError
from services.constraint.core.engine import Matcher, TokenTrie, compile_grammar
from services.constraint.core.grammar import Alternation, ByteRange, Bytes, Grammar, Reference, Repeat, Sequence
from services.rpckit.status import ServiceError
from tests.support.grammars import vocabulary

GRAMMAR = Grammar(
    "start",
    {
        "start": Sequence((Bytes(b"["), Repeat(Reference("item"), 0, 100), Bytes(b"]"))),
        "item": Alternation((Reference("start"), Repeat(ByteRange(48, 57), 1, None), Bytes("한".encode()))),
    },
)
DATA = compile_grammar(GRAMMAR).to_bytes()
TRIE = TokenTrie(vocabulary())


def test_binary_form_is_the_same_grammar() -> None:
    again = CompiledGrammar.from_bytes(DATA)
    assert again.to_bytes() == DATA
    original = compile_grammar(GRAMMAR)
    for name, array in original.tables._asdict().items():
        assert np.array_equal(array, getattr(again.tables, name)), name
    assert (again.start_rule, again.accepts_empty, again.min_bytes) == (original.start_rule, False, 2)


def test_compile_is_deterministic() -> None:
    assert compile_grammar(GRAMMAR).to_bytes() == DATA


@pytest.mark.parametrize("length", [0, 1, 10, 51, 52, 60, 200, len(DATA) - 1])
def test_truncated_data_is_corrupt(length: int) -> None:
    with pytest.raises(CorruptGrammarError):
        CompiledGrammar.from_bytes(DATA[:length])


def test_any_flipped_byte_is_corrupt() -> None:
    for position in range(0, len(DATA), 7):
        flipped = bytearray(DATA)
        flipped[position] ^= 0x40
        with pytest.raises(CorruptGrammarError):
            CompiledGrammar.from_bytes(bytes(flipped))


def test_wrong_tables_behind_a_right_checksum_never_reach_a_kernel_with_a_wild_index() -> None:
    rng = random.Random(3)
    header, body = DATA[:52], DATA[52:]
    read = 0
    for _ in range(3000):
        wild = bytearray(body)
        for _ in range(rng.randrange(1, 4)):
            wild[rng.randrange(len(wild))] = rng.randrange(256)
        data = header[:20] + hashlib.sha256(wild).digest() + bytes(wild)
        try:
            compiled = CompiledGrammar.from_bytes(data)
            read += 1
            matcher = Matcher(compiled, TRIE)
            matcher.guidance(matcher.start)
        except (CorruptGrammarError, ServiceError):
            continue
    assert read > 0
