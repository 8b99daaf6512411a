"""References against `referencing`, over the schemas of the JSON Schema Test Suite that are about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import referencing.jsonschema
from jsonschema_specifications import REGISTRY

from services.constraint.sources import SourceOptions
from services.constraint.sources.json_schema.document import parse
from services.constraint.sources.json_schema.references import References, Scope, _subschemas
from services.rpckit.status import GrammarSyntax, InvalidRequest, UnsupportedConstruct

SUITE = Path(__file__).parents[3] / "conformance" / "json_schema_test_suite"
DRAFTS = {"draft7": 7, "draft2020-12": 2020}
FILES = [
    "anchor",
    "dynamicRef",
    "infinite-loop-detection",
    "ref",
    "refRemote",
    "optional/anchor",
    "optional/cross-draft",
    "optional/dynamicRef",
    "optional/id",
    "optional/refOfUnknownKeyword",
    "optional/unknownKeyword",
]
REMOTES = {
    f"http://localhost:1234/{path.relative_to(SUITE / 'remotes')}": path.read_text()
    for path in sorted((SUITE / "remotes").rglob("*.json"))
}
WITHOUT_REFERENCES = (
    "property named $ref that is not a reference",
    "naive replacement of $ref with its destination is not correct",
)
SCHEMAS = [
    pytest.param(DRAFTS[draft], group["schema"], id=f"{draft} {name}: {group['description']}")
    for draft in DRAFTS
    for name in FILES
    if (SUITE / draft / f"{name}.json").exists()
    for group in json.loads((SUITE / draft / f"{name}.json").read_text())
    if group["description"] not in WITHOUT_REFERENCES
]
SPECIFICATIONS = {
    4: referencing.jsonschema.DRAFT4,
    6: referencing.jsonschema.DRAFT6,
    7: referencing.jsonschema.DRAFT7,
    2019: referencing.jsonschema.DRAFT201909,
    2020: referencing.jsonschema.DRAFT202012,
}


def references(schema: object, documents: dict[str, Any] | None = None, draft: Any = 2020) -> References:
    texts = [(uri, json.dumps(document)) for uri, document in (documents or {}).items()]
    return References(parse(json.dumps(schema)), SourceOptions(default_draft=draft, documents=tuple(texts)))


class Walk:
    """Goes wherever references lead, with `References` and with `referencing`, and compares where both arrive."""

    def __init__(self, found: References, draft: int) -> None:
        self.found = found
        self.seen: set[tuple[str, Scope]] = set()
        self.num_compared = 0
        specification = SPECIFICATIONS[draft]
        registry = REGISTRY
        for uri in REMOTES:
            contents = found.get(f"{uri}#")
            known = not isinstance(contents, dict) or "metaschema" not in str(contents.get("$schema"))
            resource = (
                referencing.Resource.from_contents(contents, default_specification=specification)
                if known
                else specification.create_resource(contents)
            )
            registry = registry.with_resource(uri, resource)
        root = referencing.Resource.from_contents(found.get(""), default_specification=specification)
        self.visit("", registry.resolver_with_root(root), ())

    def visit(self, place: str, resolver: Any, scope: Scope) -> None:
        schema, draft = self.found.get(place), self.found.draft_at(place)
        if not isinstance(schema, dict):
            return
        scope = self.found.entered(scope, place)
        if (place, scope) in self.seen:
            return
        self.seen.add((place, scope))
        for keyword in ("$ref", "$dynamicRef"):
            if keyword not in schema or (keyword == "$dynamicRef" and draft < 2020):
                continue
            theirs = resolver.lookup(schema[keyword])
            if keyword == "$ref":
                ours = self.found.resolve(schema[keyword], place)
            else:
                ours = self.found.resolve_dynamic(schema[keyword], place, scope)
            assert self.found.get(ours) is theirs.contents, (place, keyword, ours)
            self.num_compared += 1
            self.visit(ours, theirs.resolver, scope)
        for value, inner in _subschemas(schema, place, draft):
            # What evaluation does not enter would be in no dynamic scope.
            if inner.split("/")[-2] in ("$defs", "definitions"):
                continue
            resource = SPECIFICATIONS[self.found.draft_at(inner)].create_resource(value)
            self.visit(inner, resolver.in_subresource(resource), scope)


@pytest.mark.parametrize(("draft", "schema"), SCHEMAS)
def test_references_name_what_another_library_finds(draft: int, schema: object) -> None:
    documents = {uri: json.loads(text) for uri, text in REMOTES.items()}
    assert Walk(references(schema, documents, draft), draft).num_compared > 0


def test_embedded_resources_have_their_own_drafts_and_bases() -> None:
    found = references(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": "https://a.example/root",
            "$defs": {
                "old": {
                    "$schema": "http://json-schema.org/draft-04/schema#",
                    "id": "old/",
                    "definitions": {"x": {"id": "#name"}},
                },
                "copied": {"$schema": "http://json-schema.org/draft-04/schema#", "$anchor": "c"},
            },
        }
    )
    assert found.draft_at("") == found.draft_at("/$defs/copied") == 2020
    assert found.draft_at("/$defs/old/definitions/x") == 4
    assert found.resource_of("/$defs/old/definitions/x") == "/$defs/old"
    assert found.resolve("old/#name", "") == "/$defs/old/definitions/x"
    assert found.resolve("#/definitions/x", "/$defs/old") == "/$defs/old/definitions/x"
    assert found.resolve("../root#c", "/$defs/old") == "/$defs/copied"


def test_documents_have_their_own_drafts() -> None:
    documents = {"urn:old": {"$schema": "http://json-schema.org/draft-06/schema#"}, "urn:plain": {"$ref": "urn:old"}}
    found = references({"$ref": "urn:plain"}, documents, draft=7)
    assert found.draft_at("") == found.draft_at(found.resolve("urn:plain", "")) == 7
    assert found.draft_at(found.resolve("urn:old", "")) == 6
    assert found.get("urn:plain#/$ref") == "urn:old"


def test_places_of_other_documents_come_behind() -> None:
    found = references({"a": [{}], "b": {"$ref": "urn:x#/d"}, "$ref": "urn:x"}, {"urn:x": {"c": 1, "d": {"e": True}}})
    places = ["urn:x#/d/e", "/b", "urn:x#/c", "/a/0"]
    assert sorted(places, key=found.order) == ["/a/0", "/b", "urn:x#/c", "urn:x#/d/e"]
    assert found.order("/a/0") == (0, 0)


def test_one_place_has_one_name() -> None:
    found = references({"$id": "http://x/y", "$defs": {"a~/%": {"$id": "http://x/z", "items": [{}]}}})
    place = "/$defs/a~0~1%/items/0"
    for reference in ["#/$defs/a~0~1%25/items/0", "z#/items/0", "http://x/z#%2Fitems%2F0", "//x/z#/items/0"]:
        assert found.resolve(reference, "") == place


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("http://x/other", "http://x/other, which is not among the documents: pass it in options.documents"),
        ("urn:other#/a", "urn:other, which is not among the documents"),
        ("//[::1", "not among the documents"),
        ("#other", "an anchor that this document does not have"),
        ("#not-a-schema", "an anchor"),
        ("#/other", "a place that this document does not have"),
        ("#/allOf/1", "a place"),
        ("#/allOf/-1", "a place"),
        ("#/allOf/00", "a place"),
        ("#/allOf/0/a/b", "a place"),
    ],
)
def test_what_names_nothing_is_refused_by_its_place(reference: str, says: str) -> None:
    schema = {"$id": "http://x/y", "allOf": [{"$ref": reference}], "const": {"$anchor": "not-a-schema"}}
    with pytest.raises(UnsupportedConstruct) as refused:
        references(schema).resolve(reference, "/allOf/0")
    assert says in refused.value.message
    assert refused.value.metadata["pointer"] == "/allOf/0/$ref"


@pytest.mark.parametrize("uri", ["x.json", "http://x/#a", "", "#"])
def test_uris_of_documents_are_absolute(uri: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        references({}, {uri: {}})
    assert refused.value.field == "options.documents"


def test_a_bad_document_is_named() -> None:
    with pytest.raises(GrammarSyntax, match="the document urn:a: ") as syntax:
        References({}, SourceOptions(documents=(("urn:a", "{"),)))
    assert syntax.value.metadata["document"] == "urn:a"
    with pytest.raises(UnsupportedConstruct) as dialect:
        references({"$ref": "urn:a"}, {"urn:a": {"$schema": "urn:mine"}}).resolve("urn:a", "")
    assert dialect.value.metadata["pointer"] == "urn:a#/$schema"


@pytest.mark.parametrize("name", ["$id", "$anchor", "$dynamicAnchor"])
def test_names_are_texts(name: str) -> None:
    with pytest.raises(GrammarSyntax) as syntax:
        references({"items": {name: 5}, "$ref": "#"}).resolve("#", "")
    assert syntax.value.metadata["pointer"] == f"/items/{name}"


def test_metaschemas_are_built_in() -> None:
    for draft in ("draft/2020-12", "draft/2019-09", "draft-07", "draft-06", "draft-04"):
        uri = f"http{'s' if '/' in draft else ''}://json-schema.org/{draft}/schema"
        found = references({"$ref": f"{uri}#"})
        assert found.resolve(f"{uri}#", "") == f"{uri}#"
        assert found.has_dynamic == ("/" in draft)


RECURSIVE = {
    "$schema": "https://json-schema.org/draft/2019-09/schema",
    "$id": "http://x/strict",
    "$recursiveAnchor": True,
    "$ref": "tree",
    "$defs": {
        "tree": {"$id": "tree", "$recursiveAnchor": True, "items": {"$recursiveRef": "#"}},
        "plain": {"$id": "plain", "items": {"$recursiveRef": "#"}},
    },
}


def test_recursive_references_name_the_outermost_anchor() -> None:
    found = references(RECURSIVE)
    tree, at = "/$defs/tree", "/$defs/tree/items"
    assert found.has_dynamic
    assert found.resolve_recursive("#", at, ()) == tree
    assert found.resolve_recursive("#", at, found.entered((), tree)) == tree
    assert found.resolve_recursive("#", at, found.entered(found.entered((), ""), tree)) == ""
    assert found.resolve_recursive("#", "/$defs/plain/items", ("", "/$defs/plain")) == "/$defs/plain"


def test_scopes_hold_only_what_makes_a_difference() -> None:
    found = references(RECURSIVE)
    scope: Scope = ()
    for place in ("", "/$defs/plain", "/$defs/tree", "", "/$defs/tree/items"):
        scope = found.entered(scope, place)
    assert scope == ("", "/$defs/tree")
    assert references({"$ref": "#/a", "a": {"$dynamicAnchor": "x"}}).entered((), "") == ()
