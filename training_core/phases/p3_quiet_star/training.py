"""Training of phase 3: bake chains of thought into the model, then train thoughts that make true text more likely.

    parent -> baking (teacher: few-shot worked solutions; student: no prompt) -> thoughts (REINFORCE)
                                                                              -> two controls, trained the same way

The controls start from the same baked model and see the same batches: *pause* replaces thoughts with learned tokens
that have no content (equal compute), and *random reward* trains thoughts whose reward is noise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.data.batches import TrainingData
from training_core.data.task_bank import ANSWER_CUE, Task
from training_core.data.tokenizer import load_tokenizer
from training_core.distill.prompt_baking import BakingConfig, BakingMeasure, bake, measure_baking
from training_core.distill.trajectories import SamplingConfig, Trajectory, sample_continuations
from training_core.nn.cognate import Cognate, check_sequence
from training_core.phases.p3_quiet_star.config import ReasoningConfig
from training_core.phases.p3_quiet_star.mixing import check_heads
from training_core.phases.p3_quiet_star.objective import ThoughtObjective, check_true_tokens
from training_core.phases.p3_quiet_star.thoughts import Thinker, check_length
from training_core.phases.p3_quiet_star.worked_solutions import cot_prompt, material, worked_solution
from training_core.reporting import Reporter
from training_core.store.checkpoint import weights_digest
from training_core.training.loop import TrainingResult, step_generator, train

DELIMITERS_LIKE = "---"
CONTROLS = ("pause", "random reward")


@dataclass(frozen=True, slots=True)
class ReasoningTraining:
    """The trained thinker, the controls by name, and the measurements of baking and of training."""

    thinker: Thinker
    controls: dict[str, Thinker]
    baking: BakingMeasure | None
    training: TrainingResult


def train_reasoning(
    parent: Cognate,
    config: ReasoningConfig,
    data: TrainingData,
    tasks: Sequence[Task],
    reporter: Reporter,
    checkpoint: Path | None = None,
) -> ReasoningTraining:
    """Bake, train the thoughts, and train the controls.

    `tasks` are training tasks, from which worked solutions are derived.

    Raises:
        ValueError: when thoughts or sequences do not fit the model, or a relative reward has a single thought.
        TrainingDivergedError: as `train`.
    """
    check_config(parent, config)
    baked, baking = bake_reasoning(parent, config, data, tasks, reporter, checkpoint)
    tokenizer = load_tokenizer(data.tokenizer_json)
    thinker, training = _teach(untrained(baked, config, tokenizer), config, data, reporter, checkpoint, "thoughts")
    changes = {"pause": {"content": "pause"}, "random reward": {"reward": "random"}}
    controls = {}
    for name in CONTROLS:
        own = config.model_copy(update={"thoughts": config.thoughts.model_copy(update=changes[name])})
        controls[name], _ = _teach(untrained(baked, own, tokenizer), own, data, reporter, checkpoint, name)
    return ReasoningTraining(thinker, controls, baking, training)


def untrained(model: Cognate, config: ReasoningConfig, tokenizer: Tokenizer) -> Thinker:
    """Return a thinker on a copy of `model` whose thoughts have no effect yet.

    The weights it adds are drawn from the seed, and are the same for thoughts and for their controls.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        thinker = Thinker(copy.deepcopy(model), config.thoughts)
    thinker.initialise_delimiters(tokenizer.encode(DELIMITERS_LIKE).ids, step_generator(config.training.seed, -1))
    return thinker


def check_config(parent: Cognate, config: ReasoningConfig) -> None:
    """Reject an invalid configuration before anything is trained.

    Raises:
        ValueError: as `train_reasoning`.
    """
    check_sequence(parent.config, config.training.seq_len)
    check_length(parent.config, config.thoughts)
    check_heads(parent.config.d_model, config.thoughts.mixing_heads)
    check_true_tokens(config.training.seq_len, config.thoughts.true_tokens)
    if config.thoughts.num_thoughts < 2 and config.thoughts.reward == "relative":
        raise ValueError(
            "reward = relative compares the thoughts of a position, and num_thoughts = "
            f"{config.thoughts.num_thoughts} leaves nothing to compare: "
            "set num_thoughts to 2 or more, or reward to information_gain"
        )


def bake_reasoning(
    parent: Cognate,
    config: ReasoningConfig,
    data: TrainingData,
    tasks: Sequence[Task],
    reporter: Reporter,
    checkpoint: Path | None,
) -> tuple[Cognate, BakingMeasure | None]:
    """Step 1: distil the parent with worked solutions in its prompt into a copy without that prompt.

    Returns the baked model and its divergence from the prompted parent on held-out trajectories, or None for the
    latter if `baking.steps` is 0.
    """
    student = copy.deepcopy(parent)
    if config.baking.steps == 0:
        return student, None
    tokenizer = load_tokenizer(data.tokenizer_json)
    solvable = [task for task in material(tasks) if worked_solution(task) is not None]
    draws = torch.randperm(len(solvable), generator=step_generator(config.training.seed, -2)).tolist()
    chosen = [solvable[i] for i in draws[: config.baking.examples + 2 * config.baking.trajectories]]
    prompt = tokenizer.encode(cot_prompt(chosen, config.baking.examples)).ids
    asked = chosen[config.baking.examples :]
    sampling = SamplingConfig(max_tokens=config.baking.max_tokens, top_p=config.thoughts.top_p)
    trajectories = _trajectories(parent, tokenizer, prompt, asked, sampling, step_generator(config.training.seed, -3))
    half = len(trajectories) // 2
    teaching, held_out = trajectories[:half], trajectories[half:]
    settings = BakingConfig(
        **config.training.model_dump(),
        **sampling.model_dump(),
        num_trajectories=len(teaching),
    ).model_copy(
        update={
            "steps": config.baking.steps,
            "batch_size": config.baking.batch_size,
            "muon_lr": config.backbone_lr_factor * config.training.muon_lr,
            "adamw_lr": config.backbone_lr_factor * config.training.adamw_lr,
        }
    )
    text = _batches(data, config, max(1, config.baking.batch_size // 2))
    bake(parent, student, prompt, teaching, text, settings, reporter, checkpoint)
    return student, measure_baking(parent, student, prompt, held_out)


def _trajectories(
    model: Cognate,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    tasks: Sequence[Task],
    sampling: SamplingConfig,
    generator: torch.Generator,
) -> list[Trajectory]:
    """Return one trajectory per task, alternately sampled from the prompted model and taken from a worked solution."""
    prefixes = [tuple(tokenizer.encode(task.prompt).ids) for task in tasks]
    sampled = iter(sample_continuations(model, prompt, prefixes[::2], sampling, generator))
    return [
        Trajectory(prefix, tuple(tokenizer.encode(f" {worked_solution(task)}{ANSWER_CUE}{task.answer}").ids))
        if number % 2
        else next(sampled)
        for number, (prefix, task) in enumerate(zip(prefixes, tasks, strict=True))
    ]


def _teach(
    thinker: Thinker,
    config: ReasoningConfig,
    data: TrainingData,
    reporter: Reporter,
    checkpoint: Path | None,
    label: str,
) -> tuple[Thinker, TrainingResult]:
    """Step 2: train a copy of `thinker`, which itself remains the reference of the KL term."""
    learner = copy.deepcopy(thinker)
    if config.thoughts.reward == "information_gain":
        learner.keep_slow_copy()
    policy = config.thoughts.model_dump()
    result = train(
        learner,
        ThoughtObjective(config.thoughts, thinker.requires_grad_(requires_grad=False).eval()),
        _batches(data, config, config.training.batch_size),
        config.training,
        reporter,
        checkpoint=checkpoint,
        label=label,
        identity=f"{label}/{config.mix.shares()}/{sorted(policy.items())}/{weights_digest(thinker).hex()}",
        lr_factors={"cognate.": config.backbone_lr_factor},
    )
    learner.slow = None
    return learner, result


def _batches(data: TrainingData, config: ReasoningConfig, rows: int) -> Callable[[torch.Generator], Tensor]:
    def draw(generator: torch.Generator) -> Tensor:
        return data.batch(config.mix, rows, config.training.seq_len + 1, generator)

    return draw
