"""Muon over stacks of matrices: equal to PyTorch's own, split as promised; local heads look where they should."""

from __future__ import annotations

import pytest
import torch

from training.language_model import muon
from training.language_model.forward import TrainedLanguageModel
from training.language_model.initialise import random_weights
from training.language_model.loop import muon_of
from training.language_model.muon import Muon, orthogonal
from training.run import RunSettings
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.models.language_model import rotary_table, rotate

CONFIG = LanguageModelConfig(
    vocab_size=64, hidden_size=60, intermediate_size=64, num_hidden_layers=5, num_attention_heads=6,
    num_key_value_heads=2, num_nextn_predict_layers=2, max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture(params=[False, True], ids=["float32", "bfloat16"])
def bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the hardware multiplies bfloat16."""
    monkeypatch.setattr(muon, "has_bfloat16", lambda device: request.param)
    return bool(request.param)


def test_equal_to_the_library(bfloat16: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = [(8, 24), (24, 8), (8, 24), (16, 16)]
    start = [torch.randn(shape, generator=draw) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    mine = Muon(ours, lr=0.01, weight_decay=0.1)
    library = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=draw)
            b.grad = a.grad.clone()
        mine.step()
        library.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        moved = (b - before).abs().max()
        assert moved > 0.01
        assert (a - b).abs().max() < 0.05 * moved  # the library iterates in bfloat16, in another order


def test_directions_are_near_orthogonal(bfloat16: bool) -> None:
    x = torch.randn(3, 12, 40, generator=torch.Generator().manual_seed(1))
    for matrices in (x, x.mT):
        directions = orthogonal(matrices)
        assert directions.dtype == (torch.bfloat16 if bfloat16 else torch.float32)
        values = torch.linalg.svdvals(directions.float())
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_parts_share_every_matrix_once() -> None:
    model = TrainedLanguageModel(CONFIG)
    optimizers = muon_of(model, RunSettings(steps=1, learning_rate=1e-3), 3.0, parts=2)
    seen = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in model.parameters())
    rates = {id(p): g["multiplier"] for o in optimizers[1:] for g in o.param_groups for p in g["params"]}
    assert rates[id(model.mtp_projs[0].weight)] == 3 * rates[id(model.model.layers[0].mlp.up_proj.weight)]
    assert id(model.lm_head.weight) not in rates
    sizes = [sum(p.numel() for g in o.param_groups for p in g["params"]) for o in optimizers[1:]]
    assert max(sizes) < 1.2 * min(sizes)


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5,\)"):
        Muon([torch.nn.Parameter(torch.zeros(5))])


def test_local_heads_attend_to_the_tokens_before() -> None:
    weights = random_weights(CONFIG, 0, local_layers=1)
    plain = random_weights(CONFIG, 0)
    rows, dim, group = 40, CONFIG.head_dim, CONFIG.num_attention_heads // CONFIG.num_key_value_heads
    cos, sin = rotary_table(torch.arange(rows), dim, CONFIG.rope_theta)
    q, k = (
        rotate(weights[f"model.layers.0.self_attn.{name}_proj.bias"].view(1, -1, dim).repeat(rows, 1, 1), cos, sin)
        for name in "qk"
    )
    scores = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(group, 1)) / dim**0.5
    seen = scores[:, -1].argmax(1)
    for head in range(CONFIG.num_attention_heads):
        if head % group < group - 1:
            assert int(seen[head]) == rows - 1 - (head % group + 1)
        else:
            assert not scores[head].any()
    changed = {key for key in plain if not torch.equal(plain[key], weights[key])}
    assert changed == {f"model.layers.0.self_attn.{name}_proj.bias" for name in "qk"}
