"""Flow and vocoder as CUDA graphs: the audio engines beside the torch_cuda language model.

A chunk is some 6 000 small kernels: launched one by one they keep a CPU core busy ten times as long as the GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vita_audio.checkpoint.configs import FlowConfig, VocoderConfig
from vita_audio.engines.interface import Floats, Ints
from vita_audio.engines.limits import check_condition
from vita_audio.engines.torch.audio import TorchFlow, TorchVocoder, tensor_float_32
from vita_audio.engines.torch_cuda.cuda_graphs import Capturer
from vita_audio.engines.torch_cuda.shape_graphs import ShapeGraphs


class TorchCudaFlow(TorchFlow):
    """`SolvingFlowEngine`; a call is a few launches.

    Args:
        config, tensors, device: as `TorchFlow`.
        tf32: see `tensor_float_32`.
    """

    def __init__(
        self, config: FlowConfig, tensors: Mapping[str, Tensor], device: torch.device, tf32: bool = True
    ) -> None:
        super().__init__(config, tensors, device)
        self._tf32 = tf32
        capturer = Capturer(device) if device.type == "cuda" else None
        self._conditions = ShapeGraphs(self._condition_of, device, capturer)
        self._steps = ShapeGraphs(self._step, device, capturer)

    def _condition_of(self, inputs: Mapping[str, Tensor]) -> Tensor:
        with tensor_float_32(self._tf32):
            return self._model.condition(inputs["tokens"], inputs["frame_token"])

    def _step(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """One Euler step in place: x += length * v(x, mu, cond, t)."""
        x = inputs["x"]
        with tensor_float_32(self._tf32):
            velocity = self._model.velocity(x, inputs["mu"], inputs["cond"], inputs["t"])
        return x.add_(velocity * inputs["length"])

    @torch.inference_mode()
    def condition(self, tokens: Ints, frame_token: Ints) -> Floats:
        check_condition(tokens, frame_token, self.vocab_size)
        graph = self._conditions.load(tokens=tokens, frame_token=frame_token)
        return graph.launch()[: len(tokens)].to("cpu", copy=True).numpy()

    @torch.inference_mode()
    def solve(self, x: Floats, mu: Floats, cond: Floats, times: Sequence[float]) -> Floats:
        zero = np.zeros(1, np.float32)
        graph = self._steps.load(x=x, mu=mu, cond=cond, t=zero, length=zero)
        state = graph.inputs["x"]
        for start, stop in pairwise(times):
            graph.inputs["t"].fill_(start)
            graph.inputs["length"].fill_(stop - start)
            state = graph.launch()
        return state[: len(x)].to("cpu", copy=True).numpy()


class TorchCudaVocoder(TorchVocoder):
    """`VocoderEngine`; a call is one launch.

    Args:
        config, tensors, device: as `TorchVocoder`.
        tf32: see `tensor_float_32`; f0 is always float32, since its error would add up in the phase.
    """

    def __init__(
        self, config: VocoderConfig, tensors: Mapping[str, Tensor], device: torch.device, tf32: bool = True
    ) -> None:
        super().__init__(config, tensors, device)
        self._tf32 = tf32
        capturer = Capturer(device) if device.type == "cuda" else None
        self._f0s = ShapeGraphs(self._f0_of, device, capturer)
        self._waves = ShapeGraphs(self._wave_of, device, capturer)

    def _f0_of(self, inputs: Mapping[str, Tensor]) -> Tensor:
        with tensor_float_32(False):
            return self._model.f0(inputs["mel"])

    def _wave_of(self, inputs: Mapping[str, Tensor]) -> Tensor:
        with tensor_float_32(self._tf32):
            return self._model(inputs["mel"], inputs["source"])

    @torch.inference_mode()
    def f0(self, mel: Floats) -> Floats:
        return self._f0s.load(mel=mel).launch()[: len(mel)].to("cpu", copy=True).numpy()

    @torch.inference_mode()
    def synthesize(self, mel: Floats, source: Floats) -> Floats:
        return self._waves.load(mel=mel, source=source).launch()[: len(mel)].to("cpu", copy=True).numpy()
