"""Where networks train: the device and its arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from training.errors import TrainingError


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU.

    Raises:
        TrainingError: the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise TrainingError(
            f"device: {name!r} cannot be used ({str(error).splitlines()[0]}); take auto or cpu"
        ) from error


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16: a GPU, a CPU with AMX tiles or AVX-512's bfloat16 products."""
    if device.type == "cpu":  # PyTorch has no public names for these yet
        asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16"))
        return any(supported is not None and supported() for supported in asked)
    return device.type == "cuda"


@contextmanager
def autocast(device: torch.device) -> Iterator[None]:
    """bfloat16 for matrix products and convolutions where `has_bfloat16`, else float32.

    On a CPU attention stays float32: PyTorch's bfloat16 attention is several times as slow backward.
    """
    enabled = has_bfloat16(device)
    attention = _Float32Attention() if enabled and device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled), attention:
        yield


class _Float32Attention(TorchFunctionMode):
    """Attention in float32 inside autocast, its result in the precision of the query."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = (part.float() for part in args[:3])
        with torch.autocast("cpu", enabled=False):
            return func(query, key, value, *args[3:], **(kwargs or {})).to(args[0].dtype)
