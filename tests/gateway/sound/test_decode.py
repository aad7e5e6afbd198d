"""Files of any format become samples; anything else, and what would open other files, is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gateway.sound.decode import decode
from vita_audio.contract.errors import InvalidRequest
from vita_client.audio import load_speech

QUESTION = Path(__file__).resolve().parents[3] / "examples" / "question.wav"


def file_of(samples: np.ndarray, rate_hz: int, **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, **options)
    return buffer.getvalue()


def test_a_file_is_read_as_the_client_reads_it() -> None:
    np.testing.assert_array_equal(decode(QUESTION.read_bytes(), "file"), load_speech(QUESTION))


@pytest.mark.parametrize(
    ("rate_hz", "channels", "options"),
    [
        (8_000, 1, {"format": "WAV", "subtype": "ULAW"}),
        (44_100, 2, {"format": "WAV", "subtype": "PCM_24"}),
        (48_000, 2, {"format": "FLAC"}),
        (22_050, 1, {"format": "OGG", "subtype": "VORBIS"}),
        (48_000, 1, {"format": "OGG", "subtype": "OPUS"}),
        (24_000, 1, {"format": "MP3"}),
    ],
)
def test_formats_rates_and_channels(rate_hz: int, channels: int, options: dict[str, str]) -> None:
    tone = 0.25 * np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz)
    samples = decode(file_of(np.repeat(tone[:, np.newaxis], channels, axis=1), rate_hz, **options), "file")
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(16_000, abs=1_200)
    assert np.abs(samples[4_000:12_000]).max() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    "file",
    [
        b"no sound",
        b"\0" * 5_000,
        QUESTION.read_bytes()[:30],
        b"RIFF" + b"\xff" * 100,
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"<?xml version='1.0'?><MPD><BaseURL>http://127.0.0.1/</BaseURL></MPD>",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
    ],
)
def test_what_is_no_sound_file_is_refused(file: bytes) -> None:
    with pytest.raises(InvalidRequest, match="it is not a sound file that can be read") as caught:
        decode(file, "file")
    assert caught.value.field == "file"


def test_bounds() -> None:
    with pytest.raises(InvalidRequest, match="it is empty"):
        decode(b"", "file")
    assert len(decode(file_of(np.zeros(8_000 * 119), 8_000, format="FLAC"), "file")) / 16_000 == pytest.approx(119)
    with pytest.raises(InvalidRequest, match="at most 120 s are taken"):
        decode(file_of(np.zeros(8_000 * 10_000, np.int16), 8_000, format="FLAC"), "file")
