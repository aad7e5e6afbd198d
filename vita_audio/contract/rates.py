"""Rates of speech in, tokens, mel frames and sound out, and how many of one come from another (docs/audio.md)."""

from __future__ import annotations

INPUT_SAMPLE_RATE_HZ = 16_000
OUTPUT_SAMPLE_RATE_HZ = 22_050
MEL_HOP_SAMPLES = 256
TOKENS_PER_SECOND = 12.5
#: 441/64 mel frames for each audio token.
FRAMES_PER_TOKEN_NUMERATOR, FRAMES_PER_TOKEN_DENOMINATOR = 441, 64


def mel_frames(audio_tokens: int) -> int:
    """Mel frames of the first `audio_tokens` tokens: floor(n * 441 / 64), exact in integers."""
    return audio_tokens * FRAMES_PER_TOKEN_NUMERATOR // FRAMES_PER_TOKEN_DENOMINATOR


def output_samples(audio_tokens: int) -> int:
    """PCM samples at 22 050 Hz of a stream of `audio_tokens` audio tokens: 256 * mel_frames, exact."""
    return MEL_HOP_SAMPLES * mel_frames(audio_tokens)


def whole_tokens(seconds: float) -> int:
    """Of how many audio tokens all sound is in the first `seconds`: the inverse of `output_samples`."""
    frames = round(seconds * OUTPUT_SAMPLE_RATE_HZ) // MEL_HOP_SAMPLES
    return ((frames + 1) * FRAMES_PER_TOKEN_DENOMINATOR - 1) // FRAMES_PER_TOKEN_NUMERATOR
