"""What the search varies: which experts, from which layer on, how much of each, how sharply routed, how much recursion.

A genome is a vector in [0, 1)^n, as simulated binary crossover and polynomial mutation want it. Every gene has a short
tuple of levels, and x stands for level floor(x * number of levels). The genes, in order, for K experts:

    K     expert is in                no, yes
    K     strength of it              0, 0.05 .. 1.5: multiplies the weight that the router gave
    1     first layer                 0 .. layers: those below it stay as they are; "layers" adapts none
    1     temperature of the routing  0 (the likeliest alone), 1/8 .. 4 in steps of sqrt 2
    4     cycles, latent steps, supervision steps, halting threshold of the recursion

Different vectors often mean the same: `Space.decode` gives every composition in one spelling only, so that it is
measured once.

Shape legend: Q questions, K experts, N = K + 1 answers of a router, the first of them "none".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from training_core.nn.cognate import CognateConfig

STRENGTHS = tuple(k / 20 for k in range(31))
TEMPERATURES = (0.0, *(2 ** (k / 2) for k in range(-6, 5)))
THRESHOLDS = tuple(k / 20 for k in range(10, 21))
MOST_CYCLES, MOST_LATENT_STEPS, MOST_SUPERVISION = 3, 2, 2
NEVER_STOPS = 1.0
_LEAST_PROBABILITY = 1e-30  # a router that is sure has the logarithm of 0 to give


class Structure(NamedTuple):
    """What the time of an answer depends on. `first_layer` is the number of layers where none is adapted."""

    first_layer: int
    cycles: int
    latent_steps: int
    num_supervision: int


@dataclass(frozen=True, slots=True)
class Composition:
    """A decoded genome; `Space.decode` makes them. Equal ones compute the same."""

    experts: tuple[bool, ...]
    strengths: tuple[float, ...]
    first_layer: int
    temperature: float
    cycles: int
    latent_steps: int
    num_supervision: int
    halt_threshold: float

    @property
    def adapts(self) -> bool:
        """Whether there is any expert in it."""
        return any(self.experts)

    @property
    def structure(self) -> Structure:
        """What the time of an answer depends on."""
        return Structure(self.first_layer, self.cycles, self.latent_steps, self.num_supervision)

    def recursion(self) -> dict[str, float]:
        """Fields of `CognateConfig` that it sets."""
        names = ("cycles", "latent_steps", "num_supervision", "halt_threshold")
        return {name: getattr(self, name) for name in names}

    def weights(self, probabilities_QN: Tensor) -> Tensor:
        """Weights (questions, experts) from a router's probabilities of none and of every expert.

            w_k = strength_k * softmax(log p / temperature)_k        over none and the experts that are in

        At temperature 0 the likeliest has all of it, the first of equals.

        Raises:
            ValueError: when there are not as many probabilities as answers.
        """
        if probabilities_QN.shape[-1] != 1 + len(self.experts):
            raise ValueError(
                f"a router of {len(self.experts)} experts gives {1 + len(self.experts)} probabilities, the first of "
                f"them of none, got {probabilities_QN.shape[-1]}"
            )
        out_N = torch.tensor([False, *(not there for there in self.experts)])
        scores_QN = probabilities_QN.double().clamp_min(_LEAST_PROBABILITY).log().masked_fill(out_N, float("-inf"))
        if self.temperature == 0:
            best_QN = scores_QN == scores_QN.amax(-1, keepdim=True)
            share_QN = (best_QN & (best_QN.cumsum(-1) == 1)).double()
        else:
            share_QN = (scores_QN / self.temperature).softmax(-1)
        return (share_QN[:, 1:] * torch.tensor(self.strengths, dtype=torch.float64)).float()

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"experts": list(self.experts), "strengths": list(self.strengths)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """What `document` gave.

        Raises:
            ValueError: when a field is missing or unknown.
        """
        if set(document) != set(cls.__slots__):
            raise ValueError(f"a composition has the fields {sorted(cls.__slots__)}, got {sorted(document)}")
        lists = {name: tuple(document[name]) for name in ("experts", "strengths")}
        return cls(**dict(document) | lists)


@dataclass(frozen=True, slots=True)
class Space:
    """The compositions of K experts of one model; `levels` are those of every gene. The model's own recursion is
    always among them."""

    unadapted: Composition
    levels: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, config: CognateConfig, num_experts: int) -> Self:
        """The space of a model and its experts.

        Raises:
            ValueError: when there is no expert.
        """
        if num_experts < 1:
            raise ValueError("there is nothing to compose without an expert: train at least one")
        levels: list[tuple[float, ...]] = [(False, True)] * num_experts + [STRENGTHS] * num_experts
        levels += [tuple(range(config.num_layers + 1)), TEMPERATURES]
        own = [
            (range(1, 1 + MOST_CYCLES), config.cycles),
            (range(1 + MOST_LATENT_STEPS), config.latent_steps),
            (range(1, 1 + MOST_SUPERVISION), config.num_supervision),
            (THRESHOLDS, config.halt_threshold),
        ]
        levels += [tuple(sorted({*usual, its})) for usual, its in own]
        unadapted = _canonical(
            Composition(
                (False,) * num_experts, (0.0,) * num_experts, config.num_layers, 0.0,
                config.cycles, config.latent_steps, config.num_supervision, config.halt_threshold,
            ),
            config.num_layers,
        )  # fmt: skip
        return cls(unadapted, tuple(levels))

    @property
    def num_experts(self) -> int:
        """K."""
        return len(self.unadapted.experts)

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self.unadapted.first_layer

    @property
    def num_genes(self) -> int:
        """n = 2 K + 6."""
        return len(self.levels)

    def decode(self, genome: Sequence[float]) -> Composition:
        """The composition that a vector in [0, 1]^n stands for."""
        return self.of_codes([min(int(x * len(its)), len(its) - 1) for x, its in zip(genome, self.levels, strict=True)])

    def of_codes(self, codes: Sequence[int]) -> Composition:
        """The composition of a level for each gene."""
        values = [its[code] for its, code in zip(self.levels, codes, strict=True)]
        k = self.num_experts
        found = Composition(
            tuple(bool(there) for there in values[:k]), tuple(values[k : 2 * k]), int(values[2 * k]), values[2 * k + 1],
            int(values[2 * k + 2]), int(values[2 * k + 3]), int(values[2 * k + 4]), values[2 * k + 5],
        )  # fmt: skip
        return _canonical(found, self.num_layers)

    def codes(self, composition: Composition) -> list[int]:
        """The level of each gene.

        Raises:
            ValueError: when a value is not among the levels of its gene.
        """
        c = composition
        values: list[float] = [*c.experts, *c.strengths, c.first_layer, c.temperature, *c.recursion().values()]
        if len(values) != self.num_genes or any(v not in its for v, its in zip(values, self.levels, strict=True)):
            raise ValueError(f"{composition} is not in the space of {self.num_experts} experts of this model")
        return [its.index(value) for value, its in zip(values, self.levels, strict=True)]

    def encode(self, composition: Composition) -> list[float]:
        """A vector in (0, 1)^n that stands for it: the middle of every level.

        Raises:
            ValueError: as `codes`.
        """
        return [(code + 0.5) / len(its) for code, its in zip(self.codes(composition), self.levels, strict=True)]

    def alone(self, expert: int) -> Composition:
        """One expert in all layers, as the router weighs it, with the model's own recursion."""
        return self._with(tuple(k == expert for k in range(self.num_experts)))

    def together(self) -> Composition:
        """All experts in all layers, likewise."""
        return self._with((True,) * self.num_experts)

    def _with(self, experts: tuple[bool, ...]) -> Composition:
        strengths = tuple(float(there) for there in experts)
        own = self.unadapted.recursion()
        return _canonical(Composition(experts, strengths, 0, 1.0, **own), self.num_layers)  # type: ignore[arg-type]


def _canonical(found: Composition, num_layers: int) -> Composition:
    """The one spelling: an expert that is not in has strength 0, no expert is in that adapts no layer, and what does
    not matter has one fixed value."""
    experts = found.experts if found.first_layer < num_layers else (False,) * len(found.experts)
    adapts = any(experts)
    return Composition(
        experts,
        tuple(strength if there else 0.0 for there, strength in zip(experts, found.strengths, strict=True)),
        found.first_layer if adapts else num_layers,
        found.temperature if adapts else 0.0,
        found.cycles,
        found.latent_steps,
        found.num_supervision,
        found.halt_threshold if found.num_supervision > 1 else NEVER_STOPS,
    )
