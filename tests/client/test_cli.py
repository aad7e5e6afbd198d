"""The command line: what it prints, the files it writes, its exit codes, and what Ctrl-C does."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from rich.console import Console
from typer.testing import CliRunner, Result

from client_command import PATIENCE_S, ended, start, wait_for
from client_protocol_double import CHUNK_SAMPLES, ProtocolDouble, chunk_pcm, chunk_text
from vita_audio.contract.errors import InvalidRequest, ServerFull, to_wire
from vita_client import Connection, Tls, WavWriter, cli, session
from vita_client.events import Metrics, TextDelta
from vita_client.options import ServerOptions
from vita_client.terminal import LiveView, numbers
from wav_files import read_wav


@pytest.fixture(scope="module")
def double() -> Iterator[ProtocolDouble]:
    server = ProtocolDouble()
    yield server
    server.close()


def vita(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli.app, list(arguments), input=stdin)


def test_say_writes_the_wav_and_the_text(double: ProtocolDouble, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    result = vita(
        "say", "chunks 4", "-o", str(path), "-u", double.url, "--seed", "2", "--mode", "turbo", "--top-k", "5"
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == "".join(chunk_text(2, i) for i in range(4)) + "\n"
    assert "done (end_token) | first audio" in result.stderr
    assert "0.4 s of sound | real-time factor" in result.stderr
    assert f"-> {path} (0.4 s)" in result.stderr
    rate_hz, samples = read_wav(path)
    assert rate_hz == 22_050
    np.testing.assert_array_equal(samples, np.concatenate([chunk_pcm(2, i) for i in range(4)]))
    sent = double.inputs[-1]
    assert {name: sent[name] for name in ("TASK", "MODE", "TOP_K", "SEED")} == {
        "TASK": "tts",
        "MODE": "turbo",
        "TOP_K": 5,
        "SEED": 2,
    }


def test_each_command_has_its_task(double: ProtocolDouble, tmp_path: Path) -> None:
    speech = tmp_path / "speech.flac"
    soundfile.write(speech, np.zeros((4410, 2)), 44_100)
    for command, task in (("ask", "chat"), ("transcribe", "asr")):
        result = vita(command, str(speech), "-u", double.url)
        assert result.exit_code == 0, result.output
        assert double.inputs[-1]["TASK"] == task
        assert np.shape(double.inputs[-1]["AUDIO"]) == (1600,)
    assert vita("chat", "chunks 1", "-u", double.url).exit_code == 0
    assert double.inputs[-1]["TASK"] == "chat"
    assert vita("chat", "chunks 1", "--text-only", "-u", double.url).exit_code == 0
    assert double.inputs[-1]["TASK"] == "text"


def test_text_and_speech_from_standard_input(double: ProtocolDouble) -> None:
    assert vita("chat", "-", "-u", double.url, stdin="chunks 2").stdout == chunk_text(0, 0) + chunk_text(0, 1) + "\n"
    file = io.BytesIO()
    soundfile.write(file, np.zeros(800), 8_000, format="WAV")
    assert vita("ask", "-", "-u", double.url, stdin=file.getvalue()).exit_code == 0
    assert np.shape(double.inputs[-1]["AUDIO"]) == (1600,)
    result = vita("chat", "-", "-u", double.url, stdin=b"\xff\xfe")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "TEXT: 'standard input' is not valid: it is not UTF-8 at byte 0" in result.stderr


def test_json(double: ProtocolDouble, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    result = vita("say", "chunks 3", "--json", "-o", str(path), "-u", double.url, "--seed", "1")
    answer = json.loads(result.stdout)
    assert result.stderr == ""
    assert (answer["outcome"], answer["error"], answer["code"]) == ("done (end_token)", None, None)
    assert answer["text"] == "".join(chunk_text(1, i) for i in range(3))
    assert (answer["tokens"], answer["audio_s"], answer["wav"], answer["wav_s"]) == (6, 0.3, str(path), 0.3)
    assert 0 < answer["ttfa_ms"] <= answer["elapsed_ms"]
    assert answer["status"]["seed"] == 1
    result = vita("chat", "fail", "--json", "-u", double.url)
    answer = json.loads(result.stdout)
    assert (result.exit_code, answer["outcome"], answer["text"]) == (4, "failed", "one two ")
    assert "flow engine" in answer["error"]
    assert answer["code"] == "engine_error"
    result = vita("chat", "hi", "--top-p", "7", "--json", "-u", double.url)
    answer = json.loads(result.stdout)
    assert (result.exit_code, answer["code"], answer["field"]) == (2, "invalid_request", "TOP_P")
    result = vita("say", "hi", "--json", "-u", double.url)
    assert (result.exit_code, json.loads(result.stdout)["field"]) == (2, "output")


def test_say_reads_a_page_from_stdin_sentence_by_sentence(double: ProtocolDouble, tmp_path: Path) -> None:
    path, page = tmp_path / "out.wav", "chunks 4\n\nchunks 2\n\nchunks 1"
    count = len(double.inputs)
    result = vita("say", "-", "-o", str(path), "-u", double.url, "--seed", "5", "--json", stdin=page)
    assert result.exit_code == 0, result.output
    assert [sent["TEXT"] for sent in double.inputs[count:]] == ["chunks 4", "chunks 2", "chunks 1"]
    answer = json.loads(result.stdout)
    assert (answer["audio_s"], answer["status"]["state"], answer["status"]["seed"]) == (pytest.approx(1.5), "done", 5)
    assert len(read_wav(path)[1]) == 1.5 * 22_050
    result = vita("say", "chunks 1\n\nfail", "-o", str(path), "-u", double.url)
    assert (result.exit_code, "error: sentence 2 of 2: " in result.stderr) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["say", "hello"], 2, "give -o FILE or --play"),
        (["say", " ", "-o", "OUT"], 2, "TEXT: ' ' is not valid: it is empty"),
        (["chat", "hi", "--mode", "1,2,3"], 2, "MODE: '1,2,3'"),
        (["chat", "hi", "--top-p", "0"], 2, "TOP_P: 0.0"),
        (["chat", "hi", "--temperature", "-1"], 2, "TEMPERATURE: -1.0"),
        (["chat", "hi", "--timeout", "0"], 2, "timeout_s: 0.0"),
        (["chat", "hi", "--header", "nonsense"], 2, "name: value"),
        (["chat", "hi", "--cert", "x.pem"], 2, "belong together"),
        (["chat", "hi", "--ca", "/nowhere.pem"], 2, "cannot be read"),
        (["ask", "/nowhere.wav"], 2, "no such file"),
        (["say", "hi", "-o", "/nowhere/out.wav"], 2, "no folder /nowhere"),
        (["say", "hi", "-o", "/"], 2, "it is a folder"),
        (["say", "hi", "-o", "/tmp/" + 300 * "a"], 2, "it cannot be written (File name too long)"),
        (
            ["chat", f"message-only {to_wire(InvalidRequest('MODE', '1,99', 'n > K'))}"],
            2,
            "vita: error: MODE: '1,99' is not valid",
        ),
        (["chat", f"message-only {to_wire(ServerFull(4, 8))}"], 3, "error: server is full (4 running, 8 waiting)"),
        (["chat", "abort UNAUTHENTICATED who"], 3, "refused this client"),
        (["chat", "hi", "-u", "localhost:1"], 3, "refused"),
        (["chat", "short"], 3, "without a final status"),
        (["chat", "fail"], 4, "the flow engine broke"),
        (["chat", "hang", "--timeout", "0.3"], 4, "not finished within 0.3 s"),
        (["chat", "abort INTERNAL oh no"], 4, "oh no"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    double: ProtocolDouble, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    arguments = [str(tmp_path / "out.wav") if argument == "OUT" else argument for argument in arguments]
    result = vita(*arguments, *([] if "-u" in arguments else ["-u", double.url]))
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("vita: error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in result.output
    answered = arguments[1] in ("short", "fail")
    assert len(result.stderr.splitlines()) == 1 + answered  # the numbers, where there are any
    assert not (tmp_path / "out.wav").exists()


def test_how_to_reach_the_server() -> None:
    """Each option ends where it belongs."""
    assert ServerOptions().connection() == Connection()
    assert ServerOptions("host:1", tls=True).connection() == Connection("host:1", tls=Tls())
    ca, cert, key = Path("ca.pem"), Path("cert.pem"), Path("key.pem")
    headers = ["authorization: Bearer a:b ", " tenant :c", "empty:"]
    assert ServerOptions("host:1", False, ca, cert, key, headers).connection() == Connection(
        "host:1", tls=Tls(ca, cert, key), headers={"authorization": "Bearer a:b", "tenant": "c", "empty": ""}
    )
    for one in ({"ca": ca}, {"cert": cert}, {"key": key}):
        assert ServerOptions(**one).connection().tls is not None


def test_options_reach_the_call(double: ProtocolDouble) -> None:
    result = vita("chat", "chunks 1", "-u", double.url, "-H", "tenant: a", "--timeout", "50")
    assert result.exit_code == 0
    assert double.headers[-1]["tenant"] == "a"
    assert 30 < double.deadlines_s[-1] < 51
    assert vita("health", "-u", double.url, "-H", "tenant: b").exit_code == 0
    assert double.asked[-1][0]["tenant"] == "b"


class PlayerDouble:
    """Takes the place of the loudspeaker; `last` is the one that was opened last."""

    last: PlayerDouble
    failure: OSError | None = None

    def __init__(self) -> None:
        self.pieces: list[np.ndarray] = []
        self.left_with: object = "open"
        PlayerDouble.last = self

    def write(self, samples: np.ndarray) -> None:
        if self.failure is not None:
            raise self.failure
        self.pieces.append(samples)

    def __enter__(self) -> PlayerDouble:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self.left_with = kind


def test_play(double: ProtocolDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "Player", PlayerDouble)
    path = tmp_path / "out.wav"
    for output in ([], ["-o", str(path)]):
        assert vita("say", "chunks 3", "--play", "-u", double.url, *output).exit_code == 0
        player = PlayerDouble.last
        np.testing.assert_array_equal(
            np.concatenate(player.pieces), np.concatenate([chunk_pcm(0, i) for i in range(3)])
        )
        assert player.left_with is None
    np.testing.assert_array_equal(read_wav(path)[1], np.concatenate(player.pieces))
    monkeypatch.setattr(PlayerDouble, "failure", OSError("the output device failed: unplugged"))
    result = vita("say", "chunks 3", "--play", "-u", double.url)
    assert result.exit_code == 4
    assert "vita: error: the output device failed: unplugged\n" in result.stderr
    assert PlayerDouble.last.left_with is OSError


def test_a_failure_in_the_middle_keeps_what_came(double: ProtocolDouble, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"an older file")
    result = vita("say", "abort INTERNAL no", "-o", str(path), "-u", double.url)
    assert (result.exit_code, path.read_bytes()) == (4, b"an older file")
    result = vita("say", "fail", "-o", str(path), "-u", double.url)
    assert result.exit_code == 4
    assert result.stdout == "one two \n"
    np.testing.assert_array_equal(read_wav(path)[1], np.concatenate([chunk_pcm(0, 0), chunk_pcm(0, 1)]))


def test_an_answer_without_sound_leaves_an_empty_wav(double: ProtocolDouble, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    assert vita("say", "ends done - end_token", "-o", str(path), "-u", double.url).exit_code == 0
    assert read_wav(path)[1].size == 0


def test_a_full_disk_keeps_what_is_written(
    double: ProtocolDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, path = WavWriter.write, tmp_path / "out.wav"

    def write_one(self: WavWriter, samples: np.ndarray) -> None:
        if self.samples:
            raise OSError(28, "No space left on device")
        write(self, samples)

    monkeypatch.setattr(WavWriter, "write", write_one)
    result = vita("say", "chunks 3", "-o", str(path), "--json", "-u", double.url)
    assert (result.exit_code, result.stderr) == (4, "vita: error: [Errno 28] No space left on device\n")
    answer = json.loads(result.stdout)
    assert (answer["outcome"], answer["audio_s"], answer["wav_s"]) == ("failed", 0.2, 0.1)
    np.testing.assert_array_equal(read_wav(path)[1], chunk_pcm(0, 0))


def test_health(double: ProtocolDouble) -> None:
    result = vita("health", "-u", double.url)
    assert (result.exit_code, result.stdout) == (0, f"ready: {double.url}\n")
    double.model_ready = False
    try:
        result = vita("health", "-u", double.url, "--json")
        assert result.exit_code == 3
        assert json.loads(result.stdout)["server"] is True
        result = vita("health", "-u", double.url, "--wait", "0.2")
        assert (result.exit_code, "not ready within 0.2 s" in result.stderr) == (3, True)
        result = vita("health", "-u", double.url, "--wait", "0.2", "--json")
        answer = json.loads(result.stdout)
        assert (result.exit_code, answer["ready"], answer["code"]) == (3, False, "not_ready")
        assert "not ready within 0.2 s" in answer["reason"]
    finally:
        double.model_ready = True
    result = vita("health", "-u", "nonsense", "--json")
    assert (result.exit_code, json.loads(result.stdout)["field"]) == (2, "url")


def test_usage_errors_are_one_line() -> None:
    code, out, errors = ended(start("chat", "hi", "--top-k", "many"))
    assert (code, out) == (2, b"")
    assert errors.decode().count("\n") == 1
    assert "--top-k" in errors.decode()
    assert ended(start("--help"))[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_cancels_the_stream_and_leaves_a_valid_wav(
    double: ProtocolDouble, tmp_path: Path, number: signal.Signals
) -> None:
    double.cancelled.clear()
    path = tmp_path / "out.wav"
    process = start("say", "chunks 100000 0.02", "-o", str(path), "-u", double.url)
    try:
        wait_for(lambda: path.exists() and path.stat().st_size > 44 + 3 * 2 * CHUNK_SAMPLES, process)
        process.send_signal(number)
    finally:
        code, _, errors = ended(process)
    assert code == 130
    assert "Traceback" not in errors.decode()
    assert "interrupted" in errors.decode()
    assert double.cancelled.wait(20)
    _, samples = read_wav(path)
    chunks = len(samples) // CHUNK_SAMPLES
    assert chunks >= 3
    np.testing.assert_array_equal(samples, np.concatenate([chunk_pcm(0, i) for i in range(chunks)]))


def test_a_killed_client_leaves_a_valid_wav(double: ProtocolDouble, tmp_path: Path) -> None:
    double.cancelled.clear()
    path = tmp_path / "out.wav"
    process = start("say", "chunks 100000 0.001", "-o", str(path), "-u", double.url)
    try:
        wait_for(lambda: path.exists() and path.stat().st_size > 44 + 50 * 2 * CHUNK_SAMPLES, process)
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    assert len(read_wav(path)[1]) % CHUNK_SAMPLES == 0
    assert double.cancelled.wait(20)


def test_on_a_terminal_the_numbers_are_live(double: ProtocolDouble) -> None:
    terminal, side = pty.openpty()
    process = start("chat", "chunks 8 0.1", "-u", double.url, stdin=side, stdout=side, stderr=side)
    os.close(side)
    shown = b""
    while process.poll() is None or select.select([terminal], [], [], 0)[0]:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # Linux says EIO when the other side is closed
                break
    os.close(terminal)
    assert process.wait(PATIENCE_S) == 0, shown
    text = shown.decode()
    assert text.count("real-time factor") >= 2  # while it ran, and at the end
    assert "".join(chunk_text(0, i) for i in range(8)).strip() in text.replace("\r\n", "")


def test_the_live_view_shows_the_end_of_a_long_text() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=20, height=6)
    metrics = Metrics(100, 10, 50, 90, 3, 12, 0.3)
    view = LiveView(console)
    view.event(TextDelta("word " * 100 + "[bold]end"), metrics)
    group = list(view._render().renderables)
    assert len(group) == 5
    assert "[bold]end" in str(group[-2])
    view.stop()
    view.stop()
    assert screen.getvalue().count("[bold]end") >= 1
    assert numbers(metrics) == "first audio 50 ms | 0.3 s of sound | real-time factor 0.30 | 120 tokens/s"


def test_what_is_shown_ends_before_the_line_that_says_what_failed(
    double: ProtocolDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    ended: list[bool] = []
    monkeypatch.setattr(cli, "choose_view", lambda *_: SimpleNamespace(stop=lambda: ended.append(True)))
    monkeypatch.setattr(cli, "run_stream", full)
    result = vita("say", "chunks 1", "-o", str(tmp_path / "out.wav"), "-u", double.url)
    assert (result.exit_code, ended) == (4, [True])
    assert "No space left on device" in result.stderr
