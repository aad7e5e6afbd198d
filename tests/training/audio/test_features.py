"""What the audio networks are trained on: mels, clips, augmentation and f0."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from training.audio.augment import Augmentation, augment
from training.audio.clips import batch_of, pack_clips
from training.audio.decoder_clips import DecoderClips
from training.audio.mel import MelSpectrogram, SpeechFeatures
from training.audio.pitch import fundamental_hz
from training.errors import TrainingError
from training_audio_clips import VOICES, say, write_clips
from vita_audio.speech_features import log_mel


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("data"))


def _slow_mel(wave: np.ndarray) -> np.ndarray:
    """The mel of docs/audio.md 4 by its definition: a sum per bin, a triangle per band."""
    n_fft, hop, bands = 1024, 256, 80
    padded = np.concatenate([wave[384:0:-1], wave, wave[-2:-386:-1]])
    window = np.array([0.5 * (1 - np.cos(2 * np.pi * n / n_fft)) for n in range(n_fft)])
    bins = np.arange(n_fft // 2 + 1)
    transform = np.exp(-2j * np.pi * np.outer(np.arange(n_fft), bins) / n_fft)

    def hz_of(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    top = 15 + 27 * np.log(8) / np.log(6.4)
    edges = [hz_of(top * k / (bands + 1)) for k in range(bands + 2)]
    rows = []
    for frame in range(len(wave) // hop):
        spectrum = (padded[frame * hop : frame * hop + n_fft] * window) @ transform
        magnitude = np.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)
        row = []
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for k, size in enumerate(magnitude):
                hz = k * 22050 / n_fft
                slope = (hz - low) / (centre - low) if hz <= centre else (high - hz) / (high - centre)
                total += max(0.0, slope) * 2 / (high - low) * size
            row.append(np.log(max(total, 1e-5)))
        rows.append(row)
    return np.array(rows).T


def test_the_decoder_mel_is_the_released_one() -> None:
    wave = np.random.default_rng(0).standard_normal(256 * 6).astype(np.float32) * np.linspace(0.001, 0.5, 256 * 6)
    ours = MelSpectrogram()(torch.from_numpy(wave.astype(np.float32))[None])[0].numpy()
    assert ours.shape == (80, 6)
    np.testing.assert_allclose(ours, _slow_mel(wave), atol=2e-4)


def test_silence_has_the_lowest_mel() -> None:
    assert MelSpectrogram()(torch.zeros(1, 2048)).numpy() == pytest.approx(np.log(1e-5))


@pytest.mark.parametrize("mels", [80, 128])
def test_training_features_are_the_served_ones(mels: int) -> None:
    waves = [(32767 * say("abba cad", 200.0)).astype(np.int16), (32767 * say("dab", 110.0)).astype(np.int16)[:4001]]
    wave, samples = batch_of(waves, 1280)
    ours = SpeechFeatures(mels)(torch.from_numpy(wave), torch.from_numpy(samples)).numpy()
    for row, samples_i16 in zip(ours, waves, strict=True):
        frames = -(-len(samples_i16) // 1280) * 8
        served = log_mel(samples_i16 / np.float32(32768), frames, frames * 160, mels)
        # The very last frame is mirrored at the end of the batch, not of the clip.
        np.testing.assert_allclose(row[:, : frames - 1], served[:, :-1], atol=2e-4)


def test_clips_are_packed_once_and_cut_by_frames(data: Path) -> None:
    clips = DecoderClips(data, "slt", torch.device("cpu"))
    assert {clip.id.split("_")[0] for clip in clips.clips.clips} == {"slt"}
    assert {clips.clips[index].split for index in clips.test} == {"test"}
    packed = data / "packed" / clips.clips.fingerprint / "samples.i16"
    stamp = packed.stat().st_mtime_ns
    DecoderClips(data, "slt", torch.device("cpu"))
    assert packed.stat().st_mtime_ns == stamp

    index = clips.train[0]
    frames = clips.frames(index)
    assert frames == -(-clips.clips[index].samples // 256)
    wave = clips.waves([index, index], [-2, 3], frames, edge=1)
    assert wave.shape == (2, 256 * (frames + 2))
    assert not wave[0, : 3 * 256].any()  # before the clip
    np.testing.assert_allclose(wave[1, :256] * 32768, clips.clips.samples(index)[512:768], atol=0.01)
    # A cut has the mel of the whole.
    whole, part = clips.mels([index], [0], frames), clips.mels([index], [4], 6)
    np.testing.assert_allclose(part, whole[:, :, 4:10], atol=1e-4)


def test_every_faulty_clip_is_named(data: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (data / "speech.jsonl").read_text().splitlines()][:5]
    for line in lines:
        line["audio"] = str(data / line["audio"])
    lines[0]["audio"] = "nowhere.wav"
    for number, (samples, rate_hz) in enumerate(
        [(np.zeros(0), 16_000), (np.zeros(800), 8_000), (np.zeros(481_000), 16_000)]
    ):
        soundfile.write(tmp_path / f"{number}.wav", samples, rate_hz)
        lines[number + 1]["audio"] = f"{number}.wav"
    (tmp_path / "speech.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(TrainingError, match="4 faulty clips") as error:
        pack_clips(tmp_path, 16_000, "slt")
    for line in lines[:4]:
        assert line["id"] in str(error.value)
    assert not list(tmp_path.glob("packed/*/clips.json"))


def test_only_what_the_assistant_says_is_output(data: Path, tmp_path: Path) -> None:
    """The output voice also plays users, with noise; flow and vocoder must not learn from those clips."""
    lines = [json.loads(line) for line in (data / "speech.jsonl").read_text().splitlines()]
    for line in lines:
        line["audio"] = str(data / line["audio"])
    (tmp_path / "speech.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second, *_ = (line for line in lines if line["voice"] == "slt")
    rms = next(line for line in lines if line["voice"] == "rms")
    roles = ("system", ""), ("user", "<|audio|>"), ("assistant", "ad<|audio|>"), ("assistant", "<|audio|>")
    messages = [{"role": role, "content": content} for role, content in roles]
    sample = {"messages": messages, "audios": [line["audio"] for line in (first, second, rms)]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(sample) + "\n")
    outputs = pack_clips(tmp_path, 22_050, "slt", outputs_only=True)
    assert [clip.id for clip in outputs.clips] == [second["id"]]
    every = pack_clips(tmp_path, 16_000, "slt")
    assert len(every) == len(lines)
    assert [clip.id for clip in every.clips if clip.output] == [second["id"]]
    sample["audios"].pop()
    (tmp_path / "chat.jsonl").write_text(json.dumps(sample) + "\n")
    with pytest.raises(TrainingError, match="line 1"):
        pack_clips(tmp_path, 16_000, "slt")


def test_a_missing_or_broken_manifest_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"speech\.jsonl does not exist: make it"):
        pack_clips(tmp_path, 16_000, "slt")
    for line, words in (('{"id": "a"}', r"line 1: .*missing"), ("no json", "line 1: not JSON")):
        (tmp_path / "speech.jsonl").write_text(f"{line}\n")
        with pytest.raises(TrainingError, match=words):
            pack_clips(tmp_path, 16_000, "slt")


def test_an_unknown_voice_is_a_clear_error(data: Path) -> None:
    with pytest.raises(TrainingError, match="no clip of the output voice"):
        DecoderClips(data, "nobody", torch.device("cpu"))


def test_augmentation_is_drawn_from_its_generator_and_keeps_the_padding() -> None:
    wave, samples = batch_of([(32767 * say(text, 200.0)).astype(np.int16) for text in ("abc", "dada")], 1280)
    wave, samples = torch.from_numpy(wave), torch.from_numpy(samples)
    noisy = Augmentation(noise_share=1.0, snr_db=(10.0, 10.0), tilt_db=0.0, level_db=(0.0, 0.0))
    ours = augment(wave, samples, noisy, np.random.default_rng(3))
    assert torch.equal(ours, augment(wave, samples, noisy, np.random.default_rng(3)))
    assert not torch.equal(ours, augment(wave, samples, noisy, np.random.default_rng(4)))
    assert not ours[0, int(samples[0]) :].any()
    power = wave[0, : int(samples[0])].square().mean()
    noise = (ours - wave)[0, : int(samples[0])].square().mean()
    assert 10 * torch.log10(power / noise) == pytest.approx(10.0, abs=1.0)
    quiet = Augmentation(noise_share=0.0, tilt_db=0.0, level_db=(-20.0, -20.0))
    np.testing.assert_allclose(augment(wave, samples, quiet, np.random.default_rng(0)), wave / 10, atol=1e-5)


@pytest.mark.parametrize("hz", [70.0, 123.4, 200.0, 310.0])
def test_f0_of_a_harmonic_voice(hz: float) -> None:
    time_s = np.arange(22050) / 22050
    voice = sum(np.sin(2 * np.pi * hz * h * time_s) / h for h in range(1, 9)).astype(np.float32) / 10
    f0 = fundamental_hz(voice)
    assert len(f0) == -(-22050 // 256)
    np.testing.assert_allclose(f0[6:-6], hz, rtol=0.005)


def test_noise_and_silence_have_no_f0() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(22050).astype(np.float32)
    assert (fundamental_hz(noise) > 0).mean() < 0.02
    assert not fundamental_hz(np.zeros(5000, np.float32)).any()


def test_f0_follows_the_voices_of_the_clips(data: Path) -> None:
    for voice, hz in VOICES.items():
        clips = DecoderClips(data, voice, torch.device("cpu"))
        index = next(i for i in clips.train if clips.clips[i].id == f"{voice}_4_0")  # "bad dad"
        f0 = fundamental_hz(clips.clips.samples(index) / np.float32(32768))
        voiced = f0[f0 > 0]
        assert len(voiced) > 0.6 * len(f0)
        assert np.median(voiced) == pytest.approx(hz, rel=0.01)
