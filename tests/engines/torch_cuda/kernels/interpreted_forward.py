"""A whole engine with every kernel against the same engine with every reference: run by test_interpreted.py."""

from __future__ import annotations

import pytest
import torch

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.engines.interface import BurstRow, ExtendRow, Sampling
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.kernels.operations import kernels
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.weights import load_weights
from vita_audio.models.language_model import LanguageModel

CONFIG = LanguageModelConfig(60, 36, 50, 1 + 2, 6, 2, 2, 64)  # no size is a power of two
GREEDY = [Sampling(), Sampling(repetition_penalty=1.3)]
SAMPLED = [Sampling(temperature=1.0, top_k=20, seed=1), Sampling(temperature=0.8, top_k=5, top_p=0.9, seed=2)]
PROMPTS = [[7, 3, 9, 1, 4], [5, 8]]


def engine(fused: bool, first_mctp_id: int) -> TorchCudaLanguageModel:
    torch.manual_seed(1)
    weights = load_weights(CONFIG, LanguageModel(CONFIG).state_dict(), torch.device("cpu"), torch.float32)
    settings = Settings(2, 64, first_mctp_id, attention="split" if fused else "rectangle")
    made = TorchCudaLanguageModel(CONFIG, weights, settings, [2])
    if fused:
        made.forward.operations = kernels(pdl=False)
    return made


def tokens(one: TorchCudaLanguageModel, sampling: list[Sampling]) -> list[list[int]]:
    """Two prompts, a burst each, and what follows it."""
    for slot, how in enumerate(sampling):
        one.begin(slot, how)
    first = [t or 0 for t in one.extend([ExtendRow(slot, 0, prompt, 0) for slot, prompt in enumerate(PROMPTS)])]
    rows = [
        BurstRow(slot, 0, len(prompt), [*prompt[1:], token], 1, 1)
        for slot, (prompt, token) in enumerate(zip(PROMPTS, first, strict=True))
    ]
    bursts = one.burst(rows)
    after = [
        ExtendRow(slot, len(prompt), [token, *made], 1 + len(made))
        for slot, (prompt, token, made) in enumerate(zip(PROMPTS, first, bursts, strict=True))
    ]
    return [first, *bursts, [t or 0 for t in one.extend(after)]]


@pytest.mark.parametrize(
    ("sampling", "first_mctp_id"),
    [(GREEDY, 0), ([GREEDY[1], SAMPLED[0]], 30), (SAMPLED, 0)],
    ids="greedy mixed sampled".split(),
)
def test_every_kernel_together_makes_the_tokens_of_the_references(sampling: list[Sampling], first_mctp_id: int) -> None:
    made, expected = engine(True, first_mctp_id), engine(False, first_mctp_id)
    assert tokens(made, sampling) == tokens(expected, sampling)
    torch.testing.assert_close(made.forward.hidden[:-1], expected.forward.hidden[:-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.forward.cache[:, :-1], expected.forward.cache[:, :-1], rtol=1e-4, atol=1e-5)
    assert torch.equal(made.forward.seen[:-1], expected.forward.seen[:-1])
