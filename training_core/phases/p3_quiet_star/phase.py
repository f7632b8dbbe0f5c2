"""Phase 3: train the merged model to think, choose what to store on validation text, and evaluate it on test text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training_core.evaluation.harm import THOUGHTS, text_ratio
from training_core.formats.loading import load_latents
from training_core.nn.cognate import Cognate
from training_core.phase import Phase, PhaseContext
from training_core.phases.p3_quiet_star.assessment import assess, helps
from training_core.phases.p3_quiet_star.bundles import Reasoner, reasoner_document, reasoner_tensors
from training_core.phases.p3_quiet_star.config import ReasoningConfig
from training_core.phases.p3_quiet_star.gates import GATES
from training_core.phases.p3_quiet_star.injection import ThoughtInjector
from training_core.phases.p3_quiet_star.measurement import first_windows, window_signals
from training_core.phases.p3_quiet_star.report import exhibit
from training_core.phases.p3_quiet_star.result import ReasoningResult
from training_core.phases.p3_quiet_star.training import train_reasoning, untrained
from training_core.reporting import Figure, Reporter
from training_core.store.bundle import Product
from training_core.training.device import best_device


def make_reasoner(parent: Cognate, context: PhaseContext, config: ReasoningConfig) -> Product:
    """Train a reasoner, evaluate it and return it as a product.

    If training raised the bits per byte without thoughts by more than 1 % over the parent's on validation documents,
    the parent is stored instead, with untrained thoughts that have no effect (metric `handed_on` = 1).
    """
    tokenizer, batch_size, seed = context.tokenizer, context.batch_size, config.training.seed
    result = train_reasoning(parent, config, context.training, context.tasks, context.reporter, context.checkpoint)
    _draw_curves(result.training.history, context.reporter)
    device = best_device()
    parent.to(device).eval()
    thinker = result.thinker.to(device).eval()
    harmed = THOUGHTS.exceeded(text_ratio(thinker.cognate, parent, context.selection.text, batch_size))
    if harmed:
        thinker = untrained(parent, config, tokenizer).to(device).eval()
    validation = first_windows(context.selection.text, config.measured_windows)
    injector = ThoughtInjector(config.injection)
    injector.calibrate(window_signals(thinker.cognate, validation, batch_size))
    chosen_on = first_windows(validation, max(1, config.measured_windows // 2))
    enabled = helps(thinker, parent, injector, chosen_on, batch_size, seed)
    controls = {name: control.to(device).eval() for name, control in result.controls.items()}
    reasoner = Reasoner(thinker, injector, enabled)
    context.fix(reasoner_document(reasoner), thinker, injector)
    test = first_windows(context.report.text, config.measured_windows)
    assessed = assess(
        parent, thinker, controls, injector, test, context.report.tasks, tokenizer, batch_size, seed, context.reporter
    )
    metrics = dict(assessed.metrics) | {"handed_on": float(harmed), "thoughts_enabled": float(enabled)}
    if not harmed:  # these metrics describe the trained model, which is not stored if it harmed
        metrics |= result.training.metrics() | ({} if result.baking is None else result.baking.metrics())
    shown = exhibit(thinker, injector, assessed, enabled, test, tokenizer, seed)
    thinker.cpu()
    return Product(
        "cognate",
        reasoner_document(reasoner),
        reasoner_tensors(reasoner),
        context.training.tokenizer_json,
        metrics=metrics,
        exhibits={"thoughts": shown.as_json()},
    )


def _draw_curves(history: Mapping[str, Sequence[float]], reporter: Reporter) -> None:
    """Report figures of the reward and the entropy over the steps of REINFORCE."""
    shown = {
        "thought reward": ("nats", {"best of a position": "best_reward", "root mean square": "reward_spread"}),
        "thought entropy": ("nats per token", {"policy": "entropy"}),
    }
    for name, (unit, series) in shown.items():
        lines = {label: (history["step"], history[key]) for label, key in series.items() if key in history}
        reporter.figure(name, Figure(name.capitalize(), "step", unit, lines))


def _make(context: PhaseContext, config: ReasoningConfig) -> Product:
    return make_reasoner(load_latents(context.parents["merged_model"]), context, config)


PHASES = (
    Phase(
        "reasoning_model",
        3,
        "The merged model, trained to think before hard tokens, with a measurement of how much its thoughts help.",
        ReasoningConfig,
        _make,
        ("merged_model",),
        gates=GATES["reasoning_model"],
        result=ReasoningResult,
    ),
)
