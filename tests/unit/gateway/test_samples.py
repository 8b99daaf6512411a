"""Sample documents: records that satisfy their schemas, by `jsonschema`, and are in the text."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from gateway.samples import KINDS, collect, debian, schema_text, write


@pytest.mark.parametrize("kind", KINDS)
def test_records_satisfy_their_schema_in_its_order(kind: str) -> None:
    schema = json.loads(schema_text(kind))
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    found = collect(kind, limit=300)
    if kind.startswith("notice"):
        assert len(found) == 6  # shipped; what else there is depends on the machine
    assert len({sample.text for sample in found}) == len(found)
    for sample in found:
        validator.validate(sample.record)
        assert [name for name in schema["properties"] if name in sample.record] == list(sample.record)
        text = " ".join(sample.text.split())
        for name, value in sample.record.items():
            # Dates are written in another way, and what is one of a few words is not always said in this one.
            if isinstance(value, str) and name != "date" and "enum" not in schema["properties"][name]:
                assert value in text


def test_a_changelog_entry_is_read_exactly() -> None:
    text = (
        "bash (5.2-3) unstable; urgency=medium\n\n"
        "  * Repack (Bastian Germann). Closes: #1024598.\n"
        "  * Convert to machine-readable format.\n    Closes: #1024602, #7.\n\n"
        " -- Matthias Klose <doko@debian.org>  Sat, 31 Dec 2022 11:32:01 +0100\n"
    )
    assert debian._changelog_record(text) == {
        "package": "bash",
        "version": "5.2-3",
        "distribution": "unstable",
        "urgency": "medium",
        "closes": [1024598, 1024602, 7],
        "maintainer": "Matthias Klose",
        "email": "doko@debian.org",
        "date": "2022-12-31",
    }
    assert debian._changelog_record("Old tags:\n\n -- nobody\n") is None


def test_files_for_a_job(tmp_path: Path) -> None:
    assert write(tmp_path, ["notice-ko"], limit=2) == {"notice-ko": 2}
    lines = (tmp_path / "notice-ko.jsonl").read_text(encoding="utf-8").splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"id", "text", "record"}] * 2
    assert json.loads((tmp_path / "notice-ko.schema.json").read_text())["type"] == "object"
