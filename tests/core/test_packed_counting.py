"""The n-gram model of a given number of bytes: against the equations, through its code, and never over the budget."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.back_off import BackOff, Gram
from tests.oracles.back_off import grow as naive_grow
from training_core.data.packing import TokenStream, write_stream
from training_core.data.tokenizer import load_tokenizer
from training_core.evaluation.counting import fit
from training_core.evaluation.packed_counting import BackoffModel, grow, pack, real_counts, unpack
from training_core.evaluation.windows import cut_windows
from training_core.formats.codec import CodecError
from training_core.formats.ngram_code import (
    Keys,
    NGramLevels,
    decode_ngrams,
    encode_ngrams,
    level_of,
    probability_of,
)
from training_core.formats.tokenizer_codec import compact

VOCAB = 7


def text(length: int, seed: int = 0, vocab: int = VOCAB) -> list[int]:
    """A text in which the next token depends on the last two, and sometimes on chance."""
    draw = np.random.default_rng(seed)
    tokens = [0, 1]
    while len(tokens) < length:
        step = draw.choice([1, 2, 3], p=[0.7, 0.2, 0.1])
        tokens.append(int((tokens[-1] + (tokens[-2] * 3 if draw.random() < 0.8 else 0) + step) % vocab))
    return tokens


def gram(key: int, order: int) -> Gram:
    return tuple((key >> (16 * place)) & 0xFFFF for place in range(order - 1, -1, -1))


def grams(model: BackoffModel) -> dict[Gram, int]:
    return {
        gram(int(key), order): int(level)
        for order, stored in enumerate(model.levels, start=1)
        for key, level in zip(stored.keys, stored.levels, strict=True)
    }


@pytest.mark.parametrize("z", [0.3, 1.5, 2.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_kept_equals_the_rule_one_ngram_at_a_time(z: float, seed: int) -> None:
    tokens = text(900, seed)
    model = grow(real_counts(fit(np.array(tokens), VOCAB).orders[-1]), VOCAB, z)
    expected = naive_grow(tokens, VOCAB, z)
    assert grams(model) == expected
    assert len(expected) > VOCAB, "something is kept"


def test_probabilities_equal_the_equations_and_sum_to_one() -> None:
    model = grow(real_counts(fit(np.array(text(3000)), VOCAB).orders[-1]), VOCAB, 1.0)
    oracle = BackOff(grams(model), VOCAB)
    asked = [[a, b, c] for a in (0, 3, 6) for b in range(VOCAB) for c in range(VOCAB)]
    found = model.probabilities(np.array(asked))
    assert np.abs(found.sum(-1) - 1).max() < 1e-12
    for row, context in zip(found, asked, strict=True):
        expected = [oracle.probability(tuple(context), token) for token in range(VOCAB)]
        assert np.abs(row - expected).max() < 1e-12
    assert {len(g) for g in grams(model)} == {1, 2, 3, 4}


def test_levels_are_a_grid_of_log_odds() -> None:
    levels = np.arange(-30, 31)
    assert level_of(probability_of(levels)).tolist() == levels.tolist()
    assert probability_of(np.array([0, 5])).tolist() == pytest.approx([0.5, math.exp(2) / (1 + math.exp(2))])


@st.composite
def tries(draw: st.DrawFn) -> list[NGramLevels]:
    """Prefix-closed sets of n-grams, with random levels."""
    vocab = draw(st.integers(2, 40))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    orders = [np.arange(vocab, dtype=np.uint64)]
    for _ in range(draw(st.integers(1, 3))):
        parents = generator.choice(orders[-1], draw(st.integers(0, 60))) if len(orders[-1]) else orders[-1]
        tokens = np.minimum(generator.geometric(draw(st.floats(0.02, 1)), len(parents)) - 1, vocab - 1)
        orders.append(np.unique((parents << np.uint64(16)) | tokens.astype(np.uint64)))
    spread = draw(st.integers(1, 25))
    return [NGramLevels(keys, generator.integers(-spread, spread, len(keys))) for keys in orders]


@settings(max_examples=60, deadline=None)
@given(orders=tries())
def test_what_is_encoded_is_decoded(orders: list[NGramLevels], tokenizer_json: str) -> None:
    decoded, tokenizer = decode_ngrams(encode_ngrams(orders, tokenizer_json))
    assert json.loads(tokenizer) == json.loads(tokenizer_json)
    assert len(decoded) == len(orders)
    for was, found in zip(orders, decoded, strict=True):
        assert found.keys.tolist() == was.keys.tolist()
        assert found.levels.tolist() == was.levels.tolist()


@pytest.fixture(scope="module")
def tokenizer_json(small_data: dict[str, Path]) -> str:
    return (small_data["tokenizer"] / "tokenizer.json").read_text()


def test_an_ngram_without_its_prefix_is_refused(tokenizer_json: str) -> None:
    keys: list[Keys] = [np.arange(3, dtype=np.uint64), np.zeros(0, np.uint64), np.array([1], np.uint64)]
    with pytest.raises(ValueError, match="every n-gram of order 3 must extend one of order 2"):
        encode_ngrams([NGramLevels(k, np.zeros(len(k), np.int64)) for k in keys], tokenizer_json)


def test_damage_is_noticed(tokenizer_json: str) -> None:
    data = encode_ngrams(
        grow(real_counts(fit(np.array(text(900)), VOCAB).orders[-1]), VOCAB, 1.0).levels, tokenizer_json
    )
    with pytest.raises(CodecError, match="at least 15 bytes"):
        decode_ngrams(data[:9])
    with pytest.raises(CodecError, match="damaged"):
        decode_ngrams(data + b"\1\2\3\4")


def test_the_file_is_the_largest_that_fits(small_data: dict[str, Path], tokenizer_json: str) -> None:
    stream = TokenStream.open(small_data["tokens"], "train")
    vocab = load_tokenizer(tokenizer_json).get_vocab_size()
    windows = cut_windows(TokenStream.open(small_data["tokens"], "test"), 3000, 64)
    worse = math.inf
    for budget in (800, 1000, 1300):
        data = pack(stream, tokenizer_json, vocab, budget)
        assert 0.9 * budget < len(data) <= budget
        nats = float(unpack(data).measure(windows)["nats"].sum())
        assert nats < worse, "more bytes, a better model"
        worse = nats
    with pytest.raises(ValueError, match="20 bytes hold no n-gram model"):
        pack(stream, tokenizer_json, vocab, 20)


def test_an_ngram_costs_less_than_its_tokens(tmp_path: Path, tokenizer_json: str) -> None:
    """Of 256 equally frequent tokens a successor costs 8 bits without the trie's order, and a level about 2."""
    tokens = np.array(text(60_000, vocab=256), np.uint16)
    write_stream(tmp_path, "train", [(tokens, len(tokens))], 1 << 20)
    stream = TokenStream.open(tmp_path, "train")
    data = pack(stream, tokenizer_json, 256, 9000)
    number = sum(len(grams.keys) for grams in unpack(data).levels)
    assert 8 * (len(data) - len(compact(tokenizer_json))) / number < 12
