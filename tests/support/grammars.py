"""Random grammars and vocabularies for the core's properties."""

from __future__ import annotations

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from services.constraint.core.grammar import (
    Alternation,
    Automaton,
    ByteRange,
    Bytes,
    Expression,
    Grammar,
    Literals,
    Reference,
    Repeat,
    Sequence,
)
from services.vocabulary import Vocabulary

RULES = ("start", "p", "q", "r")
LETTERS = b"abc"


def expressions() -> st.SearchStrategy[Expression]:
    """Expressions over the letters a, b and c that call the rules of RULES."""
    words = st.binary(max_size=3).map(lambda data: bytes(LETTERS[byte % 3] for byte in data))
    ranges = st.sampled_from([ByteRange(97, 97), ByteRange(97, 98), ByteRange(98, 99)])
    automata = st.builds(
        lambda edges, epsilons, accepting: Automaton(0, tuple(accepting), tuple(edges), tuple(epsilons)),
        st.lists(
            st.tuples(st.integers(0, 2), st.sampled_from([(97, 97), (97, 98), (99, 99)]), st.integers(0, 2)).map(
                lambda edge: (edge[0], *edge[1], edge[2])
            ),
            max_size=4,
        ),
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=2),
        st.lists(st.integers(0, 2), max_size=2, unique=True),
    )
    leaves = st.one_of(
        words.map(Bytes),
        ranges,
        st.lists(words, min_size=1, max_size=4).map(lambda values: Literals(tuple(values))),
        st.sampled_from(RULES).map(Reference),
        st.sampled_from(RULES).map(Reference),
        automata,
    )

    def repeats(body: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        # 70 is beyond what is written out, so it makes a counting state.
        bounds = st.sampled_from([(0, 1), (0, None), (1, None), (2, 3), (0, 2), (2, None), (0, 70), (1, 70), (3, 70)])
        return st.builds(lambda inner, pair: Repeat(inner, *pair), body, bounds)

    def grow(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        several = st.lists(inner, min_size=1, max_size=3).map(tuple)
        return st.one_of(several.map(Sequence), several.map(Alternation), repeats(inner))

    return st.recursive(leaves, grow, max_leaves=5)


def grammars() -> st.SearchStrategy[Grammar]:
    """Small grammars: ambiguous, left-recursive, nullable and unproductive rules included."""
    return st.builds(
        lambda bodies: Grammar("start", dict(zip(RULES, bodies, strict=True))),
        st.lists(expressions(), min_size=len(RULES), max_size=len(RULES)),
    )


def vocabulary(
    merges: tuple[tuple[str, str], ...] = (), *, missing: str = "", padding: int = 3, special: tuple[str, ...] = ()
) -> Vocabulary:
    """Return a vocabulary of bytes (but `missing`), merges, special tokens and an end token.

    `padding` ids have no token.
    """
    alphabet = [piece for piece in sorted(ByteLevel.alphabet()) if piece not in missing]
    pieces = {piece: token_id for token_id, piece in enumerate(alphabet)}
    usable = []
    for left, right in merges:
        if left in pieces and right in pieces:
            pieces.setdefault(left + right, len(pieces))
            usable.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=usable))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*special, "<|end|>"])
    eos = tokenizer.token_to_id("<|end|>")
    return Vocabulary(tokenizer.to_str().encode(), eos + 1 + padding, [eos])


def vocabularies() -> st.SearchStrategy[Vocabulary]:
    """Byte-level vocabularies with a few merges over a, b and c."""
    pieces = st.sampled_from(["a", "b", "c", "aa", "ab", "bc", "abc", "ca"])
    merges = st.lists(st.tuples(pieces, pieces), max_size=6, unique=True).map(tuple)
    return st.builds(lambda pairs, missing: vocabulary(pairs, missing=missing), merges, st.sampled_from(["", "", "c"]))
