"""The asset graph, its gates, its launchpad and its schedules are as designed."""

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
from forge_assets.gates import BY_PROFILE, GATES, MODELS, gate_checks, gates_for
from forge_assets.launchpad import launchpad_fields
from training_core.gates import Gate, judge
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


def test_asset_graph() -> None:
    from forge_assets.definitions import defs

    graph = defs.resolve_asset_graph()
    found = {key.to_user_string(): graph.get(key) for key in graph.get_all_asset_keys()}
    assert found.keys() >= PARENTS.keys()
    for name, parents in PARENTS.items():
        node = found[name]
        seen = {key.to_user_string() for key in node.parent_keys}
        assert seen - DATA == parents - DATA, name
        assert node.group_name == "forge", "one group shows every asset at first sight; two are drawn collapsed"
        assert (name in MODELS) == (name not in DATA)
    for name in MODELS:
        (check,) = [c for c in graph.asset_check_keys if c == dg.AssetCheckKey(dg.AssetKey(name), "gate")]
        assert graph.get(check).blocking
        assert defs.resolve_schedule_def(f"{name}_schedule").default_status == dg.DefaultScheduleStatus.STOPPED
    assert defs.resolve_job_def("all_models").executor_def.name == "in_process"


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


def test_thresholds_depend_on_the_profile_where_they_must() -> None:
    (fits,) = [g for g in gates_for("compressed_model", "forge_25m") if g.name == "fits"]
    assert fits.threshold == BY_PROFILE["compressed_model", "fits"]["forge_25m"] == 400_000
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
    fields = launchpad_fields(tiny_forge.StepsConfig, {"steps": 7})
    assert fields["steps"].default_value == 7
    assert fields["value"].default_value == 0.5
    assert fields["value"].description == "Size of the weights. (> 0, <= 100)"
    assert fields["widths"].default_value == [2, 3]
    with pytest.raises(ValueError, match="the preset sets rank"):
        launchpad_fields(tiny_forge.StepsConfig, {"rank": 1})


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
