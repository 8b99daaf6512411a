"""The documents of a job, one after another, however many: lines, rows or files. Nothing is read ahead."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

from gateway.cli.errors import BAD_USAGE, CommandError

InputFormat = Literal["jsonl", "csv", "tsv", "text"]

MAX_DOCUMENT_BYTES: Final = 16 << 20
_FORMATS: Final[dict[str, InputFormat]] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}


@dataclass(frozen=True, slots=True)
class Document:
    """A text by a name, or the `problem` for which there is none."""

    id: str
    text: str = ""
    problem: str | None = None


class Documents:
    """The documents that an `--input` names.

    JSON lines are texts, or objects with a text and perhaps an id; rows of a table have a text in one column, or are
    texts as a whole; a directory has a text in each file, in the order of their names. What has no id of its own gets
    its number, from 0. What cannot be read is a document with a problem: it does not end the job.
    """

    def __init__(
        self, source: str, *, format: InputFormat | None = None, text_field: str = "text", id_field: str = "id"
    ) -> None:
        """Open the input; `-` is standard input, of JSON lines unless `format` says otherwise.

        Raises:
            CommandError: it is not there, or cannot be read.
        """
        path = None if source == "-" else Path(source)
        self._text_field = text_field
        self._id_field = id_field
        self._closing = ExitStack()
        self._num_files_read = 0
        self.size: int | None = None
        """Bytes of the input, or files of a directory; None where that is not known."""
        if path is not None and path.is_dir():
            self._directory: Path | None = path
            self._files = sorted(_files(path))
            self.size = len(self._files)
            return
        self._directory = None
        by_name: InputFormat = "jsonl" if path is None else _FORMATS.get(path.suffix.lower(), "text")
        self._format: InputFormat = format or by_name
        try:
            self._file: IO[bytes] = sys.stdin.buffer if path is None else self._closing.enter_context(path.open("rb"))
            if path is not None and path.is_file():
                self.size = path.stat().st_size
        except OSError as error:
            raise CommandError(f"cannot read {source}: {error.strerror}", BAD_USAGE) from None
        self._name = "stdin" if path is None else path.name

    def __enter__(self) -> Documents:
        """Use until left."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the input."""
        self._closing.close()

    @property
    def position(self) -> int:
        """How much of `size` has been read."""
        return self._num_files_read if self._directory is not None or self.size is None else self._file.tell()

    def __iter__(self) -> Iterator[Document]:
        """Read the documents. Only once."""
        if self._directory is not None:
            return self._read_files(self._directory)
        readers: dict[InputFormat, Callable[[], Iterator[Document]]] = {
            "jsonl": self._read_lines,
            "csv": lambda: self._read_rows(","),
            "tsv": lambda: self._read_rows("\t"),
            "text": self._read_whole,
        }
        return readers[self._format]()

    def _read_files(self, directory: Path) -> Iterator[Document]:
        for file in self._files:
            self._num_files_read += 1
            id = file.relative_to(directory).as_posix()
            try:
                if (size := file.stat().st_size) > MAX_DOCUMENT_BYTES:
                    yield Document(id, problem=_too_large(size))
                    continue
                yield _decoded(id, file.read_bytes())
            except OSError as error:
                yield Document(id, problem=f"the file cannot be read: {error.strerror}")

    def _read_whole(self) -> Iterator[Document]:
        content = self._file.read(MAX_DOCUMENT_BYTES + 1)
        yield (
            _decoded(self._name, content)
            if len(content) <= MAX_DOCUMENT_BYTES
            else Document(self._name, problem=_too_large(self.size or len(content)))
        )

    def _read_lines(self) -> Iterator[Document]:
        for number, line in enumerate(_lines(self._file)):
            if len(line) > MAX_DOCUMENT_BYTES:
                yield Document(str(number), problem=_too_large(None))
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Document(str(number), problem=f"the line is no JSON: {error}")
                continue
            yield self._of_value(str(number), value)

    def _of_value(self, number: str, value: Any) -> Document:
        if isinstance(value, str):
            return Document(number, value)
        if not isinstance(value, dict):
            return Document(number, problem="the line is neither a text nor an object with one")
        id = value.get(self._id_field, number)
        text = value.get(self._text_field)
        if not isinstance(text, str):
            return Document(_as_id(id), problem=f"the object has no text by the name of {self._text_field!r}")
        return Document(_as_id(id), text)

    def _read_rows(self, delimiter: str) -> Iterator[Document]:
        csv.field_size_limit(MAX_DOCUMENT_BYTES)
        reader = csv.reader(_texts(self._file), delimiter=delimiter)
        header = next(reader, None)
        if header is None:
            return
        has_text = self._text_field in header
        for number, row in enumerate(_rows(reader)):
            if isinstance(row, str):
                yield Document(str(number), problem=row)
                continue
            cells = dict(zip(header, row, strict=False))
            id = cells.get(self._id_field, str(number))
            whole = "\n".join(f"{name}: {cell}" for name, cell in cells.items() if name != self._id_field)
            text = cells.get(self._text_field, "") if has_text else whole
            yield (
                Document(id, problem="the row has a byte that is no UTF-8") if "\ufffd" in text else Document(id, text)
            )


def _files(directory: Path) -> Iterator[Path]:
    return (
        file
        for file in directory.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(directory).parts)
    )


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield lines that are not blank; of one that is too long only so much that this shows."""
    while line := file.readline(MAX_DOCUMENT_BYTES + 2):
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(MAX_DOCUMENT_BYTES)):
            pass
        if line.strip():
            yield line.rstrip(b"\r\n")


def _texts(file: IO[bytes]) -> Iterator[str]:
    """Yield lines with their ends; a byte order mark, which spreadsheets write, is left out."""
    for number, line in enumerate(iter(lambda: file.readline(MAX_DOCUMENT_BYTES), b"")):
        text = line.decode(errors="replace")
        yield text.removeprefix("\ufeff") if number == 0 else text


def _rows(reader: Any) -> Iterator[list[str] | str]:
    """Yield rows that are not blank, or what is wrong with one."""
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield f"the row cannot be read: {error}"
            continue
        if row is None:
            return
        if row:
            yield row


def _decoded(id: str, content: bytes) -> Document:
    try:
        return Document(id, content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Document(id, problem=f"it is not UTF-8: {error.reason} at byte {error.start}")


def _too_large(size: int | None) -> str:
    return f"it has {size or 'too many'} bytes; at most {MAX_DOCUMENT_BYTES} are taken"


def _as_id(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
