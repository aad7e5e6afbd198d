"""Server, demo, training, load test and builder call no other machine: in a network of their own, all packets count."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from import_graph import ROOT, python_files
from packet_sniffer import run_in_namespace

ROOMS = ("server", "serving", "client", "loadtest", "evaluation", "benchmarks", "training", "deploy", "examples")


def channels(file: Path) -> Iterator[ast.Call]:
    """The calls that open a gRPC channel."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("insecure_channel", "secure_channel")):
            yield node


def test_every_channel_says_whether_proxies_are_for_it() -> None:
    """gRPC asks the environment for a proxy unless an option says otherwise, also on the way to this machine."""
    found = {file: list(channels(file)) for file in python_files(*ROOMS)}
    assert sum(map(len, found.values())) >= 4
    silent = [
        f"{file.relative_to(ROOT)}:{call.lineno}"
        for file, calls in found.items()
        for call in calls
        if "options" not in {word.arg for word in call.keywords}
    ]
    assert silent == []


def test_nothing_asks_over_http_by_way_of_a_proxy() -> None:
    """`urllib.request` and `requests` take the proxy of the environment; `http.client` takes none."""
    words = ("urllib.request", "import requests", "urlopen")
    users = [str(file.relative_to(ROOT)) for file in python_files(*ROOMS) if any(w in file.read_text() for w in words)]
    assert users == []


@pytest.mark.server
@pytest.mark.timeout(900)  # on a busy machine; alone it takes a minute
def test_nothing_asks_for_another_machine(engines: Path, tmp_path: Path) -> None:
    probe = Path(__file__).parents[1] / "helpers" / "server_outbound_probe.py"
    path = os.pathsep.join(map(str, (ROOT, ROOT / "client", probe.parent)))
    environment = {**os.environ, "PYTHONPATH": path, "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = run_in_namespace(probe, str(tmp_path), str(engines), environment=environment, cwd=ROOT, timeout_s=880)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["asked"] == []
    assert seen["packets"] == []
    assert seen["local"] > 100  # it did look
    assert "telemetry.example.com" in seen["control asked"]
    assert ["198.51.100.7", 443] in seen["control reached"]
    left = [path for path in (tmp_path / "home").rglob("*") if "Microsoft" in path.name]
    assert left == []  # ONNX Runtime would give the machine a number
