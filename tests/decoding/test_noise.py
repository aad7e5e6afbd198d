"""Noise by absolute frame, and the harmonic source against the authors' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from vita_audio.decoding.noise import StreamNoise
from vita_audio.decoding.source import frame_phases, harmonic_source, mixed_noise_scale

seeds = st.integers(0, 2**64 - 1)


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


def test_source_equals_the_authors(golden: Path) -> None:
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
        source = harmonic_source(f0, frame_phases(f0, 0.0)[:-1], offsets, noise, weight, bias)
        np.testing.assert_allclose(source, expected, atol=1e-4)


@given(st.integers(0, 60), st.floats(0, 1, exclude_max=True))
@settings(max_examples=20, deadline=None)
def test_source_carries_its_phase_over_a_cut(cut: int, start: float) -> None:
    rng = np.random.default_rng(cut)
    f0 = rng.uniform(0, 400, 60).astype(np.float32) * (rng.random(60) > 0.3)
    noise = rng.standard_normal(60 * 256).astype(np.float32)
    offsets, weight = StreamNoise(1).phases(9), rng.standard_normal(9).astype(np.float32)
    phases = frame_phases(f0, start)
    whole = harmonic_source(f0, phases[:-1], offsets, noise, weight, 0.1)
    later = frame_phases(f0[cut:], float(phases[cut]))
    part = harmonic_source(f0[cut:], later[:-1], offsets, noise[256 * cut :], weight, 0.1)
    np.testing.assert_allclose(part, whole[256 * cut :], atol=1e-5)


def test_one_mixed_noise_value_has_the_variance_of_nine(golden: Path) -> None:
    weight = load_file(golden / "audio_decoder" / "hift.safetensors")["m_source.l_linear.weight"][0]
    rng = np.random.default_rng(0)
    nine = weight @ rng.standard_normal((9, 200_000))
    assert abs(mixed_noise_scale(weight) / nine.std() - 1) < 0.01
