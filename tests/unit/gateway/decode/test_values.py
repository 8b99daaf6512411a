"""Values of JSON texts, whatever the pieces they come in, against `json` and RFC 6901."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.decode.values import Value, ValueScanner

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def expected(value: Any, pointer: str = "") -> Iterator[tuple[str, Any]]:
    """All values with their pointers, inner ones first."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from expected(inner, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from expected(inner, f"{pointer}/{index}")
    yield pointer, value


@given(values, st.data(), st.sampled_from([None, 2]), st.booleans())
def test_every_value_comes_once_and_as_it_was_written(value: Any, data: Any, indent: Any, is_ascii: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
    scanner, found, at = ValueScanner(), [], 0
    while at < len(text):
        size = data.draw(st.integers(1, 7))
        found += scanner.push(text[at : at + size])
        at += size
    found += scanner.finish()
    assert [(item.pointer, json.loads(item.json)) for item in found] == list(expected(value))
    for item in found:
        assert item.json in text


def test_a_value_is_told_as_soon_as_it_is_whole() -> None:
    scanner = ValueScanner()
    assert scanner.push('{"a": [1') == ()
    assert scanner.push("2") == ()
    assert scanner.push(",") == (Value("/a/0", "12"),)
    assert scanner.push(' "x\\"') == ()
    assert scanner.push('"') == (Value("/a/1", '"x\\""'),)
    assert scanner.push("]") == (Value("/a", '[12, "x\\""]'),)
    assert scanner.push(', "b/c": 1.50}') == (Value("/b~1c", "1.50"), Value("", '{"a": [12, "x\\""], "b/c": 1.50}'))
    assert scanner.finish() == ()
