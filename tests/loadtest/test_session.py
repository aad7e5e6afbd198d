"""A session of locust that collects from workers, on a clock that is given: a run that is stopped, or refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loadtest.generator import GeneratorLoad
from loadtest.options import add_arguments
from loadtest.record import StreamRecord
from loadtest.report.files import read_figures
from loadtest.tally import Outbox


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LOCUST_SKIP_MONKEY_PATCH", "1")  # this process goes on with other tests
    import loadtest.session

    return loadtest.session


class Run:
    """A master's session, driven by locust's events. `at_s`: its clock."""

    def __init__(self, module: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Master(module.MasterRunner):  # type: ignore[misc]
            greenlet = None

            def __init__(self) -> None:
                self.clients = SimpleNamespace(all=[])

            def send_message(self, *_: object) -> None: ...

            def stop(self, *_: object) -> None: ...

        parser = argparse.ArgumentParser()
        add_arguments(parser)
        options = parser.parse_args(["--out", str(out)])
        options.run_time = 60
        self.at_s = 1000.0
        self.environment = SimpleNamespace(
            runner=Master(), parsed_options=options, host="localhost:1", stop_timeout=15.0, web_ui=None
        )
        self.session = module.Session(self.environment)
        monkeypatch.setattr(module, "now_s", lambda: self.at_s)
        monkeypatch.setattr(module, "manifest", lambda *_: {})

    def streams(self, count: int, at_s: float) -> None:
        """A worker reports streams of one second."""
        outbox = Outbox()
        for number in range(count):
            outbox.sent(at_s)
            outbox.over(StreamRecord("tts", number, at_s, False, "constant", "done", total_ms=1e3), at_s + 1, False)
        message = {"streams": outbox.take(), "generator": GeneratorLoad(0.1, 0.2).to_dict()}
        self.session.worker_report("worker", {"vita": message})

    def stop(self) -> None:
        self.session.test_stopping()
        self.session.test_stop()


@pytest.fixture
def run(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(module, tmp_path / "run", monkeypatch)


def test_rates_of_a_stopped_run_are_those_of_the_time_in_which_load_was_made(run: Run, tmp_path: Path) -> None:
    run.session.test_start()
    run.streams(20, 1.0)
    run.at_s += 10.0
    run.session.test_stopping()
    run.at_s += 12.0  # streams end
    run.streams(10, 9.0)
    run.session.test_stop()
    figures = read_figures(tmp_path / "run")
    assert (figures["elapsed_s"], figures["aborted"]) == (10.0, "stopped after 10 s")
    assert figures["streams"]["per_s"] == figures["streams"]["at_once"] == pytest.approx(3.0)


def test_the_next_run_begins_anew(run: Run, tmp_path: Path) -> None:
    run.session.test_start()
    run.at_s += 10.0
    run.stop()
    run.at_s += 10.0
    run.session.test_start()
    run.streams(8, 1.0)
    run.at_s += 4.0
    run.stop()
    assert read_figures(tmp_path / "run")["streams"]["per_s"] == pytest.approx(2.0)


def test_a_run_that_is_refused_leaves_the_report_before_it(run: Run, tmp_path: Path) -> None:
    run.session.test_start()
    run.streams(20, 1.0)
    run.at_s += 10.0
    run.stop()
    report = tmp_path / "run" / "report.json"
    before = report.read_text()
    report.write_text(before + " ")
    run.environment.host = "10.1.2.3:8001"
    run.session.test_start()
    run.stop()
    assert report.read_text() == before + " "


def test_a_run_without_a_voice_is_refused(run: Run) -> None:
    run.environment.runner = SimpleNamespace(stop=lambda: None)  # it makes its streams itself
    run.environment.parsed_options.speech = "/nonexistent.wav"
    run.session.test_start()
    assert not run.session.running
    assert run.session._live_page() == "no run yet"
    with pytest.raises(SystemExit):
        run.session._settings_or_exit()
