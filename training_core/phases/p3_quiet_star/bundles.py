"""Storage of a thinker in a model bundle.

The model's weights keep their names; the weights that thinking adds have the prefix `thoughts.`. Later phases load the
model without its thoughts (`training_core.formats.loading.load_latents`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from training_core.formats.loading import THOUGHTS, untrained
from training_core.phases.p3_quiet_star.injection import InjectionConfig, ThoughtInjector
from training_core.phases.p3_quiet_star.thoughts import Thinker, ThoughtConfig
from training_core.store.bundle import Bundle, BundleError


@dataclass(frozen=True, slots=True)
class Reasoner:
    """A thinker, the injector that decides where it thinks, and whether thoughts helped on validation text."""

    thinker: Thinker
    injector: ThoughtInjector
    enabled: bool


def reasoner_document(reasoner: Reasoner) -> dict[str, Any]:
    """Return the model configuration that is stored in the reasoner's bundle."""
    return {
        "cognate": reasoner.thinker.cognate.config.model_dump(),
        "thoughts": {
            "shape": reasoner.thinker.config.model_dump(include=set(ThoughtConfig.model_fields)),
            "injection": reasoner.injector.config.model_dump(include=set(InjectionConfig.model_fields)),
            "enabled": reasoner.enabled,
        },
    }


def reasoner_tensors(reasoner: Reasoner) -> dict[str, Tensor]:
    """Return the weights that are stored in the reasoner's bundle, by name."""
    tensors = dict(reasoner.thinker.cognate.state_dict())
    for name, value in reasoner.thinker.state_dict().items():
        if not name.startswith("cognate."):
            tensors[THOUGHTS + name] = value
    tensors |= {f"{THOUGHTS}injector.{name}": value for name, value in reasoner.injector.state_dict().items()}
    return tensors


def load_reasoner(bundle: Bundle) -> Reasoner:
    """Load a reasoner from a bundle of phase 3.

    Raises:
        BundleError: when the bundle has no thoughts, or they do not match the configuration.
    """
    document = bundle.model_config.get("thoughts")
    if not isinstance(document, Mapping):
        raise BundleError(
            f"{bundle.folder} holds a {bundle.kind} model without thoughts: only a reasoning_model can think"
        )
    model, tensors = untrained(bundle)
    own = {name: value for name, value in tensors.items() if not name.startswith(THOUGHTS)}
    rest = {name.removeprefix(THOUGHTS): v for name, v in tensors.items() if name.startswith(THOUGHTS)}
    table = {n.removeprefix("injector."): v for n, v in rest.items() if n.startswith("injector.")}
    weights = {n: v for n, v in rest.items() if not n.startswith("injector.")}
    try:
        thinker = Thinker(model, ThoughtConfig.model_validate(document["shape"]))
        injector = ThoughtInjector(InjectionConfig.model_validate(document["injection"]))
        thinker.load_state_dict(weights | {f"cognate.{name}": value for name, value in own.items()})
        injector.load_state_dict(table)
        enabled = bool(document["enabled"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise BundleError(f"{bundle.folder}: the thoughts do not fit the configuration ({error})") from error
    return Reasoner(thinker.eval(), injector, enabled)
