"""Texts for `tests/bench/grammars.py`: written by hand, taken from real documents, and drawn from a seed.

Nothing here knows a grammar's text or the mask engine: the drawn ones are written by functions that know what SQL and
arithmetic look like.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

DATA: Final = Path(__file__).parent / "data" / "texts"


def texts(language: str, count: int, documents: Path) -> list[str]:
    """Return `count` valid texts of a language, the same ones each time; `documents` is MaskBench's file, for JSON."""
    return _MAKERS[language](count, documents)


def broken(valid: list[str], count: int, seed: int = 0) -> list[str]:
    """Return `count` texts with one character of a valid one left out, doubled or exchanged: most are not valid."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        text = draw.choice(valid)
        at = draw.randrange(len(text))
        put = draw.choice(["", 2 * text[at], draw.choice("()+*,\"'{}[]: a0.")])
        found.append(text[:at] + put + text[at + 1 :])
    return found


def _json(count: int, documents: Path) -> list[str]:
    """Every n-th valid instance, half of them written over several lines."""
    with gzip.open(documents, "rt", encoding="utf-8") as lines:
        instances = [test["data"] for line in lines for test in json.loads(line)["tests"] if test["valid"]]
    # Longer ones than a number or a name, but no whole data sets.
    chosen = [data for data in instances if 100 <= len(json.dumps(data, ensure_ascii=False)) <= 2000]
    chosen = chosen[:: max(1, len(chosen) // count)][:count]
    return [json.dumps(data, ensure_ascii=False, indent=2 if i % 2 else None) for i, data in enumerate(chosen)]


def _arithmetic(count: int, _documents: Path) -> list[str]:
    draw = random.Random(2026)

    def number() -> str:
        return draw.choice(
            [str(draw.randrange(10)), str(draw.randrange(10_000)), f"{draw.random() * 1000:.{draw.randrange(1, 5)}f}"]
        )

    def expression(depth: int) -> str:
        parts = [operand(depth)]
        for _ in range(draw.choice([0, 1, 1, 2, 3])):
            space = draw.choice([" ", " ", ""])
            parts += [space + draw.choice("+-*/") + space, operand(depth)]
        return "".join(parts)

    def operand(depth: int) -> str:
        chance = draw.random()
        if depth > 0 and chance < 0.4:
            return f"({expression(depth - 1)})"
        return f"-{number()}" if chance > 0.95 else number()

    return [*_by_hand("arithmetic", "\n"), *_drawn(lambda: expression(5), 20, count)][:count]


def _sql(count: int, _documents: Path) -> list[str]:
    return [*_by_hand("sql", "\n\n"), *_drawn(_Sql(random.Random(2026)).statement, 40, count)][:count]


def _by_hand(name: str, separator: str) -> list[str]:
    return (DATA / f"{name}.txt").read_text().strip().split(separator)


def _drawn(draw: Callable[[], str], min_length: int, count: int) -> Iterator[str]:
    while count > 0:
        text = draw()
        if len(text) >= min_length:
            count -= 1
            yield text


class _Sql:
    """Writes SELECT statements over a shop's tables."""

    _TABLES: Final = {
        "customers": ["id", "name", "email", "country", "created_at", "credit_limit"],
        "orders": ["id", "customer_id", "placed_at", "total", "status", "shipping_address"],
        "order_lines": ["order_id", "product_id", "quantity", "unit_price", "discount"],
        "products": ["id", "sku", "title", "category", "price", "stock", "is_discontinued"],
        "employees": ["id", "first_name", "last_name", "salary", "department_id", "hired_on"],
        "page_views": ["session_id", "url", "referrer", "viewed_at", "duration_ms"],
    }
    _WORDS: Final = (
        "active",
        "New York",
        "it''s late",
        "한국",
        "%@example.com",
        "2024-03-01",
        "A-1003",
        "refunded",
        "",
    )
    _ALIASES: Final = ("total_amount", "n", "label", "average_price", "last_seen", "month", "share")

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._columns: list[str] = []

    def statement(self, depth: int = 2) -> str:
        """Return a statement, with others inside up to a depth."""
        draw = self._draw
        text = self._select(depth)
        if draw.random() < 0.1:
            text += draw.choice([" UNION ", " UNION ALL ", "\nEXCEPT\n"]) + self._select(depth)
        if draw.random() < 0.5:
            orderings = [self._column() + draw.choice(["", " ASC", " DESC"]) for _ in range(draw.choice([1, 1, 2]))]
            text += self._clause("ORDER BY", ", ".join(orderings))
        if draw.random() < 0.4:
            text += self._clause("LIMIT", str(draw.choice([1, 10, 25, 100, 5000])))
        return text

    def _clause(self, keyword: str, rest: str) -> str:
        return self._draw.choice([" ", "\n"]) + keyword + " " + rest

    def _select(self, depth: int) -> str:
        draw = self._draw
        tables = draw.sample(sorted(self._TABLES), draw.choice([1, 1, 2, 3]))
        before = self._columns
        self._columns = [
            f"{table}.{column}" if len(tables) > 1 else column for table in tables for column in self._TABLES[table]
        ]
        columns = "*" if draw.random() < 0.1 else ", ".join(self._result(depth) for _ in range(draw.randint(1, 5)))
        text = f"SELECT {columns}" + self._clause("FROM", tables[0])
        for table in tables[1:]:
            keyword = draw.choice(["JOIN", "LEFT JOIN", "INNER JOIN"])
            text += self._clause(keyword, f"{table} ON {self._column()} = {self._column()}")
        if draw.random() < 0.7:
            text += self._clause("WHERE", self._condition(depth))
        if draw.random() < 0.3:
            text += self._clause("GROUP BY", ", ".join(self._column() for _ in range(draw.choice([1, 2]))))
            if draw.random() < 0.5:
                text += self._clause("HAVING", f"COUNT(*) > {draw.randrange(100)}")
        self._columns = before
        return text

    def _result(self, depth: int) -> str:
        text = self._expression(depth)
        return f"{text} AS {self._draw.choice(self._ALIASES)}" if self._draw.random() < 0.4 else text

    def _column(self) -> str:
        return self._draw.choice(self._columns or self._TABLES["orders"])

    def _condition(self, depth: int) -> str:
        draw = self._draw
        parts: list[str] = []
        for _ in range(draw.choice([1, 1, 2, 2, 3])):
            if parts:
                parts.append(draw.choice(["AND", "AND", "OR"]))
            nested = depth > 0 and draw.random() < 0.2
            parts.append(f"({self._condition(depth - 1)})" if nested else self._test(depth))
        return " ".join(parts)

    def _test(self, depth: int) -> str:
        draw = self._draw
        column = self._column()
        kind = draw.randrange(7)
        if kind == 0:
            return f"{column} IS {draw.choice(['', 'NOT '])}NULL"
        if kind == 1:
            return f"{column} {draw.choice(['', 'NOT '])}LIKE {self._string()}"
        if kind == 2:
            return f"{column} BETWEEN {self._number()} AND {self._number()}"
        if kind == 3:
            return f"{column} IN ({', '.join(self._literal() for _ in range(draw.randint(1, 5)))})"
        if kind == 4 and depth > 0:
            return f"{column} IN ({self.statement(depth - 1)})"
        return f"{column} {draw.choice(['=', '<>', '<', '>', '<=', '>='])} {self._expression(depth)}"

    def _expression(self, depth: int) -> str:
        draw = self._draw
        kind = draw.randrange(10)
        if depth > 0 and kind == 0:
            return f"({self._expression(depth - 1)} {draw.choice('+-*/')} {self._expression(depth - 1)})"
        if depth > 0 and kind == 1:
            otherwise = self._literal()
            return f"CASE WHEN {self._condition(depth - 1)} THEN {self._expression(depth - 1)} ELSE {otherwise} END"
        if kind == 2:
            return f"{self._column()} {draw.choice('+-*/')} {self._number()}"
        if kind == 3:
            return f"{draw.choice(['COUNT', 'SUM', 'AVG', 'MIN', 'MAX', 'lower', 'coalesce'])}({self._column()})"
        if kind == 4:
            return draw.choice(["COUNT(*)", f"COUNT(DISTINCT {self._column()})"])
        return self._literal() if kind == 5 else self._column()

    def _literal(self) -> str:
        return self._draw.choice([self._string(), self._number(), self._number()])

    def _string(self) -> str:
        return f"'{self._draw.choice(self._WORDS)}'"

    def _number(self) -> str:
        draw = self._draw
        return draw.choice([str(draw.randrange(1000)), f"{draw.random() * 100:.2f}"])


_MAKERS: Final[dict[str, Callable[[int, Path], list[str]]]] = {"arithmetic": _arithmetic, "json": _json, "sql": _sql}
