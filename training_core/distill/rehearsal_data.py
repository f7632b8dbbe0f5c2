"""Rehearsal data for baking: text, tasks, and questions with their answers, on which the model must not change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.batches import MixConfig, TrainingData
from training_core.data.packing import TokenStream, encode
from training_core.data.tokenizer import END_OF_TEXT_ID, load_tokenizer
from training_core.distill.prompt_baking import TextBatches


def staying_rows(
    data: TrainingData, questions: Sequence[str], mix: MixConfig, seq_len: int, question_share: float, rows: int
) -> TextBatches:
    """Return a sampler of rehearsal rows: text and tasks by the mix's shares, and questions with answers.

    The sampler maps a generator to (rows, seq_len + 1) token ids. A row of questions starts at the beginning of a
    question: that is the position at which questions are asked, and so the one where they could be forgotten.
    """
    question_rows = round(question_share * rows) if questions else 0
    stream = _stream(load_tokenizer(data.tokenizer_json), questions) if question_rows else None

    def draw(generator: torch.Generator) -> Tensor:
        parts = []
        if rows > question_rows:
            parts.append(data.batch(mix, rows - question_rows, seq_len + 1, generator))
        if stream is not None:
            parts.append(_from_beginnings(stream, question_rows, seq_len + 1, generator))
        return torch.cat(parts)

    return draw


def _from_beginnings(stream: TokenStream, rows: int, tokens: int, generator: torch.Generator) -> Tensor:
    """Rows that start at the beginning of a text, padded with END_OF_TEXT past the end of the stream."""
    drawn = torch.full((rows, tokens), END_OF_TEXT_ID)
    for row, place in enumerate(torch.randint(len(stream.starts), (rows,), generator=generator).tolist()):
        piece = stream.window(int(stream.starts[place]), tokens)
        drawn[row, : len(piece)] = torch.from_numpy(piece)
    return drawn


def _stream(tokenizer: Tokenizer, texts: Sequence[str]) -> TokenStream:
    pieces = [np.concatenate([[END_OF_TEXT_ID], ids]) for ids, _ in encode(tokenizer, texts)]
    starts = np.cumsum([0] + [len(piece) for piece in pieces[:-1]]).astype(np.int64)
    num_bytes = np.array([len(text.encode()) for text in texts], np.int64)
    return TokenStream((np.concatenate(pieces).astype(np.uint16),), starts, num_bytes)
