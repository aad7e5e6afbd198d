"""`python -m server` replaces a Triton of which a part died, at most so often in a row, and ends on a signal."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from foreground import Foreground, all_gone, foreground
from server.metrics import read_metrics
from server.processes import descendants, model_processes, parent
from vita_client import Client, ServerUnavailable

pytestmark = pytest.mark.server

#: A stream of many seconds: nearly every token is as likely as the one that would end it.
LONG: dict[str, Any] = {"text": "hello " * 100, "task": "tts", "mode": "vanilla", "max_tokens": 1024}
LONG |= {"temperature": 2.0, "top_k": 0, "repetition_penalty": 1.0, "seed": 1, "timeout_s": 120}
MODELS = ("prompt", "speech_lm", "audio_decoder", "speech_tokenizer")


def process_of(server: Foreground, part: str) -> int:
    """A process id of tritonserver or of a model."""
    found = {name: pid for pid, name in model_processes(server.process.pid).items()}
    for pid in server.family():
        if Path(f"/proc/{pid}/comm").read_text().strip() == "tritonserver":
            found |= {"tritonserver": pid, "guard": parent(pid)}
    return found[part]


def answers(url: str) -> bool:
    with Client(url) as client:
        return client.collect("Hi there.", max_tokens=8, timeout_s=60).status.state == "done"


@pytest.mark.parametrize("part", [*MODELS, "tritonserver"])
def test_a_part_that_dies_breaks_streams_at_once_and_the_server_comes_back(
    engines: Path, tmp_path: Path, part: str
) -> None:
    with foreground(engines, tmp_path) as server:
        url = server.url()
        with Client(url) as client:
            streams = [client.stream(**LONG) for _ in range(4)]  # together they take too long to end by themselves
            for stream in streams:
                next(stream)
            before = descendants(process_of(server, "guard"))
            os.kill(process_of(server, part), signal.SIGKILL)
            for stream in streams:
                with pytest.raises(ServerUnavailable):
                    stream.collect()
        assert re.search(rf"{part} has ended( \(status -9\))?: restarting; see {server.log}", line := server.line()), (
            line
        )
        assert server.url() == url
        assert all_gone(before, 5)
        assert answers(url)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0


def test_a_short_stop_does_no_harm_and_a_long_one_restarts_the_server(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path) as server:
        url = server.url()
        with Client(url) as client:
            stream = client.stream(**LONG)
            next(stream)
            stopped = process_of(server, "speech_lm")
            os.kill(stopped, signal.SIGSTOP)
            time.sleep(0.7)
            os.kill(stopped, signal.SIGCONT)
            next(stream)
            os.kill(stopped, signal.SIGSTOP)
            asked = time.monotonic()
            with pytest.raises(ServerUnavailable):
                stream.collect()
            assert time.monotonic() - asked < 8  # 10 s would be the limit of a thread that hangs
        assert "a process of speech_lm is stopped: restarting" in server.line()
        assert server.url() == url
        assert answers(url)


@pytest.mark.parametrize("part", ["tritonserver", "guard"])
def test_any_process_that_is_stopped_is_replaced(engines: Path, tmp_path: Path, part: str) -> None:
    with foreground(engines, tmp_path) as server:
        url = server.url()
        before = descendants(process_of(server, "guard"))
        os.kill(process_of(server, part), signal.SIGSTOP)
        assert f"a process of {part} is stopped: restarting" in server.line()
        assert server.url() == url
        assert all_gone(before, 5)
        assert answers(url)


def test_a_launcher_that_was_stopped_itself_goes_on(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path, "--stall-timeout", "2") as server:
        url = server.url()
        for pid in (family := server.family()):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(4)
        for pid in family:
            os.kill(pid, signal.SIGCONT)
        assert answers(url)
        assert server.family() == family


def test_the_restarts_are_counted_and_places_start_at_none(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path) as server:
        url, port = server.url(), server.metrics_port
        assert read_metrics("127.0.0.1", port)["vita_restarts"] == 0
        with Client(url) as client:
            stream = client.stream(**LONG)
            next(stream)
            os.kill(process_of(server, "audio_decoder"), signal.SIGKILL)
            with pytest.raises(ServerUnavailable):
                stream.collect()
        server.line()
        server.url()
        after = read_metrics("127.0.0.1", port)
        assert (after["vita_restarts"], after["vita_places_taken"]) == (1, 0)


def test_failures_in_a_row_end_the_launcher_with_status_1(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path, "--restarts", "1") as server:
        url = server.url()
        os.kill(process_of(server, "prompt"), signal.SIGKILL)
        assert "a process of prompt has ended: restarting" in server.line()
        assert server.url() == url
        family = server.family()
        os.kill(process_of(server, "audio_decoder"), signal.SIGKILL)
        assert server.process.wait(30) == 1
        assert server.line().endswith(f"audio_decoder has ended (2 failures in a row): see {server.log}")
        assert all_gone(family, 5)


def test_without_restarts_the_first_failure_is_the_last(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path, "--restarts", "0") as server:
        server.url()
        family = server.family()
        os.kill(process_of(server, "tritonserver"), signal.SIGKILL)
        assert server.process.wait(30) == 1
        assert re.fullmatch(
            rf"vita-audio server: tritonserver has ended( \(status -9\))?: see {server.log}", server.line()
        )
        assert all_gone(family, 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_it_restarts_ends_it_at_once(engines: Path, tmp_path: Path, number: signal.Signals) -> None:
    with foreground(engines, tmp_path) as server:
        server.url()
        os.kill(process_of(server, "speech_lm"), signal.SIGKILL)
        assert "restarting" in server.line()
        time.sleep(0.5)
        family = server.family()
        asked = time.monotonic()
        server.process.send_signal(number)
        assert server.process.wait(20) == 1
        assert time.monotonic() - asked < 10
        assert server.line() == "vita-audio server: stopped before it was ready"
        assert all_gone(family, 5)


def test_a_death_while_it_drains_ends_the_drain_and_shows_in_the_status(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path) as server, Client(server.url()) as client:
        stream = client.stream(**LONG)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        assert "draining" in server.line()
        os.kill(process_of(server, "audio_decoder"), signal.SIGKILL)
        with pytest.raises(ServerUnavailable):
            stream.collect()
        assert server.process.wait(20) == 1
        assert server.line() == f"vita-audio server: a process of audio_decoder has ended: see {server.log}"
        assert server.line() == "vita-audio server: stopped; streams that were still running are lost"


def test_streams_cut_by_the_end_of_a_drain_show_in_the_status(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path, "--exit-timeout", "0") as server, Client(server.url()) as client:
        stream = client.stream(**LONG)
        next(stream)
        server.process.send_signal(signal.SIGHUP)
        assert server.process.wait(20) == 1
        assert "draining, at most 0 s" in server.line()
        assert server.line() == "vita-audio server: stopped; streams that were still running are lost"
        assert not descendants(server.process.pid)
