"""The chart's preStop hook: waits for running streams, not for a server that is gone, and not for ever."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from helm_chart import CHART, ROOT, case, flags, one, render, server_of


class MetricsPort:
    """A metrics port whose number of streams follows a list, the last one for good."""

    def __init__(self, streams: list[int]) -> None:
        waiting = list(streams)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                live = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                self.send_response(200)
                self.end_headers()
                series = [f'vita_streams{{stage="prompt"}} {live}', f'vita_streams{{stage="speech_lm"}} {live}']
                self.wfile.write("\n".join([*series, "nv_gpu 1"]).encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hook's functions, polling fast."""
    namespace: dict[str, Any] = {"__name__": "drain"}
    exec(compile((CHART / "files" / "drain.py").read_text(), "drain.py", "exec"), namespace)
    namespace["POLL_S"] = 0.02

    def run(*arguments: object) -> float:
        """Seconds that it took."""
        monkeypatch.setattr(sys, "argv", ["drain.py", *map(str, arguments)])
        begin = time.monotonic()
        namespace["main"]()
        return time.monotonic() - begin

    return run


@pytest.mark.parametrize(
    ("streams", "limit_s", "least_s", "most_s"),
    [
        ([0], 60, 0.03, 10),  # idle: at once
        ([3, 2, 0, 1, 0, 0], 60, 0.1, 10),  # a moment between two streams is not the end
        ([1], 0.4, 0.4, 10),  # a stream that does not end: until the limit
    ],
    ids=("idle", "ending", "endless"),
)
def test_the_hook_waits_for_streams(
    hook: Any, streams: list[int], limit_s: float, least_s: float, most_s: float
) -> None:
    port = MetricsPort(streams)
    try:
        assert least_s <= hook("--metrics-port", port.port, "--settle", 0, "--limit", limit_s) <= most_s
    finally:
        port.close()


def test_the_hook_settles_first_and_ends_when_the_server_is_gone(hook: Any) -> None:
    port = MetricsPort([1])
    port.close()
    assert 0.3 <= hook("--metrics-port", port.port, "--settle", 0.3, "--limit", 60) <= 10


def test_the_hook_runs_as_the_pod_runs_it(tmp_path: Path) -> None:
    """From a folder of its own, with the project installed; here there is no server, so it ends."""
    shutil.copy(CHART / "files" / "drain.py", tmp_path)
    port = MetricsPort([1])
    port.close()
    command = [sys.executable, "drain.py", f"--metrics-port={port.port}", "--settle=0", "--limit=60"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # as an editable install has it
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50)
    assert (made.returncode, made.stderr) == (0, "")


def test_the_hook_of_the_chart_is_the_file_and_its_flags_are_known(hook: Any) -> None:
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed (extra test)")
    with helm.Chart.load(CHART) as chart:
        manifests = render(chart, case("cpu"))
    source = (CHART / "files" / "drain.py").read_text()
    assert one(manifests, "ConfigMap")["data"]["drain.py"].strip() == source.strip()
    command = server_of(manifests)["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:2] == ["python3", "/hooks/drain.py"]
    assert [f"--{flag}" for flag in flags(command)] == re.findall(r'add_argument\("(--[\w-]+)"', source)
    with pytest.raises(SystemExit):
        hook("--limit", "soon")
