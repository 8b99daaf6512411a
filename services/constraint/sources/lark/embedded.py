"""Parts of a grammar that no lexer of Lark finds: schemas and special tokens (`extensions.py`).

One begins wherever the parser could take a token of its name, and ends wherever its own texts do: no rule of a lexer
holds inside of it. Before it, Lark's rules hold as everywhere: no token that a lexer would have gone on with may end
there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.constraint.core.grammar import Expression
from services.constraint.core.regex.charset import Ranges
from services.constraint.sources.source import ConstraintSource

_FIRST_OF_JSON: Final[Ranges] = tuple((ord(char), ord(char)) for char in sorted('"-0123456789[fnt{'))


@dataclass(frozen=True, slots=True)
class Embedded:
    """The texts of a part, and the characters that they can begin with, at least those."""

    expression: Expression
    firsts: Ranges

    @classmethod
    def of(cls, source: ConstraintSource, expression: Expression) -> Embedded:
        """Take the expression of a schema or a special token."""
        return cls(expression, () if source.kind == "special_token" else _FIRST_OF_JSON)
