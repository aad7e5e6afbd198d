"""At the start each kernel of the audio networks runs against its reference, as those of the language model do
(`self_check.py`): one that disagrees, or cannot be compiled or launched on this GPU, is switched off by name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from vita_audio.contract.errors import EngineError
from vita_audio.engines.torch_cuda.kernels import compile_cache
from vita_audio.engines.torch_cuda.kernels.audio_operations import KERNELS, REFERENCES, AudioOperations
from vita_audio.engines.torch_cuda.kernels.language import INSTALLED
from vita_audio.engines.torch_cuda.kernels.names import AUDIO_NAMES
from vita_audio.engines.torch_cuda.kernels.self_check import disagreement, one_line

logger = logging.getLogger(__name__)

#: Of the released flow (group_norm), speech tokenizer and SenseVoice (layer_norm), vocoder (snake): frames, channels.
_FRAMES, _CHANNELS, _GROUPS = 50, 256, 8
#: snake is of the vocoder, which is float32.
_TYPES = {"layer_norm": (torch.float32, torch.bfloat16), "group_norm": (torch.float32, torch.bfloat16)}


def audio_operations(device: torch.device, off: frozenset[str] = frozenset()) -> AudioOperations:
    """Kernels, but for those named in `off` and those that must not serve here; references on a CPU.

    Raises:
        EngineError: a kernel has left the GPU in a state in which nothing runs any more.
    """
    if device.type != "cuda":
        return REFERENCES
    return KERNELS.without(off | faulty(device, off))


@lru_cache(maxsize=16)  # the networks of a process ask one after the other
def faulty(device: torch.device, off: frozenset[str], kernels: AudioOperations = KERNELS) -> frozenset[str]:
    """Names of kernels, but for those that are `off`, that must not serve; each is logged."""
    if not INSTALLED or not compile_cache.make_writable():
        why = "no folder for compiled kernels" if INSTALLED else "the package `triton` is not installed"
        logger.warning("kernels of the audio networks off: %s; PyTorch's own operations run, slower", why)
        return frozenset(AUDIO_NAMES)
    found = set()
    for name in AUDIO_NAMES:
        if name not in off and (fault := _fault(name, device, kernels)):
            logger.warning("kernel %s is off, its reference runs: %s", name, fault)
            found.add(name)
    return frozenset(found)


def _fault(name: str, device: torch.device, kernels: AudioOperations) -> str:
    """What is wrong with a kernel; "" where it agrees with its reference."""
    for dtype in _TYPES.get(name, (torch.float32,)):
        expected = _made(name, device, dtype, REFERENCES)
        try:
            made = _made(name, device, dtype, kernels)
        except Exception as error:  # noqa: BLE001 - whatever a compiler or a driver raises: serving goes on without it
            _synchronise(name, device)
            return one_line(error)
        for one, other in zip(made, expected, strict=True):
            if wrong := disagreement(one, other):
                return wrong
    return ""


def _made(name: str, device: torch.device, dtype: torch.dtype, operations: AudioOperations) -> list[Tensor]:
    """The same random rows each time."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    make: Callable[[], tuple[Tensor, ...]] = {
        "layer_norm": lambda: operations.layer_norm(
            random(2, _FRAMES, _CHANNELS), random(_CHANNELS), random(_CHANNELS), 1e-5, random(2, _FRAMES, _CHANNELS)
        ),
        "group_norm": lambda: (
            operations.group_norm(
                random(2, _FRAMES, _CHANNELS), *(random(_CHANNELS) for _ in range(3)), 1e-5, _GROUPS, random(_CHANNELS)
            ),
        ),
        "snake": lambda: operations.snake(
            random(2, _FRAMES, _CHANNELS), *(random(_CHANNELS) for _ in range(3)), random(2, _FRAMES, _CHANNELS)
        ),
    }[name]
    with torch.inference_mode():
        made = list(make())
    _synchronise(name, device)
    return made


def _synchronise(name: str, device: torch.device) -> None:
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:  # the context is lost: every later call fails too
        why = one_line(error)
        raise EngineError(f"kernel {name} has stopped the GPU: {why}; start again with --kernels-off {name}") from error
