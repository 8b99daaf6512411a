"""The schema's text as a JSON document: parsing with exact numbers, JSON Pointers, the draft."""

from __future__ import annotations

import json
from decimal import MAX_EMAX, Decimal, InvalidOperation
from typing import NoReturn

from services.constraint.sources.json_schema.keywords import DEFAULT_DRAFT, DRAFTS
from services.constraint.sources.json_schema.nodes import Json
from services.rpckit.status import GrammarSyntax, GrammarTooLarge, UnsupportedConstruct

MAX_SCHEMA_BYTES = 2_000_000
# Schemas within schemas; each level costs a few Python stack frames here and in the core.
MAX_SCHEMA_DEPTH = 80


def parse(text: str) -> Json:
    """Parse a schema's text; numbers with a point or an exponent become Decimals.

    Raises:
        GrammarSyntax: not JSON (line and column), a key twice in one object, NaN or Infinity, a lone surrogate.
        GrammarTooLarge: beyond MAX_SCHEMA_BYTES, or nested beyond what a parser takes.
    """
    if len(text) > MAX_SCHEMA_BYTES:
        raise GrammarTooLarge(
            f"the schema has {len(text)} characters; the limit max_schema_bytes is {MAX_SCHEMA_BYTES}",
            limit="max_schema_bytes",
            value=MAX_SCHEMA_BYTES,
        )
    try:
        if text.startswith("\ufeff"):
            raise json.JSONDecodeError("Unexpected UTF-8 BOM", text, 0)
        document: Json = _DECODER.decode(text)
        if "\\u" in text or not text.isascii():
            json.dumps(document, ensure_ascii=False, default=str).encode()
    except json.JSONDecodeError as error:
        raise GrammarSyntax(
            f"the schema is not JSON: {error.msg} at line {error.lineno}, column {error.colno}",
            line=error.lineno,
            column=error.colno,
        ) from None
    except UnicodeEncodeError:
        raise GrammarSyntax(
            "the schema has a lone surrogate (such as \\ud800), which is not a character", pointer=""
        ) from None
    except RecursionError:
        raise too_deep("") from None
    except InvalidOperation:
        raise GrammarTooLarge(
            "a number of the schema has an exponent beyond what decimals hold", limit="max_exponent", value=MAX_EMAX
        ) from None
    except ValueError as error:  # an integer of more digits than Python reads
        raise GrammarTooLarge(
            f"a number of the schema is too long: {error}", limit="max_number_digits", value=4300
        ) from None
    return document


def too_deep(pointer: str) -> GrammarTooLarge:
    """Return the error for a schema that is nested too deep."""
    return GrammarTooLarge(
        f"the schema is nested deeper than {MAX_SCHEMA_DEPTH} levels (limit max_schema_depth); move parts to $defs",
        limit="max_schema_depth",
        value=MAX_SCHEMA_DEPTH,
        pointer=pointer,
    )


def _refuse_constant(name: str) -> NoReturn:
    raise GrammarSyntax(f"the schema is not JSON: {name} is not a JSON value", pointer="")


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise GrammarSyntax(f"the key {key!r} stands twice in one object of the schema", key=key)
            seen.add(key)
    return result


_DECODER = json.JSONDecoder(parse_float=Decimal, parse_constant=_refuse_constant, object_pairs_hook=_unique)


def step(pointer: str, key: str | int) -> str:
    """Return the pointer of a member."""
    if isinstance(key, int):
        return f"{pointer}/{key}"
    if "~" in key or "/" in key:
        key = key.replace("~", "~0").replace("/", "~1")
    return f"{pointer}/{key}"


def draft_of(schema: Json, default: int = DEFAULT_DRAFT, place: str = "") -> int:
    """Return the draft that the `$schema` of a schema names: 4, 6, 7, 2019 or 2020; the default where it has none.

    Raises:
        GrammarSyntax: `$schema` is not a string.
        UnsupportedConstruct: another dialect.
    """
    if not isinstance(schema, dict) or "$schema" not in schema:
        return default
    name, pointer = schema["$schema"], f"{place}/$schema"
    if not isinstance(name, str):
        raise GrammarSyntax(f"{pointer} must be a string", pointer=pointer)
    draft = DRAFTS.get(name.rstrip("#")) or DRAFTS.get(
        name.rstrip("#").replace("http://json-schema.org/draft/2", "https://json-schema.org/draft/2")
    )
    if draft is None:
        raise UnsupportedConstruct(
            f"{pointer}: the dialect {name!r} is not known; drafts 4, 6, 7, 2019-09 and 2020-12 are",
            name="$schema",
            pointer=pointer,
        )
    return draft
