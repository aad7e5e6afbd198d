"""The client talks to its server and to nothing else: every packet is seen, in a network of the test's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from client_command import ENVIRONMENT, ROOT

#: In a network namespace whose only device is the loopback one, every address leads to it: no attempt goes unseen.
SCRIPT = """
ip link set lo up && ip route add local default dev lo || exit 77
ip -6 route add local default dev lo
exec "$0" "$1"
"""


@pytest.mark.skipif(shutil.which("unshare") is None or shutil.which("ip") is None, reason="needs unshare and ip")
def test_no_packet_goes_anywhere_but_to_the_server() -> None:
    probe = Path(__file__).parents[1] / "helpers" / "client_outbound_probe.py"
    command = ["unshare", "--user", "--map-root-user", "--net", "bash", "-c", SCRIPT, sys.executable, str(probe)]
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{probe.parent}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=240)
    if "unshare:" in done.stderr or done.returncode == 77:
        pytest.skip(f"no network namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["others"] == []
    assert seen["server"] > 20  # it did look
    assert seen["control"] == [[17, "198.51.100.7", 53]]
