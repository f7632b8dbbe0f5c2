"""The compact form of a byte-level BPE tokenizer: its special tokens and its merges, as pairs of ids.

Everything else in the JSON of the `tokenizers` library follows from these: ids are assigned to the special tokens, to
the 256 byte symbols in sorted order and to the merged tokens, in that order (a merged token that exists already keeps
its id).

A merge costs about 16 bits: its two ids are coded with ANS under adaptive counts of how often each id was the left, or
the right, part of the merges before it (id t has probability (4 count_t + 1) / sum). Vocabularies with more than 8192
merges, for which that takes seconds, are stored as LZMA-compressed ids. One bit says whether long words are cut before
they are merged, as they are by tokenizers that `training_core.data.tokenizer` trains.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from training_core.data.tokenizer import parts_of_words, words_of_bytes
from training_core.formats.codec import CodecError, open_coder, squeeze, unsqueeze, words_to_bytes

MAX_VOCABULARY = 65535
MAX_TOKEN_CHARACTERS = 4096
MAX_CHARACTERS = 1 << 22
_ADAPTIVE_MERGES = 8192
_ADAPTIVE, _PACKED = 0, 1
_CUT_WORDS = 2  # added to the method
_HEADER = struct.Struct("<BBH")  # method, number of special tokens, number of merges
_COUNT_WEIGHT = 4.0
_DEFAULT_SPECIAL = ["<|endoftext|>"]

Pairs = npt.NDArray[np.int64]


def compact(tokenizer_json: str) -> bytes:
    """Return the compact form of `tokenizer_json`.

    Raises:
        ValueError: when the tokenizer is not a byte-level BPE as described above, so that `expand` would give a
            different one.
    """
    try:
        document = json.loads(tokenizer_json)
        vocabulary: dict[str, int] = document["model"]["vocab"]
        special = [token["content"] for token in document["added_tokens"]]
        pairs = [(vocabulary[left], vocabulary[right]) for left, right in document["model"]["merges"]]
        cut_words = document["pre_tokenizer"] == parts_of_words()
        data = _encode(special, np.array(pairs, dtype=np.int64).reshape(-1, 2), cut_words=cut_words)
        faithful = json.loads(expand(data)) == document
    except (KeyError, TypeError, AttributeError, OverflowError, struct.error, ValueError) as error:
        raise ValueError(f"not a byte-level BPE tokenizer that can be made compact ({error}); {_REPAIR}") from error
    if not faithful:
        raise ValueError(f"the tokenizer has settings, tokens or ids that its merges do not imply; {_REPAIR}")
    return data


def expand(data: bytes) -> str:
    """Return the tokenizer's JSON from its compact form.

    Raises:
        CodecError: when `data` is not a compact form.
    """
    special, num_merges, method, cut_words, body = _split(data)
    tokens = _base_tokens(special)
    if len(tokens) + num_merges > MAX_VOCABULARY:
        raise CodecError(f"a vocabulary must have at most {MAX_VOCABULARY} tokens, got {len(tokens) + num_merges}")
    if method == _ADAPTIVE:
        pairs = _decode_adaptive(body, len(tokens), num_merges)
    else:
        ids = np.frombuffer(unsqueeze(body, 4 * num_merges), dtype="<u2")
        pairs = ids.reshape(2, num_merges).T.astype(np.int64)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    num_characters = 0
    for left, right in pairs.tolist():
        if max(left, right) >= len(tokens) or min(left, right) < len(special):
            raise CodecError(f"merge {len(merges)} joins {left} and {right} of {len(tokens)} tokens; it is damaged")
        merges.append((tokens[left], tokens[right]))
        token = tokens[left] + tokens[right]
        num_characters += len(token)
        if len(token) > MAX_TOKEN_CHARACTERS or num_characters > MAX_CHARACTERS:
            raise CodecError(f"tokens must have at most {MAX_TOKEN_CHARACTERS} characters; the stream is damaged")
        if token not in vocabulary:
            vocabulary[token] = len(tokens)
            tokens.append(token)
    if len(set(merges)) != len(merges):
        raise CodecError("a merge occurs twice; the stream is damaged")
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = words_of_bytes() if cut_words else pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return str(tokenizer.to_str())


_REPAIR = (
    "build it as Tokenizer(BPE()) with ByteLevel(add_prefix_space=False), a ByteLevel decoder and "
    "BpeTrainer(special_tokens=..., initial_alphabet=sorted(ByteLevel.alphabet()))"
)


def _base_tokens(special: list[str]) -> list[str]:
    tokens = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    if len(set(tokens)) != len(tokens) or "" in tokens:
        raise CodecError(f"special tokens must be distinct, not empty and no byte symbols, got {special}")
    return tokens


def _encode(special: list[str], pairs: Pairs, *, cut_words: bool = False) -> bytes:
    num_base = len(_base_tokens(special))
    listed = b"" if special == _DEFAULT_SPECIAL else b"".join(_prefixed(token) for token in special)
    count = 255 if special == _DEFAULT_SPECIAL else len(special)
    method = _ADAPTIVE if len(pairs) <= _ADAPTIVE_MERGES else _PACKED
    body = _encode_adaptive(pairs, num_base) if method == _ADAPTIVE else squeeze(pairs.T.astype("<u2").tobytes())
    return _HEADER.pack(method + _CUT_WORDS * cut_words, count, len(pairs)) + listed + body


def _prefixed(token: str) -> bytes:
    encoded = token.encode()
    return struct.pack("<B", len(encoded)) + encoded


def _split(data: bytes) -> tuple[list[str], int, int, bool, bytes]:
    """Parse the header: special tokens, number of merges, method, whether words are cut, and the remaining bytes."""
    if len(data) < _HEADER.size:
        raise CodecError(f"a compact tokenizer must have at least {_HEADER.size} bytes, got {len(data)}")
    flags, count, num_merges = _HEADER.unpack_from(data)
    method, cut_words = flags & ~_CUT_WORDS, bool(flags & _CUT_WORDS)
    expected = _ADAPTIVE if num_merges <= _ADAPTIVE_MERGES else _PACKED
    if method != expected:
        raise CodecError(f"{num_merges} merges must be coded by method {expected}, got {method}; it is damaged")
    if count == 255:
        return list(_DEFAULT_SPECIAL), num_merges, method, cut_words, data[_HEADER.size :]
    special, position = [], _HEADER.size
    for _ in range(count):
        length = data[position] if position < len(data) else 0
        piece = data[position + 1 : position + 1 + length]
        if length == 0 or len(piece) != length:
            raise CodecError("a special token is empty or cut short; the compact tokenizer is damaged")
        try:
            special.append(piece.decode())
        except UnicodeDecodeError as error:
            raise CodecError("a special token is not UTF-8; the compact tokenizer is damaged") from error
        position += 1 + length
    return special, num_merges, method, cut_words, data[position:]


def _model(counts: npt.NDArray[np.float64]) -> Any:
    import constriction

    return constriction.stream.model.Categorical(_COUNT_WEIGHT * counts + 1.0, lazy=True, perfect=False)


def _encode_adaptive(pairs: Pairs, num_base: int) -> bytes:
    """Encode merges in reverse, because the coder is a stack: start from the final counts and remove merge by merge."""
    import constriction

    size = num_base + len(pairs)
    counts = [np.bincount(pairs[:, side], minlength=size).astype(np.float64) for side in (0, 1)]
    coder = constriction.stream.stack.AnsCoder()
    for index in range(len(pairs) - 1, -1, -1):
        for side in (1, 0):
            symbol = int(pairs[index, side])
            counts[side][symbol] -= 1
            if symbol >= num_base + index:
                raise ValueError(f"merge {index} uses id {symbol}, which no earlier merge made")
            coder.encode_reverse(symbol, _model(counts[side][: num_base + index]))
    return words_to_bytes(coder.get_compressed())


def _decode_adaptive(data: bytes, num_base: int, num_merges: int) -> Pairs:
    coder = open_coder(data)
    counts = np.zeros((2, num_base + num_merges))
    pairs = np.empty((num_merges, 2), dtype=np.int64)
    for index in range(num_merges):
        for side in (0, 1):
            symbol = int(coder.decode(_model(counts[side, : num_base + index])))
            counts[side, symbol] += 1
            pairs[index, side] = symbol
    if not coder.is_empty():
        raise CodecError(f"more than {num_merges} merges are in the compact tokenizer; it is damaged")
    return pairs
