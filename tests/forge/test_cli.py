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
from forge_assets.config_file import read_overrides
from forge_assets.generate_text import Prefill
from forge_assets.services import Service, ServiceError, require_free_port, serve, services
from forge_resources.model_store import ModelStore, measurements_digest
from training_core.data.tokenizer import TokenizerConfig, train_tokenizer
from training_core.formats.artifact import make_compressible, write_artifact
from training_core.nn.cognate import Cognate, CognateConfig, count_parameters
from training_core.phases.p3_quiet_star.bundles import Reasoner, reasoner_document, reasoner_tensors
from training_core.phases.p3_quiet_star.injection import InjectionConfig, ThoughtInjector
from training_core.phases.p3_quiet_star.thoughts import Thinker, ThoughtConfig
from training_core.profiles import forge_25m
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
    assert result.stderr == "forge: refused, --temperature: must be at least 0, got -1.0\n"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--temperature", "nan"), "--temperature: must be a finite number, got nan"),
        (("--temperature", "inf"), "--temperature: must be a finite number, got inf"),
        (("--top-p", "0"), "--top-p: must be more than 0, got 0.0"),
        (("--top-p", "nan"), "--top-p: must be a finite number, got nan"),
        (("--max-tokens", "0"), "--max-tokens: must be at least 1, got 0"),
        (("--seed", "-1"), "--seed: must be at least 0, got -1"),
        (("--seed", str(1 << 63)), "--seed: must be less than 9223372036854775808, got 9223372036854775808"),
    ],
)
def test_numbers_are_checked_before_a_model_is_looked_for(options: tuple[str, ...], line: str) -> None:
    for model in (("--artifact", "absent.forge"), ("--model", "absent")):
        result = CliRunner().invoke(cli.app, ["generate", *model, "a", *options])
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"forge: refused, {line}\n")


def test_prompts_of_every_kind(artifact: Path) -> None:
    """Empty, blank, longer than any training sequence; a tiny temperature; what is no text says where."""

    def said(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(cli.app, ["generate", "--artifact", str(artifact), "--max-tokens", "3", *arguments])
        return result.exit_code, result.stdout, result.stderr

    long = "the cat sat " * 500  # max_seq_len is 256
    for prompt in ("", "   ", "a <|endoftext|> b", long):
        status, printed, error = said("--", prompt)
        assert (status, error) == (0, "")
        assert printed.startswith(prompt)
    assert said("--temperature", "1e-320", "a")[0] == 0
    assert said("ab\udce9c")[2] == "forge: the prompt is not UTF-8: 0xe9 at byte 3 (after 'ab'): encode it as UTF-8\n"
    assert said("\ud800")[2].startswith("forge: the prompt is not UTF-8: a lone surrogate, U+D800, at byte 1")
    assert "stands last, behind --" in " ".join(said("-5 degrees")[2].replace("│", " ").split())
    assert said("--", "-5 degrees")[1].startswith("-5 degrees")


def test_a_long_prompt_shows_how_far_it_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Prefill(quiet_s=0.05)
    progress(1024, 5000)
    time.sleep(0.06)
    progress(2048, 5000)
    progress(5000, 5000)
    assert capsys.readouterr().err == "forge: read 2,048 of 5,000 tokens of the prompt\n"


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
        "controls": [],
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
    assert refused.stderr == "forge: trunk.training.steps: must be at least 1, got 0\n"
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
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_overrides(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        read_overrides(tmp_path)
    path.write_text("t: {a: 1e-3, b: -1E+2, c: 010, d: no, e: 12:30, f: ~, g: 0x1f, h: 2024-01-01, i: TRUE, j: .5}")
    values = {"a": 0.001, "b": -100.0, "c": 10, "d": "no", "e": "12:30", "f": None, "g": 31, "h": "2024-01-01"}
    assert read_overrides(path) == {"t": {**values, "i": True, "j": 0.5}}
    path.write_text("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}\nc: {m: *x}\n")
    assert read_overrides(path) == {"a": {"k": 1, "l": 2}, "b": {"k": 1, "l": 3}, "c": {"m": {"k": 1, "l": 2}}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", r"c\.yaml is empty: write for instance"),
        (b"# nothing\n", r"c\.yaml is empty"),
        (b"- 3\n", "line 1: names with values belong here"),
        (b"a: [\n", "line 2: "),
        (b"a:\n\tb: 1\n", "line 2: a line begins with a tab"),
        (b"a: {b: caf\xe9}\n", "line 1: byte 0xe9 is not UTF-8"),
        (b"a: {b: 1}\n---\nc: {b: 1}\n", "line 2: a second document begins here"),
        (b"trunk: {b: 1}\ntrunk: {c: 2}\n", r"line 2: 'trunk' stands a second time \(first in line 1\)"),
        (b"a:\n  b: {c: 1,\n    c: 2}\n", r"line 3: 'c' stands a second time \(first in line 2\)"),
        (b"a: {b: [{c: 1, 'c': 2}]}\n", "line 1: 'c' stands a second time"),
        (b"1: {b: 1}\n", "line 1: a key must be a name, got '1'"),
        (b"a:\n", "line 1: a must be fields with values, got nothing"),
        (b"a: 3\n", "line 1: a must be fields with values, got 3"),
        (b"a: &x {b: *x}\n", r"line 1: \*x stands within itself"),
        (b"a: {b: .inf}\n", "line 1: a number must be finite, got .inf"),
        (b"a: !!python/object/apply:os.getcwd []\n", "line 1: could not determine a constructor"),
        (b"a: !!int x\n", "value that its tag does not allow"),
        (b"ops:\n  corpus: files\n", "ops.corpus must be fields with values, got 'files'"),
        (b"ops: files\n", "line 1: ops must be fields with values, got 'files'"),
        (b"ops: {t: {config: {b: 1}}}\ntrunk: {x: 3}\n", "line 2: 'trunk' stands beside 'ops' and would not be used"),
        (b"ops: {t: {config: {b: 1}, inputs: {}}}\n", "ops.t.inputs would not be used"),
        (b"ops: {t: {}}\n", "ops.t.config must be fields with values, got nothing"),
        (b"[" * 5000, "is not valid YAML"),
    ],
)
def test_a_file_that_would_not_be_used_as_written_is_one_line(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=words) as refused:
        read_overrides(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{steps: 4}", "steps: there is no such value, did you mean first.steps or training.steps?"),
        ("{training: {stepz: 4}}", "training.stepz: there is no such value, did you mean training.steps?"),
        ("{training: {steps: abc}}", "training.steps: must be a whole number, got 'abc'"),
        ("{training: {steps: 1.5}}", "training.steps: must be a whole number, got 1.5"),
        ("{training: {muon_lr: x}}", "training.muon_lr: must be a number, got 'x'"),
        ("{training: {muon_lr: -1e-3}}", "training.muon_lr: must be more than 0, got -0.001"),
        ("{training: hello}", "training: must be fields with values, got 'hello'"),
        ("{training: ~}", "training: must be fields with values, got null"),
        ("{training: {precision: half}}", "training.precision: must be 'auto' or 'float32' or 'bfloat16', got 'half'"),
        ("{shape: {memory_layers: 3}}", "shape.memory_layers: must be a list, got 3"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_line(home: Path, tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "c.yaml").write_text(f"trunk: {text}\n")
    refused = CliRunner().invoke(cli.app, ["run", "--config", str(tmp_path / "c.yaml")])
    assert (refused.exit_code, refused.stderr) == (1, f"forge: trunk.{line}\n")


def test_doctor_answers(tmp_path: Path) -> None:
    ran = forge("doctor", "--no-measure", cwd=tmp_path, DAGSTER_HOME=str(tmp_path / "home"))
    assert ran.returncode == 0, ran.stderr
    for line in ("processor", "memory", "GPU", "container engine", "free disk", "nano", "mini", "forge_25m"):
        assert re.search(rf"^{line} +\S", ran.stdout, re.MULTILINE), line
    assert not (tmp_path / "home").exists()


def test_params_are_those_of_the_model(tmp_path: Path) -> None:
    """The total of a preset, and the shape of a file: README's example has 51 M."""
    asked = CliRunner().invoke(cli.app, ["params", "--profile", "forge_25m"])
    total = count_parameters(Cognate(CognateConfig(vocab_size=6144, **forge_25m().trunk.shape.model_dump())))
    assert (asked.exit_code, asked.stdout.splitlines()[-1].split()[:3]) == (0, ["in", "all", f"{total:,}"])
    (tmp_path / "c.yaml").write_text(
        "trunk: {shape: {d_model: 512, num_layers: 8, num_heads: 8, d_ff: 2048, window: 256, max_seq_len: 2048}}\n"
        "tokenizer: {vocab_size: 32768}\n"
    )
    example = CliRunner().invoke(cli.app, ["params", "--profile", "forge_25m", "--config", str(tmp_path / "c.yaml")])
    parts = [int(line[30:42].replace(",", "")) for line in example.stdout.splitlines()]
    assert sum(parts[:-1]) == parts[-1]
    assert 50e6 < parts[-1] < 52e6
    (tmp_path / "c.yaml").write_text("trunk: {shape: {heads: 8}}\n")
    refused = CliRunner().invoke(cli.app, ["params", "--config", str(tmp_path / "c.yaml")])
    assert (refused.exit_code, "shape.num_heads" in refused.stderr) == (1, True)


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
