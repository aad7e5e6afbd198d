"""Flow and vocoder of the torch_cuda engines on the CPU: everything but the capture itself, against the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from vita_audio.checkpoint.sizes import TINY
from vita_audio.contract.errors import EngineError
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.decoding.geometries import all_geometries
from vita_audio.engines.torch.audio import TorchFlow, TorchVocoder
from vita_audio.engines.torch_cuda import device_arrays
from vita_audio.engines.torch_cuda.audio import TorchCudaFlow, TorchCudaVocoder
from vita_audio.models.flow import Flow
from vita_audio.models.vocoder import Vocoder

CPU = torch.device("cpu")
FLOW, VOCODER = TINY.flow, TINY.vocoder


@pytest.fixture(scope="module")
def decoders() -> tuple[StreamingDecoder, StreamingDecoder]:
    """(reference, torch_cuda) over the same random weights."""
    torch.manual_seed(0)
    flow, vocoder = Flow(FLOW).state_dict(), Vocoder(VOCODER).state_dict()
    return (
        StreamingDecoder(TorchFlow(FLOW, flow), TorchVocoder(VOCODER, vocoder)),
        StreamingDecoder(TorchCudaFlow(FLOW, flow, CPU), TorchCudaVocoder(VOCODER, vocoder, CPU)),
    )


def sounds(decoder: StreamingDecoder, streams: int) -> list[np.ndarray]:
    """Of streams in step, that then end one token after the other."""
    states = [decoder.init(seed) for seed in range(streams)]
    waves = [[] for _ in states]  # type: list[list[np.ndarray]]
    for state in states:
        decoder.feed(state, range(70))
    while decoder.due(states[0]) is not None:
        for wave, pcm in zip(waves, decoder.step(states), strict=True):
            wave.append(pcm)
    for i, (state, wave) in enumerate(zip(states, waves, strict=True)):
        wave.append(decoder.push(state, range(i)))
        wave.append(decoder.finish(state))
    return [np.concatenate(wave) for wave in waves]


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("streams", [1, 3])
def test_streams_sound_as_the_reference(
    decoders: tuple[StreamingDecoder, StreamingDecoder], streams: int, prepared: bool
) -> None:
    """Chunks in a batch that is padded where it is prepared, then ends: the same samples but for float rounding."""
    if prepared:
        decoders[1].warm_up(4)
    for expected, found in zip(*(sounds(decoder, streams) for decoder in decoders), strict=True):
        assert len(expected) == len(found) > 70_000
        assert np.abs(expected.astype(int) - found.astype(int)).max() <= 2


def test_the_one_shot_decode_sounds_as_the_reference(decoders: tuple[StreamingDecoder, StreamingDecoder]) -> None:
    expected, found = (decoder.decode_offline(range(120), 3).astype(int) for decoder in decoders)
    assert np.abs(expected - found).max() <= 2
    assert np.abs(expected).max() > 100


def test_codes_that_the_flow_does_not_know_are_refused_before_anything_runs(
    decoders: tuple[StreamingDecoder, StreamingDecoder],
) -> None:
    decoder = decoders[1]
    good, bad = decoder.init(0), decoder.init(1)
    decoder.feed(good, range(8))
    decoder.feed(bad, [*range(7), FLOW.vocab_size])
    with pytest.raises(EngineError, match="audio codes span"):
        decoder.step([good, bad])
    alone = decoder.init(0)
    np.testing.assert_array_equal(decoder.step([good])[0], decoder.push(alone, range(8)))


def test_a_decoder_whose_gpu_has_little_memory_sounds_the_same(
    decoders: tuple[StreamingDecoder, StreamingDecoder],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No room for batches of four, nor for any end of a stream."""
    flow, vocoder = decoders[1].flow, decoders[1].vocoder
    made = device_arrays.FixedShape
    ends = {len(row) for row in all_ends(decoders[1])}

    def fixed_shape(function: Any, inputs: Mapping[str, np.ndarray], *rest: Any) -> Any:
        rows, place = inputs["place"].shape
        if rows > 2 or place in ends:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return made(function, inputs, *rest)

    few = StreamingDecoder(flow, vocoder)
    with monkeypatch.context() as patch:
        patch.setattr(device_arrays, "FixedShape", fixed_shape)
        few.warm_up(4)
    assert ["batches of 4" in caplog.text, "ends of streams run kernel by kernel" in caplog.text] == [True, True]
    for expected, found in zip(*(sounds(decoder, 3) for decoder in (decoders[0], few)), strict=True):
        assert np.abs(expected.astype(int) - found.astype(int)).max() <= 2


def all_ends(decoder: StreamingDecoder) -> list[range]:
    """Of windows of ends, as long as they are and none of a running stream."""
    geometries = all_geometries(decoder.config, FLOW.block_size)
    running = {frames for _, frames in geometries.running.windows} | {one.wave for one in geometries.running.chunks}
    return [range(frames) for _, frames in geometries.ends.windows if frames not in running]


def test_numpy_arrays_are_answered_with_numpy_arrays(decoders: tuple[StreamingDecoder, StreamingDecoder]) -> None:
    (flow, vocoder), (cuda_flow, cuda_vocoder) = ((d.flow, d.vocoder) for d in decoders)
    draw = np.random.default_rng(0)
    tokens, frame_token = np.arange(8)[None], np.arange(55) * 8 // 55
    mean = flow.condition(tokens, frame_token)
    found = cuda_flow.condition(tokens, frame_token)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, mean, atol=1e-5)
    x, cond = (draw.standard_normal(mean.shape).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(cuda_flow.velocity(x, mean, cond, 0.3), flow.velocity(x, mean, cond, 0.3), atol=1e-4)
    np.testing.assert_allclose(cuda_vocoder.f0(x), vocoder.f0(x), atol=1e-3)
    source = draw.standard_normal((1, 256 * 55)).astype(np.float32)
    np.testing.assert_allclose(cuda_vocoder.synthesize(x, source), vocoder.synthesize(x, source), atol=1e-4)
    with pytest.raises(EngineError, match="audio codes span"):
        cuda_flow.condition(tokens - 1, frame_token)


def test_a_device_flow_beside_a_vocoder_of_numpy_works_on_the_host(
    decoders: tuple[StreamingDecoder, StreamingDecoder],
) -> None:
    mixed = StreamingDecoder(decoders[1].flow, decoders[0].vocoder)
    for expected, found in zip(sounds(decoders[0], 1), sounds(mixed, 1), strict=True):
        assert np.abs(expected.astype(int) - found.astype(int)).max() <= 2


def test_a_window_has_a_frame_map_of_its_own(decoders: tuple[StreamingDecoder, StreamingDecoder]) -> None:
    flow = decoders[1].flow
    tokens = torch.arange(16).reshape(2, 8)
    maps = torch.stack((torch.arange(55) * 8 // 55, torch.arange(55) * 64 // 441))
    both = flow.condition(tokens, maps)  # type: ignore[arg-type]
    for row in range(2):
        alone = flow.condition(tokens[row : row + 1].numpy(), maps[row].numpy())
        np.testing.assert_allclose(np.asarray(both[row]), alone[0], atol=1e-5)
