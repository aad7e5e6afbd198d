"""What the paper fixes for its speed tables: lengths of prompts and chunks, and greedy requests of a fixed length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vita_audio.contract.messages import GenerationSettings
from vita_audio.generation.request import GenerationRequest

PROMPT_TOKENS = 32
#: A spoken prompt of that length, and the audio tokens of the first chunk (0.64 s).
SPEECH_TOKENS, CHUNK_TOKENS = 32, 8
#: One token of text, then a chunk of audio with its tags.
FIRST_CHUNK_TOKENS = 11
#: Active in the authors' greedy decoding too.
REPETITION_PENALTY = 1.05


def greedy_request(
    prompt: Sequence[int], pattern: tuple[int, ...], tokens: int, penalty: float = REPETITION_PENALTY
) -> GenerationRequest:
    """`tokens` tokens after `prompt`; `pattern` is that of a mode."""
    settings = GenerationSettings(
        task="text", mode="", pattern=pattern, max_tokens=tokens, temperature=0.0, top_k=0, top_p=1.0,
        repetition_penalty=penalty, seed=0,
    )  # fmt: skip
    return GenerationRequest(list(prompt), settings)


def random_prompts(streams: int, below: int) -> list[list[int]]:
    """`streams` prompts of ids from 0 to `below`, the same ones each time."""
    return np.random.default_rng(0).integers(0, below, (streams, PROMPT_TOKENS)).tolist()  # type: ignore[no-any-return]
