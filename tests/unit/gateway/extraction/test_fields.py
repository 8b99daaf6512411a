"""Fields of a record against the JSON that was written, under any cut into tokens."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.extraction.fields import Interval, leaves, mean_removed_mass, read_fields

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


def walk(value: Any, pointer: str = "") -> list[tuple[str, Any]]:
    """The scalars of a value by pointer, in order: what the fields must be."""
    if isinstance(value, dict):
        steps = [(key.replace("~", "~0").replace("/", "~1"), inner) for key, inner in value.items()]
    elif isinstance(value, list):
        steps = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return [(pointer, value)]
    return [leaf for step, inner in steps for leaf in walk(inner, f"{pointer}/{step}")]


@given(VALUES, st.sampled_from([None, 2]), st.booleans(), st.data())
def test_every_scalar_is_a_field_with_the_tokens_that_spell_it(
    value: Any, indent: int | None, ensure_ascii: bool, data: st.DataObject
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)
    content = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(content) - 1)), max_size=12)))
    edges = [0, *cuts, len(content)]
    spellings = [content[start:end] for start, end in pairwise(edges)]
    logprobs = [-float(index) for index in range(len(spellings))]
    fields = read_fields(text, spellings, logprobs)
    assert [field.pointer for field in fields] == [pointer for pointer, _ in walk(value)]
    for field, found, (_, scalar) in zip(fields, leaves(text), walk(value), strict=True):
        assert json.loads(found.json) == scalar
        start = len(text[: found.start].encode())
        end = start + len(found.json.encode())
        own = [i for i in range(len(spellings)) if any(start <= at < end for at in range(edges[i], edges[i + 1]))]
        assert field.num_tokens == len(own)
        assert field.mean_logprob == pytest.approx(sum(logprobs[i] for i in own) / len(own))


def test_tokens_without_a_log_probability_do_not_count() -> None:
    (field,) = read_fields('{"a": 12}', [b'{"a"', b": ", b"1", b"2}"], [None, None, -1.0, None])
    assert (field.mean_logprob, field.num_tokens) == (-1.0, 2)
    (field,) = read_fields("12", [b"1", b"2"], [None, None])
    assert field.mean_logprob is None


def spans(record: Any, document: str) -> list[str | None]:
    text = json.dumps(record, ensure_ascii=False)
    content = document.encode()
    found = read_fields(text, [text.encode()], [None], document=document)
    return [None if field.span is None else content[field.span.start : field.span.end].decode() for field in found]


def test_strings_are_found_in_the_document() -> None:
    document = "주최: 한빛 시립합창단\nfee:  10\nHarbour\n   Evening Concert, and 한빛 again; 10"
    assert spans(["한빛 시립합창단", "Harbour Evening Concert", "nowhere", 10, ""], document) == [
        "한빛 시립합창단",
        "Harbour\n   Evening Concert",  # the document breaks the line
        None,
        None,  # not a string
        None,
    ]


def test_equal_strings_have_places_of_their_own_as_far_as_there_are_some() -> None:
    document = "a.b and a.b"
    found = read_fields('["a.b", "a.b", "a.b"]', [b""], [None], document=document)
    assert [(field.span.start, field.span.end) for field in found if field.span] == [(0, 3), (8, 11), (0, 3)]


@given(st.text(), st.text(min_size=1))
def test_a_string_that_occurs_has_a_span_with_its_bytes(around: str, text: str) -> None:
    document = around + text + around
    if not text.strip():
        return
    assert spans([text], document) == [text]


def test_removed_mass_lies_between_what_is_known_and_all() -> None:
    assert mean_removed_mass([0.25, 0.75]) == Interval(0.5, 0.5)
    assert mean_removed_mass([0.5, None]) == Interval(0.25, 0.75)
    assert mean_removed_mass([None]) == Interval(0, 1)
    assert mean_removed_mass([]) == Interval(0, 0)
