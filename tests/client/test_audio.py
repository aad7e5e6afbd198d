"""Speech read by the client: formats, rates, channels, limits, pipes."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import vita_client.audio
from vita_client import InvalidRequest, WavWriter
from vita_client.audio import load_speech


def tone(rate_hz: int, seconds: float = 0.5, frequency_hz: float = 440.0) -> np.ndarray:
    """A sine of amplitude 0.5: float32 [samples]."""
    return (0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(int(rate_hz * seconds)) / rate_hz)).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_any_rate_becomes_16_khz_with_the_same_sound(rate_hz: int) -> None:
    speech = load_speech(tone(rate_hz), rate_hz)
    assert speech.dtype == np.float32
    assert abs(len(speech) - 8000) <= 1
    expected = tone(16_000)[: len(speech)]
    inner = slice(800, 7200)  # filters ring at the ends
    assert np.abs(speech[inner] - expected[inner]).max() < 0.01


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au"])
def test_file_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"speech.{suffix}"
    soundfile.write(path, tone(44_100), 44_100)
    speech = load_speech(path)
    assert abs(len(speech) - 8000) < 1200  # compressed formats pad
    assert 0.4 < np.abs(speech).max() < 0.6
    with path.open("rb") as file:
        np.testing.assert_array_equal(load_speech(io.BytesIO(file.read())), speech)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_wav_subtypes(tmp_path: Path, subtype: str) -> None:
    path = tmp_path / "speech.wav"
    soundfile.write(path, tone(16_000), 16_000, subtype=subtype)
    assert np.abs(load_speech(path) - tone(16_000)).max() < 0.03


def test_channels_are_mixed_down_to_their_mean(tmp_path: Path) -> None:
    left, right = tone(16_000), np.zeros(8000, np.float32)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(load_speech(path), left / 2, atol=1e-6)
    np.testing.assert_allclose(load_speech(np.stack([left, right, right, right], axis=1)), left / 4, atol=1e-6)


def test_integer_arrays_are_scaled() -> None:
    np.testing.assert_allclose(load_speech(np.array([-32768, 0, 16384] * 200, np.int16)), [-1.0, 0.0, 0.5] * 200)
    np.testing.assert_allclose(load_speech(np.array([-(2**31), 2**30] * 200, np.int32)), [-1.0, 0.5] * 200)


def test_a_little_overshoot_is_clipped() -> None:
    speech = load_speech(np.array([1.2, -1.3, 0.1] * 200, np.float64))
    assert speech.tolist() == pytest.approx([1.0, -1.0, 0.1] * 200)


@pytest.mark.parametrize(
    ("samples", "rate_hz", "field", "words"),
    [
        (np.zeros(0, np.float32), 16_000, "AUDIO", "it is empty"),
        (np.zeros((0, 2), np.float32), 16_000, "AUDIO", "it is empty"),
        (np.zeros(319, np.float32), 16_000, "AUDIO", r"at least 0\.02 s"),
        (np.array([0, np.nan, np.inf] * 200, np.float32), 16_000, "AUDIO", "nan at sample 1"),
        (np.array([0.0, 30_000.0] * 200), 16_000, "AUDIO", "a peak of 30000"),
        (np.zeros(120 * 8000 + 8001, np.float32), 8_000, "AUDIO", r"\(121\.00 s\)' is not valid: at most 120 s"),
        (np.zeros((2, 16_000), np.float32), 16_000, "AUDIO", r"\[samples, channels\]"),
        (np.zeros((4, 4, 4), np.float32), 16_000, "AUDIO", r"\[samples, channels\]"),
        (np.zeros(9, np.int64), 16_000, "AUDIO", "int64"),
        (np.array(["a"]), 16_000, "AUDIO", "floats"),
        (np.zeros(9, np.float32), 0, "SAMPLE_RATE", "8000 to 192000"),
        (np.zeros(9, np.float32), -16_000, "SAMPLE_RATE", "8000 to 192000"),
        (np.zeros(9, np.float32), 10**9, "SAMPLE_RATE", "8000 to 192000"),
        (np.zeros(9, np.float32), 16_000.5, "SAMPLE_RATE", "whole number"),
    ],
)
def test_bad_arrays_are_named(samples: np.ndarray, rate_hz: int, field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        load_speech(samples, rate_hz)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    noise, empty, text = tmp_path / "noise.wav", tmp_path / "empty.wav", tmp_path / "text.txt"
    noise.write_bytes(bytes(range(256)) * 20)
    empty.write_bytes(b"")
    text.write_text("hello")
    raw = tmp_path / "headerless.raw"
    raw.write_bytes(bytes(1000))
    for path in (noise, empty, text, raw):
        with pytest.raises(InvalidRequest, match="not a sound file that libsndfile can read"):
            load_speech(path)
    with pytest.raises(InvalidRequest, match="no such file"):
        load_speech(tmp_path / "nowhere.wav")
    with pytest.raises(InvalidRequest, match="a folder"):
        load_speech(tmp_path)
    with pytest.raises(InvalidRequest, match="states its own rate"):
        load_speech(noise, 16_000)


def test_a_file_is_called_by_its_name_else_by_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    path.write_text("text")
    monkeypatch.chdir(tmp_path)
    for source, name in ((io.BytesIO(b"text"), "BytesIO"), (open("text", "rb"), "text")):  # noqa: SIM115
        with source, pytest.raises(InvalidRequest, match=f"AUDIO: '{name}' is not valid: it is not a sound file"):
            load_speech(source)


@pytest.mark.parametrize(
    "source", [b"text", [0.1] * 800, 0, None, object(), io.StringIO("text")], ids=lambda source: type(source).__name__
)
@pytest.mark.parametrize("rate_hz", [None, 16_000])
def test_what_is_no_file_is_named_by_its_type(source: Any, rate_hz: int | None) -> None:
    kind = type(source).__name__
    limit = rf"^AUDIO: 'type {kind}' is not valid: it is a path, a binary file or an array; .*io\.BytesIO.*asarray$"
    with pytest.raises(InvalidRequest, match=limit):
        load_speech(source, rate_hz)


def test_limits_of_files(tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    soundfile.write(path, np.zeros(0, np.float32), 16_000)
    with pytest.raises(InvalidRequest, match="it is empty"):
        load_speech(path)
    soundfile.write(path, np.zeros(4000), 4_000)
    with pytest.raises(InvalidRequest, match="SAMPLE_RATE: 4000"):
        load_speech(path)
    soundfile.write(path, np.zeros(16_000 * 121), 16_000)
    with pytest.raises(InvalidRequest, match="at most 120 s"):
        load_speech(path)
    soundfile.write(path, np.array([0.0, np.nan] * 200), 16_000, subtype="FLOAT")
    with pytest.raises(InvalidRequest, match="nan at sample 1"):
        load_speech(path)
    soundfile.write(path, np.zeros((1000, 40)), 16_000)
    with pytest.raises(InvalidRequest, match="40 channels"):
        load_speech(path)


def _wav(seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(16_000, seconds), 16_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


class Unseekable(io.RawIOBase):
    """Bytes as a pipe gives them: some at a time, and no way back."""

    def __init__(self, content: bytes) -> None:
        self._rest = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        piece = self._rest.read(min(1000, len(buffer)))
        buffer[: len(piece)] = piece
        return len(piece)


def _write_and_close(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as pipe:
        pipe.write(content)


@pytest.mark.parametrize("kind", ["fifo", "descriptor", "object"])
def test_what_cannot_seek_is_read_whole(tmp_path: Path, kind: str) -> None:
    content, path = _wav(), tmp_path / "speech.wav"
    if kind == "object":
        np.testing.assert_array_equal(load_speech(io.BufferedReader(Unseekable(content))), tone(16_000))
        return
    if kind == "fifo":
        os.mkfifo(path)
        writer = threading.Thread(target=path.write_bytes, args=(content,))
        writer.start()
        speech = load_speech(path)
    else:  # what <(...) of a shell gives: its writer may have ended before the descriptor is opened
        reading, writing = os.pipe()
        writer = threading.Thread(target=_write_and_close, args=(writing, content))
        writer.start()
        try:
            speech = load_speech(f"/dev/fd/{reading}")
        finally:
            os.close(reading)
    writer.join(10)
    np.testing.assert_array_equal(speech, tone(16_000))


def test_a_pipe_with_no_sound_is_named() -> None:
    for content in (b"", b"text", _wav()[:20]):
        with pytest.raises(InvalidRequest, match="'BufferedReader' is not valid: it is not a sound file"):
            load_speech(io.BufferedReader(Unseekable(content)))
    with pytest.raises(InvalidRequest, match=r"'/dev/null' is not valid: it is not a sound file"):
        load_speech(os.devnull)


def test_a_pipe_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vita_client.audio, "_MAX_PIPED_BYTES", 100_000)
    with pytest.raises(InvalidRequest, match="a pipe may bring at most 100000 bytes"):
        load_speech("/dev/zero")
    with pytest.raises(InvalidRequest, match="a pipe may bring at most 100000 bytes"):
        load_speech(io.BufferedReader(Unseekable(bytes(100_001))))
    with pytest.raises(InvalidRequest, match="not a sound file"):
        load_speech(io.BufferedReader(Unseekable(bytes(100_000))))


def test_a_streamed_wav_is_read_to_its_end() -> None:
    """What `vita say -o -` writes can be piped into `vita ask -`."""
    file = io.BytesIO()
    with WavWriter(file) as writer:
        for start in range(0, 22_050, 4000):
            writer.write((tone(22_050, 1) * 32767).astype(np.int16)[start : start + 4000])
    speech = load_speech(io.BufferedReader(Unseekable(file.getvalue())))
    assert len(speech) == 16_000
    assert np.abs(speech - tone(16_000, 1))[800:-800].max() < 0.01


@pytest.mark.parametrize("channels", [[1, -1], [1, -0.9], [1, 0, -1], [-0.5, 1, -0.5]])
def test_channels_that_cancel_each_other_out_are_not_mixed(channels: list[float]) -> None:
    speech = tone(16_000)
    assert np.array_equal(load_speech(np.stack([c * speech for c in channels], axis=1), 16_000), speech)


@pytest.mark.parametrize("channels", [[1, 1], [1, 0], [1, 0.5, 0], [0, 0]])
def test_other_channels_are(channels: list[float]) -> None:
    speech = tone(16_000)
    mixed = load_speech(np.stack([c * speech for c in channels], axis=1), 16_000)
    np.testing.assert_allclose(mixed, np.mean(channels) * speech, atol=1e-6)


def test_a_file_that_may_not_be_read_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "secret.wav").touch()
    monkeypatch.setattr(soundfile, "SoundFile", refused)
    whole = r"^AUDIO: '.* is not valid: it may not be read; check its permissions$"
    with pytest.raises(InvalidRequest, match=whole):
        load_speech(tmp_path / "secret.wav")
