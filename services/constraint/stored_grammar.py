"""A compiled grammar as it is kept outside of the process that compiled it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter

from services.constraint.sources import ConstraintSource, KeywordReport, Kind

_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class GrammarReport:
    """What goes with a compiled grammar; fields as in `BuiltSource`.

    `min_bytes` are the fewest bytes of a text, where `holes` keep the engine from telling. `kind` is the source's,
    `compile_seconds` what the compile took.
    """

    keywords: tuple[KeywordReport, ...]
    inexact: frozenset[str] | None = None
    holes: tuple[ConstraintSource, ...] = ()
    min_bytes: int | None = None
    kind: Kind = "json_schema"
    compile_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StoredGrammar:
    """A compiled grammar: the engine's own bytes, and what goes with it."""

    compiled: bytes
    report: GrammarReport

    def to_bytes(self) -> bytes:
        """Pack: length of the report, report as JSON, engine's bytes."""
        report = _REPORT.dump_json(self.report)
        return _LENGTH.pack(len(report)) + report + self.compiled

    @classmethod
    def from_bytes(cls, data: bytes) -> StoredGrammar:
        """Unpack. The engine's bytes are checked where they are read.

        Raises:
            ValueError: not what `to_bytes` made.
        """
        if len(data) < _LENGTH.size:
            raise ValueError("too short")
        end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        if end > len(data):
            raise ValueError("the report is cut off")
        return cls(data[end:], _REPORT.validate_json(data[_LENGTH.size : end], strict=True))


_REPORT: Final = TypeAdapter(GrammarReport)
