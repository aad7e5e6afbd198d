"""The HiFT vocoder: mel -> f0 -> harmonic source -> waveform; STFT and iSTFT are convolutions (docs/audio.md 3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio.checkpoint.configs import VocoderConfig

FINAL_SLOPE = 0.01  # of the last leaky ReLU: the library default, unlike the others
MAX_MAGNITUDE = 100.0


class F0Predictor(nn.Module):
    """Five convolutions and a linear layer: mel [B, mels, T] -> fundamental frequency in Hz [B, T]."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        width = config.f0_channels
        layers: list[nn.Module] = []
        for index in range(5):
            layers += [nn.Conv1d(width if index else config.in_channels, width, 3, padding=1), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, 1)

    def forward(self, mel: Tensor) -> Tensor:
        return self.classifier(self.condnet(mel).transpose(1, 2))[:, :, 0].abs()


class Snake(nn.Module):
    """x + sin^2(alpha x) / alpha with one alpha per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None]
        return x + (alpha * x).sin().pow(2) / (alpha + 1e-9)


class ResBlock(nn.Module):
    """Residual pairs of a dilated and a plain convolution, each behind a snake: [B, C, T] -> [B, C, T]."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for conv1, conv2, snake1, snake2 in zip(
            self.convs1, self.convs2, self.activations1, self.activations2, strict=True
        ):
            x = x + conv2(snake2(conv1(snake1(x))))
        return x


class HarmonicMixer(nn.Module):
    """Learned sum of the harmonics (released key `m_source.l_linear`)."""

    def __init__(self, harmonics: int) -> None:
        super().__init__()
        self.l_linear = nn.Linear(harmonics, 1)

    def forward(self, waves: Tensor) -> Tensor:
        """[B, harmonics, samples] -> [B, samples]."""
        return self.l_linear(waves.transpose(1, 2))[:, :, 0].tanh()


class Stft(nn.Module):
    """Short-time Fourier transform and its inverse as convolutions: exact, exportable, no complex numbers."""

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop, bins = n_fft, hop, n_fft // 2 + 1
        angles = 2 * math.pi / n_fft * torch.outer(torch.arange(bins).double(), torch.arange(n_fft).double())
        window = torch.hann_window(n_fft, dtype=torch.float64)
        waves = torch.cat((angles.cos(), -angles.sin())) * window  # [2 bins, n_fft]
        inner = torch.full((2 * bins, 1), 2.0, dtype=torch.float64)  # an inner bin stands for its mirror image too
        inner[[0, bins - 1, bins, -1]] = 1.0
        # Not in the released state dict, so not in ours.
        self.register_buffer("analysis", waves[:, None].float(), persistent=False)
        self.register_buffer("synthesis", (inner / n_fft * waves)[:, None].float(), persistent=False)
        self.register_buffer("squared_window", window.square()[None, None].float(), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """[B, samples] -> real and imaginary parts [B, n_fft + 2, samples / hop + 1]."""
        padded = F.pad(wave[:, None], (self.n_fft // 2, self.n_fft // 2), mode="reflect")
        return F.conv1d(padded, self.get_buffer("analysis"), stride=self.hop)

    def inverse(self, spectrum: Tensor) -> Tensor:
        """Real and imaginary parts [B, n_fft + 2, frames] -> [B, hop * (frames - 1)]."""
        wave = F.conv_transpose1d(spectrum, self.get_buffer("synthesis"), stride=self.hop)
        ones = torch.ones_like(spectrum[:1, :1])
        envelope = F.conv_transpose1d(ones, self.get_buffer("squared_window"), stride=self.hop)
        edge = self.n_fft // 2
        return wave[:, 0, edge:-edge] / envelope[:, 0, edge:-edge]


class Vocoder(nn.Module):
    """HiFT generator, weight norm folded. Keys are those of the released `hift.pt` with `weight` for `weight_g/_v`."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        base, spectrum = config.base_channels, config.istft_n_fft + 2
        widths = [base >> (level + 1) for level in range(len(config.upsample_rates))]
        self.conv_pre = nn.Conv1d(config.in_channels, base, 7, padding=3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(2 * width, width, kernel, stride=rate, padding=(kernel - rate) // 2)
            for width, rate, kernel in zip(widths, config.upsample_rates, config.upsample_kernel_sizes, strict=True)
        )
        self.source_downs = nn.ModuleList()
        for level, width in enumerate(widths):
            stride = math.prod(config.upsample_rates[level + 1 :])  # from the source's frame rate to this level's
            down = nn.Conv1d(spectrum, width, 2 * stride, stride=stride, padding=stride // 2)
            self.source_downs.append(down if stride > 1 else nn.Conv1d(spectrum, width, 1))
        self.source_resblocks = nn.ModuleList(
            ResBlock(width, kernel, dilations)
            for width, kernel, dilations in zip(
                widths, config.source_resblock_kernel_sizes, config.source_resblock_dilation_sizes, strict=True
            )
        )
        shapes = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))
        self.resblocks = nn.ModuleList(
            ResBlock(width, kernel, dilations) for width in widths for kernel, dilations in shapes
        )
        self.conv_post = nn.Conv1d(widths[-1], spectrum, 7, padding=3)
        self.f0_predictor = F0Predictor(config)
        self.m_source = HarmonicMixer(config.nb_harmonics + 1)
        self.stft = Stft(config.istft_n_fft, config.istft_hop)

    def f0(self, mel: Tensor) -> Tensor:
        """[B, mels, T] -> f0 in Hz [B, T]."""
        return self.f0_predictor(mel)

    def source(self, f0: Tensor, phases: Tensor, noise: Tensor) -> Tensor:
        """Harmonic source of a whole clip.

        Args:
            f0: [B, T] in Hz.
            phases: [harmonics] offsets in radians; the fundamental's is 0.
            noise: [B, harmonics, samples], N(0, 1).

        Returns:
            [B, samples], samples = 256 T.
        """
        config = self.config
        f0 = f0.repeat_interleave(config.samples_per_frame, dim=1)[:, None]  # [B, 1, samples]
        harmonic = torch.arange(1, config.nb_harmonics + 2, device=f0.device)[:, None]
        cycles = (f0.double() * harmonic / config.sampling_rate).cumsum(2)  # float64: the sum runs over the clip
        sines = config.nsf_alpha * torch.sin(2 * math.pi * cycles.frac().to(noise.dtype) + phases[:, None])
        voiced = (f0 > config.nsf_voiced_threshold).to(noise.dtype)
        level = voiced * config.nsf_sigma + (1 - voiced) * config.nsf_alpha / 3
        return self.m_source(sines * voiced + level * noise)

    def forward(self, mel: Tensor, source: Tensor) -> Tensor:
        """mel [B, mels, T], source [B, 256 T] -> waveform [B, 256 T], clamped to the audio limit."""
        config, kernels = self.config, len(self.config.resblock_kernel_sizes)
        source_spectrum = self.stft(source)
        x = self.conv_pre(mel)
        for level, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, config.lrelu_slope))
            if level == len(self.ups) - 1:
                x = torch.cat((x[:, :, 1:2], x), dim=2)  # one frame more, as the source's spectrum has (reflection)
            x = x + self.source_resblocks[level](self.source_downs[level](source_spectrum))
            blocks = self.resblocks[level * kernels : (level + 1) * kernels]
            x = sum(block(x) for block in blocks) / kernels
        x = self.conv_post(F.leaky_relu(x, FINAL_SLOPE))
        magnitude, angle = x.chunk(2, dim=1)
        magnitude, phase = magnitude.exp().clamp(max=MAX_MAGNITUDE), angle.sin()
        spectrum = torch.cat((magnitude * phase.cos(), magnitude * phase.sin()), dim=1)
        return self.stft.inverse(spectrum).clamp(-config.audio_limit, config.audio_limit)
