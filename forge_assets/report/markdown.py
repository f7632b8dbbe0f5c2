"""The main numbers of each exhibit as Markdown of at most 30 lines, for a materialization's page in Dagster.

Names and reasons are escaped (`plain`); text written by a model is never included.
"""

from forge_assets.report.components.markup import markdown_table, plain
from forge_assets.report.components.measures import measured_text
from training_core.exhibit import IntervalEnds, MeasuredShare, MeasuredValue
from training_core.phases.p3_quiet_star.exhibit import ThoughtsExhibit
from training_core.phases.p5_curriculum.exhibit import CharacterExhibit, PracticeExhibit, ShownRule
from training_core.phases.p6_baking.exhibit import BakedExhibit
from training_core.phases.p7_experts.exhibit import ExpertsExhibit

_ROWS = 8  # most rows of a table
_ARM_ROWS, _LEVEL_ROWS = 6, 10
_MORE = "`forge report --html report.html`"
_BITS = "{:+.4f}"


def thoughts(shown: ThoughtsExhibit) -> str:
    """Return the verdict on thinking, the arms and the gating rules."""
    lines = [f"**Thinking is switched {'on' if shown.enabled else 'off'}.** {plain(shown.verdict)}", ""]
    arms = [[plain(a.name), _BITS.format(a.gain), _ends(a)] for a in shown.arms]
    arm_columns = ("arm", "bits per token, hardest tenth", "95 %")
    lines += markdown_table(arm_columns, arms, _ROWS) if arms else ["No arm was compared."]
    gating = [
        [plain(g.name), f"{g.share:.1%}", _BITS.format(g.gain_bits_per_token), _ends(g), f"{g.bits_per_gflop:+.4g}"]
        for g in shown.gating
    ]
    gating_columns = ("where it thinks", "share", "bits per token", "95 %", "bits per GFLOP")
    lines += ["", *(markdown_table(gating_columns, gating, _ROWS) if gating else ["No gating was compared."])]
    return "\n".join([*lines, "", f"Examples and the heat map: {_MORE}"])


def _ends(row: IntervalEnds) -> str:
    return f"{_BITS.format(row.low)} to {_BITS.format(row.high)}"


def practice(shown: PracticeExhibit) -> str:
    """Return the edge of competence, accuracy by level, the arms against forgetting, and the spend."""
    lines = [
        f"**Edge {_edge(shown.edge_before)} → {_edge(shown.edge_after)}** (the hardest level at {shown.target:.0%})",
        "",
    ]
    levels = [[str(x.level), measured_text(x.before), measured_text(x.after), str(x.asked)] for x in shown.levels]
    columns = ("level", "before (95 %)", "after (95 %)", "questions")
    lines += markdown_table(columns, levels, _LEVEL_ROWS) if levels else ["No level was measured."]
    arms = [
        [
            plain(arm.name) + (" (chosen)" if arm.name == shown.forgetting.chosen else ""),
            measured_text(arm.forgetting, "{:+.1%}"),
            str(arm.tokens),
        ]
        for arm in shown.forgetting.arms
    ]
    arm_columns = ("kept by", "forgotten (95 %)", "tokens")
    lines += ["", *(markdown_table(arm_columns, arms, _ARM_ROWS) if arms else ["Forgetting was not measured."])]
    spend = shown.spend
    lines += ["", f"Questions: {spend.generator_questions} of generators, {spend.frontier_questions} of other models, "]
    lines[-1] += f"{spend.usd:.2f} USD. Attempts and rounds: {_MORE}"
    return "\n".join(lines)


def _edge(level: int) -> str:
    return f"level {level}" if level else "none"


def character(shown: CharacterExhibit) -> str:
    """Return the baked rules, the ways of answering, and the prediction of the model's own temperature."""
    rules = [
        [plain(rule.name), *(measured_text(x) for x in (rule.base, rule.prompted, rule.baked)), _strength_of(rule)]
        for rule in shown.rules
    ]
    columns = ("rule", "base (95 %)", "prompted (95 %)", "baked (95 %)", "strength")
    lines = markdown_table(columns, rules, _ROWS) if rules else ["No rule was baked."]
    lines += ["", f"Not kept: {plain(shown.not_kept)}"] if shown.not_kept else []
    accuracies = [[name, measured_text(accuracy), f"{tokens:.0f}"] for name, accuracy, tokens in _answering(shown)]
    lines += ["", *markdown_table(("answered by", "accuracy (95 %)", "tokens"), accuracies, len(accuracies)), ""]
    knows = shown.temperature
    lines.append(
        f"Own temperature: {measured_text(knows.model)} of {len(knows.edges) - 1} ranges right, best possible "
        f"{measured_text(knows.best_possible)}, chance {knows.chance:.0%}."
    )
    return "\n".join([*lines, "", f"Pairs, votes and episodes: {_MORE}"])


def _strength_of(rule: ShownRule) -> str:
    return "no effect of the prompt" if rule.strength is None else f"{rule.strength:+.2f}"


def _answering(shown: CharacterExhibit) -> list[tuple[str, MeasuredShare, float]]:
    council, ooda = shown.council, shown.ooda
    return [
        ("one answer", council.single, council.tokens.single),
        ("self-consistency", council.self_consistency, council.tokens.self_consistency),
        ("council", council.council, council.tokens.council),
        ("direct answers (OODA baseline)", ooda.direct, ooda.direct_tokens),
        ("OODA controller", ooda.accuracy, ooda.tokens),
    ]


def baked(shown: BakedExhibit) -> str:
    """Return the iterations, prompts, issues resolved, and the presence of a prompt at the last turn."""
    kept = sum(step.kept for step in shown.timeline)
    switches = sum(step.decision == "switch" for step in shown.timeline)
    lines = [f"**{kept} of {len(shown.timeline)} iterations kept**, {switches} switches of cycle", ""]
    lines += [f"Not kept: {plain(shown.not_kept)}", ""] if shown.not_kept else []
    prompts = [
        [plain(x.name), f"{x.kl_before:.4f} → {x.kl_after:.4f}", _strength(x.strength), f"{x.target:.2f}"]
        for x in shown.prompts
    ]
    columns = ("prompt", "KL to the prompted model, nats per token", "strength (95 %)", "target")
    lines += markdown_table(columns, prompts, _ROWS) if prompts else ["No prompt was baked."]
    tools = shown.tools
    resolved = [
        ["the parent", measured_text(tools.base)],
        ["with the tool prompt", measured_text(tools.prompted)],
        ["baked, no prompt", measured_text(tools.baked)],
    ]
    lines += ["", *markdown_table(("issues resolved by", "share (95 %)"), resolved, len(resolved))]
    lines += ["", f"Chance: {tools.chance:.1%}."]
    if shown.turns:
        last = shown.turns[-1]
        lines[-1] += f" Present at turn {last.turn}: baked {measured_text(last.baked)}, prompted "
        lines[-1] += f"{measured_text(last.prompted)}."
    return "\n".join([*lines, "", f"Timeline, style and texts side by side: {_MORE}"])


def _strength(strength: MeasuredValue | None) -> str:
    return "no effect of the prompt" if strength is None else measured_text(strength, "{:.2f}")


def experts(shown: ExpertsExhibit) -> str:
    """Return the number of experts, the ways of answering, and the composition that was chosen."""
    stable = f"the same in {shown.discovery.stability:.0%} of {shown.discovery.resamples} resamples"
    lines = [f"**{len(shown.experts)} experts**, {stable}", ""]
    lines += [f"Without experts: {plain(shown.not_kept)}", ""] if shown.not_kept else []
    rows = [[plain(x.name), measured_text(x.accuracy), measured_text(x.over_none, "{:+.1%}")] for x in shown.answering]
    columns = ("answers by", "expected accuracy (95 %)", "over no expert")
    lines += markdown_table(columns, rows, _ROWS)
    chosen = next((point for point in shown.search.front if point.chosen), None)
    if chosen is not None:
        lines += ["", f"Chosen of {len(shown.search.front)} points of the front: {plain(chosen.says)}; "]
        lines[-1] += f"{chosen.latency_ratio:.2f} times the time of one pass, {chosen.bytes:,} bytes."
    return "\n".join([*lines, "", f"Front, heat map, routing and spectra: {_MORE}"])
