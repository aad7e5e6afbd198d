"""Compiled layers compute what plain ones do, forward and backward, whatever the pack's length."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from training.errors import TrainingError
from training.language_model.batch import Batch, Sample, pack
from training.language_model.forward import TrainedLanguageModel
from training.language_model.fused import fuse
from vita_audio.checkpoint.configs import LanguageModelConfig

CONFIG = LanguageModelConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2 + 2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_nextn_predict_layers=2,
    max_position_embeddings=256,
)


def batch_of(*lengths: int) -> Batch:
    rng = np.random.default_rng(1)
    return pack([Sample(rng.integers(0, 50, n).astype(np.int32), np.arange(n) >= 4) for n in lengths])


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
def test_fused_layers_equal_plain_ones() -> None:
    torch.manual_seed(0)
    plain = TrainedLanguageModel(CONFIG)
    fused = TrainedLanguageModel(CONFIG)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    fused.load_state_dict(plain.state_dict())
    fuse(fused)
    assert list(fused.state_dict()) == list(plain.state_dict())
    for lengths in ((17, 40, 9), (31, 8)):
        batch = batch_of(*lengths)
        losses = [model(batch) for model in (plain, fused)]
        torch.testing.assert_close(losses[1].sums, losses[0].sums, rtol=1e-5, atol=1e-4)
        for found in losses:
            found.total(batch.trained_tokens, backbone=True).backward()
        for (name, expected), got in zip(plain.named_parameters(), fused.parameters(), strict=True):
            assert expected.grad is not None, name
            assert got.grad is not None, name
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_a_cpu_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TrainingError, match="no-such-compiler"):
        fuse(TrainedLanguageModel(CONFIG))
