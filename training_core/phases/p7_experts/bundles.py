"""Storage of experts in a bundle, beside the model's own weights, under `experts` in its configuration and tensors.

config     "experts": {"names", "families", "composition", "routed_tokens"}
tensors    experts.<k>.codes.<matrix>, experts.<k>.spreads.<matrix>     multipliers of singular values (`nn.svf`)
           experts.head.*                                               the router (`nn.linear_head.Head`)
           experts.svd.<matrix>.u, .s, .v                               the SVDs, computed once
           experts.probe.tokens, experts.probe.logits                   each expert's logits at the time of measurement
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training_core.formats.loading import EXPERTS, load_model
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.nn.linear_head import Head
from training_core.nn.svf import SVD, Expert, SVFModel
from training_core.phases.p7_experts.evaluator import composed
from training_core.phases.p7_experts.genome import Composition
from training_core.store.bundle import Bundle, BundleError
from training_core.svf.routing import ClassifierRouter

PROBED_ROWS, PROBED_TOKENS = 4, 16


@dataclass(frozen=True, slots=True)
class Experts:
    """A model with its experts, router and composition: the first pass routes, the second answers as composed."""

    svf: SVFModel
    experts: tuple[Expert, ...]
    names: tuple[str, ...]
    head: Head
    composition: Composition
    routed_tokens: int

    def router(self, tokenizer: Tokenizer) -> ClassifierRouter:
        """Return the router of the first pass, which reads hidden states of the model without experts."""
        return ClassifierRouter(self.svf.model, tokenizer, self.head)

    @contextmanager
    def answering(self, prompt: Sequence[int], tokenizer: Tokenizer) -> Iterator[tuple[Cognate, dict[str, float]]]:
        """Yield the model composed for a prompt (token ids), and each expert's weight by name; restore it on exit."""
        with self.svf.using(None):
            probabilities = self.router(tokenizer).of_prompts([prompt])
        weights_K = self.composition.weights(probabilities)[0]
        with composed(self.svf, self.experts, self.composition, probabilities) as model:
            yield model, dict(zip(self.names, weights_K.tolist(), strict=True))

    @torch.no_grad()
    def probe(self, tokens_BS: Tensor) -> Tensor:
        """Return logits at the last token of each row, with each expert alone at full weight, (experts, rows, V)."""
        logits = []
        for expert in self.experts:
            with self.svf.using(expert.multipliers()) as model:
                logits.append(model(tokens_BS).logits[:, -1].float().cpu())
        return torch.stack(logits)

    def tensors(self, probed_BS: Tensor) -> dict[str, Tensor]:
        """Return everything but the composition as the tensors of a bundle."""
        tensors = {f"{EXPERTS}probe.tokens": probed_BS, f"{EXPERTS}probe.logits": self.probe(probed_BS)}
        tensors |= self.head.tensors(f"{EXPERTS}head.")
        for number, expert in enumerate(self.experts):
            tensors |= expert.tensors(f"{EXPERTS}{number}.")
        for name, svd in self.svf.singular.items():
            parts = {"u": svd.u_OR, "s": svd.s_R, "v": svd.v_IR}
            tensors |= {f"{EXPERTS}svd.{name}.{part}": tensor for part, tensor in parts.items()}
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    def document(self, families: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Return the `experts` entry of the bundle's configuration; `families` are those of each expert."""
        return {
            "names": list(self.names),
            "families": [list(own) for own in families],
            "composition": self.composition.document(),
            "routed_tokens": self.routed_tokens,
        }


def load_experts(bundle: Bundle, *, decompose_again: bool = False) -> Experts:
    """Load the experts of a bundle on its model, as decoded from the packed file.

    `decompose_again` recomputes the SVDs instead of reading them.

    Raises:
        BundleError: when the bundle has no experts, or they are damaged.
    """
    if "experts" not in bundle.model_config:
        raise BundleError(f"{bundle.folder} has no experts: an expert_model has, forge run makes it")
    document = bundle.model_config["experts"]
    tensors = {name: t for name, t in bundle.tensors().items() if name.startswith(EXPERTS)}
    try:
        names = tuple(document["names"])
        experts = tuple(Expert.from_tensors(tensors, f"{EXPERTS}{number}.") for number in range(len(names)))
        svf = SVFModel(load_model(bundle), None if decompose_again else _decompositions(tensors))
        loaded = Experts(
            svf,
            experts,
            names,
            Head.from_tensors(tensors, f"{EXPERTS}head."),
            Composition.from_document(document["composition"]),
            int(document["routed_tokens"]),
        )
        _check(loaded)
        return loaded
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"the experts of {bundle.folder} are damaged ({error}): materialize the asset again"
        ) from error


def _check(experts: Experts) -> None:
    """Raise ValueError when the parts disagree in the number of experts or in the matrices they scale.

    An invalid recursion of the composition raises it too.
    """
    CognateConfig.model_validate(experts.svf.model.config.model_dump() | experts.composition.recursion())
    counts = {len(experts.names), len(experts.head.scales_C) - 1, len(experts.composition.experts)}
    widths = {name: svd.s_R.shape for name, svd in experts.svf.singular.items()}
    if len(counts) != 1 or any({n: c.shape for n, c in one.codes.items()} != widths for one in experts.experts):
        raise ValueError(
            f"names, router and composition disagree: {sorted(counts)} experts, or other matrices than the model's"
        )


def at_point(experts: Experts, exhibit: Mapping[str, Any], number: int) -> Experts:
    """Return the same experts with the composition of another point on the front that the exhibit shows.

    Raises:
        ValueError: when the front has no point of this number.
    """
    points = {point["number"]: point for point in exhibit["search"]["front"]}
    if number not in points:
        raise ValueError(f"the front has the points {', '.join(map(str, sorted(points)))}, not {number}: choose one")
    recomposed = replace(experts, composition=Composition.from_document(points[number]["composition"]))
    _check(recomposed)
    return recomposed


def probed_tokens(bundle: Bundle) -> tuple[Tensor, Tensor]:
    """Return the stored probe: the tokens, and each expert's logits when the experts were measured."""
    tensors = bundle.tensors()
    return tensors[f"{EXPERTS}probe.tokens"], tensors[f"{EXPERTS}probe.logits"]


def _decompositions(tensors: Mapping[str, Tensor]) -> dict[str, SVD]:
    prefix = f"{EXPERTS}svd."
    names = dict.fromkeys(name.removeprefix(prefix).rpartition(".")[0] for name in tensors if name.startswith(prefix))
    return {name: SVD(*(tensors[f"{prefix}{name}.{part}"] for part in ("u", "s", "v"))) for name in names}
