"""Real documents of two kinds of `gateway.samples`, to be asked for some of their facts like invented ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

from gateway.samples.collection import collect
from gateway.samples.training.documents import Document
from gateway.samples.training.families import Field, kind_of

TRAINING_KINDS: Final = ("changelog", "copyright")
HELD_OUT_KINDS: Final = ("package", "email", "notice-en", "notice-ko")

_FIELDS: Final[Mapping[str, tuple[Field, ...]]] = {
    "changelog": (
        Field("package", kind_of("pick"), ("package", "source_package", "package_name")),
        Field("version", kind_of("pick"), ("version", "package_version", "release")),
        Field("distribution", kind_of("pick"), ("distribution", "suite", "uploaded_to")),
        Field("urgency", kind_of("enum", "low; medium; high; emergency; critical"), ("urgency", "priority")),
        Field("closes", kind_of("list", "plain 1 9999999"), ("closes", "closed_bugs", "bugs"), "Bugs that it closes"),
        Field("maintainer", kind_of("pick"), ("maintainer", "changed_by", "author")),
        Field("email", kind_of("email"), ("email", "maintainer_email", "mail")),
        Field("date", kind_of("date"), ("date", "changed_on", "day")),
    ),
    "copyright": (
        Field("name", kind_of("pick"), ("name", "upstream_name", "software")),
        Field("contact", kind_of("pick"), ("contact", "upstream_contact"), "Whom to write to", is_optional=True),
        Field("source", kind_of("pick"), ("source", "origin", "obtained_from"), "Where it is from", is_optional=True),
        Field("license", kind_of("pick"), ("license", "licence", "license_name"), "Short name of the licence"),
    ),
}


@cache
def training_documents(kind: str) -> tuple[Document, ...]:
    """Return the documents of a kind that this machine has, in the order of `collect`."""
    fields = {field.name: field for field in _FIELDS[kind]}
    return tuple(
        Document(kind, f"{kind}/{sample.id}", "en", sample.text, fields, sample.record) for sample in collect(kind)
    )
