"""The public contract of the `vita_audio` ensemble: tensor names, defaults and limits, defined once.

Used by server, client, builder and load test; imports nothing but the standard library.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

ENSEMBLE = "vita_audio"

Task = Literal["chat", "tts", "asr", "text"]
TASKS: tuple[str, ...] = get_args(Task)
DEFAULT_TASK = "chat"

MAX_TOP_K = 1_000_000
MAX_TEMPERATURE = 10.0


class TensorSpec(NamedTuple):
    """Name, Triton datatype and shape of one public tensor (-1 = any length)."""

    name: str
    datatype: str
    shape: tuple[int, ...]


INPUTS = (
    TensorSpec("TEXT", "STRING", (1,)),
    TensorSpec("AUDIO", "FP32", (-1,)),
    TensorSpec("SAMPLE_RATE", "INT32", (1,)),
    TensorSpec("TASK", "STRING", (1,)),
    TensorSpec("MODE", "STRING", (1,)),
    TensorSpec("MAX_TOKENS", "INT32", (1,)),
    TensorSpec("TEMPERATURE", "FP32", (1,)),
    TensorSpec("TOP_K", "INT32", (1,)),
    TensorSpec("TOP_P", "FP32", (1,)),
    TensorSpec("REPETITION_PENALTY", "FP32", (1,)),
    TensorSpec("SEED", "UINT64", (1,)),
)
#: The text output cannot be called TEXT: an ensemble names its tensors in one space, so an output of the name of an
#: input would feed the first step again (Triton refuses to load it).
OUTPUTS = (
    TensorSpec("TEXT_DELTA", "STRING", (1,)),
    TensorSpec("TOKENS", "INT32", (-1,)),
    TensorSpec("PCM", "INT16", (-1,)),
    TensorSpec("STATUS", "STRING", (1,)),
)
