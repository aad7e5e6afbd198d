"""The draw's kernel against its reference, on tensors of the CPU: run by test_interpreted.py.

`python tests/engines/torch_cuda/kernels/interpreted_draw.py 10000` compares that many draws (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.engines.interface import Sampling
from vita_audio.engines.sampling import uniforms
from vita_audio.engines.torch.sampler import SamplingTable
from vita_audio.engines.torch_cuda.kernels import draw, philox, self_check
from vita_audio.engines.torch_cuda.kernels.draw import Draws
from vita_audio.engines.torch_cuda.kernels.language import tl, triton
from vita_audio.engines.torch_cuda.kernels.operations import kernels

CPU = torch.device("cpu")
#: Marks what a draw must not touch.
UNTOUCHED = -7

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.01, 0.7, 1.0, 10.0]),
    top_k=st.sampled_from([1, 2, 50, 64]),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 1.0]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.05, 10.0]),
    seed=st.sampled_from([0, 1, 2**63, 2**64 - 1]),
)
#: Beyond what the kept ones decide: a request for more candidates, or for all.
wide_samplings = [
    Sampling(1.0, 0, 1.0, 1.0, 5),
    Sampling(1.0, 0, 0.9, 1.3, 6),
    Sampling(0.7, 100, 1.0, 1.0, 7),
    Sampling(1.5, 70, 0.95, 0.8, 2**64 - 8),
]
types = st.sampled_from([torch.float32, torch.bfloat16])


class Case:
    """A call of some streams, each in a slot of its own; the last one draws nothing.

    Logits of bfloat16 are often equal; a fifth of all ids is banned, and a fifth was seen.
    """

    def __init__(
        self, rows: list[Sampling], vocab: int, first_id: int, dtype: torch.dtype, seed: int, spread: float = 3.0
    ) -> None:
        random = torch.Generator().manual_seed(seed)
        self.vocab, self.first_id, self.count = vocab, first_id, len(rows) + 1
        self.logits = (torch.randn(self.count, vocab - first_id, generator=random) * spread).to(dtype)
        self.table = SamplingTable.create(self.count + 2, CPU)
        self.slot = torch.randperm(self.count + 2, generator=random)[: self.count]
        for slot, row in zip(self.slot.tolist(), rows, strict=False):
            self.table.put(slot, row, vocab)
        self.seen = torch.rand(self.count + 3, vocab, generator=random) < 0.2
        self.banned = torch.rand(vocab, generator=random) < 0.2
        self.banned[-1] = False
        self.index = torch.randint(0, 5000, (self.count,), generator=random)
        self.index[-1] = -1
        self.commit = torch.randint(0, 4, (self.count,), generator=random)

    def run(self, operation: Callable[..., None], number: int = 1, placed: bool = True) -> list[Tensor]:
        """ids drawn, ids placed and ids seen; of the last row, which draws nothing, only what must not change."""
        arrived = torch.zeros(self.count, dtype=torch.int32)
        seen = self.seen.clone()
        draws = Draws(self.table, seen, self.banned, arrived, self.slot, self.index, self.commit)
        made = torch.full((self.count, 3), UNTOUCHED)
        ids, ends = torch.full((6 * self.count,), UNTOUCHED), 6 * torch.arange(self.count) + 2
        with torch.inference_mode():
            operation(self.logits, draws, number, self.first_id, made, *((ids, ends) if placed else ()))
        assert not arrived.any()
        assert (made[:, [i for i in range(3) if i != number]] == UNTOUCHED).all()
        return [made[:-1], ids, seen[:-1]]

    def agree(self, number: int = 1, placed: bool = True) -> list[Tensor]:
        made, expected = (self.run(one, number, placed) for one in (draw.fused, draw.reference))
        for ours, theirs in zip(made, expected, strict=True):
            assert torch.equal(ours, theirs)
        return made


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.lists(samplings, min_size=1, max_size=3),
    vocab=st.sampled_from([3, 64, 65, 333, 3984]),
    dtype=types,
    seed=st.integers(0, 2**31),
    number=st.integers(0, 2),
    placed=st.booleans(),
    audio_only=st.booleans(),
)
def test_draws(
    rows: list[Sampling], vocab: int, dtype: torch.dtype, seed: int, number: int, placed: bool, audio_only: bool
) -> None:
    Case(rows, vocab, vocab // 3 if audio_only else 0, dtype, seed).agree(number, placed)


@pytest.mark.parametrize(("vocab", "part"), [(1, 64), (90, 64), (700, 64), (700, 256)])
@pytest.mark.parametrize("spread", [0.01, 30.0], ids="flat peaked".split())
def test_rows_in_parts(monkeypatch: pytest.MonkeyPatch, vocab: int, part: int, spread: float) -> None:
    """Blocks of a row leave the draw to the last of them, also where a part holds fewer ids than are kept."""
    monkeypatch.setattr(draw, "PART", part)
    rows = [Sampling(), Sampling(1.0, 50, 1.0, 1.05, 1), Sampling(0.7, 64, 0.8, 1.0, 2), wide_samplings[0]]
    Case(rows, vocab, 0, torch.bfloat16, vocab + part, spread).agree()


@pytest.mark.parametrize("sampling", wide_samplings, ids=lambda one: f"k{one.top_k}_p{one.top_p:g}")
@pytest.mark.parametrize("spread", [0.1, 3.0], ids="flat usual".split())
def test_more_candidates_than_are_kept(sampling: Sampling, spread: float) -> None:
    case = Case([sampling] * 3, 500, 100, torch.bfloat16, 3, spread)
    made = case.agree()[0][:, 1]
    if spread < 1:
        assert len(set(made.tolist())) > 1


def test_a_large_vocabulary() -> None:
    """As blocks take it on a GPU: of three of them the last has seven ids."""
    rows = [Sampling(), Sampling(1.0, 50, 1.0, 1.05, 3), wide_samplings[1]]
    Case(rows, 2 * draw.PART + 7, 0, torch.bfloat16, 1).agree()


def test_equal_logits_are_drawn_in_the_order_of_their_ids() -> None:
    """All equal: the uniform number alone says which of the first k ids is meant; -0 and 0 are one logit."""
    case = Case([Sampling(1.0, 50, 1.0, 1.0, 9), Sampling()], 300, 0, torch.float32, 0)
    case.logits.zero_()
    case.logits[:, ::2] = -0.0
    case.banned[:], case.seen[:] = False, False
    made = case.agree()[0][:, 1].tolist()
    assert made == [int(uniforms(9, int(case.index[0]) + 1, 1)[0] * 50), 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_row_draws_an_id_and_leaves_the_others(bad: float) -> None:
    rows = [Sampling(1.0, 20, 0.9, 1.3, 1), Sampling(1.0, 20), wide_samplings[1], Sampling()]
    case = Case(rows, 200, 0, torch.float32, 4)
    expected = case.agree()[0]
    case.logits[1:4] = bad
    made = case.run(draw.fused)[0]
    assert made[0, 1] == expected[0, 1]
    assert ((made[1:, 1] >= 0) & (made[1:, 1] < 200)).all()


def test_a_row_draws_the_same_in_any_company() -> None:
    rows = [Sampling(1.0, 50, 0.9, 1.05, 3), wide_samplings[1], Sampling(), wide_samplings[0]]
    case = Case(rows, 600, 0, torch.bfloat16, 5)
    together = case.run(draw.fused)[0][:, 1].tolist()
    for row, expected in enumerate(together):
        case.index[:] = -1
        case.index[row] = Case(rows, 600, 0, torch.bfloat16, 5).index[row]
        assert int(case.run(draw.fused)[0][row, 1]) == expected


def test_the_check_at_the_start_of_an_engine_finds_no_fault() -> None:
    case = self_check.Case(LanguageModelConfig(700, 36, 50, 1 + 2, 6, 2, 2, 64), 64, torch.empty(0), 1, 90)
    off = frozenset(self_check.CHECKS) - {"draw"}
    assert self_check.faulty(partial(kernels, False), case, off) == off


@triton.jit
def _uniforms(seed, index, made):
    at = tl.program_id(0)
    tl.store(made + at, philox.uniform(tl.load(seed + at), tl.load(index + at)))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**40)), min_size=1, max_size=5))
def test_uniform_numbers_are_those_of_every_engine(pairs: list[tuple[int, int]]) -> None:
    seed = torch.from_numpy(np.array([one for one, _ in pairs], np.uint64).view(np.int64))
    index, made = torch.tensor([one for _, one in pairs]), torch.empty(len(pairs))
    _uniforms[(len(pairs),)](seed, index, made)
    expected = [uniforms(one, at, 1)[0] for one, at in pairs]
    assert made.tolist() == philox.reference(seed, index).tolist() == expected


def compare_many(draws: int) -> None:
    """Draws from the vocabulary of the small checkpoint, as speech is sampled, and how many differ."""
    start, differ, rows = time.perf_counter(), 0, 50
    for seed in range(draws // rows):
        case = Case([Sampling(1.0, 50, (1.0, 0.8)[seed % 2], 1.05, seed)] * rows, 3984, 0, torch.bfloat16, seed)
        made, expected = (case.run(one)[0] for one in (draw.fused, draw.reference))
        differ += int((made != expected).any(1).sum())
    print(f"{draws} draws, {differ} differ, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    compare_many(int(sys.argv[1]))
