"""Which mel frames belong to which audio token: the absolute map for streaming (docs/audio.md 2.2)."""

from __future__ import annotations

from vita_audio.contract.rates import FRAMES_PER_TOKEN_DENOMINATOR, FRAMES_PER_TOKEN_NUMERATOR


def token_of_frame(frame: int) -> int:
    """The token that mel frame `frame` belongs to: floor(frame * 64 / 441)."""
    return frame * FRAMES_PER_TOKEN_DENOMINATOR // FRAMES_PER_TOKEN_NUMERATOR


def first_frame_of(token: int) -> int:
    """The first mel frame that belongs to `token`: ceil(token * 441 / 64)."""
    return -(-token * FRAMES_PER_TOKEN_NUMERATOR // FRAMES_PER_TOKEN_DENOMINATOR)
