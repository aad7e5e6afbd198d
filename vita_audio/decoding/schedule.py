"""When the streaming decoder decodes: a pure function of the number of audio tokens, never of time or load."""

from __future__ import annotations

from dataclasses import dataclass

from vita_audio.contract.errors import EngineError
from vita_audio.contract.rates import mel_frames

#: Frames the f0 predictor looks to either side (docs/audio.md 3).
F0_CONTEXT_FRAMES = 5
#: Frames a sample of the vocoder depends on, to either side, edge of the inverse STFT included (docs/audio.md 3).
VOCODER_REACH_FRAMES = 13
#: With this hold-back the chunked vocoder equals the one-shot vocoder.
EXACT_HOLD_BACK_FRAMES = F0_CONTEXT_FRAMES + VOCODER_REACH_FRAMES


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes of the streaming decoder; the same for every stream, so that a request is reproducible.

    Attributes:
        first_chunk_tokens: audio tokens of the first decode (8 = the first burst of the boost mode, 0.64 s).
        chunk_tokens: tokens of the chunks on the grid counted from token 0; the last size repeats. (20,) decodes at
            8, 20, 40, 60, ... tokens, (20, 20, 40) at 8, 20, 40, 80, 120, ...
        context_tokens: tokens already voiced that every flow window sees at least, as tokens and as mel.
        flow_steps: Euler steps of the flow, the same for all chunks.
        flow_hold_back_frames: last mel frames of a window that wait for more right context (made again next time).
        flow_fade_frames: frames over which the held frames fade into those made again.
        vocoder_hold_back_frames: mel frames the vocoder waits for; 18 equals the one-shot vocoder, less is sooner.
        vocoder_context_frames: mel frames the vocoder sees before the first one it voices; 13 is exact.

    Raises:
        EngineError: a value is out of its range (field, value, limit and remedy are named).
    """

    first_chunk_tokens: int = 8
    chunk_tokens: tuple[int, ...] = (20, 40)
    context_tokens: int = 30
    flow_steps: int = 4
    flow_hold_back_frames: int = 12
    flow_fade_frames: int = 8
    vocoder_hold_back_frames: int = EXACT_HOLD_BACK_FRAMES
    vocoder_context_frames: int = VOCODER_REACH_FRAMES

    def __post_init__(self) -> None:
        chunks = tuple(self.chunk_tokens)
        object.__setattr__(self, "chunk_tokens", chunks)
        held = self.flow_hold_back_frames + self.vocoder_hold_back_frames
        _check(self.first_chunk_tokens >= 1, "first_chunk_tokens", self.first_chunk_tokens, "at least 1")
        _check(bool(chunks) and min(chunks, default=0) >= 1, "chunk_tokens", chunks, "one or more positive sizes")
        _check(chunks[0] > self.first_chunk_tokens, "chunk_tokens", chunks, "the first above first_chunk_tokens")
        _check(self.context_tokens >= 1, "context_tokens", self.context_tokens, "at least 1")
        _check(1 <= self.flow_steps <= 100, "flow_steps", self.flow_steps, "1 to 100")
        _check(self.flow_hold_back_frames >= 0, "flow_hold_back_frames", self.flow_hold_back_frames, "at least 0")
        _check(
            0 <= self.flow_fade_frames <= self.flow_hold_back_frames,
            "flow_fade_frames",
            self.flow_fade_frames,
            "0 to flow_hold_back_frames",
        )
        _check(
            F0_CONTEXT_FRAMES <= self.vocoder_hold_back_frames <= 100,
            "vocoder_hold_back_frames",
            self.vocoder_hold_back_frames,
            f"{F0_CONTEXT_FRAMES} to 100 (f0 looks {F0_CONTEXT_FRAMES} frames ahead)",
        )
        _check(
            F0_CONTEXT_FRAMES <= self.vocoder_context_frames <= 100,
            "vocoder_context_frames",
            self.vocoder_context_frames,
            f"{F0_CONTEXT_FRAMES} to 100 (f0 looks {F0_CONTEXT_FRAMES} frames back)",
        )
        _check(
            mel_frames(self.first_chunk_tokens) > held,
            "first_chunk_tokens",
            self.first_chunk_tokens,
            f"more than the {held} frames held back in all, but it makes {mel_frames(self.first_chunk_tokens)}; "
            "take more tokens or hold back less",
        )

    def check_grid(self, block_tokens: int) -> None:
        """Windows must start where the blocks of the flow's token encoder start.

        Raises:
            EngineError: a chunk or context size is no multiple of `block_tokens`.
        """
        limit = f"multiples of the flow's block of {block_tokens} tokens"
        _check(all(size % block_tokens == 0 for size in self.chunk_tokens), "chunk_tokens", self.chunk_tokens, limit)
        _check(self.context_tokens % block_tokens == 0, "context_tokens", self.context_tokens, limit)


def next_decode(config: DecoderConfig, decoded_tokens: int) -> int:
    """Number of audio tokens at which the decode after the one at `decoded_tokens` (0: none yet) is due."""
    if decoded_tokens < config.first_chunk_tokens:
        return config.first_chunk_tokens
    due = 0
    for size in config.chunk_tokens:
        due += size
        if due > decoded_tokens:
            return due
    last = config.chunk_tokens[-1]
    return due + last * ((decoded_tokens - due) // last + 1)


def _check(valid: bool, field: str, value: object, limit: str) -> None:
    if not valid:
        raise EngineError(f"audio decoder setting {field}: {value!r} is not valid: {limit}")
