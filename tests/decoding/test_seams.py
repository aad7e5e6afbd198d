"""The measures of seams on waves whose values can be written down."""

from __future__ import annotations

import numpy as np
import pytest

from decoding_doubles import EVERY_20, FlowDouble, VocoderDouble
from vita_audio.contract.rates import MEL_HOP_SAMPLES, mel_frames
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.decoding.seams import REACH_SAMPLES, Streamed, interior_points, measure, stream_all


def test_a_jump_is_a_step_over_the_rms_step_around_it() -> None:
    wave = 10 * np.arange(1000, dtype=np.int16)
    wave[500:] += 90  # one step of 100 among steps of 10
    measured = measure(wave, wave, [500, 700])
    rms = np.sqrt((438 * 10**2 + 100**2) / 439)
    assert measured.jump.tolist() == pytest.approx(
        [100 / rms, 10 / rms]
    )  # the step is 200 samples from the other point
    assert measured.distance_db.tolist() == [0.0, 0.0]


def test_a_gain_of_ten_is_twenty_decibels() -> None:
    noise = np.random.default_rng(0).normal(0, 500, REACH_SAMPLES)
    same = np.rint(np.concatenate([noise, noise])).astype(np.int16)
    louder = np.rint(np.concatenate([noise, 10 * noise])).astype(np.int16)
    at = [REACH_SAMPLES]
    assert measure(same, same, at).flux_db.tolist() == [0.0]
    assert measure(louder, louder, at).flux_db[0] == pytest.approx(20.0, abs=0.05)
    assert measure(same, np.rint(10 * same.astype(float)).astype(np.int16), at).distance_db[0] == pytest.approx(
        20.0, abs=0.05
    )


def test_silence_is_the_floor_of_the_scale() -> None:
    """Below one step of int16 all is silence: 0 dB."""
    faint = np.random.default_rng(1).integers(-2, 3, REACH_SAMPLES).astype(np.int16)
    levels = 20 * np.log10(np.abs(np.fft.rfft(faint * np.hanning(REACH_SAMPLES))) + 1)
    wave = np.concatenate([np.zeros(REACH_SAMPLES, np.int16), faint])
    assert measure(wave, wave, [REACH_SAMPLES]).flux_db[0] == pytest.approx(np.sqrt(np.mean(levels**2)))


def test_points_lie_inside_and_away_from_every_seam() -> None:
    streamed = Streamed(np.zeros(20_000, np.int16), flow_seams=[4608], vocoder_seams=[9216])
    points = interior_points(streamed)
    every = range(768, 20_000, 768)  # three hops apart
    assert points == [p for p in every if min(abs(p - seam) for seam in (0, 4608, 9216)) >= 660 and p <= 19_780]
    assert 4608 not in points
    assert points[0] == 768


def test_seams_are_where_the_parts_meet() -> None:
    """Decodes at 8, 20 and 40 tokens: 12 frames of the flow and 18 more of the vocoder are held back each time."""
    decoder = StreamingDecoder(FlowDouble(), VocoderDouble(), EVERY_20)
    streamed = stream_all(decoder, list(range(45)), seed=1)
    final = [mel_frames(tokens) - 12 for tokens in (8, 20, 40)]
    assert streamed.flow_seams == [MEL_HOP_SAMPLES * frames for frames in final]
    assert streamed.vocoder_seams == [MEL_HOP_SAMPLES * (frames - 18) for frames in final]
    assert len(streamed.pcm) == MEL_HOP_SAMPLES * mel_frames(45)
