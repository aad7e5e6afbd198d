"""The soak: growth between quarters, counters that begin again at a restart, kills in the picture."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import soak
from benchmarks.soak import Kill, Look, counted, draw, summarise


def looked(at_s: float, mib: float, underruns: float = 0.0, **more: float) -> Look:
    return Look(at_s, {"speech_lm": mib, "prompt": 10.0, **more}, 20, 30, 1.0, 0.0, underruns)


def test_growth_is_between_the_quarters_of_whole_servers() -> None:
    looks = [looked(0, 500), *(looked(60 + n, 100 + n) for n in range(8)), looked(90, 0)]
    looks.insert(5, Look(65, {"launcher": 3.0}, 1, 1, 0.0, 0.0))  # between two Tritons
    result = summarise(looks, 60, {})
    assert result["memory"]["speech_lm"] == {"first_mib": 100.5, "last_mib": 106.5, "share": 0.0597}
    assert result["memory"]["all"]["first_mib"] == 110.5
    assert result["threads"] == {"least": 20, "most": 20}
    assert result["left_behind"] == {"running": 1.0, "waiting": 0.0, "threads": 20}


def test_a_counter_goes_on_after_a_restart() -> None:
    assert counted([0, 2, 5, 1, 1, 4]) == 5 + 4
    assert counted([]) == 0


def test_kills_are_on_the_line(tmp_path: Path) -> None:
    looks = [looked(60.0 * n, 100 + n) for n in range(4)]
    draw(looks, [], tmp_path / "plain")
    draw(looks, [Kill(90.0, "prompt", 4.0)], tmp_path / "kills")
    assert "a process is killed" not in (tmp_path / "plain_memory.svg").read_text()
    assert (tmp_path / "kills_memory.svg").read_text().count("a process is killed") >= 1
    assert (tmp_path / "kills_streams.svg").exists()


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--minutes", "1"], "--minutes"),
        (["--kill-every", "3"], "--kill-every"),
        (["--kill-every", "nan"], "--kill-every"),
        (["--rate", "2000"], "--rate"),
    ],
)
def test_wrong_options(words: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        soak.main(["--rate", "1", *words])
    assert f"{option}: " in capsys.readouterr().err


class Server:
    """A server that does as it is told: `status` it ends with, `files` it leaves behind."""

    url = "localhost:1"
    status, files = 0, list[str]()

    def __init__(self, engines: Path) -> None: ...

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None: ...

    def wait_ready(self) -> None: ...

    def stop(self) -> int:
        return self.status

    def left(self) -> dict[str, list[str]]:
        return {"files": self.files}


class Soak:
    """A soak whose load ends with `code`, and writes its report unless it is `dead`. `minutes`: of looks."""

    def __init__(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.report = out, out.with_name("soak_load") / "report.json"
        self.code, self.aborted, self.dead, self.minutes, self.running = 0, "", False, 5, 0.0
        monkeypatch.setattr(soak, "ServerProcess", Server)
        monkeypatch.setattr(soak, "ask_longest", lambda *_: None)
        monkeypatch.setattr(soak, "watch", lambda *_: (self.looks(), []))
        monkeypatch.setattr(soak, "record_head", lambda *_: {})
        monkeypatch.setattr(soak.subprocess, "Popen", self.load)

    def looks(self) -> list[Look]:
        last = Look(400.0, {"speech_lm": 100.0, "prompt": 10.0}, 20, 30, self.running, 0.0)
        return [*(looked(60.0 * n, 100) for n in range(self.minutes)), last]

    def load(self, *_: object, **__: object) -> SimpleNamespace:
        if not self.dead:
            self.report.parent.mkdir(exist_ok=True)
            figures = {
                "streams": {},
                "slo": [],
                "errors": {},
                "scenarios": {"all": {"new": 1}},
                "aborted": self.aborted,
            }
            self.report.write_text(json.dumps(figures))
        return SimpleNamespace(poll=lambda: self.code, returncode=self.code)

    def run(self) -> int:
        return soak.main(["--rate", "1", "--minutes", "5", "--out", str(self.out)])

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out.read_text())
        return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Soak:
    return Soak(tmp_path / "soak.json", monkeypatch)


def test_a_run_that_is_good(run: Soak) -> None:
    assert run.run() == 0
    assert run.record["percentiles"] == {"new": 1}


@pytest.mark.parametrize("code", [2, -9, 1, 0])
def test_a_load_that_dies_is_not_recorded_with_the_figures_of_another(
    code: int, run: Soak, capsys: pytest.CaptureFixture[str]
) -> None:
    run.report.parent.mkdir()
    run.report.write_text(json.dumps({"scenarios": {"all": {"old": 1}}}))
    run.code, run.dead = code, True
    assert run.run() == 1
    assert "percentiles" not in run.record
    assert f"exit code {code}" in capsys.readouterr().out or code in (0, 1)


def test_a_load_that_ends_within_the_warm_up(run: Soak, capsys: pytest.CaptureFixture[str]) -> None:
    run.code, run.aborted, run.minutes = 1, "no server", 1
    assert run.run() == 1
    assert "the load ended within the 60 s of --warm-up" in capsys.readouterr().out


def test_a_run_that_is_no_good_is_recorded_and_said(
    run: Soak, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Server, "status", 1)
    monkeypatch.setattr(Server, "files", ["a"])
    run.code, run.aborted, run.running = 1, "no server", 2.0
    assert run.run() == 1
    assert run.record["left"] == {"files": ["a"]}
    printed = capsys.readouterr().out
    for words in ("not complete: no server", "the server ended with 1", "2 streams stay", "left behind: 1 files (a)"):
        assert words in printed
