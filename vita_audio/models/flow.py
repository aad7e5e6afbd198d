"""The flow-matching model: audio tokens to mel, with guided Euler sampling (docs/audio.md 2)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vita_audio.checkpoint.configs import FlowConfig
from vita_audio.models.flow_estimator import Estimator
from vita_audio.models.token_encoder import LengthRegulator, TokenEncoder


def offline_frame_map(tokens: int, frames: int) -> Tensor:
    """Token of each mel frame in one-shot decoding, floor(f * tokens / frames): int64 [frames] (docs/audio.md 2.2)."""
    return torch.arange(frames) * tokens // frames


def time_grid(steps: int) -> list[float]:
    """Cosine schedule of the flow times: steps + 1 values from 0 to 1."""
    return [1.0 - math.cos(math.pi / 2 * index / steps) for index in range(steps + 1)]


class Decoder(nn.Module):
    """Holds the estimator under its released key `decoder.estimator`."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.estimator = Estimator(config)


class Flow(nn.Module):
    """Token encoder + length regulator + estimator. State-dict keys are those of the released `flow.pt`."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocab_size, config.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.spk_embed_dim, config.output_size)
        self.encoder = TokenEncoder(config)
        self.encoder_proj = nn.Linear(config.encoder_output_size, config.output_size)
        self.length_regulator = LengthRegulator(config)
        self.decoder = Decoder(config)

    def encode(self, tokens: Tensor) -> Tensor:
        """Token encoder states: int64 [B, N] -> [B, N, encoder_output_size]."""
        return self.encoder(self.input_embedding(tokens.clamp(min=0)))

    def condition(self, tokens: Tensor, frame_token: Tensor) -> Tensor:
        """mu of a window: tokens int64 [B, N], frame_token int64 [F] in 0..N-1 -> [B, mels, F]."""
        states = self.encoder_proj(self.encode(tokens)).transpose(1, 2)  # [B, mels, N]
        return self.length_regulator(states, frame_token)

    def speaker(self, embedding: Tensor | None = None) -> Tensor:
        """Speaker features [1 or B, mels] of an embedding [B, spk_embed_dim]; None is the released zero embedding."""
        if embedding is None:
            return self.spk_embed_affine_layer.bias[None]
        return self.spk_embed_affine_layer(F.normalize(embedding, dim=1))

    def velocity(self, x: Tensor, mu: Tensor, cond: Tensor, t: Tensor, spks: Tensor | None = None) -> Tensor:
        """Guided velocity, (1 + g) v(mu, spks, cond) - g v(0, 0, 0), both in one batch of 2B.

        Args:
            x, mu, cond: [B, mels, F].
            t: [1], the flow time.
            spks: [1 or B, mels] from `speaker`; default the zero embedding's.

        Returns:
            [B, mels, F].
        """
        estimator, guidance = self.decoder.estimator, self.config.inference_cfg_rate
        spks = self.speaker() if spks is None else spks
        if guidance == 0:
            return estimator(x, mu, t, spks, cond)
        spks = spks[:, :, None].expand(x.shape[0], -1, x.shape[2])
        conditional = torch.cat((x, mu, spks, cond), dim=1)  # [B, 4 mels, F]
        unconditional = F.pad(x, (0, 0, 0, 3 * x.shape[1]))
        both = estimator.run(torch.cat((conditional, unconditional)), estimator.time_mlp(t))
        guided, free = both.chunk(2)
        return (1 + guidance) * guided - guidance * free

    def sample(self, mu: Tensor, cond: Tensor, noise: Tensor, steps: int, spks: Tensor | None = None) -> Tensor:
        """Integrate the flow from noise to mel with Euler steps: all [B, mels, F] -> [B, mels, F]."""
        x, times = noise, time_grid(steps)
        for start, stop in pairwise(times):
            x = x + (stop - start) * self.velocity(x, mu, cond, x.new_tensor([start]), spks)
        return x
