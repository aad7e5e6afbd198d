"""Muon, whose steps are orthogonal matrices (K. Jordan 2024), over stacks of matrices of one shape."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from training.device import has_bfloat16

_POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # of the published quintic iteration, and its iterations
_ITERATIONS = 5


class Muon(Optimizer):
    """The update of `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, all matrices of a shape at once.

    That one takes matrix after matrix: with many small ones, as in a deep and narrow model, it needs three times as
    long, a third of a whole training step on two CPU cores.

    Args:
        params: matrices [rows, columns] or groups of them.
        lr: as for AdamW: updates are scaled to the size of its updates.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        if wrong := [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.dim() != 2]:
            raise ValueError(f"Muon updates matrices, not weights of the shape {wrong[0]}; give those to AdamW")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[tuple(parameter.shape)].append(parameter)
            for shape, matrices in alike.items():
                self._update(matrices, group, group["lr"] * 0.2 * math.sqrt(max(shape)))

    def _update(self, matrices: list[Tensor], group: dict[str, Any], rate: float) -> None:
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
        directions = orthogonal(torch.stack(ahead)).to(matrices[0].dtype)
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, list(directions), alpha=-rate)


def orthogonal(x: Tensor) -> Tensor:
    """Matrices [n, rows, columns] -> like them but with all singular values near 1 (Newton-Schulz).

    In bfloat16 where the hardware multiplies it, else float32: without them a step took three times as long.
    """
    x = x.bfloat16() if has_bfloat16(x.device) else x.float()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _POLYNOMIAL
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT
