"""Byte-level BPE (Sennrich et al., 2016; bytes as in GPT-2), trained with the `tokenizers` library.

Ids: 0 is END_OF_TEXT, which separates documents, 1..256 are the bytes, then the merges in the order learned.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0


class TokenizerConfig(BaseModel):
    """Size of the vocabulary, and the evidence that a merge needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(
        1024, ge=258, le=65535, description="Vocabulary size: END_OF_TEXT, 256 bytes and the merges"
    )
    min_frequency: int = Field(2, ge=1, description="Minimum occurrences of a merge in the training documents")


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Train a tokenizer on the training documents.

    Raises:
        ValueError: when the texts support fewer merges than `vocab_size` asks for.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    size = tokenizer.get_vocab_size()
    if size < config.vocab_size:
        raise ValueError(
            f"vocab_size = {config.vocab_size} is more than the corpus supports: its training documents give {size} "
            f"tokens; set vocab_size to {size} or less, or add text"
        )
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer from a tokenizer.json file."""
    return Tokenizer.from_file(str(path))
