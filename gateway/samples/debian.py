"""Records of what every Debian system carries: changelogs, copyright files and the list of installed packages."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Mapping
from email.parser import HeaderParser
from email.utils import parseaddr, parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

_DOCUMENTATION: Final = Path("/usr/share/doc")
_INSTALLED: Final = Path("/var/lib/dpkg/status")
_ENTRIES_PER_PACKAGE: Final = 3

# Debian Policy, section 4.4.
_HEADING = re.compile(
    r"(?P<package>[a-z0-9][a-z0-9+.-]*) \((?P<version>[^() ]+)\) (?P<distribution>[^;]+);(?P<more>.*)"
)
_TRAILER = re.compile(r" -- (?P<name>.+) <(?P<email>[^>]+)>  (?P<date>.+)")
_CLOSES = re.compile(r"closes:\s*(?:bug)?#?\s?\d+(?:,\s*(?:bug)?#?\s?\d+)*", re.IGNORECASE)
_URGENCIES: Final = ("low", "medium", "high", "emergency", "critical")


def changelog_entries() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the newest entries of each package's changelog: id, text and record."""
    for file in sorted(_DOCUMENTATION.glob("*/changelog.Debian.gz")):
        entries = re.split(r"(?m)^(?=\S)", gzip.decompress(file.read_bytes()).decode(errors="replace"))
        for entry in [entry for entry in entries if entry.strip()][:_ENTRIES_PER_PACKAGE]:
            text = entry.strip() + "\n"
            if (record := _changelog_record(text)) is not None:
                yield f"{file.parent.name}/{record['version']}", text, record


def _changelog_record(text: str) -> dict[str, Any] | None:
    lines = text.splitlines()
    heading, trailer = _HEADING.fullmatch(lines[0]), _TRAILER.fullmatch(lines[-1])
    if heading is None or trailer is None or "@" not in trailer["email"]:
        return None
    urgency = re.search(r"urgency=(\w+)", heading["more"])
    if urgency is None or urgency[1].lower() not in _URGENCIES or " " in heading["distribution"].strip():
        return None
    bugs = [int(number) for closes in _CLOSES.findall(text) for number in re.findall(r"\d+", closes)]
    try:
        date = parsedate_to_datetime(trailer["date"])
    except ValueError:
        return None
    return {
        "package": heading["package"],
        "version": heading["version"],
        "distribution": heading["distribution"].strip(),
        "urgency": urgency[1].lower(),
        "closes": list(dict.fromkeys(bugs)),
        "maintainer": trailer["name"],
        "email": trailer["email"],
        "date": f"{date:%Y-%m-%d}",
    }


def copyright_files() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield what machine-readable copyright files (DEP 5) begin with, up to the first licence: id, text and record."""
    for file in sorted(_DOCUMENTATION.glob("*/copyright")):
        text = file.read_text(encoding="utf-8", errors="replace")
        paragraphs = [paragraph for paragraph in re.split(r"\n[ \t]*\n", text) if paragraph.strip()]
        fields = [_fields(paragraph) for paragraph in paragraphs[:2]]
        if len(fields) < 2 or "copyright-format" not in fields[0].get("format", ""):
            continue
        name, license = fields[0].get("upstream-name"), fields[1].get("license")
        if not name or not license or "files" not in fields[1]:
            continue
        optional = {key: fields[0].get(f"upstream-{key}", fields[0].get(key)) for key in ("contact", "source")}
        found = {key: value for key, value in optional.items() if value and "\n" not in value}
        if any(value and "\n" in value for value in optional.values()):
            continue
        text = "\n\n".join(paragraphs[:2]) + "\n"
        yield file.parent.name, text, {"name": name, **found, "license": license.splitlines()[0].strip()}


def installed_packages() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield what the package manager knows of each installed package: id, text and record."""
    shown_fields = ("package", "priority", "section", "installed-size", "maintainer", "architecture", "version")
    if not _INSTALLED.exists():
        return
    for paragraph in _INSTALLED.read_text(encoding="utf-8", errors="replace").split("\n\n"):
        fields = _fields(paragraph)
        if any(name not in fields for name in (*shown_fields, "description")):
            continue
        name, email = parseaddr(fields["maintainer"])
        record = {
            "package": fields["package"],
            "priority": fields["priority"],
            "section": fields["section"],
            "installed_size": int(fields["installed-size"]),
            "maintainer": name,
            "email": email,
            "version": fields["version"],
            "summary": fields["description"].splitlines()[0],
        }
        if "homepage" in fields:
            record["homepage"] = fields["homepage"]
        # Lists of configuration files and their digests tell nobody anything.
        text = re.sub(r"(?m)^Conffiles:\n(?: .*\n?)*", "", paragraph).strip() + "\n"
        if name and "@" in email:
            yield fields["package"], text, record


def _fields(paragraph: str) -> Mapping[str, str]:
    """Read the fields of a paragraph of a control file, names in lower case."""
    message = HeaderParser().parsestr(paragraph.lstrip("\n"))
    return {name.lower(): str(value).strip() for name, value in message.items()}
