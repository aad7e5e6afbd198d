"""Prompts of a Plus model: rows of noise where speech would stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from generation_doubles import request
from vita_audio.engines.interface import Embedded
from vita_audio.generation.request import GenerationRequest

#: Stands for context_of_audio.
AUDIO = 299


def spoken(
    hidden: int, noise: int, length: int, clips: Sequence[tuple[int, int]], pattern: tuple[int, ...], **options: Any
) -> GenerationRequest:
    """A prompt of `length` tokens, of which spans [start, stop) are clips.

    Args:
        hidden: size of a row.
        noise: seed of ids and rows.
        options: of `request`.
    """
    rng = np.random.default_rng(noise)
    prompt = rng.integers(0, AUDIO, length)
    places = np.concatenate([np.arange(*clip) for clip in clips])
    prompt[places] = AUDIO
    rows = rng.standard_normal((len(places), hidden), np.float32)
    return replace(request(prompt.tolist(), pattern, 24, **options), embedded=Embedded(places, rows))


def spoken_requests(hidden: int, pattern: tuple[int, ...]) -> list[GenerationRequest]:
    """Short and long, with one clip and two, sampled and greedy, one of speech alone, one without any."""
    return [
        spoken(hidden, 0, 30, [(3, 15)], pattern),
        spoken(hidden, 1, 150, [(2, 40), (60, 149)], pattern, temperature=1.0, top_k=30, seed=4),
        request([5, 6, 7], pattern, 24),
        spoken(hidden, 2, 9, [(0, 9)], pattern, repetition_penalty=1.3),
        spoken(hidden, 3, 3, [(1, 2)], pattern),
    ]
