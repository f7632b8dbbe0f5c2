"""Tokenizer, shards, batches, tasks: what goes in comes out, and bad input says what to change."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.core.small_data import sentences
from training_core.data.batches import MixConfig, TrainingData
from training_core.data.documents import read_jsonl
from training_core.data.packing import PackingConfig, Source, TokenStream, encode, pack_corpus, write_stream
from training_core.data.task_bank import (
    HOPS,
    WORLD_FAMILIES,
    TaskBankConfig,
    as_tasks,
    document_of,
    make_task_bank,
    read_tasks,
    reasoning_gym,
)
from training_core.data.tokenizer import (
    _MAX_RUN_CHARACTERS,
    END_OF_TEXT,
    END_OF_TEXT_ID,
    MAX_WORD_BYTES,
    TokenizerConfig,
    _bounded_runs,
    load_tokenizer,
    train_tokenizer,
)
from training_core.evaluation.windows import choose_documents, cut_windows
from training_core.reporting import SilentReporter


def test_tokenizer_round_trips_any_text_and_has_fixed_ids(small_data: dict[str, Path]) -> None:
    tokenizer = load_tokenizer((small_data["tokenizer"] / "tokenizer.json").read_text())
    assert tokenizer.token_to_id("<|endoftext|>") == END_OF_TEXT_ID == 0
    assert tokenizer.get_vocab_size() == 320


@given(
    text=st.lists(st.text() | st.sampled_from([END_OF_TEXT, "<|endof", "text|>", " ", "é", "a" * 600]), max_size=9).map(
        "".join
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_round_trips_and_holds_no_separator(text: str, small_data: dict[str, Path]) -> None:
    tokenizer = load_tokenizer((small_data["tokenizer"] / "tokenizer.json").read_text())
    for ids in (tokenizer.encode(text).ids, tokenizer.encode_batch([text])[0].ids):
        assert tokenizer.decode(ids) == text
        assert END_OF_TEXT_ID not in ids


def test_the_separator_written_in_a_document_is_text(tmp_path: Path) -> None:
    """In training, loaded again, and in the packed stream, whose only separators are those between documents."""
    texts = [f"note {i} says <|endoftext|> here" for i in range(50)]
    trained = train_tokenizer(TokenizerConfig(vocab_size=280), texts)
    loaded = load_tokenizer(trained.to_str())
    for tokenizer in (trained, loaded):
        assert tokenizer.encode("a<|endoftext|>b").ids.count(END_OF_TEXT_ID) == 0
    total = write_stream(tmp_path, "train", encode(loaded, texts), 1024)
    stream = TokenStream.open(tmp_path, "train").window(0, total)
    assert (stream == END_OF_TEXT_ID).sum() == 50
    assert loaded.decode(stream.tolist()) == "".join(texts)


def test_words_of_usual_length_are_learned_as_without_a_cut() -> None:
    """The oracle is the library's plain byte-level BPE: same vocabulary, same merges, same ids."""
    texts = sentences(300)
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=320,
            min_frequency=2,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    cut = train_tokenizer(TokenizerConfig(vocab_size=320), texts)
    assert json.loads(cut.to_str())["model"] == json.loads(plain.to_str())["model"]
    assert [cut.encode(text).ids for text in texts] == [plain.encode(text).ids for text in texts]


def test_long_words_are_cut_in_training_and_after_loading() -> None:
    letters = random.Random(0)
    word = "".join(letters.choice("acgt") for _ in range(4000))
    trained = train_tokenizer(TokenizerConfig(vocab_size=300), [word])
    tokenizer = load_tokenizer(trained.to_str())
    pieces = [word[at : at + MAX_WORD_BYTES] for at in range(0, len(word), MAX_WORD_BYTES)]
    assert len(pieces) == 16
    assert tokenizer.encode(word).ids == [i for piece in pieces for i in trained.encode(piece).ids]


def test_training_on_one_long_word_takes_linear_time() -> None:
    """Four times the letters take four times as long, not sixteen; 2.2 leaves room for a busy machine."""

    def seconds(count: int) -> float:
        letters = random.Random(1)
        word = "".join(letters.choice("acgt") for _ in range(count))
        start = time.process_time()
        train_tokenizer(TokenizerConfig(vocab_size=512), [word])
        return time.process_time() - start

    assert seconds(400_000) < 2.2 * 4 * seconds(100_000)


def test_long_runs_are_bounded_in_training_and_nothing_else_is() -> None:
    usual = "a word, " + "w" * 256 + " " + "-" * 256 + " " + "字" * 256 + "。" + "字" * 200
    assert list(_bounded_runs([usual, "x" * 300])) == [usual, "x" * 300]
    half = _MAX_RUN_CHARACTERS // 2
    first, second, third = _bounded_runs(["x" * half + " end", "." * (half + 5) + " end", "y" * 300 + " " + usual])
    assert (first, second, third) == ("x" * half + " end", "." * half + " end", " " + usual)


def test_encoding_bounds_what_it_holds_by_characters() -> None:
    """Texts are encoded when they have 2^21 characters together, not only when there are 512 of them."""
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=258), ["ab ab ab"])
    taken: list[int] = []
    texts = (taken.append(i) or "ab " * (1 << 19) for i in range(4))  # type: ignore[func-returns-value]
    next(encode(tokenizer, texts))
    assert len(taken) == 2


class Progress(SilentReporter):
    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[int, int]]] = {}

    def progress(self, done: int, total: int, label: str) -> None:
        self.seen.setdefault(label, []).append((done, total))


def test_reading_training_and_packing_show_progress(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        with (tmp_path / f"{split}.jsonl").open("w") as file:
            file.writelines(
                json.dumps({"text": text, "source": "mine"}) + "\n"
                for text in sentences(12_000 if split == "train" else 50, seed=1)
            )
    (tmp_path / "sources.json").write_text('{"mine": {"kind": "files", "weight": 1.0}}')
    size = (tmp_path / "train.jsonl").stat().st_size // 1000
    assert size > 3000
    progress = Progress()
    texts = read_jsonl(tmp_path / "train.jsonl", progress, "reading")
    train_tokenizer(TokenizerConfig(vocab_size=300), texts, progress).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "out").mkdir()
    pack_corpus(PackingConfig(), tmp_path, tmp_path, tmp_path / "out", progress)
    assert progress.seen["tokens of the vocabulary"] == [(300, 300)]
    for label in ("reading", "packing train (kB)"):
        steps = progress.seen[label]
        assert len(steps) >= 3
        assert steps == sorted(steps)
        assert steps[-1] == (size, size)


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
    tokenizer = load_tokenizer((small_data["tokenizer"] / "tokenizer.json").read_text())
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
    with pytest.raises(ValueError, match="the task bank has no two_hops tasks: set mix.two_hops_share to 0"):
        draw(1, MixConfig(two_hops_share=0.1))
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


def test_questions_about_the_world_are_made_again_from_their_generator(tmp_path: Path) -> None:
    """Levels and kinds of question take turns; splits share no content; long stories ask about their beginning."""
    config = TaskBankConfig(train_per_family=10, held_out_per_family=14, world_train_per_family=18, story_sentences=40)
    make_task_bank(config, tmp_path, SilentReporter())
    contents: dict[str, set[bytes]] = {}
    for split, size in (("train", 18), ("validation", 14), ("test", 14)):
        tasks = [task for task in read_tasks(tmp_path, split) if task.family in WORLD_FAMILIES]
        assert Counter(task.family for task in tasks) == dict.fromkeys(WORLD_FAMILIES, size)
        contents[split] = set()
        for task in tasks:
            document = document_of(task, config.world)
            *before, asked = document.questions
            assert replace(as_tasks(task.seed, document, task.family)[-1], prompt=task.prompt) == task
            several = task.family == "long_story" and split == "train"
            assert len(before) in (range(2, 10) if several else range(1))
            lines = "".join(f"{one.text}\nAnswer: {one.word}\nQuestion: " for one in before)
            assert task.prompt == f"Question: {document.story.text} {lines}{asked.text}\nAnswer:"
            assert (task.answer, task.solution, task.family) == (asked.word, asked.solution, task.family)
            assert asked.hops == HOPS.get(task.family, 1)
            assert task.options[task.answer_index] == task.answer
            contents[split].add(document.fingerprint)
            if task.family == "long_story":
                assert len(document.events) == (22 if several else 40)  # nine more questions, two sentences each
                assert max(asked.support) < 8
                words = {word for number in asked.support for word in document.events[number].args if word[0].isupper()}
                assert not any(words & set(event.args) for event in document.events[8:])
        levels = Counter(task.generator.split(" ")[1] for task in tasks if task.family == "three_hops")
        assert set(levels) == {"7", "8", "9"}
        assert max(levels.values()) - min(levels.values()) <= 1
        first = [task.generator.split(" ")[1] for task in tasks if task.family == "one_hop"][:4]
        assert first == ["1", "2", "3", "4"]
    assert not contents["train"] & (contents["validation"] | contents["test"])
    assert not contents["validation"] & contents["test"]
    with pytest.raises(ValueError, match="was made by 'chain_sum', not by the world"):
        document_of(next(read_tasks(tmp_path, "test")), config.world)


def test_the_first_stage_has_more_questions_with_one_hop(tmp_path: Path) -> None:
    config = TaskBankConfig(
        train_per_family=10, held_out_per_family=10, world_train_per_family=2, one_hop_train=9, story_sentences=16
    )
    make_task_bank(config, tmp_path, SilentReporter())
    found = Counter(task.family for task in read_tasks(tmp_path, "train"))
    assert {family: found[family] for family in WORLD_FAMILIES} == dict.fromkeys(WORLD_FAMILIES, 2) | {"one_hop": 9}
    assert Counter(task.family for task in read_tasks(tmp_path, "test"))["one_hop"] == 10


def test_nine_of_ten_tasks_are_trained_on_with_their_solution(tmp_path: Path, small_data: dict[str, Path]) -> None:
    config = TaskBankConfig(train_per_family=10, held_out_per_family=10, world_train_per_family=6, story_sentences=16)
    make_task_bank(config, tmp_path, SilentReporter())
    data = TrainingData.open(small_data["tokens"], tmp_path)
    tokenizer = load_tokenizer(data.tokenizer_json)
    stream = data.streams["three_hops"]
    ends = [*stream.starts[1:], stream.num_tokens]
    texts = [
        tokenizer.decode(stream.window(int(start) + 1, int(end - start) - 1).tolist())
        for start, end in zip(stream.starts, ends, strict=True)
    ]
    tasks = [task for task in read_tasks(tmp_path, "train") if task.family == "three_hops"]
    plain, worked = (
        [f"{t.prompt} {t.answer}" for t in tasks],
        [f"{t.prompt} {t.solution} The answer is {t.answer}" for t in tasks],
    )
    assert texts == [plain[0], *worked[1:6]]
    only = MixConfig(text_share=0, arithmetic_share=0, logic_share=0, needle_share=0, four_hops_share=1)
    row = data.batch(only, 1, 40, torch.Generator().manual_seed(0))[0].tolist()
    four = data.streams["four_hops"].shards[0].tolist()
    assert any(four[i : i + 40] == row for i in range(len(four)))


def test_more_distinct_tasks_than_exist(tmp_path: Path) -> None:
    config = TaskBankConfig(arithmetic_max_digits=1, train_per_family=1, held_out_per_family=400)
    with pytest.raises(ValueError, match="arithmetic family gives only .* distinct questions"):
        make_task_bank(config, tmp_path, SilentReporter())


def test_windows_of_a_mixture_are_drawn_by_weight(tmp_path: Path) -> None:
    documents = [(np.full(99, 1 + (number >= 30), np.uint16), 9) for number in range(40)]
    mixture = [Source("a", 1.0, 0, 30), Source("b", 3.0, 30, 40)]
    write_stream(tmp_path, "train", documents, 1024, mixture)
    stream = TokenStream.open(tmp_path, "train")
    assert stream.sources == tuple(mixture)
    assert [stream.span(source) for source in stream.sources] == [(0, 3000), (3000, 4000)]
    drawn = stream.sample(4000, 3, torch.Generator().manual_seed(0))
    kinds = drawn.amax(1)
    assert not ((drawn == 1).any(1) & (drawn == 2).any(1)).any(), "no window reaches into another source"
    assert abs(float((kinds == 2).double().mean()) - 0.75) < 3 * (0.75 * 0.25 / 4000) ** 0.5
    short = TokenStream(stream.shards, stream.starts, stream.num_bytes, (*mixture, Source("c", 1.0, 38, 40)))
    with pytest.raises(ValueError, match="a window of 201 tokens does not fit a split of 200"):
        short.sample(1, 201, torch.Generator())


def test_held_out_documents_come_from_every_source(tmp_path: Path) -> None:
    documents = [(np.full(9, 1 + (number >= 30), np.uint16), 9) for number in range(40)]
    write_stream(tmp_path, "test", documents, 1024, [Source("a", 1.0, 0, 30), Source("b", 3.0, 30, 40)])
    stream = TokenStream.open(tmp_path, "test")
    assert choose_documents(stream, 100) == [0, 1, 30, 31, 32, 33, 34, 35, 36]
    windows = cut_windows(stream, 100, 7)
    assert windows.num_documents == 9
    assert [int((windows.documents == d).sum()) for d in range(9)] == [9] + [10] * 8
    assert windows.inputs.flatten()[:89].tolist() == [*([0] + [1] * 9) * 2, *([0] + [2] * 9) * 7][:-1]
    with pytest.raises(ValueError, match="no held-out document of b fits 9 tokens"):
        choose_documents(TokenStream(stream.shards, stream.starts, stream.num_bytes, (Source("b", 1.0, 0, 1),)), 9)


def test_windows_begin_with_short_documents_and_inside_long_ones(tmp_path: Path) -> None:
    lengths = [4, 4, 99, 4]
    documents = [(np.arange(1, 1 + length, dtype=np.uint16), 9) for length in lengths]
    write_stream(tmp_path, "train", documents, 1024)
    stream = TokenStream.open(tmp_path, "train")
    assert stream.starts.tolist() == [0, 5, 10, 110]
    drawn = stream.sample(2000, 8, torch.Generator().manual_seed(0))
    first = drawn[:, 0].tolist()  # the tokens of a document count up from its separator 0
    assert {at for at in first if at} == set(range(8, 100)) - {99, 98}, "inside the long one from token 8 on"
    assert abs(first.count(0) / 2000 - (5 + 5 + 8) / 108) < 3 * (0.167 * 0.833 / 2000) ** 0.5
