"""The clients whose packages the tests have anyway, against a gateway over a real server with the small checkpoint.

The others need environments of their own: `make clients`.
"""

from __future__ import annotations

import importlib.util
import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from build_engines.packaged import unpack

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CASE = {
    "gateway": "http://127.0.0.1:1",
    "wyoming": "tcp://127.0.0.1:1",
    "model": "m",
    "question_file": str(ROOT / "examples" / "question.wav"),
    "question": "What is it?",
    "answer": "It is.",
    "answer_s": 1.0,
    "typed": "What?",
    "typed_answer": "That.",
    "typed_answer_s": 1.0,
    "sentence": "This is it.",
    "sentence_s": 1.0,
}


@pytest.fixture(scope="module")
def checks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("checks", HERE / "checks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def tone(seconds: float, level: float, rate_hz: int = 24_000) -> bytes:
    samples = [round(32_767 * level * math.sin(index / 10)) for index in range(round(seconds * rate_hz))]
    return struct.pack(f"<{len(samples)}h", *samples)


@pytest.mark.server
@pytest.mark.timeout(600)
def test_unmodified_clients_get_what_grpc_gives(tmp_path: Path) -> None:
    """Half a minute: everything in it is the real thing."""
    engines = tmp_path / "engines"
    unpack(ROOT / "checkpoints" / "small", ROOT / "checkpoints" / "small-engines-cpu", engines)
    command = [sys.executable, HERE / "run.py", "--here", "--engines", engines, "openai_sdk", "wyoming_client"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    assert ran.stdout.endswith("2 clients: all that was tried works\n")
    for name in ("openai_sdk", "wyoming_client"):
        assert f"{name}:\nok " in ran.stdout


def test_every_client_has_a_script_and_pinned_requirements() -> None:
    scripts = {file.stem for file in HERE.glob("*.py")} - {"checks", "run", "test_clients"}
    pinned = {file.stem: file.read_text() for file in (HERE / "requirements").glob("*.txt")}
    assert scripts == set(pinned)
    for name, text in pinned.items():
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert lines, name
        assert all("==" in line for line in lines), name


@pytest.mark.parametrize("got", ["", "...", "It was.", "It is. It is."])
def test_another_text_is_noticed(checks: ModuleType, got: str) -> None:
    checks.check_text("text", "it is", "It is.")
    with pytest.raises(checks.WrongAnswer, match=r"where gRPC gives 'It is\.'"):
        checks.check_text("text", got, "It is.")


@pytest.mark.parametrize(
    ("pcm", "words"),
    [
        (b"", "0.00 s of sound"),
        (tone(0.5, 0.1), "0.50 s of sound"),
        (tone(2.0, 0.1), "2.00 s of sound"),
        (tone(1.0, 0.001), "is no speech"),
        (tone(1.0, 0.99), "is no speech"),
        (tone(1.0, 0.1) + b"\0", "no whole number of samples"),
    ],
)
def test_another_sound_is_noticed(checks: ModuleType, pcm: bytes, words: str) -> None:
    checks.check_speech("sound", tone(1.0, 0.1), 1.0)
    with pytest.raises(checks.WrongAnswer, match=words):
        checks.check_speech("sound", pcm, 1.0)


def test_a_failed_trial_is_a_line_and_the_exit_status(checks: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "case.json").write_text(json.dumps(CASE))
    script = """
import asyncio, sys
import checks
async def good(case): assert case.api == "http://127.0.0.1:1/v1"
async def bad(case): checks.require("this\\nholds", False)
async def slow(case): await asyncio.sleep(60)
sys.exit(checks.run(good, bad, slow, limit_s=0.1))
"""
    for chosen, status, lines in (
        ([], 1, ["ok     good", "FAILED bad: WrongAnswer: this holds", "FAILED slow: TimeoutError:"]),
        (["good"], 0, ["ok     good"]),
    ):
        command = [sys.executable, "-c", script, tmp_path / "case.json", *chosen]
        ran = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(HERE)})
        assert (ran.returncode, [line.rstrip() for line in ran.stdout.splitlines()]) == (status, lines), ran.stderr


def test_the_rate_is_changed_as_it_should(checks: ModuleType) -> None:
    pcm = tone(0.1, 0.5, 16_000)
    changed = struct.unpack(f"<{len(checks.at_24_khz(pcm, 16_000)) // 2}h", checks.at_24_khz(pcm, 16_000))
    assert len(changed) == pytest.approx(2_400, abs=2)
    assert changed[::3] == struct.unpack("<1600h", pcm)[::2][: len(changed[::3])]
