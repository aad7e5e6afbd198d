"""Flow and vocoder of the torch_cuda engines on the CPU: everything but the capture itself, against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vita_audio.checkpoint.sizes import TINY
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.engines.torch.audio import TorchFlow, TorchVocoder
from vita_audio.engines.torch_cuda import shape_graphs
from vita_audio.engines.torch_cuda.audio import TorchCudaFlow, TorchCudaVocoder
from vita_audio.engines.torch_cuda.shape_graphs import ShapeGraphs
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


@pytest.mark.parametrize("streams", [1, 3])
def test_streams_sound_as_the_reference(decoders: tuple[StreamingDecoder, StreamingDecoder], streams: int) -> None:
    """Chunks in a batch that is padded, then ends of any length: the same samples but for float rounding."""
    made = []
    for decoder in decoders:
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
        made.append([np.concatenate(wave) for wave in waves])
    for expected, found in zip(*made, strict=True):
        assert len(expected) == len(found) > 70_000
        assert np.abs(expected.astype(int) - found.astype(int)).max() <= 2


def test_padding_rows_change_nothing(decoders: tuple[StreamingDecoder, StreamingDecoder]) -> None:
    """A batch of 3 runs as 4; the fourth row holds what an earlier call left, even NaN."""
    flow = decoders[1].flow
    assert isinstance(flow, TorchCudaFlow)
    draw = np.random.default_rng(0)
    x, mu = (draw.standard_normal((4, 80, 37)).astype(np.float32) for _ in range(2))
    cond, times = np.zeros_like(x), [0.0, 0.4, 1.0]
    alone = [flow.solve(x[i : i + 1], mu[i : i + 1], cond[:1], times) for i in range(3)]
    flow.solve(np.full_like(x, np.nan), mu, cond, times)
    together = flow.solve(x[:3], mu[:3], cond[:3], times)
    assert together.shape == (3, 80, 37)
    np.testing.assert_allclose(together, np.concatenate(alone), atol=2e-5)


def test_warm_up_makes_what_running_streams_use(decoders: tuple[StreamingDecoder, StreamingDecoder]) -> None:
    flow = Flow(FLOW).state_dict()
    decoder = StreamingDecoder(TorchCudaFlow(FLOW, flow, CPU), decoders[1].vocoder, replace(decoders[1].config))
    decoder.warm_up(4)
    assert isinstance(decoder.flow, TorchCudaFlow)
    before = len(decoder.flow._steps)
    for count in (1, 2, 3, 4):
        states = [decoder.init(seed) for seed in range(count)]
        for state in states:
            decoder.feed(state, range(200))
        while decoder.due(states[0]) is not None:
            decoder.step(states)
    assert len(decoder.flow._steps) == before > 3


def test_the_oldest_shape_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape_graphs, "MAX_GRAPHS", 2)
    graphs = ShapeGraphs(lambda inputs: inputs["x"] + 1, CPU, None)
    first = graphs.load(x=np.zeros((1, 1), np.float32))
    graphs.load(x=np.zeros((1, 2), np.float32))
    assert graphs.load(x=np.ones((1, 1), np.float32)) is first
    graphs.load(x=np.zeros((1, 3), np.float32))  # the shape of two goes
    assert len(graphs) == 2
    assert graphs.load(x=np.ones((1, 1), np.float32)) is first
    assert first.launch().tolist() == [[2.0]]
