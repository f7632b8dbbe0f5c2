"""Building of the exhibit `experts`: discovery, training, routing and composition of experts."""

from __future__ import annotations

from collections.abc import Sequence

from training_core.exhibit import MeasuredShare, MeasuredValue
from training_core.nn.svf import SVFModel
from training_core.phases.p7_experts.discovery import Discovery, ExpertProfile
from training_core.phases.p7_experts.evaluator import Measured
from training_core.phases.p7_experts.exhibit import (
    AnsweringWay,
    AnswerKind,
    ExpertHeatMap,
    ExpertsExhibit,
    FrontPoint,
    HypervolumeCourse,
    LearnedGain,
    NumExpertsCandidate,
    PassCost,
    ShownDiscovery,
    ShownExpert,
    ShownFamily,
    ShownRouter,
    ShownRouting,
    ShownSearch,
    ShownSpectrum,
)
from training_core.phases.p7_experts.genome import Composition
from training_core.phases.p7_experts.measurement import AnswerComparison
from training_core.phases.p7_experts.routing_measurement import Routing
from training_core.phases.p7_experts.search import SearchResult
from training_core.phases.p7_experts.train_experts import TrainedExpert
from training_core.svf.routing import NONE

CRITERION = (
    "Wanted is the smallest number of groups whose first-order gain on held-out questions is within one standard error "
    "of the best; it is raised to 3, or to the number of families, or lowered to 10."
)
RULE = (
    "Chosen is the knee: of all points that keep nine tenths of the largest gain in accuracy the one that costs least "
    "in time, bytes and bits per byte, each scaled to its range on the front; at most 1 % bits per byte are given "
    "away, and no family may get worse beyond chance."
)
NAMES: dict[str, tuple[str, AnswerKind]] = {
    "none": ("no expert", "none"),
    "single": ("the best single expert", "single"),
    "low rank": ("low-rank adapters of as many bytes, by family", "rival"),
    "oracle": ("the expert of the family", "oracle"),
    "prompt": ("the expert that the model names when asked", "router"),
    "few shots": ("a mixture found on a few solved examples", "router"),
    "classifier": ("the expert that the linear router names", "router"),
    "composed": ("the composition that was chosen", "searched"),
}


def exhibit(
    discovery: Discovery,
    taught: Sequence[TrainedExpert],
    searched: SearchResult,
    composition: Composition,
    answers: AnswerComparison,
    svf: SVFModel,
    why: str,
) -> ExpertsExhibit:
    """Return the complete exhibit. `why` says why no experts are used, and is empty if they are."""
    names = [profile.name for profile in discovery.experts]
    families, cells = answers.alone.by_family()
    return ExpertsExhibit(
        discovery=shown_discovery(discovery),
        experts=[_expert(profile, one, svf) for profile, one in zip(discovery.experts, taught, strict=True)],
        heat=ExpertHeatMap(families=families, rows=[NONE, *names], cells=cells),
        routing=_routing(answers, names),
        answering=[
            AnsweringWay(
                name=shown,
                kind=kind,
                accuracy=MeasuredValue.of(answers.of(name)),
                over_none=MeasuredValue.of(answers.over(name, "none")),
            )
            for name, (shown, kind) in NAMES.items()
        ],
        costs=_costs(answers),
        search=_search(searched, composition, names),
        not_kept=why,
    )


def describe(composition: Composition, names: Sequence[str], unadapted: Composition) -> str:
    """Describe a composition in words."""
    included = [
        f"{name} x {strength:g}"
        for name, is_in, strength in zip(names, composition.experts, composition.strengths, strict=True)
        if is_in
    ]
    parts = [", ".join(included) or "no expert"]
    if included:
        parts.append(f"from layer {composition.first_layer} on")
        parts.append(f"routed at temperature {composition.temperature:.3g}")
    own = unadapted.recursion()
    changed = [f"{name} {value:g}" for name, value in composition.recursion().items() if value != own[name]]
    return "; ".join([*parts, *changed])


def shown_discovery(discovery: Discovery) -> ShownDiscovery:
    """Return the part of the exhibit on the number of experts and the profile behind it."""
    names = {profile.number: profile.name for profile in discovery.experts}
    return ShownDiscovery(
        criterion=CRITERION,
        chosen=discovery.num_experts,
        stability=discovery.same_number,
        resamples=discovery.resamples,
        note=". ".join(remark[0].upper() + remark[1:] for remark in discovery.remarks()),
        profile=[
            ShownFamily(
                family=family,
                expert=names[discovery.expert_of[family]],
                questions=baseline.questions,
                expected=MeasuredValue.of(baseline.expected),
                exact=baseline.exact.value,
                nats=baseline.nats_per_token,
            )
            for family, baseline in ((family, discovery.standings[family]) for family in discovery.families)
        ],
        similarity=discovery.similarity.tolist(),
        curve=[
            NumExpertsCandidate(experts=step.k, gain=step.gain, error=step.standard_error) for step in discovery.curve
        ],
    )


def _expert(profile: ExpertProfile, taught: TrainedExpert, svf: SVFModel) -> ShownExpert:
    strongest = ", ".join(f"{matrix} ({share:.0%})" for matrix, share in profile.strongest)
    says = f"Its direction lies mostly in {strongest}."
    if profile.nearest is not None and profile.farthest is not None:
        says += f" Nearest is expert {profile.nearest[0]} (cosine {profile.nearest[1]:+.2f}), farthest "
        says += f"{profile.farthest[0]} ({profile.farthest[1]:+.2f})."
    moved = ", ".join(f"{kl:.3g} by {method}" for method, kl in taught.kl.items())
    says += f" Nats per token from the model without it: {moved}. The adapter of as many bytes is of rank 1 on "
    says += f"{', '.join(taught.rival_weights)}."
    multipliers = taught.expert.multipliers()
    return ShownExpert(
        name=profile.name,
        families=list(profile.families),
        says=says,
        parameters=taught.expert.num_parameters,
        bytes=taught.expert.num_bytes,
        learned=[
            LearnedGain(
                method=method,
                gain=MeasuredValue.of(gain),
                bytes=taught.rival_bytes if method == "low rank" else taught.expert.num_bytes,
                kept=method == taught.method,
            )
            for method, gain in taught.gains.items()
        ],
        rewards=taught.rewards,
        spectra=[ShownSpectrum(matrix=name, multipliers=multipliers[name].tolist()) for name in svf.layers],
    )


def _routing(answers: AnswerComparison, names: Sequence[str]) -> ShownRouting:
    used = answers.routing[0]
    return ShownRouting(
        routers=[_router(routing, names) for routing in answers.routing],
        labels=[NONE, *names],
        confusion=used.confusion.tolist(),
    )


def _router(routing: Routing, names: Sequence[str]) -> ShownRouter:
    always = routing.always_picks
    return ShownRouter(
        name=routing.name,
        accuracy=MeasuredShare.of(routing.accuracy),
        entropy=routing.entropy_bits,
        chance=routing.commonest.value,
        note="" if always is None else f"always {[NONE, *names][always]}: it does not route",
    )


def _costs(answers: AnswerComparison) -> list[PassCost]:
    cost = answers.cost
    parts = {
        "one pass, no expert": cost.plain_s,
        "first pass: read and route": cost.first_s,
        "second pass: answer with one expert": cost.second_s,
        "both": cost.first_s + cost.second_s,
    }
    return [
        PassCost(name=name, milliseconds=1000 * seconds / cost.questions, ratio=seconds / cost.plain_s)
        for name, seconds in parts.items()
    ]


def _search(searched: SearchResult, composition: Composition, names: Sequence[str]) -> ShownSearch:
    unadapted = searched.unadapted[0]
    points = list(searched.front)
    if composition not in [point for point, _ in points]:
        points.append(searched.unadapted)
    outcomes = {
        status: sum(run.outcomes.get(status, 0) for run in searched.runs) for status in ("raced out", "too slow")
    }
    return ShownSearch(
        rule=RULE,
        evaluations=sum(run.asked for run in searched.runs),
        measured=searched.measured,
        raced_out=outcomes["raced out"],
        too_slow=outcomes["too slow"],
        front=[
            _point(number, point, measured, searched, point == composition, describe(point, names, unadapted))
            for number, (point, measured) in enumerate(points)
        ],
        climbs=_climbs(searched),
    )


def _point(
    number: int, point: Composition, measured: Measured, searched: SearchResult, chosen: bool, says: str
) -> FrontPoint:
    objectives = measured.document()
    return FrontPoint(
        number=number,
        chosen=chosen,
        accuracy=1 - objectives["loss"],
        latency_ms=1000 * searched.latencies[point.structure].seconds,
        latency_ratio=objectives["latency"],
        bytes=int(objectives["bytes"]),
        bits_per_byte=objectives["bits_per_byte"],
        says=says,
        composition=point.document(),
    )


def _climbs(searched: SearchResult) -> list[HypervolumeCourse]:
    by_method = {(run.method, run.seed): run for run in searched.runs}
    climbs = []
    for (method, seed), run in by_method.items():
        if method == "nsga2":
            each = run.asked // len(run.hypervolumes)
            climbs.append(
                HypervolumeCourse(
                    seed=seed,
                    evaluations=[each * (place + 1) for place in range(len(run.hypervolumes))],
                    search=list(run.hypervolumes),
                    random=list(by_method["random", seed].hypervolumes),
                )
            )
    return climbs
