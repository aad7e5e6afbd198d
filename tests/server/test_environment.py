"""Real servers in environments that are not as one would wish: names of folders, proxies, IPv6, processes that die."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from import_graph import ROOT
from loadtest.manifest import _server
from server.errors import CannotStart
from server.launch import TritonServer
from server.locate import find_triton
from server.options import ServerOptions
from server.processes import model_processes
from vita_client import Client

pytestmark = pytest.mark.server

#: Means something to a shell, to a list of paths, to a file of lines, or is not ASCII.
NAME = "my dir'$x;\"ü&\n`:"
#: A proxy that refuses everything.
PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")


def copy(source: Path, target: Path) -> None:
    """By hard links where that is possible: Triton is large."""

    def link(old: str, new: str) -> None:
        try:
            os.link(old, new)
        except OSError:
            shutil.copy2(old, new)

    shutil.copytree(source, target, copy_function=link, ignore=shutil.ignore_patterns("__pycache__"))


def test_folders_may_have_any_name(engines: Path, tmp_path: Path) -> None:
    """Checkout, TMPDIR, engines, log, and the installed packages with Triton itself."""
    folder = tmp_path / NAME
    for room in ("server", "serving", "vita_audio", "model_repository"):
        copy(ROOT / room, folder / "checkout" / room)
    copy(engines, folder / "engines")
    packages = folder / "site-packages"
    triton = find_triton()
    if "pytriton" in triton.origin:
        installed = triton.binary.parents[3]
        for name in ("pytriton", "nvidia_pytriton.libs"):
            copy(installed / name, packages / name)
    (folder / "tmp").mkdir()
    files = ["--engines", str(folder / "engines"), "--log-file", str(folder / "log")]
    server = subprocess.Popen(
        [sys.executable, "-m", "server", *files, "--grpc-port", "0", "--metrics-port", "0"],
        cwd=folder / "checkout",
        env={**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(packages)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        address = re.search(r"ready after .* gRPC on (127\.0\.0\.1:\d+),", line)
        assert address, line
        assert r"ü&\n`:/log; Ctrl-C stops" in line
        with Client(address[1]) as client:
            assert client.collect(audio=ROOT / "examples" / "question.wav", max_tokens=30).tokens
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.communicate()


def test_proxies_are_not_for_this_machine(engines: Path, tmp_path: Path) -> None:
    """Start, readiness, a client's streams, and the drain, which reads the metrics."""
    environment = {name: value for name, value in os.environ.items() if "no_proxy" not in name.lower()}
    done = subprocess.run(
        [sys.executable, "examples/demo.py", "--engines", str(engines), "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment | PROXIES,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "speech.wav").stat().st_size > 1000


def test_a_load_test_asks_the_server_itself_what_it_is(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PROXIES.items():
        monkeypatch.setenv(name, value)
    assert _server(server.grpc_url).get("name") == "triton", _server(server.grpc_url)


@pytest.mark.parametrize(
    ("host", "metrics_host", "url"),
    [("::1", "::1", r"\[::1\]:\d+"), ("localhost", "localhost", r"localhost:\d+"), ("::", "::1", r"\[::\]:\d+")],
)
def test_ipv6_and_names(host: str, metrics_host: str, url: str, engines: Path) -> None:
    ports = {"grpc_port": 0, "metrics_port": 0, "allow_remote": host == "::"}
    options = ServerOptions(engines, host=host, metrics_host=metrics_host, **ports)
    with TritonServer(options) as server:
        assert re.fullmatch(url, server.grpc_url)
        assert server.live_streams() == 0
        for address in (server.grpc_url, *([f"127.0.0.1:{server.options.grpc_port}"] if host == "::" else [])):
            with Client(address) as client:
                assert client.collect("one", task="tts", max_tokens=10).tokens


def start_and_fail(server: TritonServer) -> str:
    """The reason of a start that must fail long before the limit; nothing of it is left."""
    ours = f"vita_audio_{os.getpid()}_*"
    before = set(Path("/dev/shm").glob(ours))  # another test's server may run
    with pytest.raises(CannotStart) as failed:
        server.start()
    assert set(Path("/dev/shm").glob(ours)) <= before
    return str(failed.value)


def test_a_model_process_that_is_killed_while_it_loads(engines: Path, tmp_path: Path) -> None:
    server = TritonServer(ServerOptions(engines, grpc_port=0, metrics_port=0, start_timeout_s=1000), tmp_path / "log")

    def kill_speech_lm() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            found = (
                [pid for pid, model in model_processes(server.pid).items() if model == "speech_lm"]
                if server.running
                else []
            )
            if found:
                return os.kill(found[0], signal.SIGKILL)
            time.sleep(0.005)

    killer = threading.Thread(target=kill_speech_lm)
    killer.start()
    reason = start_and_fail(server)
    killer.join()
    assert re.match(
        r"(the process of model speech_lm|a model process) ended( by SIGKILL \(out of memory\?\))? while", reason
    )


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (
            "import no_such_module",
            "model speech_lm did not load: Internal: ModuleNotFoundError: No module named 'no_such_m",
        ),
        (
            "import os, sys; print('last words', file=sys.stderr, flush=True); os._exit(3)",
            "the process of model speech_lm ended while it loaded: last words (log: ",
        ),
    ],
)
def test_a_model_process_that_ends_while_it_loads(program: str, reason: str, engines: Path, tmp_path: Path) -> None:
    copy(ROOT / "model_repository", tmp_path / "models")
    model = tmp_path / "models" / "speech_lm" / "1" / "model.py"
    model.unlink()  # it is a hard link
    model.write_text(program)
    options = ServerOptions(engines, repository=tmp_path / "models", grpc_port=0, metrics_port=0, start_timeout_s=1000)
    # Where it ends before its log is read, the launcher says so first.
    told = start_and_fail(TritonServer(options, tmp_path / "log")).removeprefix("Triton ended while it started: ")
    assert told.startswith(reason)


def test_a_stub_that_lacks_a_library(engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends before it has a model; Triton would wait for it for minutes."""
    found = find_triton()
    if "pytriton" not in found.origin:
        pytest.skip("the stub of a container finds its libraries anywhere")
    shutil.copy(found.stub, tmp_path / "stub")  # its libraries are where it was
    moved = replace(found, stub=tmp_path / "stub", library_folders=())
    monkeypatch.setattr("server.launch.find_triton", lambda: moved)
    server = TritonServer(ServerOptions(engines, grpc_port=0, metrics_port=0, start_timeout_s=1000), tmp_path / "log")
    reason = start_and_fail(server)
    which = r"(a model process|the process of model \w+)"  # the name, if it lived long enough to be seen
    assert re.match(which + r" ended while it loaded: .*: error while loading shared libraries: \S+: cannot", reason)


def test_engines_that_are_cut_off_after_the_check(
    engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(engines, tmp_path / "engines")

    def cut() -> None:
        (tmp_path / "engines" / "vocoder.onnx").write_bytes(b"x" * 100)

    monkeypatch.setattr("server.launch.sweep", cut)
    options = ServerOptions(tmp_path / "engines", grpc_port=0, metrics_port=0, start_timeout_s=1000)
    reason = start_and_fail(TritonServer(options, tmp_path / "log"))
    assert re.match(r"model audio_decoder did not load: .*vocoder\.onnx: ONNX Runtime cannot load it", reason)
