"""Phase 3 from a merged model to what is stored: train, decide on validation text, measure on test text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from training_core.data.batches import TrainingData
from training_core.data.tasks import Task
from training_core.evaluation.held_out import Suite
from training_core.evaluation.intervals import rate
from training_core.evaluation.language_modeling import measure_windows
from training_core.models.cognate import Cognate
from training_core.phases import Product
from training_core.reasoning.assessment import assess, helps
from training_core.reasoning.bundles import Reasoner, reasoner_document, reasoner_tensors
from training_core.reasoning.exhibits import exhibit
from training_core.reasoning.injection import ThoughtInjector
from training_core.reasoning.measurement import first_windows, window_signals
from training_core.reasoning.training import ReasoningConfig, train_reasoning, untrained
from training_core.training.device import best_device
from training_core.training.reporting import Figure, Reporter

HARM = 1.01


def make_reasoner(
    parent: Cognate,
    config: ReasoningConfig,
    data: TrainingData,
    tasks: Sequence[Task],
    suite: Suite,
    reporter: Reporter,
    checkpoint: Path | None = None,
) -> Product:
    """Train a reasoner and measure it.

    Where training made the model worse than its parent without thoughts, by more than 1 % bits per byte on validation
    documents, the parent is handed on with thoughts that do nothing (metric `handed_on` = 1).
    """
    tokenizer = Tokenizer.from_str(data.tokenizer_json)
    result = train_reasoning(parent, config, data, tasks, reporter, checkpoint)
    _draw_curves(result.training.history, reporter)
    device, batch_size = best_device(), suite.config.batch_size
    parent.to(device).eval()
    thinker = result.thinker.to(device).eval()
    before = measure_windows(parent, suite.validation, batch_size)
    after = measure_windows(thinker.cognate, suite.validation, batch_size)
    harmed = rate(after.nats, before.nats).value > HARM
    if harmed:
        thinker = untrained(parent, config, tokenizer).to(device).eval()
    seed = config.seed
    validation, test = (first_windows(w, config.measured_windows) for w in (suite.validation, suite.test))
    injector = ThoughtInjector(config)
    injector.calibrate(window_signals(thinker.cognate, validation, batch_size))
    chosen_on = first_windows(validation, max(1, config.measured_windows // 2))
    enabled = helps(thinker, parent, injector, chosen_on, batch_size, seed)
    controls = {name: control.to(device).eval() for name, control in result.controls.items()}
    assessed = assess(parent, thinker, controls, injector, test, suite.tasks, tokenizer, batch_size, seed, reporter)
    metrics = dict(assessed.metrics) | {"handed_on": float(harmed), "thoughts_enabled": float(enabled)}
    if not harmed:  # else they would describe a model that is not stored
        metrics |= result.training.metrics() | ({} if result.baking is None else result.baking.metrics())
    shown = exhibit(thinker, injector, assessed, enabled, test, tokenizer, seed)
    reasoner = Reasoner(thinker.cpu(), injector, enabled)
    return Product(
        "cognate",
        reasoner_document(reasoner),
        reasoner_tensors(reasoner),
        data.tokenizer_json,
        metrics=metrics,
        exhibits={"thoughts": shown},
    )


def _draw_curves(history: Mapping[str, Sequence[float]], reporter: Reporter) -> None:
    """Reward and entropy over the steps of REINFORCE."""
    shown = {
        "thought reward": ("nats", {"best of a position": "best_reward", "root mean square": "reward_spread"}),
        "thought entropy": ("nats per token", {"policy": "entropy"}),
    }
    for name, (unit, series) in shown.items():
        lines = {label: (history["step"], history[key]) for label, key in series.items() if key in history}
        reporter.figure(name, Figure(name.capitalize(), "step", unit, lines))
