"""Settings of the constraint service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from pydantic import Field, SecretStr

from services.constraint.cache.store import RedisOptions
from services.rpckit.addresses import Addresses
from services.rpckit.settings import Address, PeerSettings

_MIB = 1 << 20


class ConstraintSettings(PeerSettings):
    """What the constraint service can be told. Limits have a unit in their name; passing one is a documented error."""

    service: ClassVar[str] = "constraint"

    address: Address = Field("127.0.0.1:50062", description="Where to listen: host:port or unix:/path.")
    worker_address: Addresses = Field(
        "127.0.0.1:50061",
        description="The model workers, whose vocabulary is fetched: addresses with commas between, or a name.",
    )

    # The cache that replicas share: docs/cache.md.
    redis_url: str | None = Field(
        None, description="Cache shared by replicas: redis://, rediss:// (TLS) or unix:// URL. Absent: memory only."
    )
    redis_username: str | None = Field(None, description="ACL user, where the URL names none.")
    redis_password: SecretStr | None = Field(None, description="Password, where the URL has none.")
    redis_ca_file: Path | None = Field(None, description="PEM file of authorities that rediss:// trusts.")
    redis_cert_file: Path | None = Field(None, description="PEM file of the client's certificate for rediss://.")
    redis_key_file: Path | None = Field(None, description="PEM file of the client's private key for rediss://.")
    redis_hmac_key: SecretStr | None = Field(
        None, min_length=16, description="Seals entries against who may write to Redis but does not know it."
    )
    redis_prefix: str = Field("espalier", min_length=1, max_length=100, description="What all keys begin with.")
    redis_timeout_s: float = Field(0.05, gt=0, le=60, description="A slower Redis counts as a miss.")
    redis_ttl_s: int = Field(7 * 24 * 3600, ge=1, description="Seconds an entry lives in Redis, about.")
    redis_ttl_jitter: float = Field(
        0.1, ge=0, lt=1, description="Share by which that differs at random, so that entries do not all end at once."
    )
    redis_max_value_bytes: int = Field(16 * _MIB, ge=0, description="Entries larger than this stay out of Redis.")
    redis_lock_s: float = Field(
        3.0, ge=0.1, le=600, description="Seconds after which a replica that compiles and died stops to hold others up."
    )
    redis_lock_wait_s: float = Field(
        10.0, ge=0, le=600, description="Longest wait for another replica's compile; then this one compiles too."
    )
    refusal_ttl_s: float = Field(30.0, gt=0, le=3600, description="Seconds a refused constraint is remembered.")
    warm_interval_s: float = Field(
        2.0, gt=0, le=3600, description="Seconds between looks for masks that other replicas do not know yet."
    )
    warm_mask_bytes: int = Field(
        8 * _MIB, ge=0, description="Masks of one grammar that other replicas are told of, unpacked; 0: none."
    )

    # What a request may bring.
    max_source_bytes: int = Field(
        _MIB, ge=1, description="Largest schema with its documents, grammar, regex or list of choices."
    )
    max_text_bytes: int = Field(16 * _MIB, ge=1, description="Largest text to validate.")
    max_batch_items: int = Field(1024, ge=1, description="Most moves in one Advance.")

    # What a compile may take, as a whole.
    max_compile_s: float = Field(20.0, gt=0, le=600, description="A compile that takes longer is ended.")
    max_compile_memory_bytes: int = Field(2048 * _MIB, ge=256 * _MIB, description="Memory of one compile.")
    max_compile_wait_s: float = Field(
        30.0, gt=0, le=600, description="Longest wait for one of the processes that compile; then CAPACITY."
    )
    num_compile_processes: int = Field(
        max(2, min(4, os.cpu_count() or 1)),
        ge=1,
        le=64,
        description="Compiles that run at the same time; with two, a slow one does not hold up the others.",
    )

    # What is inside a source; names as in the errors. `compiling.CompileLimits` takes them to the processes.
    max_states: int = Field(500_000, ge=100, le=20_000_000, description="States of a grammar; about 50 bytes each.")
    max_schema_bytes: int = Field(2_000_000, ge=1, description="Characters of a schema's text.")
    max_schema_depth: int = Field(80, ge=1, le=500, description="Schemas within schemas.")
    max_combined_cases: int = Field(
        512, ge=1, description="Cases that allOf, anyOf and oneOf multiply to; what has more is checked."
    )
    max_counted_properties: int = Field(
        60, ge=0, le=2000, description="Declared properties beside minProperties or maxProperties; cost is its square."
    )
    max_grammar_characters: int = Field(500_000, ge=1, description="Characters of a Lark grammar.")
    max_lexer_variants: int = Field(
        50_000, ge=1, description="Rules of a Lark grammar, one for each pair of lexer states that it leads between."
    )
    max_choices_bytes: int = Field(1_000_000, ge=1, description="All choices together.")
    max_pattern_characters: int = Field(20_000, ge=1, description="Characters of one pattern.")
    max_group_depth: int = Field(100, ge=1, le=500, description="Groups within groups of a pattern.")
    max_nfa_states: int = Field(20_000, ge=1, description="States of a pattern written out; about 1 us each.")
    max_dfa_states: int = Field(
        5_000, ge=1, description="States of patterns, lengths and look-around taken together; about 0.1 to 0.5 ms each."
    )
    max_formula_nodes: int = Field(
        200_000, ge=2, description="Conditions that look-around keeps; about 300 bytes each."
    )
    max_formula_depth: int = Field(150, ge=1, le=500, description="Conditions that look-around waits for at once.")

    # What a compiled grammar may take as it is used.
    max_grammar_memory_bytes: int = Field(
        512 * _MIB, ge=_MIB, description="Compiled grammars and their masks in memory; least recently used ones go."
    )
    max_grammar_bytes: int = Field(256 * _MIB, ge=_MIB, description="States of one grammar that were met so far.")
    max_mask_bytes: int = Field(64 * _MIB, ge=1, description="Masks of one grammar; beyond it all are forgotten.")
    max_mask_fuel: int = Field(
        20_000_000, ge=1000, description="States that one mask or one move may visit; about 10 ns each."
    )

    max_witness_tokens: int = Field(
        32_768, ge=1, description="Tokens of the shortest text that is still to come; they are found one by one, once."
    )

    max_readings: int = Field(
        1_000,
        ge=1,
        description="Ways to read a text by a constraint with special tokens or checked schemas as parts.",
    )

    max_validate_s: float = Field(10.0, gt=0, le=600, description="A validation that takes longer is ended.")
    num_validate_processes: int = Field(
        min(2, os.cpu_count() or 1), ge=1, le=64, description="Validations that run at the same time."
    )
    num_mask_threads: int = Field(
        min(4, os.cpu_count() or 1), ge=1, le=256, description="Threads that compute masks; they run without the GIL."
    )

    def redis_options(self) -> RedisOptions | None:
        """Return how Redis is reached and used, None where there is none."""
        if self.redis_url is None:
            return None
        return RedisOptions(
            url=self.redis_url,
            username=self.redis_username,
            password=_revealed(self.redis_password),
            ca_file=_named(self.redis_ca_file),
            cert_file=_named(self.redis_cert_file),
            key_file=_named(self.redis_key_file),
            prefix=self.redis_prefix,
            hmac_key=None if self.redis_hmac_key is None else self.redis_hmac_key.get_secret_value().encode(),
            timeout_s=self.redis_timeout_s,
            ttl_s=self.redis_ttl_s,
            ttl_jitter=self.redis_ttl_jitter,
            max_value_bytes=self.redis_max_value_bytes,
        )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _named(path: Path | None) -> str | None:
    return None if path is None else str(path)
