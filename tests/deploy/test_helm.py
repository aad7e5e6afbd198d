"""deploy/helm/vita-audio: lints, renders, fits the schema of every kind, and its parts find each other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from helm_chart import CASES, CHART, HELM, ROOT, case, changed, flags, one, pod, render, server_of
from server.__main__ import parse_options
from server.checks import check_numbers, check_remote
from server.options import ServerOptions
from serving.metrics.table import METRICS

helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed (extra test)")
jsonschema = pytest.importorskip("jsonschema", reason="kubernetes-validate is not installed (extra test)")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="it is not installed (extra test)")

PROMETHEUS = HELM.parent / "prometheus"
KUBERNETES = ("1.27", "1.37")


@pytest.fixture(scope="module")
def chart() -> Iterator[Any]:
    with helm.Chart.load(CHART) as loaded:
        yield loaded


def options_of(*command: str) -> str:
    """What ``python -m command --help`` prints, wide enough that no option is cut."""
    environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"}
    made = subprocess.run(
        [sys.executable, "-m", *command, "--help"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert made.returncode == 0, made.stderr
    return made.stdout


# --- it is a chart, and what it makes fits Kubernetes


@pytest.mark.parametrize("name", CASES)
def test_lint(name: str) -> None:
    report = helm.lint(CHART, case(name), strict=True)
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", CASES)
def test_every_manifest_fits_its_schema(chart: Any, name: str, version: str) -> None:
    for (kind, _), document in render(chart, case(name)).items():
        custom = HELM / "schemas" / f"{kind.lower()}.yaml"
        if custom.exists():
            jsonschema.Draft202012Validator(yaml.safe_load(custom.read_text())).validate(document["spec"])
        else:
            kubernetes_validate.validate(document, version, strict=True)


def test_the_cases_make_every_kind_and_every_schema_is_used(chart: Any) -> None:
    kinds = {kind for name in CASES for kind, _ in render(chart, case(name))}
    assert kinds == set(
        """BackendTrafficPolicy ConfigMap Deployment GRPCRoute HorizontalPodAutoscaler NetworkPolicy PodDisruptionBudget
        PrometheusRule ScaledObject Service ServiceMonitor""".split()
    )
    assert {path.stem for path in (HELM / "schemas").glob("*.yaml")} < {kind.lower() for kind in kinds}


def test_the_validators_refuse_what_is_wrong(chart: Any) -> None:
    manifests = render(chart, case("gpu-keda"))
    deployment = changed(one(manifests, "Deployment"), "spec.template.spec.terminationGracePeriodSeconds", "long")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)
    schema = yaml.safe_load((HELM / "schemas" / "scaledobject.yaml").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed(one(manifests, "ScaledObject")["spec"], "minReplicas", 1), schema)


@pytest.mark.parametrize("release", ["voice", "vita-audio", "my-vita-audio", "a" * 53])
def test_names_fit_and_belong_together(chart: Any, release: str) -> None:
    manifests = render(chart, case("gpu-keda"), release)
    assert all(len(name) <= 63 for _, name in manifests)
    deployment = one(manifests, "Deployment")
    name = deployment["metadata"]["name"]
    assert one(manifests, "ScaledObject")["spec"]["scaleTargetRef"]["name"] == name
    assert ("Service", one(manifests, "GRPCRoute")["spec"]["rules"][0]["backendRefs"][0]["name"]) in manifests
    assert one(manifests, "BackendTrafficPolicy")["spec"]["targetRefs"][0]["name"] == name
    volumes = {volume["name"]: volume for volume in pod(manifests)["volumes"]}
    assert ("ConfigMap", volumes["hooks"]["configMap"]["name"]) in manifests
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        for document in (document for (each, _), document in manifests.items() if each == kind):
            spec = document["spec"]
            selector = spec.get("selector") or spec["podSelector"]
            assert selector.get("matchLabels", selector).items() <= labels, kind


@pytest.mark.parametrize("name", CASES)
def test_every_mount_has_its_volume_and_every_volume_is_mounted(chart: Any, name: str) -> None:
    spec = pod(render(chart, case(name)))
    volumes = {volume["name"] for volume in spec["volumes"]}
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    assert {mount["name"] for container in containers for mount in container["volumeMounts"]} == volumes


# --- closed by default


@pytest.mark.parametrize("name", CASES)
def test_pods_are_closed(chart: Any, name: str) -> None:
    manifests = render(chart, case(name))
    spec = pod(manifests)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {"/tmp", "/dev/shm", "/engines"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    assert next(m for m in server_of(manifests)["volumeMounts"] if m["name"] == "engines")["readOnly"]
    shm = next(volume for volume in spec["volumes"] if volume["name"] == "shm")["emptyDir"]
    assert shm["medium"] == "Memory"
    assert shm["sizeLimit"]
    policy = one(manifests, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    assert all(rule["from"] and rule["ports"] for rule in policy["ingress"])


def test_without_peers_the_network_policy_lets_no_one_in(chart: Any) -> None:
    values = changed(changed(case("cpu"), "networkPolicy.clients", []), "networkPolicy.monitoring", [])
    assert not one(render(chart, values), "NetworkPolicy")["spec"]["ingress"]


@pytest.mark.parametrize("name", CASES)
def test_gpus_are_asked_for_where_the_profile_needs_them(chart: Any, name: str) -> None:
    spec = pod(render(chart, case(name)))
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        assert container["resources"]["limits"].get("nvidia.com/gpu") == (None if name == "cpu" else "1")
        assert container["resources"]["limits"]["memory"]


# --- the server understands it, and balancers and probes find it


@pytest.mark.parametrize("name", CASES)
def test_the_server_understands_its_arguments(chart: Any, name: str) -> None:
    values = chart.merge_values(case(name))
    options, log_file = parse_options(server_of(render(chart, case(name)))["args"])
    check_numbers(options)
    check_remote(options)
    assert (options.profile, options.slots, options.queue, options.exit_timeout_s) == (
        values["server"]["profile"],
        values["server"]["slots"],
        values["server"]["queue"],
        values["server"]["exitTimeoutSeconds"],
    )
    assert str(log_file) == "/var/log/vita/triton.log"
    assert (options.tls is not None) == bool(values["tls"]["secretName"])


def test_the_builder_understands_its_arguments(chart: Any) -> None:
    (container,) = pod(render(chart, case("gpu")))["initContainers"]
    *command, module = container["command"][:3]
    assert (command, module) == (["python3", "-m"], "build_engines")
    shown = options_of(module)
    assert all(f"--{flag}" in shown for flag in flags(container["command"]))


@pytest.mark.parametrize("ports", [(8001, 8002), (9001, 9002)])
def test_one_port_for_server_probes_services_and_route(chart: Any, ports: tuple[int, int]) -> None:
    grpc, metrics = ports
    values = changed(case("gpu-keda"), "ports", {"grpc": grpc, "metrics": metrics})
    manifests = render(chart, values)
    server = server_of(manifests)
    options, _ = parse_options(server["args"])
    named = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert (options.grpc_port, options.metrics_port) == ports == (named["grpc"], named["metrics"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["grpc"] == {"port": grpc}
    for (kind, name), document in manifests.items():
        if kind == "Service":
            (port,) = document["spec"]["ports"]
            assert port["targetPort"] in named
            assert port["port"] == (metrics if name.endswith("-metrics") else grpc)
    assert one(manifests, "GRPCRoute")["spec"]["rules"][0]["backendRefs"][0]["port"] == grpc
    assert flags(server["lifecycle"]["preStop"]["exec"]["command"])["metrics-port"] == str(metrics)
    allowed = {port["port"] for rule in one(manifests, "NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]}
    assert allowed == named.keys()


@pytest.mark.parametrize("mutual", [False, True])
def test_with_tls_the_client_asks_since_kubernetes_cannot(chart: Any, mutual: bool) -> None:
    server = server_of(render(chart, changed(case("gpu"), "tls.clientCertificates", mutual)))
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = server[probe]["exec"]["command"]
        assert command[:4] == ["python3", "-m", "vita_client", "health"]
        assert {"ca"} | ({"cert", "key"} if mutual else set()) == flags(command).keys() - {"url"}
    shown = options_of("vita_client", "health")
    assert all(f"--{flag}" in shown for flag in flags(command))
    assert ("--tls-ca=/tls/ca.crt" in server["args"]) == mutual


@pytest.mark.parametrize("name", CASES)
def test_probes_wait_longer_than_the_launcher_and_a_recovery(chart: Any, name: str) -> None:
    server = server_of(render(chart, case(name)))

    def patience_s(probe: str) -> float:
        return server[probe]["periodSeconds"] * server[probe]["failureThreshold"]

    limit_s = ServerOptions(profile=case(name)["server"]["profile"]).start_limit_s
    assert limit_s < patience_s("startupProbe") <= limit_s + 120
    assert patience_s("livenessProbe") >= 60
    assert patience_s("readinessProbe") <= 10
    deadline_s = one(render(chart, case(name)), "Deployment")["spec"]["progressDeadlineSeconds"]
    assert deadline_s > patience_s("startupProbe")


def test_clients_reach_the_methods_that_the_other_balancer_allows(chart: Any) -> None:
    rule = one(render(chart, case("gpu-keda")), "GRPCRoute")["spec"]["rules"][0]
    allowed = {f"/{match['method']['service']}/{match['method']['method']}" for match in rule["matches"]}
    haproxy = (HELM.parent / "haproxy" / "haproxy.cfg").read_text()
    assert allowed == set(re.findall(r"(?<= )/[\w.]+/\w+", "\n".join(re.findall("acl service.*", haproxy))))
    assert rule["filters"][0]["requestHeaderModifier"]["remove"] == re.findall(r"del-header (\S+)", haproxy)


def test_envoy_does_not_end_a_stream(chart: Any) -> None:
    policy = one(render(chart, case("gpu-keda")), "BackendTrafficPolicy")["spec"]
    assert policy["timeout"]["http"] == {"requestTimeout": "0s", "maxStreamDuration": "0s"}
    without = render(chart, changed(case("gpu-keda"), "route.envoyPolicy", False))
    assert "BackendTrafficPolicy" not in {kind for kind, _ in without}


def test_headless_service_shows_servers_that_are_ready_and_prometheus_sees_all(chart: Any) -> None:
    manifests = render(chart, case("cpu"))
    headless = manifests["Service", "voice-vita-audio-headless"]["spec"]
    metrics = manifests["Service", "voice-vita-audio-metrics"]
    assert headless["clusterIP"] == metrics["spec"]["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in headless
    assert metrics["spec"]["publishNotReadyAddresses"]
    monitor = one(manifests, "ServiceMonitor")["spec"]
    chosen = [
        name
        for (kind, name), document in manifests.items()
        if kind == "Service" and monitor["selector"]["matchLabels"].items() <= document["metadata"]["labels"].items()
    ]
    assert chosen == ["voice-vita-audio-metrics"]
    assert metrics["metadata"]["labels"][monitor["jobLabel"]] == "vita-audio"  # the job that the alerts select
    assert 'job="vita-audio"' in (PROMETHEUS / "alerts.yml").read_text()


# --- more servers, fewer servers


def test_prometheus_rules_are_those_of_the_repository(chart: Any) -> None:
    groups = one(render(chart, case("cpu")), "PrometheusRule")["spec"]["groups"]
    files = [yaml.safe_load((PROMETHEUS / file).read_text())["groups"] for file in ("recording.yml", "alerts.yml")]
    assert groups == [group for file in files for group in file]


@settings(deadline=None, max_examples=30, phases=[Phase.generate])  # a chart takes too long to shrink with
@given(st.lists(st.integers(0, 128), min_size=1, max_size=8), st.integers(0, 127))
def test_keda_wants_servers_so_that_each_keeps_places_free(chart: Any, taken: list[int], free: int) -> None:
    trigger = one(render(chart, changed(case("gpu-keda"), "autoscaling.freePlaces", free)), "ScaledObject")["spec"][
        "triggers"
    ][0]
    assert (trigger["metricType"], trigger["metadata"]["threshold"]) == ("AverageValue", "1")
    query = trigger["metadata"]["query"]
    selected = '{namespace="prod", service="voice-vita-audio-metrics"}'
    names = re.findall(r"vita_\w+(?=\{)", query)
    assert names == ["vita_places_taken", "vita_slots", "vita_queue_limit"]
    assert set(names) <= METRICS.keys()
    assert query.count(selected) == len(names)
    # The query in Python: its own arithmetic, with the values of these servers.
    places = {"vita_places_taken": taken, "vita_slots": [64] * len(taken), "vita_queue_limit": [64] * len(taken)}
    python = query.replace(selected, "")
    python = re.sub(r"sum\((\w+)\)", lambda found: str(sum(places[found[1]])), python)
    both = [slots + queue for slots, queue in zip(places["vita_slots"], places["vita_queue_limit"], strict=True)]
    python = python.replace("avg(vita_slots + vita_queue_limit)", str(sum(both) / len(both)))
    assert re.fullmatch(r"[\d\s./()-]+", python)
    wanted = eval(python)
    assert wanted * (128 - free) == pytest.approx(sum(taken))


def test_scaling_is_keda_or_hpa_and_then_the_chart_sets_no_replicas(chart: Any) -> None:
    for name, kind in (("gpu-keda", "ScaledObject"), ("cpu", "HorizontalPodAutoscaler")):
        manifests = render(chart, case(name))
        assert "replicas" not in one(manifests, "Deployment")["spec"]
        scalers = {"ScaledObject", "HorizontalPodAutoscaler"} & {each for each, _ in manifests}
        assert scalers == {kind}
    assert one(render(chart, case("gpu")), "Deployment")["spec"]["replicas"] == 1


def test_hpa_follows_places_or_the_cpu(chart: Any) -> None:
    (metric,) = one(render(chart, case("cpu")), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in METRICS
    assert metric["pods"]["target"]["averageValue"] == "12"  # 8 slots, a queue of 8, 4 places free
    values = changed(case("cpu"), "autoscaling.hpa.cpuUtilization", 60)
    (metric,) = one(render(chart, values), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["resource"]["target"]["averageUtilization"] == 60


def test_a_package_holds_the_rules_and_the_hook(chart: Any, tmp_path: Path) -> None:
    with helm.Chart.load(helm.package(CHART, destination=tmp_path)) as packed:
        assert render(packed, case("cpu")) == render(chart, case("cpu"))


def test_every_case_is_checked() -> None:
    assert sorted(CASES) == sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
