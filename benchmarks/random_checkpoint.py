"""A language model checkpoint of any size with random weights: each tensor is drawn when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from vita_audio.checkpoint import language_model_shapes
from vita_audio.configs import LanguageModelConfig


class RandomCheckpoint(Mapping[str, Tensor]):
    """Released keys -> random tensors, scaled so that values neither grow nor vanish. Speed does not depend on them.

    Drawn anew at every look-up: read each key once.
    """

    def __init__(self, config: LanguageModelConfig, device: torch.device, seed: int = 0) -> None:
        self._shapes, self._device = language_model_shapes(config), device
        self._draw = torch.Generator(device).manual_seed(seed)

    def __getitem__(self, key: str) -> Tensor:
        shape = self._shapes[key]
        if len(shape) == 1:
            return (torch.zeros if key.endswith("bias") else torch.ones)(shape, device=self._device)
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        tensor = torch.randn(shape, generator=self._draw, device=self._device, dtype=dtype)
        return tensor if key == "model.embed_tokens.weight" else tensor.mul_(1 / math.sqrt(shape[1]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
