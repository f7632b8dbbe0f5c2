"""On-disk cache of frontier models' answers, with a write-ahead ledger of their cost.

    <folder>/answers/<aa>/<digest>.json   one answer, by the SHA-256 of its request
    <folder>/answers/<aa>/<digest>.room   disk space reserved for the answer of a request in flight
    <folder>/ledger.jsonl                 one line per event, append-only
    <folder>/lock                         held by the one program that may write here

The order of writes makes a kill harmless. The disk space for the answer and a "started" line with the maximum cost of
the request are on disk before the request is sent; the answer is on disk before it is used. A request that was started
and neither answered nor released is found at the next opening and counted as spent, although it may not have been.
"""

import hashlib
import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forge_resources.frontier.errors import StorageError
from forge_resources.frontier.protocol import Answer, ChatRequest
from training_core.store.atomic import flush, replace_durably

Event = Literal["started", "answered", "released", "lost"]


class CacheEntry(BaseModel):
    """A line of the ledger.

    event: "started" reserves `usd` for one attempt; it ends as "answered" (at a cost of `usd`), "released" (nothing was
    charged), or "lost" (sent, but no answer arrived: `usd` may have been charged).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    event: Event
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    attempt: int = Field(ge=1)
    model: str
    usd: float = Field(ge=0, allow_inf_nan=False)
    reason: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Spend:
    """The cost of a folder of answers, in US dollars.

    uncertain_usd: upper bound on the charge for `lost` requests, whose answers never arrived; it counts against the
    cap. reserved_usd: maximum cost of the requests in flight. assumed: answers whose cost the server did not report.
    """

    cap_usd: float
    spent_usd: float
    uncertain_usd: float
    reserved_usd: float
    answers: int
    assumed: int
    lost: int

    def describe(self) -> str:
        """Return a one-line summary for people."""
        line = f"${self.spent_usd:.6f} of ${self.cap_usd:.2f} spent on {self.answers} answers"
        if self.assumed:
            line += f" ({self.assumed} of them at their highest possible cost, since the server reported none)"
        if self.lost:
            line += f"; up to ${self.uncertain_usd:.6f} more for {self.lost} requests whose answers never came"
        return line


class AnswerCache:
    """The answers and the ledger in `folder`, locked for this program until `close`.

    Raises:
        StorageError: when the folder cannot be written, is in use, or its ledger is damaged.
    """

    def __init__(self, folder: Path, cap_usd: float) -> None:
        self._folder = folder
        self._cap_usd = cap_usd
        self._open: dict[str, CacheEntry] = {}  # attempts in flight, by digest
        self._lost: set[str] = set()
        self._costs: dict[str, float] = {}
        self._attempts: Counter[str] = Counter()
        self._spent = 0.0
        self._uncertain = 0.0
        self._num_lost = 0
        self._assumed = 0
        try:
            (folder / "answers").mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / "lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StorageError(
                f"{folder} is in use by another run: wait for it, or name another folder; nothing was sent"
            ) from None
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            self._ledger = os.open(folder / "ledger.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            self._read_ledger()
            self._settle_left_over()
        except OSError as error:
            self._lock.release()
            raise _unwritable(folder, error) from error
        except StorageError:
            self._lock.release()
            raise

    def read(self, request: ChatRequest) -> Answer | None:
        """Return the cached answer to `request`, or None.

        Raises:
            StorageError: when the file is damaged. It was paid for, so the request is not silently repeated.
        """
        return self._read(request.digest(), request)

    def is_lost(self, digest: str) -> bool:
        """Return whether the request was sent and its answer lost, so that it may have been charged."""
        return digest in self._lost

    def start(self, request: ChatRequest, reserved_usd: float) -> None:
        """Reserve money and disk space for one attempt; only after this may the request be sent.

        Raises:
            StorageError: when the disk is full. Nothing was sent.
        """
        digest = request.digest()
        try:
            self._make_room(digest, request.room_bytes())
            entry = CacheEntry(
                event="started",
                digest=digest,
                attempt=self._attempts[digest] + 1,
                model=request.model,
                usd=reserved_usd,
            )
            self._append(entry)
        except OSError as error:
            self._drop_room(digest)
            raise _unwritable(self._folder, error) from error
        self._attempts[digest] += 1
        self._open[digest] = entry

    def finish(self, request: ChatRequest, answer: Answer) -> None:
        """Write the answer to disk, then its cost to the ledger. After this the answer may be used.

        Raises:
            StorageError: when it cannot be written despite the reserved space; the cost stays reserved.
        """
        record: dict[str, object] = {"request": request.model_dump(), "answer": answer.model_dump(exclude={"cached"})}
        record["sha256"] = _checksum(record)
        content = json.dumps(record, ensure_ascii=False, indent=1).encode()
        target = self._path(answer.digest)
        room = target.with_suffix(".room")
        started = self._open[answer.digest]
        try:
            with room.open("r+b") as file:
                file.write(content)
                file.truncate()
            replace_durably(room, target)
            self._append(started.model_copy(update={"event": "answered", "usd": answer.cost_usd}))
        except OSError as error:
            raise _unwritable(self._folder, error, paid=True) from error
        del self._open[answer.digest]
        self._count(answer)

    def release(self, digest: str, reason: str) -> None:
        """Release the reservation of an attempt for which nothing was charged."""
        self._end(digest, "released", reason)

    def lose(self, digest: str, reason: str) -> None:
        """Keep the reservation of an attempt that may have been charged although there is no answer."""
        self._count_lost(self._end(digest, "lost", reason))

    def spend(self) -> Spend:
        """Return the cost of this folder over all runs."""
        return Spend(
            cap_usd=self._cap_usd,
            spent_usd=self._spent,
            uncertain_usd=self._uncertain,
            reserved_usd=sum(entry.usd for entry in self._open.values()),
            answers=len(self._costs),
            assumed=self._assumed,
            lost=self._num_lost,
        )

    def close(self) -> None:
        """Close the ledger and release the lock on the folder."""
        os.close(self._ledger)
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end(self, digest: str, event: Event, reason: str) -> CacheEntry:
        ended = self._open[digest].model_copy(update={"event": event, "reason": reason})
        try:
            self._append(ended)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        del self._open[digest]
        self._drop_room(digest)
        return ended

    def _count(self, answer: Answer) -> None:
        self._costs[answer.digest] = answer.cost_usd
        self._spent += answer.cost_usd
        self._assumed += answer.cost_source == "assumed"

    def _count_lost(self, entry: CacheEntry) -> None:
        self._lost.add(entry.digest)
        self._uncertain += entry.usd
        self._num_lost += 1

    def _path(self, digest: str) -> Path:
        return self._folder / "answers" / digest[:2] / f"{digest}.json"

    def _make_room(self, digest: str, size: int) -> None:
        room = self._path(digest).with_suffix(".room")
        if not room.parent.exists():
            room.parent.mkdir()
            flush(room.parent.parent)
        with room.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())

    def _drop_room(self, digest: str) -> None:
        self._path(digest).with_suffix(".room").unlink(missing_ok=True)

    def _append(self, entry: CacheEntry) -> None:
        line = (entry.model_copy(update={"at": round(time.time(), 3)}).model_dump_json() + "\n").encode()
        size = os.fstat(self._ledger).st_size
        try:
            written = os.write(self._ledger, line)
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes were written to the ledger")
            os.fsync(self._ledger)
        except OSError:
            os.ftruncate(self._ledger, size)
            raise

    def _read_ledger(self) -> None:
        """Replay the ledger. A line truncated by a kill is removed, because its event had not taken place yet."""
        path = self._folder / "ledger.jsonl"
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._ledger, whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                entry = CacheEntry.model_validate_json(line)
            except ValidationError as error:
                what = error.errors(include_url=False, include_input=False)[0]["msg"]
                raise StorageError(
                    f"{path}, line {number} is damaged ({what}): what was spent is not known, so nothing is sent; "
                    "repair the line, or move the folder away and start a new one"
                ) from None
            self._attempts[entry.digest] = max(self._attempts[entry.digest], entry.attempt)
            if entry.event == "started":
                self._open[entry.digest] = entry
            else:
                self._open.pop(entry.digest, None)
                if entry.event == "lost":
                    self._count_lost(entry)

    def _settle_left_over(self) -> None:
        """Read the answers, and count requests as lost that were in flight when the last program ended."""
        for path in sorted((self._folder / "answers").glob("*/*.room")):
            path.unlink()
        for path in sorted((self._folder / "answers").glob("*/*.json")):
            answer = self._read(path.stem, None)
            if answer is not None:
                self._count(answer)
        for digest, entry in list(self._open.items()):
            if digest in self._costs:  # killed between writing the answer and its ledger line
                self._append(entry.model_copy(update={"event": "answered", "usd": self._costs[digest]}))
                del self._open[digest]
            else:
                self.lose(digest, "the program ended while the request was in flight")

    def _read(self, digest: str, request: ChatRequest | None) -> Answer | None:
        path = self._path(digest)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        try:
            record = json.loads(content)
            answer = Answer.model_validate(record["answer"] | {"cached": True})
            stored = ChatRequest.model_validate(record["request"])
            sound = record.pop("sha256") == _checksum(record) and stored.digest() == answer.digest == digest
        except (ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if not sound or (request is not None and stored != request):
            raise StorageError(f"{path} is damaged: it was paid for; restore it, or remove it to ask and pay again")
        return answer


def _checksum(record: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _unwritable(folder: Path, error: OSError, paid: bool = False) -> StorageError:
    if paid:
        return StorageError(
            f"an answer that was paid for cannot be written to {folder} ({error}): its cost stays counted; everything "
            "earned before is kept; make room, or make the folder writable, then run again"
        )
    return StorageError(
        f"{folder} cannot be written ({error}): answers could not be kept, so nothing more is sent or paid for, and "
        "everything earned so far is kept; make room, or make the folder writable, then run again"
    )
