"""Sound in the three formats: what goes in comes out, however it is cut."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.realtime.formats import SoundWriter, SpeechReader

FORMATS = ("audio/pcm", "audio/pcmu", "audio/pcma")


def tone(rate_hz: int) -> np.ndarray:
    """One second of 440 Hz at half of full scale."""
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("piece", [37, 333, 100_000])
def test_a_tone_survives_both_ways_in_pieces_of_any_length(name: str, piece: int) -> None:
    writer, sound = SoundWriter(name), (tone(22_050) * 32_767).astype(np.int16)
    encoded = writer.write(sound[:1000]) + writer.write(sound[1000:]) + writer.finish()
    assert writer.seconds(encoded) == pytest.approx(1, abs=1e-3)
    reader = SpeechReader(name)
    read = [reader.read(encoded[at : at + piece]) for at in range(0, len(encoded), piece)]
    heard = np.concatenate([*read, reader.finish()])
    assert len(heard) == pytest.approx(16_000, abs=2)
    assert np.abs(heard[300:-300] - tone(16_000)[300 : len(heard) - 300]).max() < (
        1e-3 if name == "audio/pcm" else 0.03
    )


def test_half_a_sample_waits_and_nothing_is_nothing() -> None:
    reader = SpeechReader("audio/pcm")
    assert not len(reader.read(b""))
    assert not len(reader.read(b"\x01"))
    assert not len(reader.finish())


def test_a_stream_goes_on_after_finish() -> None:
    reader = SpeechReader("audio/pcm")
    for _ in range(3):
        assert len(reader.read(bytes(4800))) + len(reader.finish()) == 1600
