"""The streaming decoder on small stand-in engines: length, message splitting, continuity of frames, batching."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding_doubles import EVERY_20, FlowDouble, VocoderDouble
from mel_streams import waves_of
from vita_audio.contract.errors import EngineError
from vita_audio.contract.rates import mel_frames, output_samples
from vita_audio.decoding.decoder import StreamingDecoder, StreamState
from vita_audio.decoding.noise import StreamNoise
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.decoding.vocoder_stream import to_pcm
from vita_audio.engines.arrays import HostArrays

CONFIGS = [
    DecoderConfig(),
    EVERY_20,
    DecoderConfig(chunk_tokens=(10, 30), context_tokens=10, flow_hold_back_frames=0, flow_fade_frames=0),
    DecoderConfig(first_chunk_tokens=5, flow_hold_back_frames=20, flow_fade_frames=20, vocoder_hold_back_frames=8),
]


def codes_of(count: int) -> list[int]:
    return [int(code) for code in np.random.default_rng(count).integers(0, 64, count)]


def make(config: DecoderConfig | None = None) -> StreamingDecoder:
    return StreamingDecoder(FlowDouble(), VocoderDouble(), config or EVERY_20)


def stream(decoder: StreamingDecoder, codes: list[int], cuts: list[int], seed: int = 5) -> tuple[np.ndarray, list[int]]:
    """PCM of the codes cut into messages at `cuts`, and the samples that each message gave."""
    state = decoder.init(seed)
    edges = [0, *sorted(min(cut, len(codes)) for cut in cuts), len(codes)]
    parts = [decoder.push(state, codes[start:stop]) for start, stop in pairwise(edges)]
    parts.append(decoder.finish(state))
    assert decoder.due(state) is None
    return np.concatenate(parts), [len(part) for part in parts]


def test_a_decoder_whose_chunks_are_off_the_block_grid_of_its_flow_is_refused() -> None:
    with pytest.raises(EngineError, match=r"chunk_tokens.*multiples of the flow's block of 10 tokens"):
        make(DecoderConfig(chunk_tokens=(25,)))


@given(
    st.integers(0, 170),
    st.lists(st.integers(0, 170), max_size=12),
    st.integers(0, 2**64 - 1),
    st.sampled_from(range(len(CONFIGS))),
)
@settings(max_examples=40, deadline=None)
def test_length_is_exact_and_messages_do_not_matter(count: int, cuts: list[int], seed: int, which: int) -> None:
    codes, decoder = codes_of(count), make(CONFIGS[which])
    whole, _ = stream(decoder, codes, [], seed)
    cut, _ = stream(decoder, codes, cuts, seed)
    assert len(whole) == output_samples(count)
    assert whole.dtype == np.int16
    np.testing.assert_array_equal(whole, cut)


def test_audio_comes_with_the_first_burst_and_then_chunk_by_chunk() -> None:
    _, samples = stream(make(), codes_of(60), list(range(1, 60)))
    voiced = np.cumsum(samples)
    held = 12 + 18
    assert [n + 1 for n, count in enumerate(samples[:-1]) if count] == [8, 20, 40, 60]
    for tokens in (8, 20, 40, 60):
        assert voiced[tokens - 1] == 256 * (mel_frames(tokens) - held)


def test_the_flush_of_a_stream_that_ends_on_the_grid_makes_no_new_window() -> None:
    decoder = make()
    state = decoder.init(0)
    decoder.push(state, codes_of(20))
    flow = decoder.flow
    assert isinstance(flow, FlowDouble)
    windows = len(flow.batches)
    assert len(decoder.finish(state)) == 256 * 30
    assert len(flow.batches) == windows


def test_a_code_is_in_every_window_from_its_arrival_to_the_end_of_the_context() -> None:
    decoder = make()
    codes = list(range(64)) + list(range(36))
    stream(decoder, codes, [])
    flow = decoder.flow
    assert isinstance(flow, FlowDouble)
    # Decodes at 8, 20, 40, 60, 80, 100 tokens, each from the grid point at least 30 tokens before the open frames.
    assert flow.seen_codes == [codes[:8], codes[:20], codes[:40], codes[:60], codes[20:80], codes[40:100]]


def frames_of(decoder: StreamingDecoder, state: StreamState) -> np.ndarray:
    """Final frames of a stream [frames, mels]; those that its ring has lost are some others."""
    return decoder._buffers.mel[decoder._buffers.places(state.slot, 0, state.position.flow.final_frames)]


def test_final_frames_condition_the_next_window_and_stay_as_they_are() -> None:
    conditions: list[tuple[np.ndarray, np.ndarray]] = []

    class Recording(FlowDouble):
        def velocity(self, x: np.ndarray, mu: np.ndarray, cond: np.ndarray, t: float) -> np.ndarray:
            if t == 0.0:
                conditions.append((x[0].copy(), cond[0].copy()))
            return super().velocity(x, mu, cond, t)

    decoder = StreamingDecoder(Recording(), VocoderDouble(), EVERY_20)
    state, noise = decoder.init(5), StreamNoise(5)
    codes = codes_of(120)
    for start in range(0, 120, 10):
        made = state.position.flow.final_frames
        final = frames_of(decoder, state)
        decoder.push(state, codes[start : start + 10])
        if state.position.flow.final_frames == made:
            continue
        x, cond = conditions[-1]
        stop = mel_frames(state.position.flow.decoded_tokens)
        first = stop - x.shape[1]
        np.testing.assert_array_equal(x, noise.flow(first, stop, 4))
        np.testing.assert_array_equal(cond[:, : made - first], final[first:].T)
        assert not cond[:, made - first :].any()
        assert made - first >= mel_frames(30) - 2 or first == 0
        oldest = max(0, state.position.flow.final_frames - mel_frames(30))
        np.testing.assert_array_equal(frames_of(decoder, state)[oldest:made], final[oldest:])
    assert len(conditions) == 7


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_chunked_vocoder_equals_one_shot(sizes: list[int], seed: int) -> None:
    vocoder, config = VocoderDouble(), DecoderConfig()
    mel = np.random.default_rng(seed).standard_normal((4, sum(sizes))).astype(np.float32)
    whole, _ = waves_of(vocoder, mel, [sum(sizes)], seed, config)
    chunked, voiced = waves_of(vocoder, mel, [*sizes, 0], seed, config)
    assert voiced == [*(max(0, int(at) - 18) for at in np.cumsum(sizes)), sum(sizes)]
    np.testing.assert_allclose(chunked, whole, atol=1e-5)


def test_batched_streams_equal_single_ones_and_share_the_calls() -> None:
    decoder = make()
    # Two streams in step at the start, two more in step with each other somewhere later.
    histories = [0, 0, 60, 140]
    states = [decoder.init(seed) for seed in range(4)]
    singles = [decoder.init(seed) for seed in range(4)]
    for state, single, history in zip(states, singles, histories, strict=True):
        decoder.push(state, codes_of(history))
        decoder.push(single, codes_of(history))
        decoder.feed(state, codes_of(20))
        decoder.feed(single, codes_of(20))
    assert decoder.due(states[0]) == decoder.due(states[1]) == mel_frames(8)
    assert decoder.due(states[2]) == decoder.due(states[3]) == mel_frames(60) - 1
    vocoder = decoder.vocoder
    assert isinstance(vocoder, VocoderDouble)
    vocoder.batches.clear()
    batched = decoder.step(states)
    assert sorted(size for size, _ in vocoder.batches) == [2, 2]
    for single, pcm in zip(singles, batched, strict=True):
        alone = decoder.step([single])[0]
        assert len(alone) > 0
        assert np.abs(alone.astype(int) - pcm).max() <= 1


def test_a_failed_step_changes_no_state() -> None:
    decoder = make()
    good, bad, reference = decoder.init(1), decoder.init(2), decoder.init(1)
    decoder.feed(good, codes_of(8))
    decoder.feed(bad, [1, 2, 3, 4, 5, 6, 7, 9999])  # the stand-in's table has 64 codes
    with pytest.raises(IndexError):
        decoder.step([good, bad])
    np.testing.assert_array_equal(decoder.step([good])[0], decoder.push(reference, codes_of(8)))


def test_offline_decode_has_the_exact_length_and_equals_a_stream_of_one_window() -> None:
    decoder = make()
    for count in (0, 1, 7, 90):
        assert len(decoder.decode_offline(codes_of(count), 3)) == output_samples(count)
    state = decoder.init(3)
    decoder.push(state, codes_of(7))  # below the first chunk: the flush decodes all in one window
    np.testing.assert_array_equal(decoder.finish(state), decoder.decode_offline(codes_of(7), 3))


def test_warm_up_sees_the_geometries_of_a_long_stream() -> None:
    decoder = make()
    flow, vocoder = decoder.flow, decoder.vocoder
    assert isinstance(flow, FlowDouble)
    assert isinstance(vocoder, VocoderDouble)
    decoder.warm_up()
    warm = {frames for _, frames in flow.batches}, {frames for _, frames in vocoder.batches}
    flow.batches.clear()
    vocoder.batches.clear()
    decoder.push(decoder.init(1), codes_of(900))
    assert {frames for _, frames in flow.batches} <= warm[0]
    assert {frames for _, frames in vocoder.batches} <= warm[1]


@pytest.mark.parametrize(("most", "sizes"), [(1, {1}), (2, {1, 2}), (3, {1, 2, 4}), (4, {1, 2, 4}), (5, {1, 2, 4, 8})])
def test_warm_up_runs_batches_up_to_the_first_that_holds_the_largest(most: int, sizes: set[int]) -> None:
    decoder = make()
    decoder.warm_up(most)
    assert isinstance(decoder.flow, FlowDouble)
    assert isinstance(decoder.vocoder, VocoderDouble)
    assert {size for size, _ in decoder.flow.batches} == {size for size, _ in decoder.vocoder.batches} == sizes


def test_pcm_has_one_constant_gain_and_clips() -> None:
    wave = np.array([[0.0, 0.5, -0.5, 0.99, -0.99, 1.5, -1.5], [0.0, np.nan, np.inf, 0, 0, 0, 1]], np.float32)
    made = to_pcm(HostArrays(), wave)
    np.testing.assert_array_equal(made[0], [0, 16384, -16384, 32439, -32439, 32767, -32768, 1])
    assert made[1].tolist() == [0, 0, 0, 0, 0, 0, 32767, 0]
    assert made.dtype == np.int16


def test_a_wave_that_is_not_finite_is_the_fault_of_its_stream() -> None:
    class Broken(VocoderDouble):
        def synthesize(self, mel: np.ndarray, source: np.ndarray) -> np.ndarray:
            wave = super().synthesize(mel, source)
            wave[1:2, 300] = np.nan
            return wave

    decoder = StreamingDecoder(FlowDouble(), Broken(), EVERY_20)
    states = [decoder.init(seed) for seed in range(3)]
    for state in states:
        decoder.feed(state, codes_of(8))
    good, bad, fine = decoder.start(states).results()
    assert len(good) == len(fine) == 256 * 25  # type: ignore[arg-type]
    assert isinstance(bad, EngineError)
    for state in states:
        decoder.feed(state, codes_of(12))
    with pytest.raises(EngineError, match="not finite"):
        decoder.step(states)


def test_a_slot_is_free_again_when_its_stream_is_gone() -> None:
    decoder = StreamingDecoder(FlowDouble(), VocoderDouble(), EVERY_20, streams=2)
    expected = stream(make(), codes_of(100), [], seed=1)[0]
    first, second = decoder.init(0), decoder.init(1)
    assert {first.slot, second.slot} == {1, 2}
    with pytest.raises(EngineError, match="streams: 2 are decoded"):
        decoder.init(2)
    decoder.push(first, codes_of(60))
    del first
    for _ in range(3):  # whatever the last stream left there
        np.testing.assert_array_equal(stream(decoder, codes_of(100), [33], seed=1)[0], expected)


@given(st.integers(1, 170), st.integers(0, 3), st.sampled_from(range(len(CONFIGS))))
@settings(max_examples=20, deadline=None)
def test_a_decode_that_failed_can_be_repeated(count: int, fails: int, which: int) -> None:
    """The flow has run and the vocoder not: what the flow made must not be taken for what was there before."""
    fail = [False]

    class Failing(VocoderDouble):
        def synthesize(self, mel: np.ndarray, source: np.ndarray) -> np.ndarray:
            if fail[0]:
                raise RuntimeError("out of order")
            return super().synthesize(mel, source)

    decoder = StreamingDecoder(FlowDouble(), Failing(), CONFIGS[which])
    state, parts = decoder.init(3), [np.zeros(0, np.int16)]
    decoder.feed(state, codes_of(count), end=True)
    number = 0
    while decoder.due(state) is not None:
        if number == fails:
            fail[0] = True
            with pytest.raises(RuntimeError):
                decoder.step([state])
            fail[0] = False
        parts += decoder.step([state])
        number += 1
    np.testing.assert_array_equal(np.concatenate(parts), stream(make(CONFIGS[which]), codes_of(count), [], seed=3)[0])


def test_misuse_is_refused() -> None:
    decoder = make()
    state = decoder.init(0)
    with pytest.raises(EngineError, match="no decode is due"):
        decoder.step([state])
    decoder.finish(state)
    with pytest.raises(EngineError, match="ended"):
        decoder.push(state, [1])
    narrow = FlowDouble()
    narrow.mel_channels = 5
    with pytest.raises(EngineError, match="5 mel channels"):
        StreamingDecoder(narrow, VocoderDouble())
