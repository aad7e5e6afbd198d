"""`python -m server` in the foreground: drains on Ctrl-C, takes its children with it, fails in one line."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from foreground import all_gone, foreground
from server import launch, remains
from server.launch import TritonServer
from server.options import ServerOptions
from server.processes import model_processes
from triton_probe import LONG
from vita_client import Client, StreamBroken
from waiting import until

pytestmark = pytest.mark.server


def test_ctrl_c_lets_a_running_stream_end_and_then_exits(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path) as server, Client(server.url()) as client:
        stream = client.stream(**LONG | {"max_tokens": 200})
        next(stream)
        family = server.family()
        server.process.send_signal(signal.SIGINT)
        reply = stream.collect()
        assert reply.status is not None
        assert reply.status.state == "done"
        assert server.process.wait(20) == 0
        assert server.line() == "vita-audio server: draining, at most 30 s; once more stops now"
        assert server.line() == "vita-audio server: stopped"
        assert all_gone(family, 2)


def test_a_terminal_that_closes_lets_running_streams_end(engines: Path, tmp_path: Path) -> None:
    """It sends SIGHUP more than once, and nothing can be written to it any more."""
    with foreground(engines, tmp_path) as server, Client(server.url()) as client:
        stream = client.stream(**LONG | {"max_tokens": 200})
        next(stream)
        assert server.process.stderr is not None
        server.process.stderr.close()
        for _ in range(3):
            server.process.send_signal(signal.SIGHUP)
            time.sleep(0.01)
        reply = stream.collect()
        assert reply.status is not None
        assert reply.status.state == "done"
        assert server.process.wait(20) == 0


def test_a_server_whose_terminal_is_gone_is_started_again(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path) as server, Client(server.url()) as client:
        assert server.process.stderr is not None
        server.process.stderr.close()
        before = set(model_processes(server.process.pid))
        os.kill(min(before), signal.SIGKILL)
        until(lambda: (now := set(model_processes(server.process.pid))) and not now & before)
        client.wait_ready(30)
        assert client.collect("Hello.", task="tts", max_tokens=8).tokens


def test_an_idle_server_exits_long_before_its_exit_timeout(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path) as server:
        server.url()
        server.process.terminate()
        assert server.process.wait(15) == 0


def test_a_second_ctrl_c_does_not_wait_for_streams(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path) as server, Client(server.url()) as client:
        stream = client.stream(**LONG)
        next(stream)
        server.process.send_signal(signal.SIGINT)
        server.line()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(15) == 1
        with pytest.raises(StreamBroken):
            stream.collect()


def test_a_taken_port_is_one_line_and_status_1(engines: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with foreground(engines, tmp_path, "--grpc-port", str(port)) as server:
            assert server.process.wait(20) == 1
            assert server.line().startswith(f"vita-audio server: cannot start: --grpc-port: port {port} of 127.0.0.1")
            assert server.line() == ""


def test_remote_listening_is_refused_and_with_the_flag_warned_of(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path, "--host", "0.0.0.0") as server:
        assert server.process.wait(20) == 1
        assert "--allow-remote" in server.line()
    with foreground(engines, tmp_path, "--host", "0.0.0.0", "--allow-remote") as server:
        assert server.line().startswith("vita-audio server: WARNING: 0.0.0.0 is reachable from other machines.")
        assert server.url().startswith("0.0.0.0:")


def test_a_model_that_does_not_load_is_named(engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that pass the check and break afterwards: the launcher reports the model's own words in one line."""
    from server import launch
    from server.errors import CannotStart

    def vanish(options: ServerOptions) -> None:
        pass

    monkeypatch.setattr(launch, "check_options", vanish)
    server = TritonServer(ServerOptions(engines=tmp_path, grpc_port=0, metrics_port=0), tmp_path / "log")
    before = threading.active_count()
    with pytest.raises(CannotStart) as failed:
        server.start()
    text = str(failed.value)
    assert re.search(r"models? [a-z_, ]*\bspeech_lm\b[a-z_, ]* did not load: ", text)
    assert "manifest.json" in text
    assert "\n" not in text
    assert not server.running
    assert threading.active_count() <= before


def test_the_empty_folder_of_environments_is_gone_once_the_server_is_ready(
    engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def new_folders(until_s: float) -> list[Path]:
        found = {path: path.lstat().st_ctime for path in remains.ENVIRONMENTS.glob("python_env_*") if path.exists()}
        return [path for path, made_s in found.items() if begin_s <= made_s < until_s]

    def watched(since_s: float) -> None:
        looks.append((time.time(), len(new_folders(time.time()))))
        remains.remove_environments(since_s)

    begin_s, looks = time.time(), list[tuple[float, int]]()
    monkeypatch.setattr(launch, "remove_environments", watched)
    with TritonServer(ServerOptions(engines=engines, grpc_port=0, metrics_port=0)):
        ((looked_s, before),) = looks
        assert before, "this Triton makes no such folder: remove_environments has no use any more"
        assert not new_folders(looked_s - remains.FILE_TIME_S)
