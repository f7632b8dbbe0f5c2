"""Byte-level BPE (Sennrich et al., 2016; bytes as in GPT-2), trained with the `tokenizers` library.

Ids: 0 is END_OF_TEXT, which separates documents, 1..256 are the bytes, then the merges in the order learned.

Text is data: a text that contains "<|endoftext|>" is encoded as these thirteen characters, never as the separator. The
library's files cannot say so; every tokenizer is therefore loaded by `load_tokenizer`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from training_core.reporting import Reporter

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
MAX_WORD_BYTES = 256  # longer runs of letters, digits or spaces are cut: BPE takes time quadratic in their length
_MAX_RUN_CHARACTERS = 1 << 22
_LONG_RUN = re.compile(rf"(?<!\w)\w{{{MAX_WORD_BYTES + 1},}}|(?<![^\w\s])[^\w\s]{{{MAX_WORD_BYTES + 1},}}")


class TokenizerConfig(BaseModel):
    """Size of the vocabulary, and the evidence that a merge needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(
        1024, ge=258, le=65535, description="Vocabulary size: END_OF_TEXT, 256 bytes and the merges"
    )
    min_frequency: int = Field(2, ge=1, description="Minimum occurrences of a merge in the training documents")


def words_of_bytes() -> pre_tokenizers.PreTokenizer:
    """Return the pre-tokenizer: GPT-2's words as byte symbols, cut after every `MAX_WORD_BYTES` bytes."""
    cut = pre_tokenizers.Split(Regex(f".{{1,{MAX_WORD_BYTES}}}"), "isolated")
    return pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False), cut])


@cache
def parts_of_words() -> dict[str, Any]:
    """Return what a tokenizer.json holds as its `pre_tokenizer` for `words_of_bytes`."""
    written: dict[str, Any] = json.loads(words_of_bytes().__getstate__())
    return written


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str], reporter: Reporter | None = None) -> Tokenizer:
    """Train a tokenizer on the training documents.

    Of runs of more than `MAX_WORD_BYTES` letters, or as many signs, the first 2^22 characters are used and the rest is
    left out: each such run is different, and the trainer needs about 80 bytes for each of their letters.

    Raises:
        ValueError: when the texts support fewer merges than `vocab_size` asks for.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = words_of_bytes()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_bounded_runs(texts), trainer)
    size = tokenizer.get_vocab_size()
    if reporter is not None:
        reporter.progress(size, config.vocab_size, "tokens of the vocabulary")
    if size < config.vocab_size:
        raise ValueError(
            f"vocab_size = {config.vocab_size} is more than the corpus supports: its training documents give {size} "
            f"tokens; set vocab_size to {size} or less, or add text"
        )
    return _reading_text_as_text(tokenizer)


def _bounded_runs(texts: Iterable[str]) -> Iterator[str]:
    left = _MAX_RUN_CHARACTERS

    def kept(run: re.Match[str]) -> str:
        nonlocal left
        part = run[0][:left]
        left -= len(part)
        return part

    for text in texts:
        yield _LONG_RUN.sub(kept, text)


def load_tokenizer(tokenizer_json: str) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json's text; it takes no special token from the texts that it encodes."""
    return _reading_text_as_text(Tokenizer.from_str(tokenizer_json))


def _reading_text_as_text(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.encode_special_tokens = True  # the library's name for: special tokens in a text are encoded as text
    return tokenizer
