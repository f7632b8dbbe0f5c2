"""The command line: what it answers, that errors are one line, and what it loads."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import psutil
import pytest
import torch
from forge_instance import REPOSITORY
from typer.testing import CliRunner

from forge_assets import cli
from forge_assets.cli.generate import printable
from forge_assets.cli.run import read_overrides
from forge_assets.services import Service, ServiceError, require_free_port, serve, services
from forge_resources.model_store import ModelStore, measurements_digest
from training_core.data.tokenizer import TokenizerConfig, train_tokenizer
from training_core.formats.artifact import make_compressible, write_artifact
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.phases.p3_quiet_star.bundles import Reasoner, reasoner_document, reasoner_tensors
from training_core.phases.p3_quiet_star.injection import InjectionConfig, ThoughtInjector
from training_core.phases.p3_quiet_star.thoughts import Thinker, ThoughtConfig
from training_core.store.bundle import Lineage, write_bundle, write_measurements

TEXT = "the cat sat on the mat and the dog ate the fish while it rained "
SIZES = {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64, "window": 16, "memory_layers": ()}
ENVIRONMENT = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained model in a file of its own."""
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=272), [TEXT] * 40)
    model = Cognate(CognateConfig.model_validate({**SIZES, "vocab_size": tokenizer.get_vocab_size()}))
    make_compressible(model, 0.75, "tensor")
    path = tmp_path_factory.mktemp("artifact") / "model.forge"
    path.write_bytes(write_artifact(model, tokenizer.to_str(), 0.75, "tensor"))
    return path


def forge(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "forge_assets.cli", *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY), **environment},
    )


def test_generate_needs_the_file_alone(artifact: Path, tmp_path: Path) -> None:
    arguments = ("generate", "--artifact", str(artifact), "the cat", "--max-tokens", "8", "--seed", "3")
    first, again = (forge(*arguments, cwd=tmp_path) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("the cat")
    assert len(first.stdout) > len("the cat\n")
    assert first.stdout == again.stdout
    assert first.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_generate_loads_no_orchestrator(artifact: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from forge_assets.cli import app\n"
        f"app(['generate', '--artifact', {str(artifact)!r}, 'the', '--max-tokens', '2'], standalone_mode=False)\n"
        "print(sorted({'dagster', 'mlflow', 'docker', 'pandas'} & sys.modules.keys()))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
    )
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "flipped"])
def test_bad_file_is_one_clear_line(
    artifact: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORGE_DEBUG", raising=False)
    data = artifact.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    path = tmp_path / "model.forge"
    if damage != "absent":
        path.write_bytes({"empty": b"", "cut": data[:middle], "flipped": flipped}[damage])
    result = CliRunner().invoke(cli.app, ["generate", "--artifact", str(path), "the"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("forge: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_impossible_sampling_is_refused(artifact: Path) -> None:
    result = CliRunner().invoke(cli.app, ["generate", "--artifact", str(artifact), "a", "--temperature", "-1"])
    assert result.exit_code == 1
    assert "temperature must be at least 0" in result.stderr


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new home; what the commands set in the environment is put back afterwards."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FORGE_PROFILE", "nano")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    monkeypatch.delenv("FORGE_DEBUG", raising=False)
    monkeypatch.delenv("FORGE_HOME", raising=False)
    return tmp_path / "home"


def store_model(asset: str, *, thinks: bool, enabled: bool = False) -> Lineage:
    """Keep a small model as the latest materialization of `asset`, as a phase does."""
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=272), [TEXT] * 40)
    torch.manual_seed(0)
    model = Cognate(CognateConfig.model_validate({**SIZES, "vocab_size": 272}))
    document, tensors = {"cognate": model.config.model_dump()}, model.state_dict()
    if thinks:
        shape = ThoughtConfig(num_thoughts=2, min_length=1, max_length=3, mixing_heads=4)
        thinker = Thinker(model, shape)
        torch.nn.init.normal_(thinker.head.output.weight, std=1.0)
        reasoner = Reasoner(thinker, ThoughtInjector(InjectionConfig(difficulty_threshold=0)), enabled)
        document, tensors = reasoner_document(reasoner), reasoner_tensors(reasoner)
    store = ModelStore()
    with store.stage(asset) as staged:
        bundle = write_bundle(
            staged, kind="cognate", model_config=document, tensors=tensors, tokenizer_json=tokenizer.to_str()
        )
        digest = bundle.digest()
        lineage = Lineage(asset, 3, "nano", digest, "code", "corpus", {}, {}, {})
        write_measurements(bundle, lineage, {})
        folder = store.commit(asset, staged, digest)
    metadata = {"digest": digest, "measurements": measurements_digest(folder)}
    with dg.DagsterInstance.get() as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization(asset, metadata=metadata))
    return lineage


def generate(*arguments: str, color: bool = False) -> tuple[int, str, str]:
    """Exit status, what was printed, and what was said on the error stream."""
    command = ["generate", "the cat", "--max-tokens", "9", "--seed", "1", *arguments]
    result = CliRunner().invoke(cli.app, command, color=color)
    return result.exit_code, result.stdout, result.stderr


def test_generating_from_a_model_that_can_think(home: Path) -> None:
    assert CliRunner().invoke(cli.app, ["report", "--json"]).exit_code == 0  # makes the home
    store_model("reasoning_model", thinks=True)
    model = ("--model", "reasoning_model")
    off = generate(*model, "--thoughts", "off")
    assert off[0] == 0, off[2]
    assert off[1].startswith("the cat")
    assert off[2] == ""
    assert generate(*model) == off  # it was not found to help
    assert generate(*model, "--thoughts", "on", "--rule", "never") == off
    thinking = generate(*model, "--thoughts", "on")
    assert thinking[0] == 0, thinking[2]
    assert thinking[1] != off[1]
    shown = generate(*model, "--thoughts", "on", "--show-thoughts", color=True)[1]
    dimmed = re.findall(r"\x1b\[2m((?:\[.*?\])+)\x1b\[0m", shown)
    assert 1 <= len(dimmed) <= 3  # one position in three of the nine, at most
    assert re.sub(r"\x1b\[2m(?:\[.*?\])+\x1b\[0m", "", shown) == thinking[1]
    silent = generate(*model, "--show-thoughts")
    assert silent[1] == off[1]
    assert silent[2].startswith("forge: nothing is thought: the thoughts of reasoning_model were not found to help; ")
    refused = generate(*model, "--rule", "surprise")
    assert refused[:2] == (1, "")
    assert "--thoughts on" in refused[2]
    assert "there is no rule 'often'" in generate(*model, "--thoughts", "on", "--rule", "often")[2]
    store_model("reasoning_model", thinks=True, enabled=True)
    assert generate(*model) == thinking  # the latest version, which was found to help


def test_generating_from_a_model_without_thoughts(home: Path) -> None:
    assert CliRunner().invoke(cli.app, ["report", "--json"]).exit_code == 0
    store_model("merged_model", thinks=False)
    model = ("--model", "merged_model")
    plain = generate(*model)
    assert plain[0] == 0, plain[2]
    assert plain[2] == ""
    assert "a reasoning_model has" in generate(*model, "--show-thoughts")[2]
    status, printed, error = generate(*model, "--thoughts", "on")
    assert (status, printed) == (1, "")
    assert error.startswith("forge: ")
    assert error.endswith("holds a cognate model without thoughts: only a reasoning_model can think\n")
    for asset in ("mergd_model", "tokens"):
        status, printed, error = generate("--model", asset)
        assert (status, printed) == (1, "")
        assert re.match(rf"forge: there is no model '{asset}': choose trunk, .*reasoning_model", error)
    assert generate("--model", "trunk") == (1, "", "forge: trunk was not made yet: forge run makes it\n")


def test_generating_needs_one_model_and_a_file_cannot_think(artifact: Path) -> None:
    file = ("--artifact", str(artifact))
    for arguments in ((), (*file, "--model", "trunk")):
        assert generate(*arguments)[:2] == (1, "")
        assert "give either --artifact FILE or --model ASSET" in generate(*arguments)[2]
    for arguments in (("--thoughts", "on"), ("--rule", "everywhere")):
        status, printed, error = generate(*file, *arguments)
        assert (status, printed) == (1, "")
        assert "cannot think: use --model reasoning_model" in error


def test_thoughts_are_shown_on_one_line() -> None:
    assert printable("é a\n\t\x1b[2J\u2028") == "é a\\n\\t\\x1b[2J\\u2028"


def test_unknown_profile_lists_the_three(home: Path) -> None:
    result = CliRunner().invoke(cli.app, ["run", "--profile", "huge"])
    assert result.exit_code == 1
    assert result.stderr == "forge: there is no profile 'huge': choose nano, mini, forge_25m\n"
    assert not home.exists()


def test_report_of_a_new_home(home: Path) -> None:
    result = CliRunner().invoke(cli.app, ["report", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "profile": "nano",
        "corpus": {},
        "models": [],
        "gates": [],
        "artifact": None,
    }
    assert "forge run --profile nano" in result.stderr
    committed = REPOSITORY / "dagster_home" / "dagster.yaml"
    assert (home / "dagster.yaml").read_text() == committed.read_text()


def test_run_refuses_a_wrong_configuration_and_a_missing_parent(home: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("trunk: {training: {steps: 0}}\n")
    refused = CliRunner().invoke(cli.app, ["run", "--config", str(tmp_path / "wrong.yaml")])
    assert refused.exit_code == 1
    assert re.match(r"forge: the configuration of trunk is refused: training.steps: Input should be", refused.stderr)
    closed = CliRunner().invoke(cli.app, ["run", "--select", "merged_model"])
    assert closed.exit_code == 1
    assert "merged_model: refused: " in closed.stdout
    assert "was never materialized" in closed.stdout
    assert [line.split()[:2] for line in closed.stdout.splitlines()[-3:]] == [
        ["forge", "run"],
        ["forge", "report"],
        ["forge", "up"],
    ]


def test_configuration_files(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("trunk: {steps: 4}\n")
    assert read_overrides(path) == {"trunk": {"steps": 4}}
    path.write_text("ops: {trunk: {config: {steps: 4}}}\n")
    assert read_overrides(path) == {"trunk": {"steps": 4}}
    path.write_text("- 3\n")
    with pytest.raises(ValueError, match="must map assets"):
        read_overrides(path)
    path.write_text("a: [\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        read_overrides(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_overrides(tmp_path / "none.yaml")


def test_doctor_answers(tmp_path: Path) -> None:
    ran = forge("doctor", cwd=tmp_path, DAGSTER_HOME=str(tmp_path / "home"))
    assert ran.returncode == 0, ran.stderr
    for line in ("processor", "memory", "GPU", "container engine", "free disk", "nano", "mini", "forge_25m"):
        assert re.search(rf"^{line} +\S", ran.stdout, re.MULTILINE), line
    assert not (tmp_path / "home").exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


LISTENER = """
import http.server, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
SUPERVISOR = """
import os, sys
from pathlib import Path
from forge_assets.services import Service, serve
ports = [int(port) for port in sys.argv[2:]]
command = lambda port: [sys.executable, "-c", sys.argv[1], str(port)]
wanted = [Service(f"service {port}", command(port), port, Path(f"{port}.log")) for port in ports]
serve(wanted, dict(os.environ), lambda: print("ready", flush=True))
print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_services_start_and_stop_together_without_orphans(tmp_path: Path, number: signal.Signals) -> None:
    ports = [str(free_port()), str(free_port())]
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, LISTENER, *ports],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell script starts a job
    ) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "ready\n"
        family = psutil.Process(supervisor.pid).children(recursive=True)
        assert len(family) == 4  # two services and a process of each
        stopping = time.monotonic()
        supervisor.send_signal(number)
        assert supervisor.stdout.readline() == "stopped\n"
        assert time.monotonic() - stopping < 15  # the services heard the interrupt: none had to be waited out
        assert supervisor.wait(timeout=30) == 0
    assert [process for process in family if process.is_running()] == []


def test_services_that_nohup_started_outlive_the_terminal(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, LISTENER, str(free_port())],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    ) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "ready\n"
        supervisor.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            supervisor.wait(timeout=2)
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(timeout=30) == 0


def test_service_that_ends_stops_the_others(tmp_path: Path) -> None:
    lasting = Service("lasting", [sys.executable, "-c", LISTENER, str(port := free_port())], port, tmp_path / "a")
    code = "print('no database'); raise SystemExit(3)"
    broken = Service("broken", [sys.executable, "-c", code], free_port(), tmp_path / "b")
    began = time.monotonic()
    with pytest.raises(ServiceError, match=r"broken ended with status 3 \(no database\)"):
        serve([lasting, broken], dict(ENVIRONMENT), lambda: None)
    assert time.monotonic() - began < 20
    require_free_port(lasting)


def test_port_in_use_is_named(tmp_path: Path) -> None:
    dagster, mlflow = services(tmp_path, free_port(), free_port(), None)
    assert list(dagster.command[3:6]) == ["dev", "-m", "forge_assets.definitions"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", mlflow.port))
        taken.listen()
        require_free_port(dagster)
        with pytest.raises(ServiceError, match=f"port {mlflow.port}, wanted for MLflow, is in use.*--mlflow-port"):
            serve([dagster, mlflow], dict(ENVIRONMENT), lambda: None)
