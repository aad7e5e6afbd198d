"""Noise by absolute frame, and the harmonic source against the authors' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from vita_audio.decoding.noise import StreamNoise
from vita_audio.decoding.source import Tones, frame_phases, harmonic_coefficients, harmonic_source, mixed_noise_scale
from vita_audio.engines.arrays import Arrays, HostArrays
from vita_audio.engines.torch_cuda.device_arrays import DeviceArrays

seeds = st.integers(0, 2**64 - 1)
ARRAYS: list[Arrays] = [HostArrays(), DeviceArrays(torch.device("cpu"))]


@given(seeds, st.integers(0, 3000), st.integers(0, 200), st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_noise_of_a_frame_does_not_depend_on_the_chunk(seed: int, first: int, cut: int, rest: int) -> None:
    noise = StreamNoise(seed)
    whole = noise.flow(first, first + cut + rest, 7)
    assert whole.shape == (7, cut + rest)
    np.testing.assert_array_equal(whole[:, cut:], noise.flow(first + cut, first + cut + rest, 7))
    np.testing.assert_array_equal(whole[:, :cut], noise.flow(first, first + cut, 7))
    samples = noise.source(first, first + cut + rest)
    assert samples.shape == (256 * (cut + rest),)
    np.testing.assert_array_equal(samples[256 * cut :], noise.source(first + cut, first + cut + rest))


def test_noise_is_standard_normal_and_its_parts_are_independent() -> None:
    noise = StreamNoise(3)
    flow, source = noise.flow(0, 2000, 80), noise.source(0, 400)
    for values in (flow, source):
        assert abs(float(values.mean())) < 0.02
        assert abs(float(values.std()) - 1) < 0.02
    assert abs(np.corrcoef(flow[0], flow[1])[0, 1]) < 0.1
    assert abs(np.corrcoef(flow[:, :-1].ravel(), flow[:, 1:].ravel())[0, 1]) < 0.02
    # Blocks must not repeat each other, nor seeds, nor the two purposes.
    assert abs(np.corrcoef(flow[:, :992].ravel(), flow[:, 32:1024].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(flow.ravel(), StreamNoise(4).flow(0, 2000, 80).ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(noise.flow(0, 400, 256).T.ravel(), source)[0, 1]) < 0.02


def test_a_seed_sounds_the_same_in_every_version() -> None:
    """Values on both sides of an edge of the blocks that they are drawn in: a change would change every voice."""
    noise = StreamNoise(3)
    flow = [[0.2027742, 0.0062080, 0.2847489, 1.0282247], [0.0225718, 0.1815619, -2.0081191, -0.4663634]]
    np.testing.assert_allclose(noise.flow(30, 34, 2), flow, atol=1e-6)
    np.testing.assert_allclose(
        noise.source(7, 9)[[0, 255, 256, 511]], [0.4776962, -1.6177033, 0.3534939, -1.1721207], atol=1e-6
    )
    np.testing.assert_allclose(noise.phases(4), [0.0, 1.3523504, 1.0339334, -1.9311521], atol=1e-6)
    np.testing.assert_array_equal(StreamNoise(3 - 2**64).flow(0, 4, 2), noise.flow(0, 4, 2))


def test_phases_are_those_of_the_seed_and_the_fundamental_has_none() -> None:
    phases = StreamNoise(9).phases(9)
    assert phases[0] == 0
    assert (np.abs(phases) <= np.pi).all()
    assert len(set(phases)) == 9
    np.testing.assert_array_equal(phases, StreamNoise(9).phases(9))
    assert (phases != StreamNoise(10).phases(9))[1:].all()


def source_of(
    arrays: Arrays,
    f0: np.ndarray,
    start: float,
    offsets: np.ndarray,
    noise: np.ndarray,
    weight: np.ndarray,
    bias: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Source of one stream, [256 * frames], and its phases at the end of each frame."""

    def up(values: np.ndarray) -> Any:
        return values[None] if arrays.xp is np else torch.from_numpy(values)[None]

    frames = up(f0)
    phases, ends = frame_phases(arrays, frames, up(np.array([start])), up(np.ones(len(f0), bool)))
    numbers = up(np.arange(1, 257, dtype=np.float32))[0]
    coefficients = up(harmonic_coefficients(weight, offsets))
    tones = Tones(frames, phases, coefficients, up(noise.astype(np.float32).reshape(-1, 256)), numbers)
    return np.asarray(harmonic_source(arrays, tones, bias)).reshape(-1), np.asarray(ends)[0]


@pytest.mark.parametrize("arrays", ARRAYS, ids=["numpy", "torch"])
def test_source_equals_the_authors(golden: Path, arrays: Arrays) -> None:
    weights = load_file(golden / "audio_decoder" / "hift.safetensors")
    weight, bias = weights["m_source.l_linear.weight"][0], float(weights["m_source.l_linear.bias"][0])
    data = load_file(golden / "audio_decoder" / "hift_io.safetensors")
    cases = [name[: -len(".f0")] for name in data if name.endswith(".f0")]
    assert cases
    for case in cases:
        f0 = data[f"{case}.f0"].reshape(-1)
        expected = data[f"{case}.source"].reshape(-1)
        offsets = data[f"{case}.phases"].astype(np.float64)
        noise = weight @ data[f"{case}.noise"][0]
        source, _ = source_of(arrays, f0, 0.0, offsets, noise, weight, bias)
        np.testing.assert_allclose(source, expected, atol=1e-4)


@given(st.integers(0, 59), st.floats(0, 1, exclude_max=True), st.sampled_from(ARRAYS))
@settings(max_examples=20, deadline=None)
def test_source_carries_its_phase_over_a_cut(cut: int, start: float, arrays: Arrays) -> None:
    rng = np.random.default_rng(cut)
    f0 = rng.uniform(0, 400, 60).astype(np.float32) * (rng.random(60) > 0.3)
    noise = rng.standard_normal(60 * 256).astype(np.float32)
    offsets, weight = StreamNoise(1).phases(9), rng.standard_normal(9).astype(np.float32)
    whole, ends = source_of(arrays, f0, start, offsets, noise, weight, 0.1)
    there = start if cut == 0 else float(ends[cut - 1])
    part, _ = source_of(arrays, f0[cut:], there, offsets, noise[256 * cut :], weight, 0.1)
    np.testing.assert_allclose(part, whole[256 * cut :], atol=1e-5)


@given(st.integers(1, 400), st.integers(0, 2**32), st.floats(0, 1, exclude_max=True))
@settings(max_examples=20, deadline=None)
def test_torch_makes_the_source_of_numpy(frames: int, seed: int, start: float) -> None:
    """Within 2e-6 of full scale: sine and cosine of float32 differ in the last bit."""
    rng = np.random.default_rng(seed)
    f0 = rng.uniform(0, 800, frames).astype(np.float32) * (rng.random(frames) > 0.3)
    noise, weight = rng.standard_normal(256 * frames), rng.standard_normal(9).astype(np.float32)
    made = [source_of(arrays, f0, start, StreamNoise(seed).phases(9), noise, weight, 0.1) for arrays in ARRAYS]
    np.testing.assert_allclose(made[0][0], made[1][0], atol=2e-6)
    turns = np.abs(made[0][1] - made[1][1])
    assert np.minimum(turns, 1 - turns).max() < 1e-9


def test_frames_before_the_first_that_counts_do_not_turn_the_phase() -> None:
    f0 = np.full((1, 4), 100.0, np.float32)
    begun = np.array([[False, False, True, True]])
    starts, ends = frame_phases(HostArrays(), f0, np.array([[0.25]]), begun)
    turn = 100.0 * 256 / 22050
    np.testing.assert_allclose(starts[0], [0.25, 0.25, 0.25, (0.25 + turn) % 1])
    np.testing.assert_allclose(ends[0], [0.25, 0.25, (0.25 + turn) % 1, (0.25 + 2 * turn) % 1])


def test_one_mixed_noise_value_has_the_variance_of_nine(golden: Path) -> None:
    weight = load_file(golden / "audio_decoder" / "hift.safetensors")["m_source.l_linear.weight"][0]
    rng = np.random.default_rng(0)
    nine = weight @ rng.standard_normal((9, 200_000))
    assert abs(mixed_noise_scale(weight) / nine.std() - 1) < 0.01
