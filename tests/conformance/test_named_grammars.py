"""Each named grammar with texts that it takes and texts that it does not (byte for byte.

So a line break at the end counts), for both our grammar and Lark.
"""

from pathlib import Path

import pytest

from services.constraint.core.engine import compile_grammar
from services.constraint.sources import ConstraintSource, SourceOptions, build, named
from services.constraint.validation import validate
from services.rpckit.status import UnknownGrammar
from tests.support.derivation import matches

CASES = sorted((Path(__file__).parent / "grammars").glob("*/*/*.txt"))


def test_every_grammar_has_cases_and_a_description() -> None:
    assert {grammar.name for grammar in named.list_grammars()} == {path.parts[-3] for path in CASES}
    for grammar in named.list_grammars():
        assert grammar.text.startswith("// ")
        assert grammar.description.endswith(".")


@pytest.mark.parametrize("path", CASES, ids=lambda path: "/".join(path.parts[-3:]))
def test_case(path: Path) -> None:
    name, kind = path.parts[-3:-1]
    source = ConstraintSource("lark", named.grammar_text(name))
    text = path.read_bytes()
    assert (validate(source, SourceOptions(), text) == []) == (kind == "accept")
    assert matches(build(source, SourceOptions()).grammar, text) == (kind == "accept")


@pytest.mark.parametrize("name", [grammar.name for grammar in named.list_grammars()])
def test_the_core_compiles_it(name: str) -> None:
    compiled = compile_grammar(build(ConstraintSource("lark", named.grammar_text(name)), SourceOptions()).grammar)
    assert compiled.to_bytes()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownGrammar) as caught:
        named.grammar_text("../../etc/passwd")
    assert "arithmetic" in caught.value.metadata["names"]
