"""Flow and vocoder on TensorRT over a stand-in for its runtime: the decoder's state stays on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from decoding_doubles import MELS, FlowDouble, VocoderDouble
from fake_cuda import Dispatched, fake_cuda
from tensorrt_audio_double import Network, Runtime, captured, on_fake_tensorrt
from vita_audio.contract.errors import EngineError
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.engines.interface import SolvingFlowEngine
from vita_audio.engines.preparing import NoMemory
from vita_audio.engines.tensorrt_audio.audio import TensorRtFlow, TensorRtVocoder
from vita_audio.engines.tensorrt_audio.plan import EnginePlan
from vita_audio.engines.torch_cuda.device_arrays import DeviceArrays

CPU = torch.device("cpu")
CONFIG = DecoderConfig()
FLOW, VOCODER = FlowDouble(), VocoderDouble()
ANY = {"batch": (1, 1, 8), "frames": (1, 55, 700)}


def condition(tokens: np.ndarray, maps: np.ndarray) -> np.ndarray:
    return np.concatenate([FLOW.condition(row[None], frames) for row, frames in zip(tokens, maps, strict=True)])


NETWORKS = {
    "flow_condition": Network(
        lambda given: condition(given["tokens"], given["frame_token"]),
        lambda shapes: (shapes["tokens"][0], MELS, shapes["frame_token"][1]),
        {"tokens": np.int64, "frame_token": np.int64},
    ),
    "flow_velocity": Network(
        lambda given: FLOW.velocity(given["x"], given["mu"], given["cond"], given["t"][0]), lambda shapes: shapes["x"]
    ),
    "vocoder_f0": Network(lambda given: VOCODER.f0(given["mel"]), lambda shapes: (shapes["mel"][0], shapes["mel"][2])),
    "vocoder": Network(
        lambda given: VOCODER.synthesize(given["mel"], given["source"]), lambda shapes: shapes["source"]
    ),
}
MEL = ("batch", MELS, "frames")
WHAT = {"mel_channels": str(MELS), "block_tokens": "10", "vocab_size": "64"}
SOURCE = {
    "mel_channels": str(MELS),
    "source_weight": str(VOCODER.source_weight.tolist()),
    "source_bias": str(VOCODER.source_bias),
}
PLANS = {
    "flow_condition": EnginePlan(
        "float32",
        {"tokens": ("batch", "tokens"), "frame_token": ("batch", "frames")},
        ({**ANY, "tokens": (1, 8, 100)},),
        WHAT,
    ),
    "flow_velocity": EnginePlan("float32", {"x": MEL, "mu": MEL, "cond": MEL, "t": (1,)}, (ANY,), WHAT),
    "vocoder_f0": EnginePlan("float32", {"mel": MEL}, (ANY,), SOURCE),
    "vocoder": EnginePlan(
        "float32", {"mel": MEL, "source": ("batch", "samples")}, ({**ANY, "samples": (1, 9728, 1 << 18)},), SOURCE
    ),
}


def fake_numpy(tensor: Tensor) -> np.ndarray:
    """Fake arrays that were copied to the host hold zeros."""
    assert tensor.device.type == "cpu"
    return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


class Direct:
    """The same networks called as they are, on new arrays: no contexts, no buffers that stay, no graphs."""

    def __init__(self) -> None:
        self.arrays, self.mel_channels, self.block_tokens, self.vocab_size = DeviceArrays(CPU), MELS, 10, 64
        self.source_weight, self.source_bias, self.harmonics = VOCODER.source_weight, VOCODER.source_bias, 9

    def condition(self, tokens: Tensor, maps: Tensor) -> Tensor:
        return torch.from_numpy(condition(tokens.numpy(), maps.numpy()))

    def velocity(self, x: Tensor, mu: Tensor, cond: Tensor, t: float) -> Tensor:
        given = (np.ascontiguousarray(array.numpy()) for array in (x, mu, cond))
        return torch.from_numpy(FLOW.velocity(*given, np.float32(t)))  # type: ignore[arg-type]

    def solve(self, x: Tensor, mu: Tensor, cond: Tensor, times: Sequence[float]) -> Tensor:
        for start, stop in pairwise(times):
            x = torch.add(x, self.velocity(x, mu, cond, start), alpha=stop - start)
        return x

    def f0(self, mel: Tensor) -> Tensor:
        return torch.from_numpy(VOCODER.f0(np.ascontiguousarray(mel.numpy())))

    def synthesize(self, mel: Tensor, source: Tensor) -> Tensor:
        return torch.from_numpy(VOCODER.synthesize(np.ascontiguousarray(mel.numpy()), source.numpy()))


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with on_fake_tensorrt(tmp_path, NETWORKS, PLANS, CPU) as runtime:
        yield runtime


def engines(tmp_path: Path) -> tuple[TensorRtFlow, TensorRtVocoder]:
    return TensorRtFlow(tmp_path), TensorRtVocoder(tmp_path)


def prepared(runtime: Runtime, folder: Path, batch: int) -> StreamingDecoder:
    """A decoder whose functions were captured for running streams in such batches, and for all ends."""
    flow, vocoder = engines(folder)
    captured(runtime, flow, vocoder)
    decoder = StreamingDecoder(flow, vocoder, CONFIG)
    decoder.warm_up(batch)
    return decoder


def sounds(decoder: StreamingDecoder, seed: int, streams: int) -> list[bytes]:
    """Streams whose codes come in pieces of random length, decoded together when their geometry is equal."""
    draw = np.random.default_rng(seed)
    states = [decoder.init(seed=100 + stream) for stream in range(streams)]
    left = [list(map(int, draw.integers(0, 64, draw.integers(1, 160)))) for _ in states]
    waves: list[list[np.ndarray]] = [[] for _ in states]
    while any(not state.ended for state in states):
        for state, codes in zip(states, left, strict=True):
            if not state.ended and draw.random() < 0.7:
                count = int(draw.integers(1, 40))
                decoder.feed(state, codes[:count], end=count >= len(codes))
                del codes[:count]
        while due := [index for index, state in enumerate(states) if decoder.due(state) is not None]:
            together = [index for index in due if decoder.due(states[index]) == decoder.due(states[due[0]])]
            for index, pcm in zip(together, decoder.step([states[index] for index in together]), strict=True):
                waves[index].append(pcm)
    return [np.concatenate(wave).tobytes() for wave in waves]


def directly(batch: int) -> StreamingDecoder:
    """The networks called as they are, for the same batches: PyTorch's last bit on a CPU depends on them."""
    direct = Direct()
    decoder = StreamingDecoder(direct, direct, CONFIG)  # type: ignore[arg-type]
    if batch:
        decoder.warm_up(batch)
    return decoder


@pytest.mark.parametrize("batch", [0, 1, 4])
def test_streams_of_random_schedules_have_the_bytes_of_the_networks_called_directly(
    runtime: Runtime, tmp_path: Path, batch: int
) -> None:
    """Captured for batches of 4, captured for one stream, and never captured."""
    decoder = prepared(runtime, tmp_path, batch) if batch else StreamingDecoder(*engines(tmp_path), CONFIG)
    expected = directly(batch)
    for seed in range(2):
        found = sounds(decoder, seed, 3)
        assert sum(map(len, found)) > 50_000
        same = found == sounds(expected, seed, 3)  # not in the assertion: it would print a minute of sound
        assert same


def test_streams_sound_as_those_of_the_host(runtime: Runtime, tmp_path: Path) -> None:
    """Cosines differ in the last bit; the flow's time is float64 there. 3 of 32767 were seen."""
    host = StreamingDecoder(FLOW, VOCODER, CONFIG)
    assert not isinstance(host.flow, SolvingFlowEngine)
    for expected, found in zip(sounds(host, 9, 3), sounds(prepared(runtime, tmp_path, 2), 9, 3), strict=True):
        pair = [np.frombuffer(wave, np.int16).astype(int) for wave in (expected, found)]
        assert np.abs(pair[0] - pair[1]).max() <= 8


def test_while_streams_run_no_context_is_made_for_a_prepared_shape(runtime: Runtime, tmp_path: Path) -> None:
    decoder = prepared(runtime, tmp_path, 4)
    made = runtime.contexts
    sounds(decoder, 0, 4)
    assert runtime.contexts == made


def test_a_window_of_a_shape_that_is_not_prepared_changes_no_captured_context(runtime: Runtime, tmp_path: Path) -> None:
    """A context that a graph uses raises when it is changed; calls outside graphs have one for each profile."""
    decoder = prepared(runtime, tmp_path, 1)
    made = runtime.contexts
    decoder.decode_offline(range(60), seed=1)
    decoder.decode_offline(range(50), seed=1)
    assert made < runtime.contexts <= made + len(NETWORKS)
    sounds(decoder, 1, 2)


def test_without_memory_for_contexts_ends_run_one_by_one_and_a_stream_is_an_error(
    runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared(runtime, tmp_path, 1)
    runtime.most_contexts = 2 * runtime.contexts - 5
    few = prepared(runtime, tmp_path, 1)
    assert "ends of streams run kernel by kernel" in caplog.text
    runtime.most_contexts += len(NETWORKS)  # those for calls outside graphs
    assert len(b"".join(sounds(few, 2, 2))) > 10_000
    runtime.most_contexts = runtime.contexts
    with pytest.raises(NoMemory, match=r"^audio decoder: .*\.engine: the GPU has no memory for another execution"):
        prepared(runtime, tmp_path, 1)


def test_each_step_is_taken_with_the_time_at_its_start_in_the_same_buffers(runtime: Runtime, tmp_path: Path) -> None:
    flow, _ = engines(tmp_path)
    rng = np.random.default_rng(0)
    x, mu, cond = rng.standard_normal((3, 2, MELS, 5)).astype(np.float32)
    times = [0.0, 0.1, 0.3, 1.0]
    expected = x.astype(np.float64)
    for start, stop in pairwise(times):
        expected = expected + (stop - start) * FLOW.velocity(expected.astype(np.float32), mu, cond, start)
    np.testing.assert_allclose(flow.solve(x, mu, cond, times), expected, rtol=1e-4, atol=1e-5)
    assert len(runtime.calls) == 3
    assert all(call == runtime.calls[0] for call in runtime.calls)
    assert len(set(runtime.calls[0][2].values())) == 5, "no engine writes what it reads"
    np.testing.assert_array_equal(flow.velocity(x, mu, cond, 0.3), FLOW.velocity(x, mu, cond, np.float32(0.3)))  # type: ignore[arg-type]


def test_numpy_arrays_are_answered_with_numpy_arrays(runtime: Runtime, tmp_path: Path) -> None:
    flow, vocoder = engines(tmp_path)
    tokens, frame_token = np.arange(16).reshape(2, 8), np.arange(55) * 8 // 55
    np.testing.assert_array_equal(flow.condition(tokens, frame_token), FLOW.condition(tokens, frame_token))
    mel = np.random.default_rng(0).standard_normal((2, MELS, 20)).astype(np.float32)
    np.testing.assert_array_equal(vocoder.f0(mel), VOCODER.f0(mel))
    with pytest.raises(EngineError, match="audio codes span"):
        flow.condition(tokens + 60, frame_token)
    with pytest.raises(EngineError, match="frames is 701, the engine was built for 1 to 700"):
        vocoder.f0(np.zeros((1, MELS, 701), np.float32))


@pytest.mark.parametrize("streams", [1, 8])
def test_a_chunk_is_two_copies_to_the_device_and_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    """Counted on fake CUDA tensors, where any other copy or look of the host at the device raises."""
    monkeypatch.setattr(Tensor, "data_ptr", lambda tensor: 256)
    monkeypatch.setattr(Tensor, "numpy", fake_numpy)
    monkeypatch.setattr("vita_audio.engines.torch_cuda.device_arrays.Capturer", lambda device: None)
    with fake_cuda() as device, on_fake_tensorrt(tmp_path, NETWORKS, PLANS, device) as runtime:
        runtime.computing = False
        decoder = StreamingDecoder(*engines(tmp_path), CONFIG)
        states = [decoder.init(seed) for seed in range(streams)]
        for state in states:
            decoder.feed(state, [0] * 30)
        for _ in range(2):
            with Dispatched(border=True) as log:
                decoder.start(states)
            assert [way for way, _ in log.copies] == ["to device", "to device", "to host"]
    names = [name for name, _, _ in runtime.calls]
    steps = ["flow_velocity"] * CONFIG.flow_steps
    assert names == ["flow_condition", *steps, "vocoder_f0", "vocoder"] * 2
