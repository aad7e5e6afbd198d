"""Pipes on either side of the command: `-`, /dev/stdout, /dev/stdin, FIFOs and substituted processes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from client_command import ENVIRONMENT, ROOT, ended, start
from client_protocol_double import CHUNK_SAMPLES, ProtocolDouble, chunk_pcm, chunk_text
from vita_client import cli

TEXT = "".join(chunk_text(0, i) for i in range(3)) + "\n"
SOUND = b"".join(chunk_pcm(0, i).astype("<i2").tobytes() for i in range(3))


@pytest.fixture(scope="module")
def double() -> Iterator[ProtocolDouble]:
    server = ProtocolDouble()
    yield server
    server.close()


def speech() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(800), 8_000, format="WAV")
    return file.getvalue()


def is_stream(wav: bytes) -> bool:
    """Whether it is the sound of three chunks behind the header of a stream."""
    return (wav[:4], wav[4:8], wav[40:44], wav[44:]) == (b"RIFF", b"\xff" * 4, b"\xff" * 4, SOUND)


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_sound_on_standard_output_has_it_for_itself(double: ProtocolDouble, name: str) -> None:
    code, out, errors = ended(start("say", "chunks 3", "-o", name, "-u", double.url))
    assert code == 0
    assert is_stream(out)
    assert errors.decode().startswith(TEXT + "done (end_token) | first audio")
    assert errors.decode().endswith(" -> - (0.3 s)\n")


def test_a_file_that_is_standard_output_is_written_once(double: ProtocolDouble, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    with path.open("wb") as file:
        assert start("say", "chunks 3", "-o", "/dev/stdout", "-u", double.url, stdout=file).wait(120) == 0
    assert is_stream(path.read_bytes())


def test_json_beside_the_sound_goes_to_standard_error(double: ProtocolDouble) -> None:
    result = CliRunner().invoke(cli.app, ["say", "chunks 3", "-o", "-", "--json", "-u", double.url])
    assert result.exit_code == 0
    assert is_stream(result.stdout_bytes)
    assert (json.loads(result.stderr)["wav"], json.loads(result.stderr)["wav_s"]) == ("-", 0.3)
    refused = CliRunner().invoke(cli.app, ["say", " ", "-o", "-", "--json", "-u", double.url])
    assert (refused.exit_code, refused.stdout_bytes) == (2, b"")
    assert json.loads(refused.stderr.splitlines()[0])["code"] == "invalid_request"


def test_no_sound_on_a_terminal(double: ProtocolDouble) -> None:
    seen = len(double.requests)
    terminal, side = os.openpty()
    for name in ("-", "/dev/stdout"):
        code, _, errors = ended(start("say", "chunks 3", "-o", name, "-u", double.url, stdout=side))
        assert code == 2
        assert b"standard output is a terminal; redirect it, or name a file" in errors
    os.close(terminal)
    os.close(side)
    assert len(double.requests) == seen


def test_dev_null_is_a_file_like_others(double: ProtocolDouble) -> None:
    code, _, errors = ended(start("say", "chunks 3", "-o", os.devnull, "-u", double.url, stdout=subprocess.DEVNULL))
    assert code == 0
    assert TEXT not in errors.decode()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_before_the_end_is_no_success(double: ProtocolDouble, unbuffered: str) -> None:
    process = start("health", "-u", double.url, env={**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered})
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(120) == cli.FAILED
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("script", ["chat TEXT", "say TEXT -o -", "say TEXT -o /dev/stdout"])
def test_a_reader_of_standard_output_that_leaves_ends_the_command(double: ProtocolDouble, script: str) -> None:
    double.cancelled.clear()
    words = [word.replace("TEXT", "chunks 100000 0.005") for word in script.split()]
    process = start(*words, "-u", double.url)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(120) == cli.FAILED
    errors = process.stderr.read()
    process.stderr.close()
    assert b"Traceback" not in errors
    assert b"Exception ignored" not in errors
    assert b"vita: error" not in errors  # a reader may leave when it has enough
    assert double.cancelled.wait(20)


def test_a_reader_of_a_fifo_that_leaves_ends_the_command(double: ProtocolDouble, tmp_path: Path) -> None:
    double.cancelled.clear()
    fifo, head = tmp_path / "fifo", []
    os.mkfifo(fifo)

    def read() -> None:
        with fifo.open("rb") as file:
            head.append(file.read(4))

    reader = threading.Thread(target=read)
    reader.start()
    code, out, errors = ended(start("say", "chunks 100000 0.005", "-o", str(fifo), "-u", double.url))
    reader.join(10)
    assert (code, head, b"Traceback" in errors) == (cli.FAILED, [b"RIFF"], False)
    assert out.endswith(b"\n")
    assert double.cancelled.wait(20)


def shell(script: str, double: ProtocolDouble, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A script of bash with `vita`; it fails with the first command that does."""
    functions = f'set -eo pipefail\nvita() {{ "{sys.executable}" -m vita_client "$@" -u {double.url}; }}\n'
    return subprocess.run(
        ["bash", "-c", functions + script], input=stdin, capture_output=True, env=ENVIRONMENT, cwd=ROOT, timeout=240
    )


@pytest.mark.parametrize(
    "script",
    [
        "cat | vita transcribe /dev/stdin",
        "cat | vita transcribe -",
        "vita transcribe <(cat)",
        'cat > "$SPOKEN" & vita transcribe "$SPOKEN"',
    ],
)
def test_speech_from_a_pipe(
    double: ProtocolDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    fifo = tmp_path / "spoken"
    os.mkfifo(fifo)
    monkeypatch.setitem(ENVIRONMENT, "SPOKEN", str(fifo))
    # bash gives a background command the null device as its input, unless it is asked not to.
    done = shell("exec 3<&0\n" + script.replace("cat >", "cat <&3 >").replace("<(cat)", "<(cat <&3)"), double, speech())
    assert (done.returncode, done.stdout.decode()) == (0, TEXT), done.stderr
    assert np.shape(double.inputs[-1]["AUDIO"]) == (1600,)


def test_one_command_speaks_to_the_next(double: ProtocolDouble) -> None:
    done = shell('vita say "chunks 3" -o - 2>/dev/null | vita ask -', double)
    assert (done.returncode, done.stdout.decode()) == (0, TEXT), done.stderr
    assert np.shape(double.inputs[-1]["AUDIO"]) == (round(3 * CHUNK_SAMPLES / 22_050 * 16_000),)


def test_a_file_on_standard_input(double: ProtocolDouble, tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    path.write_bytes(speech())
    done = shell(f"vita transcribe - < {path}", double)
    assert (done.returncode, done.stdout.decode()) == (0, TEXT), done.stderr


@pytest.mark.parametrize(
    ("script", "field"),
    [
        ("vita ask - <&-", "AUDIO"),
        ("vita chat - <&-", "TEXT"),
        ("vita talk <&-", "TEXT"),
        ("vita talk --microphone <&-", "microphone"),
    ],
)
def test_a_closed_standard_input_is_named(double: ProtocolDouble, script: str, field: str) -> None:
    done = shell(script, double)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert f"{field}: '-' is not valid: standard input is closed" in done.stderr.decode()


def test_a_closed_standard_output_does_no_harm(double: ProtocolDouble) -> None:
    done = shell('vita chat "chunks 3" >&-', double)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def test_no_sound_on_standard_input_is_named(double: ProtocolDouble) -> None:
    done = shell("echo text | vita ask -", double)
    assert done.returncode == 2
    assert b"AUDIO: 'standard input' is not valid: it is not a sound file" in done.stderr


def test_a_closed_standard_error_leaves_the_sound_alone(double: ProtocolDouble) -> None:
    done = shell('vita say "chunks 3" -o - 2>&-', double)
    assert done.returncode == 0
    assert is_stream(done.stdout)
    assert shell("vita chat fail 2>&-", double).returncode == cli.FAILED


@pytest.mark.parametrize(
    "script", ["health", "health --json", 'chat "chunks 3"', 'chat "chunks 3" --json', "chat fail --json"]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output_is_one_line(
    double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch, script: str, unbuffered: str
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "PYTHONUNBUFFERED", unbuffered)
    done = shell(f"vita {script} > /dev/full", double)
    assert done.returncode == cli.FAILED
    *numbers, error = done.stderr.decode().splitlines()
    assert error == "vita: error: [Errno 28] No space left on device"
    assert all(line.startswith("failed | ") for line in numbers)


def test_a_full_standard_error_ends_with_its_code(double: ProtocolDouble) -> None:
    assert shell('vita chat "chunks 3" 2> /dev/full', double).returncode == cli.FAILED
    assert shell("vita chat hi --top-p 7 2> /dev/full", double).returncode == cli.BAD_INPUT


def test_an_encoding_that_lacks_a_character_gets_its_number(
    double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "PYTHONIOENCODING", "ascii")
    done = shell('vita chat "chunks 3"', double)
    assert (done.returncode, done.stdout.decode("ascii")) == (0, TEXT.replace("é", r"\xe9")), done.stderr
    done = shell('vita chat "chunks 3" --json', double)
    assert (done.returncode, json.loads(done.stdout)["text"]) == (0, TEXT.removesuffix("\n")), done.stderr
