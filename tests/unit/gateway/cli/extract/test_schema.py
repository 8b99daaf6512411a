"""Schemas of files and of Python types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.cli.errors import CommandError
from gateway.cli.extract.schema import columns_of, read_schema

MODELS = '''
from __future__ import annotations
from dataclasses import dataclass
from pydantic import BaseModel, Field

class City(BaseModel):
    """A city."""
    name: str = Field(max_length=20)
    population: int

class Tree(BaseModel):
    label: str
    children: list[Tree]

@dataclass
class Point:
    x: float
    y: float = 0

class Thing:
    pass
'''


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models_of_a_user.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "models_of_a_user", raising=False)


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "a:b.json").write_text('{"type": "object"}')
    assert read_schema(str(tmp_path / "a:b.json")) == '{"type": "object"}'


@pytest.mark.usefixtures("models")
def test_python_types_of_the_working_directory() -> None:
    city = json.loads(read_schema("models_of_a_user:City"))
    assert city["properties"]["name"]["maxLength"] == 20
    assert columns_of(json.dumps(city)) == ["name", "population"]
    assert json.loads(read_schema("models_of_a_user:Point"))["required"] == ["x"]


@pytest.mark.usefixtures("models")
def test_columns_of_a_type_that_refers_to_itself() -> None:
    assert columns_of(read_schema("models_of_a_user:Tree")) == ["label", "children"]


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("name", ["nobody:City", "models_of_a_user:Nobody", "models_of_a_user:Thing", "nofile.json"])
def test_what_is_no_schema(name: str) -> None:
    with pytest.raises(CommandError, match=r"nobody|Nobody|Thing|nofile"):
        read_schema(name)


@pytest.mark.parametrize("schema", ["true", "{", '{"type": "array"}', '{"$ref": "#/nowhere"}'])
def test_no_columns(schema: str) -> None:
    assert columns_of(schema) == []
