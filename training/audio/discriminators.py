"""Discriminators of the vocoder: the wave folded by several periods, and its spectra at several resolutions.

Multi-period discriminators (HiFi-GAN, Kong et al. 2020) and multi-resolution ones (UnivNet, Jang et al. 2021), small.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from training.audio.spectral import magnitudes

_PERIODS = (2, 3, 5, 7, 11)
_RESOLUTIONS = (512, 1024, 2048)
_SLOPE = 0.1

#: What a discriminator says of each place, and its inner layers.
Verdict = tuple[Tensor, list[Tensor]]


class _Layers(nn.Module):
    """Convolutions over a picture [B, 1, H, W]; all layers are returned."""

    def __init__(self, convs: list[nn.Conv2d]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(weight_norm(conv) for conv in convs)

    def forward(self, x: Tensor) -> Verdict:
        layers = []
        for conv in self.convs[:-1]:
            x = F.leaky_relu(conv(x), _SLOPE)
            layers.append(x)
        return self.convs[-1](x), layers


class PeriodDiscriminator(nn.Module):
    """Looks at every `period`-th sample."""

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, width, 4 * width, 8 * width]
        convs = [nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0)) for a, b in pairwise(widths)]
        convs += [nn.Conv2d(8 * width, 8 * width, (5, 1), 1, (2, 0)), nn.Conv2d(8 * width, 1, (3, 1), 1, (1, 0))]
        self.layers = _Layers(convs)

    def forward(self, wave: Tensor) -> Verdict:
        """wave [B, samples]."""
        wave = F.pad(wave[:, None], (0, -wave.shape[1] % self.period), mode="reflect")
        return self.layers(wave.unflatten(2, (-1, self.period)))


class ResolutionDiscriminator(nn.Module):
    """Looks at log magnitudes of one resolution."""

    def __init__(self, n_fft: int, width: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        convs = [nn.Conv2d(1, width, (9, 3), (2, 1), (4, 1))]
        convs += [nn.Conv2d(width, width, (9, 3), (2, 2), (4, 1)) for _ in range(2)]
        convs += [nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, 1, 3, 1, 1)]
        self.layers = _Layers(convs)

    def forward(self, wave: Tensor) -> Verdict:
        """wave [B, samples]."""
        return self.layers(magnitudes(wave, self.n_fft).clamp(min=1e-5).log()[:, None])


class Discriminators(nn.Module):
    """All of them; `width` is the number of channels of their first layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            [PeriodDiscriminator(period, width) for period in _PERIODS]
            + [ResolutionDiscriminator(n_fft, width) for n_fft in _RESOLUTIONS]
        )

    def forward(self, wave: Tensor) -> list[Verdict]:
        return [member(wave) for member in self.members]


def discriminator_loss(true: list[Verdict], made: list[Verdict]) -> Tensor:
    """Least squares: speech is 1, what the vocoder made is 0."""
    parts = [
        (a.float() - 1).square().mean() + b.float().square().mean() for (a, _), (b, _) in zip(true, made, strict=True)
    ]
    return torch.stack(parts).mean()


def adversarial_loss(made: list[Verdict]) -> Tensor:
    """How far the vocoder is from being taken for speech."""
    return torch.stack([(verdict.float() - 1).square().mean() for verdict, _ in made]).mean()


def feature_loss(true: list[Verdict], made: list[Verdict]) -> Tensor:
    """Mean distance of the discriminators' inner layers."""
    parts = [
        (a.detach() - b).abs().float().mean()
        for (_, ours), (_, theirs) in zip(true, made, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack(parts).mean()
