"""The feature extractor at its edges: lengths, pieces of 30 s, rates, silence, bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_audio.engines.recently_used import RecentlyUsed
from vita_audio.speech_features import (
    PIECE_SAMPLES,
    FeatureBlocks,
    SpeechPiece,
    mel_filters,
    speech_pieces,
    speech_tokens,
    to_16_khz,
    token_count,
)


def noise(samples: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(samples).standard_normal(samples, np.float32)


class CountingTokenizer:
    """Test double: gives every token the number of its piece."""

    num_mel_bins = 16

    def __init__(self) -> None:
        self.pieces = 0

    def tokens(self, features: np.ndarray, valid_frames: int) -> np.ndarray:
        self.pieces += 1
        return np.full(-(-valid_frames // 8), self.pieces - 1, np.int64)


@pytest.mark.parametrize(
    ("samples", "pieces", "frames", "valid"),
    [
        (1, 1, 8, 1),
        (160, 1, 8, 1),
        (161, 1, 8, 2),
        (1280, 1, 8, 8),
        (1281, 1, 16, 9),
        (PIECE_SAMPLES - 1, 1, 3000, 3000),
        (PIECE_SAMPLES, 1, 3000, 3000),
        (PIECE_SAMPLES + 1, 2, 8, 1),
        (2 * PIECE_SAMPLES + 1280, 3, 8, 8),
    ],
)
def test_pieces(samples: int, pieces: int, frames: int, valid: int) -> None:
    made = list(speech_pieces(noise(samples), 16))
    assert len(made) == pieces
    assert made[-1].features.shape == (16, frames)
    assert made[-1].valid_frames == valid
    assert made[-1].features.dtype == np.float32
    assert all(piece.features.shape == (16, 3000) for piece in made[:-1])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30_000))
def test_token_count(samples: int) -> None:
    (piece,) = speech_pieces(noise(samples), 8)
    assert piece.tokens == token_count(samples) == -(-samples // 1280)
    assert np.isfinite(piece.features).all()
    assert piece.features.max() - piece.features.min() <= 2.0 + 1e-6  # 8 decades, divided by 4


def test_tokens_of_all_pieces() -> None:
    ids = speech_tokens(CountingTokenizer(), noise(PIECE_SAMPLES + 1281))
    assert ids.tolist() == [0] * 375 + [1] * 2
    assert speech_tokens(CountingTokenizer(), noise(0)).size == 0


def test_pieces_are_independent() -> None:
    speech = noise(PIECE_SAMPLES + 5000)
    louder = speech.copy()
    louder[:PIECE_SAMPLES] *= 20
    last, last_again = (list(speech_pieces(samples, 16))[-1] for samples in (speech, louder))
    np.testing.assert_array_equal(last.features, last_again.features)


def test_silence_is_flat() -> None:
    (piece,) = speech_pieces(np.zeros(4000, np.float32), 16)
    np.testing.assert_allclose(piece.features, (-10 + 4) / 4)


def test_a_tone_lands_in_its_band() -> None:
    wave = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    (piece,) = speech_pieces(wave, 80)
    centres = (mel_filters(80) * np.linspace(0, 8000, 201)[:, None]).sum(0) / mel_filters(80).sum(0)
    assert abs(centres[piece.features[:, 50].argmax()] - 1000) < 60


def test_mel_filters_have_equal_area() -> None:
    """Slaney normalisation: every triangle that is wider than a few bins has area 1 in Hz."""
    area = mel_filters(40).sum(0) * 40.0  # bins are 40 Hz apart
    np.testing.assert_allclose(area[10:], 1.0, rtol=0.05)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 44100, 48000, 192000])
def test_resampling_keeps_time_and_level(rate_hz: int) -> None:
    wave = np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz).astype(np.float32)
    resampled = to_16_khz(wave, rate_hz)
    assert resampled.dtype == np.float32
    assert abs(len(resampled) - 16000) <= 1
    middle = resampled[4000:12000]
    assert abs(np.sqrt(2 * np.mean(middle**2)) - 1) < 0.01


def test_resampling_one_sample() -> None:
    assert to_16_khz(np.ones(1, np.float32), 192_000).size == 1


def test_memory_is_bounded_by_one_piece() -> None:
    """Ten minutes of speech never hold more than one piece's features and one block of windows (not 60 MB of them)."""
    speech = noise(10 * 60 * 16000)
    tracemalloc.start()
    for piece in speech_pieces(speech, 128):
        assert isinstance(piece, SpeechPiece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24e6


def made_blocks(most_bytes: int = 2**26) -> FeatureBlocks:
    return RecentlyUsed(most_bytes)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_speech_that_goes_on_has_the_features_of_the_whole_clip_to_the_bit(data: st.DataObject) -> None:
    """Clips that grow, change and take turns, with bands of two numbers, in a cache of one block, some, or many."""
    made = made_blocks(data.draw(st.sampled_from([0, 4 * 400 * 8, 4 * 400 * 40, 2**26])))
    clips = [noise(PIECE_SAMPLES + 200_000 + seed) for seed in range(2)]
    for _ in range(data.draw(st.integers(1, 5))):
        clip = clips[data.draw(st.integers(0, 1))]
        if data.draw(st.booleans()):
            clip[data.draw(st.integers(0, len(clip) - 1))] += 0.5
        end, bins = data.draw(st.integers(1, len(clip))), data.draw(st.sampled_from([8, 16]))
        for got, alone in zip(speech_pieces(clip[:end], bins, made), speech_pieces(clip[:end], bins), strict=True):
            np.testing.assert_array_equal(got.features, alone.features)


def test_what_was_transformed_before_is_not_transformed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    transformed, rfft = list[int](), np.fft.rfft

    def counted(windows: np.ndarray) -> np.ndarray:
        transformed.append(len(windows))
        return rfft(windows)

    monkeypatch.setattr(np.fft, "rfft", counted)
    made, clip = made_blocks(), noise(20 * 16_000)
    for seconds in (9.0, 13.0, 13.5, 20.0):
        list(speech_pieces(clip[: int(seconds * 16_000)], 16, made))
    # Two blocks of 4 s and the rest; then what is new, and what the end of the shorter clip lay in.
    assert transformed == [400, 400, 104, 400, 104, 152, 400, 400]
