"""Whether a constraint accepts a text, by the engine itself over a vocabulary of single bytes, checks included."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from services.constraint.checking import matcher_of_built
from services.constraint.checks import TokenClasses
from services.constraint.composite_matcher import AnyMatcher
from services.constraint.core.engine import Forcing, TokenTrie
from services.constraint.sources import ConstraintSource, SourceOptions, build
from services.rpckit.status import TokenRejected
from tests.support.grammars import vocabulary


@lru_cache(maxsize=1)
def byte_trie() -> TokenTrie:
    """The trie of a vocabulary in which each byte is a token, and there is no longer one."""
    return TokenTrie(vocabulary())


@lru_cache(maxsize=1)
def _token_of_byte() -> dict[int, int]:
    tokens = byte_trie().vocabulary.token_bytes
    return {token[0]: token_id for token_id, token in enumerate(tokens) if token is not None}


def matcher_of(schema: Any, options: SourceOptions | None = None, trie: TokenTrie | None = None) -> AnyMatcher:
    """Compile a schema, given as a value or as text."""
    text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    return matcher_of_source(ConstraintSource("json_schema", text), options or SourceOptions(), trie or byte_trie())


def matcher_of_source(
    source: ConstraintSource, options: SourceOptions, trie: TokenTrie, *, forcing: Forcing = "off"
) -> AnyMatcher:
    """Compile a constraint of any kind."""
    return matcher_of_built(build(source, options), options, trie, TokenClasses(trie), forcing)


def accepts(matcher: AnyMatcher, text: bytes) -> bool:
    """Tell whether a matcher over single bytes takes a text and its end."""
    try:
        return matcher.is_accepting(matcher.accept(matcher.start, [_token_of_byte()[byte] for byte in text]))
    except TokenRejected:
        return False
