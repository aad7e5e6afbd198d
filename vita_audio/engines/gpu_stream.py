"""A CUDA stream for each worker of a process that has several: on the default stream they would wait for each other."""

from __future__ import annotations

from collections.abc import Callable

from vita_audio.engines.gpu_record import TORCH_CUDA
from vita_audio.engines.source import EngineSource

#: As CUDA counts: the lower goes first.
HIGH, NORMAL = -1, 0


def own_stream(source: EngineSource, first: bool) -> Callable[[], None]:
    """What a thread calls before it opens or runs engines of `source`, so that their kernels are on one stream.

    Graphs keep the priority of the stream on which they were captured. Engines other than torch_cuda's on a GPU are
    left alone: TensorRT's have streams of their own.

    Args:
        first: kernels of this stream go before those of a stream without it.
    """
    if source.gpu is None or source.gpu.engine != TORCH_CUDA or source.device == "cpu":
        return lambda: None
    import torch  # here: other servers have none

    stream = torch.cuda.Stream(torch.device(source.device), priority=HIGH if first else NORMAL)
    return lambda: torch.cuda.set_stream(stream)
