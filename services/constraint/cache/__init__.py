"""Compiled grammars that all replicas share. docs/cache.md has the reasoning."""

from services.constraint.cache.entry import BadEntryError, seal, unseal
from services.constraint.cache.fleet import FleetCache
from services.constraint.cache.key import canonical_json, digest_of, engine_version
from services.constraint.cache.store import KINDS, EntryName, NoStore, RedisOptions, RedisStore, Store
from services.constraint.cache.warm import WarmExchange, Warmth

__all__ = [
    "KINDS",
    "BadEntryError",
    "EntryName",
    "FleetCache",
    "NoStore",
    "RedisOptions",
    "RedisStore",
    "Store",
    "WarmExchange",
    "Warmth",
    "canonical_json",
    "digest_of",
    "engine_version",
    "seal",
    "unseal",
]
