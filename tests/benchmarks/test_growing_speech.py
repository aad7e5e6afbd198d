"""How often speech that goes on changes its blocks: a louder sound later does, a softer one does not."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.growing_speech import Growth, growth, kinds
from vita_audio.engines.interface import Floats, Ints

NOISE = np.random.default_rng(0).normal(0, 0.01, 13 * 16_000).astype(np.float32)


class Loudness:
    """A tokenizer double: a token is the mean of its features, coarsely."""

    num_mel_bins, max_frames = 16, 3000

    def tokens(self, features: Floats, valid_frames: int) -> Ints:
        tokens = -(-valid_frames // 8)
        return np.rint(features[:, : 8 * tokens].reshape(16, tokens, 8).mean((0, 2)) * 20).astype(np.int64)


def loud(second: float) -> np.ndarray:
    """Silence with a soft start, and a sound of full scale."""
    clip = np.zeros(13 * 16_000, np.float32)
    clip[:16_000] = NOISE[:16_000]
    clip[int(second * 16_000) :][:800] = 1.0
    return clip


def test_softer_speech_changes_nothing() -> None:
    found = growth(Loudness(), [loud(0.5)])
    assert found == Growth(steps=3, run_again=0, steps_changed=0, tokens=50 + 100 + 150, changed=0)


def test_a_louder_sound_runs_blocks_again_and_changes_silence() -> None:
    found = growth(Loudness(), [loud(9.0)])
    assert (found.steps, found.run_again, found.steps_changed) == (3, 1, 1)
    assert 50 < found.changed <= 100


def test_clips_add_up() -> None:
    assert growth(Loudness(), [loud(9.0), loud(0.5)]) == growth(Loudness(), [loud(9.0)]) + growth(
        Loudness(), [loud(0.5)]
    )
    assert growth(Loudness(), [NOISE[:1000]]) == Growth()


def test_kinds_of_speech() -> None:
    clip = np.full(10 * 16_000, 0.5, np.float32)
    clean, noisy, louder = kinds([clip]).values()
    assert clean[0] is clip
    assert 0.0009 < np.std(noisy[0]) < 0.0011
    assert louder[0][-1] == 0.5
    assert 20 * np.log10(louder[0][-1] / louder[0][0]) == pytest.approx(6.0, abs=0.01)
    assert louder[0].dtype == noisy[0].dtype == np.float32
