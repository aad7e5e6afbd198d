"""Token corruption: some speech codes are replaced where they are read, so that a small data set is not memorised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from training.language_model.batch import Batch


def corrupt_tokens(batch: Batch, share: float, audio_from: int, draw: np.random.Generator) -> Batch:
    """The batch with some speech codes replaced where they are read, in prompts and answers; labels stay.

    A code that is replaced becomes one of another place of the batch: codes stay as frequent as they are.

    Args:
        share: of the codes that are replaced, 0 to 1.
        audio_from: the first audio id.
        draw: decides which and by what.
    """
    places = (batch.tokens >= audio_from).nonzero().squeeze(1)
    chosen = places[torch.from_numpy(draw.random(len(places)) < share)]
    if not len(chosen):
        return batch
    tokens = batch.tokens.clone()
    tokens[chosen] = batch.tokens[places[torch.from_numpy(draw.integers(len(places), size=len(chosen)))]]
    return replace(batch, tokens=tokens)
