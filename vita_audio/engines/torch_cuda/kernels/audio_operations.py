"""What the audio networks are made of: each operation the PyTorch reference or the GPU kernel of the same name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from vita_audio.engines.torch_cuda.kernels import group_norm, layer_norm, snake
from vita_audio.engines.torch_cuda.kernels.names import AUDIO_NAMES


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

    def without(self, off: frozenset[str]) -> AudioOperations:
        """These, but for the references of the names in `off`; names of other kernels are ignored."""
        return replace(self, **{name: getattr(REFERENCES, name) for name in AUDIO_NAMES if name in off})


REFERENCES = AudioOperations()
KERNELS = AudioOperations(layer_norm.fused, group_norm.fused, snake.fused)
