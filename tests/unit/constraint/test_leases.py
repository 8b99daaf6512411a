from dataclasses import dataclass
from typing import Any

import pytest

from services.constraint.leases import GrammarTable, Lease, canonical_json, digest_of
from services.constraint.sources import ConstraintSource, SourceOptions
from services.rpckit.status import LeaseExpired


@dataclass
class FakeMatcher:
    num_bytes: int


def _lease(name: str, num_bytes: int) -> Lease:
    matcher: Any = FakeMatcher(num_bytes)
    return Lease(name, matcher, ())


def test_the_least_recently_used_goes_first() -> None:
    table = GrammarTable(100)
    for name in "abc":
        table.add(_lease(name, 30))
    table.get("a")
    table.add(_lease("d", 30))
    assert table.find("b") is None
    assert [table.get(name).grammar_id for name in "acd"] == ["a", "c", "d"]
    assert table.num_bytes == 90


def test_a_grammar_that_grows_pushes_others_out_but_not_itself() -> None:
    table = GrammarTable(100)
    table.add(_lease("a", 30))
    grown = _lease("b", 30)
    table.add(grown)
    grown.matcher.num_bytes = 500  # type: ignore[misc]
    table.measure(grown)
    assert (len(table), table.num_bytes) == (1, 500)
    assert table.get("b") is grown


def test_measuring_what_is_gone_changes_nothing() -> None:
    table = GrammarTable(100)
    gone = _lease("a", 30)
    table.add(gone)
    table.add(_lease("a", 40))
    table.measure(gone)
    assert table.num_bytes == 40
    table.clear()
    assert (len(table), table.num_bytes) == (0, 0)


def test_an_unknown_grammar() -> None:
    with pytest.raises(LeaseExpired) as caught:
        GrammarTable(100).get("nope")
    assert caught.value.metadata == {"grammar_id": "nope"}


SAME = [
    ('{"a": [1, 2.50]}', ' {"a":[1,2.50]}\n'),
    ('"\\ud55c"', '"한"'),
]
DIFFERENT = [
    ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}'),
    ('{"a": 1}', '{"a": 1.0}'),
    ('{"a": 1}', '{"a": 1, "a": 1}'),
    ("10000000000000000000000001", "10000000000000000000000002"),
    ('{"a": 1}', '{"object": [["a", 1]]}'),
    ("1", '{"integer": "1"}'),
    ("true", "1"),
    ("NaN", '"NaN"'),
    ("{", "{ "),
]


@pytest.mark.parametrize(("left", "right"), SAME)
def test_white_space_and_escapes_do_not_matter(left: str, right: str) -> None:
    assert canonical_json(left) == canonical_json(right)


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_all_else_does(left: str, right: str) -> None:
    assert canonical_json(left) != canonical_json(right)


def test_nesting_that_python_cannot_follow_is_kept_as_it_is() -> None:
    text = "[" * 100_000
    assert canonical_json(text) == text


def test_each_part_of_the_key_matters() -> None:
    base: dict[str, Any] = {
        "source": ConstraintSource("regex", "a+"),
        "options": SourceOptions(),
        "forcing": "canonical",
        "vocabulary_digest": "v",
        "engine_version": 1,
        "format_version": 1,
    }
    changes: list[dict[str, Any]] = [
        {},
        {"source": ConstraintSource("lark", "a+")},
        {"source": ConstraintSource("regex", "a*")},
        {"source": ConstraintSource("choices", None, ("a+",))},
        {"source": ConstraintSource("choices", None, ("a", "+"))},
        {"options": SourceOptions(whitespace="compact")},
        {"options": SourceOptions(whitespace="pattern", whitespace_pattern=" ?")},
        {"options": SourceOptions(whitespace="pattern", whitespace_pattern=" *")},
        {"options": SourceOptions(property_order="any")},
        {"options": SourceOptions(format="annotation")},
        {"options": SourceOptions(unknown_formats="error")},
        {"options": SourceOptions(integers="plain")},
        {"options": SourceOptions(escapes="plain")},
        {"options": SourceOptions(default_draft=7)},
        {"options": SourceOptions(lexer="contextual")},
        {"options": SourceOptions(documents=(("urn:a", "{}"),))},
        {"options": SourceOptions(documents=(("urn:a", "true"),))},
        {"options": SourceOptions(documents=(("urn:b", "{}"),))},
        {"options": SourceOptions(documents=(("urn:a", "{}"), ("urn:b", "{}")))},
        {"forcing": "off"},
        {"vocabulary_digest": "w"},
        {"engine_version": 2},
        {"format_version": 2},
    ]
    assert len({digest_of(**(base | change)) for change in changes}) == len(changes)
    orders: list[dict[str, Any]] = [
        {"options": SourceOptions(documents=documents)}
        for documents in ((("urn:a", "{}"), ("urn:b", "{}")), (("urn:b", "{ }"), ("urn:a", "{ }")))
    ]
    assert len({digest_of(**(base | order)) for order in orders}) == 1
