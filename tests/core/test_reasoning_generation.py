"""Thinking while a text streams equals thinking over the whole text at once; what is yielded is what was thought."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pytest
import torch
from tokenizers import Tokenizer

from benchmarks import phase3_thoughts
from tests.core.small_data import sentences
from tests.core.test_models import small
from training_core.data.tokenizer import TokenizerConfig, train_tokenizer
from training_core.nn.attention import SlidingWindowAttention
from training_core.nn.cognate import Cognate
from training_core.phases.p3_quiet_star.bundles import Reasoner
from training_core.phases.p3_quiet_star.generation import Spoken, ThinkingSpeaker, think_and_generate
from training_core.phases.p3_quiet_star.injection import SIGNALS, InjectionConfig, Rule, ThoughtInjector, read_signals
from training_core.phases.p3_quiet_star.thoughts import ENDED, Thinker, ThoughtConfig
from training_core.text.generation import continuation, generate
from training_core.text.settings import Sampling

HALTING = {"cycles": 2, "latent_steps": 1, "num_supervision": 3, "halt_threshold": 0.5}
RECURSIVE = {"cycles": 2, "latent_steps": 1, "num_supervision": 2}
SHAPES: list[dict[str, object]] = [
    {},
    RECURSIVE,
    HALTING,
    {"memory_layers": []},
    {"memory_layers": [0, 1], "embedding_rank": 8},
    {"num_persistent": 0, "window": 1},
]
CASES = [(shape, torch.float64, 1e-12) for shape in SHAPES] + [(shape, torch.float32, 1e-5) for shape in SHAPES[:3:2]]
DENSE = InjectionConfig(difficulty_threshold=0.45, surprise_share=0.5, min_interval=3)
GATED: tuple[Rule, ...] = ("difficulty", "surprise")
SHORT = ThoughtConfig(num_thoughts=3, min_length=1, max_length=2, mixing_heads=4)


def text(length: int, rows: int = 1, seed: int = 5) -> torch.Tensor:
    return torch.randint(1, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


def lively(changes: dict[str, object]) -> Cognate:
    """A small model whose memory, gates and halting depend on the token."""
    model = small(**changes)
    for block in model.prelude:
        if block.memory is not None:
            torch.nn.init.normal_(block.memory.gates.weight, std=0.4)
    return model


def reasoner(
    changes: dict[str, object], config: InjectionConfig = DENSE, shape: ThoughtConfig = SHORT, *, trained: bool = True
) -> Reasoner:
    """A thinker whose thoughts change its predictions (`trained`), with an injector calibrated on another text."""
    model = lively(changes)
    thinker = Thinker(model, shape).eval()
    if trained:
        torch.nn.init.normal_(thinker.head.output.weight, std=0.3)
    injector = ThoughtInjector(config)
    other = text(40, rows=3, seed=8)
    injector.calibrate([read_signals(model, model.trace(other), other)])
    return Reasoner(thinker, injector, enabled=True)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TokenizerConfig(vocab_size=300), sentences(60))


@pytest.mark.parametrize(("changes", "dtype", "tolerance"), CASES, ids=str)
@torch.no_grad()
def test_streaming_equals_the_whole_text_at_once(
    changes: dict[str, object], dtype: torch.dtype, tolerance: float
) -> None:
    """Signals, decisions and, for the same thoughts, mixed logits; 18 tokens, window and chunks of 8."""
    thinks = reasoner(changes)
    thinker = thinks.thinker.to(dtype)
    model, tokens = thinker.cognate, text(18)
    trace = model.trace(tokens)
    signals = read_signals(model, trace, tokens)
    percentiles, plain = thinks.injector.percentiles(signals), model.logits(trace.y)[0]
    for rule in GATED:
        speaker = ThinkingSpeaker(thinks, rule, torch.Generator().manual_seed(1))
        decided, thoughts, mixed, streamed = [], [], [], []
        for position, token in enumerate(tokens[0].tolist()):
            speaker.feed([token])
            streamed.append(torch.cat([speaker.signals[name] for name in SIGNALS]))
            logits = speaker.predict()
            decided.append(speaker.thinks)
            if speaker.thoughts is None:
                assert (logits - plain[position]).abs().max() < tolerance
            else:
                thoughts.append(speaker.thoughts.tokens)
                mixed.append(logits)
        expected = torch.cat([signals[name] for name in SIGNALS])
        # signals are float32 in both forms: values of order 10 differ by their rounding
        torch.testing.assert_close(torch.cat(streamed, 1), expected, atol=2e-5, rtol=1e-5, equal_nan=True)
        assert decided == thinks.injector.decide(rule, percentiles)[0].tolist()
        assert len(mixed) == sum(decided)
        if not mixed:
            assert rule == "surprise"
            assert changes == {"memory_layers": []}
            continue
        positions = torch.tensor(decided).nonzero().T
        at_once = thinker.think(trace, positions, None, torch.cat(thoughts, dim=1))
        together = thinker.talk(trace.y[:, positions[0]], at_once).together[0]
        assert (together - torch.stack(mixed)).abs().max() < tolerance
        assert (together - plain[positions[0]]).abs().max() > 1e-2  # thoughts matter


@torch.no_grad()
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_a_prompt_that_is_read_in_parts_is_thought_about_as_token_by_token(changes: dict[str, object]) -> None:
    """Signals at every position, the decision at the last one, and the logits; the interval goes on over the border."""
    thinks = reasoner(changes)
    thinks.thinker.double()
    tokens = text(29)[0].tolist()
    for rule in GATED:
        for parts in ((29,), (11, 18), (1, 26, 2)):
            single, whole = (ThinkingSpeaker(thinks, rule, torch.Generator().manual_seed(1)) for _ in range(2))
            start = 0
            for length in parts:
                expected = []
                for token in tokens[start : start + length]:
                    single.feed([token])
                    expected.append(torch.cat([single.signals[name] for name in SIGNALS]))
                whole.feed(tokens[start : start + length])
                read = torch.cat([whole.signals[name] for name in SIGNALS])
                torch.testing.assert_close(read, torch.cat(expected, 1), atol=2e-5, rtol=1e-5, equal_nan=True)
                assert whole.thinks == single.thinks
                assert (whole.predict() - single.predict()).abs().max() < 1e-11
                start += length


@torch.no_grad()
def test_both_gated_rules_think_somewhere_and_keep_their_interval() -> None:
    """What the test above compares is not empty: each rule thinks, not everywhere, and its interval binds."""
    thinks = reasoner({})
    eager = reasoner({}, DENSE.model_copy(update={"min_interval": 1}))
    tokens = text(40)
    percentiles = thinks.injector.percentiles(
        read_signals(thinks.thinker.cognate, thinks.thinker.cognate.trace(tokens), tokens)
    )
    for rule in GATED:
        speakers = [ThinkingSpeaker(r, rule, torch.Generator()) for r in (thinks, eager)]
        places: list[list[int]] = [[], []]
        for position, token in enumerate(tokens[0].tolist()):
            for speaker, found in zip(speakers, places, strict=True):
                speaker.feed([token])
                if speaker.thinks:
                    found.append(position)
        spaced, dense = places
        last, brute = -99, []
        for position in dense:
            if position - last >= 3:
                brute.append(position)
                last = position
        assert spaced == brute
        assert 5 <= len(spaced) < len(dense) < 40
        wanted = eager.injector.decide(rule, percentiles)[0]
        assert dense == wanted.nonzero().squeeze(-1).tolist()


@pytest.mark.parametrize(("window", "prefix", "kernel"), [(4, 2, 0), (8, 0, 0), (1, 1, 0), (1, 0, 0), (4, 1, 3)])
@torch.no_grad()
def test_dispersion_is_the_mean_relative_entropy_of_the_heads(window: int, prefix: int, kernel: int) -> None:
    torch.manual_seed(1)
    attention = SlidingWindowAttention(16, 2, window=window, num_persistent=prefix, conv_kernel=kernel).double()
    torch.nn.init.normal_(attention.query_norm.weight, mean=1.0, std=0.5)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    query, key, value = attention._project(attention._convolved(x), torch.arange(9))
    prefix_key, _ = attention._persistent(2, x.dtype)
    parallel = attention.dispersion(x, key)
    padded = torch.nn.functional.pad(x, (0, 0, max(0, kernel - 1), 0))[:, None]
    for t in range(9):
        before = slice(max(0, t - window + 1), t)
        seen_before = (key[:, :, before], value[:, :, before], padded[:, :, t : t + kernel - 1])
        streamed = attention.dispersion_at(x[:, t : t + 1], key[:, :, t : t + 1], seen_before, t)
        for b in range(2):
            expected = 0.0
            for h in range(2):
                seen = [*prefix_key[b, h], *key[b, h, max(0, t - window + 1) : t + 1]]
                scores = [float(query[b, h, t] @ k) / math.sqrt(8) for k in seen]
                total = sum(math.exp(s) for s in scores)
                shares = [math.exp(s) / total for s in scores]
                expected -= sum(p * math.log(p) for p in shares) / max(math.log(len(seen)), math.log(2)) / 2
            assert abs(float(parallel[b, t]) - expected) < 1e-12
            assert abs(float(streamed[b, 0]) - expected) < 1e-12


@torch.no_grad()
def test_streamed_surprise_is_that_of_the_whole_text() -> None:
    model = lively({}).double()
    tokens = text(21, rows=2)
    record = model.trace(tokens).prelude[0].memory
    assert record is not None
    parallel, state = record.surprise(), model.stream(2)
    memory = model.prelude[0].memory
    assert memory is not None
    with pytest.raises(ValueError, match="feed a token first"):
        memory.initial_state(torch.zeros(1, 1, memory.query.up.out_features)).surprise()
    for position in range(21):
        model.step(tokens[:, position], state)
        newest = state.prelude[0].memory
        assert newest is not None
        assert (newest.surprise()[:, 0] - parallel[:, position]).abs().max() < 1e-12
    assert parallel.std() > 1e-3


@torch.no_grad()
def test_what_a_halted_position_showed_stays_as_it_was() -> None:
    """Rows of a batch halt at different steps, streaming and in parallel; no signal knows what comes later."""
    model = lively(HALTING).double()
    tokens = text(21, rows=3)
    trace = model.trace(tokens)
    assert set(trace.steps.unique().tolist()) >= {1, 3}
    shown, state = trace.core[-1][-1][-1].inputs, model.stream(3)
    for position in range(21):
        model.step(tokens[:, position], state)
        assert state.given is not None
        assert state.answer is not None
        assert (model.core[-1].mixer_norm(state.given)[:, 0] - shown[:, position]).abs().max() < 1e-12
        assert (state.answer[:, 0] - trace.y[:, position]).abs().max() < 1e-12
    signals = read_signals(model, trace, tokens)
    for row, cut in ((0, 1), (0, 5), (1, 8), (1, 13), (2, 2), (2, 20)):
        shorter = tokens[row : row + 1, :cut]
        alone = read_signals(model, model.trace(shorter), shorter)
        for name in SIGNALS:
            expected = signals[name][row : row + 1, :cut]
            torch.testing.assert_close(alone[name], expected, atol=1e-6, rtol=1e-6, equal_nan=True)


def test_thoughts_that_change_nothing_leave_the_text_alone(tokenizer: Tokenizer) -> None:
    """The mixing head starts at zero: every rule gives the text of `generate`, with thoughts where it thought."""
    thinks = reasoner({}, trained=False)
    options = {"max_tokens": 12, "temperature": 1.0, "top_p": 0.9}
    for prompt in ("The river", ""):
        plain = "".join(generate(thinks.thinker.cognate, tokenizer, prompt, seed=4, **options))  # type: ignore[arg-type]
        spoken: dict[Rule, list[Spoken]] = {
            rule: list(think_and_generate(thinks, tokenizer, prompt, rule=rule, seed=4, **options))  # type: ignore[arg-type]
            for rule in ("everywhere", "difficulty", "never")
        }
        for pieces in spoken.values():
            assert "".join(piece.text for piece in pieces) == plain
        assert len(spoken["everywhere"]) == 12
        assert all(piece.thoughts is not None and len(piece.thoughts) == 3 for piece in spoken["everywhere"])
        assert all(piece.thoughts is None and piece.text for piece in spoken["never"])
        assert 1 <= sum(piece.thoughts is not None for piece in spoken["difficulty"]) <= 4  # every third at most


def test_thoughts_that_matter_change_the_text_and_repeat_with_the_seed(tokenizer: Tokenizer) -> None:
    thinks = reasoner({})

    def say(rule: Rule, seed: int) -> list[Spoken]:
        return list(think_and_generate(thinks, tokenizer, "The river", rule=rule, max_tokens=10, seed=seed))

    first = say("everywhere", 4)
    assert first == say("everywhere", 4)
    assert first != say("everywhere", 5)
    assert [piece.text for piece in first] != [piece.text for piece in say("never", 4)]
    words = [thought for piece in first for thought in piece.thoughts or []]
    assert len(set(words)) > 10


def test_shown_thoughts_are_those_that_were_thought(tokenizer: Tokenizer) -> None:
    thinks = reasoner({})
    generator = torch.Generator().manual_seed(0)
    speaker = ThinkingSpeaker(thinks, "everywhere", generator)
    seen: list[list[str]] = []
    for _ in continuation(speaker, tokenizer, "The river", Sampling(max_tokens=6)):
        assert speaker.thoughts is not None
        rows = speaker.thoughts.tokens[0, 0].tolist()
        assert all(1 <= sum(token != ENDED for token in row) <= 2 for row in rows)
        seen.append([tokenizer.decode([t for t in row if t != ENDED]) for row in rows])
    assert len(seen) == 6
    pausing = reasoner({}, shape=SHORT.model_copy(update={"content": "pause"}))
    pauses = list(think_and_generate(pausing, tokenizer, "The", rule="everywhere", max_tokens=3))
    assert [piece.thoughts for piece in pauses] == [["", "", ""]] * 3


class Scripted:
    """Predicts the tokens of a script, one after another, with certainty."""

    def __init__(self, script: list[int]) -> None:
        self.script, self.fed = script, list[int]()

    def feed(self, tokens: Sequence[int]) -> None:
        self.fed += tokens

    def predict(self) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(self.script[len(self.fed) - 2]), 300) * 100.0


def test_pieces_hold_whole_characters_and_stop_at_end_of_text(tokenizer: Tokenizer) -> None:
    """One piece a token: empty while a character is unfinished and for end-of-text; what is drawn is fed back."""
    ids = tokenizer.encode("aé€").ids
    assert len(ids) == 6
    prompt = tokenizer.encode("T").ids
    assert len(prompt) == 1
    speaker = Scripted([*ids, 0, 70])
    pieces = list(continuation(speaker, tokenizer, "T", Sampling(max_tokens=20, top_p=1.0)))
    assert pieces == ["a", "", "é", "", "", "€", ""]
    assert speaker.fed == [0, *prompt, *ids]
    cut = Scripted([*ids, 0])
    assert list(continuation(cut, tokenizer, "T", Sampling(max_tokens=5, temperature=0))) == ["a", "", "é", "", ""]
    assert cut.fed == [0, *prompt, *ids[:4]]  # the last token drawn needs no prediction


def test_what_is_impossible_is_refused_at_once(tokenizer: Tokenizer) -> None:
    thinks = reasoner({})
    with pytest.raises(ValueError, match="no rule 'sometimes'.*difficulty"):
        think_and_generate(thinks, tokenizer, "x", rule="sometimes")  # type: ignore[arg-type]
    for wrong, words in (
        ({"temperature": -1.0}, r"temperature: must be at least 0, got -1\.0"),
        ({"temperature": math.nan}, "temperature: must be a finite number, got nan"),
        ({"temperature": math.inf}, "temperature: must be a finite number, got inf"),
        ({"top_p": 0.0}, r"top_p: must be more than 0, got 0\.0"),
        ({"top_p": 1.5}, r"top_p: must be at most 1, got 1\.5"),
        ({"max_tokens": 0}, "max_tokens: must be at least 1, got 0"),
        ({"seed": -1}, "seed: must be at least 0, got -1"),
        ({"seed": 1 << 63}, "seed: must be less than 9223372036854775808, got 9223372036854775808"),
    ):
        with pytest.raises(ValueError, match=words):
            think_and_generate(thinks, tokenizer, "x", **wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=words):
            generate(thinks.thinker.cognate, tokenizer, "x", **wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_benchmark_runs_and_its_ways_to_think_agree(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--rows 2 --length 8 --repeats 1 --stride 4 --threads 1 --modes everywhere"
    phase3_thoughts.main(arguments.split())
    printed = capsys.readouterr().out
    shares = {m[1]: m[2] for m in re.finditer(r"^(everywhere) +([\d.]+)% ", printed, re.MULTILINE)}
    assert shares == {"everywhere": "100.0"}
    for name, positions in (("parallel", 8), ("one stream", 8), ("re-stream", 2), ("re-run", 2)):
        assert re.search(rf"^{name} +{positions} +\d", printed, re.MULTILINE), name
    gap = re.search(r"same thoughts: (\S+)", printed)
    assert gap is not None
    assert float(gap[1]) < 1e-4  # float32 answers of order 1
