"""Codes that are misread while training: how many, which, by what; what must be predicted stays."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.language_model.batch import Batch, Sample, pack
from training.language_model.token_corruption import corrupt_tokens

AUDIO_FROM = 100


def make_batch(codes: int, seed: int = 0) -> Batch:
    """Two samples of text, then `codes` distinct codes, then text that is trained, codes too."""
    rng = np.random.default_rng(seed)
    audio = AUDIO_FROM + rng.permutation(codes)
    ids = [np.concatenate([rng.integers(0, AUDIO_FROM, 9), part, [5]]) for part in np.array_split(audio, 2)]
    return pack([Sample(part.astype(np.int32), np.arange(len(part)) >= 12) for part in ids])


@given(st.integers(0, 300), st.floats(0, 1), st.integers(0, 2**32))
def test_text_and_labels_stay_and_codes_become_codes_of_the_batch(codes: int, share: float, seed: int) -> None:
    batch = make_batch(codes)
    read = corrupt_tokens(batch, share, AUDIO_FROM, np.random.default_rng(seed))
    text = batch.tokens < AUDIO_FROM
    assert torch.equal(read.tokens[text], batch.tokens[text])
    assert set(read.tokens[~text].tolist()) <= set(batch.tokens[~text].tolist())
    assert torch.equal(read.labels, batch.labels)
    assert torch.equal(read.labels_of(3), batch.labels_of(3))
    assert torch.equal(batch.tokens, make_batch(codes).tokens)


def test_the_share_is_kept_and_the_draw_decides() -> None:
    batch = make_batch(4000)
    first, again, other = (
        corrupt_tokens(batch, 0.1, AUDIO_FROM, np.random.default_rng(seed)).tokens for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.08 < float((first != batch.tokens).float().mean()) < 0.12
    assert torch.equal(corrupt_tokens(batch, 0.0, AUDIO_FROM, np.random.default_rng(1)).tokens, batch.tokens)


def test_mctp_modules_read_the_same_mistakes() -> None:
    read = corrupt_tokens(make_batch(200), 0.5, AUDIO_FROM, np.random.default_rng(3))
    assert torch.equal(read.tokens_of(0)[:50], read.tokens[1:51])
