"""What two constraints share a compiled grammar, and what never."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.constraint.cache import canonical_json, digest_of, engine_version, key
from services.constraint.sources import ConstraintSource, SourceOptions

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


OPTIONS = get_type_hints(SourceOptions)
SOURCE = get_type_hints(ConstraintSource)
BASE = ConstraintSource("regex", "a+")


def _digest(
    source: ConstraintSource = BASE, options: SourceOptions | None = None, forcing: Any = "canonical", **named: str
) -> str:
    return digest_of(
        source, options or SourceOptions(), forcing, **({"vocabulary_digest": "v", "version": "1"} | named)
    )


def _values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field by its type alone, so that a field which is added tomorrow takes part; unknown types fail."""
    if hint is str:
        return st.text(max_size=3)
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(0, 5)
    if all(isinstance(value, str | int) for value in get_args(hint)) and get_args(hint):
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is tuple and get_args(hint) == (tuple[str, str], ...):
        return st.dictionaries(st.sampled_from(["urn:a", "urn:b"]), st.sampled_from(["{}", "true", "[1]"])).map(
            lambda found: tuple(sorted(found.items()))
        )
    raise AssertionError(f"say here what values {hint} has")


def _options() -> st.SearchStrategy[SourceOptions]:
    def made(values: dict[str, Any]) -> SourceOptions:
        # Which two go together is the options' own matter.
        values["whitespace_pattern"] = values["whitespace_pattern"] or " "
        if values["whitespace"] != "pattern":
            values["whitespace_pattern"] = ""
        return SourceOptions(**values)

    return st.fixed_dictionaries({name: _values_of(hint) for name, hint in OPTIONS.items()}).map(made)


def _sources() -> st.SearchStrategy[ConstraintSource]:
    texts = st.sampled_from(["a", "b", '{"a": 1, "b": 2}', '{"b": 2, "a": 1}', '{"a":1,"b":2}', "", "1", "1.0"])
    kinds = st.sampled_from(get_args(SOURCE["kind"]))
    choices = st.lists(st.sampled_from(["a", "b", "a+", ""]), max_size=2).map(tuple)
    leaves = st.builds(ConstraintSource, kinds, st.none() | texts, choices)
    return st.recursive(
        leaves, lambda parts: st.builds(ConstraintSource, kinds, st.none() | texts, choices, st.lists(parts).map(tuple))
    )


def test_the_sources_strategy_knows_all_fields() -> None:
    assert [field.name for field in dataclasses.fields(ConstraintSource)] == ["kind", "text", "choices", "parts"]


Everything = tuple[ConstraintSource, SourceOptions, str, str, str]
_EVERYTHING = st.tuples(
    _sources(),
    _options(),
    st.sampled_from(["canonical", "off"]),
    st.sampled_from(["v", "w"]),
    st.sampled_from(["1", "2"]),
)


def _meaning(everything: Everything) -> Any:
    """All that a grammar depends on: everything but white space of schemas and the order of documents."""

    def schema(text: str) -> str:
        # Numbers stay as they are spelled; members in order. The strategies have no white space but this.
        return text.replace(" ", "")

    def of(source: ConstraintSource) -> Any:
        text = schema(source.text) if source.kind == "json_schema" and source.text is not None else source.text
        return source.kind, text, source.choices, tuple(map(of, source.parts))

    source, options, *rest = everything
    documents = tuple(sorted((uri, schema(text)) for uri, text in options.documents))
    return of(source), dataclasses.replace(options, documents=documents), *rest


@given(_EVERYTHING, st.data())
def test_two_share_an_entry_exactly_when_they_mean_the_same(one: Everything, data: st.DataObject) -> None:
    # Either anything else, or the same with one thing changed: both kinds of mistakes would show.
    other = list(one)
    if data.draw(st.booleans()):
        other = list(data.draw(_EVERYTHING))
    else:
        index = data.draw(st.integers(0, 4))
        other[index] = data.draw(_EVERYTHING)[index]
    digests = [
        digest_of(source, options, forcing, vocabulary_digest=vocabulary, version=version)  # type: ignore[arg-type]
        for source, options, forcing, vocabulary, version in (one, other)
    ]
    assert (digests[0] == digests[1]) == (_meaning(one) == _meaning(tuple(other)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_is_in_the_key(name: str) -> None:
    default = getattr(SourceOptions(), name)
    if name in ("whitespace", "whitespace_pattern"):
        options = SourceOptions(whitespace="pattern", whitespace_pattern=" ?")
        assert _digest(options=options) != _digest(options=dataclasses.replace(options, whitespace_pattern=" *"))
    elif name == "documents":
        options = SourceOptions(documents=(("urn:a", "{}"),))
    else:
        other = next(value for value in get_args(OPTIONS[name]) if value != default)
        options = dataclasses.replace(SourceOptions(), **{name: other})
    assert _digest(options=options) != _digest()


def test_a_field_that_is_added_is_in_the_key_by_itself() -> None:
    @dataclasses.dataclass(frozen=True)
    class MoreOptions(SourceOptions):
        added: str = "x"

    @dataclasses.dataclass(frozen=True)
    class MoreSource(ConstraintSource):
        added: str = "x"

    assert len({_digest(options=MoreOptions()), _digest(options=MoreOptions(added="y"))}) == 2
    assert len({_digest(MoreSource("regex", "a")), _digest(MoreSource("regex", "a", added="y"))}) == 2


def test_the_order_of_documents_does_not_matter() -> None:
    one, other = (("urn:a", "{}"), ("urn:b", "{}")), (("urn:b", "{ }"), ("urn:a", "{ }"))
    assert _digest(options=SourceOptions(documents=one)) == _digest(options=SourceOptions(documents=other))


def test_a_schema_in_a_part_is_read_as_one() -> None:
    parts = [ConstraintSource("sequence", parts=(ConstraintSource("json_schema", text),)) for text in ("{}", "{ }")]
    assert _digest(parts[0]) == _digest(parts[1])


def test_the_version_is_that_of_the_code_and_the_same_in_every_process() -> None:
    program = "from services.constraint.cache import engine_version; print(engine_version())"
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == engine_version()


def test_a_change_of_any_source_file_is_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "core" / "inner").mkdir(parents=True)
    file = tmp_path / "core" / "inner" / "some.py"
    monkeypatch.setattr(key, "_PACKAGE", tmp_path)
    seen = set()
    for content in ("a = 1", "a = 2"):
        file.write_text(content)
        seen.add(engine_version.__wrapped__())
    file.rename(file.with_name("other.py"))
    seen.add(engine_version.__wrapped__())
    assert len(seen) == 3


def test_a_compile_comes_out_the_same_in_every_process() -> None:
    """Warm states name the tables' own numbers; where a compile came out differently they would not be taken."""
    schema = {
        "type": "object",
        "properties": {
            name: {"enum": ["x", 1, None, name], "type": ["string", "integer", "null"]} for name in "abcdef"
        },
        "patternProperties": {"^x": {"type": "integer"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b", "c"]}],
    }
    program = (
        "import hashlib, sys; from services.constraint.compiling import compile_source;"
        "from services.constraint.sources import ConstraintSource, SourceOptions;"
        "stored = compile_source(ConstraintSource('json_schema', sys.argv[1]), SourceOptions());"
        "print(hashlib.sha256(stored.compiled).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program, json.dumps(schema)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
