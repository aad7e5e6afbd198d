"""One small real request through an engine before a server is ready, so that the first user does not wait.

The audio decoder's own geometries: `StreamingDecoder.warm_up`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from vita_audio.contract.errors import EngineError
from vita_audio.contract.limits import Limits
from vita_audio.contract.messages import Delta, GenerationSettings, Status
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.engines.interface import Embedded, Floats
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.service import GenerationService

#: Backbone steps and, where there are MCTP modules, two bursts.
WARM_UP_TOKENS = 24
WARM_UP_TIMEOUT_S = 60.0
#: As long as most questions, so that the first of them finds the engine's memory allocated.
WARM_UP_SPEECH_S = 6


def warm_up_generation(service: GenerationService, limits: Limits, embedded_size: int = 0) -> None:
    """A short greedy stream in the checkpoint's own mode, which counts in no metric.

    Args:
        embedded_size: of the engine; speech stands in the prompt where it takes any.

    Raises:
        EngineError: it failed, or did not end in time.
    """
    settings = GenerationSettings(
        task="chat",
        mode="warm-up",
        pattern=limits.default_pattern,
        max_tokens=min(WARM_UP_TOKENS, limits.max_tokens),
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        seed=0,
    )
    last: list[Status] = []
    ended = threading.Event()

    def emit(delta: Delta) -> None:
        if delta.status.final:
            last.append(delta.status)
            ended.set()

    embedded = Embedded(np.arange(2, 6), np.zeros((4, embedded_size), np.float32)) if embedded_size else None
    service.submit("warm-up", GenerationRequest(list(range(8)), settings, embedded), emit)
    if not ended.wait(WARM_UP_TIMEOUT_S):
        raise EngineError(f"language model: the warm-up request did not end within {WARM_UP_TIMEOUT_S:g} s")
    if last[0].state != "done":
        raise EngineError(f"language model: the warm-up request failed: {last[0].reason}")
    service.count_from_here()


def warm_up_speech(read: Callable[[Floats], object]) -> None:
    """A few seconds of silence, through what reads speech."""
    read(np.zeros(WARM_UP_SPEECH_S * INPUT_SAMPLE_RATE_HZ, np.float32))
