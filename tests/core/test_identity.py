"""What makes a model stale: every module that its phase can reach, and no other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from training_core.registry import PHASES
from training_core.store import identity
from training_core.store.identity import JUDGES, code_digest, reachable

ROOT = Path(__file__).parents[2]
LOADED = """
import importlib, json, os, sys
import scipy.optimize, torch._dynamo  # of others: imported once, not in every fork
for name, roots in json.loads(sys.argv[1]).items():
    if not os.fork():
        for root in roots:
            importlib.import_module(root)
        ours = sorted(module for module in sys.modules if module.partition(".")[0] == "training_core")
        print(name, *ours, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.fixture(autouse=True)
def fresh() -> None:
    identity._source.cache_clear()


def versions() -> dict[str, str]:
    identity._source.cache_clear()
    return {name: code_digest(phase.roots(), extra={}) for name, phase in PHASES.items()}


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """Modules of ours that importing each phase's roots loads, each in a fork of a process that has loaded none."""
    wanted = json.dumps({name: phase.roots() for name, phase in PHASES.items()})
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADED, wanted], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return {name: set(modules) for name, *modules in map(str.split, ran.stdout.splitlines())}


@pytest.mark.parametrize("name", PHASES)
def test_whatever_importing_a_phase_loads_is_in_its_version(name: str, loaded: dict[str, set[str]]) -> None:
    its = {module for module in loaded[name] if module.rpartition(".")[2] not in JUDGES}
    assert len(its) > 30
    assert its <= reachable(PHASES[name].roots())


def test_modules_that_a_hand_kept_list_forgot() -> None:
    """The sampler of every training batch, tasks, tokenizer, loading and bundles are part of every version."""
    for phase in PHASES.values():
        found = reachable(phase.roots())
        for module in ("data.packing", "data.task_bank", "data.tokenizer", "formats.loading", "store.bundle"):
            assert f"training_core.{module}" in found, (phase.name, module)
    for name in ("reasoning_model", "ternary_model", "practised_model"):
        assert "training_core.training.objective" in reachable(PHASES[name].roots())


@pytest.mark.parametrize(
    ("module", "changed"),
    [
        ("training_core.data.packing", set(PHASES)),
        ("training_core.store.bundle", set(PHASES)),
        ("training_core.phases.p1_cognate.train", {n for n, p in PHASES.items() if p.number == 1}),
        ("training_core.phases.p2_evomerge.methods", {"merged_model"}),
        ("training_core.tasks.questions.bank", {n for n, p in PHASES.items() if p.number >= 5}),
        ("training_core.phases.p7_experts.nsga2", {"expert_model"}),
        ("training_core.phases.p8_compression.presets", set()),
        ("training_core.phases.p8_compression.gates", set()),
        ("training_core.profiles", set()),
    ],
)
def test_a_changed_module_changes_the_versions_of_what_it_makes(
    module: str, changed: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = versions()
    real = identity._file_of(module)
    assert real is not None
    copy = tmp_path / "module.py"
    copy.write_bytes(real.read_bytes() + b"# one comment\n")
    found = identity._file_of
    monkeypatch.setattr(identity, "_file_of", lambda name: copy if name == module else found(name))
    after = versions()
    assert {name for name in PHASES if after[name] != before[name]} == changed


def test_imports_inside_functions_count(tmp_path: Path) -> None:
    imports = list(identity._imported(identity.ast.parse("def f():\n    from training_core.data import packing\n")))
    assert "training_core.data.packing" in imports


def test_a_module_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no source for module 'training_core\.nowhere'"):
        code_digest(["training_core.nowhere"], extra={})
