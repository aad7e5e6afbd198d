"""Seeded random weights of the audio networks that behave sanely: they make a quiet noise, and codes differ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vita_audio.checkpoint.configs import FlowConfig, SenseVoiceConfig, SpeechTokenizerConfig, VocoderConfig
from vita_audio.checkpoint.sensevoice import CTC_PREFIX, released_keys
from vita_audio.models.flow import Flow
from vita_audio.models.sensevoice import SenseVoice
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.models.vocoder import Vocoder

#: Centre and spread of the vocoder's f0, and how much louder than its default start it is (about -25 dB of full scale).
_F0_HZ, _F0_SPREAD_HZ = 150.0, 60.0
_VOCODER_GAIN = 3.0
#: Sound whose states say where codes lie.
_CODEBOOK_CLIP_SECONDS = 4

#: Log-mel energies of speech: mean and spread.
_LOG_MEL, _LOG_MEL_SPREAD = 12.0, 4.0
#: Outputs of SenseVoice's unused CTC head, as released.
_CTC_ROWS = 25_055
#: What the projector's own random start has to be multiplied by for embeddings as large as those of ids.
_PROJECTOR_GAIN = 6.0

CPU = torch.device("cpu")


def speech_tokenizer_weights(config: SpeechTokenizerConfig, seed: int, device: torch.device = CPU) -> dict[str, Tensor]:
    """Random encoder; codes are drawn around its own outputs, so that different sounds get different codes."""
    with _seeded(seed, device), torch.inference_mode():
        model = SpeechTokenizer(config).eval()
        for table in (model.embed_positions.weight, model.embed_positions2.weight):
            table.copy_(sinusoids(*table.shape))
        states = model.encode(*_random_speech(config)).flatten(0, 1)  # [tokens, d_model]
        model.codebook.weight.normal_().mul_(states.std(0)).add_(states.mean(0))
        return model.state_dict()


def sensevoice_weights(config: SenseVoiceConfig, seed: int, device: torch.device = CPU) -> dict[str, Tensor]:
    """The layers' own random start under a checkpoint's keys, with the unused CTC head."""
    with _seeded(seed, device), torch.inference_mode():
        tensors = SenseVoice(config).state_dict()
        tensors["projector.mlp.2.weight"] *= _PROJECTOR_GAIN
        head = torch.nn.Linear(config.output_size, _CTC_ROWS)
        return {
            **released_keys(tensors),
            **{f"{CTC_PREFIX}ctc_lo.{key}": value for key, value in head.state_dict().items()},
        }


def feature_tables(config: SenseVoiceConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Shift and scale [input_size] that speech's features become N(0, 1) with, about."""
    with _seeded(seed, CPU):
        shift, scale = torch.randn(2, config.input_size)
    return shift - _LOG_MEL, (1 + 0.1 * scale) / _LOG_MEL_SPREAD


def flow_weights(config: FlowConfig, seed: int, device: torch.device = CPU) -> dict[str, Tensor]:
    """The layers' own random start, under the keys of `flow.pt`."""
    with _seeded(seed, device):
        return Flow(config).state_dict()


def vocoder_weights(config: VocoderConfig, seed: int, device: torch.device = CPU) -> dict[str, Tensor]:
    """The layers' own random start, louder and voiced, weight norm folded."""
    with _seeded(seed, device), torch.inference_mode():
        model = Vocoder(config)
        model.f0_predictor.classifier.weight.mul_(_F0_SPREAD_HZ)
        model.f0_predictor.classifier.bias.fill_(_F0_HZ)
        bins = config.istft_n_fft // 2 + 1
        assert model.conv_post.bias is not None
        model.conv_post.bias[:bins] += math.log(_VOCODER_GAIN)  # these channels are log magnitudes
        return model.state_dict()


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """New tensors are made on `device`, drawn from `seed`; the random state of the process is left alone."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        yield


def sinusoids(positions: int, width: int) -> Tensor:
    """Whisper's position table [positions, width]: sines in the first half, cosines in the second."""
    rates = torch.exp(-math.log(10_000.0) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def _random_speech(config: SpeechTokenizerConfig) -> tuple[Tensor, Tensor]:
    """Log-mel features [1, mels, frames] of something like speech, and how many frames are valid [1].

    Four resonances wander over the mel axis under a loudness that comes and goes in syllables of 0.1 to 0.5 s.
    """
    frames, mels = 100 * _CODEBOOK_CLIP_SECONDS, config.num_mel_bins
    axis = torch.arange(mels)[:, None] / mels  # [mels, 1]

    def wander(knots: int, low: float, high: float) -> Tensor:
        line = low + (high - low) * torch.rand(1, 1, knots)
        return torch.nn.functional.interpolate(line, frames, mode="linear", align_corners=True)[0]  # [1, frames]

    loudness = wander(5 * _CODEBOOK_CLIP_SECONDS, 0.0, 1.2)
    features = -0.4 + 0.1 * torch.randn(mels, frames)
    for low, high in ((0.02, 0.2), (0.1, 0.4), (0.3, 0.7), (0.5, 1.0)):
        centre = wander(6 * _CODEBOOK_CLIP_SECONDS, low, high)
        features += loudness * torch.exp(-0.5 * ((axis - centre) / 0.06) ** 2)
    return features.clamp(max=1.5)[None], torch.tensor([frames])
