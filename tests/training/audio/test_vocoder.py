"""The vocoder's training: losses, discriminators, weight norm, resume, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from build_engines.onnxruntime.vocoder import export_vocoder
from training.audio import vocoder as module
from training.audio.decoder_clips import DecoderClips
from training.audio.discriminators import Discriminators, adversarial_loss, discriminator_loss, feature_loss
from training.audio.flow import FlowTraining
from training.audio.pitch import fundamental_hz
from training.audio.spectral import SpectralLoss
from training.audio.speech_tokenizer import SpeechTokenizerTraining
from training.audio.vocoder import SegmentBatches, VocoderTraining, folded, train_vocoder, vocode, weight_normed
from training.errors import TrainingError
from training.logs import Table
from training_audio_clips import Killed, kill_at, quick_run, write_clips
from vita_audio.checkpoint.audio_decoder import load_vocoder, write_audio_decoder
from vita_audio.checkpoint.configs import VocoderConfig
from vita_audio.checkpoint.random_weights.audio import flow_weights
from vita_audio.checkpoint.sizes import TINY
from vita_audio.engines.onnxruntime.audio import OnnxVocoder
from vita_audio.engines.torch.audio import TorchVocoder
from vita_audio.models.vocoder import Vocoder

CPU = torch.device("cpu")
SIZES = VocoderConfig(
    base_channels=16,
    f0_channels=16,
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1, 3),),
    source_resblock_dilation_sizes=((1,), (1,)),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("data"), copies=1)


def _config(save_every: int | None = None) -> VocoderTraining:
    return VocoderTraining(
        model=SIZES,
        run=quick_run(30, save_every),
        batch=2,
        segment_frames=16,
        own_f0_after=0.3,
        adversarial_after=0.6,
        discriminator_width=4,
        average=0.8,
    )


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocoder")
    assert train_vocoder(_config(), data, folder) == folder / "vocoder.pt"
    return folder


def test_the_loss_falls_and_the_discriminators_join_after_the_warm_up(trained: Path) -> None:
    log = Table(trained / "log.csv")
    for name in ("loss_mel", "loss_stft", "loss_f0"):
        values = [value for _, value in log.column(name)]
        assert sum(values[-4:]) < 0.9 * sum(values[:4]), name
    for name in ("loss_discriminator", "loss_adversarial", "loss_feature"):
        assert min(step for step, _ in log.column(name)) == 20
    assert "voicing_error" in Table(trained / "held_out.csv").rows[-1]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(save_every=11)
    with monkeypatch.context() as patch:
        patch.setattr(module, "Run", kill_at(25))
        with pytest.raises(Killed):
            train_vocoder(config, data, tmp_path)
    train_vocoder(config, data, tmp_path)
    ours, whole = (torch.load(folder / "vocoder.pt", weights_only=True) for folder in (tmp_path, trained))
    assert ours.keys() == whole.keys()
    for key in ours:
        assert torch.equal(ours[key], whole[key]), key


def test_the_export_has_the_released_keys_loads_and_serves(trained: Path, tmp_path: Path) -> None:
    stored = torch.load(trained / "vocoder.pt", weights_only=True)
    write_audio_decoder(tmp_path / "audio_decoder", TINY.flow, flow_weights(TINY.flow, 0), SIZES, stored)
    released = torch.load(tmp_path / "audio_decoder" / "hift.pt", weights_only=True)
    assert {"conv_pre.weight_g", "conv_pre.weight_v", "source_downs.0.weight"} <= released.keys()
    assert "f0_predictor.condnet.0.weight_v" in released
    config, tensors = load_vocoder(tmp_path / "audio_decoder")
    assert config == SIZES
    for key, value in tensors.items():
        torch.testing.assert_close(value, stored[key].float(), rtol=2e-3, atol=1e-4)
    model = Vocoder(config)
    model.load_state_dict(tensors)
    export_vocoder(model, tmp_path)
    served, reference = OnnxVocoder(tmp_path), TorchVocoder(config, tensors)
    rng = np.random.default_rng(0)
    mel, source = rng.standard_normal((1, 80, 12)).astype(np.float32), rng.normal(0, 0.1, (1, 3072)).astype(np.float32)
    np.testing.assert_allclose(served.f0(mel), reference.f0(mel), rtol=1e-3)
    np.testing.assert_allclose(served.synthesize(mel, source), reference.synthesize(mel, source), atol=1e-3)


def test_weight_norm_leaves_the_vocoder_as_it_was() -> None:
    torch.manual_seed(0)
    plain = Vocoder(SIZES).eval()
    keys, mel, source = list(plain.state_dict()), torch.randn(1, 80, 10), torch.randn(1, 2560) / 10
    before = plain(mel, source)
    normed = weight_normed(plain)
    torch.testing.assert_close(normed(mel, source), before, rtol=1e-4, atol=1e-5)
    plain_again = folded(normed)
    assert sorted(plain_again.state_dict()) == sorted(keys)
    torch.testing.assert_close(plain_again(mel, source), before, rtol=1e-4, atol=1e-5)
    assert len(list(normed.parameters())) > len(keys)  # it is still normed itself


def test_f0_does_not_learn_from_the_wave(data: Path) -> None:
    """The source follows the predicted f0, but only the f0 loss moves the predictor; its mel has full context."""
    clips = DecoderClips(data, "slt", CPU)
    f0 = {index: fundamental_hz(clips.clips.samples(index) / np.float32(32768)) for index in clips.train}
    batches = SegmentBatches(clips, clips.train, f0, batch=2, frames=12, seed=0)
    segments = batches[0]
    assert segments.wave.shape == (2, 12 * 256)
    assert segments.mel.shape == (2, 80, 22)
    index = clips.train[0]
    part = batches.make([index], [7], 12)
    np.testing.assert_allclose(part.f0[0], f0[index][2:24])
    torch.testing.assert_close(part.mel, clips.mels([index], [0], 30)[:, :, 2:24], rtol=1e-3, atol=1e-3)
    torch.manual_seed(0)
    model = Vocoder(SIZES)
    wave, predicted = vocode(model, segments, true_f0=False, draw=torch.Generator().manual_seed(0))
    assert wave.shape == segments.wave.shape
    wave.sum().backward()
    assert all(p.grad is None for p in model.f0_predictor.parameters())
    assert model.m_source.l_linear.weight.grad is not None
    predicted.sum().backward()
    assert all(p.grad is not None for p in model.f0_predictor.parameters())


def test_spectral_losses_hear_differences_but_not_phase() -> None:
    time_s = torch.arange(8192) / 22050
    tone, turned = (torch.sin(2 * torch.pi * 440 * time_s + phase)[None] / 4 for phase in (0.0, 1.0))
    loss, other = SpectralLoss(), torch.sin(2 * torch.pi * 1760 * time_s)[None] / 4
    same, far = loss(turned, tone), loss(other, tone)
    assert float(loss(tone, tone)["mel"]) == 0.0
    for name in ("mel", "stft"):
        assert float(same[name]) < 0.25 * float(far[name])


def test_discriminators_and_their_losses() -> None:
    torch.manual_seed(0)
    judges = Discriminators(4)
    speech, made = judges(torch.randn(2, 4000) / 10), judges(torch.randn(2, 4000) / 10)
    assert len(speech) == 8
    sure_true = [(torch.ones_like(verdict), layers) for verdict, layers in speech]
    sure_made = [(torch.zeros_like(verdict), layers) for verdict, layers in made]
    assert discriminator_loss(sure_true, sure_made).item() == 0.0
    assert discriminator_loss(sure_made, sure_true).item() == 2.0
    assert adversarial_loss(sure_true).item() == 0.0
    assert feature_loss(speech, speech).item() == 0.0
    assert feature_loss(speech, made).item() > 0.0


def test_every_setting_out_of_range_is_named() -> None:
    with pytest.raises(TrainingError) as error:
        VocoderTraining(model=SIZES, run=quick_run(2), batch=0, adversarial_after=1.5, f0_weight=-1.0)
    for field in ("batch: 0", "adversarial_after: 1.5", "f0_weight: -1.0"):
        assert field in str(error.value)
    with pytest.raises(TrainingError, match="window_tokens"):
        FlowTraining(model=TINY.flow, run=quick_run(2), window_tokens=3)
    with pytest.raises(TrainingError, match="quantize_after"):
        SpeechTokenizerTraining(model=TINY.speech_tokenizer, run=quick_run(2), quantize_after=1.0)
