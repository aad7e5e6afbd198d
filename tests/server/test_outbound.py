"""Server, demo, training, load test and builder call no other machine: in a network of their own, all packets count."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from import_graph import ROOT
from packet_sniffer import run_in_namespace


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
    assert seen["local"] > 1000  # it did look
    assert "telemetry.example.com" in seen["control asked"]
    assert ["198.51.100.7", 443] in seen["control reached"]
    left = [path for path in (tmp_path / "home").rglob("*") if "Microsoft" in path.name]
    assert left == []  # ONNX Runtime would give the machine a number
