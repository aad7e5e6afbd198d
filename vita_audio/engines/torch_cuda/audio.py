"""Flow and vocoder of the GPU: the audio engines beside the torch_cuda language model.

The streaming decoder calls them with tensors, within functions that it has captured (`device_arrays.py`): a chunk is
some 3 000 small kernels, and launched one by one they keep a CPU core busy longer than the GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vita_audio.checkpoint.configs import FlowConfig, VocoderConfig
from vita_audio.engines.arrays import Array
from vita_audio.engines.audio_precision import BF16, FLOAT32, FP16, TF32, check_precision
from vita_audio.engines.limits import check_condition
from vita_audio.engines.torch.audio import TorchFlow, TorchVocoder, tensor_float_32
from vita_audio.engines.torch_cuda.device_arrays import DeviceArrays, on_device
from vita_audio.engines.torch_cuda.estimator import FusedEstimator
from vita_audio.engines.torch_cuda.kernels.audio_check import audio_operations
from vita_audio.engines.torch_cuda.vocoder import FusedVocoder

ESTIMATOR_TYPES = {FP16: torch.float16, BF16: torch.bfloat16}


class TorchCudaFlow(TorchFlow):
    """`DeviceFlowEngine`.

    Args:
        config, tensors, device: as `TorchFlow`.
        precision: one of `DECODER_PRECISIONS`.
        kernels_off: names of `kernels/names.py` that run as their reference.
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
        self.arrays = DeviceArrays(device)
        #: By the times of a solve: [steps, all widths]. Never dropped: captured graphs read them by address.
        self._time_shifts: dict[tuple[float, ...], Tensor] = {}

    def condition(self, tokens: Array, frame_token: Array) -> Array:
        if isinstance(tokens, np.ndarray):
            check_condition(tokens, frame_token, self.vocab_size)
        return self._condition(tokens, frame_token)

    @on_device
    def _condition(self, tokens: Tensor, frame_token: Tensor) -> Tensor:
        with tensor_float_32(self._tf32):
            return self._model.condition(tokens, frame_token)

    @on_device
    def velocity(self, x: Tensor, mu: Tensor, cond: Tensor, t: float) -> Tensor:
        shifts = self._shifts([t])[0]
        with tensor_float_32(self._tf32):
            return self._estimator.velocity(x, self._estimator.given(mu, cond), shifts)

    @on_device
    def solve(self, x: Tensor, mu: Tensor, cond: Tensor, times: Sequence[float]) -> Tensor:
        key = tuple(times)
        if key not in self._time_shifts:  # the decoder's are always the same: made before its function is captured
            self._time_shifts[key] = self._shifts(key[:-1])
        with tensor_float_32(self._tf32):
            given = self._estimator.given(mu, cond)
            for (start, stop), shifts in zip(pairwise(times), self._time_shifts[key], strict=True):
                x = torch.add(x, self._estimator.velocity(x, given, shifts), alpha=stop - start)
        return x

    def _shifts(self, times: Sequence[float]) -> Tensor:
        with tensor_float_32(False):
            return self._estimator.shifts(torch.tensor(times, dtype=torch.float32, device=self._device))


class TorchCudaVocoder(TorchVocoder):
    """`VocoderEngine` of tensors or NumPy arrays.

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
        self.arrays = DeviceArrays(device)

    @on_device
    def f0(self, mel: Tensor) -> Tensor:
        with tensor_float_32(False):
            return self._model.f0(mel)

    @on_device
    def synthesize(self, mel: Tensor, source: Tensor) -> Tensor:
        with tensor_float_32(self._tf32):
            return self._vocoder(mel, source)
