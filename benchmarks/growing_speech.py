"""How often speech that goes on changes what was tokenized of it before.

The features of a piece of 30 s are raised to a floor that its loudest sound sets. A louder sound later lifts it: blocks
that were run are then run again, and some of their tokens may be others, so that a slot has to read from there on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_audio.engines.interface import SpeechTokenizerEngine
from vita_audio.speech_features import BLOCK_TOKENS, HOP, TOKEN_SAMPLES, final_tokens, speech_pieces, speech_tokens

Speech = NDArray[np.float32]
#: What a client has of a block's successor before it sends both.
_MARGIN_SAMPLES = INPUT_SAMPLE_RATE_HZ // 5
_BLOCK_SAMPLES, _BLOCK_FRAMES = BLOCK_TOKENS * TOKEN_SAMPLES, BLOCK_TOKENS * TOKEN_SAMPLES // HOP
_NOISE_DB, _LOUDER_DB = -60.0, 3.0


@dataclass(frozen=True, slots=True)
class Growth:
    """Over all clips: `steps` at which a clip went on by a block or to its end, those at which blocks had to be run
    again, those at which one of their tokens changed; of `tokens` that had been made, how many `changed`."""

    steps: int = 0
    run_again: int = 0
    steps_changed: int = 0
    tokens: int = 0
    changed: int = 0

    def __add__(self, other: Growth) -> Growth:
        return Growth(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


def kinds(clips: Sequence[Speech]) -> dict[str, list[Speech]]:
    """The clips (mono, 16 kHz) as they are, in the noise of a room, and with each block louder than the one before."""
    noise = np.random.default_rng(0)
    level = 10 ** (_NOISE_DB / 20)
    return {
        "as it is": list(clips),
        f"with noise at {_NOISE_DB:g} dB": [
            clip + noise.normal(0, level, len(clip)).astype(np.float32) for clip in clips
        ],
        f"{_LOUDER_DB:g} dB louder each 4 s": [_louder(clip) for clip in clips],
    }


def growth(engine: SpeechTokenizerEngine, clips: Sequence[Speech]) -> Growth:
    """What happens to blocks as clips go on, up to 30 s each."""
    return sum((_growth(engine, clip) for clip in clips), Growth())


def _growth(engine: SpeechTokenizerEngine, clip: Speech) -> Growth:
    total, parts = Growth(), list(_parts(clip))
    before, ids = parts[0], speech_tokens(engine, parts[0])
    for part in parts[1:]:
        now, final = speech_tokens(engine, part), final_tokens(len(ids))
        changed = int((ids[:final] != now[:final]).sum())
        total += Growth(1, not _same_blocks(engine, before, part), changed > 0, final, changed)
        before, ids = part, now
    return total


def _parts(clip: Speech) -> Iterator[Speech]:
    for stop in range(_BLOCK_SAMPLES + _MARGIN_SAMPLES, len(clip), _BLOCK_SAMPLES):
        yield clip[:stop]
    yield clip


def _same_blocks(engine: SpeechTokenizerEngine, before: Speech, after: Speech) -> bool:
    """Whether the complete blocks of `before` have the same features in `after`."""
    (old,), (new,) = (list(speech_pieces(speech, engine.num_mel_bins)) for speech in (before, after))
    frames = old.valid_frames // _BLOCK_FRAMES * _BLOCK_FRAMES
    return np.array_equal(old.features[:, :frames], new.features[:, :frames])


def _louder(clip: Speech) -> Speech:
    """The last block at full scale, each before it softer."""
    blocks = np.arange(len(clip)) // _BLOCK_SAMPLES
    return (clip * 10 ** (_LOUDER_DB / 20 * (blocks - blocks[-1]))).astype(np.float32)
