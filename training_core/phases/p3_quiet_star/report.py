"""Building of the exhibit `thoughts`: examples chosen by a stated rule, a heat map of difficulty, arms and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.evaluation.windows import Windows
from training_core.phases.p3_quiet_star.assessment import ThoughtAssessment
from training_core.phases.p3_quiet_star.exhibit import (
    Group,
    HeatMapToken,
    ThoughtArm,
    ThoughtExample,
    ThoughtGating,
    ThoughtsExhibit,
)
from training_core.phases.p3_quiet_star.injection import ThoughtInjector, read_signals
from training_core.phases.p3_quiet_star.thoughts import ENDED, Thinker

EACH = 4
CONTEXT_TOKENS = 48
AHEAD = 4
HEAT_TOKENS = 160
RULE = (
    f"Of the measured positions of the hardest decile: the {EACH} where thoughts gain most on the next token, the "
    f"{EACH} where they lose most, and {EACH} drawn at random. The chosen thought has the highest coherence."
)


def exhibit(
    thinker: Thinker,
    injector: ThoughtInjector,
    assessment: ThoughtAssessment,
    enabled: bool,
    windows: Windows,
    tokenizer: Tokenizer,
    seed: int,
) -> ThoughtsExhibit:
    """Return the complete exhibit of a measured thinker."""
    return ThoughtsExhibit(
        rule=RULE,
        enabled=enabled,
        verdict=verdict(assessment, enabled),
        examples=_examples(thinker, assessment, windows, tokenizer, seed),
        heat_map=heat_map(thinker, injector, windows.inputs[0, :HEAT_TOKENS], tokenizer),
        arms=[
            ThoughtArm(
                name=arm.name,
                description=arm.description,
                gain=arm.gain.value,
                low=arm.gain.low,
                high=arm.gain.high,
            )
            for arm in assessment.arms
        ],
        gating=[
            ThoughtGating(
                name=rule.name,
                share=rule.share,
                gain_bits_per_token=rule.gain.value,
                low=rule.gain.low,
                high=rule.gain.high,
                gflop_per_token=rule.gflop_per_token,
                bits_per_gflop=rule.bits_per_gflop,
            )
            for rule in assessment.gating
        ],
    )


def verdict(assessment: ThoughtAssessment, enabled: bool) -> str:
    """Summarise the gains with their CIs, and whether generation thinks."""
    metrics: Mapping[str, float] = assessment.metrics

    def interval(name: str) -> str:
        low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
        return f"{metrics[name]:+.4f} bits per token (95 %: {low:+.4f} to {high:+.4f})"

    helped = metrics["thought_gain_hard_low"] > 0
    content = metrics["thought_over_pause_hard_low"] > 0
    return (
        f"On the hardest decile thoughts {'gain' if helped else 'do not demonstrably gain'}: "
        f"{interval('thought_gain_hard')}; over equal compute without content "
        f"{'a gain' if content else 'no demonstrable gain'}: {interval('thought_over_pause_hard')}. "
        f"Generation {'thinks' if enabled else 'leaves thoughts off'}, decided on validation text."
    )


def heat_map(thinker: Thinker, injector: ThoughtInjector, tokens_S: Tensor, tokenizer: Tokenizer) -> list[HeatMapToken]:
    """Return each token of a text with its difficulty and surprise in [0, 1], and the difficulty rule's decision."""
    tokens = tokens_S[None].to(thinker.cognate.embedding.weight.device)
    with torch.no_grad():
        signals = read_signals(thinker.cognate, thinker.cognate.trace(tokens), tokens)
    percentiles = injector.percentiles({name: value.cpu() for name, value in signals.items()})
    difficulty, thinks = injector.difficulty(percentiles)[0], injector.decide("difficulty", percentiles)[0]
    return [
        HeatMapToken(text=text, difficulty=float(d), surprise=float(s), thinks=bool(t))
        for text, d, s, t in zip(
            pieces(tokens_S.tolist(), tokenizer), difficulty, percentiles["surprise"][0], thinks, strict=True
        )
    ]


def shown_text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Return the text of tokens, a paragraph sign for each end of text. A text may hold the words "<|endoftext|>"."""
    documents: list[list[int]] = [[]]
    for token in ids:
        if token == END_OF_TEXT_ID:
            documents.append([])
        else:
            documents[-1].append(token)
    return "¶".join(tokenizer.decode(document) for document in documents)


def pieces(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Return the text of each token, such that the pieces concatenate to the whole text.

    The bytes of an incomplete character belong to the token that completes it. End-of-text becomes a paragraph sign.
    """
    shown, result = "", []
    for count in range(1, len(ids) + 1):
        text = shown_text(ids[:count], tokenizer)
        whole = text.rstrip("�") if count < len(ids) else text
        result.append(whole[len(shown) :] if whole.startswith(shown) else "")
        shown = whole if whole.startswith(shown) else shown
    return result


def _examples(
    thinker: Thinker, assessment: ThoughtAssessment, windows: Windows, tokenizer: Tokenizer, seed: int
) -> list[ThoughtExample]:
    hard = assessment.sample.hard.nonzero().squeeze(-1)
    gain = assessment.outcome.gain()[hard]
    order = gain.argsort(descending=True)
    count = min(EACH, max(1, len(hard) // 3))
    middle = order[count:-count]
    drawn = torch.randperm(len(middle), generator=torch.Generator().manual_seed(seed))[:count]
    groups: dict[Group, Tensor] = {"best": order[:count], "worst": order[-count:].flip(0), "random": middle[drawn]}
    return [
        _example(group, int(hard[index]), thinker, assessment, windows, tokenizer)
        for group, chosen in groups.items()
        for index in chosen.tolist()
    ]


@torch.no_grad()
def _example(
    group: Group, index: int, thinker: Thinker, assessment: ThoughtAssessment, windows: Windows, tokenizer: Tokenizer
) -> ThoughtExample:
    """Return one position: its measured thoughts, and the true next tokens' probabilities without and with them."""
    sample, outcome = assessment.sample, assessment.outcome
    device = thinker.cognate.embedding.weight.device
    window, position = int(sample.window[index]), int(sample.position[index])
    inputs, targets = windows.inputs[window][None].to(device), windows.targets[window].to(device)
    trace = thinker.cognate.trace(inputs)
    at = torch.tensor([[position]], device=device)
    thoughts = thinker.think(trace, at, None, outcome.tokens[index][None, None].to(device))
    hidden, count = thoughts.hidden, outcome.tokens.shape[1]
    before, after, following = [], [], []
    for ahead in range(AHEAD):
        if position + ahead >= targets.shape[0] or int(targets[position + ahead]) < 0:
            break
        target = int(targets[position + ahead])
        base = trace.y[:, position + ahead][:, None]
        talk = thinker.talk(base, thoughts, hidden)
        before.append(float(thinker.cognate.logits(base).float().softmax(-1)[0, 0, target]))
        after.append(float(talk.together.float().softmax(-1)[0, 0, target]))
        following.append(target)
        fed = thinker.cognate.embed(targets[position + ahead].clamp_min(0))
        hidden = thoughts.branches.feed(fed.expand(1, count, -1)).view_as(hidden)
    start = max(0, position + 1 - CONTEXT_TOKENS)
    context = windows.inputs[window, start : position + 1].tolist()
    return ThoughtExample(
        group=group,
        context="".join(pieces(context, tokenizer)),
        thoughts=[tokenizer.decode([t for t in row if t != ENDED]) for row in outcome.tokens[index].tolist()],
        chosen=int(outcome.score[index].argmax()),
        next_tokens=pieces(following, tokenizer),
        before=before,
        after=after,
        gain_bits=float(outcome.gain()[index]),
    )
