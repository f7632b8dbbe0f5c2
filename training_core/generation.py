"""Text from a model, one token at a time: temperature and nucleus sampling on the streaming form."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.models.cognate import Cognate


def sample(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Draw from the smallest set of tokens whose probability reaches `top_p` (Holtzman et al., 2020, section 3.1).

    Temperature 0 takes the most likely token.
    """
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities, order = (logits_V.double() / temperature).softmax(-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


@torch.no_grad()
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
    """Yield the continuation of `prompt` in pieces of text, until end-of-text or `max_tokens` tokens.

    Pieces hold whole characters: bytes of an unfinished one wait for the next token.

    Raises:
        ValueError: for a temperature below 0, a top_p outside (0, 1], or fewer than one token.
    """
    if temperature < 0 or not 0 < top_p <= 1 or max_tokens < 1:
        raise ValueError(
            f"temperature must be at least 0, top_p in (0, 1] and max_tokens at least 1; got {temperature}, {top_p}, "
            f"{max_tokens}"
        )
    generator = torch.Generator().manual_seed(seed)
    state = model.stream(1)
    logits = torch.zeros(0)
    for token in [END_OF_TEXT_ID, *tokenizer.encode(prompt).ids]:
        logits = model.step(torch.tensor([token]), state)[0]
    produced: list[int] = []
    shown = ""
    for _ in range(max_tokens):
        token = sample(logits, temperature, top_p, generator)
        if token == END_OF_TEXT_ID:
            break
        produced.append(token)
        text = tokenizer.decode(produced)
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
        logits = model.step(torch.tensor([token]), state)[0]
