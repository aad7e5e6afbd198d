"""Where random weights are drawn."""

from __future__ import annotations

import re

import torch

from vita_audio.contract.errors import EngineError


def drawing_device(name: str) -> torch.device:
    """`--device` of a command: cpu, cuda or cuda:N. Raises EngineError for another, or a GPU that is not there."""
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,2})?", name):
        raise EngineError(f"--device: {name!r} is not valid: cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        seen = f"{count} GPUs, cuda:0 is the first" if count else "no GPU"
        raise EngineError(f"--device: {name!r} is not there: PyTorch sees {seen}; cpu always is")
    return device
