"""Sample documents: records that satisfy their schemas, by `jsonschema`, and are in the text."""

from __future__ import annotations

import json
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import jsonschema
import pytest

from gateway.samples import KINDS, collect, debian, mail, schema_text, write


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


def test_a_copyright_file_is_read_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "_DOCUMENTATION", tmp_path)
    (tmp_path / "adduser").mkdir()
    head = (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        "Upstream-Name: adduser\nSource: https://example.org/adduser\n\n"
        "Files: *\nCopyright: 1995 Ted Hajek\n 1997-1999 Guy Maor\nLicense: GPL-2+\n"
    )
    (tmp_path / "adduser" / "copyright").write_text(f"{head}\nLicense: GPL-2+\n This is free software\n")
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "copyright").write_text("This package was put together by hand.\n")
    record = {"name": "adduser", "source": "https://example.org/adduser", "license": "GPL-2+"}
    assert list(debian.copyright_files()) == [("adduser", head, record)]


def test_an_installed_package_is_read_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "_INSTALLED", tmp_path / "status")
    fields = (
        "Package: adduser\nStatus: install ok installed\nPriority: important\nSection: admin\nInstalled-Size: 686\n"
        "Maintainer: Debian Adduser Developers <adduser@packages.debian.org>\nArchitecture: all\nVersion: 3.134\n"
    )
    described = "Description: add and remove users and groups\n This package includes the commands.\n"
    conffiles = "Conffiles:\n /etc/adduser.conf 0123 obsolete\n"
    (tmp_path / "status").write_text(f"{fields}{conffiles}{described}\nPackage: gone\nStatus: deinstall ok\n")
    ((id, text, record),) = debian.installed_packages()
    assert (id, text) == ("adduser", fields + described)
    assert record == {
        "package": "adduser",
        "priority": "important",
        "section": "admin",
        "installed_size": 686,
        "maintainer": "Debian Adduser Developers",
        "email": "adduser@packages.debian.org",
        "version": "3.134",
        "summary": "add and remove users and groups",
    }


def test_a_message_is_read_exactly() -> None:
    content = (
        b"From: Bea Quill <bea@example.org>\nTo: a@example.org, b@example.org\nSubject: Hello\n"
        b"Date: Fri, 4 May 2001 14:05:44 -0400\n\nHi\n"
    )
    message = message_from_bytes(content, _class=EmailMessage, policy=policy.default)
    assert mail._record(message) == {
        "from": "bea@example.org",
        "to": ["a@example.org", "b@example.org"],
        "subject": "Hello",
        "name": "Bea Quill",
        "date": "2001-05-04",
    }


def test_files_for_a_job(tmp_path: Path) -> None:
    assert write(tmp_path, ["notice-ko"], limit=2) == {"notice-ko": 2}
    lines = (tmp_path / "notice-ko.jsonl").read_text(encoding="utf-8").splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"id", "text", "record"}] * 2
    assert json.loads((tmp_path / "notice-ko.schema.json").read_text())["type"] == "object"
