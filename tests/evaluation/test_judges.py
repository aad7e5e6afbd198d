"""Judges of sound: a command, an endpoint, what they do when they are down."""

from __future__ import annotations

import json
import os
import shlex
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import soundfile

from evaluation import judges
from evaluation.errors import EvaluationError
from evaluation.judges import make_judge
from published_suites import tone


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges.time, "sleep", lambda seconds: None)


class Endpoint(ThreadingHTTPServer):
    """Answers with the statuses of `script`, the last one for ever; 200 has the words."""

    def __init__(self, *script: int) -> None:
        self.script, self.bodies, self.keys = list(script), [], []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        self.server.bodies.append(self.path.encode() + self.rfile.read(int(self.headers["content-length"])))
        self.server.keys.append(self.headers.get("authorization"))
        script = self.server.script
        status = script.pop(0) if len(script) > 1 else script[0]
        body = json.dumps({"text": "the words"} if status == 200 else {"error": "no such model"}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "a b.flac", tmp_path / "c.flac"]
    for path in made:
        tone(path)
    return made


def test_a_command_prints_the_words(sounds: list[Path]) -> None:
    program = "import sys, pathlib; print(pathlib.Path(sys.argv[1]).stem)"
    judge = make_judge(f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {{}}", "", 2)
    assert list(judge.transcribe(sounds, "zh")) == ["a b", "c"]


@pytest.mark.parametrize(("command", "said"), [("no-such-program {}", "did not run"), ("false {}", "status 1")])
def test_a_command_that_fails_is_one_line(command: str, said: str, sounds: list[Path]) -> None:
    with pytest.raises(EvaluationError, match=said):
        list(make_judge(command, "", 1).transcribe(sounds, "en"))


def test_an_endpoint_is_asked_again_when_it_is_busy(sounds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(judges.API_KEY, "secret")
    with Endpoint(503, 429, 200) as server:
        judge = make_judge(server.url, "whisper-1", 1)
        assert list(judge.transcribe(sounds, "en")) == ["the words", "the words"]
        server.shutdown()
    assert len(server.bodies) == 4
    assert server.bodies[0].startswith(b"/v1/audio/transcriptions")
    assert all(part in server.bodies[0] for part in (b"whisper-1", b"fLaC", b'name="language"'))
    assert set(server.keys) == {"Bearer secret"}
    assert "secret" not in judge.name


def test_an_endpoint_that_refuses_or_is_down_is_one_line(sounds: list[Path]) -> None:
    with Endpoint(404) as server:
        with pytest.raises(EvaluationError, match=r"HTTP 404: .*no such model"):
            list(make_judge(server.url, "x", 1).transcribe(sounds, "en"))
        server.shutdown()
    with pytest.raises(EvaluationError, match=r"does not answer .*try again"):
        list(make_judge(server.url, "x", 1).transcribe(sounds, "en"))


def test_a_judge_whose_process_is_killed_and_a_sound_that_is_none_are_one_line(sounds: list[Path]) -> None:
    with pytest.raises(EvaluationError, match="a process of the judge was killed"):
        list(judges._map(ProcessPoolExecutor(1), _die, sounds))
    sounds[1].write_text("no sound")
    with pytest.raises(EvaluationError, match=r"c\.flac.*delete this file"):
        list(judges._map(ThreadPoolExecutor(1), lambda sound: str(soundfile.read(sound)), sounds))


def _die(sound: Path) -> str:
    os._exit(1)


def test_another_language_and_another_option_are_refused() -> None:
    pytest.importorskip("pocketsphinx")
    with pytest.raises(EvaluationError, match="English only"):
        make_judge("pocketsphinx", "", 1).transcribe([], "zh")
    with pytest.raises(EvaluationError, match="pocketsphinx, http"):
        make_judge("whisper", "", 1)
    with pytest.raises(EvaluationError, match="not an address"):
        make_judge("http://host:port/v1", "", 1)
    with pytest.raises(EvaluationError, match="--judge"):
        make_judge("'unfinished {}", "", 1)
