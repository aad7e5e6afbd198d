"""The teacher: flite's voice of a text at 16 kHz, and what makes an input clip differ from the next one.

flite (Debian package `flite`, Carnegie Mellon University) and its voices slt, rms, awb and kal16 are free software
under a permissive, BSD-like licence; what they say may be used without limits.
"""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from training.data.settings import DataConfig
from training.errors import TrainingError
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ

Wave = NDArray[np.float32]

#: Clips made by another version of this file are not taken for clips of this one.
_VERSION = 1
_FRAME = INPUT_SAMPLE_RATE_HZ // 100
_SPEECH_THRESHOLD = 0.01  # of the loudest frame's rms: -40 dB
_SILENCE = 0.01  # rms of the loudest frame; flite's pauses have a little noise, its voices more than ten times this
_OUTPUT_LEAD_S, _OUTPUT_TAIL_S = 0.06, 0.12
_INPUT_EDGE_S = (0.02, 0.3)
_INPUT_RMS = 0.12  # before the drawn gain
_ROOM_S, _ROOM_DB = (0.4, 2.0), (-60.0, -35.0)  # of a quiet room, where no one speaks: length, rms of full scale
_PEAK = 0.98
_TIMEOUT_S = 30
# flite says "the" A and takes "book I" for a royal name.
_LETTER_A, _WORD_I = re.compile(r"(?<=\w )A\b|\bA(?=[,.])"), re.compile(r"\bI\b")


@dataclass(frozen=True, slots=True)
class Clip:
    """One sound to make. take 0: the clean voice; others: speed, level, edges and noise drawn from the take.

    Without a text it is the noise of a quiet room.
    """

    voice: str
    text: str
    take: int

    def id(self, config: DataConfig) -> str:
        """Names the sound: equal ids are equal sounds."""
        variation = () if self.take == 0 else (config.clean_share, config.stretch, config.gain_db, config.snr_db)
        content = repr((_VERSION, self.voice, self.text, self.take, variation))
        return f"{self.voice}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def path(self, config: DataConfig) -> str:
        """Relative to the data folder."""
        name = self.id(config)
        return f"audio/{self.voice}/{name[-2:]}/{name}.flac"


def find_flite() -> str:
    """Path of the flite program. Raises TrainingError with the remedy."""
    program = shutil.which("flite")
    if program is None:
        raise TrainingError("flite was not found: install it (Debian and Ubuntu: apt-get install flite)")
    return program


def say(text: str, voice: str, stretch: float = 1.0) -> Wave:
    """flite's voice: float32 [samples] at 16 kHz, in [-1, 1], without the pauses at its ends.

    Raises:
        TrainingError: flite is missing, failed, or made no sound.
    """
    spoken = _WORD_I.sub("eye", _LETTER_A.sub("ay", text))
    with tempfile.TemporaryDirectory(prefix="flite-") as folder:
        path = Path(folder) / "speech.wav"
        command = [
            find_flite(),
            "-voice",
            voice,
            "--setf",
            f"duration_stretch={stretch:.3f}",
            "-t",
            spoken,
            "-o",
            str(path),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
            wave, rate_hz = soundfile.read(path, dtype="float32")
        except (subprocess.SubprocessError, OSError, soundfile.LibsndfileError) as error:
            raise TrainingError(f"flite could not say {text!r} in voice {voice}: {error}") from error
    if rate_hz != INPUT_SAMPLE_RATE_HZ:
        raise TrainingError(f"voice {voice} speaks at {rate_hz} Hz, not {INPUT_SAMPLE_RATE_HZ} Hz")
    return _trim(wave, text, voice)


def make(clip: Clip, config: DataConfig) -> Wave:
    """The sound of a clip, float32 [samples] at 16 kHz; the same for the same clip and config."""
    if clip.take == 0:
        wave = say(clip.text, clip.voice)
        return _with_edges(wave, _OUTPUT_LEAD_S, _OUTPUT_TAIL_S)
    seed = int.from_bytes(hashlib.sha256(clip.id(config).encode()).digest()[:8], "big")
    draw = random.Random(seed)
    if not clip.text:
        noise = _noise(round(draw.uniform(*_ROOM_S) * INPUT_SAMPLE_RATE_HZ), 1.0, np.random.default_rng(seed))
        return noise * np.float32(10 ** (draw.uniform(*_ROOM_DB) / 20))
    wave = say(clip.text, clip.voice, draw.uniform(*config.stretch))
    wave = _with_edges(wave, draw.uniform(*_INPUT_EDGE_S), draw.uniform(*_INPUT_EDGE_S))
    gain = 10 ** (draw.uniform(*config.gain_db) / 20)
    wave = wave * np.float32(gain * _INPUT_RMS / np.sqrt(np.mean(wave**2)))
    if draw.random() >= config.clean_share:
        snr_db, tilt = draw.uniform(*config.snr_db), draw.uniform(0.0, 2.0)
        noise = _noise(len(wave), tilt, np.random.default_rng(seed))
        wave = wave + noise * np.float32(np.sqrt(np.mean(wave**2)) * 10 ** (-snr_db / 20))
    return wave * np.float32(min(1.0, _PEAK / np.abs(wave).max()))


def write_clip(clip: Clip, config: DataConfig, folder: Path) -> float:
    """Make a clip's file unless it is there; its length in seconds."""
    path = folder / clip.path(config)
    if path.is_file():
        return soundfile.info(path).frames / INPUT_SAMPLE_RATE_HZ
    wave = make(clip, config)
    temporary = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(temporary, wave, INPUT_SAMPLE_RATE_HZ, subtype="PCM_16", format="FLAC")
        temporary.replace(path)
    except (OSError, soundfile.LibsndfileError) as error:
        temporary.unlink(missing_ok=True)
        raise TrainingError(f"{path} could not be written: {error}") from error
    return len(wave) / INPUT_SAMPLE_RATE_HZ


def _trim(wave: Wave, text: str, voice: str) -> Wave:
    frames = len(wave) // _FRAME
    rms = np.sqrt(np.mean(wave[: frames * _FRAME].reshape(frames, _FRAME) ** 2, axis=1))  # [frames]
    loud = np.flatnonzero(rms > _SPEECH_THRESHOLD * rms.max(initial=0.0))
    if rms.max(initial=0.0) < _SILENCE:
        raise TrainingError(f"flite said nothing for {text!r} in voice {voice}")
    return wave[loud[0] * _FRAME : (loud[-1] + 1) * _FRAME]


def _with_edges(wave: Wave, lead_s: float, tail_s: float) -> Wave:
    """Silence before and after."""
    return np.pad(wave, (round(lead_s * INPUT_SAMPLE_RATE_HZ), round(tail_s * INPUT_SAMPLE_RATE_HZ)))


def _noise(samples: int, tilt: float, draw: np.random.Generator) -> Wave:
    """Noise of rms 1 whose power falls with frequency^tilt: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(draw.standard_normal(samples))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1.0) ** (-tilt / 2)
    spectrum[0] = 0.0
    noise = np.fft.irfft(spectrum, samples)
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)
