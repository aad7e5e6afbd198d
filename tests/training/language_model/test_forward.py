"""The packed training forward computes what the engine computes token by token; losses as in docs/audio.md 8."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from training.language_model import forward
from training.language_model.batch import NO_LABEL, Batch, Sample, pack
from training.language_model.forward import TrainedLanguageModel
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.engines.interface import BurstRow, ExtendRow, Sampling
from vita_audio.engines.torch.language_model import TorchLanguageModel

CONFIG = LanguageModelConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3 + 4,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_nextn_predict_layers=4,
    max_position_embeddings=256,
)
MODULES = CONFIG.mctp_modules


def make_model(**options: bool) -> TrainedLanguageModel:
    torch.manual_seed(0)
    return TrainedLanguageModel(CONFIG, **options)


def make_samples(lengths: tuple[int, ...] = (17, 40, 9, 23), prompt: int = 4) -> list[Sample]:
    rng = np.random.default_rng(1)
    return [Sample(rng.integers(0, 50, n).astype(np.int32), np.arange(n) >= prompt) for n in lengths]


class TeacherForcedEngine(TorchLanguageModel):
    """Test double of sampling only: commits the tokens it is told to and keeps the logits they were drawn from."""

    def force(self, tokens: list[int]) -> None:
        self.forced = tokens
        self.drawn: dict[int, torch.Tensor] = {}

    def _sample(self, slot: int, hidden: torch.Tensor, index: int, commit: bool = True) -> int:
        if commit:
            self.drawn[index] = self._model.logits(hidden)
        return self.forced[index] if index < len(self.forced) else 0


def engine_logits(
    model: TrainedLanguageModel, sample: Sample, prompt: int, burst: int
) -> list[tuple[int, int, torch.Tensor]]:
    """(token position, level, logits) of every token, made one by one: one backbone token, `burst` MCTP tokens, ..."""
    ids = sample.ids.tolist()
    engine = TeacherForcedEngine(CONFIG, model.state_dict(), slots=1, context=len(ids) + MODULES + 1)
    engine.begin(0, Sampling(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0, seed=0))
    engine.force(ids[prompt:])
    consumed, valid, made = 0, 0, 0
    found = []
    while made < len(ids) - prompt:
        known = prompt + made
        engine.extend([ExtendRow(0, consumed, ids[consumed:known], made)])
        found.append((known, 0, engine.drawn[made]))
        consumed, made = known, made + 1
        wanted = min(burst, len(ids) - prompt - made)
        if wanted:
            tokens = ids[valid + 1 : prompt + made]
            engine.burst([BurstRow(0, valid, consumed, tokens, wanted, made)])
            found += [(prompt + made + k, k + 1, engine.drawn[made + k]) for k in range(wanted)]
            made += wanted
            valid = max(0, min(consumed, prompt + made - 1 - MODULES))
    return found


@pytest.mark.parametrize("burst", [1, 3, MODULES])
def test_logits_equal_the_incremental_engine(burst: int) -> None:
    model, samples = make_model().eval(), make_samples()
    batch = pack(samples)
    with torch.no_grad():
        levels = [model.logits(hidden) for hidden in model.hidden(batch)]
    start = 0
    seen = set()
    for sample in samples:
        for position, level, logits in engine_logits(model, sample, prompt=4, burst=burst):
            row = start + position - level - 1
            torch.testing.assert_close(levels[level][row], logits, rtol=1e-4, atol=1e-5)
            assert position >= len(sample.ids) or int(batch.labels_of(level)[row]) == sample.ids[position]
            seen.add(level)
        start += len(sample.ids)
    assert seen == set(range(burst + 1))


def test_packing_changes_nothing_and_samples_do_not_see_each_other() -> None:
    model, samples = make_model().eval(), make_samples()
    with torch.no_grad():
        together = model.hidden(pack(samples))
        apart = [model.hidden(pack([sample])) for sample in samples]
    for level, hidden in enumerate(together):
        torch.testing.assert_close(hidden, torch.cat([part[level] for part in apart]), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backbone", [True, False])
def test_a_gpu_computes_the_same_losses_and_gradients(backbone: bool) -> None:
    """One attention kernel for all samples there, groups of like length here; bfloat16 products there."""
    model, batch = make_model(backbone=backbone), pack(make_samples())
    losses = model(batch)
    losses.total(batch.trained_tokens, backbone).backward()
    there = make_model(backbone=backbone).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        far = there(batch.to(torch.device("cuda"), 1 + MODULES))
    far.total(batch.trained_tokens, backbone).backward()
    torch.testing.assert_close(far.sums.cpu(), losses.sums, rtol=0.01, atol=0.1)
    for (name, ours), theirs in zip(model.named_parameters(), there.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None and theirs.grad is not None:
            error = (ours.grad - theirs.grad.cpu()).norm() / ours.grad.norm().clamp(min=1e-6)
            assert error < 0.05, name


def test_targets_on_another_device_are_those_of_the_labels() -> None:
    batch = pack(make_samples())
    moved = batch.to(torch.device("meta"), 3)
    for level in range(3):
        labels = batch.labels_of(level)
        rows, wanted = batch.targets_of(level)
        assert rows.tolist() == [row for row, label in enumerate(labels.tolist()) if label != NO_LABEL]
        assert torch.equal(wanted, labels[rows])
        assert moved.targets_of(level)[0].shape == rows.shape
    assert batch.bounds.tolist() == [0, 17, 57, 66, 89]
    assert batch.longest == 40


def test_labels_of_each_level() -> None:
    batch = pack(
        [
            Sample(np.arange(10, 16, dtype=np.int32), np.arange(6) >= 3),
            Sample(np.array([7, 8], np.int32), np.array([False, True])),
        ]
    )
    none = NO_LABEL
    assert batch.labels_of(0).tolist() == [none, none, 13, 14, 15, none, 8, none]
    assert batch.labels_of(1).tolist() == [none, 13, 14, 15, none, none, none, none]
    assert batch.labels_of(3).tolist() == [14, 15, none, none, none, none, none, none]
    assert batch.tokens_of(1)[:4].tolist() == [12, 13, 14, 15]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert batch.trained_tokens == 4


def test_loss_is_main_plus_mean_of_modules_per_trained_token() -> None:
    model, batch = make_model(), pack(make_samples())
    losses = model(batch)
    expected = []
    for level, hidden in enumerate(model.hidden(batch)):
        expected.append(
            F.cross_entropy(model.logits(hidden), batch.labels_of(level), ignore_index=NO_LABEL, reduction="sum")
        )
    torch.testing.assert_close(losses.sums, torch.stack(expected))
    n = batch.trained_tokens
    torch.testing.assert_close(losses.total(n, backbone=True), expected[0] / n + torch.stack(expected[1:]).mean() / n)
    torch.testing.assert_close(losses.total(n, backbone=False), torch.stack(expected[1:]).mean() / n)


def test_chunked_loss_equals_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, chunked, batch = make_model(), make_model(), pack(make_samples())
    plain(batch).sums.sum().backward()
    monkeypatch.setattr(forward, "_CHUNKED_FROM", 0)
    chunked(batch).sums.sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), chunked.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_chunked_loss_in_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make_model(), pack(make_samples())
    plain = model(batch).sums
    monkeypatch.setattr(forward, "_CHUNKED_FROM", 0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(batch).sums
    mixed.sum().backward()
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=0.01, atol=0.0)


def test_every_level_learns_to_count() -> None:
    """Samples count up by 1, 3 or 7: after two tokens everything later is known, to MCTP 3 as well."""
    torch.manual_seed(0)
    model = TrainedLanguageModel(replace(CONFIG, hidden_size=64, intermediate_size=128))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    rng = np.random.default_rng(0)

    def draw() -> Batch:
        starts, steps = rng.integers(0, 50, 12), rng.choice([1, 3, 7], 12)
        counts = [(start + step * np.arange(20)) % 50 for start, step in zip(starts, steps, strict=True)]
        return pack([Sample(ids.astype(np.int32), np.arange(20) >= MODULES + 3) for ids in counts])

    for _ in range(120):
        batch = draw()
        model(batch).total(batch.trained_tokens, backbone=True).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        right = model(draw(), score=True).right
    assert [len(level) for level in right] == [12 * 13] * (1 + MODULES)
    assert min(float(level.float().mean()) for level in right) > 0.9


def test_recomputed_activations_give_the_same_gradients() -> None:
    plain, recomputed, batch = make_model(), make_model(recompute=True), pack(make_samples())
    for model in (plain, recomputed):
        model(batch).sums.sum().backward()
    for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_frozen_backbone_trains_modules_only() -> None:
    model, batch = make_model(backbone=False), pack(make_samples())
    losses = model(batch)
    assert losses.sums[0] == 0
    losses.total(batch.trained_tokens, backbone=False).backward()
    own = {id(parameter) for parameter in model.mctp_parameters()}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in own), name
        assert parameter.requires_grad == (id(parameter) in own), name


def test_mctp_losses_reach_the_backbone_when_it_trains() -> None:
    model, batch = make_model(), pack(make_samples())
    model(batch).sums[-1].backward()
    for name in ("model.layers.0.mlp.up_proj.weight", "mtp_projs.0.weight"):  # also along the chain of hidden states
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().max() > 0


def test_score_counts_greedy_hits() -> None:
    model, batch = make_model().eval(), pack(make_samples())
    with torch.no_grad():
        losses = model(batch, score=True)
        top = [model.logits(hidden).argmax(1) for hidden in model.hidden(batch)]
    for level, right in enumerate(losses.right):
        labels = batch.labels_of(level)
        assert right.tolist() == (top[level] == labels)[labels != NO_LABEL].tolist()
