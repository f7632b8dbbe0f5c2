"""The ledger says what was measured and judged, on the version that is there now, and nothing else."""

import json

import dagster as dg
import pytest
import tiny_forge
from forge_instance import Make

from forge_assets.graph_view import Forge
from forge_assets.ledger import collect
from forge_assets.report.cells import gate_counts, missing_lines
from forge_resources.model_store import ModelStore


@pytest.fixture
def forge(instance: dg.DagsterInstance, store: ModelStore) -> Forge:
    return Forge(tiny_forge.defs, instance, store, tiny_forge.GATES)


def test_models_and_verdicts_as_json(forge: Forge, make: Make) -> None:
    make("trunk", "right")
    ledger = collect(forge)
    (trunk, right) = ledger.as_json()["models"]
    digest = forge.store.open_bundle("trunk", trunk["digest"]).digest()
    assert trunk == {
        "asset": "trunk",
        "phase": 1,
        "digest": digest,
        "params": 6.0,
        "bytes_on_disk": None,  # this forge does not measure it: absent, never made up
        "bits_per_byte": None,
        "next_token_accuracy": None,
        "ci95": None,
        "tasks": {"copy": {"accuracy": 0.25}},
        "latency_ms_per_token": None,
    }
    assert right["asset"] == "right"
    assert ledger.as_json()["profile"] == "nano"
    assert ledger.as_json()["artifact"] is None
    gates = ledger.as_json()["gates"]
    assert gates[0] == {
        "asset": "trunk",
        "gate": "finite",
        "value": 0.0,
        "threshold": 0.0,
        "passed": True,
        "evidence": "count",
        "blocking": True,
    }
    claim = gates[-1]
    assert (claim["asset"], claim["gate"], claim["value"]) == ("right", "smaller", 0.5625)
    assert (claim["threshold"], claim["passed"], claim["blocking"]) == (0.25, False, False)
    assert gate_counts(ledger, "right") == "✓ 2/2"
    assert gate_counts(ledger, "right", blocking=False) == "✗ 0/1"
    assert ledger.missing == dict.fromkeys(("left", "left_child", "right_child"), "not made yet")
    assert missing_lines(ledger)[-1] == "make what is missing: forge run --profile nano"
    assert json.loads(json.dumps(ledger.as_json(), allow_nan=False)) == ledger.as_json()


def test_version_that_was_not_judged_has_no_verdict(forge: Forge, make: Make) -> None:
    make("trunk")
    assert [row.passed for row in collect(forge).gates] == [True, True]
    make("trunk", config={"trunk": {"value": 2.0}}, checks=False)
    rows = collect(forge).gates
    assert [(row.gate.name, row.value, row.passed) for row in rows] == [
        ("finite", 0.0, None),
        ("small", 4.0, None),
    ]
    make("trunk", only_checks=True)
    assert [row.passed for row in collect(forge).gates] == [True, False]


def test_threshold_is_the_one_that_was_judged_with(forge: Forge, make: Make) -> None:
    make("trunk")
    changed = Forge(forge.definitions, forge.instance, forge.store, forge.gates[:5])
    assert [row.gate.name for row in collect(changed).gates] == ["finite"]
    assert [row.threshold for row in collect(forge).gates] == [0.0, 1.0]


def test_model_of_an_earlier_parent_says_so(forge: Forge, make: Make) -> None:
    make("trunk", "left")
    assert [row.outdated for row in collect(forge).models] == [(), ()]
    make("trunk", config={"trunk": {"value": 0.25}})
    assert {row.lineage.asset: row.outdated for row in collect(forge).models} == {
        "trunk": (),
        "left": ("trunk",),
    }


def test_damaged_model_is_missing_with_the_reason(forge: Forge, make: Make) -> None:
    make("trunk")
    (folder,) = forge.store.versions("trunk")
    (folder / "tokenizer.json").write_text("{}")
    ledger = collect(forge)
    assert ledger.models == ()
    assert "materialize the asset again" in ledger.missing["trunk"]


def test_models_of_another_profile_are_not_mixed_in(forge: Forge, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make("trunk")
    monkeypatch.setenv("FORGE_PROFILE", "mini")
    make("left")
    ledger = collect(forge)
    assert ledger.profile == "mini"
    assert [row.lineage.asset for row in ledger.models] == ["left"]
    assert ledger.missing["trunk"] == "the latest one is of profile nano"


def test_reported_figures_are_kept(forge: Forge, make: Make) -> None:
    make("trunk", config={"trunk": {"figure": True, "steps": 3}})
    (row,) = collect(forge).models
    assert "walk" in row.figures
    assert row.figures["walk"].startswith(b"\x89PNG")
