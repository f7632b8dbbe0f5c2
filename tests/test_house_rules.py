"""Rules of the house that a linter does not know. Each can be broken, and breaks the build when it is."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("training_core", "forge_resources", "forge_assets")
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
CORE_MAY_IMPORT = {
    "torch", "numpy", "safetensors", "tokenizers", "pydantic", "constriction", "zstandard", "datasets", "datasketch",
    "huggingface_hub", "pyarrow", "reasoning_gym", "pycosat", "pymoo", "scipy", "training_core",
}  # fmt: skip


MAY_IMPORT_PHASES = ("training_core.registry", "training_core.gate_table", "training_core.profiles")


def ids(paths: list[Path]) -> list[str]:
    return [str(p.relative_to(ROOT)) for p in paths]


def import_graph(root: Path, packages: tuple[str, ...]) -> dict[str, set[str]]:
    """For every module below `root`, the modules that its import statements name, wherever they stand in the file."""
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in packages
        for path in (root / package).rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= {part for part in parts if part in files} or {node.module or ""}
        graph[module] = (named & files.keys()) - {module}
    return graph


def import_circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other: what is left after modules that import none of the rest are removed."""
    graph = {module: set(imports) for module, imports in graph.items()}
    while leaves := [module for module, imports in graph.items() if not imports & graph.keys()]:
        for module in leaves:
            del graph[module]
    reach = {module: _reach(graph, module) for module in graph}
    groups = {tuple(sorted(other for other in reach[m] if m in reach[other])) for m in graph if m in reach[m]}
    return [list(group) for group in sorted(groups)]


def _reach(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = (graph[waiting.pop()] & graph.keys()) - found
        found |= new
        waiting += new
    return found


def wrong_phase_imports(graph: dict[str, set[str]]) -> list[str]:
    """Imports of one phase by another, and of a phase by the library around the phases."""
    wrong = []
    for module, imports in graph.items():
        own = ".".join(module.split(".")[:3])
        phases = {name for name in imports if name.startswith("training_core.phases.")}
        if module.startswith("training_core.phases."):
            phases = {name for name in phases if name != own and not name.startswith(f"{own}.")}
        elif module in MAY_IMPORT_PHASES or not module.startswith("training_core"):
            continue
        wrong += [f"{module} imports {name}" for name in sorted(phases)]
    return sorted(wrong)


def test_no_import_circles() -> None:
    assert import_circles(import_graph(ROOT, PACKAGES)) == []


def test_no_phase_imports_another_phase() -> None:
    assert wrong_phase_imports(import_graph(ROOT, PACKAGES)) == []


def test_planted_circles_and_phase_imports_are_found(tmp_path: Path) -> None:
    for name, text in {
        "training_core/phases/p1_cognate/phase.py": "from training_core.phases.p2_evomerge import phase",
        "training_core/phases/p1_cognate/train.py": "from training_core.phases.p1_cognate import phase",
        "training_core/phases/p2_evomerge/phase.py": "import training_core.text",
        "training_core/text.py": "def f():\n    from training_core.phases.p2_evomerge.phase import x",
        "training_core/registry.py": "from training_core.phases.p1_cognate.phase import PHASE",
        "training_core/store.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import training_core.data",
        "training_core/data.py": "from training_core.store import write",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    graph = import_graph(tmp_path, ("training_core",))
    assert import_circles(graph) == [
        ["training_core.data", "training_core.store"],
        ["training_core.phases.p2_evomerge.phase", "training_core.text"],
    ]
    assert wrong_phase_imports(graph) == [
        "training_core.phases.p1_cognate.phase imports training_core.phases.p2_evomerge.phase",
        "training_core.text imports training_core.phases.p2_evomerge.phase",
    ]


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_sizes(path: Path) -> None:
    """Far above what a file should have: no file is cut in two to meet a number."""
    text = path.read_text()
    assert text.count("\n") <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node, clean=False) or ""
            lines = (node.end_lineno or 0) - node.lineno + 1 - documented.count("\n")
            assert lines <= 80, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_no_broad_except_and_no_unfinished_work(path: Path) -> None:
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            names = [n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)] if node.type else ["everything"]
            assert not {"Exception", "BaseException", "everything"} & set(names), f"line {node.lineno}"
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError|pickle)\b", text.replace("a pickle", ""))


def test_the_core_imports_only_what_it_may() -> None:
    import sys

    for path in (p for p in SOURCES if "training_core" in p.parts):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert top in CORE_MAY_IMPORT or top in sys.stdlib_module_names, f"{path} imports {name}"


def test_resources_do_not_import_assets() -> None:
    for path in (p for p in SOURCES if "forge_resources" in p.parts):
        assert "import forge_assets" not in path.read_text()
        assert "from forge_assets" not in path.read_text()


def test_tokenizers_are_loaded_in_one_place() -> None:
    """Any other way takes "<|endoftext|>" in a text for the separator (`training_core.data.tokenizer`)."""
    loader = ROOT / "training_core" / "data" / "tokenizer.py"
    loading = re.compile(r"Tokenizer\.from_(str|file|buffer|pretrained)|PreTrainedTokenizer|AutoTokenizer")
    scripts = [*(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    found = [str(path.relative_to(ROOT)) for path in (*SOURCES, *scripts) if loading.search(path.read_text())]
    assert found == [str(loader.relative_to(ROOT))]
    assert len(loading.findall(loader.read_text())) == 1


def test_no_mocks() -> None:
    own = Path(__file__)
    for path in TESTS:
        if path != own:
            assert not re.search(r"unittest\.mock|MagicMock|mocker\b", path.read_text()), path


def test_the_graph_module_loads_without_models_in_the_coordinator() -> None:
    """The webserver and the daemon import the coordinator and the gate table: that must not load torch."""
    import sys

    code = "import sys, forge_resources.coordinator, forge_assets.gates; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_generated_world_needs_no_torch_and_only_itself() -> None:
    """Its texts are made where a corpus is made; only `world.tasks` knows the project's own questions."""
    import sys

    code = "import sys, training_core.world.tasks, training_core.world.checker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    graph = import_graph(ROOT, ("training_core",))
    for module, imports in graph.items():
        if module.startswith("training_core.world.") and module != "training_core.world.tasks":
            assert all(name.startswith("training_core.world") for name in imports), module


def test_opening_a_trunk_loads_what_a_trunk_needs() -> None:
    """Neither experts nor questions nor the compressed file's format, and few modules in all."""
    import sys

    code = (
        "import sys, training_core.formats.loading; print(*[m for m in sys.modules if m.startswith('training_core')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = ran.stdout.split()
    assert "training_core.nn.cognate" in loaded
    assert len(loaded) < 30
    assert not [name for name in loaded if re.search(r"expert|question|svf|phases|codec|container|artifact", name)]
