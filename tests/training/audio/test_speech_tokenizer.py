"""The speech tokenizer's training: codebook, heads, loss, resume, export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from build_engines.onnxruntime.speech_tokenizer import export_speech_tokenizer
from training.audio import speech_tokenizer as module
from training.audio.clips import pack_clips
from training.audio.quantizer import CodebookAverages, QuantizerSettings, k_means, nearest, perplexity
from training.audio.speech_tokenizer import SpeechTokenizerTraining, train_speech_tokenizer
from training.audio.tokenizer_batches import SpeechBatches
from training.audio.tokenizer_heads import LETTERS, ctc_loss, letter_ids, read_letters
from training.data.answers import edit_distance
from training.errors import TrainingError
from training.logs import Table
from training_audio_clips import Killed, kill_at, quick_run, write_clips
from vita_audio.checkpoint.sizes import TINY
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.engines.onnxruntime.speech_tokenizer import OnnxSpeechTokenizer
from vita_audio.engines.torch.audio import TorchSpeechTokenizer
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.speech_features import speech_tokens

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("data"))


def _config(steps: int = 48, save_every: int | None = None) -> SpeechTokenizerTraining:
    return SpeechTokenizerTraining(
        model=TINY.speech_tokenizer, run=quick_run(steps, save_every), batch=6, start_states=400, head_width=48
    )


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech_tokenizer")
    assert train_speech_tokenizer(_config(), data, folder) == folder / "speech_tokenizer"
    return folder


def test_the_loss_falls_before_and_after_the_codebook_starts(trained: Path) -> None:
    log = Table(trained / "log.csv")
    sound, text = ([value for _, value in log.column(name)] for name in ("loss_mel", "loss_ctc"))
    assert sum(sound[-4:]) < 0.7 * sum(sound[:4])
    assert sum(text[-4:]) < 0.4 * sum(text[:4])
    assert min(step for step, _ in log.column("loss_commitment")) == 16  # codes from step 14 of 48
    held_out = dict(Table(trained / "held_out.csv").rows[-1])
    assert float(held_out["codes_used"]) > 5
    assert 0 <= float(held_out["letter_error_rate"]) <= 3


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(save_every=5)
    with monkeypatch.context() as patch:
        patch.setattr(module, "Run", kill_at(12))
        with pytest.raises(Killed):
            train_speech_tokenizer(config, data, tmp_path)
    train_speech_tokenizer(config, data, tmp_path)
    ours, whole = (load_file(folder / "speech_tokenizer" / "model.safetensors") for folder in (tmp_path, trained))
    assert ours.keys() == whole.keys()
    for key in ours:
        assert torch.equal(ours[key], whole[key]), key


def test_the_export_loads_and_serves(data: Path, trained: Path, tmp_path: Path) -> None:
    config, tensors = load_speech_tokenizer(trained / "speech_tokenizer")
    assert config == TINY.speech_tokenizer
    model = SpeechTokenizer(config)
    model.load_state_dict(tensors)
    export_speech_tokenizer(model, tmp_path)
    served, reference = OnnxSpeechTokenizer(tmp_path), TorchSpeechTokenizer(config, tensors)
    clips = pack_clips(data, 16_000, "slt")
    for index in range(0, len(clips), 5):
        samples = clips.samples(index) / np.float32(32768)
        expected = speech_tokens(reference, samples)
        assert len(expected) == -(-len(samples) // 1280)
        assert np.mean(speech_tokens(served, samples) == expected) > 0.9  # a tie may fall either way


def test_another_size_does_not_go_on_from_the_snapshot(data: Path, trained: Path) -> None:
    with pytest.raises(TrainingError, match=r"holds a training of other settings|cannot go on"):
        train_speech_tokenizer(replace(_config(), batch=5), data, trained)


def test_batches_depend_on_the_step_alone_and_hold_like_lengths(data: Path) -> None:
    clips = pack_clips(data, 16_000, "slt")
    ours, again = (SpeechBatches(clips, 4, 3, CPU) for _ in range(2))
    again[2]
    for step in (0, 7, 11):
        assert torch.equal(ours[step].wave, again[step].wave)
        assert ours[step].texts == again[step].texts
    batch = ours[0]
    assert batch.wave.shape[1] % 1280 == 0
    assert batch.valid_tokens.sum(1).tolist() == [-(-n // 1280) for n in batch.samples.tolist()]
    silent = ours.make([[0]], [700])
    assert not silent.wave[0, :700].any()
    assert int(silent.samples[0]) == 700 + clips[0].samples


def test_long_clips_are_never_joined_beyond_the_limit(tmp_path: Path) -> None:
    (tmp_path / "speech.jsonl").write_text(
        '{"id": "a", "audio": "a.wav", "text": "a", "voice": "slt", "split": "train"}\n'
    )
    soundfile.write(tmp_path / "a.wav", np.zeros(20 * 16_000), 16_000)
    batches = SpeechBatches(pack_clips(tmp_path, 16_000, "slt"), 2, 0, CPU)
    assert all(batches[step].wave.shape[1] <= 30 * 16_000 for step in range(8))


def test_k_means_finds_clusters_and_repeats_too_few_states() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 4, generator=draw) * 10
    states = centres.repeat(50, 1) + 0.1 * torch.randn(400, 4, generator=draw)
    found, _ = k_means(states, 16, draw)
    assert found.shape == (16, 4)
    assert (torch.cdist(centres, found).min(1).values < 0.2).all()
    assert k_means(states[:5], 16, draw)[0].isfinite().all()
    assert nearest(found, found).tolist() == list(range(16))
    assert perplexity(torch.arange(16), 16) == pytest.approx(16.0, rel=1e-4)


def test_codes_follow_their_states_and_dead_ones_move() -> None:
    draw = torch.Generator().manual_seed(0)
    averages = CodebookAverages(3, 2, QuantizerSettings(decay=0.5, restart_interval=4, dead_share=0.1))
    codebook = torch.tensor([[0.0, 0.0], [5.0, 5.0], [-90.0, 0.0]])
    averages.ema_weight.copy_(codebook)
    states = torch.tensor([[1.0, 1.0], [1.0, 1.0], [6.0, 6.0], [6.0, 6.0]])
    for number in range(8):
        averages.update(codebook, states, nearest(states, codebook), number < 4, draw)
    assert codebook[0].tolist() == pytest.approx([1.0, 1.0], abs=0.05)
    assert codebook[1].tolist() == pytest.approx([6.0, 6.0], abs=0.05)
    assert codebook[2].min() > 0  # it was dead and now stands among the states


def test_letters() -> None:
    assert [LETTERS[i - 1] for i in letter_ids("It's  5 O'Clock, now!")] == list("it's o'clock now")
    scores = torch.eye(len(LETTERS) + 1)[[0, 2, 2, 0, 2, 3, 3, 0]]
    assert read_letters(scores) == [2, 2, 3]
    exact = torch.eye(len(LETTERS) + 1)[torch.tensor([3, 0, 3, 4])][None] * 50
    text = "".join(LETTERS[i - 1] for i in (3, 3, 4))
    assert float(ctc_loss(exact, torch.tensor([4]), [text])) == pytest.approx(0.0, abs=1e-3)
    assert float(ctc_loss(exact, torch.tensor([2]), [text])) == 0.0  # too short for its text: ignored


@given(st.lists(st.integers(1, 3), max_size=6), st.lists(st.integers(1, 3), max_size=6))
def test_edit_distance(a: list[int], b: list[int]) -> None:
    def slow(x: list[int], y: list[int]) -> int:
        if not x or not y:
            return len(x) + len(y)
        return min(slow(x[1:], y) + 1, slow(x, y[1:]) + 1, slow(x[1:], y[1:]) + (x[0] != y[0]))

    assert edit_distance(a, b) == slow(a, b)
