"""The search space: included experts, their strengths, the first adapted layer, routing temperature and recursion.

A genome is a vector in [0, 1)^n, as required by simulated binary crossover and polynomial mutation. Every gene has a
short tuple of levels, and a value x selects level floor(x * number of levels). The genes, in order, for K experts:

    K     expert included             no, yes
    K     its strength                0, 0.05 .. 1.5: a factor on the router's weight
    1     first adapted layer         0 .. layers: lower layers are not adapted; "layers" adapts none
    1     routing temperature         0 (only the likeliest expert), 1/8 .. 4 in steps of sqrt 2
    4     cycles, latent steps, supervision steps, halting threshold of the recursion

Different vectors are often equivalent: `Space.decode` returns compositions in canonical form, so that each one is
evaluated only once.

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
_LEAST_PROBABILITY = 1e-30  # avoids log 0 for a router that is certain


class Structure(NamedTuple):
    """The genes that latency depends on. `first_layer` equals the number of layers if none is adapted."""

    first_layer: int
    cycles: int
    latent_steps: int
    num_supervision: int


@dataclass(frozen=True, slots=True)
class Composition:
    """A decoded genome in canonical form, as returned by `Space.decode`. Equivalent compositions compare equal."""

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
        """Whether any expert is included."""
        return any(self.experts)

    @property
    def structure(self) -> Structure:
        """The genes that latency depends on."""
        return Structure(self.first_layer, self.cycles, self.latent_steps, self.num_supervision)

    def recursion(self) -> dict[str, float]:
        """Return the fields of `CognateConfig` that the composition sets."""
        names = ("cycles", "latent_steps", "num_supervision", "halt_threshold")
        return {name: getattr(self, name) for name in names}

    def weights(self, probabilities_QN: Tensor) -> Tensor:
        """Return expert weights (questions, experts) from a router's probabilities of none and of every expert.

            w_k = strength_k * softmax(log p / temperature)_k        over none and the included experts

        At temperature 0 the likeliest one gets all of the weight; of equals, the first.

        Raises:
            ValueError: when the number of probabilities is not 1 + the number of experts.
        """
        if probabilities_QN.shape[-1] != 1 + len(self.experts):
            raise ValueError(
                f"a router of {len(self.experts)} experts gives {1 + len(self.experts)} probabilities, the first of "
                f"them of none, got {probabilities_QN.shape[-1]}"
            )
        excluded_N = torch.tensor([False, *(not included for included in self.experts)])
        log_p_QN = probabilities_QN.double().clamp_min(_LEAST_PROBABILITY).log()
        scores_QN = log_p_QN.masked_fill(excluded_N, float("-inf"))
        if self.temperature == 0:
            best_QN = scores_QN == scores_QN.amax(-1, keepdim=True)
            # cumsum == 1 selects the first of several maxima
            share_QN = (best_QN & (best_QN.cumsum(-1) == 1)).double()
        else:
            share_QN = (scores_QN / self.temperature).softmax(-1)
        return (share_QN[:, 1:] * torch.tensor(self.strengths, dtype=torch.float64)).float()

    def document(self) -> dict[str, Any]:
        """Return the composition as JSON."""
        return asdict(self) | {"experts": list(self.experts), "strengths": list(self.strengths)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the composition that `document` encoded.

        Raises:
            ValueError: when a field is missing or unknown.
        """
        if set(document) != set(cls.__slots__):
            raise ValueError(f"a composition has the fields {sorted(cls.__slots__)}, got {sorted(document)}")
        lists = {name: tuple(document[name]) for name in ("experts", "strengths")}
        return cls(**dict(document) | lists)


@dataclass(frozen=True, slots=True)
class Space:
    """The search space for K experts of one model; `levels` holds the levels of each gene.

    The levels always include the model's own recursion.
    """

    unadapted: Composition
    levels: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, config: CognateConfig, num_experts: int) -> Self:
        """Return the search space of a model and its experts.

        Raises:
            ValueError: when there are no experts.
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
        levels += [tuple(sorted({*usual, current})) for usual, current in own]
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
        """The number of experts, K."""
        return len(self.unadapted.experts)

    @property
    def num_layers(self) -> int:
        """The number of layers of the model."""
        return self.unadapted.first_layer

    @property
    def num_genes(self) -> int:
        """The length of a genome, n = 2 K + 6."""
        return len(self.levels)

    def decode(self, genome: Sequence[float]) -> Composition:
        """Return the composition, in canonical form, that a vector in [0, 1]^n encodes."""
        codes = [min(int(x * len(levels)), len(levels) - 1) for x, levels in zip(genome, self.levels, strict=True)]
        return self.of_codes(codes)

    def of_codes(self, codes: Sequence[int]) -> Composition:
        """Return the composition, in canonical form, with the given level of each gene."""
        values = [levels[code] for levels, code in zip(self.levels, codes, strict=True)]
        k = self.num_experts
        composition = Composition(
            tuple(bool(value) for value in values[:k]), tuple(values[k : 2 * k]), int(values[2 * k]), values[2 * k + 1],
            int(values[2 * k + 2]), int(values[2 * k + 3]), int(values[2 * k + 4]), values[2 * k + 5],
        )  # fmt: skip
        return _canonical(composition, self.num_layers)

    def codes(self, composition: Composition) -> list[int]:
        """Return the index of the level of each gene.

        Raises:
            ValueError: when a value is not among the levels of its gene.
        """
        c = composition
        values: list[float] = [*c.experts, *c.strengths, c.first_layer, c.temperature, *c.recursion().values()]
        if len(values) != self.num_genes or any(v not in levels for v, levels in zip(values, self.levels, strict=True)):
            raise ValueError(f"{composition} is not in the space of {self.num_experts} experts of this model")
        return [levels.index(value) for value, levels in zip(values, self.levels, strict=True)]

    def encode(self, composition: Composition) -> list[float]:
        """Return a vector in (0, 1)^n that decodes to `composition`: the middle of every level.

        Raises:
            ValueError: as `codes`.
        """
        return [(code + 0.5) / len(levels) for code, levels in zip(self.codes(composition), self.levels, strict=True)]

    def alone(self, expert: int) -> Composition:
        """Return one expert in all layers, with the router's weight and the model's own recursion."""
        return self._with(tuple(k == expert for k in range(self.num_experts)))

    def together(self) -> Composition:
        """Return all experts in all layers, with the same settings as `alone`."""
        return self._with((True,) * self.num_experts)

    def _with(self, experts: tuple[bool, ...]) -> Composition:
        strengths = tuple(float(included) for included in experts)
        own = self.unadapted.recursion()
        return _canonical(Composition(experts, strengths, 0, 1.0, **own), self.num_layers)  # type: ignore[arg-type]


def _canonical(composition: Composition, num_layers: int) -> Composition:
    """Return the canonical form, so that equivalent compositions compare equal.

    Excluded experts get strength 0, experts that adapt no layer are excluded, and fields without effect get fixed
    values.
    """
    experts = composition.experts if composition.first_layer < num_layers else (False,) * len(composition.experts)
    adapts = any(experts)
    return Composition(
        experts,
        tuple(s if included else 0.0 for included, s in zip(experts, composition.strengths, strict=True)),
        composition.first_layer if adapts else num_layers,
        composition.temperature if adapts else 0.0,
        composition.cycles,
        composition.latent_steps,
        composition.num_supervision,
        # with a single supervision step there is nothing to halt
        composition.halt_threshold if composition.num_supervision > 1 else NEVER_STOPS,
    )
