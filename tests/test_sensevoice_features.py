"""Features of the SenseVoice encoder: what the authors' front end computes, and its edges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from vita_audio.checkpoint.cmvn import read_cmvn
from vita_audio.sensevoice_features import (
    DITHER,
    frame_count,
    log_mel,
    normalized,
    slot_count,
    speech_embeddings,
    stacked_frames,
)

CLIPS = ("0.03", "0.5", "1.37", "4.2")
SILENT_BAND = float(np.log(np.finfo(np.float32).eps))  # -15.94


def speech(samples: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(samples).standard_normal(samples, np.float32)


@pytest.mark.parametrize("clip", CLIPS)
def test_golden(golden: Path, clip: str) -> None:
    """The golden data has no dither; its clips have a stretch of exact zeros."""
    io = load_file(golden / "plus" / "frontend_io.safetensors")
    frames = log_mel(io[f"{clip}.wave"], dither=0)
    features = normalized(stacked_frames(frames), *read_cmvn(golden / "plus" / "sensevoice" / "am.mvn"))
    assert frames.dtype == features.dtype == np.float32
    assert frames.shape == io[f"{clip}.fbank"].shape
    assert np.abs(frames - io[f"{clip}.fbank"]).max() < 2e-3
    assert features.shape == io[f"{clip}.features"].shape
    assert np.abs(features - io[f"{clip}.features"]).max() < 1e-3


@pytest.mark.parametrize("clip", CLIPS[1:])
def test_dither_hardly_moves_speech(golden: Path, clip: str) -> None:
    """Most rows move by less than 0.01 after normalisation; those with digital silence by more than 5."""
    folder = golden / "plus"
    io, tables = load_file(folder / "frontend_io.safetensors"), read_cmvn(folder / "sensevoice" / "am.mvn")
    plain, dithered = (
        normalized(stacked_frames(log_mel(io[f"{clip}.wave"], strength)), *tables) for strength in (0.0, DITHER)
    )
    silent = (stacked_frames(log_mel(io[f"{clip}.wave"], 0)) <= SILENT_BAND + 1e-5).any(1)
    moved = np.abs(plain - dithered).max(1)
    assert 0 < silent.sum() < len(silent) / 2
    assert np.median(moved) < 0.01
    assert moved[silent].min() > 5


@pytest.mark.parametrize("samples", [400, 16_000, 200_000])
def test_digital_silence_is_not_below_what_the_model_has_seen(samples: int) -> None:
    """With the released noise silence has the energy of one 16-bit step, not of nothing."""
    frames = log_mel(np.zeros(samples, np.float32))
    assert frames.min() > -10
    assert 3 < np.median(frames) < 6
    assert log_mel(np.zeros(samples, np.float32), dither=0).max() == pytest.approx(SILENT_BAND, abs=1e-5)


def test_noise_is_the_same_for_every_clip_and_for_one_that_goes_on() -> None:
    clip = speech(250_000)  # longer than the noise is before it repeats
    whole = log_mel(clip)
    np.testing.assert_array_equal(log_mel(clip), whole)
    np.testing.assert_array_equal(log_mel(clip[:90_000]), whole[: frame_count(90_000)])
    # The noise itself, so that another version of numpy does not change what a prompt holds.
    first = log_mel(np.zeros(400, np.float32))[0]
    np.testing.assert_allclose(first[[0, 40, 79]], FIRST_SILENT_FRAME, atol=1e-4)


FIRST_SILENT_FRAME = (-2.348800, 5.420554, 8.048222)


@pytest.mark.parametrize(
    ("samples", "frames", "slots"),
    [(1, 1, 5), (2, 1, 5), (399, 1, 5), (400, 1, 5), (559, 1, 5), (560, 2, 5), (1200, 6, 5), (1360, 7, 6)],
)
def test_counts(samples: int, frames: int, slots: int) -> None:
    made = log_mel(speech(samples))
    assert np.isfinite(made).all()
    assert len(made) == frames == frame_count(samples)
    assert len(stacked_frames(made)) + 4 == slots == slot_count(samples)


def test_a_clip_under_25_ms_is_one_short_window() -> None:
    """A transform of 16 points has 7 bins between 20 Hz and 8 kHz, each in two bands: the other bands are empty."""
    (frame,) = log_mel(speech(10), dither=0)
    assert (frame <= SILENT_BAND + 1e-5).sum() == 80 - 14
    assert frame.max() > 5


def test_no_samples() -> None:
    with pytest.raises(ValueError, match=r"samples are empty, must be at least 1; leave"):
        log_mel(np.zeros(0, np.float32))


def test_rows_repeat_the_outermost_frames() -> None:
    rows = stacked_frames(np.arange(14, dtype=np.float32)[:, None])
    assert rows.tolist() == [
        [0, 0, 0, 0, 1, 2, 3],
        [3, 4, 5, 6, 7, 8, 9],
        [9, 10, 11, 12, 13, 13, 13],
    ]
    assert stacked_frames(np.ones((1, 80), np.float32)).shape == (1, 560)


def test_blocks_of_frames_are_seamless() -> None:
    """Frames are transformed 400 at a time; a clip cut at a frame has the same ones."""
    clip = speech(160 * 900)
    whole = log_mel(clip, dither=0)
    np.testing.assert_allclose(log_mel(clip[160 * 390 :], dither=0), whole[390:], atol=1e-5)


def test_speech_embeddings_are_of_normalised_rows() -> None:
    class Engine:
        feature_shift = np.full(560, 2.0, np.float32)
        feature_scale = np.full(560, 0.5, np.float32)
        embedding_size = 560

        def embeddings(self, features: np.ndarray) -> np.ndarray:
            return features

    clip = speech(5000)
    wanted = (stacked_frames(log_mel(clip)) + 2) / 2
    np.testing.assert_array_equal(speech_embeddings(Engine(), clip), wanted)
