"""Text generation with thoughts: where the rule decides to think, thoughts are mixed into the next-token prediction.

    feed x_j -> signals of position j -> percentiles -> think here? -> N branches -> thoughts -> mixed logits -> x_{j+1}

Everything is computed in streaming form, from the state after x_j. Signals, decisions and, for given thoughts, logits
equal those of the parallel form (`injection.read_signals`, `ThoughtInjector.decide`, `Thinker.think`). Decisions are
made during prefill too, because thinking positions must be `min_interval` tokens apart. Thoughts are only sampled
during decode: the tokens of the prompt are known and need no prediction.

Shape legend: B batch (one text: 1), V vocabulary, N thoughts of a position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.nn.attention import KeyValue
from training_core.nn.block import TitansBlock
from training_core.nn.branching import Branches
from training_core.nn.cognate import Cognate, StreamState
from training_core.phases.p3_quiet_star.bundles import Reasoner
from training_core.phases.p3_quiet_star.injection import RULES, Rule
from training_core.phases.p3_quiet_star.thoughts import ENDED, Thoughts
from training_core.text.generation import continuation
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

    After `feed`, `signals` holds the four signals of the newest position, each (1, 1), and `thinks` the decision.
    After `predict`, `thoughts` holds the thoughts at that position, if any.
    """

    def __init__(self, reasoner: Reasoner, rule: Rule, generator: torch.Generator) -> None:
        self._thinker, self._injector = reasoner.thinker, reasoner.injector
        self._rule, self._generator = rule, generator
        model = reasoner.thinker.cognate
        self._device = next(model.parameters()).device
        self._state = model.stream(1)
        self._logits = torch.zeros(0)
        self._rest = 0  # positions to skip before a gated rule may think again
        self.signals: dict[str, Tensor] = {}
        self.thinks = False
        self.thoughts: Thoughts | None = None

    @torch.no_grad()
    def feed(self, token: int) -> None:
        """Feed one token and decide whether to think after it."""
        model, tokens_B = self._thinker.cognate, torch.tensor([token], device=self._device)
        predicted = self._logits if self._state.position else None
        seen = self._state.core[-1][-1][-1].before(self._state.position)
        self._logits = model.step(tokens_B, self._state)
        self.signals = stream_signals(model, self._state, seen, predicted, self._logits, tokens_B)
        wanted = bool(self._injector.decide(self._rule, self._injector.percentiles(self.signals)))
        self.thinks = wanted and (self._rest == 0 or self._rule in UNGATED)
        self._rest = self._injector.config.min_interval - 1 if self.thinks else max(0, self._rest - 1)
        self.thoughts = None

    @torch.no_grad()
    def predict(self, given: Tensor | None = None) -> Tensor:
        """Return the logits (vocab) of the next token.

        Where `thinks` is set, thoughts are mixed in: sampled ones, or the `given` ones (1, 1, N, L).
        """
        if not self.thinks:
            return self._logits[0]
        assert self._state.answer is not None
        count = self._thinker.config.num_thoughts if given is None else given.shape[2]
        branches = Branches.from_stream(self._thinker.cognate, self._state, count)
        self.thoughts = self._thinker.think_on(branches, count, self._generator, given)
        return self._thinker.talk(self._state.answer, self.thoughts).together[0, 0]


def stream_signals(
    model: Cognate,
    state: StreamState,
    seen: KeyValue,
    predicted_BV: Tensor | None,
    logits_BV: Tensor,
    tokens_B: Tensor,
) -> dict[str, Tensor]:
    """Return the signals of `injection.read_signals` at the newest position of a stream, each (batch, 1) float32.

    `state` is the state after `tokens_B` was fed, and `logits_BV` the logits from that step. `seen` is the content of
    the last core block's cache, `state.core[-1][-1][-1]`, before that step, and `predicted_BV` the previous logits
    (None at the start).
    """
    assert state.given is not None
    log_p = logits_BV.float().log_softmax(-1)
    loss = torch.full((len(tokens_B), 1), float("nan"), device=logits_BV.device)
    if predicted_BV is not None:
        loss = -predicted_BV.float().log_softmax(-1).gather(-1, tokens_B[:, None])
    last = cast(TitansBlock, model.core[-1])
    dispersion = last.attention.dispersion_at(last.mixer_norm(state.given), seen, state.position - 1)
    surprises = [layer.memory.surprise().float() for layer in state.prelude if layer.memory is not None]
    return {
        "entropy": -(log_p.exp() * log_p).sum(-1, keepdim=True),
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
    speaker = ThinkingSpeaker(reasoner, rule, step_generator(seed, -1))
    drawn = continuation(speaker, tokenizer, prompt, max_tokens, temperature, top_p, seed)
    return _spoken(speaker, tokenizer, drawn)


def _spoken(speaker: ThinkingSpeaker, tokenizer: Tokenizer, drawn: Iterator[str]) -> Iterator[Spoken]:
    for text in drawn:
        thoughts = None if speaker.thoughts is None else texts(speaker.thoughts, tokenizer)
        if text or thoughts is not None:
            yield Spoken(text, thoughts)


def texts(thoughts: Thoughts, tokenizer: Tokenizer) -> list[str]:
    """Decode the N thoughts of a single position; pause tokens, which have no content, give empty strings."""
    return [tokenizer.decode([token for token in row if token != ENDED]) for row in thoughts.tokens[0, 0].tolist()]
