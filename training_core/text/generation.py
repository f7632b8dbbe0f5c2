"""Autoregressive text generation from a streaming model, with temperature and nucleus sampling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.nn.cognate import Cognate


class Speaker(Protocol):
    """A source of next-token distributions: it is fed every token of a text, and predicts the next one on request."""

    def feed(self, token: int) -> None:
        """Feed the next token of the text."""

    def predict(self) -> Tensor:
        """Return the logits (vocab) of the token after the last one fed."""


class PlainSpeaker:
    """A `Speaker` that streams one text through a model."""

    def __init__(self, model: Cognate) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._state = model.stream(1)
        self._logits = torch.zeros(0)

    def feed(self, token: int) -> None:
        """Advance by one token."""
        self._logits = self._model.step(torch.tensor([token], device=self._device), self._state)[0]

    def predict(self) -> Tensor:
        """Return the logits (vocab) of the next token."""
        return self._logits


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """Sample from the smallest set of tokens whose probability reaches `top_p` (Holtzman et al., 2020, section 3.1).

    Maps logits (rows, vocab) to token ids (rows). Temperature 0 takes the most likely token.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.double() / temperature).softmax(-1)
    if top_p == 1:
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    probabilities, order = probabilities.sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    place = torch.multinomial(probabilities.masked_fill(before >= top_p, 0.0), 1, generator=generator)
    return order.gather(-1, place)[:, 0]


def generate(
    model: Cognate,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int = 120,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the continuation of `prompt` in pieces of text, until END_OF_TEXT or `max_tokens` tokens.

    Pieces contain whole characters: the bytes of an incomplete one are held back until the next token.

    Raises:
        ValueError: for a temperature below 0, a top_p outside (0, 1], or fewer than one token.
    """
    drawn = continuation(PlainSpeaker(model), tokenizer, prompt, max_tokens, temperature, top_p, seed)
    return (piece for piece in drawn if piece)


def continuation(
    speaker: Speaker, tokenizer: Tokenizer, prompt: str, max_tokens: int, temperature: float, top_p: float, seed: int
) -> Iterator[str]:
    """Feed END_OF_TEXT and `prompt`, then yield the piece of text that each sampled token completes.

    A piece is empty while a character is incomplete, and for the final END_OF_TEXT.

    Raises:
        ValueError: as `generate`, before anything is fed.
    """
    if temperature < 0 or not 0 < top_p <= 1 or max_tokens < 1:
        raise ValueError(
            f"temperature must be at least 0, top_p in (0, 1] and max_tokens at least 1; got {temperature}, {top_p}, "
            f"{max_tokens}"
        )
    return _draw(speaker, tokenizer, prompt, max_tokens, temperature, top_p, seed)


@torch.no_grad()
def _draw(
    speaker: Speaker, tokenizer: Tokenizer, prompt: str, max_tokens: int, temperature: float, top_p: float, seed: int
) -> Iterator[str]:
    generator = torch.Generator().manual_seed(seed)
    for token in [END_OF_TEXT_ID, *tokenizer.encode(prompt).ids]:
        speaker.feed(token)
    produced: list[int] = []
    shown = ""
    while len(produced) < max_tokens:
        if produced:
            speaker.feed(produced[-1])
        produced.append(int(sample(speaker.predict().cpu()[None], temperature, top_p, generator)))
        if produced[-1] == END_OF_TEXT_ID:
            yield ""
            return
        text = tokenizer.decode(produced)
        whole = shown if text.endswith("\ufffd") else text  # U+FFFD at the end: an incomplete UTF-8 character
        yield whole[len(shown) :]
        shown = whole
