"""Speech tokenizer, flow and vocoder in plain PyTorch: the reference that the compiled engines are held against."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vita_audio.configs import FlowConfig, SpeechTokenizerConfig, VocoderConfig
from vita_audio.engines.interface import Floats, Ints
from vita_audio.engines.limits import check_condition, check_features
from vita_audio.models.flow import Flow
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.models.vocoder import Vocoder


class TorchSpeechTokenizer:
    """`SpeechTokenizerEngine` over `models.speech_tokenizer`, float32, on the CPU."""

    def __init__(self, config: SpeechTokenizerConfig, tensors: Mapping[str, Tensor]) -> None:
        self.num_mel_bins, self.max_frames = config.num_mel_bins, 2 * config.max_source_positions
        self._frames_per_token = config.frames_per_token
        self._model = SpeechTokenizer(config).eval()
        self._model.load_state_dict(tensors)

    @torch.inference_mode()
    def tokens(self, features: Floats, valid_frames: int) -> Ints:
        check_features(features, valid_frames, self.num_mel_bins, self.max_frames)
        ids = self._model(_tensor(features)[None], torch.tensor([valid_frames]))
        return ids[0, : -(-valid_frames // self._frames_per_token)].numpy()


class TorchFlow:
    """`FlowEngine` over `models.flow`, float32, on the CPU."""

    def __init__(self, config: FlowConfig, tensors: Mapping[str, Tensor]) -> None:
        self.mel_channels, self.block_tokens, self.vocab_size = config.output_size, config.block_size, config.vocab_size
        self._model = Flow(config).eval()
        self._model.load_state_dict(tensors)

    @torch.inference_mode()
    def condition(self, tokens: Ints, frame_token: Ints) -> Floats:
        check_condition(tokens, frame_token, self.vocab_size)
        return self._model.condition(_tensor(tokens), _tensor(frame_token)).numpy()

    @torch.inference_mode()
    def velocity(self, x: Floats, mu: Floats, cond: Floats, t: float) -> Floats:
        return self._model.velocity(_tensor(x), _tensor(mu), _tensor(cond), torch.tensor([t])).numpy()


class TorchVocoder:
    """`VocoderEngine` over `models.vocoder`, float32, on the CPU."""

    def __init__(self, config: VocoderConfig, tensors: Mapping[str, Tensor]) -> None:
        self.mel_channels, self.harmonics = config.in_channels, config.nb_harmonics + 1
        self._model = Vocoder(config).eval()
        self._model.load_state_dict(tensors)
        mixer = self._model.m_source.l_linear
        self.source_weight: Floats = mixer.weight.detach()[0].numpy()
        self.source_bias = float(mixer.bias.detach())

    @torch.inference_mode()
    def f0(self, mel: Floats) -> Floats:
        return self._model.f0(_tensor(mel)).numpy()

    @torch.inference_mode()
    def synthesize(self, mel: Floats, source: Floats) -> Floats:
        return self._model(_tensor(mel), _tensor(source)).numpy()


def _tensor(array: Floats | Ints) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
