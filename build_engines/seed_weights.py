"""Seeded random weights that behave sanely: streams mix text and audio, end by themselves, and make a quiet noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vita_audio.checkpoint import language_model_shapes
from vita_audio.configs import FlowConfig, LanguageModelConfig, SpeechTokenizerConfig, VocoderConfig
from vita_audio.models.flow import Flow
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.models.vocoder import Vocoder
from vita_audio.vocabulary import Vocabulary

#: Attention scores of random rows spread by this squared: sharp enough that all of the context counts.
_QUERY_KEY_GAIN = 1.5
#: Logits spread by this: at temperature 1 a token has real competitors, and greedy does not sit on one.
_LOGIT_SPREAD = 4.0
#: An end token wins when its logit is this many spreads above the mean; others need to beat the whole vocabulary. Of
#: 42 requests of all tasks and modes half ended within 314 tokens, the shortest at 14, and 6 ran into a limit of 1024.
_END_SCORE = 2.8
#: Centre and spread of the vocoder's f0, and how much louder than its default start it is (about -25 dB of full scale).
_F0_HZ, _F0_SPREAD_HZ = 150.0, 60.0
_VOCODER_GAIN = 3.0
_CODEBOOK_CLIP_SECONDS = 20


def language_model_weights(config: LanguageModelConfig, vocabulary: Vocabulary, seed: int) -> dict[str, Tensor]:
    """Random tensors under the released keys."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in language_model_shapes(config).items():
        if len(shape) == 1:
            tensors[key] = torch.zeros(shape) if key.endswith("bias") else torch.ones(shape)
            continue
        spread = 1.0 / math.sqrt(shape[1])  # keeps the size of what passes through
        if key == "model.embed_tokens.weight":
            spread = 1.0
        elif key == "lm_head.weight":
            spread *= _LOGIT_SPREAD
        elif ".q_proj." in key or ".k_proj." in key:
            spread *= _QUERY_KEY_GAIN
        tensors[key] = torch.randn(shape, generator=draw) * spread
    highest = torch.special.ndtri(torch.tensor(1 - 1 / config.vocab_size)).item()  # usual largest of all scores
    tensors["lm_head.weight"][list(vocabulary.end_tokens)] *= highest / _END_SCORE
    return tensors


def speech_tokenizer_weights(config: SpeechTokenizerConfig, seed: int) -> dict[str, Tensor]:
    """Random encoder; the codebook holds its own outputs, so that different sounds get different codes."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        model = SpeechTokenizer(config).eval()
        model.embed_positions.weight.copy_(sinusoids(*model.embed_positions.weight.shape))
        model.embed_positions2.weight.copy_(sinusoids(*model.embed_positions2.weight.shape))
        states: list[Tensor] = []
        while sum(map(len, states)) < config.quantize_vocab_size:
            states.append(model.encode(*_random_speech(config)).flatten(0, 1))
        model.codebook.weight.copy_(torch.cat(states)[: config.quantize_vocab_size])
        return model.state_dict()


def flow_weights(config: FlowConfig, seed: int) -> dict[str, Tensor]:
    """The layers' own random start, under the keys of `flow.pt`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Flow(config).state_dict()


def vocoder_weights(config: VocoderConfig, seed: int) -> dict[str, Tensor]:
    """The layers' own random start, louder and voiced, weight norm folded."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        model = Vocoder(config)
        model.f0_predictor.classifier.weight.mul_(_F0_SPREAD_HZ)
        model.f0_predictor.classifier.bias.fill_(_F0_HZ)
        bins = config.istft_n_fft // 2 + 1
        assert model.conv_post.bias is not None
        model.conv_post.bias[:bins] += math.log(_VOCODER_GAIN)  # these channels are log magnitudes
        return model.state_dict()


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
