"""ONNX Runtime equals PyTorch for any sizes of the architecture, batch sizes and lengths; engines refuse bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from build_engines.onnxruntime.flow import export_flow
from build_engines.onnxruntime.speech_tokenizer import export_speech_tokenizer
from build_engines.onnxruntime.vocoder import export_vocoder
from vita_audio.checkpoint.configs import FlowConfig, SpeechTokenizerConfig, VocoderConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.onnxruntime.audio import OnnxFlow, OnnxVocoder
from vita_audio.engines.onnxruntime.speech_tokenizer import OnnxSpeechTokenizer
from vita_audio.engines.torch.audio import TorchFlow, TorchSpeechTokenizer, TorchVocoder
from vita_audio.models.flow import Flow
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.models.vocoder import Stft, Vocoder

FLOW_CONFIGS = (
    FlowConfig(
        vocab_size=50, input_size=24, encoder_output_size=32, encoder_heads=4, encoder_linear_units=40,
        encoder_blocks=3, block_size=4, channels=(16, 16), attention_head_dim=8, n_blocks=2, num_mid_blocks=3,
        num_heads=3,
    ),
    FlowConfig(
        vocab_size=30, output_size=20, spk_embed_dim=8, input_size=16, encoder_output_size=16, encoder_heads=1,
        encoder_linear_units=64, encoder_blocks=1, regulator_convs=2, channels=(24, 16, 32), attention_head_dim=12,
        n_blocks=1, num_mid_blocks=1, num_heads=2, inference_cfg_rate=0.4,
    ),
    FlowConfig(
        vocab_size=30, input_size=16, encoder_output_size=16, encoder_heads=2, encoder_linear_units=16,
        encoder_blocks=1, channels=(40,), attention_head_dim=16, n_blocks=1, num_mid_blocks=2, num_heads=1,
        inference_cfg_rate=0.0,
    ),
)  # fmt: skip
VOCODER_CONFIGS = (
    VocoderConfig(base_channels=32, f0_channels=24),
    VocoderConfig(in_channels=20, base_channels=24, f0_channels=16, nb_harmonics=5, resblock_kernel_sizes=(3, 5),
                  resblock_dilation_sizes=((1, 2), (1, 3, 5)), source_resblock_kernel_sizes=(5, 7), audio_limit=0.5),
    VocoderConfig(base_channels=48, f0_channels=16, upsample_rates=(4, 4, 4), upsample_kernel_sizes=(8, 8, 8),
                  source_resblock_kernel_sizes=(3, 7, 11), source_resblock_dilation_sizes=((1,), (1, 3), (1, 3, 5))),
)  # fmt: skip
SPEECH_TOKENIZER_CONFIGS = (
    SpeechTokenizerConfig(
        d_model=32, encoder_attention_heads=4, encoder_ffn_dim=48, num_mel_bins=20, quantize_position=2,
        quantize_vocab_size=64, quantize_causal_block_size=7,
    ),
    SpeechTokenizerConfig(
        d_model=24, encoder_attention_heads=1, encoder_ffn_dim=24, num_mel_bins=16, quantize_position=1,
        quantize_vocab_size=40, max_source_positions=300, pooling_kernel_size=2,
    ),
)  # fmt: skip


def randomise(model: nn.Module, seed: int) -> None:
    """Every weight drawn from `seed`; norm scales, biases and alphas are not neutral, so that a misplaced one shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            centre = 1.0 if "norm" in name or "alpha" in name or name.endswith("1.weight") else 0.0
            parameter.data = centre + 0.4 * torch.rand(parameter.shape, generator=generator) - 0.2
        else:
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5


@torch.no_grad()
def spread_codes(model: SpeechTokenizer) -> None:
    """Codes at states of the encoder, so that tokens differ from one another."""
    count, frames = model.config.quantize_vocab_size, model.config.frames_per_token * model.config.quantize_vocab_size
    features = torch.from_numpy(normal(0, 1, model.config.num_mel_bins, frames))
    model.codebook.weight.copy_(model.encode(features, torch.tensor([frames]))[0, :count])


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("config", FLOW_CONFIGS, ids=["deep", "three_levels", "one_level"])
def test_flow_on_onnxruntime_equals_torch(config: FlowConfig, tmp_path: Path) -> None:
    model = Flow(config)
    randomise(model, 1)
    export_flow(model, tmp_path)
    torch_flow, onnx_flow = TorchFlow(config, model.state_dict()), OnnxFlow(tmp_path)
    assert (onnx_flow.mel_channels, onnx_flow.block_tokens) == (config.output_size, config.block_size)
    rng = np.random.default_rng(2)
    for batch, tokens, frames in ((1, 1, 6), (1, 8, 55), (2, 13, 90), (3, 7, 48)):
        ids = rng.integers(0, config.vocab_size, (batch, tokens))
        frame_token = np.sort(rng.integers(0, tokens, frames))
        mu = torch_flow.condition(ids, frame_token)
        assert relative(onnx_flow.condition(ids, frame_token), mu) < 1e-4
        x, cond = normal(3, *mu.shape), normal(4, *mu.shape)
        for t in (0.0, 0.37):
            assert relative(onnx_flow.velocity(x, mu, cond, t), torch_flow.velocity(x, mu, cond, t)) < 1e-4


@pytest.mark.parametrize("config", VOCODER_CONFIGS, ids=["released_form", "other_kernels", "three_levels"])
def test_vocoder_on_onnxruntime_equals_torch(config: VocoderConfig, tmp_path: Path) -> None:
    model = Vocoder(config)
    randomise(model, 5)
    model.conv_post.weight.data *= 0.1  # quiet enough not to clip everywhere
    export_vocoder(model, tmp_path)
    torch_vocoder, onnx_vocoder = TorchVocoder(config, model.state_dict()), OnnxVocoder(tmp_path)
    assert onnx_vocoder.harmonics == torch_vocoder.harmonics == config.nb_harmonics + 1
    assert onnx_vocoder.source_bias == torch_vocoder.source_bias
    np.testing.assert_array_equal(onnx_vocoder.source_weight, torch_vocoder.source_weight)
    for batch, frames in ((1, 1), (1, 31), (2, 20)):
        mel = normal(6, batch, config.in_channels, frames)
        source = 0.1 * normal(7, batch, frames * config.samples_per_frame)
        assert np.abs(onnx_vocoder.f0(mel) - torch_vocoder.f0(mel)).max() < 1e-4
        wanted = torch_vocoder.synthesize(mel, source)
        assert wanted.shape == source.shape
        assert np.abs(wanted).min() < config.audio_limit
        assert np.abs(onnx_vocoder.synthesize(mel, source) - wanted).max() < 1e-4


@pytest.mark.parametrize("config", SPEECH_TOKENIZER_CONFIGS, ids=["four_heads", "short_pool"])
def test_speech_tokenizer_on_onnxruntime_equals_torch(config: SpeechTokenizerConfig, tmp_path: Path) -> None:
    model = SpeechTokenizer(config)
    randomise(model, 8)
    spread_codes(model)
    export_speech_tokenizer(model, tmp_path)
    torch_engine, onnx_engine = TorchSpeechTokenizer(config, model.state_dict()), OnnxSpeechTokenizer(tmp_path)
    for frames, valid_frames in ((2, 1), (8, 8), (54, 47), (600, 593)):
        features = normal(frames, config.num_mel_bins, frames)
        ids = torch_engine.tokens(features, valid_frames)
        assert len(ids) == -(-valid_frames // config.frames_per_token)
        assert len(ids) < 7 or len(set(ids.tolist())) > 4
        assert onnx_engine.tokens(features, valid_frames).tolist() == ids.tolist()


def test_padding_does_not_reach_speech() -> None:
    """Frames beyond the speech are not attended to: they change no token but the last, whose mean they enter."""
    config = SPEECH_TOKENIZER_CONFIGS[0]
    model = SpeechTokenizer(config)
    randomise(model, 9)
    spread_codes(model)
    engine = TorchSpeechTokenizer(config, model.state_dict())
    speech = normal(10, config.num_mel_bins, 44)
    padded = [np.pad(speech, ((0, 0), (0, extra)), constant_values=value) for extra, value in ((4, 0.0), (20, 3.0))]
    few, many = (engine.tokens(features, 44) for features in padded)
    assert few[:-1].tolist() == many[:-1].tolist()


@pytest.mark.parametrize(("n_fft", "hop"), [(16, 4), (32, 8), (12, 2)])
def test_stft_and_inverse(n_fft: int, hop: int) -> None:
    stft, wave = Stft(n_fft, hop), torch.from_numpy(normal(11, 2, 40 * hop))
    window = torch.hann_window(n_fft)
    wanted = torch.stft(wave, n_fft, hop, window=window, center=True, return_complex=True)
    spectrum = stft(wave)
    torch.testing.assert_close(spectrum, torch.cat((wanted.real, wanted.imag), dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(stft.inverse(spectrum), wave, atol=1e-5, rtol=0)


def test_flow_gradients_reach_every_used_weight() -> None:
    """The modules are the ones training uses: only the stored, never-read speaker matrix gets no gradient."""
    config = FLOW_CONFIGS[0]
    model = Flow(config)
    mu = model.condition(torch.arange(9)[None], torch.arange(62) * 9 // 62)
    model.velocity(torch.randn_like(mu), mu, mu, torch.tensor([0.5])).square().mean().backward()
    without = {name for name, value in model.named_parameters() if value.grad is None}
    assert without == {"spk_embed_affine_layer.weight"}


@pytest.fixture(scope="module")
def small_flow() -> TorchFlow:
    return TorchFlow(FLOW_CONFIGS[0], Flow(FLOW_CONFIGS[0]).state_dict())


@pytest.mark.parametrize(
    ("tokens", "frame_token", "told"),
    [
        ([[0, 50]], [0, 1], "0..49"),
        ([[-1, 3]], [0, 1], "-1"),
        ([[1, 2]], [0, 2], "frame_token"),
        ([[1, 2]], [], "never empty"),
    ],
)
def test_flow_refuses_bad_windows(small_flow: TorchFlow, tokens: list, frame_token: list, told: str) -> None:
    with pytest.raises(EngineError, match=told):
        small_flow.condition(np.array(tokens), np.array(frame_token, np.int64))


@pytest.mark.parametrize(
    ("shape", "valid_frames", "told"),
    [
        ((20, 7), 7, "even"),
        ((19, 8), 8, "must be"),
        ((20, 8), 9, "1..8"),
        ((20, 8), 0, "1..8"),
        ((20, 3002), 8, "3000"),
    ],
)
def test_speech_tokenizer_refuses_bad_features(shape: tuple[int, int], valid_frames: int, told: str) -> None:
    config = SPEECH_TOKENIZER_CONFIGS[0]
    engine = TorchSpeechTokenizer(config, SpeechTokenizer(config).state_dict())
    with pytest.raises(EngineError, match=told):
        engine.tokens(np.zeros(shape, np.float32), valid_frames)


def test_missing_and_foreign_graphs(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"flow_condition\.onnx"):
        OnnxFlow(tmp_path)
    (tmp_path / "speech_tokenizer.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"speech_tokenizer\.onnx"):
        OnnxSpeechTokenizer(tmp_path)
