"""Encoded sound is the sound that was pushed, whatever the pieces were."""

from __future__ import annotations

import io
import wave
from typing import get_args

import numpy as np
import pytest
import soxr

from gateway.http.chat_request import AudioParams
from gateway.http.speech import SpeechRequest
from gateway.sound import encode
from gateway.sound.decode import decode
from gateway.sound.encode import CONTENT_TYPES, RATE_HZ, Encoder, FileFormat, Format
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ

SECONDS = 2.0
TIME = np.arange(round(SECONDS * OUTPUT_SAMPLE_RATE_HZ)) / OUTPUT_SAMPLE_RATE_HZ
TONE = (8_000 * np.sin(2 * np.pi * 440 * TIME)).astype(np.int16)


def encoded(name: Format, piece: int = 1_764, speed: float = 1.0) -> bytes:
    encoder = Encoder(name, speed)
    pieces = [encoder.push(TONE[start : start + piece]) for start in range(0, len(TONE), piece)]
    return b"".join(pieces) + encoder.finish()


def pitch_hz(samples: np.ndarray, rate_hz: int) -> float:
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4]
    return float(np.argmax(np.abs(np.fft.rfft(middle))) * rate_hz / len(middle))


@pytest.mark.parametrize("piece", [1, 311, 1_764, len(TONE)])
def test_pieces_leave_no_seam(piece: int) -> None:
    """What resampling the whole gives, but for the dither of 16 bit."""
    tone = TONE if piece > 1 else TONE[:2_000]
    encoder = Encoder("pcm")
    pieces = [encoder.push(tone[start : start + piece]) for start in range(0, len(tone), piece)]
    samples = np.frombuffer(b"".join(pieces) + encoder.finish(), "<i2")
    whole = soxr.ResampleStream(OUTPUT_SAMPLE_RATE_HZ, RATE_HZ, 1, dtype="int16").resample_chunk(tone, last=True)
    np.testing.assert_allclose(samples, whole, atol=3)


@pytest.mark.parametrize("name", CONTENT_TYPES)
def test_a_file_has_the_sound(name: Format) -> None:
    file = encoded(name)
    if name == "pcm":
        samples = soxr.resample(np.frombuffer(file, "<i2") / 32_768, RATE_HZ, 16_000)
    else:
        samples = decode(file, "file")
    assert len(samples) / 16_000 == pytest.approx(SECONDS, abs=0.1)
    assert pitch_hz(samples, 16_000) == pytest.approx(440, abs=3)
    assert np.abs(samples).max() == pytest.approx(8_000 / 32_768, abs=0.03)
    assert encoded(name, piece=5_000)[:4] == file[:4]


@pytest.mark.parametrize("name", CONTENT_TYPES)
def test_a_file_begins_before_its_sound_ends(name: Format) -> None:
    encoder = Encoder(name)
    assert sum(len(encoder.push(TONE[:4_410])) for _ in range(5)) > 100  # of one second
    encoder.close()
    encoder.close()


def test_a_wav_file_states_its_format() -> None:
    with wave.open(io.BytesIO(encoded("wav"))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE_HZ)


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.9, 2.0, 4.0])
def test_another_speed_keeps_the_pitch(speed: float) -> None:
    samples = np.frombuffer(encoded("pcm", speed=speed), "<i2")
    assert len(samples) / RATE_HZ == pytest.approx(SECONDS / speed, rel=0.05, abs=0.05)
    assert pitch_hz(samples, RATE_HZ) == pytest.approx(440, abs=8)


@pytest.mark.parametrize("name", CONTENT_TYPES)
def test_nothing_is_a_file_too(name: Format) -> None:
    file = Encoder(name).finish()
    assert len(file) < 10_000
    if name == "wav":
        assert file.startswith(b"RIFF")


def test_the_lists_of_formats_agree() -> None:
    speech, chat = SpeechRequest.model_json_schema(), AudioParams.model_json_schema()
    assert tuple(CONTENT_TYPES) == get_args(Format) == tuple(speech["properties"]["response_format"]["enum"])
    assert (*get_args(FileFormat), "pcm16") == tuple(chat["properties"]["format"]["enum"])
    assert set(encode._CODECS) < set(get_args(FileFormat))
