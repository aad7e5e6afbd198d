"""Rules, alerts and dashboard of deploy/: checked by promtool, and asked of a Prometheus that scrapes a real server."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import yaml

from server.launch import TritonServer
from serving.metrics.table import METRICS
from triton_probe import metrics
from vita_client import Client, RequestRejected

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "vita_audio.json").read_text())

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus is not installed (Debian: apt-get install prometheus)",
)


def rules(file: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((RULES / file).read_text())["groups"] for rule in group["rules"]]


def panel_expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@needs_prometheus
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint-fatal", "recording.yml", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=("config", "rules", "alerts"),
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    made = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, timeout=240)
    assert made.returncode == 0, made.stdout + made.stderr


def test_every_expression_asks_for_series_that_exist() -> None:
    recorded = {rule["record"] for rule in rules("recording.yml")}
    expressions = [*panel_expressions(), *(rule["expr"] for rule in rules("recording.yml") + rules("alerts.yml"))]
    for expression in expressions:
        asked = set(re.findall(r"\bvita[_:][\w:]+", expression))
        unknown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} - recorded - METRICS.keys()
        assert not unknown, expression


def test_every_recorded_series_is_shown_or_watched() -> None:
    used = " ".join([*panel_expressions(), *(rule["expr"] for rule in rules("alerts.yml"))])
    assert [rule["record"] for rule in rules("recording.yml") if rule["record"] not in used] == []


def test_every_alert_says_what_to_do_and_is_rung_in_a_test() -> None:
    tests = (RULES / "alerts_test.yml").read_text()
    for rule in rules("alerts.yml"):
        assert rule["alert"] in tests
        assert rule["labels"]["severity"] in ("page", "warn")
        assert rule["annotations"].keys() == {"summary", "action"}


def test_dashboard_fits_its_provisioning() -> None:
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    panels = DASHBOARD["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"] for source in sources}
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in lines}
        assert not cells & taken, panel["title"]
        assert max(columns) < 24
        taken |= cells


class Prometheus:
    """A running Prometheus on loopback with the shipped rules."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/"

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._url}{path}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples that an expression has now."""
        return self.get("query", query=expression)["result"]

    def wait_for(self, expression: str, timeout_s: float = 120.0) -> list[dict[str, Any]]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if samples := self.query(expression):
                    return samples
            except OSError:  # it is starting
                pass
            time.sleep(0.3)
        raise AssertionError(f"{expression} had no value within {timeout_s} s")


@pytest.fixture
def prometheus(server: TritonServer, tmp_path: Path) -> Iterator[Prometheus]:
    """The shipped configuration with this server as its target, and a second instead of five or fifteen."""
    config = yaml.safe_load((RULES / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES / file) for file in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{server.options.metrics_port}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(20)


@needs_prometheus
@pytest.mark.server
def test_a_real_prometheus_scrapes_a_real_server_under_load(server: TritonServer, prometheus: Prometheus) -> None:
    prometheus.wait_for("vita_slots")
    before = metrics(server)
    speech = np.random.default_rng(3).normal(0, 0.1, 16_000).astype(np.float32)

    def ask(number: int) -> float:
        with Client(server.grpc_url) as client:
            fields: dict[str, Any] = {"audio": speech} if number % 2 else {"text": "Read this aloud.", "task": "tts"}
            reply = client.collect(**fields, mode="boost", max_tokens=120, seed=number, temperature=1.0, timeout_s=60)
        assert reply.metrics.ttfa_ms is not None
        return reply.metrics.ttfa_ms

    with ThreadPoolExecutor(2) as threads:
        asked = list(threads.map(ask, range(4)))  # makes the series appear
        prometheus.wait_for("vita_real_time_factor_count")
        asked += threads.map(ask, range(4, 10))  # makes them grow
    with Client(server.grpc_url) as client, pytest.raises(RequestRejected):
        client.collect("Hello", mode="1,12", timeout_s=30)
    prometheus.wait_for("vita:ttfa_ms:p95 > 0 and on () (vita:ended:rate1m > 0) and on () (vita:audio:rate1m > 0)")

    time.sleep(1.0)  # metrics are brought up to date five times a second
    after = metrics(server)

    def grown(name: str) -> float:
        """By how much all series of a name have grown."""
        return sum(value - before.get(key, 0.0) for key, value in after.items() if key.startswith(name + "{"))

    assert grown("vita_ttfa_ms_count") == grown("vita_real_time_factor_count") == len(asked)
    assert grown("vita_requests_refused_total") == 1
    assert grown("vita_ttfa_stage_ms_count") == 5 * 5 + 5 * 6  # speech has one stage more
    assert 0 < grown("vita_ttfa_ms_sum") / len(asked) < mean(asked)  # hops and network are the client's
    assert after["vita_kv_tokens"] == 0
    shown = {re.sub(r"_(bucket|sum|count)$", "", re.split(r"[{ ]", key)[0]) for key in after}
    assert shown == METRICS.keys()

    assert prometheus.get("targets")["activeTargets"][0]["health"] == "up"
    unhealthy = {
        rule["name"]: rule.get("lastError", "")
        for group in prometheus.get("rules")["groups"]
        for rule in group["rules"]
        if rule["health"] != "ok"
    }
    assert unhealthy == {}
    for expression in panel_expressions():
        assert prometheus.query(expression), f"{expression} shows nothing"
    # Whether it is fast enough is the machine's matter; whether it works is not.
    broken = (
        "VitaServerDown|VitaServerRestarted|VitaWorkerStalled|VitaCallsFailing|VitaModelsMissing|VitaStreamsStuck|"
        "VitaStreamsFailing|VitaServerFull|VitaDecoderFaults"
    )
    assert prometheus.query(f'ALERTS{{alertstate="firing", alertname=~"{broken}"}}') == []
