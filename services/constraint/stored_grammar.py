"""A compiled grammar as it is kept outside of the process that compiled it."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from typing import Final

from services.constraint.sources import ConstraintSource, KeywordReport

FORMAT_VERSION: Final = 3
"""Of the stored value; another version has other keys, so old entries are never read and expire."""

_MAGIC: Final = b"ESPG"
# Magic, format version, SHA-256 of what follows it, bytes of the report.
_HEADER: Final = struct.Struct("<4sI32sI")


@dataclass(frozen=True, slots=True)
class StoredGrammar:
    """A compiled grammar as it is kept: the engine's own bytes, and what goes with it; fields as in `BuiltSource`.

    `min_bytes` are the fewest bytes of a text, where `holes` keep the engine from telling.
    """

    compiled: bytes
    keywords: tuple[KeywordReport, ...]
    inexact: frozenset[str] | None = None
    holes: tuple[ConstraintSource, ...] = ()
    min_bytes: int | None = None

    def to_bytes(self) -> bytes:
        """Pack: header, report as JSON, engine's bytes."""
        inexact = None if self.inexact is None else sorted(self.inexact)
        keywords = [asdict(keyword) for keyword in self.keywords]
        holes = [{"kind": hole.kind, "text": hole.text} for hole in self.holes]
        fields = {"keywords": keywords, "inexact": inexact, "holes": holes, "min_bytes": self.min_bytes}
        report = json.dumps(fields, ensure_ascii=False).encode()
        body = report + self.compiled
        checksum = hashlib.sha256(struct.pack("<I", len(report)) + body).digest()
        return _HEADER.pack(_MAGIC, FORMAT_VERSION, checksum, len(report)) + body

    @classmethod
    def from_bytes(cls, value: bytes) -> StoredGrammar:
        """Unpack.

        Raises:
            ValueError: not what `to_bytes` made.
        """
        if len(value) < _HEADER.size:
            raise ValueError("too short")
        magic, version, checksum, report_bytes = _HEADER.unpack_from(value)
        body = value[_HEADER.size :]
        if (magic, version) != (_MAGIC, FORMAT_VERSION) or report_bytes > len(body):
            raise ValueError("another format")
        if hashlib.sha256(struct.pack("<I", report_bytes) + body).digest() != checksum:
            raise ValueError("checksum does not match")
        report = json.loads(body[:report_bytes])
        keywords = tuple(KeywordReport(**keyword) for keyword in report["keywords"])
        inexact = report["inexact"]
        holes = tuple(ConstraintSource(**hole) for hole in report["holes"])
        return cls(
            body[report_bytes:],
            keywords,
            None if inexact is None else frozenset(inexact),
            holes,
            report["min_bytes"],
        )
