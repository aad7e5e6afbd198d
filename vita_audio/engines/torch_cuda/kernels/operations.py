"""What a program is made of: each operation the PyTorch reference or the GPU kernel of the same name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from vita_audio.engines.torch_cuda.fp8 import Matrix
from vita_audio.engines.torch_cuda.kernels import draw, enter, gate, linear, norm, rotate
from vita_audio.engines.torch_cuda.kernels.language import DEPENDENT_LAUNCH, INSTALLED


class Linear(Protocol):
    """See `linear.reference`."""

    def __call__(
        self,
        x: Tensor,
        weight: Matrix,
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
        draw: `draw.reference`.
        pdl: kernels are launched before the one ahead of them has ended.
    """

    norm: Callable[[Tensor, Tensor, float], Tensor]
    final_norm: Callable[..., tuple[Tensor, Tensor]]
    enter: Callable[..., Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    gate: Callable[[Tensor], Tensor]
    linear: Linear
    draw: Callable[..., None]
    pdl: bool = False


REFERENCES = Operations(
    norm=norm.reference,
    final_norm=norm.final_reference,
    enter=enter.reference,
    rotate=rotate.reference,
    gate=gate.reference,
    linear=linear.reference,
    draw=draw.reference,
)


#: Name -> the fields of `Operations` that it stands for, as kernels.
_KERNELS: dict[str, dict[str, Callable[..., Any]]] = {
    "norm": {"norm": norm.fused, "final_norm": norm.final_fused},
    "enter": {"enter": enter.fused},
    "rotate": {"rotate": rotate.fused},
    "gate": {"gate": gate.fused},
    "draw": {"draw": draw.fused},
}


def operations(
    device: torch.device,
    capability: int,
    off: frozenset[str] = frozenset(),
    launches: linear.Launches | None = None,
) -> Operations:
    """The operations of an engine on `device`, of compute capability `capability`: see `kernels`; references on a CPU
    and where the GPU language is not installed."""
    on = device.type == "cuda" and INSTALLED
    return kernels(capability >= DEPENDENT_LAUNCH, off, launches) if on else REFERENCES


def kernels(pdl: bool, off: frozenset[str] = frozenset(), launches: linear.Launches | None = None) -> Operations:
    """Kernels, but for those named in `off`.

    Args:
        pdl: a kernel may begin before the one ahead of it has ended.
        launches: of the kernel `linear`; without them there is its reference.
    """
    pdl = pdl and "pdl" not in off
    named = [fields for name, fields in _KERNELS.items() if name not in off]
    chosen = {name: partial(kernel, pdl=pdl) for fields in named for name, kernel in fields.items()}
    made = replace(REFERENCES, **chosen, pdl=pdl)
    if launches is None or "linear" in off:
        return replace(made, linear=partial(linear.reference, gated=made.gate))
    return replace(made, linear=partial(linear.fused, launches=launches, gated=made.gate, pdl=pdl))
