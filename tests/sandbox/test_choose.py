"""Which sandbox is opened, and that there is none but these two."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from forge_assets.cli.sandbox import app
from forge_resources.sandbox import choose, describe, open_sandbox
from training_core.tasks.sandbox import Limits, SandboxUnavailableError


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "engine_sockets", lambda: ["unix:///no/such.sock"])


@pytest.fixture
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONTY_BIN", "/no/such/program")


def test_the_embedded_one_is_the_default(no_engine: None) -> None:
    with open_sandbox() as sandbox:
        assert sandbox.name.startswith("embedded, pydantic-monty ")


def test_a_container_is_not_replaced_by_anything(no_engine: None) -> None:
    with pytest.raises(SandboxUnavailableError, match="no container engine answers: start Docker or Podman"):
        open_sandbox("container")


def test_without_any_sandbox_it_refuses(no_engine: None, no_interpreter: None) -> None:
    with pytest.raises(SandboxUnavailableError, match="pip install pydantic-monty"):
        open_sandbox("embedded")
    with pytest.raises(SandboxUnavailableError, match="model-written code is refused: the embedded .*; no container"):
        open_sandbox("auto")
    assert describe().startswith("none: model-written code is refused")


def test_status_says_what_would_run(no_engine: None) -> None:
    ran = CliRunner().invoke(app, ["status"])
    assert ran.exit_code == 0
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("would run         embedded, pydantic-monty")
    assert lines[2].startswith("container         none: no container engine answers")


def test_an_image_is_not_built_without_an_engine(no_engine: None) -> None:
    ran = CliRunner().invoke(app, ["build-image"])
    assert ran.exit_code == 1
    assert "no container engine answers" in ran.output


@pytest.mark.parametrize(
    ("field", "value"), [("seconds", 0.0), ("memory_bytes", 1 << 20), ("output_bytes", 0), ("processes", 1)]
)
def test_limits_that_no_sandbox_keeps_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must lie in"):
        Limits(**{field: value})  # type: ignore[arg-type]


def test_the_core_knows_no_engine() -> None:
    import training_core.tasks.sandbox as contract

    source = Path(contract.__file__).read_text()
    assert "docker" not in source
    assert "monty" not in source
