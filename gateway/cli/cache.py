"""`espalier cache`: what lies in the cache that constraint services share.

It reads the settings of the constraint service (`ESPALIER_CONSTRAINT_REDIS_*`, `ESPALIER_REDIS_URL`, `--config`), so
that it looks where the services do, with their key.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import redis
from espalier.v1.constraint_pb2 import CacheLevel
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from gateway.cli.client import ConstraintClient, ConstraintKind, GatewayClient, make_constraint, make_options
from gateway.cli.errors import BAD_USAGE, FAILED, REFUSED, UNAVAILABLE, CommandError
from services.constraint.cache import RedisOptions, unseal
from services.constraint.cache.entry import FORMAT_VERSION
from services.constraint.core.engine import CompiledGrammar
from services.constraint.settings import ConstraintSettings
from services.constraint.stored_grammar import StoredGrammar
from services.rpckit.enums import word_of
from services.rpckit.settings import BadSettingsError
from services.rpckit.status import NotReady, ServiceError

_TIMEOUT_S: Final = 5.0
_KIND_OF_SUFFIX: Final[dict[str, ConstraintKind]] = {".json": "json_schema", ".lark": "lark", ".regex": "regex"}


@dataclass(frozen=True, slots=True)
class Key:
    """A key of ours in Redis."""

    name: bytes
    version: str
    kind: str
    digest: str


class CacheReader:
    """The entries below one prefix."""

    def __init__(self, options: RedisOptions) -> None:
        """Connect when first used."""
        self._options = options
        self._redis: Any = redis.Redis.from_url(
            options.url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            **options.connection_arguments(),
        )

    def entries(self) -> Iterator[Key]:
        """Find all keys, of other format versions too; the server is not held up (SCAN)."""
        prefix = f"{self._options.prefix}:"
        for name in self._redis.scan_iter(match=f"{_escaped(prefix)}*", count=1000):
            version, _, rest = name.decode(errors="replace").removeprefix(prefix).partition(":")
            kind, _, digest = rest.partition(":")
            yield Key(name, version, kind, digest)

    def size_and_lifetime(self, key: Key) -> tuple[int, float | None]:
        """Return bytes of the value and seconds that it has left, None for ever."""
        lifetime_ms = self._redis.pttl(key.name)
        return self._redis.strlen(key.name), None if lifetime_ms < 0 else lifetime_ms / 1e3

    def payload(self, key: Key) -> bytes | None:
        """Return what an entry holds, None where it is gone.

        Raises:
            BadEntryError: it is of another key or format, or damaged.
        """
        value = self._redis.get(key.name)
        if value is None:
            return None
        return unseal(f"{key.kind}:{key.digest}", value, key=self._options.hmac_key)

    def delete(self, keys: list[Key]) -> int:
        """Delete keys; return how many were there."""
        return int(self._redis.unlink(*(key.name for key in keys))) if keys else 0


def list_entries(config: Path | None) -> None:
    """Print a line for each grammar, and how many entries there are of each kind.

    Raises:
        CommandError: no Redis is set, or it does not answer.
    """
    table = Table("grammar", "kind", "bytes", "compiled in ms", "expires in s")
    counts: Counter[str] = Counter()
    with _reading(config) as reader:
        for key in reader.entries():
            is_ours = key.version == str(FORMAT_VERSION)
            counts[key.kind if is_ours else f"of format {key.version}"] += 1
            if key.kind != "grammar" or not is_ours:
                continue
            num_bytes, lifetime_s = reader.size_and_lifetime(key)
            told: tuple[str, str, str]
            try:
                payload = reader.payload(key)
                if payload is None:
                    continue
                report = StoredGrammar.from_bytes(payload).report
                told = report.kind, str(num_bytes), f"{report.compile_seconds * 1e3:.1f}"
            except ValueError as error:
                told = f"unreadable: {error}", str(num_bytes), ""
            table.add_row(key.digest, *told, _seconds(lifetime_s))
    console = _console()
    console.print(table)
    console.print(", ".join(f"{number} {kind}" for kind, number in sorted(counts.items())) or "nothing is cached")


def inspect(config: Path | None, digest: str) -> None:
    """Print what is known of one grammar; the beginning of its digest is enough.

    Raises:
        CommandError: there is no such entry, several, or one that cannot be read.
    """
    with _reading(config) as reader:
        keys = [key for key in reader.entries() if key.digest.startswith(digest) and key.version == str(FORMAT_VERSION)]
        found = [key for key in keys if key.kind == "grammar"]
        if len(found) != 1:
            raise CommandError(f"{len(found)} cached grammars have a digest that begins with {digest!r}", BAD_USAGE)
        (key,) = found
        num_bytes, lifetime_s = reader.size_and_lifetime(key)
        warm = [
            reader.size_and_lifetime(other)[0] for other in keys if (other.kind, other.digest) == ("warm", key.digest)
        ]
        try:
            payload = reader.payload(key)
            if payload is None:
                raise CommandError("the entry has just gone", FAILED)
            stored = StoredGrammar.from_bytes(payload)
            compiled = CompiledGrammar.from_bytes(stored.compiled)
        except ValueError as error:
            raise CommandError(f"the entry cannot be read: {error}", REFUSED) from None
    enforcements = Counter(keyword.enforcement for keyword in stored.report.keywords)
    rows = {
        "grammar": key.digest,
        "kind": stored.report.kind,
        "compiled in": f"{stored.report.compile_seconds * 1e3:.1f} ms",
        "expires in": f"{_seconds(lifetime_s)} s",
        "bytes": f"{num_bytes} ({len(payload)} unpacked)",
        "bytes of warm masks": str(sum(warm)),
        "states": str(len(compiled.tables.is_accepting)),
        "rules": str(len(compiled.tables.rule_start)),
        "shortest text": f"{compiled.min_bytes} bytes",
        "keywords": ", ".join(f"{number} {name}" for name, number in sorted(enforcements.items())) or "none",
        "parts of their own": str(len(stored.report.holes)),
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    _console().print(table)


def clear(config: Path | None, *, is_stale_only: bool) -> None:
    """Delete all entries below the prefix, or those of other format versions alone.

    Raises:
        CommandError: Redis does not answer.
    """
    with _reading(config) as reader:
        keys = [key for key in reader.entries() if not is_stale_only or key.version != str(FORMAT_VERSION)]
        num_deleted = sum(reader.delete(keys[first : first + 500]) for first in range(0, len(keys), 500))
    _console().print(f"{num_deleted} entries deleted")


def warm(
    directory: Path,
    options: dict[str, Any],
    *,
    constraint_address: str,
    gateway_address: str,
    timeout_s: float,
) -> None:
    """Have a running constraint service compile every *.json, *.lark and *.regex file below a directory.

    Raises:
        ServiceError: a service is away.
        CommandError: there are no such files, or some were refused.
    """
    files = sorted(path for path in directory.rglob("*") if path.suffix in _KIND_OF_SUFFIX and path.is_file())
    if not files:
        raise CommandError(f"no {', '.join(f'*{suffix}' for suffix in _KIND_OF_SUFFIX)} in {directory}", BAD_USAGE)
    with GatewayClient(gateway_address, timeout_s=timeout_s) as gateway:
        vocabulary_digest = gateway.model_info().vocabulary_digest
    compile_options = make_options(options)
    console = _console()
    refused = 0
    with ConstraintClient(constraint_address, timeout_s=timeout_s) as client:
        for file in files:
            try:
                text = file.read_text(encoding="utf-8")
                constraint = make_constraint(_KIND_OF_SUFFIX[file.suffix], text)
                compiled = client.compile(constraint, compile_options, vocabulary_digest)
            except NotReady:
                raise
            except (ServiceError, OSError, UnicodeDecodeError) as error:
                refused += 1
                console.print(f"{file}: refused: {error}", markup=False)
            else:
                level = word_of(CacheLevel.DESCRIPTOR, compiled.cache_level)
                console.print(f"{file}: {level}, {compiled.compile_us / 1e3:.1f} ms", markup=False)
    if refused:
        raise CommandError(f"{refused} of {len(files)} files were refused", REFUSED)


@contextmanager
def _reading(config: Path | None) -> Iterator[CacheReader]:
    """Give a reader of the cache that the settings name; what goes wrong with it is a `CommandError`."""
    try:
        options = ConstraintSettings.read([] if config is None else ["--config", str(config)]).redis_options()
    except BadSettingsError as error:
        raise CommandError(str(error), BAD_USAGE) from None
    if options is None:
        raise CommandError("no cache is set: give its URL by ESPALIER_REDIS_URL or `redis_url` in --config", BAD_USAGE)
    try:
        yield CacheReader(options)
    except (RedisError, OSError) as error:
        raise CommandError(f"Redis does not answer: {error}", UNAVAILABLE) from None


def _seconds(lifetime_s: float | None) -> str:
    return "never" if lifetime_s is None else f"{lifetime_s:.0f}"


def _escaped(text: str) -> str:
    """Escape what means something in a pattern of SCAN."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", text)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
