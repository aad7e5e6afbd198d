"""Spectral losses of the vocoder: short-time spectra and mel bands at several resolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.audio.mel import MelSpectrogram
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ

_RESOLUTIONS = (512, 1024, 2048)  # samples of a window; it moves by a quarter
_SILENCE = 1e-5


def magnitudes(wave: Tensor, n_fft: int) -> Tensor:
    """Magnitudes of the short-time spectrum, hop n_fft / 4: [B, samples] -> [B, n_fft / 2 + 1, frames]."""
    window = torch.hann_window(n_fft, device=wave.device)
    spectrum = torch.stft(wave, n_fft, n_fft // 4, window=window, return_complex=True)
    return (torch.view_as_real(spectrum).square().sum(-1) + 1e-9).sqrt()


class SpectralLoss(nn.Module):
    """How far a wave is from speech, to the ear: independent of phase."""

    def __init__(self) -> None:
        super().__init__()
        top = OUTPUT_SAMPLE_RATE_HZ / 2
        self.mels = nn.ModuleList(
            [MelSpectrogram(), *(MelSpectrogram(n // 16, n_fft=n, hop=n // 4, max_hz=top) for n in _RESOLUTIONS)]
        )

    def forward(self, made: Tensor, true: Tensor) -> dict[str, Tensor]:
        """Waves [B, samples] -> `mel`, mean distance of log bands, and `stft`, of log and relative magnitudes."""
        mel = torch.stack([(bands(made) - bands(true)).abs().mean() for bands in self.mels]).mean()
        stft = []
        for n_fft in _RESOLUTIONS:
            ours, wanted = magnitudes(made, n_fft), magnitudes(true, n_fft)
            relative = (ours - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1).clamp(min=1e-3)
            floor = _SILENCE * n_fft
            stft.append(relative.mean() + F.l1_loss(ours.clamp(min=floor).log(), wanted.clamp(min=floor).log()))
        return {"mel": mel, "stft": torch.stack(stft).mean()}
