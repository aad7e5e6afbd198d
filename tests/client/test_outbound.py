"""The client talks to its server and to nothing else: every packet is seen, in a network of the test's own."""

from __future__ import annotations

import json
from pathlib import Path

from client_command import ENVIRONMENT, ROOT
from packet_sniffer import run_in_namespace


def test_no_packet_goes_anywhere_but_to_the_server() -> None:
    probe = Path(__file__).parents[1] / "helpers" / "client_outbound_probe.py"
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{probe.parent}"}
    done = run_in_namespace(probe, environment=environment, cwd=ROOT, timeout_s=240)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["others"] == []
    assert seen["server"] > 20  # it did look
    assert seen["control"] == [[17, "198.51.100.7", 53]]
