"""What a program is made of: each operation the PyTorch reference or the GPU kernel of the same name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vita_audio.engines.torch.sampler import draw
from vita_audio.engines.torch_cuda.kernels import enter, gate, linear, norm, rotate


class Linear(Protocol):
    """See `linear.reference`."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        gate: bool = False,
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Operations:
    """The operations of a program; what each takes and returns is said at its reference.

    Attributes:
        norm: `norm.reference`.
        final_norm: `norm.final_reference`.
        enter: `enter.reference`.
        rotate: `rotate.reference`.
        gate: `gate.reference`.
        linear: `linear.reference`.
        draw: of the sampler of every engine that runs on PyTorch.
    """

    norm: Callable[[Tensor, Tensor, float], Tensor]
    final_norm: Callable[..., tuple[Tensor, Tensor]]
    enter: Callable[..., Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    gate: Callable[[Tensor], Tensor]
    linear: Linear
    draw: Callable[..., Tensor]


#: What can be switched off by name.
NAMES = ("norm", "enter", "rotate", "gate", "linear", "draw", "attention", "pdl")

REFERENCES = Operations(
    norm=norm.reference,
    final_norm=norm.final_reference,
    enter=enter.reference,
    rotate=rotate.reference,
    gate=gate.reference,
    linear=linear.reference,
    draw=draw,
)


def operations(device: torch.device, off: frozenset[str] = frozenset()) -> Operations:
    """The operations of an engine on `device`: kernels on a GPU, but for those named in `off`."""
    return REFERENCES
