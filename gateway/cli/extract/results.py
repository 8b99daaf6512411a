"""The results of a job, in the order of its documents: the n-th line of the file is of the n-th document.

So the file itself says how far the job has come, and a job that was killed goes on behind the last line that is whole.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from gateway.cli.errors import BAD_USAGE, CommandError
from gateway.decode.values import ValueScanner


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a document. `record` is JSON text in one line, `details` what else there is to say."""

    document_id: str
    status: str
    record: str | None = None
    reason: str = ""
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


class _Format(Protocol):
    """How results are written, and read again as far as a job needs that to go on."""

    def header(self) -> bytes: ...

    def line(self, result: Result) -> bytes: ...

    def whole_lines(self, file: IO[bytes]) -> Iterator[bytes]:
        """Yield lines from where the file stands, up to the last one that is whole."""
        ...

    def status_and_id(self, line: bytes) -> tuple[str, str]: ...


class JsonLines:
    """One JSON object a line: status, id, record, and all that is known besides."""

    def header(self) -> bytes:
        """Return nothing."""
        return b""

    def line(self, result: Result) -> bytes:
        """Write a result. The record goes in as it was written: its numbers keep their digits."""
        head = json.dumps({"status": result.status, "id": result.document_id}, ensure_ascii=False)
        rest: dict[str, Any] = {}
        if result.reason:
            rest["error"] = {"reason": result.reason, "message": result.message}
        rest |= result.details
        tail = json.dumps(rest, ensure_ascii=False)[1:]
        record = "null" if result.record is None else result.record
        return f'{head[:-1]}, "record": {record}{"" if tail == "}" else ", "}{tail}\n'.encode()

    def whole_lines(self, file: IO[bytes]) -> Iterator[bytes]:
        """Yield lines up to the last that is whole."""
        return (line for line in file if line.endswith(b"\n"))

    def status_and_id(self, line: bytes) -> tuple[str, str]:
        """Read a line.

        Raises:
            ValueError: it is none of ours.
        """
        try:
            value = json.loads(line)
            return value["status"], value["id"]
        except (KeyError, TypeError):
            raise ValueError("no status or no id") from None


class Table:
    """CSV: id, status, error, and a column for each property of a record."""

    def __init__(self, columns: Sequence[str]) -> None:
        """Take the properties' names; without any, a column has the whole record."""
        self._columns = columns

    def header(self) -> bytes:
        """Return the line of names."""
        return _row(["id", "status", "error", *(self._columns or ["record"])])

    def line(self, result: Result) -> bytes:
        """Write a result: strings as they are, what has no place in a cell as JSON."""
        values = _properties(result.record or "{}")
        cells = [values.get(name, "") for name in self._columns] or [result.record or ""]
        return _row([result.document_id, result.status, result.reason and f"{result.reason}: {result.message}", *cells])

    def whole_lines(self, file: IO[bytes]) -> Iterator[bytes]:
        """Yield rows behind the header, up to the last that is whole; a quoted cell may have ends of lines."""
        row, is_header = b"", True
        for line in file:
            row += line
            if row.count(b'"') % 2 == 0 and row.endswith(b"\n"):
                if not is_header:
                    yield row
                row, is_header = b"", False

    def status_and_id(self, line: bytes) -> tuple[str, str]:
        """Read a row.

        Raises:
            ValueError: it is none of ours.
        """
        try:
            id, status = next(csv.reader(io.StringIO(line.decode(), newline="")))[:2]
        except csv.Error as error:
            raise ValueError(str(error)) from None
        return status, id


class ResultFile:
    """Takes results in order. Nobody else may write the file meanwhile."""

    def __init__(
        self, path: Path | None, format: _Format, settings: Mapping[str, str], *, resumes: bool, overwrites: bool
    ) -> None:
        """Open the file, None for standard output, and find out what is in it.

        `settings` are digests of what the results depend on, by name; they are kept beside the file.

        Raises:
            CommandError: it is there and shall neither be gone on with nor overwritten, another process writes it, or
                it was begun with other settings.
        """
        self._path = path
        self._format = format
        self.counts: Counter[str] = Counter()
        """Results in the file, by status."""
        self.last_id: str | None = None
        if path is None:
            self._file: IO[bytes] = sys.stdout.buffer
            self._file.write(format.header())
            return
        has_results = path.exists() and path.stat().st_size > len(format.header())
        if has_results and not (resumes or overwrites):
            raise CommandError(f"{path} is there: --resume goes on with it, --overwrite begins anew", BAD_USAGE)
        try:
            self._file = path.open("r+b" if path.exists() else "w+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(f"another process writes {path}", BAD_USAGE) from None
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror}", BAD_USAGE) from None
        kept = path.with_name(path.name + ".job")
        if has_results and resumes:
            _check_settings(path, kept, settings)
            self._go_on()
            return
        self._file.truncate(0)
        _write_at_once(kept, json.dumps(settings, indent=1).encode())
        self._file.write(format.header())
        self._file.flush()

    @property
    def num_results(self) -> int:
        """How many documents have a result."""
        return self.counts.total()

    def append(self, result: Result) -> None:
        """Write the next document's result."""
        self._file.write(self._format.line(result))
        self._file.flush()
        self.counts[result.status] += 1

    def close(self) -> None:
        """See that all is on the disk."""
        if self._path is not None:
            os.fsync(self._file.fileno())
            self._file.close()

    def _go_on(self) -> None:
        """Count what is whole and cut off the rest, which a kill may have left."""
        header = self._format.header()
        end = len(header)
        self._file.seek(0)
        if (found := self._file.read(end)) != header:
            if not header.startswith(found):
                raise CommandError(f"{self._path} does not begin with the columns of this job", BAD_USAGE)
            self._file.seek(0)
            self._file.write(header)  # of which a kill left a part
        self._file.seek(0)
        for line in self._format.whole_lines(self._file):
            try:
                status, self.last_id = self._format.status_and_id(line)
            except ValueError as error:
                raise CommandError(
                    f"{self._path}: line {self.num_results + 1} is no result of a job ({error})", BAD_USAGE
                ) from None
            self.counts[status] += 1
            end += len(line)
        self._file.truncate(end)
        self._file.seek(end)


def _check_settings(path: Path, kept: Path, settings: Mapping[str, str]) -> None:
    try:
        begun = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CommandError(
            f"{kept} cannot be read, which says how {path} was begun: --overwrite begins anew", BAD_USAGE
        ) from None
    other = sorted(name for name in {*begun, *settings} if begun.get(name) != settings.get(name))
    if other:
        raise CommandError(
            f"{path} was begun with another {', '.join(other)}: go on with the same, or --overwrite", BAD_USAGE
        )


def _write_at_once(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all."""
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(content)
    beside.replace(path)


def _row(cells: Sequence[str]) -> bytes:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerow(cells)
    return written.getvalue().encode()


def _properties(record: str) -> dict[str, str]:
    """Return an object's properties as they go into cells: numbers keep the digits that they are written with."""
    scanner = ValueScanner()
    values = {value.pointer: value.json for value in (*scanner.push(record), *scanner.finish())}
    found = {}
    for pointer, text in values.items():
        if pointer.count("/") == 1:
            name = pointer[1:].replace("~1", "/").replace("~0", "~")
            found[name] = json.loads(text) if text.startswith('"') else text
    return found
