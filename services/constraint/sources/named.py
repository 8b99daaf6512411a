"""The named grammars: Lark files that come with the service. The first comment line of a file describes it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from services.rpckit.status import UnknownGrammar


@dataclass(frozen=True, slots=True)
class NamedGrammar:
    """A grammar that the service carries."""

    name: str
    description: str
    text: str


def list_grammars() -> tuple[NamedGrammar, ...]:
    """Return the named grammars by name."""
    return tuple(_grammars().values())


def grammar_text(name: str) -> str:
    """Return the text of a named grammar.

    Raises:
        UnknownGrammar: there is none of this name; metadata lists the names.
    """
    grammar = _grammars().get(name)
    if grammar is None:
        names = ", ".join(_grammars())
        raise UnknownGrammar(f"no grammar is named {name!r}; there are: {names}", name=name, names=names)
    return grammar.text


@lru_cache(maxsize=1)
def _grammars() -> dict[str, NamedGrammar]:
    # A wheel carries them inside the package (pyproject's force-include); an editable install reads the repository's
    # directory.
    packaged = Path(str(resources.files("services.constraint"))) / "named_grammars"
    directory = packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / "grammars"
    grammars = {}
    for path in sorted(directory.glob("*.lark")):
        text = path.read_text(encoding="utf-8")
        first_line = text.partition("\n")[0]
        grammars[path.stem] = NamedGrammar(path.stem, first_line.removeprefix("//").strip(), text)
    return grammars
