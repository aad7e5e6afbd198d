"""The GPU session: its steps at tiny size on this CPU, and what a hang, a fault or a short budget leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import gpu_session
from benchmarks.gpu_session import Places, Step, list_steps, phases, walk
from benchmarks.kernel_profile import summarise
from benchmarks.paper_tables import PARTS

ROOT = Path(__file__).resolve().parents[2]
PLACES = Places(Path("out"), Path("work"), Path("golden"), Path("checkpoints/small"))


def python(code: str) -> tuple[str, ...]:
    return ("-c", code)


def test_goes_on_after_a_hang_and_a_fault(tmp_path: Path) -> None:
    """A step that is ended takes its children with it; what needs a failed step is left out; the rest runs."""
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); {HANG}"
    steps = [
        Step("hang", python(child), 1.5),
        Step("fault", python("print('about to fail'); raise SystemExit(3)"), 60),
        Step("good", python("import sys; print(sys.argv[1:])"), 60, "a line", bounded=True),
        Step("needs the fault", python("print('never')"), 60, needs=("fault",)),
    ]
    assert not walk("test", steps, 120, tmp_path)
    record = json.loads((tmp_path / "gpu_test.json").read_text())
    assert [row["exit"] for row in record["steps"]] == [
        "timed out", 3, 0, "not run: needs fault, which came to: 3",
    ]  # fmt: skip
    assert record["machine"]
    assert record["date"]
    log = (tmp_path / "gpu_test.log").read_text()
    assert "about to fail" in log
    assert "['--budget', '52']" in log
    assert "never" not in log


HANG = "import time; time.sleep(60)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_killed_session_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """The step, and what it started in its own process group, end with the session."""
    started = tmp_path / "started"
    step = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(started)!r}, "w").write(str(child.pid))
time.sleep(60)
"""
    code = f"""
import signal
from pathlib import Path
from benchmarks.gpu_session import Step, walk
from vita_audio.stopping import stop_on_signals
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
stop_on_signals()
walk("test", [Step("hang", ("-c", {step!r}), 60)], 60, Path({str(tmp_path)!r}))
"""
    session = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = psutil.Process(int(started.read_text()))
    session.send_signal(number)
    assert session.wait(20) == 128 + number
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_the_last_steps_are_cut_when_time_is_short(tmp_path: Path) -> None:
    steps = [Step("first", python("import time; time.sleep(1)"), 5), Step("second", python("pass"), 9)]
    assert not walk("test", steps, 7, tmp_path)
    record = json.loads((tmp_path / "gpu_test.json").read_text())
    assert [row["exit"] for row in record["steps"]] == [0, "not run: out of time"]


def test_a_larger_budget_stretches_the_limits(tmp_path: Path) -> None:
    assert walk("test", [Step("only", python("import time; time.sleep(1)"), 0.4)], 20, tmp_path)


@pytest.mark.parametrize("size", ["real", "tiny"])
def test_plans_are_sound(size: str) -> None:
    for phase, steps in phases(size, PLACES).items():
        names = [step.name for step in steps]
        assert len(names) == len(set(names)), phase
        for number, step in enumerate(steps):
            assert set(step.needs) <= set(names[:number]), step.name
            assert step.arguments[0] == "-m"


def test_real_phases_fit_their_seconds() -> None:
    """Seconds that were planned for each phase; the golden cases and the checkpoint's own steps are there with them."""
    seconds = {phase: sum(step.seconds for step in steps) for phase, steps in phases("real", PLACES).items()}
    assert seconds["first-light"] <= 430
    assert seconds["serve"] <= 260
    assert seconds["first-light"] + seconds["serve"] <= 900 - 120  # of 15 minutes, the start of the machine takes some
    assert seconds["speed"] <= 600
    ways = [step.name for step in phases("real", PLACES)["serve"]]
    assert ways == ["build 7b", "serve 7b", "serve 7b, MPS", "serve 7b, one process"]
    without = phases("real", Places(Path("out"), Path("work"), None, None))
    assert "golden" not in [step.name for step in without["first-light"]]
    assert next(step.name for step in without["serve"]) == "build 7b"
    listed = list_steps(phases("real", PLACES))
    assert f"first-light: {seconds['first-light']:.0f} s" in listed
    assert "boost audio-only 563" in listed  # what is expected stands beside the step


def test_a_real_session_without_a_gpu_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        gpu_session.main(["--phase", "speed", "--out", str(tmp_path)])
    assert "no CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu_session.main(["--size", "tiny", "--only", "nothing", "--out", str(tmp_path)])
    assert "'nothing' is no step of first-light" in capsys.readouterr().err
    for budget in ("0", "-5", "nan", "soon"):
        with pytest.raises(SystemExit):
            gpu_session.main(["--size", "tiny", "--budget", budget, "--out", str(tmp_path)])
        assert "a positive number of seconds" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        gpu_session.main(["--size", "tiny", "--out", str(tmp_path / "file")])
    assert "is no folder that can be written to" in capsys.readouterr().err


@pytest.mark.server
@pytest.mark.timeout(1500)  # on a busy machine; alone it takes a twentieth of that
def test_the_whole_session_runs_here(tmp_path: Path, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every phase at tiny size as a user would run it: tables with all parts, engines, a real server, real clients."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = ["--phase", "first-light", "serve", "speed", "--size", "tiny", "--out", str(tmp_path)]
    assert gpu_session.main([*arguments, "--golden", str(golden / "language_model" / "mctp4"), "--budget", "900"]) == 0
    for phase in ("first-light", "serve", "speed"):
        record = json.loads((tmp_path / f"gpu_{phase}.json").read_text())
        assert record["steps"]
        assert all(row["exit"] == 0 for row in record["steps"]), record
    (kernels,) = tmp_path.glob("kernels_tiny_*.txt")
    assert "launches" in kernels.read_text()
    parts: dict[str, object] = {}
    for path in tmp_path.glob("paper_tables_tiny_*.json"):
        found = json.loads(path.read_text())
        assert found["faults"] == {}
        parts |= {part: found[part] for part in PARTS if part in found}
    assert set(parts) == set(PARTS)
    serving = json.loads((tmp_path / "serving_7b.json").read_text())
    assert any(row.get("audio_s_per_s") for row in serving["rows"])


def test_launches_and_gaps_of_a_call() -> None:
    """Two kernels that overlap, a gap, one more: times by hand."""
    made = summarise([("b", 12.0, 20.0), ("a", 10.0, 15.0), ("a", 25.0, 26.0)])
    assert (made.launches, made.span_us, made.busy_us, made.longest_gap_us) == (3, 16.0, 11.0, 5.0)
    assert [(k.name, k.launches, k.busy_us) for k in made.kernels] == [("b", 1, 8.0), ("a", 2, 6.0)]
    assert "3 launches, 0.016 ms from first to last, 0.011 ms busy, 0.005 ms of gaps" in made.table()
    assert summarise([]).launches == 0
