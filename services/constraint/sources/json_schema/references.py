"""Finds what a reference names: in the document, in documents passed along, in metaschemas. Nothing is ever fetched.

A *place* is where a schema stands: its JSON Pointer in the document itself, `uri#pointer` in another one. A *resource*
is a schema with a URI of its own, the root of a document or one with `$id`; its place stands for it. Dynamic references
depend on the *scope*: the resources that evaluation has entered, outermost first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, cached_property
from typing import NoReturn, TypeAlias
from urllib.parse import unquote, urljoin

from services.constraint.sources.json_schema.document import draft_of, parse, step
from services.constraint.sources.json_schema.keywords import SINCE, UNTIL
from services.constraint.sources.json_schema.nodes import Json
from services.constraint.sources.source import SourceOptions
from services.rpckit.status import GrammarSyntax, InvalidRequest, ServiceError, UnsupportedConstruct

Scope: TypeAlias = tuple[str, ...]

# The keywords that hold schemas, by the shape of their value.
_ONE = frozenset(
    [
        "additionalItems",
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    ]
)
_LIST = frozenset(["allOf", "anyOf", "items", "oneOf", "prefixItems"])
_NAMED = frozenset(
    ["$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"],
)
_INDEX = re.compile("0|[1-9][0-9]*")
_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*:")
# Behind the places of the document itself, whose numbers are those of keywords and list items.
_OTHER_DOCUMENT = 1 << 32


class References:
    """The places of a document and of those that it refers to."""

    def __init__(self, document: Json, options: SourceOptions) -> None:
        """Parse the documents of the options; what they name is looked at when first asked for.

        Raises:
            InvalidRequest: a document's URI is not absolute, has a fragment, or stands twice.
            GrammarSyntax, GrammarTooLarge: as `document.parse` does.
        """
        self._documents: dict[str, Json] = {"": document, **_parsed(options)}
        self._default_draft = options.default_draft

    @property
    def has_dynamic(self) -> bool:
        """Whether any schema within reach has a reference that depends on the scope."""
        return self._index.has_dynamic

    def resolve(self, reference: str, at: str, keyword: str = "$ref") -> str:
        """Return the place of the schema that a reference names, which stands in the schema at `at`.

        Raises:
            UnsupportedConstruct: it names nothing within reach.
        """
        return self._find(reference, at, keyword)[0]

    def resolve_dynamic(self, reference: str, at: str, scope: Scope) -> str:
        """Return the place that a `$dynamicRef` names. Raises as `resolve` does."""
        place, resource, anchor = self._find(reference, at, "$dynamicRef")
        dynamic = self._index.dynamic_anchors
        if dynamic.get((resource, anchor)) == place:
            for outer in scope:
                if (outer, anchor) in dynamic:
                    return dynamic[outer, anchor]
        return place

    def resolve_recursive(self, reference: str, at: str, scope: Scope) -> str:
        """Return the place that a `$recursiveRef` names. Raises as `resolve` does."""
        place = self.resolve(reference, at, "$recursiveRef")
        recursive = self._index.recursive_anchors
        return next((outer for outer in scope if outer in recursive), place) if place in recursive else place

    def entered(self, scope: Scope, place: str) -> Scope:
        """Return the scope within the schema at a place, without the resources that make no difference."""
        index = self._index
        if not index.has_dynamic:
            return scope
        resource = self.resource_of(place)
        return scope if resource in scope or resource not in index.dynamic_resources else (*scope, resource)

    def resource_of(self, place: str) -> str:
        """Return the resource that a place belongs to."""
        bases = self._index.bases
        while place not in bases:
            place = place.rpartition("/")[0]
        return place

    def draft_at(self, place: str) -> int:
        """Return the draft by which the schema at a place is read."""
        return self._index.drafts[self.resource_of(place)]

    def get(self, place: str) -> Json:
        """Return the value at a place that `resolve` gave."""
        uri, tokens = _split(place)
        value = self._documents[uri]
        for token in tokens:
            value = value[int(token)] if isinstance(value, list) else value[token]  # type: ignore[index]
        return value

    def order(self, place: str) -> tuple[int, ...]:
        """Return where a place stands: the number of each value on the way to it among its neighbours.

        Other documents come behind the document itself.
        """
        uri, tokens = _split(place)
        value = self._documents[uri]
        order = [_OTHER_DOCUMENT, list(self._documents).index(uri)] if uri else []
        for token in tokens:
            if isinstance(value, list):
                order.append(int(token))
                value = value[int(token)]
            else:
                assert isinstance(value, dict)
                order.append(list(value).index(token))
                value = value[token]
        return tuple(order)

    @cached_property
    def _index(self) -> _Index:
        """What has a name in the document and in all documents that references lead to."""
        index = _Index(self._default_draft)
        index.add("", self._documents[""])
        while index.referenced:
            uri = index.referenced.pop()
            if uri in index.resources:
                continue
            if uri not in self._documents and uri in _metaschemas():
                self._documents[uri] = _metaschemas()[uri]
            # What is not the URI of a document may be that of a resource in one.
            for other in [uri] if uri in self._documents else self._documents:
                if other not in index.resources:
                    index.add(other, self._documents[other])
        return index

    def _find(self, reference: str, at: str, keyword: str) -> tuple[str, str, str]:
        """Return the place that a reference names, the resource that its URI names, and the anchor, if it has one."""
        index = self._index
        uri, fragment = _absolute(index.bases[self.resource_of(at)], reference)
        resource = index.resources.get(uri)
        if resource is None:
            _refuse(reference, at, keyword, f"{uri}, which is not among the documents: pass it in options.documents")
        if not fragment:
            return resource, resource, ""
        if fragment.startswith("/"):
            return self._at_pointer(resource, fragment, reference, at, keyword), resource, ""
        place = index.anchors.get((resource, fragment))
        if place is None:
            _refuse(reference, at, keyword, "an anchor that this document does not have")
        return place, resource, fragment

    def _at_pointer(self, resource: str, pointer: str, reference: str, at: str, keyword: str) -> str:
        value, place = self.get(resource), resource
        for token in _tokens(pointer):
            if isinstance(value, dict) and token in value:
                value = value[token]
            elif isinstance(value, list) and _INDEX.fullmatch(token) and int(token) < len(value):
                value = value[int(token)]
            else:
                _refuse(reference, at, keyword, "a place that this document does not have")
            place = step(place, token)
        return place


class _Index:
    """The names in documents: URIs of resources, anchors within each."""

    def __init__(self, default_draft: int) -> None:
        self.resources: dict[str, str] = {}  # by URI; where two have one URI, the first
        self.bases: dict[str, str] = {}  # URI of each resource
        self.drafts: dict[str, int] = {}  # of each resource
        self.anchors: dict[tuple[str, str], str] = {}  # place by resource and name
        self.dynamic_anchors: dict[tuple[str, str], str] = {}
        self.recursive_anchors: set[str] = set()  # resources
        self.dynamic_resources: set[str] = set()  # with dynamic or recursive anchors
        self.referenced: list[str] = []  # URIs
        self.has_dynamic = False
        self._default_draft = default_draft

    def add(self, uri: str, document: Json) -> None:
        """Read a document, which is a resource by the URI that it was passed by as well as by its `$id`."""
        root = f"{uri}#" if uri else ""
        self._add_resource(uri, root, draft_of(document, self._default_draft, root))
        waiting = [(document, root, root)]
        while waiting:
            schema, place, resource = waiting.pop()
            if isinstance(schema, dict):
                resource = self._name(schema, place, resource)
                self._refer(schema, resource)
                inner = [(member, at, resource) for member, at in _subschemas(schema, place, self.drafts[resource])]
                waiting.extend(reversed(inner))

    def _add_resource(self, uri: str, place: str, draft: int) -> None:
        self.resources.setdefault(uri, place)
        self.bases[place] = uri
        self.drafts[place] = draft

    def _name(self, schema: dict[str, Json], place: str, resource: str) -> str:
        """Note a schema's names, and return the resource it belongs to: itself where it has a URI."""
        draft = self.drafts[resource]
        if "$schema" in schema and place != resource and ("$id" in schema or "id" in schema):
            draft = draft_of(schema, draft, place)
        identifier = _named(schema, "id" if draft == 4 else "$id", place)
        # Up to draft 7 an `$id` beside `$ref` has no meaning, and one that is a fragment is an anchor.
        if identifier is not None and not (draft <= 7 and "$ref" in schema):
            base = self.bases[resource]
            uri, fragment = _absolute(base, identifier)
            if uri != base:
                resource = place
                self._add_resource(uri, place, draft)
            if fragment and draft <= 7:
                self.anchors.setdefault((resource, fragment), place)
        if draft >= 2019:
            anchor = _named(schema, "$anchor", place)
            if anchor is not None:
                self.anchors.setdefault((resource, anchor), place)
        if draft == 2019 and schema.get("$recursiveAnchor") is True and place == resource:
            self.recursive_anchors.add(resource)
            self.dynamic_resources.add(resource)
        if draft >= 2020:
            anchor = _named(schema, "$dynamicAnchor", place)
            if anchor is not None:
                self.anchors.setdefault((resource, anchor), place)
                self.dynamic_anchors.setdefault((resource, anchor), place)
                self.dynamic_resources.add(resource)
        return resource

    def _refer(self, schema: dict[str, Json], resource: str) -> None:
        draft = self.drafts[resource]
        if ("$dynamicRef" in schema and draft >= 2020) or ("$recursiveRef" in schema and draft == 2019):
            self.has_dynamic = True
        for keyword in ("$ref", "$dynamicRef"):
            reference = schema.get(keyword)
            if isinstance(reference, str) and not reference.startswith("#"):
                self.referenced.append(_absolute(self.bases[resource], reference)[0])


def _named(schema: dict[str, Json], keyword: str, place: str) -> str | None:
    if keyword not in schema:
        return None
    name = schema[keyword]
    if not isinstance(name, str):
        raise GrammarSyntax(
            f"{place}/{keyword}: {keyword} must be a string", keyword=keyword, pointer=f"{place}/{keyword}"
        )
    return name


def _subschemas(schema: dict[str, Json], place: str, draft: int) -> Iterator[tuple[Json, str]]:
    """Yield the schemas directly within a schema, and their places: not what only looks like one, as in `enum`."""
    for keyword, value in schema.items():
        if not isinstance(value, dict | list) or not SINCE.get(keyword, 0) <= draft <= UNTIL.get(keyword, draft):
            continue
        at = f"{place}/{keyword}"
        if isinstance(value, list):
            if keyword in _LIST:
                yield from ((item, f"{at}/{index}") for index, item in enumerate(value))
        elif keyword in _ONE:
            yield value, at
        elif keyword in _NAMED:
            yield from ((member, step(at, name)) for name, member in value.items())


def _parsed(options: SourceOptions) -> dict[str, Json]:
    documents: dict[str, Json] = {}
    for name, text in options.documents:
        uri, _, fragment = name.partition("#")
        if fragment or not _SCHEME.match(uri) or uri in documents:
            raise InvalidRequest(
                f"`documents` has the URI {name!r}; each must be absolute, without a fragment, and stand once",
                field="options.documents",
            )
        try:
            documents[uri] = parse(text)
        except ServiceError as error:
            error.message = f"the document {uri}: {error.message}"
            error.args = (error.message,)
            error.metadata["document"] = uri
            raise
    return documents


@cache
def _metaschemas() -> dict[str, Json]:
    # Imported here because it reads all its files, and few schemas refer to one.
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]  # noqa: PLC0415

    return {uri: REGISTRY.contents(uri) for uri in REGISTRY}


def _absolute(base: str, reference: str) -> tuple[str, str]:
    """Return the absolute URI that a reference means at a base, and its fragment, decoded."""
    relative, _, fragment = reference.partition("#")
    try:
        # `urljoin` would lose a base such as urn:x, whose scheme it does not take for hierarchical.
        uri = urljoin(base, relative) if relative else base
    except ValueError:  # no URI, and so the name of nothing
        uri = relative
    return uri, unquote(fragment)


def _split(place: str) -> tuple[str, list[str]]:
    """Return the URI of a place's document, "" for the document itself, and the tokens of its pointer."""
    uri, _, pointer = ("", "", place) if place[:1] in ("", "/") else place.partition("#")
    return uri, _tokens(pointer)


def _tokens(pointer: str) -> list[str]:
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]


def _refuse(reference: str, at: str, keyword: str, why: str) -> NoReturn:
    raise UnsupportedConstruct(
        f"{at}/{keyword}: {reference!r} names {why}", name=keyword, keyword=keyword, pointer=f"{at}/{keyword}"
    )
