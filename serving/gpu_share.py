"""Whose kernels go first where language model and decoder have a GPU at the same time: under MPS, or in one process."""

from __future__ import annotations

import os
from collections.abc import Callable

from serving.settings import EQUAL, ServingSettings
from vita_audio.engines.gpu_stream import own_stream
from vita_audio.engines.source import EngineSource

#: Read by CUDA as it begins to use a GPU. 1 is below normal; without MPS it means nothing.
MPS_PRIORITY, BELOW_NORMAL = "CUDA_MPS_CLIENT_PRIORITY", "1"


def share_gpu(settings: ServingSettings, source: EngineSource, model: str, alone: bool) -> Callable[[], None]:
    """To be called before the engines of `model` are opened.

    Args:
        model: one of GPU_PRIORITIES.
        alone: this process has no other engines.

    Returns:
        What every thread calls before it opens or runs these engines.
    """
    if not alone:
        return own_stream(source, first=settings.gpu_priority == model)
    if settings.gpu_priority not in (EQUAL, model):
        os.environ[MPS_PRIORITY] = BELOW_NORMAL
    return lambda: None
