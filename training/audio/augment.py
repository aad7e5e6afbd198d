"""What happens to speech on its way to a microphone: level, colour, noise and a late start."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How much the input varies, beyond what the data do; every range is uniform.

    Attributes:
        level_db: gain.
        tilt_db: spectral tilt at 4 kHz against 250 Hz, to either side.
        noise_share: share of clips with noise.
        snr_db: speech to noise.
    """

    level_db: tuple[float, float] = (-12.0, 6.0)
    tilt_db: float = 6.0
    noise_share: float = 0.3
    snr_db: tuple[float, float] = (10.0, 40.0)


def augment(wave: Tensor, samples: Tensor, settings: Augmentation, rng: np.random.Generator) -> Tensor:
    """A new version of a padded batch of 16 kHz speech: [B, n] -> [B, n], padding left at zero."""
    rows, length = wave.shape
    draw = torch.Generator(wave.device).manual_seed(int(rng.integers(2**62)))

    def uniform(low: float, high: float) -> Tensor:
        values = rng.uniform(low, high, (rows, 1)).astype(np.float32)
        return torch.from_numpy(values).to(wave.device)

    octaves = (torch.arange(length // 2 + 1, device=wave.device) * (16_000 / length)).clamp(100, 8000).log2()
    speech_tilt = uniform(-settings.tilt_db, settings.tilt_db) / 4  # dB an octave: 250 Hz to 4 kHz are four
    noise_tilt = uniform(-6.0, 0.0)  # white to brown
    noise = torch.randn(wave.shape, generator=draw, device=wave.device)
    both = torch.fft.rfft(torch.cat((wave, noise)))
    slope = torch.cat((speech_tilt, noise_tilt)) * (octaves - math.log2(1000.0)) / 20
    speech, noise = torch.fft.irfft(both * 10**slope, n=length).chunk(2)

    inside = torch.arange(length, device=wave.device) < samples[:, None]
    loudness = (speech.square() * inside).sum(1, keepdim=True) / samples[:, None]
    wanted = loudness * 10 ** (-uniform(*settings.snr_db) / 10)
    noisy = (uniform(0.0, 1.0) < settings.noise_share).float()
    speech = speech + noisy * noise * (wanted / noise.square().mean(1, keepdim=True)).sqrt()
    return (speech * 10 ** (uniform(*settings.level_db) / 20) * inside).clamp(-1.0, 1.0)
