"""The engine's front: compile a grammar, make a vocabulary's trie, match.

What is made when: a `TokenTrie` once per vocabulary; a `CompiledGrammar` once per grammar, without any vocabulary; a
`Matcher` once for the two together. Sequences are integers inside a matcher.
"""

from __future__ import annotations

import numpy as np

from services.constraint.core.batch import REJECTED, Batch
from services.constraint.core.compiled_grammar import FORMAT_VERSION, CompiledGrammar, CorruptGrammarError
from services.constraint.core.grammar import Automaton, ByteRange, Bytes, Grammar, Reference, Repeat, Sequence
from services.constraint.core.heap import keep_freed_memory
from services.constraint.core.hot_states import HotStates, adopt, hot_states, num_known
from services.constraint.core.interning import rehashed
from services.constraint.core.lowering import lower
from services.constraint.core.matcher import Forcing, Guidance, Matcher, MatcherLimits, unknown_state
from services.constraint.core.tables import TERMINATED
from services.constraint.core.trie import TokenTrie
from services.vocabulary import allowed_token_ids, bitmask_words

# Memory for grammars and masks that is made ready ahead.
_READY_BYTES = 64 << 20
# Between them these reach every kernel.
_LETTER = ByteRange(97, 122)
_WORD = Automaton(0, (1,), ((0, 97, 122, 1), (1, 97, 122, 1)))
_WARM_UP = (
    Sequence((Reference("word"), Reference("word"), Repeat(Bytes(b"-"), 1, None), Reference("word"))),
    Sequence((Bytes(b"a"), Repeat(Sequence((ByteRange(97, 98), _LETTER)), 0, 1000), Bytes(b"zz"))),
    Sequence((Repeat(_LETTER, 2, 100), Bytes(b"-"), Repeat(_LETTER, 1, None), Bytes(b"-"))),
    Sequence((Repeat(_LETTER, 0, None), Bytes(b"zz"))),
    Automaton(
        1, (2,), ((0, 97, 122, 0), (1, 97, 97, 3), (1, 98, 122, 0), (3, 97, 122, 0), (0, 65, 65, 2)), bases=((1, 0),)
    ),
)
_WARM_UP_TOKENS = 20
# States of one grammar. A state takes about 50 bytes and 2 microseconds to compile.
DEFAULT_MAX_STATES = 500_000


def compile_grammar(
    grammar: Grammar, *, max_states: int = DEFAULT_MAX_STATES, are_holes_filled: bool = False
) -> CompiledGrammar:
    """Compile a grammar; with `are_holes_filled` each hole is as many bytes as it has at least, to tell `min_bytes`.

    Raises:
        GrammarSyntax: a rule is called but not defined.
        GrammarTooLarge: more than `max_states` states, or expressions nested too deep.
        UnsupportedConstruct: a counted repetition in left recursion.
        UnsatisfiableGrammar: no text matches.
    """
    return lower(grammar, max_states=max_states, are_holes_filled=are_holes_filled)


def warm_up(trie: TokenTrie, common: Grammar | None = None) -> None:
    """Compile the kernels, or load them from disk, so that no request waits for it; and make memory ready.

    The rules and loops of `common` are worked out for all grammars of this vocabulary that have them too.
    """
    keep_freed_memory(_READY_BYTES)
    rehashed(np.zeros(1, np.int64), 0, 0, 2)  # otherwise first met when a grammar outgrows its stores
    for expression in _WARM_UP:
        grammar = Grammar("start", {"start": expression, "word": _WORD}, frozenset(("word",)))
        compiled = CompiledGrammar.from_bytes(compile_grammar(grammar).to_bytes())
        matcher = Matcher(compiled, trie, is_common=True)
        state = matcher.start
        for _ in range(_WARM_UP_TOKENS):
            guidance = matcher.guidance(state)
            allowed = allowed_token_ids(guidance.bitmask, trie.vocabulary.vocab_size)
            if guidance.is_accepting:
                break
            state = matcher.accept(guidance.after_forced, allowed[:1].tolist())
        adopt(Matcher(compiled, trie), hot_states(matcher))
        matcher = Matcher(compiled, trie, forcing="off")
        states, rows = np.array([matcher.start]), np.zeros((1, bitmask_words(trie.vocabulary.vocab_size)), np.int32)
        Batch([matcher]).advance(states, np.zeros(1, np.int64), rows)
    if common is not None:
        Matcher(compile_grammar(common), trie, is_common=True)


__all__ = [
    "DEFAULT_MAX_STATES",
    "FORMAT_VERSION",
    "REJECTED",
    "TERMINATED",
    "Batch",
    "CompiledGrammar",
    "CorruptGrammarError",
    "Forcing",
    "Grammar",
    "Guidance",
    "HotStates",
    "Matcher",
    "MatcherLimits",
    "TokenTrie",
    "adopt",
    "compile_grammar",
    "hot_states",
    "num_known",
    "unknown_state",
    "warm_up",
]
