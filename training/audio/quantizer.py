"""Codebook of the speech tokenizer in training: k-means start, moving averages, new places for dead codes.

The codebook is not trained by gradients: each code is the moving average of the states it stands for
(docs/audio.md 1, "EMA").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LAPLACE = 1e-5  # keeps the count of a code that is never used above zero
_CHUNK = 4096  # states compared with all codes at once


@dataclass(frozen=True, slots=True)
class QuantizerSettings:
    """How codes follow the states.

    Attributes:
        decay: of the moving averages.
        restart_interval: updates between two searches for dead codes.
        dead_share: a code used less than this share of the mean use is dead.
    """

    decay: float = 0.99
    restart_interval: int = 100
    dead_share: float = 0.03


class CodebookAverages(nn.Module):
    """Moving averages behind a codebook; buffers under the released names `ema_count` and `ema_weight`."""

    ema_count: Tensor
    ema_weight: Tensor
    updates: Tensor

    def __init__(self, codes: int, width: int, settings: QuantizerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("ema_count", torch.ones(codes))
        self.register_buffer("ema_weight", torch.zeros(codes, width))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def start(self, codebook: Tensor, states: Tensor, draw: torch.Generator) -> None:
        """Place the codes by k-means on states [n, width]."""
        centres, counts = k_means(states, len(codebook), draw)
        codebook.copy_(centres)
        self.ema_count.copy_(counts / counts.mean())
        self.ema_weight.copy_(centres * self.ema_count[:, None])

    @torch.no_grad()
    def update(self, codebook: Tensor, states: Tensor, ids: Tensor, restart: bool, draw: torch.Generator) -> None:
        """Move the codes towards the states [n, width] they were chosen for, ids [n]; changes `codebook` in place.

        With `restart`, dead codes are looked for every `restart_interval` updates and put on random states.
        """
        decay, codes = self.settings.decay, len(codebook)
        counts = torch.zeros_like(self.ema_count).index_add_(0, ids, torch.ones_like(ids, dtype=torch.float32))
        sums = torch.zeros_like(self.ema_weight).index_add_(0, ids, states.float())
        self.ema_count.mul_(decay).add_(counts, alpha=1 - decay)
        self.ema_weight.mul_(decay).add_(sums, alpha=1 - decay)
        self.updates += 1
        if restart and int(self.updates) % self.settings.restart_interval == 0:
            mean = self.ema_count.mean()
            dead = (self.ema_count < self.settings.dead_share * mean).nonzero()[:, 0]
            # At most as many as there are states: the rest waits for the next search.
            chosen = torch.randperm(len(states), generator=draw, device=states.device)[: len(dead)]
            dead = dead[: len(chosen)]
            self.ema_weight[dead] = states[chosen].float() * mean
            self.ema_count[dead] = mean
        total = self.ema_count.sum()
        smoothed = (self.ema_count + _LAPLACE) / (total + codes * _LAPLACE) * total
        codebook.copy_(self.ema_weight / smoothed[:, None])


def nearest(states: Tensor, codes: Tensor) -> Tensor:
    """Nearest code (Euclidean) of each state: [n, width], [codes, width] -> int64 [n]."""
    length = codes.square().sum(1)
    return torch.cat([(length - 2 * part @ codes.T).argmin(1) for part in states.split(_CHUNK)])


def k_means(states: Tensor, codes: int, draw: torch.Generator, iterations: int = 15) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from random states; a centre without states jumps to a random state.

    Returns:
        Centres [codes, width] and how many states each has, float [codes], at least 1.
    """
    states = states.float()
    if len(states) < codes:  # fewer states than codes: repeat them, a little moved
        repeats = -(-codes // len(states))
        states = states.repeat(repeats, 1)
        states = states + 0.01 * states.std() * torch.randn(states.shape, generator=draw, device=states.device)
    centres = states[torch.randperm(len(states), generator=draw, device=states.device)[:codes]].clone()
    counts = torch.ones(codes, device=states.device)
    for _ in range(iterations):
        ids = nearest(states, centres)
        counts = torch.bincount(ids, minlength=codes).float()
        sums = torch.zeros_like(centres).index_add_(0, ids, states)
        centres = sums / counts.clamp(min=1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        places = torch.randint(len(states), (len(empty),), generator=draw, device=states.device)
        centres[empty] = states[places]
    return centres, counts.clamp(min=1)


def straight_through(states: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes with the gradient of the states, and the commitment loss of each state: [.., width], [..]."""
    return states + (codes - states).detach(), F.mse_loss(states, codes.detach(), reduction="none").mean(-1)


def perplexity(ids: Tensor, codes: int) -> Tensor:
    """How many codes are in use, as exp of the entropy of ids [n]: []."""
    shares = torch.bincount(ids, minlength=codes).float() / len(ids)
    return (-(shares * shares.clamp(min=1e-12).log()).sum()).exp()
