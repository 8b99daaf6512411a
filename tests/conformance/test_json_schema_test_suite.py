"""The JSON Schema Test Suite (required tests of drafts 7 and 2020-12) against a ratchet.

Each case is right, refused (the schema is not enforced, which the caller is told), wrongly refused (the schema is,
but the instance is not accepted: the published departures) or wrongly accepted. Nothing may be wrongly accepted, and
nothing may get worse than `ratchet.json` says. `ESPALIER_UPDATE_RATCHET=1` writes the file anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from services.constraint.sources import SourceOptions
from services.constraint.sources.source import Draft
from services.rpckit.status import UnsatisfiableGrammar, UnsupportedConstruct
from tests.support.acceptance import accepts, matcher_of

SUITE = Path(__file__).parent / "json_schema_test_suite"
RATCHET = Path(__file__).parent / "ratchet.json"
DRAFTS: dict[str, Draft] = {"draft7": 7, "draft2020-12": 2020}
ORDER = ["wrongly accepted", "refused", "wrongly refused", "right"]


def documents() -> tuple[tuple[str, str], ...]:
    """Return the suite's remote documents by the URIs that it names them with."""
    root = SUITE / "remotes"
    return tuple(
        (f"http://localhost:1234/{path.relative_to(root).as_posix()}", path.read_text())
        for path in sorted(root.rglob("*.json"))
    )


def judge(draft: str, schema: object, instances: list[tuple[object, bool]]) -> list[str]:
    options = SourceOptions(
        property_order="any", format="annotation", default_draft=DRAFTS[draft], documents=documents()
    )
    try:
        matcher = matcher_of(schema, options)
    except UnsupportedConstruct:
        return ["refused"] * len(instances)
    except UnsatisfiableGrammar:
        return ["wrongly refused" if is_valid else "right" for _, is_valid in instances]
    result = []
    for data, is_valid in instances:
        is_accepted = accepts(matcher, json.dumps(data, ensure_ascii=False).encode())
        result.append("right" if is_accepted == is_valid else "wrongly accepted" if is_accepted else "wrongly refused")
    return result


@pytest.mark.parametrize("draft", DRAFTS)
def test_nothing_is_wrongly_accepted_and_nothing_gets_worse(draft: str) -> None:
    recorded = json.loads(RATCHET.read_text()) if RATCHET.exists() else {}
    found: dict[str, str] = {}
    for path in sorted((SUITE / draft).glob("*.json")):
        for group in json.loads(path.read_text()):
            results = judge(draft, group["schema"], [(test["data"], test["valid"]) for test in group["tests"]])
            for test, result in zip(group["tests"], results, strict=True):
                found[f"{path.stem} | {group['description']} | {test['description']}"] = result
    if os.environ.get("ESPALIER_UPDATE_RATCHET") == "1":
        RATCHET.write_text(json.dumps({**recorded, draft: found}, indent=0, ensure_ascii=False, sort_keys=True) + "\n")
        recorded[draft] = found
    assert found.keys() == recorded[draft].keys()
    assert [case for case, result in found.items() if result == "wrongly accepted"] == []
    worse = {
        case: (recorded[draft][case], result)
        for case, result in found.items()
        if ORDER.index(result) < ORDER.index(recorded[draft][case])
    }
    assert worse == {}
