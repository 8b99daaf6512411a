"""Records of the e-mail messages that CPython tests its e-mail package with."""

from __future__ import annotations

from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from importlib import resources
from typing import Any


def messages() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield messages that say from whom they are, to whom and when: id, text and record."""
    try:
        directory = resources.files("test.test_email") / "data"
    except ModuleNotFoundError:  # some installations leave Python's own tests out
        return
    for file in sorted(directory.iterdir(), key=lambda file: file.name):
        if not file.name.startswith("msg_"):
            continue
        content = file.read_bytes()
        try:
            text = content.decode()
            record = _record(message_from_bytes(content, _class=EmailMessage, policy=policy.default))
        except (UnicodeDecodeError, ValueError, AttributeError, IndexError):
            continue  # broken on purpose
        if record is not None:
            yield file.name.removesuffix(".txt"), text, record


def _record(message: EmailMessage) -> dict[str, Any] | None:
    sender, to, date, subject = (message[name] for name in ("from", "to", "date", "subject"))
    if any(header is None for header in (sender, to, date, subject)) or date.datetime is None:
        return None
    addresses = [address.addr_spec for address in to.addresses]
    if not addresses or not all(addresses) or not sender.addresses[0].addr_spec or not subject.isprintable():
        return None
    record = {"from": sender.addresses[0].addr_spec, "to": addresses, "subject": str(subject)}
    if sender.addresses[0].display_name:
        record["name"] = sender.addresses[0].display_name
    return record | {"date": f"{date.datetime:%Y-%m-%d}"}
