"""The gradient of a step: the same from one process with all packs, and averaged over processes with a part each."""

from __future__ import annotations

import numpy as np
import torch

from training.language_model.batch import Batch, Sample, pack
from training.language_model.forward import TrainedLanguageModel
from training.language_model.loop import Place, _accumulate_gradients
from vita_audio.checkpoint.configs import LanguageModelConfig

CONFIG = LanguageModelConfig(50, 16, 24, 1 + 2, 2, 1, 2, 256)
CPU = torch.device("cpu")


def batch(*lengths: int) -> Batch:
    rng = np.random.default_rng(sum(lengths))
    return pack([Sample(rng.integers(0, 50, n).astype(np.int32), np.arange(n) >= 4) for n in lengths])


def gradients(batches: list[Batch], trained: int, place: Place) -> tuple[list[torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)
    model = TrainedLanguageModel(CONFIG)
    sums = _accumulate_gradients(model, batches, trained, place, map)
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], sums


def test_processes_average_to_the_gradient_of_one_that_has_all() -> None:
    """An optimizer that scales its steps does not show a gradient that is too small by a factor: the gradients do."""
    packs = [batch(17, 9), batch(30), batch(12, 12, 6)]
    trained = sum(each.trained_tokens for each in packs)
    whole, sums = gradients(packs, trained, Place(CPU, float32=True))
    shares = (packs[:1], packs[1:])
    parts = [gradients(share, trained, Place(CPU, rank, 2, float32=True)) for rank, share in enumerate(shares)]
    assert all(float(gradient.abs().max()) > 0 for gradient in whole)
    for name, (one, *several) in enumerate(zip(whole, *(part for part, _ in parts), strict=True)):
        torch.testing.assert_close(sum(several) / 2, one, rtol=1e-4, atol=1e-7, msg=f"parameter {name}")
    torch.testing.assert_close(sum(part for _, part in parts), sums)


def test_packs_of_a_step_weigh_by_their_tokens() -> None:
    """The gradient is a mean over the trained tokens of the step: twice the same packs leave it as it is."""
    packs = [batch(17, 9), batch(30)]
    trained = sum(each.trained_tokens for each in packs)
    once, _ = gradients(packs, trained, Place(CPU, float32=True))
    twice, _ = gradients([*packs, *packs], 2 * trained, Place(CPU, float32=True))
    for one, two in zip(once, twice, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-7)
