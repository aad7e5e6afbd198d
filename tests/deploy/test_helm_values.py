"""Values of the chart: what its schema and its templates refuse, and the relations that streams live by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from helm_chart import CHART, Document, case, changed, flags, one, pod, render, server_of
from server.__main__ import parse_options

helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed (extra test)")

#: Seconds that the grace period leaves after the launcher's drain.
MARGIN_S = 15


@pytest.fixture(scope="module")
def chart() -> Iterator[Any]:
    with helm.Chart.load(CHART) as loaded:
        yield loaded


@settings(deadline=None, max_examples=30, phases=[Phase.generate])  # a chart takes too long to shrink with
@given(
    settle=st.integers(0, 600), longest=st.integers(1, 7200), exit_timeout=st.integers(0, 600), spare=st.integers(-5, 5)
)
def test_the_grace_period_covers_the_hook_and_the_drain(
    chart: Any, settle: int, longest: int, exit_timeout: int, spare: int
) -> None:
    values = changed(case("cpu"), "drain", {"settleSeconds": settle, "longestStreamSeconds": longest})
    values = changed(values, "server.exitTimeoutSeconds", exit_timeout)
    manifests = render(chart, values)
    hook = flags(server_of(manifests)["lifecycle"]["preStop"]["exec"]["command"])
    hook_s = int(hook["settle"]) + int(hook["limit"])
    options, _ = parse_options(server_of(manifests)["args"])
    grace_s = pod(manifests)["terminationGracePeriodSeconds"]
    assert hook_s >= longest
    assert grace_s == hook_s + options.exit_timeout_s + MARGIN_S
    assert one(manifests, "Deployment")["spec"]["progressDeadlineSeconds"] > grace_s

    override = changed(values, "drain.graceSeconds", grace_s + spare)
    if spare < 0:
        with pytest.raises(helm.HelmError, match=rf"drain.graceSeconds: {grace_s + spare} is below {grace_s}"):
            render(chart, override)
    else:
        assert pod(render(chart, override))["terminationGracePeriodSeconds"] == grace_s + spare


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("server.slots", 0),
        ("server.slots", -1),
        ("server.slots", "four"),
        ("server.slots", 1.5),
        ("server.queue", -1),
        ("server.exitTimeoutSeconds", -1),
        ("server.profile", "tpu"),
        ("server.extraArgs", ["--exit-timeout=600"]),
        ("server.extraArgs", ["--tls-cert=/x"]),
        ("server.extraArgs", ["device=cpu"]),
        ("slots", 4),
        ("server.slot", 4),
        ("drain.longestStreamSeconds", 0),
        ("drain.graceSeconds", "10m"),
        ("drain.graceSeconds", 0),
        ("ports.grpc", 80),
        ("ports.metrics", 65536),
        ("image.tag", "latest"),
        ("image.tag", ""),
        ("replicas", -1),
        ("volumes.shm", "0Gi"),
        ("volumes.shm", "2 GB"),
        ("gpu.count", -1),
        ("engines.existingClaim", "Not_A_Name"),
        ("engines.build.args", ["--out=/elsewhere"]),
        ("networkPolicy.clients", [{}]),
        ("networkPolicy.egress", [{}]),
        ("autoscaling.kind", "magic"),
        ("autoscaling.minReplicas", 0),
        ("autoscaling.keda.prometheus", "prometheus:9090"),
        ("autoscaling.hpa.cpuUtilization", 0),
        ("monitoring.serviceMonitor.interval", "often"),
        ("route.parentRefs", [{"namespace": "x"}]),
        ("gateway.port", 80),
        ("gateway.servers", ["voice"]),
        ("gateway.extraArgs", ["--server=a:1"]),
        ("gateway.image.tag", "latest"),
    ],
)
def test_the_schema_refuses(chart: Any, path: str, value: Any) -> None:
    values = changed(case("cpu"), path, value)
    with pytest.raises(helm.HelmError, match=path.split(".")[-1]):
        chart.validate_schema(values)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cpu", {"engines.existingClaim": ""}, "engines: none given"),
        ("gpu", {"engines.existingClaim": "x"}, "exclude each other"),
        ("gpu", {"engines.build.checkpointClaim": ""}, "engines.build.checkpointClaim is empty"),
        ("cpu", {"drain.graceSeconds": 30}, "drain.graceSeconds: 30 is below 385"),
        ("cpu", {"server.exitTimeoutSeconds": 300, "drain.graceSeconds": 385}, "385 is below 655"),
        ("gpu", {"gpu.count": 0}, "gpu.count: 0 with server.profile gpu"),
        ("cpu", {"gpu.count": 1}, "gpu.count: 1 with server.profile cpu"),
        ("cpu", {"ports.metrics": 8001}, "ports.metrics: 8001"),
        ("cpu", {"rollout.maxSurge": 0}, "both 0"),
        ("cpu", {"tls.clientCertificates": True}, "needs tls.secretName"),
        ("cpu", {"autoscaling.maxReplicas": 1}, "autoscaling.maxReplicas: 1 is below"),
        ("cpu", {"autoscaling.freePlaces": 16}, "autoscaling.freePlaces: 16 is not below the 16 places"),
        ("gpu-keda", {"autoscaling.keda.prometheus": ""}, "autoscaling.keda.prometheus is empty"),
        ("gpu-keda", {"monitoring.serviceMonitor.enabled": False}, "needs monitoring.serviceMonitor.enabled"),
        ("gpu-keda", {"route.parentRefs": []}, "route.parentRefs is empty"),
        ("cpu", {"gateway.enabled": True}, "gateway.keysSecret is empty"),
        ("cpu", {"gateway.enabled": True, "gateway.keysSecret": "k", "gateway.openAccess": True}, "excludes"),
        ("cpu", {"gateway": {"enabled": True, "keysSecret": "k", "ingress": {"enabled": True}}}, "host is empty"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(
    chart: Any, name: str, changes: dict[str, Any], message: str
) -> None:
    values = case(name)
    for path, value in changes.items():
        values = changed(values, path, value)
    with pytest.raises(helm.HelmError, match=message):
        render(chart, values)


def leaves(schema: Document, defaults: Document, prefix: str = "") -> Iterator[tuple[str, Any, Document]]:
    """(path, default, schema) of every value that an operator sets."""
    for name, each in schema["properties"].items():
        if name != "global":
            if "properties" in each:
                yield from leaves(each, defaults[name], f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", defaults[name], each


def values_table() -> str:
    """The table of the chart's README, from its schema and its defaults."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = [
        f"| `{path}` | `{json.dumps(default)}` | {each['description']} |"
        for path, default, each in leaves(schema, defaults)
    ]
    return "\n".join(["| value | default | meaning |", "|---|---|---|", *rows])


def test_defaults_and_schema_name_the_same_values_and_the_readme_lists_them() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())

    properties = {name: each for name, each in schema["properties"].items() if name != "global"}

    def compare(tree: Document, each: Document, where: str) -> None:
        assert tree.keys() == each.keys(), where
        for key, below in each.items():
            if "properties" in below:
                compare(tree[key], below["properties"], f"{where}.{key}")

    compare(defaults, properties, "values")
    table = values_table()
    assert table in (CHART / "README.md").read_text(), f"deploy/helm/vita-audio/README.md needs this table:\n{table}"
