"""The lists in which a model must stand name the same models: one forgotten would be a model without gates."""

from __future__ import annotations

from training_core.gate_table import BY_MODEL
from training_core.phase import DATA
from training_core.profiles import ASSETS, PROFILES, preset
from training_core.registry import PHASES
from training_core.tasks.questions.context import QUESTIONED


def test_registry_gate_table_and_profiles_name_the_same_models() -> None:
    assert list(BY_MODEL) == list(PHASES)
    assert [asset for asset in ASSETS if asset in PHASES] == list(PHASES)
    assert set(ASSETS) - set(PHASES) == {"corpus", "tokenizer", *DATA, *QUESTIONED}


def test_a_phase_carries_the_gates_of_the_table() -> None:
    for name, phase in PHASES.items():
        assert phase.name == name
        assert phase.gates == BY_MODEL[name]
        assert {gate.asset for gate in phase.gates} == {name}
        assert any(gate.blocking for gate in phase.gates)


def test_every_profile_configures_every_phase_with_its_class() -> None:
    for profile in PROFILES:
        for name, phase in PHASES.items():
            assert type(preset(profile, name)) is phase.config


def test_parents_and_data_are_made_before_they_are_asked_for() -> None:
    made: set[str] = set()
    for name, phase in PHASES.items():
        assert made.issuperset(phase.parents), name
        assert set(ASSETS).issuperset(phase.data), name
        made.add(name)
