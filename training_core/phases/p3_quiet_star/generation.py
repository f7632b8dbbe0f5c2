"""Text generation with thoughts: where the rule decides to think, thoughts are mixed into the next-token prediction.

    feed x_j -> signals of position j -> percentiles -> think here? -> N branches -> thoughts -> mixed logits -> x_{j+1}

Everything is computed in streaming form, from the state after x_j. Signals, decisions and, for given thoughts, logits
equal those of the parallel form (`injection.read_signals`, `ThoughtInjector.decide`, `Thinker.think`). Decisions are
made during prefill too, because thinking positions must be `min_interval` tokens apart. Thoughts are only sampled
during decode: the tokens of the prompt are known and need no prediction.

Shape legend: B batch (one text: 1), V vocabulary, N thoughts of a position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.nn.attention import KeyValue
from training_core.nn.block import TitansBlock
from training_core.nn.branching import Branches
from training_core.nn.cognate import Cognate, Reading
from training_core.phases.p3_quiet_star.bundles import Reasoner
from training_core.phases.p3_quiet_star.injection import RULES, Rule
from training_core.phases.p3_quiet_star.thoughts import ENDED, Thoughts
from training_core.text.generation import Progress, continuation
from training_core.text.settings import sampling_settings
from training_core.training.loop import step_generator

UNGATED = ("everywhere", "never")  # rules to which min_interval does not apply


@dataclass(frozen=True, slots=True)
class Spoken:
    """A piece of text and the thoughts that preceded it, or None where the model did not think.

    `text` is empty where the token drawn at a thinking position ended the text or is only a part of a character.
    """

    text: str
    thoughts: list[str] | None


class ThinkingSpeaker:
    """A reasoner that generates one text in streaming form (`training_core.text.generation.Speaker`).

    After `feed`, `signals` holds the four signals of the positions that were fed, each (1, positions), and `thinks` the
    decision at the last one. After `predict`, `thoughts` holds the thoughts at that position, if any.
    """

    def __init__(self, reasoner: Reasoner, rule: Rule, generator: torch.Generator) -> None:
        self._thinker, self._injector = reasoner.thinker, reasoner.injector
        self._rule, self._generator = rule, generator
        model = reasoner.thinker.cognate
        self._device = next(model.parameters()).device
        self._state = model.stream(1)
        self._logits: Tensor | None = None
        self._rest = 0  # positions to skip before a gated rule may think again
        self.signals: dict[str, Tensor] = {}
        self.thinks = False
        self.thoughts: Thoughts | None = None

    @torch.no_grad()
    def feed(self, tokens: Sequence[int]) -> None:
        """Feed tokens, and decide after each of them whether to think there."""
        model, tokens_BS = self._thinker.cognate, torch.tensor([tokens], device=self._device)
        first = self._state.position
        seen = self._state.core[-1][-1][-1].before(first)
        reading = model.read(tokens_BS, self._state)
        logits_BSV = model.logits(reading.y)
        self.signals = stream_signals(model, reading, first, seen, self._logits, logits_BSV, tokens_BS)
        self._logits, self.thoughts = logits_BSV[:, -1:], None
        wanted_S = self._injector.wants(self._rule, self._injector.percentiles(self.signals))[0].tolist()
        for wanted in wanted_S:
            self.thinks = wanted and (self._rest == 0 or self._rule in UNGATED)
            self._rest = self._injector.config.min_interval - 1 if self.thinks else max(0, self._rest - 1)

    @torch.no_grad()
    def predict(self, given: Tensor | None = None) -> Tensor:
        """Return the logits (vocab) of the next token.

        Where `thinks` is set, thoughts are mixed in: sampled ones, or the `given` ones (1, 1, N, L).
        """
        assert self._logits is not None, "a text begins with END_OF_TEXT: feed it first"
        if not self.thinks:
            return self._logits[0, 0]
        assert self._state.answer is not None
        count = self._thinker.config.num_thoughts if given is None else given.shape[2]
        branches = Branches.from_stream(self._thinker.cognate, self._state, count)
        self.thoughts = self._thinker.think_on(branches, count, self._generator, given)
        return self._thinker.talk(self._state.answer, self.thoughts).together[0, 0]


def stream_signals(
    model: Cognate,
    reading: Reading,
    first: int,
    seen: KeyValue,
    predicted_B1V: Tensor | None,
    logits_BSV: Tensor,
    tokens_BS: Tensor,
) -> dict[str, Tensor]:
    """Return the signals of `injection.read_signals` at new positions of a stream, each (batch, seq) float32.

    `reading` and `logits_BSV` are what the model computed of `tokens_BS`, which follow position `first` - 1. `seen` is
    what the last core block's cache, `state.core[-1][-1][-1]`, held before, and `predicted_B1V` the logits there (None
    at the start).
    """
    log_p = logits_BSV.float().log_softmax(-1)
    loss = torch.full(tokens_BS.shape, float("nan"), device=logits_BSV.device)
    if predicted_B1V is not None:
        loss[:, :1] = -predicted_B1V.float().log_softmax(-1).gather(-1, tokens_BS[:, :1, None])[..., 0]
    loss[:, 1:] = -log_p[:, :-1].gather(-1, tokens_BS[:, 1:, None])[..., 0]
    last = cast(TitansBlock, model.core[-1])
    dispersion = last.attention.dispersion_at(last.mixer_norm(reading.given), reading.key, seen, first)
    surprises = [surprise.float() for surprise in reading.surprise]
    return {
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "dispersion": dispersion.float(),
        "loss": loss,
        "surprise": torch.stack(surprises).mean(0) if surprises else torch.full_like(loss, float("nan")),
    }


def think_and_generate(
    reasoner: Reasoner,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    rule: Rule = "difficulty",
    max_tokens: int = 120,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Spoken]:
    """Generate text as `text.generation.generate` does, thinking where `rule` decides to.

    Yields each piece of text with the thoughts that preceded it. Thoughts have a random generator of their own, and
    tokens are drawn as `generate` draws them with the same `seed`: if thoughts leave the logits unchanged, the text is
    the same. `temperature` and `top_p` apply to the text; thoughts are sampled as in training.

    Raises:
        ValueError: as `generate`, and for an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"there is no rule {rule!r} of where to think: choose {', '.join(RULES)}")
    sampling = sampling_settings(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    speaker = ThinkingSpeaker(reasoner, rule, step_generator(seed, -1))
    drawn = continuation(speaker, tokenizer, prompt, sampling, progress)
    return _spoken(speaker, tokenizer, drawn)


def _spoken(speaker: ThinkingSpeaker, tokenizer: Tokenizer, drawn: Iterator[str]) -> Iterator[Spoken]:
    for text in drawn:
        thoughts = None if speaker.thoughts is None else texts(speaker.thoughts, tokenizer)
        if text or thoughts is not None:
            yield Spoken(text, thoughts)


def texts(thoughts: Thoughts, tokenizer: Tokenizer) -> list[str]:
    """Decode the N thoughts of a single position; pause tokens, which have no content, give empty strings."""
    return [tokenizer.decode([token for token in row if token != ENDED]) for row in thoughts.tokens[0, 0].tolist()]
