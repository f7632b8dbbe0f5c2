"""The asset graph, its gates, and its launchpad are as designed."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
import tiny_forge
from forge_instance import REPOSITORY, Make, failure_text, made
from pydantic import BaseModel

from forge_assets.checks import asset_checks
from forge_assets.freshness import plan, resolve_config
from forge_assets.gates import GATES, MODELS, gate_checks, gates_for
from forge_assets.graph_view import Forge
from forge_assets.launchpad import launchpad_fields
from forge_resources.model_store import ModelStore
from training_core.gates import Gate, judge
from training_core.profiles import PROFILES, preset
from training_core.registry import CONTROLS, PHASES
from training_core.store.identity import code_digest, inputs_digest

PARENTS = {
    "corpus": set(),
    "tokenizer": {"corpus"},
    "tokens": {"corpus", "tokenizer"},
    "task_bank": {"tokenizer"},
    "evaluation_suite": {"tokens", "task_bank"},
    "trunk": {"tokens", "task_bank", "evaluation_suite"},
    "cognate_reasoning": {"trunk"},
    "cognate_memory": {"trunk"},
    "cognate_speed": {"trunk"},
    "merged_model": {"cognate_reasoning", "cognate_memory", "cognate_speed", "trunk"},
    "reasoning_model": {"merged_model"},
    "ternary_model": {"reasoning_model"},
    "question_bank": {"task_bank"},
    "practised_model": {"ternary_model", "question_bank"},
    "curriculum_model": {"practised_model", "question_bank"},
    "baked_model": {"curriculum_model", "question_bank"},
    "expert_model": {"baked_model", "question_bank"},
    "compressed_model": {"expert_model", "question_bank"},
}
DATA = {"question_bank", "tokens", "task_bank", "evaluation_suite", "tokenizer", "corpus"}

PUBLISHED = """
trunk finite: non_finite_weights <= 0
trunk causal: causality_violations <= 0
trunk learned: margin_below_counting_low >= 0
trunk learned_on_{}: claim margin_below_counting_on_{}_low >= 0.01
cognate_reasoning finite: non_finite_weights <= 0
cognate_reasoning causal: causality_violations <= 0
cognate_reasoning learned: margin_below_counting_low >= 0
cognate_memory finite: non_finite_weights <= 0
cognate_memory causal: causality_violations <= 0
cognate_memory learned: margin_below_counting_low >= 0
cognate_speed finite: non_finite_weights <= 0
cognate_speed causal: causality_violations <= 0
cognate_speed learned: margin_below_counting_low >= 0
merged_model finite: non_finite_weights <= 0
merged_model causal: causality_violations <= 0
merged_model learned: margin_below_counting_low >= 0
merged_model not_worse: bits_per_byte_over_best_parent <= 0
merged_model holds_out: bits_per_byte_ratio_to_best_parent_high <= 1.02
merged_model gains: claim bits_per_byte_ratio_to_best_parent_high <= 0.995
merged_model {}_specialises: claim {}_lead_low >= 0.01
merged_model speed_specialises: claim speed_latency_ratio <= 0.95
reasoning_model finite: non_finite_weights <= 0
reasoning_model causal: causality_violations <= 0
reasoning_model learned: margin_below_counting_low >= 0
reasoning_model not_worse: bits_per_byte_ratio_to_best_parent_high <= 1.01
reasoning_model thoughts_causal: thought_leaks <= 0
reasoning_model decodes: undecodable_thoughts <= 0
reasoning_model thoughts_help: claim thought_gain_hard_low >= 0.01
reasoning_model content: claim thought_over_shuffled_hard_low >= 0.01
reasoning_model beyond_compute: claim thought_over_pause_hard_low >= 0.01
reasoning_model reward: claim thought_over_random_reward_hard_low >= 0.01
ternary_model finite: non_finite_weights <= 0
ternary_model causal: causality_violations <= 0
ternary_model learned: margin_below_counting_low >= 0
ternary_model retains: bits_per_byte_ratio_to_best_parent_high <= 1.1
ternary_model smaller: bytes_ratio >= 6
ternary_model paper_ratio: claim bytes_ratio >= 8.2
practised_model finite: non_finite_weights <= 0
practised_model causal: causality_violations <= 0
practised_model learned: margin_below_counting_low >= 0
practised_model keeps_text: bits_per_byte_ratio_to_best_parent_high <= 1.02
practised_model keeps_levels: worst_passed_level_drop_high <= 0.03
practised_model sandbox_holds: sandbox_breaches <= 0
practised_model learns: claim level_accuracy_gain_low >= 0.01
practised_model moves_the_edge: claim edge_gain >= 1
practised_model dreams_protect: claim dreams_over_none_low >= 0.01
practised_model dreams_beat_replay: claim dreams_over_replay_low >= 0.01
curriculum_model finite: non_finite_weights <= 0
curriculum_model causal: causality_violations <= 0
curriculum_model learned: margin_below_counting_low >= 0
curriculum_model keeps_text: bits_per_byte_ratio_to_best_parent_high <= 1.02
curriculum_model keeps_levels: worst_passed_level_drop_high <= 0.03
curriculum_model sandbox_holds: sandbox_breaches <= 0
curriculum_model rules_baked: claim preference_gain_low >= 0.01
curriculum_model no_regression_in_text: claim next_token_accuracy_drop_to_best_parent_high <= 0.01
curriculum_model no_regression_in_levels: claim level_accuracy_drop_high <= 0.01
curriculum_model council_helps: claim council_gain_over_self_consistency_low >= 0.01
curriculum_model loop_helps: claim ooda_gain_over_direct_low >= 0.01
curriculum_model knows_its_temperature: claim temperature_over_chance_low >= 0.01
baked_model finite: non_finite_weights <= 0
baked_model causal: causality_violations <= 0
baked_model learned: margin_below_counting_low >= 0
baked_model keeps_text: bits_per_byte_ratio_to_best_parent_high <= 1.02
baked_model keeps_families: worst_family_drop_high <= 0.034
baked_model effect_present: faint_prompts <= 0
baked_model sandbox_holds: sandbox_breaches <= 0
baked_model keeps_a_prompt: claim weakest_effect_low >= 0.25
baked_model as_good_as_prompted: claim prompted_over_baked_high <= 0.014
baked_model drifts_less: claim drift_difference_low >= 0.05
baked_model outlasts_the_prompt: claim presence_advantage_low >= 0.05
baked_model repairs_more: claim repairs_gain_low >= 0.01
expert_model finite: non_finite_weights <= 0
expert_model causal: causality_violations <= 0
expert_model learned: margin_below_counting_low >= 0
expert_model keeps_text: bits_per_byte_ratio_to_best_parent_high <= 1.02
expert_model routed_text: routed_bits_per_byte_ratio_high <= 1.02
expert_model no_family_worse: worst_family_drop_low <= 0
expert_model fast_enough: latency_over_one_pass <= 6
expert_model reproduces: expert_reproduction_error <= 0.001
expert_model sandbox_holds: sandbox_breaches <= 0
expert_model stable_number: claim expert_number_stability >= 0.8
expert_model single_helps: claim single_over_none_low >= 0.01
expert_model routing_helps: claim routed_over_single_low >= 0.01
expert_model search_beats_random: claim hypervolume_over_random_low >= 0.01
compressed_model finite: non_finite_weights <= 0
compressed_model causal: causality_violations <= 0
compressed_model learned: margin_below_counting_low >= 0
compressed_model learned_on_{}: claim margin_below_counting_on_{}_low >= 0.01
compressed_model fits: bytes_on_disk <= nano 110000, mini 520000, forge_25m 400000
compressed_model retains: retention_to_best_parent_low >= 0.84
compressed_model beats_packed_ngram: margin_below_packed_ngram_low >= 0.01
compressed_model beats_packed_ngram_on_{}: claim margin_below_packed_ngram_on_{}_low >= 0.01
compressed_model experts_survive: claim file_experts_gain_low >= 0.01
compressed_model seed_ratio: claim bits_per_parameter <= 0.128
"""


def test_asset_graph() -> None:
    from forge_assets.definitions import defs

    graph = defs.resolve_asset_graph()
    found = {key.to_user_string(): graph.get(key) for key in graph.get_all_asset_keys()}
    assert found.keys() >= PARENTS.keys()
    for name, parents in PARENTS.items():
        node = found[name]
        seen = {key.to_user_string() for key in node.parent_keys}
        assert seen - DATA == parents - DATA, name
        assert node.group_name == ("data" if name in DATA else PHASES[name].group)
        assert (name in MODELS) == (name not in DATA)
    for name in MODELS:
        (check,) = [c for c in graph.asset_check_keys if c == dg.AssetCheckKey(dg.AssetKey(name), "gate")]
        assert graph.get(check).blocking
    assert defs.resolve_job_def("all_models").executor_def.name == "in_process"


def test_controls_are_made_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forge_assets.definitions import defs

    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    everything = set(defs.resolve_asset_graph().get_all_asset_keys())
    job = defs.resolve_job_def("all_models").asset_layer.executable_asset_keys
    assert {key.to_user_string() for key in everything - set(job)} == set(CONTROLS)
    with dg.DagsterInstance.ephemeral() as instance:
        forge = Forge(defs, instance, ModelStore())
        assert set(forge.controls()) == set(CONTROLS)
        configs = resolve_config(forge, {})
        planned = {options: {step.asset for step in plan(forge, configs, **dict(options))} for options in OPTIONS}
    plain, with_controls, one = planned.values()
    assert with_controls - plain == set(CONTROLS)
    assert one - plain == {"student_from_random"}
    assert not any(forge.checks_of(name) for name in CONTROLS)


OPTIONS = ((), (("controls", True),), (("force", ("student_from_random",)),))


def test_every_model_has_blocking_gates_and_only_some_have_claims() -> None:
    names = {check.name for definition in asset_checks() for check in definition.check_keys}
    assert names == {"gate", "claims"}
    blocking = {
        key.asset_key.to_user_string(): spec.blocking
        for definition in asset_checks()
        for key, spec in zip(definition.check_keys, definition.check_specs, strict=True)
        if key.name == "gate"
    }
    assert blocking == dict.fromkeys(MODELS, True)
    assert gate_checks() == {dg.AssetKey(name): [dg.AssetCheckKey(dg.AssetKey(name), "gate")] for name in MODELS}
    for name in MODELS:
        metrics = {gate.metric for gate in GATES if gate.asset == name and gate.blocking}
        assert {"non_finite_weights", "causality_violations"} <= metrics


def test_model_without_a_gate_is_refused() -> None:
    with pytest.raises(ValueError, match="has no blocking gate"):
        asset_checks(GATES, assets=["merged_model", "dreaming_model"])


def row(gate: Gate) -> str:
    """A gate or claim in a line; a threshold that depends on the profile with each of its values."""
    sign = {"at_least": ">=", "at_most": "<="}[gate.direction]
    by_profile = {} if gate.by_profile is None else {name: gate.by_profile[name] for name in PROFILES}
    threshold = ", ".join(f"{name} {value:g}" for name, value in by_profile.items()) or f"{gate.threshold:g}"
    return f"{gate.asset} {gate.name}: {'' if gate.blocking else 'claim '}{gate.metric} {sign} {threshold}"


def test_gates_and_claims_are_as_published() -> None:
    """All of them, in the order in which the models are made: a threshold moves here too, or not at all."""
    assert "\n".join(row(gate) for gate in GATES) == PUBLISHED.strip()


def test_groups_are_phases() -> None:
    groups = list(dict.fromkeys(phase.group for phase in PHASES.values()))
    assert groups == [
        "phase_1_cognate", "phase_2_evomerge", "phase_3_quiet_star", "phase_4_bitnet", "phase_5_curriculum",
        "phase_6_baking", "phase_7_experts", "phase_8_compression",
    ]  # fmt: skip


def test_thresholds_depend_on_the_profile_where_they_must() -> None:
    (fits,) = [g for g in gates_for("compressed_model", "forge_25m") if g.name == "fits"]
    assert fits.by_profile is not None
    assert fits.threshold == fits.by_profile["forge_25m"] == 400_000
    assert not judge(fits, {fits.metric: 400_001}).passed
    assert judge(fits, {fits.metric: 400_000}).passed
    with pytest.raises(ValueError, match="no threshold for profile 'huge'"):
        gates_for("compressed_model", "huge")
    assert gates_for("trunk", "huge") == tuple(g for g in GATES if g.asset == "trunk")


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: f"{gate.asset}.{gate.name}")
def test_every_gate_can_pass_and_fail(gate: Gate) -> None:
    better = -1 if gate.direction == "at_most" else 1
    assert judge(gate, {gate.metric: gate.threshold}).passed
    assert judge(gate, {gate.metric: gate.threshold + better}).passed
    assert not judge(gate, {gate.metric: gate.threshold - better * 1e-6 * max(1, abs(gate.threshold))}).passed
    assert not judge(gate, {gate.metric: float("nan")}).passed
    assert not judge(gate, {}).passed


def test_gate_table_loads_no_model_code() -> None:
    code = "import sys, forge_resources.coordinator, forge_assets.gates; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert ran.stdout == "False\n"


def test_launchpad_shows_defaults_descriptions_and_bounds() -> None:
    fields = launchpad_fields(tiny_forge.StepsConfig, tiny_forge.StepsConfig(steps=7))
    assert fields["steps"].default_value == 7
    assert fields["value"].default_value == 0.5
    assert fields["value"].description == "Size of the weights. (> 0, <= 100)"
    assert fields["widths"].default_value == [2, 3]
    with pytest.raises(ValueError, match="the preset is a TokensConfig, and the asset's configuration a StepsConfig"):
        launchpad_fields(tiny_forge.StepsConfig, tiny_forge.TokensConfig())


def test_launchpad_has_a_section_for_each_part_of_a_configuration() -> None:
    fields = launchpad_fields(PHASES["ternary_model"].config, preset("nano", "ternary_model"))
    assert set(fields) == {"quantization", "hardening_fraction", "distillation", "training", "mix"}
    training = fields["training"].config_type.fields
    assert training["steps"].default_value == 200
    assert training["muon_lr"].description.endswith("(> 0)")


def test_launchpad_values_reach_the_phase(make: Make, store) -> None:
    result = make("trunk", config={"trunk": {"value": 0.25, "widths": [5]}})
    assert result.success
    lineage = store.open_bundle("trunk", next(iter(digests(result)))).lineage()
    assert lineage.config["value"] == 0.25
    assert lineage.config["widths"] == [5]
    assert lineage.metrics["mean_square"] == 0.0625
    assert lineage.metrics["suite"] == 28.0  # 0 + 1 + ... + 7, read from the evaluation suite
    assert lineage.profile == "nano"
    assert lineage.tasks == {"copy": {"accuracy": 0.25}}


def digests(result: dg.ExecuteInProcessResult) -> list[str]:
    return [str(e.materialization.metadata["digest"].value) for e in result.get_asset_materialization_events()]


def test_data_version_and_inputs_follow_the_content(make: Make, instance: dg.DagsterInstance) -> None:
    def versions(**config: float) -> tuple[str, str]:
        event = make("trunk", config={"trunk": config}).get_asset_materialization_events()[0].materialization
        assert event.tags is not None
        assert event.tags["dagster/data_version"] == event.metadata["digest"].value
        return str(event.metadata["digest"].value), str(event.metadata["forge/inputs"].value)

    first = versions(value=0.5)
    assert versions(value=0.5) == first
    other = versions(value=0.25)
    assert other[0] != first[0]
    assert other[1] != first[1]
    slower = versions(value=0.5, step_s=0.001)  # another configuration, the same weights
    assert slower[0] == first[0]
    assert slower[1] != first[1]


def test_damaged_data_is_refused(make: Make, store) -> None:
    (folder,) = store.versions("evaluation_suite")
    (folder / "suite.txt").write_text("0")
    result = make("trunk")
    assert made(result) == []
    assert "changed or damaged" in failure_text(result, "trunk")


def test_code_digest_follows_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("first_edition", "second_edition"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        (tmp_path / name / "method.py").write_text("x = 1\n" if name == "first_edition" else "x = 2\n")
    one, other = (code_digest([name], extra={}) for name in ("first_edition", "second_edition"))
    assert one != other
    assert code_digest(["first_edition"], extra={}) == one
    assert code_digest(["first_edition"], extra={"config": 1}) != one
    with pytest.raises(ValueError, match="no source for module 'no_such_module'"):
        code_digest(["no_such_module"], extra={})


def test_inputs_digest_follows_each_part() -> None:
    class Config(BaseModel):
        rate: float

    base = inputs_digest("v1", Config(rate=1), {"trunk": "a"})
    assert base == inputs_digest("v1", Config(rate=1), {"trunk": "a"})
    assert (
        len(
            {
                base,
                inputs_digest("v2", Config(rate=1), {"trunk": "a"}),
                inputs_digest("v1", Config(rate=2), {"trunk": "a"}),
                inputs_digest("v1", Config(rate=1), {"trunk": "b"}),
            }
        )
        == 4
    )


def test_phase_must_be_measured() -> None:
    with pytest.raises(ValueError, match="data must include 'evaluation_suite'"):
        replace(tiny_forge.PHASES["trunk"], data=("tokens",))
