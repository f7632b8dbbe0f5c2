"""Entropy coder, tokenizer codec and container: sizes against entropy, exact round trips, hostile input."""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import random
import struct
import tracemalloc
import zlib
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from training_core.data.tokenizer import MAX_WORD_BYTES, TokenizerConfig, load_tokenizer, train_tokenizer
from training_core.formats import container as container_module
from training_core.formats.codec import CodecError, decode_ternary, encode_ternary, squeeze, unsqueeze
from training_core.formats.container import (
    Container,
    ContainerError,
    describe,
    read_container,
    write_container,
)
from training_core.formats.tensor_code import HalfCode, Int8Code, TensorCode, TernaryCode, TernaryRowsCode
from training_core.formats.tokenizer_codec import compact, expand

TEXT = (
    "the quick brown fox jumps over the lazy dog while a patient reader counts every letter and number "
    "0123456789 therefore nothing there is other than these weathered feathers; été, façade, Ωmega, 日本"
)
WORDS = TEXT.split()


@cache
def tokenizer_json(vocab_size: int = 300, special: tuple[str, ...] = ("<|endoftext|>",)) -> str:
    """A byte-level BPE as the pipeline trains it, on seeded random sentences."""
    generator = random.Random(vocab_size)
    syllables = ["".join(generator.choices("aeioubcdfglmnprst", k=3)) for _ in range(200)]
    lines = [" ".join(generator.choice(WORDS) + generator.choice(syllables) for _ in range(12)) for _ in range(400)]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return str(tokenizer.to_str())


def entropy_bytes(codes: np.ndarray) -> float:
    """n H / 8 with the empirical distribution."""
    counts = np.unique(codes, return_counts=True)[1]
    p = counts / counts.sum()
    return float(-(counts * np.log2(p)).sum() / 8)


def draw(size: int, p: list[float], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 0, 1], dtype=np.int8), size=size, p=p)


# ---- the entropy coder ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "p",
    [
        [1 / 3, 1 / 3, 1 / 3],
        [0.25, 0.5, 0.25],
        [0.1, 0.7, 0.2],
        [0.001, 0.998, 0.001],
        [0.5, 0.5, 0],
        [0, 1e-5, 1 - 1e-5],
    ],
)
def test_size_is_within_one_percent_and_eight_bytes_of_the_entropy(p: list[float]) -> None:
    codes = draw(100_000, p)
    data = encode_ternary(codes)
    assert len(data) <= 1.01 * entropy_bytes(codes) + 8
    assert len(data) >= entropy_bytes(codes)
    assert np.array_equal(decode_ternary(data, codes.size), codes)


@pytest.mark.parametrize("rare", [1, 2, 5, 30])
def test_a_few_rare_symbols_cost_no_more_than_eight_bytes(rare: int) -> None:
    codes = np.zeros(100_000, dtype=np.int8)
    codes[:: 100_000 // rare] = 1
    codes[7] = -1
    assert len(encode_ternary(codes)) <= 1.01 * entropy_bytes(codes) + 8


def test_single_symbol_and_empty_arrays() -> None:
    assert encode_ternary(np.zeros(0, dtype=np.int8)) == b""
    assert decode_ternary(b"", 0).shape == (0,)
    for symbol, table in ((-1, b"\xff\xff\0\0"), (0, b"\0\0\0\0"), (1, b"\0\0\xff\xff")):
        codes = np.full(12345, symbol, dtype=np.int8)
        assert encode_ternary(codes) == table
        assert np.array_equal(decode_ternary(table, 12345), codes)


def test_bytes_are_the_same_on_every_machine() -> None:
    codes = np.array([0, 1, -1, 0, 0, 1, 0, -1, 1, 1, 0, 0] * 3, dtype=np.int8)
    assert encode_ternary(codes).hex() == GOLDEN_ANS
    wide = draw(50_000, [0.2, 0.5, 0.3], seed=3)
    assert hashlib.sha256(encode_ternary(wide)).hexdigest() == GOLDEN_ANS_SHA256


GOLDEN_ANS = "ab2a5555adfcbbfa9c2131518c03"
GOLDEN_ANS_SHA256 = "d5e9d73b52b5ee6ff8bea5e59f1d85c264515894dd2de1f76a993a957e8b2227"


def test_more_symbols_than_a_chunk() -> None:
    codes = draw((1 << 20) + 77, [0.2, 0.5, 0.3])
    assert np.array_equal(decode_ternary(encode_ternary(codes), codes.size), codes)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.int8, st.integers(0, 300), elements=st.integers(-1, 1)))
def test_ternary_round_trip(codes: np.ndarray) -> None:
    data = encode_ternary(codes)
    assert np.array_equal(decode_ternary(data, codes.size), codes)
    assert len(data) <= entropy_bytes(codes) * 1.01 + 8


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 1 << 27))
def test_random_streams_decode_or_raise(data: bytes, count: int) -> None:
    if data[:4] in (b"\xff\xff\0\0", b"\0\0\0\0", b"\0\0\xff\xff"):
        count %= 1000  # a table with one symbol is a valid code of any number of them
    try:
        codes = decode_ternary(data, count)
    except CodecError:
        return
    assert codes.shape == (count,)
    assert set(np.unique(codes)) <= {-1, 0, 1}


def test_wrong_counts_and_symbols_are_refused() -> None:
    codes = draw(1000, [0.3, 0.4, 0.3])
    data = encode_ternary(codes)
    for count in (0, 1, 990, 1100, 10**6, 1 << 27):
        with pytest.raises(CodecError):
            decode_ternary(data, count)
    with pytest.raises(CodecError, match="zero byte"):
        decode_ternary(data + b"\0", 1000)
    with pytest.raises(CodecError, match="sum to 65535"):
        decode_ternary(struct.pack("<HH", 40000, 40000) + data[4:], 1000)
    with pytest.raises(CodecError, match="single symbol"):
        decode_ternary(bytes(4) + data[4:], 1000)
    with pytest.raises(ValueError, match="must be -1, 0 or"):
        encode_ternary(np.array([0, 2], dtype=np.int8))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_squeeze_round_trip(data: bytes) -> None:
    packed = squeeze(data)
    assert unsqueeze(packed, len(data)) == data
    assert len(packed) <= len(data) + 1
    for size in (len(data) - 1, len(data) + 1):
        with pytest.raises(CodecError):
            unsqueeze(packed, max(size, 0) if size >= 0 else 1)


def test_a_compressed_bomb_is_not_inflated() -> None:
    zeros = bytes(50 << 20)
    deflated = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"\1" + deflated.compress(zeros) + deflated.flush()
    assert len(bomb) < 60_000
    tracemalloc.start()
    with pytest.raises(CodecError, match="exactly 1000 bytes"):
        unsqueeze(bomb, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    with pytest.raises(CodecError):
        unsqueeze(b"\2" + lzma.compress(zeros), 1000)


# ---- tensor codes -----------------------------------------------------------------------------------------


def test_row_scales_by_hand() -> None:
    codes = np.array([[1, -1], [1, 0], [0, 1], [1, 1]], dtype=np.int8)
    code = TernaryRowsCode.from_scales(codes, np.array([2.0, 1.0, 2.0 ** (-1 / 32), 1e-9]))
    assert code.base == 2.0
    assert code.steps.tolist() == [0, 32, 33, 255]  # 32 steps an octave; the last one saturates
    assert code.scales()[:2].tolist() == [2.0, 1.0]
    assert code.scales()[2] == np.float32(2.0 ** (-1 / 32))
    assert code.scales()[3] == pytest.approx(2.0 * 2 ** (-255 / 32), rel=1e-7)
    assert code.dequantize()[0].tolist() == [2.0, -2.0]


def test_row_scales_are_close_and_stay_on_the_grid() -> None:
    scales = np.exp(np.random.default_rng(0).normal(-4, 0.5, size=300))
    code = TernaryRowsCode.from_scales(np.ones((300, 2), dtype=np.int8), scales)
    # half a step of 1/32 octave, and the rounding of the base to float16
    assert np.abs(np.log2(code.scales() / scales)).max() <= 1 / 64 + 2**-10
    again = TernaryRowsCode.from_scales(code.codes, code.scales())
    assert np.array_equal(again.scales(), code.scales())


def test_half_and_int8_by_hand() -> None:
    half = HalfCode.from_values(np.array([1 / 3, -2.0], dtype=np.float32))
    assert half.dequantize().tolist() == [float(np.float16(1 / 3)), -2.0]
    int8 = Int8Code.from_values(np.array([[254.0, -127.0], [3.1, 0.9]], dtype=np.float32))
    assert int8.scale == 2.0
    assert int8.codes.tolist() == [[127, -64], [2, 0]]  # -63.5 rounds to even
    assert Int8Code.from_values(np.zeros(3, dtype=np.float32)).dequantize().tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: HalfCode.from_values(np.array([7e4], dtype=np.float32)),
        lambda: HalfCode.from_values(np.array([np.nan], dtype=np.float32)),
        lambda: HalfCode(np.array([np.inf], dtype=np.float16)),
        lambda: Int8Code.from_values(np.array([np.inf], dtype=np.float32)),
        lambda: Int8Code(np.ones(1, dtype=np.int8), 0.1),
        lambda: TernaryCode(np.ones(1, dtype=np.int8), 0.1),
        lambda: TernaryCode(np.ones(1, dtype=np.int8), float("nan")),
        lambda: TernaryRowsCode.from_scales(np.ones((2, 2), dtype=np.int8), np.array([1.0, 0.0])),
        lambda: TernaryRowsCode(np.ones(2, dtype=np.int8), np.zeros(2, dtype=np.uint8), 1.0),
    ],
)
def test_what_the_file_could_not_hold_is_refused(make: object) -> None:
    with pytest.raises(ValueError, match="must (be|have one entry per row)"):
        make()  # type: ignore[operator]


# ---- the tokenizer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocab_size", "special"),
    [
        (257, ("<|endoftext|>",)),
        (300, ("<|endoftext|>",)),
        (700, ("<|endoftext|>", "<think>", "é⟂")),
        (500, ()),
    ],
)
def test_tokenizer_comes_back_equal(vocab_size: int, special: tuple[str, ...]) -> None:
    text = tokenizer_json(vocab_size, special)
    expanded = expand(compact(text))
    assert json.loads(expanded) == json.loads(text)
    original, rebuilt = load_tokenizer(text), load_tokenizer(expanded)
    assert rebuilt.get_vocab_size() == vocab_size
    for sentence in (" ".join(WORDS), "a<|endoftext|>b <think> é⟂", "\n\t  \0 🙂"):
        assert rebuilt.encode(sentence).ids == original.encode(sentence).ids
        assert rebuilt.decode(rebuilt.encode(sentence).ids) == original.decode(original.encode(sentence).ids)


def test_a_trained_tokenizer_comes_back_with_its_cut_of_long_words() -> None:
    text = train_tokenizer(TokenizerConfig(vocab_size=300), [tokenizer_json(), "acgt" * 500]).to_str()
    data = compact(text)
    assert json.loads(expand(data)) == json.loads(text)
    assert compact(expand(data)) == data
    word = "acgt" * 1000
    assert load_tokenizer(expand(data)).encode(word).ids == load_tokenizer(text).encode(word).ids
    other = text.replace(f"{{1,{MAX_WORD_BYTES}}}", "{1,255}")
    assert other != text
    with pytest.raises(ValueError, match="has settings, tokens or ids that its merges do not imply; .*ByteLevel"):
        compact(other)


def test_compact_tokenizer_costs_about_two_bytes_a_merge() -> None:
    num_merges = 1024 - 257
    data = compact(tokenizer_json(1024))
    assert len(data) < 1700
    assert len(data) < 2.3 * num_merges


def test_many_merges_are_stored_as_packed_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    import training_core.formats.tokenizer_codec as module

    monkeypatch.setattr(module, "_ADAPTIVE_MERGES", 100)
    text = tokenizer_json(700)
    data = compact(text)
    assert data[0] == 1
    assert json.loads(expand(data)) == json.loads(text)


def changed(**fields: object) -> str:
    document = json.loads(tokenizer_json())
    for key, value in fields.items():
        document[key] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        changed(normalizer={"type": "NFC"}),
        changed(pre_tokenizer={"type": "Whitespace"}),
        changed(model={"type": "WordLevel", "vocab": {}, "unk_token": "x"}),
        changed(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}),
        changed(added_tokens=[]),
        changed(extra=1),
        tokenizer_json().replace('"!":1,', '"!":2,').replace('"\\"":2,', '"\\"":1,'),
    ],
)
def test_other_tokenizers_are_refused(text: str) -> None:
    assert text != tokenizer_json()
    with pytest.raises(ValueError, match="ByteLevel"):
        compact(text)


def test_a_token_made_in_two_ways_keeps_its_id() -> None:
    from training_core.formats.tokenizer_codec import _encode

    a, b, c = (1 + sorted(pre_tokenizers.ByteLevel.alphabet()).index(letter) for letter in "abc")
    data = _encode(["<|endoftext|>"], np.array([[a, b], [b, c], [257, c], [a, 258], [259, a]], dtype=np.int64))
    model = json.loads(expand(data))["model"]
    assert model["merges"] == [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"], ["abc", "a"]]
    assert {token: index for token, index in model["vocab"].items() if index >= 257} == {
        "ab": 257,
        "bc": 258,
        "abc": 259,
        "abca": 260,
    }
    assert compact(expand(data)) == data


def test_token_length_bomb_is_refused() -> None:
    """Merge k doubles the token of merge k - 1: 60 merges would be 2^60 characters."""
    from training_core.formats.tokenizer_codec import _encode

    pairs = np.array([[1, 1], *[[257 + k, 257 + k] for k in range(59)]], dtype=np.int64)
    data = _encode(["<|endoftext|>"], pairs)
    assert len(data) < 200
    with pytest.raises(CodecError, match="at most 4096 characters"):
        expand(data)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_corrupt_compact_tokenizers_raise_codec_error_or_expand(data: st.DataObject) -> None:
    stream = bytearray(compact(tokenizer_json()))
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        text = expand(bytes(stream))
    except CodecError:
        return
    assert load_tokenizer(text).get_vocab_size() >= 256


# ---- the container ----------------------------------------------------------------------------------------

CONFIG = {
    "d_model": 8,
    "loops": 4,
    "name": "tiny",
    "nested": {"rate": 0.25, "on": True, "none": None, "é": [1]},
}


def small_tensors() -> dict[str, TensorCode]:
    rng = np.random.default_rng(0)
    ternary = draw(48, [0.3, 0.5, 0.2]).reshape(6, 8)
    return {
        "block.0.up.weight": TernaryCode(ternary, 0.125),
        "block.0.down.weight": TernaryRowsCode.from_scales(ternary, rng.uniform(0.1, 1, 6)),
        "norm": HalfCode.from_values(rng.normal(size=8).astype(np.float32)),
        "gain": Int8Code.from_values(rng.normal(size=(2, 3)).astype(np.float32)),
        "scalar": HalfCode.from_values(np.float32(2.5).reshape(())),
        "none": TernaryCode(np.zeros((0, 3), dtype=np.int8), 0.0),
    }


@cache
def small_file() -> bytes:
    return write_container(CONFIG, tokenizer_json(260), small_tensors())


def checksummed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def with_directory(directory: bytes, rest: bytes = b"") -> bytes:
    """A container with a valid digest whose (uncompressed) directory is `directory`."""
    packed = squeeze(directory)
    varint = container_module._varint
    return checksummed(b"FORGE\x01" + varint(len(directory)) + varint(len(packed)) + packed + rest)


def assert_equal(container: Container, tensors: dict[str, TensorCode]) -> None:
    assert list(container.tensors) == list(tensors)
    for name, array in container.dequantize().items():
        assert array.dtype == np.float32
        assert array.shape == tensors[name].shape
        assert np.array_equal(array, tensors[name].dequantize()), name
        assert type(container.tensors[name]) is type(tensors[name])


def test_container_round_trip() -> None:
    container = read_container(small_file())
    assert container.config == CONFIG
    assert json.loads(container.tokenizer_json) == json.loads(tokenizer_json(260))
    assert_equal(container, small_tensors())
    assert write_container(CONFIG, tokenizer_json(260), small_tensors()) == small_file()


def test_every_byte_is_accounted_for() -> None:
    sizes = describe(small_file())
    assert list(sizes) == [
        "magic",
        "directory",
        "tokenizer",
        *(f"tensor {n}" for n in small_tensors()),
        "checksum",
    ]
    assert sum(sizes.values()) == len(small_file())
    for name, tensor in small_tensors().items():
        assert sizes[f"tensor {name}"] == len(tensor.payload()) + 1
    assert sizes["tensor none"] == 1 + 2
    assert sizes["tokenizer"] == len(compact(tokenizer_json(260))) + 1


def test_overhead_is_at_most_twelve_bytes_a_tensor() -> None:
    names = [
        f"blocks.{block}.{part}.weight"
        for block in range(2)
        for part in (
            "attention.query",
            "attention.key",
            "attention.value",
            "attention.output",
            "mlp.gate",
            "mlp.up",
            "mlp.down",
        )
    ]
    tensors: dict[str, TensorCode] = {
        name: TernaryCode(draw(288 * 288, [0.25, 0.5, 0.25], seed).reshape(288, 288), 0.03125)
        for seed, name in enumerate(names)
    }
    tensors |= {f"blocks.{b}.norm{i}": HalfCode(np.ones(288, dtype=np.float16)) for b in range(2) for i in range(2)}
    sizes = describe(write_container({}, tokenizer_json(), tensors))
    directory = sizes["directory"] - describe(write_container({}, tokenizer_json(), {}))["directory"]
    length_prefix = 3
    assert length_prefix + directory / len(tensors) <= 12
    entropy = sum(entropy_bytes(tensors[name].codes) for name in names)
    assert sum(sizes[f"tensor {name}"] for name in names) <= 1.001 * entropy + 12 * len(names)


SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)


@st.composite
def tensor_codes(draw_from: st.DrawFn) -> TensorCode:
    shape = draw_from(SHAPES)
    codes = draw_from(hnp.arrays(np.int8, shape, elements=st.integers(-1, 1)))
    kind = draw_from(st.sampled_from(["ternary", "rows", "half", "int8"]))
    if kind == "ternary":
        return TernaryCode(codes, draw_from(st.floats(0, 65504, width=16)))
    if kind == "rows" and len(shape) >= 2 and shape[0] > 0:
        scales = draw_from(hnp.arrays(np.float32, shape[:1], elements=st.floats(2**-10, 100, width=32)))
        return TernaryRowsCode.from_scales(codes, scales)
    if kind == "half":
        return HalfCode(draw_from(hnp.arrays(np.float16, shape, elements=st.floats(-65504, 65504, width=16))))
    return Int8Code.from_values(draw_from(hnp.arrays(np.float32, shape, elements=st.floats(-1e6, 1e6, width=32))))


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}(\.[0-9a-z]{1,3}){0,2}", fullmatch=True), tensor_codes(), max_size=5))
def test_random_tensors_round_trip(tensors: dict[str, TensorCode]) -> None:
    data = write_container({"n": len(tensors)}, tokenizer_json(257), tensors)
    assert_equal(read_container(data), tensors)
    assert sum(describe(data).values()) == len(data)


def test_every_single_byte_flip_and_every_truncation_raises() -> None:
    data = small_file()
    assert len(data) < 1200
    for position in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= mask
            with pytest.raises(ContainerError):
                read_container(bytes(damaged))
        with pytest.raises(ContainerError):
            read_container(data[:position])
    with pytest.raises(ContainerError):
        read_container(data + b"\0")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_corruption_under_a_valid_checksum(data: st.DataObject) -> None:
    """An attacker can recompute the digest: nothing but ContainerError, or a container within the limits."""
    body = bytearray(small_file()[:-32])
    for _ in range(data.draw(st.integers(1, 4))):
        action = data.draw(st.sampled_from(["set", "insert", "delete"]))
        position = data.draw(st.integers(6, len(body) - 1))
        if action == "set":
            body[position] = data.draw(st.integers(0, 255))
        elif action == "insert":
            body[position:position] = data.draw(st.binary(max_size=6))
        else:
            del body[position : position + data.draw(st.integers(1, 20))]
            body += bytes(max(0, 8 - len(body)))
    check_hostile(checksummed(bytes(body)))


DIRECTORIES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 1 << 40),
        st.text(max_size=4),
        st.sampled_from(["t", "tr", "hi"]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["config", "tensors", "x"]), inner),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(DIRECTORIES, st.binary(max_size=60))
def test_random_directories_under_a_valid_checksum(directory: object, rest: bytes) -> None:
    text = json.dumps(directory, sort_keys=True, separators=(",", ":")).encode()
    check_hostile(with_directory(text, rest))


def check_hostile(data: bytes) -> None:
    try:
        container = read_container(data)
    except ContainerError:
        return
    assert sum(math.prod(tensor.shape) for tensor in container.tensors.values()) <= 1 << 27
    assert sum(describe(data).values()) == len(data)
    assert load_tokenizer(container.tokenizer_json).get_vocab_size() >= 256


@pytest.mark.parametrize(
    ("directory", "message"),
    [
        (b'{"config":{},"tensors":[["w"],"t",[[134217729]]]}', "sizes of 0 to 2"),
        (b'{"config":{},"tensors":[["w"],"h",[[65536,65536]]]}', "at most 134217728 weights"),
        (b'{"config":{},"tensors":[["v","w"],"tt",[[100000000],[100000000]]]}', "w exceeds"),
        (b'{"config":{},"tensors":[["w"],"r",[[134217728,0,2]]]}', "at most 134217728 weights"),
        (b'{"config":{},"tensors":[["w"],"t",[[-1]]]}', "sizes of 0 to 2"),
        (b'{"config":{},"tensors":[["w"],"t",[[true]]]}', "sizes of 0 to 2"),
        (b'{"config":{},"tensors":[["w"],"t",[[1,1,1,1,1,1,1,1,1]]]}', "at most 8 sizes"),
        (b'{"config":{},"tensors":[["w","w"],"tt",[[1],[1]]]}', "twice"),
        (b'{"config":{},"tensors":[["w"],"z",[[1]]]}', "known code"),
        (b'{"config":{},"tensors":[["a b"],"t",[[1]]]}', "printable ASCII"),
        (b'{"config":{},"tensors":[["w"],"tt",[[1]]]}', "not what a container holds"),
        (b'{"config":{},"tensors":["w","t",[[1]]]}', "must be lists"),
        (b'{"config":[],"tensors":[[],"",[]]}', "canonical JSON object"),
        (b'{"config":{"a":1,"a":2},"tensors":[[],"",[]]}', "canonical JSON object"),
        (b'{"config":{"a":1e999},"tensors":[[],"",[]]}', "canonical JSON object"),
        (b'{"config":{"a":NaN},"tensors":[[],"",[]]}', "finite"),
        (b'{"config":{"a":' + b"9" * 5000 + b'},"tensors":[[],"",[]]}', "not what a container holds"),
        (b'{"config":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not what a container holds"),
        (b"\xff\xfe", "not what a container holds"),
        (b" " * ((1 << 20) + 1), "directory must have at most"),
    ],
)
def test_hostile_directories_are_refused_before_allocation(directory: bytes, message: str) -> None:
    with pytest.raises(ContainerError, match=message):
        read_container(with_directory(directory))


def test_hostile_payloads_are_refused() -> None:
    varint = container_module._varint
    tokenizer = compact(tokenizer_json(257))
    sections = varint(len(tokenizer)) + tokenizer
    deflated = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"\1" + deflated.compress(bytes(50 << 20)) + deflated.flush()
    for letter, payload in (
        (b"h", bomb),
        (b"i", bytes(4) + bomb),
        (b"i", struct.pack("<f", math.nan) + squeeze(bytes(64))),
        (b"h", squeeze(b"\xff" * 128)),  # NaN
        (b"t", struct.pack("<e", math.inf) + bytes(4)),
        (b"t", struct.pack("<e", -1.0) + bytes(4)),
        (b"t", b"\0"),
        (b"r", struct.pack("<eI", 1.0, 1 << 31) + bytes(4)),
        (b"r", struct.pack("<eI", 1.0, 2) + squeeze(bytes(8))[:2] + bytes(4)),
    ):
        directory = b'{"config":{},"tensors":[["w"],"' + letter + b'",[[8,8]]]}'
        with pytest.raises(ContainerError):
            read_container(with_directory(directory, sections + varint(len(payload)) + payload))
    valid = with_directory(b'{"config":{},"tensors":[["w"],"t",[[8,8]]]}', sections + varint(6) + b"\0\x3c" + bytes(4))
    assert read_container(valid).dequantize()["w"].tolist() == [[0.0] * 8] * 8


def test_magic_and_version_have_their_own_messages() -> None:
    with pytest.raises(ContainerError, match="must start with"):
        read_container(b"GGUF" + bytes(100))
    with pytest.raises(ContainerError, match="container version is 2"):
        read_container(checksummed(b"FORGE\x02" + bytes(10)))
    with pytest.raises(ContainerError, match="SHA-256"):
        read_container(small_file()[:-1] + b"\0")
    with pytest.raises(ContainerError, match="malformed"):
        read_container(checksummed(b"FORGE\x01\x80\x00" + bytes(10)))
    with pytest.raises(ContainerError, match="follow the last tensor"):
        read_container(checksummed(small_file()[:-32] + b"\0"))


@pytest.mark.parametrize("config", [{"a": (1, 2)}, {1: 2}, {"a": math.nan}, {"a": {1, 2}}, {"a": np.float32(1)}])
def test_config_must_survive_json(config: dict) -> None:
    with pytest.raises(ValueError, match=r"finite|JSON"):
        write_container(config, tokenizer_json(257), {})
