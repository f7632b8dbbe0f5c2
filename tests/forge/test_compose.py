"""docker-compose.yml, .env.example, Dockerfile and the deployment's settings, held against rules.

The services' processes are run in `test_deployment`.
"""

import fnmatch
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed_services import COMPOSE, compose, interpolated, settings_file
from forge_instance import REPOSITORY

EXAMPLE = settings_file(REPOSITORY / ".env.example")
FILLED = EXAMPLE | {"FORGE_POSTGRES_PASSWORD": "abc"}
SERVICES = compose()["services"]
OPTIONAL = {"OPENROUTER_API_KEY", "TORCH_INDEX"}
each_service = pytest.mark.parametrize("name", list(SERVICES))


def test_the_services() -> None:
    assert list(SERVICES) == ["postgres", "mlflow", "code", "webserver", "daemon"]


@each_service
def test_a_service_says_whether_it_is_well_and_comes_back(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert set(check) >= {"test", "interval", "timeout", "retries"}
    assert SERVICES[name]["restart"] == "unless-stopped"


@each_service
def test_a_service_has_no_privileges(name: str) -> None:
    service = SERVICES[name]
    user, group = service["user"].split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & set(service)
    assert not any("docker.sock" in volume for volume in service["volumes"] or [])


@each_service
def test_a_service_is_reachable_from_this_machine_only(name: str) -> None:
    published = [interpolated(port, FILLED) for port in SERVICES[name].get("ports", [])]
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published)
    assert bool(published) == (name in ("webserver", "mlflow"))  # Postgres and the code are for the services alone


@each_service
def test_a_service_waits_until_what_it_needs_is_healthy(name: str) -> None:
    needs = SERVICES[name].get("depends_on", {})
    assert all(SERVICES[other] and how == {"condition": "service_healthy"} for other, how in needs.items())
    assert ("postgres" in needs) == (name != "postgres")
    earlier = list(SERVICES)[: list(SERVICES).index(name)]
    assert set(needs) <= set(earlier)  # so nothing waits in a circle


@each_service
def test_images_are_pinned(name: str) -> None:
    assert re.fullmatch(r"[a-z-]+:\d+\.\d+(\.\d+)?(-[a-z]+)?", SERVICES[name]["image"])


@each_service
def test_volumes_are_named_and_declared(name: str) -> None:
    for volume in SERVICES[name]["volumes"]:
        source, target, *mode = volume.split(":")
        if source.startswith("./"):
            assert (REPOSITORY / source).is_file()
            assert mode == ["ro"]
        else:
            assert source in compose()["volumes"]
        assert target.startswith("/")


def test_every_variable_is_in_the_example_and_asked_for() -> None:
    found: dict[str, set[str]] = {}
    for variable, kind in re.findall(r"(?<!\$)\$\{(\w+)(:[?-])?", COMPOSE.read_text()):
        found.setdefault(variable, set()).add(kind)
    assert set(found) == set(EXAMPLE)
    assert {variable for variable, kinds in found.items() if kinds != {":?"}} == OPTIONAL
    assert {variable for variable, value in EXAMPLE.items() if not value} == OPTIONAL | {"FORGE_POSTGRES_PASSWORD"}


def test_it_refuses_without_a_password() -> None:
    with pytest.raises(ValueError, match=r"FORGE_POSTGRES_PASSWORD is missing a value: set it in \.env"):
        interpolated(COMPOSE.read_text(), EXAMPLE)
    assert yaml.safe_load(interpolated(COMPOSE.read_text(), FILLED))["services"]["postgres"]["environment"] == {
        "POSTGRES_USER": "forge",
        "POSTGRES_PASSWORD": "abc",
        "POSTGRES_DB": "dagster",
    }


def test_the_password_stands_in_variables_only() -> None:
    secret = "a-secret-of-mine"
    filled = yaml.safe_load(interpolated(COMPOSE.read_text(), FILLED | {"FORGE_POSTGRES_PASSWORD": secret}))
    holders = {
        (name, variable)
        for name, service in filled["services"].items()
        for variable, value in service["environment"].items()
        if secret in str(value)
    }
    others = ("mlflow", "code", "webserver", "daemon")
    assert holders == {("postgres", "POSTGRES_PASSWORD"), *((name, "PGPASSWORD") for name in others)}
    rest = yaml.safe_dump({name: service | {"environment": {}} for name, service in filled["services"].items()})
    assert secret not in rest
    keyed = [name for name in filled["services"] if "OPENROUTER_API_KEY" in filled["services"][name]["environment"]]
    assert keyed == ["code"]


def without_storage(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return {k: v for k, v in document.items() if k not in ("storage", "local_artifact_storage", "compute_logs")}


def test_the_instance_differs_from_the_local_one_in_storage_only() -> None:
    local, deployed = REPOSITORY / "dagster_home" / "dagster.yaml", REPOSITORY / "deployment" / "dagster.yaml"
    assert without_storage(deployed) == yaml.safe_load(local.read_text())
    database = yaml.safe_load(deployed.read_text())["storage"]["postgres"]["postgres_db"]
    assert database["scheme"] == "postgresql+psycopg2"
    assert "password" not in database
    environment = SERVICES["daemon"]["environment"]
    named = re.findall(r"env: (\w+)", deployed.read_text() + (REPOSITORY / "deployment" / "workspace.yaml").read_text())
    assert set(named) <= set(environment)


def test_the_image() -> None:
    text = (REPOSITORY / "Dockerfile").read_text()
    lines = [line.split() for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert [words[1] for words in lines if words[0] == "FROM"] == ["python:3.11.14-slim-bookworm"]
    user = [words[1] for words in lines if words[0] == "USER"][-1]
    assert {service["user"] for name, service in SERVICES.items() if name != "postgres"} == {user}
    assert not re.search(r"(?i)password|token|secret|api_key", re.sub(r"#.*", "", text))
    copied = {source for words in lines if words[0] == "COPY" for source in words[1:-1]}
    assert all((REPOSITORY / source).exists() for source in copied)
    # the build's context: everything is left out but what is copied
    ignored = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*"
    taken = [line[1:] for line in ignored if line.startswith("!")]
    assert all(any(fnmatch.fnmatch(source, f"{pattern}*") for pattern in taken) for source in copied)
    assert not any(pattern.startswith(".") for pattern in taken)


def test_the_drivers_are_the_extra_and_pinned() -> None:
    import tomllib

    extra = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]["postgres"]
    pins = (REPOSITORY / "constraints.txt").read_text().splitlines()
    for requirement in extra:
        package = requirement.split("==")[0]
        assert [pin for pin in pins if pin.startswith(f"{package}==")]
    assert {pin for pin in pins if pin.startswith("dagster")} == {
        "dagster==1.13.27", "dagster-graphql==1.13.27", "dagster-pipes==1.13.27", "dagster-postgres==0.29.27",
        "dagster-shared==1.13.27", "dagster-webserver==1.13.27",
    }  # fmt: skip


def compose_program() -> list[str] | None:
    """`docker compose` where it is installed; checking a file needs no engine."""
    docker = shutil.which("docker")
    if docker is None:
        return None
    there = subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0
    return [docker, "compose"] if there else None


def test_docker_compose_reads_it(tmp_path: Path) -> None:
    program = compose_program()
    if program is None:
        pytest.skip("docker compose is not installed")
    for password, status in (("abc", 0), ("", 1)):
        settings = EXAMPLE | {"FORGE_POSTGRES_PASSWORD": password}
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        command = [*program, "--env-file", str(tmp_path / ".env"), "-f", str(COMPOSE), "config", "--quiet"]
        environment = {name: value for name, value in os.environ.items() if name not in settings}
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert (ended.returncode != 0) == bool(status), ended.stderr
