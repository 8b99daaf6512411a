"""A compiled grammar as a value: the kernel's tables, and their binary form for a cache.

The binary form is plain arrays behind a checksum. It comes from outside the process, so `from_bytes` trusts nothing in
it: every index is checked before a kernel, which checks none, may see it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.constraint.core.tables import UNREACHABLE, Tables

# Raise it whenever the tables, their meaning or the lowering change: older entries in a cache become misses.
FORMAT_VERSION = 1

_MAGIC = b"espalier-grammar"
_HEADER = struct.Struct("<16sI32s")  # magic, format version, SHA-256 of what follows


class CorruptGrammarError(ValueError):
    """The bytes are no compiled grammar of this version."""


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """What a grammar is for the kernel.

    Tables, the start rule's number, whether the empty text is complete, and the shortest text's length.
    """

    tables: Tables
    start_rule: int
    accepts_empty: bool
    min_bytes: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the tables."""
        return sum(array.nbytes for array in self.tables)

    def to_bytes(self) -> bytes:
        """Return the binary form."""
        arrays = [array.astype(array.dtype.newbyteorder("<"), copy=False) for array in self.tables]
        head = json.dumps(
            {
                "start_rule": self.start_rule,
                "accepts_empty": self.accepts_empty,
                "min_bytes": self.min_bytes,
                "lengths": [len(array) for array in arrays],
            }
        ).encode()
        body = struct.pack("<I", len(head)) + head + b"".join(array.tobytes() for array in arrays)
        return _HEADER.pack(_MAGIC, FORMAT_VERSION, hashlib.sha256(body).digest()) + body

    @classmethod
    def from_bytes(cls, data: bytes) -> CompiledGrammar:
        """Read the binary form.

        Raises:
            CorruptGrammarError: another version, a wrong checksum, or contents that no compiler wrote.
        """
        try:
            magic, version, checksum = _HEADER.unpack_from(data)
            if magic != _MAGIC or version != FORMAT_VERSION:
                raise CorruptGrammarError(f"not a compiled grammar of format {FORMAT_VERSION}")
            body = data[_HEADER.size :]
            if hashlib.sha256(body).digest() != checksum:
                raise CorruptGrammarError("the checksum does not match")
            (head_length,) = struct.unpack_from("<I", body)
            head = json.loads(body[4 : 4 + head_length])
            tables = _read_tables(body[4 + head_length :], head["lengths"])
            compiled = cls(tables, int(head["start_rule"]), bool(head["accepts_empty"]), int(head["min_bytes"]))
        except (struct.error, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise CorruptGrammarError(f"not a compiled grammar: {error}") from error
        _check(compiled)
        return compiled


def _read_tables(data: bytes, lengths: list[int]) -> Tables:
    arrays: list[Any] = []
    offset = 0
    for name, length in zip(Tables._fields, lengths, strict=True):
        dtype = np.dtype(np.uint8 if name in _BYTE_FIELDS else "<i4")
        if length < 0:
            raise CorruptGrammarError(f"{name} has a negative length")
        array = np.frombuffer(data, dtype, length, offset)
        offset += array.nbytes
        # A copy is aligned and in the machine's byte order, which the kernels need.
        arrays.append(array.astype(dtype.newbyteorder("=")))
    if offset != len(data):
        raise CorruptGrammarError("there is more than the tables")
    return Tables(*arrays)


_BYTE_FIELDS = frozenset({"edge_low", "edge_high", "call_is_tail", "is_accepting", "byte_class"})


def _check(compiled: CompiledGrammar) -> None:
    g = compiled.tables
    num_states, num_rules = len(g.is_accepting), len(g.rule_start)
    per_state = (g.count_minimum, g.count_maximum, g.distance, g.byte_distance, g.body_distance)
    is_sound = (
        num_states > 0
        and all(len(array) == num_states for array in per_state)
        and len(g.byte_class) == 256
        and len(g.edge_low) == len(g.edge_high) == len(g.edge_target)
        and len(g.call_rule) == len(g.call_return) == len(g.call_is_tail)
        and _are_rows(g.edge_start, num_states, len(g.edge_low))
        and _are_rows(g.epsilon_start, num_states, len(g.epsilon_target))
        and _are_rows(g.call_start, num_states, len(g.call_rule))
        and all(
            _lie_below(array, num_states) for array in (g.edge_target, g.epsilon_target, g.call_return, g.rule_start)
        )
        and _lie_below(g.call_rule, num_rules)
        and 0 <= compiled.start_rule < num_rules
        and all(_lie_below(array, UNREACHABLE + 1) for array in (g.distance, g.byte_distance, g.body_distance))
        and bool((g.byte_class[1:] - g.byte_class[:-1] <= 1).all())
    )
    if not is_sound:
        raise CorruptGrammarError("the tables contradict each other")


def _are_rows(starts: np.ndarray, num_states: int, total: int) -> bool:  # type: ignore[type-arg]
    return bool(
        len(starts) == num_states + 1 and starts[0] == 0 and starts[-1] == total and (np.diff(starts) >= 0).all()
    )


def _lie_below(array: np.ndarray, bound: int) -> bool:  # type: ignore[type-arg]
    return bool(len(array) == 0 or (array.min() >= 0 and array.max() < bound))
