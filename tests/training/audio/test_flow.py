"""The flow's training: windows as served, loss, resume, export."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from build_engines.onnxruntime.flow import export_flow
from training.audio import flow as module
from training.audio.decoder_clips import DecoderClips
from training.audio.flow import (
    FlowDraw,
    FlowTraining,
    add_flow_gradients,
    condition,
    error_counts,
    flow_errors,
    train_flow,
)
from training.audio.flow_windows import FEWEST_TOKENS, FlowBatch, FlowWindows
from training.errors import TrainingError
from training.logs import Table
from training.workers import workers
from training_audio_clips import Killed, kill_at, quick_run, write_clips
from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder, write_audio_decoder
from vita_audio.checkpoint.random_weights.audio import speech_tokenizer_weights, vocoder_weights
from vita_audio.checkpoint.sizes import TINY
from vita_audio.checkpoint.speech_tokenizer import write_speech_tokenizer
from vita_audio.decoding.flow_stream import FlowState, window_inputs, window_span
from vita_audio.decoding.noise import StreamNoise
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.decoding.stream_buffers import StreamBuffers
from vita_audio.engines.arrays import HostArrays
from vita_audio.engines.onnxruntime.audio import OnnxFlow
from vita_audio.engines.torch.audio import TorchFlow
from vita_audio.models.flow import Flow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_speech_tokenizer(folder, TINY.speech_tokenizer, speech_tokenizer_weights(TINY.speech_tokenizer, 0))
    return folder


@pytest.fixture(scope="module")
def clips(data: Path) -> DecoderClips:
    return DecoderClips(data, "slt", CPU)


def _windows(clips: DecoderClips, seed: int = 0) -> FlowWindows:
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, 256, -(-clips.frames(index) * 64 // 441)) for index in clips.train]
    return FlowWindows(clips, clips.train, codes, block_tokens=10, most_tokens=70, batch=3, seed=seed)


def _config(save_every: int | None = None) -> FlowTraining:
    model = replace(TINY.flow, input_size=32, encoder_output_size=32, encoder_linear_units=32, channels=(16, 16))
    return FlowTraining(model=model, run=quick_run(40, save_every), batch=4, average=0.8, held_out_clips=4)


@pytest.fixture(scope="module")
def trained(data: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow")
    assert train_flow(_config(), data, tokenizer, folder) == folder / "flow.pt"
    return folder


@pytest.mark.parametrize(("first", "tokens"), [(0, 8), (0, 17), (10, 9), (20, 25), (30, 20)])
def test_windows_have_the_geometry_of_served_ones(clips: DecoderClips, first: int, tokens: int) -> None:
    codes = np.arange(60)
    windows = FlowWindows(clips, clips.train[:1], [codes], block_tokens=10, most_tokens=70, batch=1, seed=0)
    batch = windows.make([0], [first], tokens, [0.5])
    # The served window that starts at this token: its stream has voiced the frames up to 30 tokens further.
    final_frames = (first + 30) * 441 // 64 + 1 if first else 0
    span = window_span(final_frames, first + tokens, context_tokens=30, block_tokens=10)
    assert (span.first_token, span.stop_token) == (first, first + tokens)
    config = DecoderConfig()
    buffers, state = StreamBuffers(HostArrays(), config, 1, 500, 80), FlowState(first + tokens, span.first_frame)
    served = window_inputs(buffers, 0, state, span, codes.tolist(), StreamNoise(0), config, 80)
    assert batch.tokens[0].tolist() == served["tokens"].tolist()
    assert batch.frame_token[0].tolist() == served["frame_token"].tolist()
    true = clips.mels([clips.train[0]], [span.first_frame], span.frames)
    assert torch.equal(batch.mel, true)
    assert int(batch.known.sum()) == span.frames // 2


def test_batches_depend_on_the_step_alone_and_start_on_the_grid(clips: DecoderClips) -> None:
    ours, again = _windows(clips), _windows(clips)
    again[1]
    later = 0
    for step in range(30):
        batch = ours[step]
        assert batch.tokens.shape[0] == 3
        assert batch.tokens.shape[1] >= FEWEST_TOKENS
        assert batch.mel.shape == (3, 80, batch.frame_token.shape[1])
        assert batch.frame_token.min() >= 0
        assert batch.frame_token.max() == batch.tokens.shape[1] - 1
        known = batch.known.float()
        assert (known.diff(dim=1) <= 0).all()  # a prefix
        assert (known.mean(1) <= 0.8).all()
        later += batch.mel.shape[2] < batch.tokens.shape[1] * 441 // 64
        if step % 10 == 0:
            assert torch.equal(batch.mel, again[step].mel)
    assert 0 < later < 30


def test_clips_that_are_too_short_are_a_clear_error(clips: DecoderClips) -> None:
    with pytest.raises(TrainingError, match="6 tokens"):
        FlowWindows(clips, clips.train[:1], [np.zeros(5, np.int64)], 10, 70, 2, 0)


def test_mu_of_a_batch_is_that_of_each_window(clips: DecoderClips) -> None:
    torch.manual_seed(0)
    flow, batch = Flow(TINY.flow).eval(), _windows(clips).make([-1, -2], [10, 10], 9, [0.0, 0.0])
    both = condition(flow, batch)
    for row in range(2):
        alone = flow.condition(batch.tokens[row : row + 1], batch.frame_token[row])
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_given_frames_do_not_count_and_guidance_is_trained(clips: DecoderClips) -> None:
    """Only new frames are in the loss; with everything withheld, tokens, speaker and condition do not matter."""
    torch.manual_seed(0)
    batch = _windows(clips).make([-1, -2], [0, 0], 8, [0.5, 0.5])

    def loss(config_rate: float, changed: FlowBatch) -> float:
        torch.manual_seed(1)
        model = Flow(replace(TINY.flow, training_cfg_rate=config_rate)).eval()
        drawn = FlowDraw.of(changed, model.config, torch.Generator().manual_seed(0))
        return flow_errors(model, changed, drawn)[0].item()

    all_known = replace(batch, known=torch.ones_like(batch.known))
    assert loss(0.2, all_known) == 0.0
    other_tokens = replace(batch, tokens=(batch.tokens + 1) % 256)
    assert loss(1.0, batch) == loss(1.0, other_tokens)
    assert loss(0.0, batch) != loss(0.0, other_tokens)


def test_what_is_withheld_is_withheld_together(clips: DecoderClips, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of a window without guidance is given neither tokens, nor speaker, nor frames; the others all."""
    torch.manual_seed(0)
    batch = _windows(clips).make([-1, -2], [0, 0], 8, [0.5, 0.5])
    model = Flow(TINY.flow).eval()
    drawn = replace(FlowDraw.of(batch, model.config, torch.Generator().manual_seed(0)), given=torch.tensor([0.0, 1.0]))
    seen: list[torch.Tensor] = []
    estimator = model.decoder.estimator.forward

    def note(*inputs: torch.Tensor) -> torch.Tensor:
        seen.extend(inputs)
        return estimator(*inputs)

    monkeypatch.setattr(model.decoder.estimator, "forward", note)
    flow_errors(model, batch, drawn)
    y, mu, t, spks, cond = seen
    assert not any(each[0].detach().any() for each in (mu, spks, cond))
    assert all(each[1].detach().any() for each in (mu, spks, cond))
    torch.testing.assert_close(cond[1], (batch.mel * batch.known[:, None])[1])
    torch.testing.assert_close(spks[1:], model.speaker().expand(1, -1))
    torch.testing.assert_close(t, drawn.t)
    s, at = model.config.sigma_min, drawn.t[:, None, None]
    torch.testing.assert_close(y, (1 - (1 - s) * at) * drawn.noise + at * batch.mel)


def test_parts_of_a_batch_add_up_to_it(clips: DecoderClips, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors and gradients of three windows, whole and in two threads of uneven parts."""
    monkeypatch.setattr(module, "autocast", lambda device: nullcontext())  # bfloat16 rounds parts otherwise
    torch.manual_seed(0)
    model, batch = Flow(TINY.flow), _windows(clips)[0]
    config = replace(_config(), mean_weight=0.5)
    drawn = FlowDraw.of(batch, model.config, torch.Generator().manual_seed(0))
    found = []
    for parts in (1, 2):
        model.zero_grad()
        with workers(parts) as each:
            losses = add_flow_gradients(model, batch, drawn, config, parts, each)
        found.append((losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (whole, gradients), (split, split_gradients) = found
    assert gradients.keys() == split_gradients.keys()
    errors = flow_errors(model, batch, drawn) / error_counts(batch)
    torch.testing.assert_close(torch.stack([whole["flow"], whole["mean"]]), errors.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=0)
    assert sum(float(gradient.norm()) for gradient in gradients.values()) > 1
    for name, gradient in gradients.items():
        apart = float((split_gradients[name] - gradient).norm())
        assert apart <= 1e-4 * float(gradient.norm()) + 1e-6, name


def test_the_loss_falls(trained: Path) -> None:
    log = Table(trained / "log.csv")
    for name in ("loss_flow", "loss_mean"):
        values = [value for _, value in log.column(name)]
        assert sum(values[-5:]) < 0.85 * sum(values[:5]), name
    assert float(Table(trained / "held_out.csv").rows[-1]["mel_error"]) < 4


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    data: Path, tokenizer: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(save_every=9)
    with monkeypatch.context() as patch:
        patch.setattr(module, "Run", kill_at(23))
        with pytest.raises(Killed):
            train_flow(config, data, tokenizer, tmp_path)
    train_flow(config, data, tokenizer, tmp_path)
    ours, whole = (torch.load(folder / "flow.pt", weights_only=True) for folder in (tmp_path, trained))
    assert ours.keys() == whole.keys()
    for key in ours:
        assert torch.equal(ours[key], whole[key]), key


def test_the_export_loads_and_serves(trained: Path, tmp_path: Path) -> None:
    sizes = _config().model
    weights = torch.load(trained / "flow.pt", weights_only=True)
    write_audio_decoder(tmp_path, sizes, weights, TINY.vocoder, vocoder_weights(TINY.vocoder, 0))
    assert load_vocoder(tmp_path)[0] == TINY.vocoder
    config, tensors = load_flow(tmp_path)
    assert config == sizes
    model = Flow(config).eval()
    model.load_state_dict(tensors)
    export_flow(model, tmp_path)
    served, reference = OnnxFlow(tmp_path), TorchFlow(config, tensors)
    tokens, owner = np.arange(12)[None], np.arange(82) * 64 // 441
    x = np.random.default_rng(0).standard_normal((1, 80, 82)).astype(np.float32)
    mu = reference.condition(tokens, owner)
    np.testing.assert_allclose(served.condition(tokens, owner), mu, atol=1e-3)
    np.testing.assert_allclose(served.velocity(x, mu, x, 0.3), reference.velocity(x, mu, x, 0.3), atol=2e-3)
