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
import numpy.typing as npt

from services.constraint.core import distances
from services.constraint.core.tables import TOO_FAR, UNREACHABLE, Int32s, Tables, Uint8s
from services.rpckit.status import GrammarTooLarge, UnsatisfiableGrammar

# Raise it whenever the tables, their meaning or the lowering change: older entries in a cache become misses.
FORMAT_VERSION = 4

_MAGIC = b"espalier-grammar"
_HEADER = struct.Struct("<16sI32s")  # magic, format version, SHA-256 of what follows


# The fields that are stored, and how. The others are derived from them (`distances.py`).
_STORED = {
    "edge_start": "<i4",
    "edge_low": "u1",
    "edge_high": "u1",
    "edge_target": "<i4",
    "epsilon_start": "<i4",
    "epsilon_target": "<i4",
    "call_start": "<i4",
    "call_rule": "<i4",
    "call_return": "<i4",
    "rule_start": "<i4",
    "is_lexeme": "u1",
    "is_accepting": "u1",
    "count_minimum": "<i4",
    "count_maximum": "<i4",
    "base": "<i4",
}


class CorruptGrammarError(ValueError):
    """The bytes are no compiled grammar of this version."""


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """What a grammar is for the kernel: tables, the start rule's number, whether the empty text is complete.

    `min_bytes` is the shortest text's length.
    """

    tables: Tables
    start_rule: int
    accepts_empty: bool
    min_bytes: int

    @classmethod
    def of(cls, tables: Tables, start_rule: int, *, accepts_empty: bool) -> CompiledGrammar:
        """Measure the tables.

        Raises:
            UnsatisfiableGrammar: no text matches.
            GrammarTooLarge: every text that matches has TOO_FAR bytes or more.
        """
        tables, min_bytes = distances.measured(tables, start_rule)
        if min_bytes == TOO_FAR and not accepts_empty:
            raise GrammarTooLarge(
                f"every text has at least {TOO_FAR} bytes (limit max_min_bytes); ask for less",
                limit="max_min_bytes",
                value=TOO_FAR,
            )
        if min_bytes >= UNREACHABLE and not accepts_empty:
            raise UnsatisfiableGrammar(
                "no text can satisfy the constraint: every way through it needs something that nothing matches"
            )
        return cls(tables, start_rule, accepts_empty, 0 if accepts_empty else min_bytes)

    def restricted_to(self, usable_bytes: Uint8s) -> CompiledGrammar:
        """Return the grammar of the texts that these bytes suffice for: `usable_bytes` (256,) is 1 for each.

        A vocabulary may lack bytes: SmolLM2's has no token for 0xF1, with which rare characters begin.

        Raises:
            UnsatisfiableGrammar: no text is left.
        """
        tables = distances.with_bytes(self.tables, usable_bytes)
        return self if tables is None else CompiledGrammar.of(tables, self.start_rule, accepts_empty=self.accepts_empty)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tables."""
        return sum(array.nbytes for array in self.tables)

    def to_bytes(self) -> bytes:
        """Return the binary form: the tables without what is derived from them."""
        arrays = {name: getattr(self.tables, name) for name in _STORED}
        head = json.dumps(
            {
                "start_rule": self.start_rule,
                "accepts_empty": self.accepts_empty,
                "lengths": [len(array) for array in arrays.values()],
            }
        ).encode()
        stored = (array.astype(_STORED[name], copy=False).tobytes() for name, array in arrays.items())
        body = struct.pack("<I", len(head)) + head + b"".join(stored)
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
            start_rule = int(head["start_rule"])
            _check(tables, start_rule)
            return cls.of(tables, start_rule, accepts_empty=bool(head["accepts_empty"]))
        except (
            struct.error,
            ValueError,
            KeyError,
            TypeError,
            RecursionError,
            UnsatisfiableGrammar,
            GrammarTooLarge,
        ) as error:
            raise CorruptGrammarError(f"not a compiled grammar: {error}") from error


def _read_tables(data: bytes, lengths: list[int]) -> Tables:
    fields: dict[str, Any] = {}
    offset = 0
    for (name, dtype), length in zip(_STORED.items(), lengths, strict=True):
        if length < 0:
            raise CorruptGrammarError(f"{name} has a negative length")
        array = np.frombuffer(data, dtype, length, offset)
        offset += array.nbytes
        # A copy is aligned and in the machine's byte order, which the kernels need.
        fields[name] = array.astype(np.dtype(dtype).newbyteorder("="))
    if offset != len(data):
        raise CorruptGrammarError("there is more than the tables")
    return Tables(**fields, **distances.unmeasured(len(fields["is_accepting"]), len(fields["call_rule"])))


def _check(g: Tables, start_rule: int) -> None:
    """See that no kernel can leave its arrays, whatever wrote these tables.

    Raises:
        CorruptGrammarError: one could.
    """
    num_states, num_rules = len(g.is_accepting), len(g.rule_start)
    is_sound = (
        num_states > 0
        and 0 <= start_rule < num_rules
        and len(g.count_minimum) == len(g.count_maximum) == num_states
        and len(g.edge_low) == len(g.edge_high) == len(g.edge_target)
        and len(g.call_rule) == len(g.call_return)
        and are_rows(g.edge_start, num_states, len(g.edge_low))
        and are_rows(g.epsilon_start, num_states, len(g.epsilon_target))
        and are_rows(g.call_start, num_states, len(g.call_rule))
        and all(lie_in(array, 0, num_states) for array in (g.edge_target, g.epsilon_target, g.call_return))
        and lie_in(g.rule_start, 0, num_states)
        and len(g.is_lexeme) == num_rules
        and len(g.base) == num_states
        and lie_in(g.base, 0, num_states)
        and lie_in(g.call_rule, 0, num_rules)
        and bool((g.edge_low <= g.edge_high).all())
        and _ascend_in_rows(g.edge_low, g.edge_start)
        and lie_in(g.count_minimum, -1, UNREACHABLE)
        and lie_in(g.count_maximum, -1, UNREACHABLE)
    )
    if not is_sound:
        raise CorruptGrammarError("the tables contradict each other")


def are_rows(starts: Int32s, num_states: int, total: int) -> bool:
    """Tell whether rows begin at `starts`, with the end of the last behind them, of `total` elements."""
    return bool(
        len(starts) == num_states + 1 and starts[0] == 0 and starts[-1] == total and (np.diff(starts) >= 0).all()
    )


def lie_in(array: npt.NDArray[Any], low: int, bound: int) -> bool:
    """Tell whether `low` <= x < `bound` for all elements."""
    return bool(len(array) == 0 or (array.min() >= low and array.max() < bound))


def _ascend_in_rows(values: Uint8s, starts: Int32s) -> bool:
    is_start = np.zeros(len(values) + 1, np.bool_)
    is_start[starts] = True
    return bool((is_start[1:-1] | (values[1:] >= values[:-1])).all())
