"""The examples against a real server: short, with the client alone, and clear when something is missing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from foreground import all_gone
from import_graph import ROOT, imported
from server.launch import TritonServer
from server.processes import descendants
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ
from wav_files import read_wav

EXAMPLES = ROOT / "examples"
NAMES = ("ask.py", "speak.py", "conversation.py")


def example(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_needs_the_client_alone(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 35
    assert {module.split(".")[0] for module in imported(EXAMPLES / name, nested=True)} == {"sys", "vita_client"}


@pytest.mark.server
@pytest.mark.parametrize(
    ("name", "given"), [("ask.py", EXAMPLES / "question.wav"), ("speak.py", "The happy dog is in the garden.")]
)
def test_an_example_runs(name: str, given: object, server: TritonServer, tmp_path: Path) -> None:
    done = example(name, given, tmp_path / "out.wav", server.grpc_url)
    assert done.returncode == 0, done.stderr
    assert " s of sound" in done.stdout
    rate_hz, samples = read_wav(tmp_path / "out.wav")
    assert rate_hz == OUTPUT_SAMPLE_RATE_HZ
    assert f"{len(samples) / rate_hz:.2f} s of sound" in done.stdout


@pytest.mark.parametrize(
    ("name", "given", "problem"),
    [
        ("ask.py", EXAMPLES / "question.wav", "error: no answer from 127.0.0.1:1"),
        ("ask.py", EXAMPLES / "none.wav", "error: AUDIO: "),
        ("speak.py", "The happy dog.", "error: no answer from 127.0.0.1:1"),
        ("speak.py", "", "error: TEXT: "),
    ],
)
def test_a_problem_is_one_line(name: str, given: object, problem: str, tmp_path: Path) -> None:
    done = example(name, given, tmp_path / "out.wav", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith(problem)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", NAMES)
def test_usage_is_printed(name: str) -> None:
    done = example(name)
    assert done.returncode == 1
    assert f"python examples/{name}" in done.stderr


@pytest.mark.server
def test_a_conversation_goes_on(server: TritonServer, tmp_path: Path) -> None:
    turns = "Two plus three?", EXAMPLES / "question.wav", "And then?"
    done = example("conversation.py", tmp_path / "out.wav", server.grpc_url, *turns)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the first sound after") == 3
    _, samples = read_wav(tmp_path / "out.wav")
    assert f"{len(samples) / OUTPUT_SAMPLE_RATE_HZ:.2f} s of sound" in done.stdout


def test_a_conversation_without_a_server_is_one_line(tmp_path: Path) -> None:
    done = example("conversation.py", tmp_path / "out.wav", "127.0.0.1:1", "Hello.")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: no answer from 127.0.0.1:1")


@pytest.mark.server
def test_the_web_example_prints_its_address_and_ends_both(engines: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "web.py"), "--engines", str(engines), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "starting the server ...\n"
        said = process.stdout.readline()
        assert said.startswith("talk at http://127.0.0.1:"), said
        with urlopen(said.split()[2], timeout=60) as page:
            assert b"<html" in page.read()
        process.send_signal(signal.SIGINT)
        rest, logged = process.communicate(timeout=120)
        assert (process.returncode, rest) == (130, "ending ...\n")
        assert "Traceback" not in logged
    finally:
        process.kill()
    with pytest.raises(URLError):
        urlopen(said.split()[2], timeout=20)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_the_gateway_of_the_web_example_ends_with_it(number: signal.Signals) -> None:
    """Without a server: that one ends with its launcher has tests of its own (tests/server)."""
    code = "from examples.web import *; stop_on_signals(); sys.exit(run_gateway('127.0.0.1:1', 0))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("talk at http://127.0.0.1:"), said
        family = descendants(process.pid)
        assert len(family) == 2
        process.send_signal(number)
        process.wait(timeout=60)
        assert all_gone(family, timeout_s=60)
    finally:
        process.kill()
        process.communicate()
