"""Documents of one file: text, JSON lines, a JSON array, Parquet. What cannot be read is given with its place.

Files are read as streams: memory holds one record at a time, and a `.txt` file, which is one document, as a whole.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast

from training_core.data.documents import CorpusError
from training_core.data.frames import COMPRESSED, decompressed
from training_core.data.json_stream import BOM, MAX_RECORD_BYTES, Unreadable, json_lines, json_values, not_utf8
from training_core.data.watched import watched
from training_core.reporting import Reporter

KINDS = (".txt", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True, slots=True)
class Document:
    """A title, possibly empty, and a text, both without white space around them."""

    title: str
    text: str

    def whole(self) -> str:
        """Return what is stored and trained on: the title on its own line, and the text."""
        return f"{self.title}\n\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of a record's fields, and the setting that names the first of them."""

    text: str
    title: str
    setting: str = "text_field"


def kind_of(name: str) -> tuple[str, str]:
    """Return the kind of a file and its compression ("" for none), both by the last suffixes of its name.

    Raises:
        CorpusError: for a file of another kind.
    """
    path = PurePath(name)
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSED else ""
    kind = (PurePath(path.stem) if compression else path).suffix.lower()
    if kind not in KINDS or (compression and kind == ".parquet"):
        raise CorpusError(
            f"{name}: the name must end in .txt (one document), .jsonl (one JSON record a line) or .json (an array of "
            f"records), each optionally followed by .gz or .zst, or in .parquet, but it ends in "
            f"{kind + compression or 'no suffix'!r}: rename or convert the file, or narrow the glob"
        )
    return kind, compression


def read_file(
    path: Path, fields: Fields, *, before: int = 0, total: int = 0, reporter: Reporter | None = None
) -> Iterator[Document | Unreadable]:
    """Yield the documents of a file. Progress is reported as kB of `total`, `before` of which were read earlier.

    Raises:
        CorpusError: when the file is of another kind, is cut short or damaged, or cannot be read.
    """
    kind, compression = kind_of(str(path))
    try:
        with watched(path, before, total, reporter, "reading documents (kB)") as file:
            if kind == ".parquet":
                yield from _parquet(file, path, fields)
            else:
                yield from read_stream(decompressed(file, path, compression), str(path), kind, fields)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error


def read_stream(stream: BinaryIO, name: str, kind: str, fields: Fields) -> Iterator[Document | Unreadable]:
    """Yield the documents of an open, decompressed file of `kind` (`KINDS` without .parquet)."""
    if kind == ".txt":
        yield _text(stream, name)
        return
    reader = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, stream))
    first = reader.peek(4096).removeprefix(BOM).lstrip()[:1]
    records = json_values(reader, name) if kind == ".json" or first == b"[" else json_lines(reader, name)
    for place, record in records:
        yield record if isinstance(record, Unreadable) else document_of(record, place, fields)


def document_of(record: Any, place: str, fields: Fields) -> Document | Unreadable:
    """Return the document of a record, or what is wrong with it. `place` names the file and the line."""
    if not isinstance(record, Mapping):
        return Unreadable(f"{place}: the record is a {type(record).__name__}, not an object with fields")
    text, title = record.get(fields.text), record.get(fields.title) if fields.title else None
    if not isinstance(text, str):
        fault = f"is {_short(text)}, not text" if fields.text in record else f"is missing (it has {sorted(record)})"
        return Unreadable(
            f"{place}: the text field {fields.text!r} {fault}; correct the record or set {fields.setting}"
        )
    document = Document(title.strip() if isinstance(title, str) else "", text.strip())
    try:
        document.whole().encode()
    except UnicodeEncodeError as error:
        return Unreadable(
            f"{place}: character {error.start} of the document is the lone surrogate "
            f"\\u{ord(error.object[error.start]):04x}, which is half a character; correct the record"
        )
    return document


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"a {type(value).__name__}"


def _text(stream: BinaryIO, name: str) -> Document | Unreadable:
    content = stream.read(MAX_RECORD_BYTES + 1)
    if len(content) > MAX_RECORD_BYTES:
        raise CorpusError(
            f"{name} has more than {MAX_RECORD_BYTES} bytes, and a .txt file is one document: split it into "
            "documents, for instance one a line of a .jsonl file"
        )
    try:
        return Document("", content.removeprefix(BOM).decode().strip())
    except UnicodeDecodeError as error:
        return not_utf8(name, content[: error.start].count(b"\n") + 1, error.start, content)


def _parquet(file: BinaryIO, path: Path, fields: Fields) -> Iterator[Document | Unreadable]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise CorpusError(f"{path}: .parquet needs the optional extra: pip install 'agent-forge[parquet]'") from error
    row = 0
    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        if fields.text not in names:
            raise CorpusError(f"{path} has no column {fields.text!r} (it has {sorted(names)}); set {fields.setting}")
        columns = [name for name in (fields.text, fields.title) if name in names]
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for record in batch.to_pylist():
                row += 1
                yield document_of(record, f"{path}, row {row}", fields)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise CorpusError(
            f"{path} is not a readable Parquet file after row {row} ({error}); copy or write it again"
        ) from error
