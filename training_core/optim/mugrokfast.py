"""MuGrokfast = Grokfast filter -> Muon (hidden matrices) + AdamW (embeddings, norms, gates, heads, convolutions).

Muon orthogonalises the momentum, which makes a matrix's update independent of the gradient's scale. The filter
therefore does not enlarge a Muon step; it turns its direction towards the slow component of the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from training_core.optim.grokfast import GrokfastFilter
from training_core.optim.muon import Muon


class OptimizerConfig(BaseModel):
    """Learning rates, weight decay, momentum, gradient filter and clipping."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    muon_lr: float = Field(0.02, gt=0, description="Peak learning rate of hidden matrices (Muon)")
    adamw_lr: float = Field(0.004, gt=0, description="Peak learning rate of everything else (AdamW)")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of the Muon matrices")
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon's Nesterov momentum")
    grokfast_alpha: float = Field(0.98, ge=0, lt=1, description="Decay of the gradient average")
    grokfast_lambda: float = Field(0.1, ge=0, description="Weight of the gradient average; 0 turns the filter off")
    clip_norm: float = Field(1.0, gt=0, description="Maximum global gradient norm; larger gradients are scaled down")


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Return whether Muon updates the parameter: a matrix between hidden activations, not an embedding, gate, head or
    prefix."""
    outside = ("embedding.", "halt_head.", "gates.", "persistent")
    return parameter.ndim == 2 and not any(part in name for part in outside)


class MuGrokfast:
    """Optimizer of all trainable parameters of `model`; `step` filters, clips and applies the gradients.

    `lr_factors` maps prefixes of parameter names to a factor on their peak rates; other parameters have factor 1.
    """

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, lr_factors: Mapping[str, float] | None = None
    ) -> None:
        self.config = config
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.filter = GrokfastFilter(config.grokfast_alpha, config.grokfast_lambda)
        self._groups: list[tuple[torch.optim.Optimizer, dict[str, nn.Parameter], float]] = []
        by_factor: dict[float, dict[str, nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            factors = [f for prefix, f in (lr_factors or {}).items() if name.startswith(prefix)]
            by_factor.setdefault(factors[0] if factors else 1.0, {})[name] = parameter
        for factor, parameters in by_factor.items():
            self._add_groups(parameters, factor)

    def _add_groups(self, parameters: dict[str, nn.Parameter], factor: float) -> None:
        config = self.config
        hidden = {n: p for n, p in parameters.items() if is_hidden_matrix(n, p)}
        rest = {n: p for n, p in parameters.items() if n not in hidden}
        if hidden:
            muon = Muon(
                list(hidden.values()),
                lr=config.muon_lr,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
            )
            self._groups.append((muon, hidden, factor * config.muon_lr))
        if rest:
            adamw = torch.optim.AdamW(
                list(rest.values()), lr=config.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0, foreach=True
            )
            self._groups.append((adamw, rest, factor * config.adamw_lr))

    def step(self, lr_factor: float) -> float:
        """Filter, clip and apply the accumulated gradients at `lr_factor` times the peak rates, then clear them.

        Returns the norm of the gradients before the filter.
        """
        gradients = {n: p.grad for n, p in self.parameters.items() if p.grad is not None}
        norm = float(torch.nn.utils.get_total_norm(list(gradients.values())))
        self.filter.apply(gradients)
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.config.clip_norm)
        for optimizer, _, peak in self._groups:
            for group in optimizer.param_groups:
                group["lr"] = peak * lr_factor
            optimizer.step()
        for parameter in self.parameters.values():
            parameter.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """Return every tensor needed to resume, by a stable name."""
        tensors = {f"grokfast.{name}": value for name, value in self.filter.averages.items()}
        for optimizer, parameters, _ in self._groups:
            kind = type(optimizer).__name__.lower()
            for name, parameter in parameters.items():
                for key, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"{kind}.{key}.{name}"] = torch.as_tensor(value)
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore the tensors of `state`."""
        prefix = "grokfast."
        self.filter.averages = {
            name.removeprefix(prefix): value.to(self.parameters[name.removeprefix(prefix)].device)
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        for optimizer, parameters, _ in self._groups:
            kind = type(optimizer).__name__.lower()
            for key, value in tensors.items():
                owner, _, rest = key.partition(".")
                state_key, _, name = rest.partition(".")
                if owner == kind and name in parameters:
                    parameter = parameters[name]
                    device = "cpu" if state_key == "step" else parameter.device  # AdamW keeps its step on the CPU
                    optimizer.state[parameter][state_key] = value.to(device)
