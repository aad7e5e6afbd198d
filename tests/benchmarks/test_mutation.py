"""Mutation testing: what is mutated and what is not, a sample, and a session over a repository of a few lines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

from benchmarks.mutation import session as module
from benchmarks.mutation.mutants import all_mutants, sample
from benchmarks.mutation.report import report, table
from benchmarks.mutation.rooms import ROOMS, Room, room_of
from benchmarks.mutation.session import CannotRun, Mutant, Session
from benchmarks.mutation.wiring import OPERATORS
from foreground import all_gone
from loadtest_runs import wait_for
from vita_audio.machine import ROOT

#: Two places: the operator and the number.
CODE = "def doubled(value: int) -> int:\n    return value * 2\n"
TESTS = "from code_room.code import doubled\n\n\ndef test_it():\n    assert doubled(0) == 0\n"
MORE = "    assert doubled(3) == 6\n"


@pytest.mark.parametrize("operator", OPERATORS.values())
def test_operators_of_wiring_do_as_their_examples_say(operator: type) -> None:
    for example in operator.examples():
        made = mutate_code(example.pre_mutation_code, operator(), example.occurrence)
        assert made == example.post_mutation_code


def code_of(folder: Path, text: str) -> Path:
    (folder / "code.py").write_text(text)
    return folder / "code.py"


def test_annotations_and_decorators_are_left_alone(tmp_path: Path) -> None:
    declares = (
        "@dataclass(frozen=True)\nclass A:\n    x: int | 3\n\n    @f(1)\n    def g(self, a: b | 2) -> c | 4: ...\n"
    )
    assert all_mutants([code_of(tmp_path, declares)]) == []
    values = {
        spec.start_pos for spec in all_mutants([code_of(tmp_path, "def f(a: int | 1 = 2) -> int:\n    x: int = 3\n")])
    }
    assert values == {(1, 19), (2, 13)}


def test_every_mutant_is_another_program_and_changes_the_line_it_names(tmp_path: Path) -> None:
    text = (ROOT / "vita_audio" / "decoding" / "frames.py").read_text()
    mutants = all_mutants([code_of(tmp_path, text)])
    assert len(mutants) > 20
    for spec in mutants:
        made = mutate_code(text, get_operator(spec.operator_name)(), spec.occurrence)
        assert made is not None
        compile(made, "code.py", "exec")
        changed = [n for n, (a, b) in enumerate(zip(text.splitlines(), made.splitlines(), strict=True), 1) if a != b]
        assert changed == [spec.start_pos[0]], spec


def test_a_sample_depends_on_its_seed_alone_and_has_one_mutant_of_a_place(tmp_path: Path) -> None:
    mutants = all_mutants([code_of(tmp_path, "a = 1 + 2 * 3 - f(4, 5) + 6\n")])
    drawn = [item.mutations[0] for item in sample(mutants, 5, seed=1)]
    assert len(drawn) == 5
    assert drawn == [item.mutations[0] for item in sample(mutants, 5, seed=1)]
    assert drawn != [item.mutations[0] for item in sample(mutants, 5, seed=2)]
    every = [item.mutations[0].start_pos for item in sample(mutants, 10_000, seed=1)]
    assert len(every) == len(set(every)) == len({spec.start_pos for spec in mutants})


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "root"
    for folder in ("code_room", "tests"):
        (root / folder).mkdir(parents=True)
    (root / ".gitignore").write_text("out/\n")
    code_of(root / "code_room", CODE)
    (root / "tests" / "test_code.py").write_text(TESTS)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # a run of the tests takes half as long
    return root


def session_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(module, "SECONDS_MORE", 1.0)  # a mutant that never ends
    return Session(root, root / "out" / "mutation", (Room("small", ("code_room",), (("tests/test_code.py",),)),))


def outcomes(session: Session) -> dict[tuple[int, str], str]:
    return {(mutant.line, mutant.operator): mutant.outcome for mutant in session.mutants()}


def test_a_session_stops_and_goes_on_and_survivors_meet_new_tests(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, said = session_of(root, monkeypatch), []
    assert not session.begun
    session.begin(count=100, seed=0)
    session.run(["small"], 0.0, said.append)
    assert said == ["0 minutes have passed: 2 mutants are left"]
    assert set(outcomes(session).values()) == {"pending"}
    again = session_of(root, monkeypatch)
    assert again.begun
    again.run(["another room"], 10.0, said.append)
    assert set(outcomes(again).values()) == {"pending"}
    again.run(["small"], 10.0, said.append)
    found = outcomes(again)
    assert found[(2, "NumberReplacer")] == "survived"
    assert len(found) == 2
    survivors = [mutant for mutant in again.mutants() if mutant.outcome == "survived"]
    assert survivors
    assert all(mutant.file == "code_room/code.py" and mutant.room == "small" for mutant in survivors)
    assert (root / "code_room" / "code.py").read_text() == CODE  # the checkout is as it was, and so is the copy
    assert (again.tree / "code_room" / "code.py").read_text() == CODE

    (root / "tests" / "test_code.py").write_text(TESTS + MORE)
    assert again.retry() == len(survivors)
    assert list(outcomes(again).values()).count("pending") == len(survivors)
    again.run(["small"], 10.0, said.append)
    assert "survived" not in outcomes(again).values()
    assert len(outcomes(again)) == len(found)


def test_a_mutant_that_never_ends_is_timed_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code_of(root / "code_room", "def doubled(value):\n    while value:\n        value -= 1\n    return value\n")
    (root / "tests" / "test_code.py").write_text(TESTS.replace("0) == 0", "3) == 0"))
    session = session_of(root, monkeypatch)
    session.begin(count=100, seed=0)
    session.run(["small"], 10.0, lambda line: None)
    assert outcomes(session)[(3, "NumberReplacer")] == "timed out"


def test_a_mutant_that_was_left_behind_is_taken_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(root, monkeypatch)
    session.begin(count=100, seed=0)
    left = code_of(session.tree / "code_room", CODE.replace("* 2", "* 3"))
    session.run(["small"], 0.0, lambda line: None)
    assert left.read_text() == CODE


#: `python -m benchmarks.mutation` over another repository.
COMMAND = """
import runpy, sys
from pathlib import Path
import vita_audio.machine
from benchmarks.mutation import rooms
vita_audio.machine.ROOT = Path(sys.argv[1])
rooms.ROOMS = (rooms.Room("small", ("code_room",), (("tests/test_code.py",),)),)
del sys.argv[1]
runpy.run_module("benchmarks.mutation", run_name="__main__")
"""
HANGING = """
import os, pathlib, time
from code_room.code import doubled

def test_it():
    if doubled(3) != 6:
        pathlib.Path("pid").write_text(f"{os.getpid()}.")
        time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_that_is_ended_takes_its_mutant_out_and_ends_its_tests(number: signal.Signals, root: Path) -> None:
    (root / "tests" / "test_code.py").write_text(HANGING)
    path = f"{ROOT}{os.pathsep}{ROOT / 'client'}"
    command = ["env", "--default-signal=INT,HUP", sys.executable, "-c", COMMAND, str(root)]
    run = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)
    tree = root / "out" / "mutation" / "tree"
    try:
        wait_for(lambda: (tree / "pid").read_text().endswith("."))
        tests = int((tree / "pid").read_text()[:-1])
        assert (tree / "code_room" / "code.py").read_text() != CODE
        run.send_signal(number)
        assert run.wait(60) == (-number if number == signal.SIGINT else 128 + number)
    finally:
        run.kill()
        run.wait(60)
    assert (tree / "code_room" / "code.py").read_text() == CODE
    assert all_gone([tests], timeout_s=10)


def test_tests_that_fail_by_themselves_are_no_measure(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "tests" / "test_code.py").write_text(TESTS + "    assert doubled(3) == 4\n")
    session = session_of(root, monkeypatch)
    session.begin(count=3, seed=0)
    with pytest.raises(CannotRun, match=r"room small: its tests fail without a mutant \(1 failed.*begin again$"):
        session.run(["small"], 10.0, lambda line: None)


def test_the_report_counts_what_ran_and_shows_survivors() -> None:
    diff = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a = 1\n+a = 2\n b\n"
    made = [
        Mutant("a.py", 1, "Number", "one", "killed", diff),
        Mutant("a.py", 2, "Number", "one", "timed out", diff),
        Mutant("b.py", 3, "Number", "two", "survived", diff),
        Mutant("b.py", 4, "Number", "two", "pending", ""),
    ]
    rows = table(made).splitlines()[2:]
    assert rows == ["| one | 2 | 2 | 1 | 0 | 100 |", "| two | 1 | 0 | 0 | 1 | 0 |", "| all | 3 | 2 | 1 | 1 | 67 |"]
    text = report(made)
    assert "1 pending" in text
    assert "b.py:3 Number\n\n```diff\n-a = 1\n+a = 2\n```" in text
    assert "a.py" not in text


def test_rooms_have_code_and_tests_that_exist() -> None:
    single = [each for room in ROOMS for run in room.runs for each in run if "::" in each]
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", *single]
    found = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    assert found[: len(single)] == single != []
    for room in ROOMS:
        named = [each.partition("::")[0] for run in room.runs for each in run if each.startswith("tests/")]
        assert len(named) >= len(room.runs) > 0
        assert all((ROOT / path).exists() for path in (*room.code, *named))
    assert room_of("server/launch.py").name == "server"
    with pytest.raises(ValueError, match=r"^training/run\.py is in no room"):
        room_of("training/run.py")
