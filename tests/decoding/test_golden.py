"""The streaming decoder on the real networks with the golden weights: exact where it can be, measured where not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from build_engines.onnxruntime.flow import export_flow
from build_engines.onnxruntime.vocoder import export_vocoder
from decoding_doubles import EVERY_20
from mel_streams import waves_of
from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder
from vita_audio.contract.rates import mel_frames, output_samples
from vita_audio.decoding.decoder import Pcm, StreamingDecoder
from vita_audio.decoding.flow_stream import condition, solve
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.decoding.seams import PointMeasures, compare, measure, stream_all
from vita_audio.engines.onnxruntime.audio import OnnxFlow, OnnxVocoder
from vita_audio.engines.torch.audio import TorchFlow, TorchVocoder
from vita_audio.models.flow import Flow
from vita_audio.models.vocoder import Vocoder

Record = Callable[[str, object], None]


@pytest.fixture(scope="module", params=("torch", "onnxruntime"))
def decoder(request: pytest.FixtureRequest, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> StreamingDecoder:
    source = golden / "audio_decoder"
    (flow_config, flow_tensors), (vocoder_config, vocoder_tensors) = load_flow(source), load_vocoder(source)
    if request.param == "torch":
        return StreamingDecoder(
            TorchFlow(flow_config, flow_tensors), TorchVocoder(vocoder_config, vocoder_tensors), EVERY_20
        )
    folder = tmp_path_factory.mktemp("engines")
    flow, vocoder = Flow(flow_config).eval(), Vocoder(vocoder_config).eval()
    flow.load_state_dict(flow_tensors)
    vocoder.load_state_dict(vocoder_tensors)
    export_flow(flow, folder)
    export_vocoder(vocoder, folder)
    return StreamingDecoder(OnnxFlow(folder), OnnxVocoder(folder), EVERY_20)


def codes_of(count: int, seed: int = 0) -> list[int]:
    return [int(code) for code in np.random.default_rng(seed).integers(0, 200, count)]


def test_a_window_integrates_to_the_authors_mel(decoder: StreamingDecoder, golden: Path) -> None:
    data = load_file(golden / "audio_decoder" / "flow_io.safetensors")
    cases = [name[: -len(".mel")] for name in data if name.endswith(".mel")]
    assert cases
    for case in cases:
        tokens = np.concatenate([data[f"{case}.prompt_token"], data[f"{case}.token"]], axis=1)[0]
        noise, prompt = data[f"{case}.noise"][0], data[f"{case}.prompt_feat"][0]
        frames = noise.shape[1]
        cond = np.zeros_like(noise)
        cond[:, : len(prompt)] = prompt.T
        one_shot_map = np.arange(frames) * len(tokens) // frames
        mean = condition(decoder.flow, tokens[None], one_shot_map[None])
        [mel] = solve(decoder.flow, noise[None], mean, cond[None], int(data[f"{case}.steps"][0]))
        expected = data[f"{case}.mel"][0]
        np.testing.assert_allclose(mel[:, len(prompt) :], expected, atol=1e-3 * np.abs(expected).max())


def test_chunked_vocoder_equals_one_shot(decoder: StreamingDecoder) -> None:
    vocoder, config, channels = decoder.vocoder, DecoderConfig(), decoder.vocoder.mel_channels

    @given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(0, 1000), st.floats(0.5, 3))
    @settings(max_examples=15, deadline=None, derandomize=True)
    def check(sizes: list[int], seed: int, spread: float) -> None:
        mel = np.random.default_rng(seed).normal(-3, spread, (channels, sum(sizes))).astype(np.float32)
        whole, _ = waves_of(vocoder, mel, [sum(sizes)], seed, config)
        chunked, _ = waves_of(vocoder, mel, [*sizes, 0], seed, config)
        assert chunked.shape == whole.shape == (256 * sum(sizes),)
        np.testing.assert_allclose(chunked, whole, atol=1e-4)

    check()


def test_a_shorter_hold_back_costs_little(decoder: StreamingDecoder) -> None:
    mel = np.random.default_rng(0).normal(-3, 1, (decoder.vocoder.mel_channels, 200)).astype(np.float32)
    whole, _ = waves_of(decoder.vocoder, mel, [200], 1, DecoderConfig())
    errors = []
    for hold_back in (18, 10, 6):
        config = DecoderConfig(vocoder_hold_back_frames=hold_back)
        difference = waves_of(decoder.vocoder, mel, [40] * 5, 1, config)[0] - whole
        errors.append(float(np.sqrt(np.mean(difference**2) / np.mean(whole**2))))
    assert errors[0] < 1e-4
    assert errors[0] < errors[1] < errors[2] < 0.1


@pytest.mark.parametrize(("count", "cuts"), [(0, []), (1, []), (45, [3, 8, 9, 21, 44]), (60, list(range(60)))])
def test_length_is_exact_and_messages_do_not_matter(decoder: StreamingDecoder, count: int, cuts: list[int]) -> None:
    codes = codes_of(count)

    def stream(edges: list[int]) -> Pcm:
        state = decoder.init(11)
        parts = [decoder.push(state, codes[start:stop]) for start, stop in pairwise(edges)]
        return np.concatenate([*parts, decoder.finish(state)])

    whole = stream([0, count])
    assert len(whole) == output_samples(count)
    np.testing.assert_array_equal(whole, stream([0, *cuts, count]))


def test_batched_streams_sound_like_single_ones(decoder: StreamingDecoder) -> None:
    states = [decoder.init(seed) for seed in range(3)]
    parts: list[list[Pcm]] = [[], [], []]
    for seed, state in enumerate(states):
        decoder.feed(state, codes_of(30, seed), end=True)
    while decoder.due(states[0]) is not None:
        for part, pcm in zip(parts, decoder.step(states), strict=True):
            part.append(pcm)
    for seed, part in enumerate(parts):
        alone = stream_all(decoder, codes_of(30, seed), seed).pcm
        assert np.abs(np.concatenate(part).astype(int) - alone).max() <= 2  # float rounding, in int16 units
        assert np.abs(alone).max() > 100


def test_the_one_shot_decode_is_one_window(decoder: StreamingDecoder) -> None:
    state = decoder.init(4)
    decoder.push(state, codes_of(7))
    np.testing.assert_array_equal(decoder.finish(state), decoder.decode_offline(codes_of(7), 4))
    assert len(decoder.decode_offline(codes_of(64), 4)) == 256 * mel_frames(64) == 256 * 441


def test_seams_are_like_the_rest_of_the_stream(decoder: StreamingDecoder, record_property: Record) -> None:
    measured = compare(decoder, codes_of(120), seeds=(0, 1, 2))
    for kind, values in measured.items():
        record(record_property, kind, values)
    inside = measured["interior"]
    for kind in ("flow seams", "vocoder seams"):
        seams = measured[kind]
        assert len(seams.jump) >= 15
        assert seams.jump.mean() < 2 * inside.jump.mean()
        assert seams.flux_db.mean() < 1.25 * inside.flux_db.mean()
        assert seams.distance_db.mean() < 1.25 * inside.distance_db.mean()


def test_the_seam_measures_see_what_they_are_for(decoder: StreamingDecoder, record_property: Record) -> None:
    codes = codes_of(120)
    streamed, reference = stream_all(decoder, codes, 0), decoder.decode_offline(codes, 0)
    good = measure(streamed.pcm, reference, streamed.flow_seams)
    edges = [0, *streamed.flow_seams, len(streamed.pcm)]
    flipped, quiet = streamed.pcm.copy(), streamed.pcm.copy()
    for start, stop in list(pairwise(edges))[1::2]:
        flipped[start:stop] *= -1
        quiet[start:stop] //= 2
    jumps = measure(flipped, reference, streamed.flow_seams)
    steps = measure(quiet, reference, streamed.flow_seams)
    # Each piece for itself, without context: what the decoder must not sound like.
    cuts = [0, 8, *range(20, 121, 20)]
    pieces = [decoder.decode_offline(codes[start:stop], 0) for start, stop in pairwise(cuts)]
    joints = [int(point) for point in np.cumsum([len(piece) for piece in pieces])[:-1]]
    apart = measure(np.concatenate(pieces), reference[: sum(map(len, pieces))], joints)
    record(record_property, "polarity flips", jumps)
    record(record_property, "gain steps", steps)
    record(record_property, "pieces without context", apart)
    assert jumps.jump.mean() > 5 * good.jump.mean()
    assert steps.flux_db.mean() > 1.2 * good.flux_db.mean()
    assert apart.jump.mean() > 2 * good.jump.mean()
    assert apart.distance_db.mean() > 1.15 * good.distance_db.mean()


def record(record_property: Record, kind: str, values: PointMeasures) -> None:
    """Report the numbers: shown by `pytest -s`, kept by `--junit-xml`."""
    text = (
        f"jump {values.jump.mean():.2f}, flux {values.flux_db.mean():.2f} dB, "
        f"distance to one-shot {values.distance_db.mean():.2f} dB ({len(values.jump)} points)"
    )
    record_property(f"seams: {kind}", text)
    print(f"{kind}: {text}")
