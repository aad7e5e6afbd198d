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
from vita_audio.engines.audio_precision import BF16, FLOAT32, FP16, TF32, check_precision
from vita_audio.engines.interface import Floats, Ints
from vita_audio.engines.limits import check_condition
from vita_audio.engines.torch.audio import TorchFlow, TorchVocoder, tensor_float_32
from vita_audio.engines.torch_cuda.cuda_graphs import Capturer
from vita_audio.engines.torch_cuda.estimator import FusedEstimator
from vita_audio.engines.torch_cuda.kernels.audio_operations import audio_operations
from vita_audio.engines.torch_cuda.shape_graphs import ShapeGraphs
from vita_audio.engines.torch_cuda.vocoder import FusedVocoder

ESTIMATOR_TYPES = {FP16: torch.float16, BF16: torch.bfloat16}


class TorchCudaFlow(TorchFlow):
    """`SolvingFlowEngine`; a call is a few launches.

    Args:
        config, tensors, device: as `TorchFlow`.
        precision: one of `DECODER_PRECISIONS`.
        kernels_off: names of `kernels/audio_operations.py` that run as their reference.
    """

    def __init__(
        self,
        config: FlowConfig,
        tensors: Mapping[str, Tensor],
        device: torch.device,
        precision: str = TF32,
        kernels_off: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(config, tensors, device)
        self._tf32 = check_precision("precision", precision) != FLOAT32
        with torch.no_grad():
            self._estimator = FusedEstimator(
                self._model.decoder.estimator,
                self._model.speaker(),
                config.inference_cfg_rate,
                ESTIMATOR_TYPES.get(precision, torch.float32),
                audio_operations(device, kernels_off),
            )
        del self._model.decoder
        capturer = Capturer(device) if device.type == "cuda" else None
        self._conditions = ShapeGraphs(self._condition_of, device, capturer)
        self._steps = ShapeGraphs(self._step, device, capturer)
        self._times: tuple[float, ...] = ()
        self._time_shifts = torch.empty(0, device=device)  # [steps, all widths]

    def _condition_of(self, inputs: Mapping[str, Tensor]) -> Tensor:
        with tensor_float_32(self._tf32):
            return self._model.condition(inputs["tokens"], inputs["frame_token"])

    def _step(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """One Euler step in place: x += length * v(x, mu, cond, t); `shifts` is what v knows of t."""
        x = inputs["x"]
        with tensor_float_32(self._tf32):
            given = self._estimator.given(inputs["mu"], inputs["cond"])
            velocity = self._estimator.velocity(x, given, inputs["shifts"])
        return x.addcmul_(velocity, inputs["length"])

    def _shifts(self, times: Sequence[float]) -> Tensor:
        with tensor_float_32(False):
            return self._estimator.shifts(torch.tensor(times, dtype=torch.float32, device=self._device))

    @torch.inference_mode()
    def condition(self, tokens: Ints, frame_token: Ints) -> Floats:
        check_condition(tokens, frame_token, self.vocab_size)
        graph = self._conditions.load(tokens=tokens, frame_token=frame_token)
        return graph.launch()[: len(tokens)].to("cpu", copy=True).numpy()

    @torch.inference_mode()
    def velocity(self, x: Floats, mu: Floats, cond: Floats, t: float) -> Floats:
        state, mean, known = (torch.from_numpy(array).to(self._device) for array in (x, mu, cond))
        shifts = self._shifts([t])[0]
        with tensor_float_32(self._tf32):
            return self._estimator.velocity(state, self._estimator.given(mean, known), shifts).cpu().numpy()

    @torch.inference_mode()
    def solve(self, x: Floats, mu: Floats, cond: Floats, times: Sequence[float]) -> Floats:
        key = tuple(times)
        if self._times != key:  # the decoder's are always the same
            self._times, self._time_shifts = key, self._shifts(key[:-1])
        room = np.zeros(self._time_shifts.shape[1], np.float32)
        graph = self._steps.load(x=x, mu=mu, cond=cond, shifts=room, length=room[:1])
        state = graph.inputs["x"]
        for (start, stop), shifts in zip(pairwise(times), self._time_shifts, strict=True):
            graph.inputs["shifts"].copy_(shifts)
            graph.inputs["length"].fill_(stop - start)
            state = graph.launch()
        return state[: len(x)].to("cpu", copy=True).numpy()


class TorchCudaVocoder(TorchVocoder):
    """`VocoderEngine`; a call is one launch.

    Args:
        config, tensors, device: as `TorchVocoder`.
        precision: one of `DECODER_PRECISIONS`; f0 is always float32, since its error would add up in the phase.
        kernels_off: as for the flow.
    """

    def __init__(
        self,
        config: VocoderConfig,
        tensors: Mapping[str, Tensor],
        device: torch.device,
        precision: str = TF32,
        kernels_off: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(config, tensors, device)
        self._tf32 = check_precision("precision", precision) != FLOAT32
        with torch.no_grad():
            self._vocoder = FusedVocoder(self._model, audio_operations(device, kernels_off))
        del self._model.ups, self._model.source_downs, self._model.source_resblocks, self._model.resblocks
        capturer = Capturer(device) if device.type == "cuda" else None
        self._f0s = ShapeGraphs(self._f0_of, device, capturer)
        self._waves = ShapeGraphs(self._wave_of, device, capturer)

    def _f0_of(self, inputs: Mapping[str, Tensor]) -> Tensor:
        with tensor_float_32(False):
            return self._model.f0(inputs["mel"])

    def _wave_of(self, inputs: Mapping[str, Tensor]) -> Tensor:
        with tensor_float_32(self._tf32):
            return self._vocoder(inputs["mel"], inputs["source"])

    @torch.inference_mode()
    def f0(self, mel: Floats) -> Floats:
        return self._f0s.load(mel=mel).launch()[: len(mel)].to("cpu", copy=True).numpy()

    @torch.inference_mode()
    def synthesize(self, mel: Floats, source: Floats) -> Floats:
        return self._waves.load(mel=mel, source=source).launch()[: len(mel)].to("cpu", copy=True).numpy()
