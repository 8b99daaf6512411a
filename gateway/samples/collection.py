"""Kinds of documents: where their records come from, the schema of each, and files of them for an extraction job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from gateway.samples import debian, mail

MAX_CHARACTERS: Final = 2000
"""Longer documents are left out: the demo's model is small, and its context, too."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A document and the record that it holds."""

    id: str
    text: str
    record: dict[str, Any]


def _notices(language: str) -> Callable[[], Iterator[tuple[str, str, dict[str, Any]]]]:
    def read() -> Iterator[tuple[str, str, dict[str, Any]]]:
        for line in _data(f"notices.{language}.jsonl").splitlines():
            sample = json.loads(line)
            yield sample["id"], sample["text"], sample["record"]

    return read


KINDS: Final[Mapping[str, Callable[[], Iterator[tuple[str, str, dict[str, Any]]]]]] = {
    "changelog": debian.changelog_entries,
    "copyright": debian.copyright_files,
    "package": debian.installed_packages,
    "email": mail.messages,
    "notice-en": _notices("en"),
    "notice-ko": _notices("ko"),
}
"""What yields the documents of each kind as id, text and record; nothing where this machine has none."""


def collect(kind: str, *, limit: int | None = None, max_characters: int = MAX_CHARACTERS) -> list[Sample]:
    """Return documents of a kind, at most `limit`, none longer than `max_characters`, no text twice.

    They come in the order of a digest of their text: any first part of them is a fair choice of all.
    """
    by_text = {text: Sample(id, text, record) for id, text, record in KINDS[kind]() if len(text) <= max_characters}
    return sorted(by_text.values(), key=lambda sample: hashlib.sha256(sample.text.encode()).digest())[:limit]


def schema_text(kind: str) -> str:
    """Return the JSON Schema of a kind's records."""
    return _data(f"{kind.partition('-')[0]}.schema.json")


def write(directory: Path, kinds: list[str], *, limit: int | None = None) -> dict[str, int]:
    """Write `KIND.jsonl` and `KIND.schema.json` of each kind that this machine has; return how many documents of each.

    Raises:
        OSError: a file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    counts = {}
    for kind in kinds:
        samples = collect(kind, limit=limit)
        counts[kind] = len(samples)
        if samples:
            lines = (json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples)
            (directory / f"{kind}.jsonl").write_text("".join(lines), encoding="utf-8")
            (directory / f"{kind}.schema.json").write_text(schema_text(kind), encoding="utf-8")
    return counts


def _data(name: str) -> str:
    return (resources.files("gateway.samples") / "data" / name).read_text(encoding="utf-8")
