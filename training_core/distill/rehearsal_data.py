"""Rows on which a baked model must stay what it was: text, tasks and questions with their answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.batches import MixConfig, TrainingData
from training_core.data.packing import TokenStream, encode
from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.distill.prompt_baking import TextBatches


def staying_rows(
    data: TrainingData, questions: Sequence[str], mix: MixConfig, seq_len: int, question_share: float, rows: int
) -> TextBatches:
    """Rows on which the student must stay as it was: text and tasks by the mix's shares, and questions with answers.

    Returns a function from a generator to (rows, seq_len + 1) token ids. A row of questions begins with one: at the
    beginning of a row is where it is asked, and where it could be forgotten.
    """
    asked = round(question_share * rows) if questions else 0
    stream = _stream(Tokenizer.from_str(data.tokenizer_json), questions) if asked else None

    def draw(generator: torch.Generator) -> Tensor:
        parts = []
        if rows > asked:
            parts.append(data.batch(mix, rows - asked, seq_len + 1, generator))
        if stream is not None:
            parts.append(_from_beginnings(stream, asked, seq_len + 1, generator))
        return torch.cat(parts)

    return draw


def _from_beginnings(stream: TokenStream, rows: int, tokens: int, generator: torch.Generator) -> Tensor:
    """Rows that begin where a text does, padded with END_OF_TEXT behind the last text."""
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
