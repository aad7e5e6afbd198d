"""What locust's users expect of it works here: several processes, CSV files, the web UI, closed loop, odd users."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from loadtest.report.files import read_figures
from loadtest_known_server import even, mixed
from loadtest_runs import ROOT, Known, ended, load, read_streams, wait_for


def test_two_workers_report_every_stream_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Known("mixed", tmp_path) as server:
        run = load(server.url, out, "--rate", "8", "--run-time", "6", "--shape", "steps", "--warm-up", "1",
                   "--processes", "2", "--csv", f"{tmp_path}/locust", "--slow-readers", "0.2")  # fmt: skip
        _, printed, figures, streams = ended(run, out)
        did = server.sent()
    assert figures["aborted"] == ""
    assert sorted(stream.seed for stream in streams) == sorted(did), printed
    assert len(figures["generators"]) == 2
    assert figures["streams"]["warm_up"] == sum(stream.warm_up for stream in streams)
    slow = sum(stream.scenario == "slow_reader" and not stream.warm_up for stream in streams)
    assert figures["streams"]["measured"] + slow + figures["streams"]["warm_up"] == len(streams)
    assert [phase["phase"] for phase in figures["phases"]][-1] == "100%"
    with (tmp_path / "locust_stats.csv").open() as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert int(rows["Aggregated"]["Request Count"]) == len(streams)
    refused = sum(mixed(stream.seed).end != "done" for stream in streams)
    assert int(rows["Aggregated"]["Failure Count"]) == refused


def test_a_closed_loop_never_runs_more_streams_than_it_has_callers(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Known("even", tmp_path) as server:
        run = load(server.url, out, "--loop", "closed", "--users", "3", "--think", "0.05", "--run-time", "4",
                   "--barge-in", "1", "--mix", "tts")  # fmt: skip
        _, _, figures, streams = ended(run, out)
    starts = [(stream.start_s + stream.start_delay_ms / 1e3, stream.total_ms / 1e3) for stream in streams]
    assert max(sum(a <= at_s < a + took_s for a, took_s in starts) for at_s, _ in starts) <= 3
    assert len(streams) > 6
    assert {stream.scenario for stream in streams} == {"tts"}
    assert "queueing is hidden" in (out / "report.html").read_text()
    # Callers cut in 0.3 s after the first sound at the earliest, and these streams are over long before.
    done = [stream.audio_s for stream in streams if stream.outcome == "done"]
    assert len(done) > 6
    assert done == pytest.approx([sum(sound_s for _, sound_s in even(0).chunks)] * len(done))
    assert figures["streams"]["done"] == len(streams)


def test_a_caller_who_cuts_in_is_no_failure(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Known("long", tmp_path) as server:
        run = load(server.url, out, "--rate", "4", "--run-time", "4", "--barge-in", "1", "--mix", "chat_text")
        _, _, figures, streams = ended(run, out)
    assert {stream.outcome for stream in streams} == {"interrupted"}
    assert figures["errors"] == {}
    assert all(0.2 < stream.total_ms / 1e3 < 3.1 + 3 for stream in streams)
    assert all(stream.audio_s > 0 for stream in streams)


def test_what_still_runs_at_the_end_is_counted_as_unfinished(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Known("long", tmp_path) as server:
        run = load(server.url, out, "--rate", "6", "--run-time", "4", "--drain", "1", "--mix", "tts")
        _, printed, figures, streams = ended(run, out)
    unfinished = [stream for stream in streams if stream.outcome == "unfinished"]
    assert len(unfinished) > 3, printed
    assert figures["streams"]["unfinished"] == len(unfinished)
    assert figures["scenarios"]["all"]["loss_rate"] >= len(unfinished) / len(streams)
    assert figures["over_time"][-1]["running"] == 0


def test_the_web_ui_starts_shows_and_stops_a_run(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        web = f"http://127.0.0.1:{free.getsockname()[1]}"
    out = tmp_path / "run"
    with Known("even", tmp_path) as server:
        command = [
            sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--host", server.url, "--out", str(out),
            "--web-host", "127.0.0.1", "--web-port", web.rpartition(":")[2], "--source-rate", "2", "--mix", "tts",
        ]  # fmt: skip
        path = f"{ROOT}{os.pathsep}{ROOT / 'client'}"
        ui = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: ask(f"{web}/vita") == "no run yet")
            refused = json.loads(ask(f"{web}/swarm", user_count=2, spawn_rate=10, host="10.1.2.3:8001"))
            assert refused["success"]  # locust has taken the form; the run refuses the target
            wait_for(lambda: stats(web)["state"] in ("stopped", "ready"))
            assert server.sent_nothing()
            ask(f"{web}/swarm", user_count=2, spawn_rate=10, host=server.url)
            wait_for(lambda: stats(web)["stats"][-1]["num_requests"] >= 4)
            assert "Load test" in ask(f"{web}/vita")
            ask(f"{web}/stop", now=1)
            wait_for((out / "report.json").exists)
            wait_for((out / "streams.csv").exists)
            figures = read_figures(out)
            assert figures["aborted"] == ""  # no end was planned: a stop is no accident
            assert figures["streams"]["measured"] == len(read_streams(out)) >= 4
        finally:
            ui.send_signal(signal.SIGTERM)
            ui.wait(30)


def ask(url: str, **form: Any) -> str:
    data = urllib.parse.urlencode(form).encode() if form else None
    try:
        with urllib.request.urlopen(url, data, timeout=60) as answer:
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError:
        raise
    except (ConnectionError, urllib.error.URLError):
        return ""  # not there yet


def stats(web: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(f"{web}/stats/requests"))
    return found
