"""Where the audio networks train: the device and its arithmetic."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

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


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 for matrix products and convolutions on a GPU; float32 on the CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")  # type: ignore[return-value]
