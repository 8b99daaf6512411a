"""What the properties do not say: exact forced tokens, counts at their bounds, limits, states that are not known."""

from __future__ import annotations

import pytest

from services.constraint.core.engine import TERMINATED, Matcher, MatcherLimits, TokenTrie, compile_grammar
from services.constraint.core.grammar import (
    Alternation,
    ByteRange,
    Bytes,
    Expression,
    Grammar,
    Literals,
    Reference,
    Repeat,
    Sequence,
)
from services.rpckit.status import GrammarSyntax, GrammarTooLarge, LeaseExpired, OutOfFuel, TokenRejected
from services.vocabulary import allowed_token_ids
from tests.support.grammars import vocabulary

LETTER = ByteRange(97, 122)
WORDS = vocabulary((('"', "n"), ("a", "m"), ("am", "e"), ('"n', "ame"), ('"', ":"), ("Ġ", '"')))
TRIE = TokenTrie(WORDS)
BYTES = TokenTrie(vocabulary())


def matcher(expression: Expression, trie: TokenTrie = TRIE, **rules: Expression) -> Matcher:
    return Matcher(compile_grammar(Grammar("start", {"start": expression, **rules})), trie)


def spelled(found: Matcher, text: str) -> int:
    byte_ids = {token: token_id for token_id, token in enumerate(BYTES.vocabulary.token_bytes) if token}
    return found.accept(found.start, [byte_ids[bytes([byte])] for byte in text.encode()])


def allowed(found: Matcher, state: int, trie: TokenTrie = TRIE) -> set[bytes]:
    ids = allowed_token_ids(found.guidance(state).bitmask, trie.vocabulary.vocab_size)
    return {trie.vocabulary.token_bytes[token_id] or b"<end>" for token_id in ids}


def test_forced_text_is_cut_as_the_tokenizer_would_but_for_what_could_merge_with_the_rest() -> None:
    found = matcher(Sequence((Bytes(b'{"name": "'), Repeat(LETTER, 1, None), Bytes(b'"}'))))
    guidance = found.guidance(found.start)
    forced = [WORDS.token_bytes[token_id] for token_id in guidance.forced_token_ids]
    # ` "` is forced as well, but a letter behind it could make `"n` of its quote: the model decides where to cut.
    assert forced == [b"{", b'"name', b'":']
    assert allowed(found, guidance.after_forced) == {b" ", b' "'}


def test_forced_text_whose_end_could_be_part_of_a_longer_token_is_left_open() -> None:
    found = matcher(Sequence((Bytes(b"a"), Alternation((Bytes(b"m"), Bytes(b"x"))))))
    guidance = found.guidance(found.start)
    assert guidance.forced_token_ids == ()
    assert allowed(found, found.start) == {b"a", b"am"}


def test_forced_text_to_the_end_is_forced_whole() -> None:
    found = matcher(Bytes(b"am"))
    guidance = found.guidance(found.start)
    assert [WORDS.token_bytes[token_id] for token_id in guidance.forced_token_ids] == [b"am"]
    assert guidance.is_accepting
    assert allowed(found, guidance.after_forced) == {b"<end>"}


def test_forced_text_may_begin_inside_a_character() -> None:
    found = matcher(Bytes("한글".encode()), BYTES)
    state = found.start
    tokens = 0
    while True:
        guidance = found.guidance(state)
        tokens += len(guidance.forced_token_ids)
        if guidance.is_accepting:
            break
        state = found.accept(guidance.after_forced, [int(guidance.witness_token_id or 0)])
        tokens += 1
    assert tokens == 6


@pytest.mark.parametrize(("minimum", "maximum"), [(0, 70), (1, 70), (65, 70), (70, 70), (66, None)])
@pytest.mark.parametrize("length", [0, 1, 64, 65, 66, 69, 70, 71, 200])
def test_counts_are_exact(minimum: int, maximum: int | None, length: int) -> None:
    found = matcher(Repeat(LETTER, minimum, maximum), BYTES)
    if maximum is not None and length > maximum:
        with pytest.raises(TokenRejected):
            spelled(found, "a" * length)
        return
    guidance = found.guidance(spelled(found, "a" * length))
    assert guidance.is_accepting == (length >= minimum)
    assert guidance.witness_num_tokens == max(0, minimum - length)


def test_a_count_of_a_billion_costs_nothing() -> None:
    item = Reference("item")
    found = matcher(Repeat(item, 0, 10**9), BYTES, item=Sequence((Bytes(b"["), Repeat(item, 0, 10**9), Bytes(b"]"))))
    guidance = found.guidance(spelled(found, "[[][[]]]"))
    assert guidance.is_accepting
    assert found.num_bytes < 1 << 20


def test_many_literals_share_their_prefixes() -> None:
    values = tuple(b"value-%06d" % i for i in range(20_000))
    compiled = compile_grammar(Grammar("start", {"start": Literals(values)}))
    assert len(compiled.tables.is_accepting) < 30_000
    found = Matcher(compiled, BYTES)
    assert found.guidance(spelled(found, "value-01999")).num_allowed == 10


def test_an_ambiguous_grammar_stays_polynomial() -> None:
    start = Reference("start")
    found = matcher(Alternation((Bytes(b"a"), Sequence((start, start)), Sequence((start, start, start)))), BYTES)
    guidance = found.guidance(spelled(found, "a" * 300))
    assert guidance.is_accepting
    assert found.num_bytes < 16 << 20


def test_unknown_states_are_lease_expired() -> None:
    found = matcher(Bytes(b"abc"))
    with pytest.raises(LeaseExpired):
        found.guidance(10_000)


def test_nothing_follows_an_end_token() -> None:
    found = matcher(Repeat(LETTER, 0, None))
    state = found.accept(found.start, [WORDS.eos_token_ids[0]])
    assert state == TERMINATED
    assert found.guidance(state).num_allowed == 0
    with pytest.raises(TokenRejected):
        found.accept(state, [WORDS.eos_token_ids[0]])


@pytest.mark.parametrize("token_id", [WORDS.vocab_size, WORDS.vocab_size - 1, -1, WORDS.eos_token_ids[0]])
def test_tokens_without_text_are_rejected_by_index(token_id: int) -> None:
    found = matcher(Sequence((LETTER, LETTER)))
    first = WORDS.encode("x")[0]
    with pytest.raises(TokenRejected) as caught:
        found.accept(found.start, [first, token_id])
    assert caught.value.metadata == {"index": "1", "token_id": str(token_id)}


def test_a_rule_that_is_not_defined_is_named() -> None:
    with pytest.raises(GrammarSyntax, match="'missing'"):
        compile_grammar(Grammar("start", {"start": Reference("missing")}))


def test_limits_are_named() -> None:
    with pytest.raises(GrammarTooLarge) as caught:
        compile_grammar(Grammar("start", {"start": Literals((b"x" * 500,))}), max_states=100)
    assert caught.value.metadata["limit"] == "max_states"


@pytest.mark.parametrize(
    "expression",
    [
        Repeat(Repeat(LETTER, 1000, 1000), 1000, None),
        Repeat(LETTER, 1 << 20, None),
        Literals((b"x" * (1 << 18),)),
    ],
)
def test_what_no_context_holds_is_too_large_not_unsatisfiable(expression: Expression) -> None:
    with pytest.raises(GrammarTooLarge) as caught:
        compile_grammar(Grammar("start", {"start": expression}))
    assert caught.value.metadata["limit"] == "max_min_bytes"


def test_a_way_that_is_too_long_is_closed_and_the_others_stay_open() -> None:
    long = Sequence((Bytes(b"b"), Repeat(LETTER, 1 << 20, None)))
    found = matcher(Alternation((Bytes(b"ac"), long)), BYTES)
    assert BYTES.vocabulary.decode(found.guidance(found.start).forced_token_ids) == b"ac"


def test_deep_expressions_are_too_large_not_a_crash() -> None:
    expression: Expression = LETTER
    for _ in range(100_000):
        expression = Sequence((expression, LETTER))
    with pytest.raises(GrammarTooLarge) as caught:
        compile_grammar(Grammar("start", {"start": expression}))
    assert caught.value.metadata["limit"] == "expression_nesting"


def test_fuel_ends_the_request_and_only_it() -> None:
    compiled = compile_grammar(Grammar("start", {"start": Repeat(LETTER, 0, None)}))
    with pytest.raises(OutOfFuel) as caught:
        Matcher(compiled, TRIE, limits=MatcherLimits(max_mask_fuel=0))
    assert caught.value.metadata["limit"] == "max_mask_fuel"


def test_memory_is_bounded() -> None:
    found = Matcher(
        compile_grammar(
            Grammar("start", {"start": Repeat(Reference("pair"), 0, None), "pair": Sequence((LETTER, LETTER))})
        ),
        TRIE,
        limits=MatcherLimits(max_grammar_bytes=1 << 20, max_mask_bytes=200),
    )
    state = found.start
    for token_id in WORDS.encode("xyz" * 100):
        state = found.accept(state, [token_id])
        found.guidance(state)
    assert found.num_bytes < 1 << 20
