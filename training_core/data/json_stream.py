"""JSON records read as a stream: from lines, or from one array or object of records. Each has its place in the file."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from training_core.data.documents import CorpusError

BOM = codecs.BOM_UTF8
MAX_RECORD_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 16
_BLANK = " \t\n\r"
_LONGEST_MARK = 32  # characters; literals and escapes are shorter, so an error further from the end is no cut


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that cannot be read: the file, the line, what is wrong and what to change."""

    problem: str


def not_utf8(name: str, line: int, offset: int, content: bytes) -> Unreadable:
    """Return the description of bytes that are not UTF-8: `offset` is the place in the (decompressed) file."""
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "UTF-16" if utf16 else "ITS-ENCODING"
    return Unreadable(
        f"{name}, line {line} is not UTF-8 at byte {offset} of the file: convert the file "
        f"(iconv -f {encoding} -t UTF-8)"
    )


def json_lines(file: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, record) of every line that is not blank; a record that cannot be parsed is an `Unreadable`.

    The last line may lack its line end.

    Raises:
        CorpusError: for a line of more than `MAX_RECORD_BYTES` bytes.
    """
    number = offset = 0
    while line := file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        place = f"{name}, line {number}"
        if len(line) > MAX_RECORD_BYTES:
            raise CorpusError(f"{place} has more than {MAX_RECORD_BYTES} bytes: write one record a line")
        try:
            text = line.removeprefix(BOM).decode()
            if text.strip():
                yield place, json.loads(text)
        except UnicodeDecodeError as error:
            start = error.start + len(line) - len(line.removeprefix(BOM))
            yield place, not_utf8(name, number, offset + start, line)
        except (ValueError, RecursionError) as error:
            yield place, Unreadable(f"{place} is not valid JSON ({error}); correct or remove the line")
        offset += len(line)


def json_values(file: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, record) of every element of one JSON array, or of every value of one JSON object.

    Raises:
        CorpusError: when the file is neither, is not valid JSON or UTF-8, or ends early. Nothing after such a place can
            be told apart, so it is never skipped.
    """
    scanner = _Scanner(file, name)
    opening = scanner.token()
    if opening not in ("[", "{"):
        raise scanner.error("the file must hold one JSON array, or one object of records; one record a line is .jsonl")
    closing, number = "]" if opening == "[" else "}", 0
    if scanner.peek() == closing:
        scanner.token()
    else:
        while True:
            number += 1
            scanner.peek()
            line = scanner.line
            if opening == "{":
                key = scanner.value()
                if not isinstance(key, str) or scanner.token() != ":":
                    raise scanner.error('the file must hold an object of records: {"name": {...}, ...}')
            record = scanner.value()
            if opening == "{" and not isinstance(record, dict):
                raise scanner.error(
                    f"the file must hold an array or an object of records, but {key!r} is no record; one record a "
                    "line is .jsonl"
                )
            yield f"{name}, record {number} (line {line})", record
            separator = scanner.token()
            if separator == closing:
                break
            if separator != ",":
                raise scanner.error(f"a comma or {closing} must follow a record, not {separator or 'the end'!r}")
    if rest := scanner.token():
        raise scanner.error(f"{rest!r} follows the end of the JSON value; one record a line is .jsonl")


class _Scanner:
    """Reads JSON values one by one from a file, holding no more than the value at hand."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._parse = json.JSONDecoder().raw_decode
        self._text, self._at = "", 0
        self._read = 0  # bytes of the file that were decoded
        self._ended = False
        self.line = 1

    def error(self, what: str) -> CorpusError:
        """Return the error that says `what` is wrong at this line."""
        return CorpusError(f"{self._name}, line {self.line} is not valid JSON: {what}")

    def peek(self) -> str:
        """Return the next character that is not blank, or "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANK:
                self._move(self._at + 1)
            if self._at < len(self._text) or not self._more(_CHUNK_BYTES):
                return self._text[self._at : self._at + 1]

    def token(self) -> str:
        """Return and pass the next character that is not blank."""
        found = self.peek()
        self._move(self._at + len(found))
        return found

    def value(self) -> Any:
        """Return and pass the next JSON value."""
        self.peek()
        wanted = _CHUNK_BYTES
        while True:
            try:
                value, end = self._parse(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - _LONGEST_MARK or error.msg.startswith("Unterminated string")
                if cut and self._more(wanted):
                    wanted *= 2  # the value may go on; doubling keeps the parsing linear
                    continue
                self._move(max(error.pos, self._at))
                raise self.error(error.msg) from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, a value nested as deep
                raise self.error(str(error)) from error
            if end == len(self._text) and not isinstance(value, dict | list | str) and self._more(wanted):
                continue  # a number may go on
            self._move(end)
            return value

    def _move(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _more(self, size: int) -> bool:
        """Read on, dropping what was passed; False at the end of the file."""
        if self._ended:
            return False
        if len(self._text) - self._at > MAX_RECORD_BYTES:
            raise self.error(f"a record has more than {MAX_RECORD_BYTES} bytes")
        content = self._file.read(size)
        self._ended = not content
        if not self._read and content.startswith(BOM):
            content, self._read = content[len(BOM) :], len(BOM)
        try:
            decoded = self._decode(content, self._ended)
        except UnicodeDecodeError as error:
            before = content[: max(0, error.start)].count(b"\n") + self._text.count("\n", self._at)
            place = self._read + error.start - (len(error.object) - len(content))
            raise CorpusError(not_utf8(self._name, self.line + before, place, b"").problem) from error
        self._read += len(content)
        self._text, self._at = self._text[self._at :] + decoded, 0
        return not self._ended
