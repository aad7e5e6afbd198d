"""Log-mel features in torch: the decoder's at 22.05 kHz and the tokenizer's at 16 kHz (docs/audio.md 1, 4)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vita_audio.contract.rates import MEL_HOP_SAMPLES, OUTPUT_SAMPLE_RATE_HZ
from vita_audio.speech_features import HOP, N_FFT, mel_filters

MEL_FLOOR = 1e-5  # below it a band counts as silent


def slaney_filters(rate_hz: int, n_fft: int, bands: int, max_hz: float) -> NDArray[np.float64]:
    """Triangular filters of equal area on the Slaney mel scale from 0 Hz: [n_fft / 2 + 1, bands]."""
    # Linear below 1 kHz (66.67 Hz a mel), logarithmic above (27 mels for a factor of 6.4).
    top = max_hz * 3 / 200 if max_hz < 1000 else 15 + 27 * math.log(max_hz / 1000) / math.log(6.4)
    mels = np.linspace(0.0, top, bands + 2)
    edges_hz = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * math.log(6.4) / 27))
    bins_hz = np.linspace(0.0, rate_hz / 2, n_fft // 2 + 1)[:, None]
    rising = (bins_hz - edges_hz[:-2]) / np.diff(edges_hz)[:-1]
    falling = (edges_hz[2:] - bins_hz) / np.diff(edges_hz)[1:]
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges_hz[2:] - edges_hz[:-2]))


class MelSpectrogram(nn.Module):
    """Mel of flow and vocoder: natural log of magnitudes, no normalisation (docs/audio.md 4).

    The defaults are the released ones; others serve as training losses only.
    """

    def __init__(
        self,
        bands: int = 80,
        rate_hz: int = OUTPUT_SAMPLE_RATE_HZ,
        n_fft: int = 1024,
        hop: int = MEL_HOP_SAMPLES,
        max_hz: float = 8000.0,
    ) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        filters = torch.from_numpy(slaney_filters(rate_hz, n_fft, bands, max_hz)).float()
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """[B, samples] in [-1, 1], at least n_fft -> [B, bands, samples // hop]."""
        edge = (self.n_fft - self.hop) // 2
        padded = F.pad(wave[:, None], (edge, edge), mode="reflect")[:, 0]
        spectrum = torch.stft(
            padded, self.n_fft, self.hop, window=self.get_buffer("window"), center=False, return_complex=True
        )
        power = torch.view_as_real(spectrum).square().sum(-1)  # [B, bins, frames]
        mel = (power + 1e-9).sqrt().transpose(1, 2) @ self.get_buffer("filters")
        return mel.clamp(min=MEL_FLOOR).log().transpose(1, 2)


class SpeechFeatures(nn.Module):
    """The tokenizer's features (`vita_audio.speech_features.log_mel`) of a padded batch.

    Equal to the served ones but for the last frame, whose window is mirrored at another place.
    """

    def __init__(self, num_mel_bins: int) -> None:
        super().__init__()
        self.register_buffer("filters", torch.from_numpy(mel_filters(num_mel_bins)).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)

    def forward(self, wave: Tensor, samples: Tensor) -> Tensor:
        """wave [B, n], n a multiple of 1280, zeros after samples [B] -> [B, mels, n / 160]."""
        spectrum = torch.stft(
            wave, N_FFT, HOP, window=self.get_buffer("window"), pad_mode="reflect", return_complex=True
        )
        power = torch.view_as_real(spectrum).square().sum(-1)[:, :, :-1]  # the last frame is dropped
        bands = (power.transpose(1, 2) @ self.get_buffer("filters")).clamp(min=1e-10).log10()  # [B, frames, mels]
        loudest = bands.amax((1, 2), keepdim=True)  # zeros of the padding are never the loudest
        return ((torch.maximum(bands, loudest - 8.0) + 4.0) / 4.0).transpose(1, 2)
