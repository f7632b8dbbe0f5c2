"""Experts in a bundle: beside the model's own weights, under `experts.` in its tensors and configuration.

config     "experts": {"names", "families", "composition", "routed_tokens"}
tensors    experts.<k>.codes.<matrix>, experts.<k>.spreads.<matrix>     multipliers of singular values (`singular`)
           experts.head.*                                               the router (`routing.Head`)
           experts.svd.<matrix>.u, .s, .v                               the decompositions, worked out once
           experts.probe.tokens, experts.probe.logits                   what each expert answered when it was measured
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
    """A model with experts, ready to answer: the first pass routes, the second is the composition's."""

    svf: SVFModel
    experts: tuple[Expert, ...]
    names: tuple[str, ...]
    head: Head
    composition: Composition
    routed_tokens: int

    def router(self, tokenizer: Tokenizer) -> ClassifierRouter:
        """The first pass, by the model as it is."""
        return ClassifierRouter(self.svf.model, tokenizer, self.head)

    @contextmanager
    def answering(self, prompt: Sequence[int], tokenizer: Tokenizer) -> Iterator[tuple[Cognate, dict[str, float]]]:
        """The model composed for a prompt (token ids), and the weight of every expert by name; behind it, as it was."""
        with self.svf.using(None):
            probabilities = self.router(tokenizer).of_prompts([prompt])
        weights_K = self.composition.weights(probabilities)[0]
        with composed(self.svf, self.experts, self.composition, probabilities) as model:
            yield model, dict(zip(self.names, weights_K.tolist(), strict=True))

    @torch.no_grad()
    def probe(self, tokens_BS: Tensor) -> Tensor:
        """Logits behind the last token of rows, of each expert alone at full weight: (experts, rows, vocab)."""
        found = []
        for expert in self.experts:
            with self.svf.using(expert.multipliers()) as model:
                found.append(model(tokens_BS).logits[:, -1].float().cpu())
        return torch.stack(found)

    def tensors(self, probed_BS: Tensor) -> dict[str, Tensor]:
        """Everything but the composition, as tensors of a bundle."""
        tensors = {f"{EXPERTS}probe.tokens": probed_BS, f"{EXPERTS}probe.logits": self.probe(probed_BS)}
        tensors |= self.head.tensors(f"{EXPERTS}head.")
        for number, expert in enumerate(self.experts):
            tensors |= expert.tensors(f"{EXPERTS}{number}.")
        for name, its in self.svf.singular.items():
            parts = {"u": its.u_OR, "s": its.s_R, "v": its.v_IR}
            tensors |= {f"{EXPERTS}svd.{name}.{part}": tensor for part, tensor in parts.items()}
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    def document(self, families: Sequence[Sequence[str]]) -> dict[str, Any]:
        """What stands in the bundle's configuration; `families` are those of each expert."""
        return {
            "names": list(self.names),
            "families": [list(its) for its in families],
            "composition": self.composition.document(),
            "routed_tokens": self.routed_tokens,
        }


def load_experts(bundle: Bundle, *, decompose_again: bool = False) -> Experts:
    """The experts of a bundle, on its model as it decodes from the packed file.

    `decompose_again` works the decompositions out anew instead of reading them.

    Raises:
        BundleError: when there are none, or they are damaged.
    """
    if "experts" not in bundle.model_config:
        raise BundleError(f"{bundle.folder} has no experts: an expert_model has, forge run makes it")
    document = bundle.model_config["experts"]
    tensors = {name: t for name, t in bundle.tensors().items() if name.startswith(EXPERTS)}
    try:
        names = tuple(document["names"])
        experts = tuple(Expert.from_tensors(tensors, f"{EXPERTS}{number}.") for number in range(len(names)))
        svf = SVFModel(load_model(bundle), None if decompose_again else _decompositions(tensors))
        found = Experts(
            svf,
            experts,
            names,
            Head.from_tensors(tensors, f"{EXPERTS}head."),
            Composition.from_document(document["composition"]),
            int(document["routed_tokens"]),
        )
        _check(found)
        return found
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"the experts of {bundle.folder} are damaged ({error}): materialize the asset again"
        ) from error


def _check(found: Experts) -> None:
    """Raises ValueError when names, experts, router and composition are not of as many, or not of these matrices, or
    when the composition's recursion is not one that a model can have."""
    CognateConfig.model_validate(found.svf.model.config.model_dump() | found.composition.recursion())
    counts = {len(found.names), len(found.head.scales_C) - 1, len(found.composition.experts)}
    widths = {name: its.s_R.shape for name, its in found.svf.singular.items()}
    if len(counts) != 1 or any({n: c.shape for n, c in its.codes.items()} != widths for its in found.experts):
        raise ValueError(f"names, router and composition are of {sorted(counts)} experts, or of other matrices")


def at_point(experts: Experts, exhibit: Mapping[str, Any], number: int) -> Experts:
    """The same experts in another composition of the front that the exhibit `experts` shows.

    Raises:
        ValueError: when there is no such point.
    """
    points = {point["number"]: point for point in exhibit["search"]["front"]}
    if number not in points:
        raise ValueError(f"the front has the points {', '.join(map(str, sorted(points)))}, not {number}: choose one")
    found = replace(experts, composition=Composition.from_document(points[number]["composition"]))
    _check(found)
    return found


def probed_tokens(bundle: Bundle) -> tuple[Tensor, Tensor]:
    """What was asked when the experts were measured, and the logits then."""
    tensors = bundle.tensors()
    return tensors[f"{EXPERTS}probe.tokens"], tensors[f"{EXPERTS}probe.logits"]


def _decompositions(tensors: Mapping[str, Tensor]) -> dict[str, SVD]:
    prefix = f"{EXPERTS}svd."
    names = dict.fromkeys(name.removeprefix(prefix).rpartition(".")[0] for name in tensors if name.startswith(prefix))
    return {name: SVD(*(tensors[f"{prefix}{name}.{part}"] for part in ("u", "s", "v"))) for name in names}
