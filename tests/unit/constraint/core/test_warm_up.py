"""No kernel is compiled, or loaded, after the warm-up: a request would wait for it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
from services.constraint.core import distances, interning, kernel, lexeme_search, lexemes, masks
from services.constraint.core import span_search, spans, trie, trie_layout
from services.constraint.core.engine import CompiledGrammar, Matcher, TokenTrie, compile_grammar, warm_up
from services.constraint.core.grammar import *
from services.constraint.sources.json_schema.keys import any_key_but
from services.vocabulary import allowed_token_ids
from tests.support.grammars import vocabulary

def variants():
    modules = (
        distances, interning, kernel, lexeme_search, lexemes, masks, span_search, spans, trie, trie_layout
    )
    return {name: len(f.signatures) for m in modules for name, f in vars(m).items() if hasattr(f, "signatures")}

tokens = TokenTrie(vocabulary((("a", "b"), ("ab", "a"))))
warm_up(tokens)
before = variants()
words = Literals((b"abab", b"c"))
loops = (Repeat(ByteRange(97, 122), 3, 200), Repeat(ByteRange(48, 90), 1, None), Repeat(ByteRange(97, 99), 1, 200))
calls = (Reference("start"), Reference("name"))
item = Alternation((*calls, *loops, Bytes("한".encode()), words, any_key_but(["a", "ab"])))
grammar = Grammar(
    "start",
    {"start": Sequence((Bytes(b"[abab"), Repeat(item, 0, 100), Bytes(b"]"))), "name": loops[1]},
    frozenset(("name",)),
)
for forcing in ("canonical", "off"):
    matcher = Matcher(CompiledGrammar.from_bytes(compile_grammar(grammar).to_bytes()), tokens, forcing=forcing)
    state = matcher.start
    for step in range(400):
        guidance = matcher.guidance(state)
        allowed = allowed_token_ids(guidance.bitmask, tokens.vocabulary.vocab_size).tolist()
        if guidance.is_accepting:
            break
        state = matcher.accept(guidance.after_forced, [allowed[step % len(allowed)]])
assert variants() == before, {name: n for name, n in variants().items() if before.get(name) != n}
# 0: loaded from disk as a part of its callers.
assert max(before.values()) == 1, before
"""


def test_no_kernel_is_compiled_after_the_warm_up() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=250, check=False)
    assert result.returncode == 0, result.stderr
