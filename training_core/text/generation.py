"""Autoregressive text generation from a streaming model, with temperature and nucleus sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.nn.cognate import Cognate
from training_core.text.settings import Sampling, sampling_settings

PREFILL_TOKENS = 1024  # read in parallel at once: bounds the memory of a long prompt, and progress is shown between

Progress = Callable[[int, int], None]  # tokens of the prompt read so far, and in all


class Speaker(Protocol):
    """A source of next-token distributions: it is fed every token of a text, and predicts the next one on request."""

    def feed(self, tokens: Sequence[int]) -> None:
        """Feed the next tokens of the text, at least one."""

    def predict(self) -> Tensor:
        """Return the logits (vocab) of the token after the last one fed."""


class PlainSpeaker:
    """A `Speaker` that streams one text through a model."""

    def __init__(self, model: Cognate) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._state = model.stream(1)
        self._logits = torch.zeros(0)

    def feed(self, tokens: Sequence[int]) -> None:
        """Advance by some tokens: several of them in parallel."""
        tokens_S = torch.tensor(tokens, device=self._device)
        if len(tokens_S) == 1:
            self._logits = self._model.step(tokens_S, self._state)[0]
        else:
            self._logits = self._model.logits(self._model.read(tokens_S[None], self._state).y[0, -1])

    def predict(self) -> Tensor:
        """Return the logits (vocab) of the next token."""
        return self._logits


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """Sample from the smallest set of tokens whose probability reaches `top_p` (Holtzman et al., 2020, section 3.1).

    Maps logits (rows, vocab) to token ids (rows). Temperature 0 takes the most likely token.
    """
    if temperature == 0:
        return logits.argmax(-1)
    full = logits.double()
    # From the largest one, no quotient overflows upwards, however small the temperature.
    probabilities = ((full - full.amax(-1, keepdim=True)) / temperature).softmax(-1)
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
    progress: Progress | None = None,
) -> Iterator[str]:
    """Yield the continuation of `prompt` in pieces of text, until END_OF_TEXT or `max_tokens` tokens.

    A prompt may have any length: what lies further back than the attention window is read through the memory.
    `progress` is called during prefill. Pieces contain whole characters: the bytes of an incomplete one are held back
    until the next token.

    Raises:
        ConfigError: for a number that `settings.Sampling` refuses.
    """
    sampling = sampling_settings(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    drawn = continuation(PlainSpeaker(model), tokenizer, prompt, sampling, progress)
    return (piece for piece in drawn if piece)


@torch.no_grad()
def continuation(
    speaker: Speaker, tokenizer: Tokenizer, prompt: str, sampling: Sampling, progress: Progress | None = None
) -> Iterator[str]:
    """Feed END_OF_TEXT and `prompt`, then yield the piece of text that each sampled token completes.

    A piece is empty while a character is incomplete, and for the final END_OF_TEXT.
    """
    generator = torch.Generator().manual_seed(sampling.seed)
    given = [END_OF_TEXT_ID, *tokenizer.encode(prompt).ids]
    for start in range(0, len(given), PREFILL_TOKENS):
        speaker.feed(given[start : start + PREFILL_TOKENS])
        if progress is not None:
            progress(min(start + PREFILL_TOKENS, len(given)), len(given))
    produced: list[int] = []
    shown = ""
    while len(produced) < sampling.max_tokens:
        if produced:
            speaker.feed(produced[-1:])
        logits_V = speaker.predict().cpu()
        produced.append(int(sample(logits_V[None], sampling.temperature, sampling.top_p, generator)))
        if produced[-1] == END_OF_TEXT_ID:
            yield ""
            return
        text = tokenizer.decode(produced)
        whole = shown if text.endswith("\ufffd") else text  # U+FFFD at the end: an incomplete UTF-8 character
        yield whole[len(shown) :]
        shown = whole
