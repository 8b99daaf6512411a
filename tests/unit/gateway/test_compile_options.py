"""The options of a constraint on their way from the command line to the constraint service."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from espalier.v1 import constraint_pb2, gateway_pb2, types_pb2
from google.protobuf.descriptor import EnumDescriptor

from gateway.cli.client import make_options
from gateway.cli.errors import CommandError
from gateway.cli.generate import read_options
from gateway.clients import constraint as client
from gateway.contract import read_generation
from gateway.decode.interfaces import CompileOptions
from services.constraint import servicer
from services.constraint.sources import SourceOptions
from services.rpckit.enums import word_of
from services.rpckit.status import InvalidRequest

EVERY: dict[str, Any] = {
    "whitespace": "pattern",
    "whitespace_pattern": " ?",
    "property_order": "any",
    "format": "annotation",
    "unknown_formats": "error",
    "integers": "plain",
    "escapes": "plain",
    "default_draft": 2019,
    "lexer": "contextual",
    "documents": (("urn:a", "true"), ("urn:b", '{"$ref": "urn:a"}')),
}


def sent(options: types_pb2.CompileOptions) -> CompileOptions:
    """Return what the gateway reads."""
    generation = gateway_pb2.Generation(
        prompt="x", constraint=types_pb2.Constraint(json_schema="{}"), compile_options=options
    )
    request = gateway_pb2.GenerateRequest(generation=generation)
    return read_generation(request, request.generation).compile_options


def received(options: CompileOptions) -> tuple[SourceOptions, str]:
    """Return what the constraint service reads."""
    request = constraint_pb2.CompileRequest(options=client._options(options))
    return servicer._options(constraint_pb2.CompileRequest.FromString(request.SerializeToString()).options)


def test_every_option_arrives() -> None:
    options = sent(make_options(EVERY))
    assert {name: getattr(options, name) for name in EVERY} == EVERY
    assert received(options) == (SourceOptions(**EVERY), "canonical")


def test_options_that_are_not_set_have_their_defaults_everywhere() -> None:
    assert sent(make_options({})) == CompileOptions()
    assert received(CompileOptions()) == (SourceOptions(), "canonical")
    assert servicer._options(types_pb2.CompileOptions()) == (SourceOptions(), "canonical")


def words(enum: EnumDescriptor) -> set[str]:
    return {word_of(enum, value.number) for value in enum.values if value.number}


def test_contract_and_plain_types_have_the_same_words() -> None:
    source, gateway = get_type_hints(SourceOptions), get_type_hints(CompileOptions)
    assert {field.name for field in fields(CompileOptions)} == {field.name for field in fields(SourceOptions)} | {
        "forcing"
    }
    assert {field.name for field in fields(CompileOptions)} == set(types_pb2.CompileOptions.DESCRIPTOR.fields_by_name)
    for field in types_pb2.CompileOptions.DESCRIPTOR.fields:
        if field.name == "default_draft":
            assert set(get_args(source[field.name])) == set(types_pb2.Draft.values()) - {0}
        elif field.enum_type is not None:
            assert set(get_args(gateway[field.name])) == words(field.enum_type)
        if field.name in source:
            assert source[field.name] == gateway[field.name]


@pytest.mark.parametrize("name", ["whitespace", "property_order", "unknown_formats", "default_draft"])
def test_values_of_a_newer_contract_are_refused_by_name(name: str) -> None:
    newer = types_pb2.CompileOptions()
    setattr(newer, name, 99)
    with pytest.raises(InvalidRequest) as at_gateway:
        sent(newer)
    assert at_gateway.value.field == f"generation.compile_options.{name}"
    with pytest.raises(InvalidRequest) as at_service:
        servicer._options(newer)
    assert at_service.value.field == f"options.{name}"


@pytest.mark.parametrize("options", [{"whitespace": "pattern"}, {"whitespace_pattern": " *"}])
def test_a_pattern_of_white_space_goes_with_its_kind(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        servicer._options(make_options(options))
    assert refused.value.field == "options.whitespace_pattern"


def test_flags_are_read(tmp_path: Path) -> None:
    assert read_options(whitespace=None) == {}
    assert read_options(default_draft="7", format="annotation", integers=None) == {
        "default_draft": 7,
        "format": "annotation",
    }
    (tmp_path / "a.json").write_text("true")
    assert read_options(documents=(f"http://x/?y=z={tmp_path}/a.json",)) == {"documents": (("http://x/?y=z", "true"),)}


@pytest.mark.parametrize("flag", ["urn:a", "=a.json", "urn:a=", "urn:a=/nowhere/at/all.json"])
def test_what_is_no_document_is_refused(flag: str) -> None:
    with pytest.raises(CommandError):
        read_options(documents=(flag,))
