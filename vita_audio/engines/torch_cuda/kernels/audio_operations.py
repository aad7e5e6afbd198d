"""What the audio networks are made of: each operation the PyTorch reference or the GPU kernel of the same name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vita_audio.engines.torch_cuda.kernels import group_norm, layer_norm, snake
from vita_audio.engines.torch_cuda.kernels.language import INSTALLED


@dataclass(frozen=True, slots=True)
class AudioOperations:
    """What each takes and returns is said at its reference.

    Attributes:
        layer_norm: `layer_norm.reference`.
        group_norm: `group_norm.reference`.
        snake: `snake.reference`.
    """

    layer_norm: Callable[..., tuple[Tensor, Tensor]] = layer_norm.reference
    group_norm: Callable[..., Tensor] = group_norm.reference
    snake: Callable[..., tuple[Tensor, Tensor]] = snake.reference


REFERENCES = AudioOperations()
KERNELS = AudioOperations(layer_norm.fused, group_norm.fused, snake.fused)
#: What can be switched off by name.
NAMES = ("layer_norm", "group_norm", "snake")


def audio_operations(device: torch.device, off: frozenset[str] = frozenset()) -> AudioOperations:
    """Kernels but for those named in `off`; references on a CPU and where the GPU language is not installed."""
    if device.type != "cuda" or not INSTALLED:
        return REFERENCES
    return replace(KERNELS, **{name: getattr(REFERENCES, name) for name in NAMES if name in off})
