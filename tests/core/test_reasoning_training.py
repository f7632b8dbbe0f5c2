"""Training a reasoner: killed and resumed bit for bit, refusals before anything is trained, harm, bundles, curves."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.core.declared import assert_declared
from tests.core.small_data import SHAPE
from tests.core.test_reasoning_thoughts import answers, make_thinker, mix_at_random, seeded
from tests.killed import killed_at_each, run_apart
from tests.nested import nested
from training_core.data.batches import TrainingData
from training_core.data.task_bank import Task, read_tasks
from training_core.evaluation.held_out import open_suite
from training_core.formats.loading import load_latents, load_model
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.phase import PhaseContext
from training_core.phases.p3_quiet_star.bundles import Reasoner, load_reasoner, reasoner_document, reasoner_tensors
from training_core.phases.p3_quiet_star.config import ReasoningConfig
from training_core.phases.p3_quiet_star.injection import InjectionConfig, ThoughtInjector
from training_core.phases.p3_quiet_star.objective import PolicyConfig, ThoughtObjective
from training_core.phases.p3_quiet_star.phase import make_reasoner
from training_core.phases.p3_quiet_star.training import train_reasoning
from training_core.reporting import Figure, Reporter, SilentReporter
from training_core.store.bundle import BundleError, Product, open_bundle, write_bundle
from training_core.training.loop import TrainingConfig, train

TINY = {
    "num_thoughts": 2, "min_length": 1, "max_length": 3, "mixing_heads": 4, "positions_per_sequence": 4,
    "true_tokens": 2, "steps": 2, "batch_size": 2, "seq_len": 32, "baking_steps": 2, "baking_batch_size": 2,
    "baking_examples": 1, "baking_trajectories": 4, "baking_max_tokens": 8, "measured_windows": 2,
    "checkpoint_interval_s": 0.0,
}  # fmt: skip


def parent() -> Cognate:
    torch.manual_seed(0)
    return Cognate(CognateConfig(vocab_size=320, **SHAPE | {"max_seq_len": 128, "memory_chunk": 32}))  # type: ignore[arg-type]


def arithmetic(task_bank: Path) -> list[Task]:
    return [task for task in read_tasks(task_bank, "train") if task.family == "arithmetic"]


def train_and_keep(reporter: Reporter, folder: Path, data: dict[str, Path]) -> None:
    opened, tasks = TrainingData.open(data["tokens"], data["task_bank"]), arithmetic(data["task_bank"])
    config = nested(ReasoningConfig, **TINY, reward="information_gain")
    result = train_reasoning(parent(), config, opened, tasks, reporter, folder / "checkpoint")
    thinkers = {"thoughts": result.thinker, **result.controls}
    weights = {f"{n}/{k}": v for n, thinker in thinkers.items() for k, v in thinker.state_dict().items()}
    save_file(weights, folder / "tensors")


@pytest.mark.slow
def test_killed_in_every_step_and_resumed_ends_bit_for_bit_the_same(
    small_data: dict[str, Path], tmp_path: Path
) -> None:
    kills = ["baking 2", "thoughts 2", "random reward 2"]
    assert run_apart(train_and_keep, tmp_path / "whole", data=small_data).status == 0
    broken = killed_at_each(train_and_keep, tmp_path / "broken", kills, data=small_data)
    # every run goes on behind the last checkpoint, which is written after the progress of its step was told
    assert [run.told[0] for run in broken] == ["baking 1", "baking 2", "thoughts 2", "random reward 2"]
    first, second = load_file(tmp_path / "whole" / "tensors"), load_file(tmp_path / "broken" / "tensors")
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert not any("slow" in name for name in first), "the slow copy is left behind"
    for control in ("pause", "random reward"):
        name = "head.output.weight"
        assert not torch.equal(first[f"thoughts/{name}"], first[f"{control}/{name}"]), "each was trained its own way"


class Recorder(SilentReporter):
    def __init__(self) -> None:
        self.told: list[str] = []
        self.figures: dict[str, Figure] = {}

    def progress(self, done: int, total: int, label: str) -> None:
        self.told.append(label)

    def figure(self, name: str, figure: Figure) -> None:
        self.figures[name] = figure


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_thoughts": 1}, "num_thoughts = 1 leaves nothing to compare: set num_thoughts to 2 or more, or reward"),
        ({"max_length": 126}, "max_length = 126 tokens .* does not fit max_seq_len = 128: shorten the thoughts"),
        ({"seq_len": 129}, "seq_len = 129 exceeds max_seq_len = 128: shorten the one or raise the other"),
        ({"true_tokens": 33}, "true_tokens = 33 needs sequences .* seq_len is 32: lower the one or raise the other"),
        ({"mixing_heads": 5}, "mixing_heads = 5 must divide d_model = 32: choose a divisor"),
        ({"baking_examples": 70}, "only .* of the tasks have a worked solution"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    changes: dict[str, object], message: str, small_data: dict[str, Path], tmp_path: Path
) -> None:
    data, recorder = TrainingData.open(small_data["tokens"], small_data["task_bank"]), Recorder()
    config = nested(ReasoningConfig, **(TINY | changes))
    with pytest.raises(ValueError, match=message):
        train_reasoning(parent(), config, data, arithmetic(small_data["task_bank"]), recorder, tmp_path)
    assert recorder.told == []
    assert list(tmp_path.iterdir()) == []


def made(small_data: dict[str, Path], recorder: Recorder, **changes: object) -> Product:
    config = nested(ReasoningConfig, **(TINY | {"baking_steps": 0, "steps": 2} | changes))
    suite = open_suite(small_data["evaluation_suite"])
    suite = replace(suite, tasks=tuple(task for task in suite.tasks if task.family == "arithmetic")[:4])
    context = PhaseContext(folders=small_data, suite=suite, reporter=recorder)
    context.tasks = arithmetic(small_data["task_bank"])
    return make_reasoner(parent(), context, config)


def test_training_that_harms_hands_the_parent_on(small_data: dict[str, Path], tmp_path: Path) -> None:
    harmful = {"muon_lr": 2.0, "adamw_lr": 1.0, "backbone_lr_factor": 1.0, "warmup_fraction": 0.0}
    product = made(small_data, Recorder(), **harmful)
    assert_declared("reasoning_model", product)
    assert product.metrics["handed_on"] == 1
    assert not any(name.startswith(("baking_", "train_")) for name in product.metrics), "of a model not stored"
    assert product.metrics["thoughts_enabled"] == 0
    assert product.metrics["thought_gain"] == product.metrics["thought_gain_hard"] == 0.0
    bundle = write_bundle(
        tmp_path / "bundle",
        kind=product.kind,
        model_config=product.model_config,
        tensors=product.tensors,
        tokenizer_json=product.tokenizer_json,
    )
    weights = load_latents(bundle).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in parent().state_dict().items())
    reasoner = load_reasoner(open_bundle(bundle.folder))
    assert not reasoner.enabled
    assert not bool(reasoner.thinker.head.output.weight.any()), "its thoughts do nothing"
    torch.manual_seed(99)
    again = made(small_data, Recorder(), **harmful).tensors
    assert product.tensors is not None
    assert again is not None
    assert [n for n, value in product.tensors.items() if not torch.equal(value, again[n])] == []


def test_training_that_does_not_harm_is_kept(small_data: dict[str, Path]) -> None:
    recorder = Recorder()
    product = made(small_data, recorder, muon_lr=1e-4, adamw_lr=1e-4, baking_steps=1)
    assert_declared("reasoning_model", product)
    assert product.metrics["handed_on"] == 0
    assert all(math.isfinite(value) for value in product.metrics.values())
    assert {"baking_strength", "thought_gain_hard_low", "thought_over_pause_hard", "train_loss"} <= set(product.metrics)
    assert set(recorder.told) == {"baking", "thoughts", "pause", "random reward", "measuring thoughts"}
    assert product.tensors is not None
    assert not torch.equal(product.tensors["embedding.weight"], parent().state_dict()["embedding.weight"])
    reward = recorder.figures["thought reward"].series
    assert {name: list(x) for name, (x, _) in reward.items()} == {
        "best of a position": [0, 1],
        "root mean square": [0, 1],
    }
    (entropy,) = recorder.figures["thought entropy"].series.values()
    assert all(3 < value < math.log(321) for value in entropy[1])
    document = product.model_config["thoughts"]
    assert document["shape"]["max_length"] == 3
    assert document["injection"]["min_interval"] == 3


def reasoner_and_bundle(tmp_path: Path) -> tuple[Reasoner, Path]:
    thinker = mix_at_random(make_thinker())
    injector = ThoughtInjector(InjectionConfig(surprise_share=0.3))
    injector.quantiles.copy_(torch.rand(injector.quantiles.shape, generator=seeded()).sort(-1).values)
    reasoner = Reasoner(thinker, injector, True)
    document, tensors = reasoner_document(reasoner), reasoner_tensors(reasoner)
    write_bundle(tmp_path / "b", kind="cognate", model_config=document, tensors=tensors, tokenizer_json="{}")
    return reasoner, tmp_path / "b"


@torch.no_grad()
def test_reasoner_comes_back_from_its_bundle_bit_for_bit(tmp_path: Path) -> None:
    reasoner, folder = reasoner_and_bundle(tmp_path)
    loaded = load_reasoner(open_bundle(folder))
    assert (loaded.enabled, loaded.injector.config.surprise_share) == (True, 0.3)
    assert torch.equal(loaded.injector.quantiles, reasoner.injector.quantiles)
    text, positions = torch.randint(1, 300, (2, 20), generator=seeded()), torch.tensor([[3, 19], [0, 8]])
    talks = []
    for thinker in (reasoner.thinker, loaded.thinker):
        thoughts = thinker.think(thinker.cognate.trace(text), positions, seeded(4))
        talks.append((thoughts.tokens, thinker.talk(answers(thinker, text, positions), thoughts).together))
    assert torch.equal(talks[0][0], talks[1][0])
    assert torch.equal(talks[0][1], talks[1][1])
    base = reasoner.thinker.cognate(text).logits
    for load in (load_latents, load_model):
        assert torch.equal(load(open_bundle(folder))(text).logits, base), "later phases leave the thoughts behind"
    assert not torch.equal(talks[0][1], base.gather(1, positions[..., None].expand(-1, -1, 300)))


def test_bundle_without_thoughts_cannot_think(tmp_path: Path) -> None:
    model = parent()
    config = {"cognate": model.config.model_dump()}
    bundle = write_bundle(
        tmp_path / "plain", kind="cognate", model_config=config, tensors=model.state_dict(), tokenizer_json="{}"
    )
    with pytest.raises(BundleError, match="without thoughts: only a reasoning_model can think"):
        load_reasoner(bundle)


@pytest.mark.parametrize(
    ("part", "change"),
    [("shape", {"mixing_heads": 7}), ("shape", {"content": "pause"}), ("injection", {"min_interval": 0})],
)
def test_thoughts_that_do_not_fit_their_configuration_are_refused(
    part: str, change: dict[str, object], tmp_path: Path
) -> None:
    reasoner, folder = reasoner_and_bundle(tmp_path)
    document, tensors = reasoner_document(reasoner), reasoner_tensors(reasoner)
    document["thoughts"][part] |= change
    wrong = write_bundle(tmp_path / "w", kind="cognate", model_config=document, tensors=tensors, tokenizer_json="{}")
    with pytest.raises(BundleError, match="the thoughts do not fit the configuration"):
        load_reasoner(wrong)
    tensors.pop("thoughts.head.output.weight")
    document = reasoner_document(reasoner)
    lacking = write_bundle(tmp_path / "l", kind="cognate", model_config=document, tensors=tensors, tokenizer_json="{}")
    with pytest.raises(BundleError, match=r"head\.output\.weight"):
        load_reasoner(lacking)
    assert load_reasoner(open_bundle(folder)).enabled


def test_factors_of_the_learning_rates(small_data: dict[str, Path]) -> None:
    from training_core.optim.mugrokfast import MuGrokfast, OptimizerConfig

    moved = {}
    for factor in (1.0, 0.1):
        thinker = mix_at_random(make_thinker())
        before = {name: p.detach().clone() for name, p in thinker.named_parameters()}
        optimizer = MuGrokfast(thinker, OptimizerConfig(grokfast_lambda=0.0, clip_norm=1e9), {"cognate.": factor})
        for index, parameter in enumerate(thinker.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=seeded(index))
        optimizer.step(1.0)
        moved[factor] = {name: p.detach() - before[name] for name, p in thinker.named_parameters()}
    for name, whole in moved[1.0].items():
        expected = 0.1 * whole if name.startswith("cognate.") else whole
        assert (moved[0.1][name] - expected).abs().max() < 1e-6, name
        assert whole.abs().max() > 1e-4


@pytest.mark.parametrize("factor", [1e-6, 1.0])
def test_model_moves_more_slowly_than_what_thinking_adds(factor: float, small_data: dict[str, Path]) -> None:
    config = nested(ReasoningConfig, **(TINY | {"baking_steps": 0, "steps": 1, "backbone_lr_factor": factor}))
    data = TrainingData.open(small_data["tokens"], small_data["task_bank"])
    result = train_reasoning(parent(), config, data, [], SilentReporter())
    assert result.baking is None
    before = parent().state_dict()
    for thinker in (result.thinker, *result.controls.values()):
        moved = max(float((p.detach() - before[n]).abs().max()) for n, p in thinker.cognate.named_parameters())
        assert (moved < 1e-6) == (factor < 1)
        assert float(thinker.head.output.weight.detach().abs().max()) > 1e-4


class Interrupted(Exception):
    """Stands for whatever ends a run."""


class Interrupting(SilentReporter):
    def progress(self, done: int, total: int, label: str) -> None:
        if done == 4:
            raise Interrupted


@pytest.mark.slow
def test_curves_are_whole_after_a_resume(tmp_path: Path) -> None:
    config = TrainingConfig(steps=6, batch_size=2, seq_len=13, checkpoint_interval_s=0.0)
    policy = PolicyConfig(**{name: TINY[name] for name in PolicyConfig.model_fields if name in TINY})  # type: ignore[arg-type]
    results = {}
    for name, reporter in (("whole", SilentReporter()), ("broken", Interrupting()), ("broken", SilentReporter())):
        thinker = make_thinker(num_thoughts=2, max_length=3)
        arguments = (
            thinker,
            ThoughtObjective(policy, None),
            lambda generator: torch.randint(1, 300, (2, 14), generator=generator),
            config,
            reporter,
        )
        if isinstance(reporter, Interrupting):
            with pytest.raises(Interrupted):
                train(*arguments, checkpoint=tmp_path / name)
        else:
            results[name] = train(*arguments, checkpoint=tmp_path / name).history
    assert results["whole"] == results["broken"]
    assert list(results["whole"]["step"]) == [0, 1, 2, 3, 4, 5]
    assert {"loss", "gradient_norm", "best_reward", "entropy", "thought_tokens"} <= set(results["whole"])
    finished = train(*arguments, checkpoint=tmp_path / "whole")
    assert finished.history == results["whole"], "a finished run is not trained again"
