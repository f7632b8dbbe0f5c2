"""Thoughts against one thought at a time; their lengths, replay, causality, and the pause control."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.core.test_models import DEPTHS, small
from tests.oracles.quiet_star_reference import continue_alone
from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.nn.cognate import Cognate
from training_core.phases.p3_quiet_star.policy import sampling_log_probs
from training_core.phases.p3_quiet_star.thoughts import ENDED, Thinker, ThoughtConfig, Thoughts

SHAPE_OF_THOUGHTS = {"num_thoughts": 3, "min_length": 1, "max_length": 4, "mixing_heads": 4, "top_p": 0.9}
POSITIONS = torch.tensor([[0, 7, 12], [12, 5, 5]])
DEPTHS_HERE = [{}, {"cycles": 2, "latent_steps": 1, "num_supervision": 2, "halt_threshold": 0.5}, {"embedding_rank": 8}]


def make_thinker(model: Cognate | None = None, end_scale: float = 3.0, **changes: object) -> Thinker:
    """A thinker with random delimiters; the larger `end_scale`, the likelier a thought ends or goes on for sure."""
    torch.manual_seed(7)
    thinker = Thinker(model or small(), ThoughtConfig(**(SHAPE_OF_THOUGHTS | changes)))  # type: ignore[arg-type]
    torch.nn.init.normal_(thinker.delimiter_embedding.weight, std=0.3)
    with torch.no_grad():
        thinker.delimiter_embedding.weight[1] *= end_scale
    return thinker.eval()


def mix_at_random(thinker: Thinker) -> Thinker:
    """The same thinker with a mixing head that does something."""
    torch.nn.init.normal_(thinker.head.output.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    return thinker


def tokens(seq: int = 13) -> Tensor:
    return torch.randint(1, 300, (2, seq), generator=torch.Generator().manual_seed(5))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def answers(thinker: Thinker, text: Tensor, positions: Tensor = POSITIONS) -> Tensor:
    y = thinker.cognate.trace(text).y
    return y.gather(1, positions[..., None].expand(-1, -1, y.shape[-1]))


def row_of(thoughts: Thoughts, b: int, p: int, n: int) -> list[int]:
    return [t for t in thoughts.tokens[b, p, n].tolist() if t != ENDED]


@pytest.mark.parametrize("changes", DEPTHS_HERE)
@torch.no_grad()
def test_thoughts_equal_one_thought_at_a_time(changes: dict[str, object]) -> None:
    thinker = make_thinker(small(**changes), end_scale=2.0).double()
    model, text = thinker.cognate, tokens()
    thoughts = thinker.think(model.trace(text), POSITIONS, seeded())
    assert len(set(thoughts.lengths().flatten().tolist())) > 1, "thoughts of several lengths are compared"
    start, end = model.widen(thinker.delimiter_embedding.weight)
    for b, p, n in [(0, 0, 0), (0, 1, 2), (0, 2, 1), (1, 0, 0), (1, 1, 0), (1, 2, 2)]:
        row = row_of(thoughts, b, p, n)
        fed = torch.stack([start, *(model.embed(torch.tensor(t)) for t in row), end])
        outputs = continue_alone(model, text[b, : int(POSITIONS[b, p]) + 1], fed)
        assert (thoughts.hidden[b, p, n] - outputs[-1]).abs().max() < 1e-12
        total, actions = 0.0, [*row, model.config.vocab_size][: thinker.config.max_length]
        for step, action in enumerate(actions):
            logits = model.logits(outputs[step])
            logits[END_OF_TEXT_ID] = float("-inf")
            ending = model.readout(outputs[step]) @ thinker.delimiter_embedding.weight[1]
            may_end = step >= thinker.config.min_length
            full = torch.cat([logits, ending[None] if may_end else torch.full((1,), float("-inf"))])
            total += float(sampling_log_probs(full, 1.0, 0.9)[action])
            full_log_p = full.log_softmax(-1)
            assert float(thoughts.full_log_prob[b, p, n, step]) == pytest.approx(float(full_log_p[action]), abs=1e-11)
            entropy = float(torch.special.entr(full_log_p.exp()).sum())
            assert float(thoughts.entropy[b, p, n, step]) == pytest.approx(entropy, abs=1e-11)
        assert float(thoughts.log_prob[b, p, n]) == pytest.approx(total, abs=1e-11)
        mean = float(thoughts.full_log_prob[b, p, n, : len(actions)].mean())
        assert float(thoughts.mean_log_prob()[b, p, n]) == pytest.approx(mean, abs=1e-12)


@torch.no_grad()
def test_lengths_adapt_within_their_bounds() -> None:
    thinker = make_thinker(num_thoughts=8, min_length=2, max_length=6, end_scale=4.0)
    thinker.cognate.embedding.weight[END_OF_TEXT_ID] *= 20  # by far the likeliest token at about half the positions
    trace = thinker.cognate.trace(tokens())
    assert bool((thinker.cognate.logits(trace.y).argmax(-1) == END_OF_TEXT_ID).any())
    positions = torch.arange(13).expand(2, -1)
    thoughts = thinker.think(trace, positions, seeded())
    lengths = thoughts.lengths()
    assert set(lengths.flatten().tolist()) == {2, 3, 4, 5, 6}
    place = torch.arange(6)
    assert torch.equal(thoughts.tokens == ENDED, place >= lengths[..., None]), "ENDED behind the end and only there"
    assert not bool((thoughts.tokens == END_OF_TEXT_ID).any())
    assert int(thoughts.tokens.max()) < 300
    acted = torch.where(lengths < 6, lengths + 1, 6)  # ending is an action
    assert torch.equal(thoughts.acted, place < acted[..., None])
    assert bool((thoughts.full_log_prob[~thoughts.acted] == 0).all())
    assert torch.equal(
        thoughts.branches.next_position, (positions[..., None] + 3 + lengths).flatten(1)
    )  # the first own position, <start>, the tokens, <end>


@pytest.mark.parametrize(("minimum", "sign", "expected"), [(0, 1, 0), (2, 1, 2), (4, 1, 4), (1, -1, 4)])
@torch.no_grad()
def test_shortest_and_longest_thoughts(minimum: int, sign: int, expected: int) -> None:
    thinker = make_thinker(min_length=minimum)
    trace = thinker.cognate.trace(tokens())
    gain, common = thinker.cognate.core_norm.weight, torch.ones(32)
    gain.mul_(0.1)
    thinker.cognate.core_norm.register_forward_hook(lambda *args: args[-1] + common)  # every answer has this direction
    thinker.delimiter_embedding.weight[1] = 10 * sign * common
    thoughts = thinker.think(trace, POSITIONS, seeded())
    assert set(thoughts.lengths().flatten().tolist()) == {expected}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@torch.no_grad()
def test_given_thoughts_are_the_sampled_ones_again(dtype: torch.dtype, tolerance: float) -> None:
    thinker = mix_at_random(make_thinker()).to(dtype)
    trace = thinker.cognate.trace(tokens())
    sampled = thinker.think(trace, POSITIONS, seeded())
    again = thinker.think(trace, POSITIONS, None, sampled.tokens)
    assert torch.equal(again.tokens, sampled.tokens)
    for name in ("log_prob", "full_log_prob", "hidden"):
        assert (getattr(again, name) - getattr(sampled, name)).abs().max() < tolerance
    base = answers(thinker, tokens())
    first, second = thinker.talk(base, sampled), thinker.talk(base, again)
    assert (first.together - second.together).abs().max() < tolerance
    other = sampled.tokens.roll(1, dims=0)
    assert (thinker.think(trace, POSITIONS, None, other).hidden - sampled.hidden).abs().max() > 1e-3


@torch.no_grad()
def test_same_seed_thinks_the_same_and_another_does_not() -> None:
    thinker = make_thinker()
    trace = thinker.cognate.trace(tokens())
    first, again, other = (thinker.think(trace, POSITIONS, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.hidden, again.hidden)
    assert not torch.equal(first.tokens, other.tokens)


@pytest.mark.parametrize("changes", DEPTHS)
@torch.no_grad()
def test_thoughts_see_neither_later_text_nor_other_positions(changes: dict[str, object]) -> None:
    thinker = mix_at_random(make_thinker(small(**changes)))
    text = tokens(20)
    positions = torch.tensor([[4, 9, 14], [9, 14, 4]])
    before = thinker.think(thinker.cognate.trace(text), positions, seeded())
    later = text.clone()
    later[:, 10:] = 7
    after = thinker.think(thinker.cognate.trace(later), positions, seeded())
    earlier = positions < 10
    for name in ("tokens", "log_prob", "full_log_prob", "entropy", "hidden"):
        assert torch.equal(getattr(before, name)[earlier], getattr(after, name)[earlier])
    old, new = (thinker.talk(answers(thinker, t, positions), k) for t, k in ((text, before), (later, after)))
    assert torch.equal(old.together[earlier], new.together[earlier])
    assert not torch.equal(before.hidden[~earlier], after.hidden[~earlier])
    given = before.tokens.clone()
    given[0, 1] = 11
    trace = thinker.cognate.trace(text)
    untouched = torch.ones(2, 3, dtype=torch.bool)
    untouched[0, 1] = False
    first, second = (thinker.think(trace, positions, None, g).hidden for g in (before.tokens, given))
    assert torch.equal(first[untouched], second[untouched])
    if changes.get("window") != 1:  # where a thought's <end> sees no earlier token it cannot tell
        assert not torch.equal(first[0, 1], second[0, 1])


@torch.no_grad()
def test_untrained_head_leaves_the_base_bit_for_bit() -> None:
    thinker = make_thinker()
    text = tokens()
    base = answers(thinker, text)
    thoughts = thinker.think(thinker.cognate.trace(text), POSITIONS, seeded())
    talk = thinker.talk(base, thoughts)
    assert torch.equal(talk.together, thinker.cognate.logits(base))
    assert torch.equal(talk.alone, thinker.cognate.logits(base[..., None, :].expand_as(thoughts.hidden)))
    plain = thinker.cognate(text).logits
    assert (talk.together - plain.gather(1, POSITIONS[..., None].expand(-1, -1, 300))).abs().max() < 1e-5


@torch.no_grad()
def test_alone_ignores_the_others_and_coherence() -> None:
    thinker = mix_at_random(make_thinker())
    text = tokens()
    base = answers(thinker, text)
    thoughts = thinker.think(thinker.cognate.trace(text), POSITIONS, seeded())
    talk = thinker.talk(base, thoughts)
    single = Thoughts(
        *(getattr(thoughts, name)[:, :, 1:2] for name in ("tokens", "log_prob", "full_log_prob", "entropy", "acted")),
        thoughts.hidden[:, :, 1:2],
        thoughts.branches,
    )
    one = thinker.talk(base, single)
    assert (one.alone[:, :, 0] - talk.alone[:, :, 1]).abs().max() < 1e-5
    assert (one.together - talk.alone[:, :, 1]).abs().max() < 1e-5, "one thought weighs all, whatever its coherence"
    thinker.head.coherence_weight.mul_(-5)
    changed = thinker.talk(base, thoughts)
    assert torch.equal(changed.alone, talk.alone)
    assert not torch.equal(changed.together, talk.together)
    assert 0 <= float(talk.score.min()) < float(talk.score.max()) <= 1


@torch.no_grad()
def test_pause_feeds_as_many_tokens_as_the_longest_thought() -> None:
    pause = mix_at_random(make_thinker(content="pause"))
    sampled = make_thinker(min_length=4)
    pause.initialise_delimiters([5, 9], seeded())
    text = tokens()
    thoughts, real = (t.think(t.cognate.trace(text), POSITIONS, seeded()) for t in (pause, sampled))
    assert set(real.lengths().flatten().tolist()) == {4}
    assert torch.equal(thoughts.branches.next_position, real.branches.next_position)
    assert bool((thoughts.tokens == ENDED).all())
    assert thoughts.tokens.shape == real.tokens.shape
    for silent in (thoughts.log_prob, thoughts.entropy, thoughts.acted, thoughts.mean_log_prob()):
        assert not bool(silent.any())
    again = pause.think(pause.cognate.trace(text), POSITIONS, seeded(9))
    assert torch.equal(thoughts.hidden, again.hidden), "nothing is drawn"
    assert (thoughts.hidden[:, :, 0] - thoughts.hidden[:, :, 1]).abs().max() > 1e-4, "the slots differ"
    slots = pause.cognate.widen(pause.pause_embedding.weight)  # type: ignore[union-attr]
    start, end = pause.cognate.widen(pause.delimiter_embedding.weight)
    for n in range(3):
        alone = continue_alone(pause.cognate, text[1, :6], torch.stack([start, *[slots[n]] * 4, end]))[-1]
        assert (thoughts.hidden[1, 1, n] - alone).abs().max() < 1e-5


@torch.no_grad()
def test_delimiters_start_at_the_mean_of_tokens() -> None:
    thinker = make_thinker(content="pause", num_thoughts=8)
    table = thinker.cognate.embedding.weight
    thinker.initialise_delimiters([3, 4, 8], seeded())
    mean = (table[3] + table[4] + table[8]) / 3
    assert (thinker.delimiter_embedding.weight - mean).abs().max() < 1e-6
    assert thinker.pause_embedding is not None
    noise = thinker.pause_embedding.weight - mean
    assert float(noise.std() / table.std()) == pytest.approx(0.1, abs=0.1 * 3 / (2 * 256) ** 0.5)  # 3 sigma


def test_thoughts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="max_length = 62 tokens and its two delimiters does not fit max_seq_len = 64"):
        make_thinker(max_length=62)
    assert make_thinker(max_length=61).config.max_length == 61
    with pytest.raises(ValueError, match="min_length = 5 exceeds max_length = 4"):
        make_thinker(min_length=5)
    with pytest.raises(ValueError, match="mixing_heads = 7 must divide d_model = 32"):
        make_thinker(mixing_heads=7)
