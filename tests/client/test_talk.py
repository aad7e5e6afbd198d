"""`vita talk`: files, lines and a microphone are turns of one conversation; an interrupted answer does not end it."""

from __future__ import annotations

import io
import json
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from client_command import ended, start, wait_for
from client_protocol_double import ProtocolDouble, chunk_pcm
from vita_client import Client, InvalidRequest, cli
from vita_client.microphone import from_microphone
from vita_client.talk import _answer
from vita_client.terminal import View
from wav_files import read_wav


def vita(*arguments: str, stdin: str | bytes | None = None) -> Any:
    return CliRunner().invoke(cli.app, list(arguments), input=stdin)


def histories(double: ProtocolDouble) -> list[list[int] | None]:
    return [None if "HISTORY" not in inputs else np.asarray(inputs["HISTORY"]).tolist() for inputs in double.inputs]


def test_lines_are_turns_of_one_conversation(double: ProtocolDouble, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    done = vita("talk", "-u", double.url, "-o", str(path), "--system", "Ada", stdin="turn 2\n\n  \nturn 1\n")
    assert done.exit_code == 0, done.output
    assert done.stdout == "s0c0 é s0c1 é \ns0c0 é \n"
    assert histories(double) == [None, [1000, 0, 1]]
    assert [inputs.get("SYSTEM") for inputs in double.inputs] == ["Ada", None]
    sound = np.concatenate([chunk_pcm(0, 0), chunk_pcm(0, 1), chunk_pcm(0, 0)])
    np.testing.assert_array_equal(read_wav(path)[1], sound)


def test_sound_files_are_turns(double: ProtocolDouble, tmp_path: Path) -> None:
    files = [str(tmp_path / f"{number}.wav") for number in range(2)]
    for number, file in enumerate(files):
        soundfile.write(file, np.full(8000 * (number + 1), 0.1), 8_000)
    double.spoken = "turn 2"
    done = vita("talk", *files, "-u", double.url, "--json")
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["outcome"] for line in done.stdout.splitlines()] == ["done"] * 2
    assert [len(np.asarray(inputs["AUDIO"])) for inputs in double.inputs] == [16_000, 32_000]


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "words"),
    [
        (["none.wav"], None, 2, "none.wav"),
        ([], "fail\n", 4, "engine"),
        (["-o", "/nowhere/out.wav"], "turn 1\n", 2, "there is no folder"),
        (["--timeout", "0"], "turn 1\n", 2, "timeout_s"),
        (["--microphone"], "\n", 2, "microphone"),
        (["--microphone", "one.wav"], "\n", 2, "the turns are sound files; leave out one of the two"),
        (["--top-p", "7"], "turn 1\n", 2, "TOP_P"),
        (["-u", "nonsense"], "turn 1\n", 2, "host:port"),
        ([], b"caf\xe9\n", 2, "it is not UTF-8 at byte 3"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_problem_is_one_line(
    double: ProtocolDouble,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    stdin: str | bytes,
    code: int,
    words: str,
    as_json: bool,
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    done = vita("talk", "-u", double.url, *arguments, *["--json"] * as_json, stdin=stdin)
    assert done.exit_code == code, done.output
    errors = [line for line in done.stderr.splitlines() if line.startswith("vita: error: ")]
    assert len(errors) == 1
    assert words in done.stderr
    if as_json:
        (told,) = map(json.loads, done.stdout.splitlines())
        assert words in told["error"]


def test_a_problem_of_a_later_turn_is_told_after_the_answers(double: ProtocolDouble, tmp_path: Path) -> None:
    file = tmp_path / "0.wav"
    soundfile.write(file, np.full(8000, 0.1), 8_000)
    double.spoken = "turn 1"
    done = vita("talk", str(file), "none.wav", "-u", double.url, "--json")
    assert done.exit_code == 2
    assert [json.loads(line)["outcome"] for line in done.stdout.splitlines()] == ["done", "failed"]


def test_no_turn_is_no_conversation(double: ProtocolDouble) -> None:
    assert vita("talk", "-u", double.url, stdin="").exit_code == 0
    assert double.inputs == []


def test_ctrl_c_interrupts_an_answer_and_the_next_turn_follows(double: ProtocolDouble) -> None:
    process = start("talk", "-u", double.url, stdin=-1)
    assert process.stdin is not None
    process.stdin.write(b"turn 500 0.02\n")
    process.stdin.flush()
    wait_for(lambda: len(double.inputs) == 1, process)
    process.send_signal(signal.SIGINT)
    wait_for(double.cancelled.is_set, process)
    process.stdin.write(b"turn 1\n")
    process.stdin.flush()
    code, _, errors = ended(process)
    assert code == 0, errors
    # Where the interruption came before the first response, the first turn is not part of the second.
    assert [str(inputs["TEXT"]).strip() for inputs in double.inputs] == ["turn 500 0.02", "turn 1"]


class Played:
    """A player that has played half a second when it is stopped; Ctrl-C comes with the first sound."""

    played_s, calls = 0.5, list[str]()

    def write(self, samples: object) -> None:
        raise KeyboardInterrupt

    def finish(self) -> None:
        raise KeyboardInterrupt

    def stop(self) -> None:
        self.calls.append("stop")


class PlayedAtTheEnd(Played):
    """Ctrl-C comes when the server is done and the sound is not."""

    def write(self, samples: object) -> None:
        pass


@pytest.mark.parametrize("player", [Played, PlayedAtTheEnd])
def test_an_answer_counts_as_far_as_it_was_played(
    double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch, player: type[Played]
) -> None:
    from vita_client import talk as module

    monkeypatch.setattr(module, "Player", player)
    monkeypatch.setattr(player, "calls", [])
    with Client(double.url) as client:
        talk = client.conversation()
        talk.append_text("turn 3")
        _answer(talk, module.SoundFile(cli.StreamOptions()), play=True, view=View())
        assert player.calls == ["stop"]
        talk.respond("turn 1").collect()
    assert double.inputs[1]["HEARD"] == 6


@pytest.mark.parametrize("text", ["turn 3", "hang"])
def test_an_answer_that_was_interrupted_before_it_began_leaves_the_one_before_it_alone(
    double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """The first turn, too: there is nothing that could have been heard of it."""
    from vita_client import talk as module

    def interrupted(stream: Any, *rest: Any, **more: Any) -> None:
        stream.cancel()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "Player", Played)
    with Client(double.url) as client:
        talk = client.conversation()
        if text != "hang":
            talk.respond(text).collect()
        talk.append_text("hang")
        with monkeypatch.context() as patch:
            patch.setattr(module, "consume", interrupted)
            _answer(talk, module.SoundFile(cli.StreamOptions()), play=True, view=View())
        talk.respond("turn 1").collect()
    assert "HEARD" not in double.inputs[-1]
    assert double.inputs[-1]["TEXT"] == "turn 1"


class Microphone:
    """An input device that gives 0.1 s for each block as soon as it is started."""

    opened: ClassVar[list[Microphone]] = []

    def __init__(self, callback: Callable[..., None], **options: object) -> None:
        assert options == {"samplerate": 16_000, "channels": 1, "dtype": "int16", "blocksize": 1600}
        self.callback, self.calls = callback, list[str]()
        Microphone.opened.append(self)

    def start(self) -> None:
        for _ in range(3):
            self.callback(np.full((1600, 1), 1000, np.int16), 1600, None, None)

    def stop(self) -> None:
        self.calls.append("stop")

    def close(self) -> None:
        self.calls.append("close")


def test_a_microphone_is_open_for_a_turn(double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("sounddevice")
    module.InputStream, module.PortAudioError = Microphone, OSError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\n\n\n")))
    monkeypatch.setattr(Microphone, "opened", [])
    with Client(double.url) as client:
        talk = client.conversation()
        turns: Iterator[Callable[[Any], None]] = from_microphone()
        for seconds in (0.3, 0.6):
            next(turns)(talk)
            assert talk.seconds == pytest.approx(seconds)
        assert next(turns, None) is None
    assert [device.calls for device in Microphone.opened] == [["stop", "close"]] * 2


def test_a_microphone_that_is_not_there_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        PortAudioError = OSError

        @staticmethod
        def InputStream(**_: object) -> None:
            raise OSError("no default input device")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\n")))
    for package, words in (
        (None, "there is none to speak into .*; install the extra 'play'"),
        (Failing, "no input device"),
    ):
        monkeypatch.setitem(sys.modules, "sounddevice", package)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match=f"^microphone: True is not valid: {words}"):
            next(from_microphone())(None)
