"""The public contract of the `vita_audio` ensemble: tensor names, defaults and limits, defined once.

Used by server, client, builder and load test; imports nothing but the standard library.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

ENSEMBLE = "vita_audio"

INPUT_SAMPLE_RATE_HZ = 16_000
OUTPUT_SAMPLE_RATE_HZ = 22_050
MEL_HOP_SAMPLES = 256
TOKENS_PER_SECOND = 12.5
#: 441/64 mel frames for each audio token (docs/audio.md, "Constants").
FRAMES_PER_TOKEN_NUMERATOR, FRAMES_PER_TOKEN_DENOMINATOR = 441, 64

Task = Literal["chat", "tts", "asr", "text"]
TASKS: tuple[str, ...] = get_args(Task)
DEFAULT_TASK = "chat"

MIN_SAMPLE_RATE_HZ, MAX_SAMPLE_RATE_HZ = 8_000, 192_000
MAX_AUDIO_SECONDS = 120.0
MAX_TOP_K = 1_000_000
MAX_TEMPERATURE = 10.0
MAX_REPETITION_PENALTY = 10.0


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


def mel_frames(audio_tokens: int) -> int:
    """Mel frames of the first `audio_tokens` tokens: floor(n * 441 / 64), exact in integers."""
    return audio_tokens * FRAMES_PER_TOKEN_NUMERATOR // FRAMES_PER_TOKEN_DENOMINATOR


def output_samples(audio_tokens: int) -> int:
    """PCM samples at 22 050 Hz of a stream of `audio_tokens` audio tokens: 256 * mel_frames, exact."""
    return MEL_HOP_SAMPLES * mel_frames(audio_tokens)
