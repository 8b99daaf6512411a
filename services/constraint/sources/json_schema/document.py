"""The schema's text as a JSON document: parsing with exact numbers, JSON Pointers, and what a `$ref` names."""

from __future__ import annotations

import json
from decimal import MAX_EMAX, Decimal, InvalidOperation
from typing import NoReturn, TypeAlias
from urllib.parse import unquote, urldefrag, urljoin

from services.constraint.sources.json_schema.keywords import DEFAULT_DRAFT, DRAFTS
from services.constraint.sources.json_schema.nodes import Json
from services.rpckit.status import GrammarSyntax, GrammarTooLarge, UnsupportedConstruct

MAX_SCHEMA_BYTES = 2_000_000
# Where a value is: the path of what it is in and its key there; None for the document itself.
_Path: TypeAlias = "tuple[_Path, str | int] | None"
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


class References:
    """Finds what a `$ref` names within one document; nothing is ever fetched."""

    def __init__(self, document: Json, draft: int) -> None:
        self._document = document
        self._id_keyword = "id" if draft == 4 else "$id"
        self._draft = draft
        self._resources: dict[str, str] | None = None  # absolute URI -> pointer
        self._anchors: dict[tuple[str, str], str] = {}
        self._base_of: dict[str, str] = {}
        self._resolved: dict[tuple[str, str], str] = {}  # (base, reference) -> pointer

    def resolve(self, reference: str, at: str) -> str:
        """Return the pointer of the schema that a `$ref`, found at the pointer `at`, names.

        Raises:
            UnsupportedConstruct: it names another document, or nothing.
        """
        if self._resources is None:
            self._resources = self._index()
        base = self._base(at)
        pointer = self._resolved.get((base, reference))
        if pointer is None:
            pointer = self._resolved[base, reference] = self._find(self._resources, base, reference, at)
        return pointer

    def _find(self, resources: dict[str, str], base: str, reference: str, at: str) -> str:
        uri, fragment = urldefrag(urljoin(base, reference))
        root = resources.get(uri)
        if root is None:
            self._refuse(reference, at, "another document, and none is ever fetched; put the schema under $defs")
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            target = self._anchors.get((uri, fragment))
            if target is None:
                self._refuse(reference, at, "an anchor that this document does not have")
            return target
        pointer = root + fragment
        self._check(pointer, reference, at)
        return pointer

    def get(self, pointer: str) -> Json:
        """Return the value at a pointer that `resolve` gave."""
        value = self._document
        for part in pointer.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            value = value[int(part)] if isinstance(value, list) else value[part]  # type: ignore[index]
        return value

    def order(self, pointer: str) -> tuple[int, ...]:
        """Return where the value at a pointer stands: the number of each value on the way among its neighbours."""
        value, order = self._document, []
        for part in pointer.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, list):
                order.append(int(part))
                value = value[int(part)]
            else:
                assert isinstance(value, dict)
                order.append(list(value).index(part))
                value = value[part]
        return tuple(order)

    def _check(self, pointer: str, reference: str, at: str) -> None:
        try:
            self.get(pointer)
        except (KeyError, IndexError, ValueError, TypeError):
            self._refuse(reference, at, "a place that this document does not have")

    def _refuse(self, reference: str, at: str, why: str) -> NoReturn:
        raise UnsupportedConstruct(
            f"{at}/$ref: {reference!r} names {why}", name="$ref", keyword="$ref", pointer=f"{at}/$ref"
        )

    def _base(self, at: str) -> str:
        while len(self._base_of) > 1 and at not in self._base_of:
            at = at.rpartition("/")[0]
        return self._base_of[at if at in self._base_of else ""]

    def _index(self) -> dict[str, str]:
        """Note anchors and bases, and return the pointers of all resources by their absolute URIs."""
        resources = {"": ""}
        self._base_of[""] = ""
        # A value, where it is (the path of what it is in and its key there) and the base URI there.
        todo: list[tuple[Json, _Path, str]] = [(self._document, None, "")]
        while todo:
            value, path, base = todo.pop()
            if isinstance(value, list):
                todo.extend(
                    [(item, (path, index), base) for index, item in enumerate(value) if isinstance(item, dict | list)]
                )
                continue
            if not isinstance(value, dict):
                continue
            identifier = value.get(self._id_keyword)
            # Up to draft 7, `$id` beside `$ref` has no meaning.
            if isinstance(identifier, str) and not (self._draft <= 7 and "$ref" in value):
                uri, fragment = urldefrag(urljoin(base, identifier))
                if fragment and self._draft <= 7:
                    self._anchors[uri, unquote(fragment)] = _pointer(path)
                if uri != base:
                    base = uri
                    self._base_of[_pointer(path)] = base
                    resources[base] = _pointer(path)
            anchor = value.get("$anchor")
            if isinstance(anchor, str):
                self._anchors[base, anchor] = _pointer(path)
            todo.extend(
                [
                    (member, (path, key), base)
                    for key, member in value.items()
                    if isinstance(member, dict | list) and key not in ("enum", "const")
                ]
            )
        return resources


def _pointer(path: _Path) -> str:
    parts = []
    while path is not None:
        path, key = path
        parts.append(step("", key))
    return "".join(reversed(parts))
