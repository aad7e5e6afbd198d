"""Number formats of the audio networks on a GPU, by the names that builder, manifest and engines share."""

from __future__ import annotations

from vita_audio.contract.errors import EngineError

#: Products of float32 as they are, or of operands rounded to 10 bits of mantissa by tensor cores.
FLOAT32, TF32 = "float32", "tf32"
#: The flow's estimator, which is nearly all the work, in half precision; token encoder and vocoder are as in TF32.
FP16, BF16 = "fp16", "bf16"
#: Of flow and vocoder. What is summed up to a phase (f0) is float32 in all of them.
DECODER_PRECISIONS = (FLOAT32, TF32, FP16, BF16)
#: Of the speech tokenizer, all of it. It picks the nearest of 16 384 codes: only float32 picks the reference's always.
SPEECH_PRECISIONS = (FLOAT32, TF32, FP16, BF16)


def check_precision(field: str, value: object, known: tuple[str, ...] = DECODER_PRECISIONS) -> str:
    """The value. Raises EngineError unless it is one of `known`."""
    if value not in known:
        raise EngineError(f"{field}: {value!r} is not valid: choose one of {', '.join(known)}")
    return str(value)
