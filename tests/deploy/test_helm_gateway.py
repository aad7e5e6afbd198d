"""The gateway of the chart: fits Kubernetes, its own command line takes its arguments, it is closed, and it drains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli import app
from helm_chart import CHART, Document, case, changed, flags, render

helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed (extra test)")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="it is not installed (extra test)")

NAME = "voice-vita-audio-gateway"
INGRESS = {"enabled": True, "className": "nginx", "host": "voice.example.com", "tlsSecretName": "voice-tls"}
VALUES: Document = changed(
    case("cpu"), "gateway", {"enabled": True, "replicas": 2, "keysSecret": "voice-keys", "ingress": INGRESS}
)
OPEN = changed(changed(VALUES, "gateway.keysSecret", ""), "gateway.openAccess", True)
MUTUAL = changed(VALUES, "tls", {"secretName": "vita-tls", "clientCertificates": True})


@pytest.fixture(scope="module")
def chart() -> Iterator[Any]:
    with helm.Chart.load(CHART) as loaded:
        yield loaded


def pod_of(manifests: dict[tuple[str, str], Document]) -> Document:
    return manifests["Deployment", NAME]["spec"]["template"]["spec"]


def container_of(manifests: dict[tuple[str, str], Document]) -> Document:
    (container,) = pod_of(manifests)["containers"]
    return container


@pytest.mark.parametrize("values", [VALUES, OPEN, MUTUAL])
def test_lint_and_schemas(chart: Any, values: Document) -> None:
    report = helm.lint(CHART, values, strict=True)
    assert report["errors"] == []
    manifests = render(chart, values)
    assert {("Ingress", NAME), ("Service", NAME), ("NetworkPolicy", NAME)} < manifests.keys()
    for version in ("1.27", "1.37"):
        for (_, name), document in manifests.items():
            if name == NAME:
                kubernetes_validate.validate(document, version, strict=True)


def test_without_it_nothing_of_it_is_made(chart: Any) -> None:
    assert not [name for _, name in render(chart, case("cpu")) if "gateway" in name]
    assert ("Ingress", NAME) not in render(chart, changed(VALUES, "gateway.ingress.enabled", False))


@pytest.mark.parametrize("values", [VALUES, OPEN, MUTUAL])
def test_its_command_line_takes_its_arguments(chart: Any, values: Document) -> None:
    """All but the files, which are in secrets."""
    arguments = container_of(render(chart, values))["args"]
    files = ("--keys=", "--server-ca=", "--server-certificate=", "--server-key=")
    known = [argument for argument in arguments if not argument.startswith(files)]
    stop = ["--max-requests=0"]  # so that it does not start
    made = CliRunner().invoke(app, [*known, "--open-access", *stop])
    assert (made.exit_code, made.stderr) == (2, "error: max_requests: 0 is not valid: it is above 0\n")
    assert "--server-name=voice-vita-audio-headless:8001" in arguments
    assert ("Service", "voice-vita-audio-headless") in render(chart, values)
    assert ("--open-access" in arguments) != ("--keys=/keys/keys" in arguments)
    mounts = {mount["mountPath"] for mount in container_of(render(chart, values))["volumeMounts"]}
    for name, path in flags(arguments).items():
        if f"--{name}=" in files:
            assert path.rpartition("/")[0] in mounts


def test_without_keys_it_answers_to_its_own_names(chart: Any) -> None:
    names = [each.partition("=")[2] for each in container_of(render(chart, OPEN))["args"] if "--host-name" in each]
    service = [f"{NAME}{rest}" for rest in ("", ".prod", ".prod.svc", ".prod.svc.cluster.local")]
    assert names == [*service, "voice.example.com"]


def test_its_servers_may_be_named(chart: Any) -> None:
    manifests = render(chart, changed(VALUES, "gateway.servers", ["a:8001", "b:8001"]))
    assert [each for each in container_of(manifests)["args"] if "server" in each] == [
        "--server=a:8001",
        "--server=b:8001",
    ]


def test_it_is_closed(chart: Any) -> None:
    spec = pod_of(render(chart, VALUES))
    assert spec["securityContext"]["runAsNonRoot"]
    assert not spec["automountServiceAccountToken"]
    security = spec["containers"][0]["securityContext"]
    assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
    assert security["capabilities"] == {"drop": ["ALL"]}
    volumes = {volume["name"] for volume in spec["volumes"]}
    assert volumes == {mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
    (tls,) = [
        volume["secret"]
        for volume in pod_of(render(chart, changed(MUTUAL, "tls.clientCertificates", False)))["volumes"]
        if volume["name"] == "tls"
    ]
    assert [item["key"] for item in tls["items"]] == ["ca.crt"]  # not the servers' private key


def test_probes_drain_and_grace(chart: Any) -> None:
    manifests = render(chart, changed(VALUES, "gateway.drainTimeoutSeconds", 60))
    container = container_of(manifests)
    assert (
        container["livenessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/health/live"
    )
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert "time.sleep(10)" in container["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert flags(container["args"])["drain-timeout-s"] == "60"
    assert pod_of(manifests)["terminationGracePeriodSeconds"] == 10 + 60 + 15


def test_its_parts_find_each_other_and_the_servers_are_apart(chart: Any) -> None:
    manifests = render(chart, changed(VALUES, "networkPolicy.clients", []))
    gateway = manifests["Deployment", NAME]["spec"]["template"]["metadata"]["labels"].items()
    server = manifests["Deployment", "voice-vita-audio"]["spec"]["template"]["metadata"]["labels"].items()
    for (kind, name), document in manifests.items():
        if kind in ("Service", "NetworkPolicy", "PodDisruptionBudget"):
            selector = document["spec"].get("selector") or document["spec"]["podSelector"]
            chosen = selector.get("matchLabels", selector).items()
            assert (chosen <= gateway, chosen <= server) == ((True, False) if name == NAME else (False, True))
    (backend,) = manifests["Ingress", NAME]["spec"]["rules"][0]["http"]["paths"]
    assert backend["backend"]["service"] == {"name": NAME, "port": {"name": "http"}}
    (to_servers,) = [rule["to"] for rule in manifests["NetworkPolicy", NAME]["spec"]["egress"] if "to" in rule]
    assert to_servers[0]["podSelector"]["matchLabels"].items() <= server
    first, *_ = manifests["NetworkPolicy", "voice-vita-audio"]["spec"]["ingress"]
    assert first["from"][0]["podSelector"]["matchLabels"].items() <= gateway
