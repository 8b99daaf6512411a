"""What a compiled grammar is found by: a digest of everything that it depends on, the same in every process."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, fields, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from services.constraint.core.engine import Forcing
from services.constraint.sources import ConstraintSource, SourceOptions

_PACKAGE: Final = Path(__file__).parents[1]
# What turns a source into a compiled grammar.
_ENGINE: Final = ("core", "sources", "compiling.py", "stored_grammar.py")
# Libraries that have a say in it.
_LIBRARIES: Final = ("lark",)


def digest_of(
    source: ConstraintSource, options: SourceOptions, forcing: Forcing, *, vocabulary_digest: str, version: str
) -> str:
    """Digest what a compiled grammar depends on; `version` is `engine_version()`.

    All fields of source and options take part, by whatever name. White space in a JSON Schema does not, nor does the
    order of documents; the order of members does, because it is the order in the output.
    """
    documents = sorted((uri, canonical_json(schema)) for uri, schema in options.documents)
    options = replace(options, documents=tuple(documents))
    parts = [version, vocabulary_digest, _source_parts(source), asdict(options), forcing]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@lru_cache(maxsize=1)
def engine_version() -> str:
    """Return what tells this engine from every other one: a digest of its code and of what it is built on.

    So nobody has to remember to raise a number, and replicas of two releases never share an entry.
    """
    digest = hashlib.sha256(platform.python_version().encode())
    for library in _LIBRARIES:
        digest.update(f"\0{library}\0{version(library)}".encode())
    for path in sorted(_files()):
        digest.update(b"\0%b\0" % path.relative_to(_PACKAGE).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _files() -> list[Path]:
    found = [_PACKAGE / name for name in _ENGINE]
    inside = [path for root in found if root.is_dir() for path in root.rglob("*") if path.is_file()]
    return [path for path in (*found, *inside) if path.is_file() and "__pycache__" not in path.parts]


def _source_parts(source: ConstraintSource) -> dict[str, Any]:
    values = {field.name: getattr(source, field.name) for field in fields(source)}
    if source.kind == "json_schema" and source.text is not None:
        values["text"] = canonical_json(source.text)
    values["parts"] = [_source_parts(part) for part in source.parts]
    return values


def canonical_json(text: str) -> str:
    """Rewrite a JSON text so that two texts are equal exactly when they differ in white space and string escapes alone.

    Member order, repeated members and the spelling of numbers are kept. What is not JSON is returned as it is: the
    compiler says what is wrong.
    """

    def tagged(tag: str) -> Any:
        # Objects become arrays of pairs under a tag, so that no text of the source can look like a tag.
        return lambda value: {tag: value}

    try:
        value = json.loads(
            text,
            object_pairs_hook=tagged("object"),
            parse_int=tagged("integer"),
            parse_float=tagged("number"),
            parse_constant=tagged("constant"),
        )
        return json.dumps(value, separators=(",", ":"))
    except (ValueError, RecursionError):
        return text
