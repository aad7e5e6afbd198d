"""Speech tokenizer, flow and vocoder in plain PyTorch: the reference that the compiled engines are held against.

float32 throughout: PyTorch's default on a GPU is TF32 for convolutions, f0's too, whose error adds up in the phase.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vita_audio.checkpoint.configs import FlowConfig, SpeechTokenizerConfig, VocoderConfig
from vita_audio.engines.interface import Floats, Ints
from vita_audio.engines.limits import check_condition, check_features
from vita_audio.models.flow import Flow
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.models.vocoder import Vocoder

CPU = torch.device("cpu")


@contextmanager
def tensor_float_32(wanted: bool) -> Iterator[None]:
    """Whether matrix products and convolutions of float32 on a GPU may round operands to 10 bits of mantissa (TF32)."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, conv.allow_tf32
    matmul.allow_tf32 = conv.allow_tf32 = wanted
    try:
        yield
    finally:
        matmul.allow_tf32, conv.allow_tf32 = before


class TorchSpeechTokenizer:
    """`SpeechTokenizerEngine` over `models.speech_tokenizer`, float32."""

    def __init__(
        self, config: SpeechTokenizerConfig, tensors: Mapping[str, Tensor], device: torch.device = CPU
    ) -> None:
        self.num_mel_bins, self.max_frames = config.num_mel_bins, 2 * config.max_source_positions
        self._frames_per_token = config.frames_per_token
        self._model = SpeechTokenizer(config).eval()
        self._model.load_state_dict(tensors)
        self._model.to(device)
        self._device = device

    @torch.inference_mode()
    @tensor_float_32(False)
    def tokens(self, features: Floats, valid_frames: int) -> Ints:
        check_features(features, valid_frames, self.num_mel_bins, self.max_frames)
        frames = torch.tensor([valid_frames], device=self._device)
        ids = self._model(_tensor(features, self._device)[None], frames)
        return ids[0, : -(-valid_frames // self._frames_per_token)].cpu().numpy()


class TorchFlow:
    """`FlowEngine` over `models.flow`, float32."""

    def __init__(self, config: FlowConfig, tensors: Mapping[str, Tensor], device: torch.device = CPU) -> None:
        self.mel_channels, self.block_tokens, self.vocab_size = config.output_size, config.block_size, config.vocab_size
        self._model = Flow(config).eval()
        self._model.load_state_dict(tensors)
        self._model.to(device)
        self._device = device

    @torch.inference_mode()
    @tensor_float_32(False)
    def condition(self, tokens: Ints, frame_token: Ints) -> Floats:
        check_condition(tokens, frame_token, self.vocab_size)
        return self._model.condition(_tensor(tokens, self._device), _tensor(frame_token, self._device)).cpu().numpy()

    @torch.inference_mode()
    @tensor_float_32(False)
    def velocity(self, x: Floats, mu: Floats, cond: Floats, t: float) -> Floats:
        state, mean, known = (_tensor(array, self._device) for array in (x, mu, cond))
        return self._model.velocity(state, mean, known, torch.tensor([t], device=self._device)).cpu().numpy()

    @torch.inference_mode()
    @tensor_float_32(False)
    def solve(self, x: Floats, mu: Floats, cond: Floats, times: Sequence[float]) -> Floats:
        """As `TensorRtFlow.solve`: all Euler steps with x kept on the device."""
        state, mean, known = (_tensor(array, self._device) for array in (x, mu, cond))
        for start, stop in pairwise(times):
            time = torch.tensor([start], dtype=torch.float32, device=self._device)
            state = state + float(stop - start) * self._model.velocity(state, mean, known, time)
        return state.cpu().numpy()


class TorchVocoder:
    """`VocoderEngine` over `models.vocoder`, float32."""

    def __init__(self, config: VocoderConfig, tensors: Mapping[str, Tensor], device: torch.device = CPU) -> None:
        self.mel_channels, self.harmonics = config.in_channels, config.nb_harmonics + 1
        self._model = Vocoder(config).eval()
        self._model.load_state_dict(tensors)
        self._model.to(device)
        self._device = device
        mixer = self._model.m_source.l_linear
        self.source_weight: Floats = mixer.weight.detach()[0].cpu().numpy()
        self.source_bias = float(mixer.bias.detach())

    @torch.inference_mode()
    @tensor_float_32(False)
    def f0(self, mel: Floats) -> Floats:
        return self._model.f0(_tensor(mel, self._device)).cpu().numpy()

    @torch.inference_mode()
    @tensor_float_32(False)
    def synthesize(self, mel: Floats, source: Floats) -> Floats:
        return self._model(_tensor(mel, self._device), _tensor(source, self._device)).cpu().numpy()


def _tensor(array: Floats | Ints, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
