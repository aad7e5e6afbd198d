"""What every audio engine refuses, whatever runs the network: one clear error instead of a runtime's own."""

from __future__ import annotations

import numpy as np

from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import Floats, Ints


def check_features(features: Floats, valid_frames: int, num_mel_bins: int, max_frames: int) -> None:
    """Raises EngineError unless features are [num_mel_bins, frames], frames even and valid_frames in 1..frames."""
    if features.ndim != 2 or features.shape[0] != num_mel_bins:
        raise EngineError(f"features have shape {list(features.shape)}, must be [{num_mel_bins}, frames]")
    frames = features.shape[1]
    if frames % 2 or not 0 < frames <= max_frames:
        raise EngineError(f"features have {frames} frames, must be even and in 2..{max_frames}; cut the speech first")
    if not 1 <= valid_frames <= frames:
        raise EngineError(f"valid_frames is {valid_frames}, must be in 1..{frames}")


def check_stacked_features(features: Floats, width: int) -> None:
    """Raises EngineError unless features are [rows, width] with at least one row and finite."""
    if features.ndim != 2 or features.shape[1] != width or not len(features):
        raise EngineError(f"features have shape {list(features.shape)}, must be [at least 1, {width}]")
    if not np.isfinite(features).all():
        raise EngineError("features have a value that is not finite; check the speech before")


def check_condition(tokens: Ints, frame_token: Ints, vocab_size: int) -> None:
    """Raises EngineError unless tokens [B, N] are audio codes and frame_token [F] points into the window."""
    if tokens.ndim != 2 or not tokens.size or not frame_token.size:
        raise EngineError(f"tokens have shape {list(tokens.shape)}, frames {frame_token.size}: a window is never empty")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise EngineError(f"audio codes span {tokens.min()}..{tokens.max()}, must be in 0..{vocab_size - 1}")
    if frame_token.min() < 0 or frame_token.max() >= tokens.shape[1]:
        raise EngineError(
            f"frame_token spans {frame_token.min()}..{frame_token.max()}, must be in 0..{tokens.shape[1] - 1}"
        )
