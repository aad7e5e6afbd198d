"""The sampler of the PyTorch engines against a plain account of one row, and the two ways to call it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_audio.engines.interface import Sampling
from vita_audio.engines.torch.sampler import BANNED_LOGIT, NARROW, SamplingTable, candidates, draw, draw_some

IDS = 90
CPU = torch.device("cpu")


def by_hand(logits: Sequence[float], seen: set[int], banned: set[int], sampling: Sampling, uniform: float) -> int:
    """One row, in Python floats, in the order of Hugging Face's processors."""
    values = [BANNED_LOGIT if i in banned else value for i, value in enumerate(logits)]
    penalty = sampling.repetition_penalty
    values = [(v * penalty if v < 0 else v / penalty) if i in seen else v for i, v in enumerate(values)]
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    if sampling.greedy:
        return order[0]
    order = order[: sampling.top_k or len(values)]
    weights = [math.exp((values[i] - values[order[0]]) / sampling.temperature) for i in order]
    total, before, kept = sum(weights), 0.0, []
    for weight in weights:
        kept.append(weight if before / total < sampling.top_p else 0.0)
        before += weight
    target, passed = uniform * sum(kept), 0.0
    for i, weight in zip(order, kept, strict=True):
        passed += weight
        if passed > target:
            return i
    raise AssertionError("uniform is below 1")


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 50, 64, 80]),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.3]),
)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(samplings, min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
    uniforms=st.lists(st.sampled_from([0.0, 0.123, 0.5, 0.77, 0.99]), min_size=5, max_size=5),
)
def test_batches_draw_as_rows_by_hand(rows: list[Sampling], seed: int, uniforms: list[float]) -> None:
    """`draw` sorts all rows, `draw_some` those that sample: both choose, row by row, what the account chooses."""
    generator = torch.Generator().manual_seed(seed)
    count = len(rows)
    logits = torch.randn(count, IDS, generator=generator) * 3
    seen = torch.rand(count, IDS, generator=generator) < 0.2
    banned = torch.rand(IDS, generator=generator) < 0.2
    table = SamplingTable.create(count, CPU)
    for slot, sampling in enumerate(rows):
        table.put(slot, sampling, IDS)
    uniform = torch.tensor(uniforms[:count])
    width = max(candidates(sampling, IDS) for sampling in rows)
    made = draw(logits, seen, banned, table.rows(torch.arange(count)), uniform, width).tolist()

    sampled = [i for i, sampling in enumerate(rows) if not sampling.greedy]
    token_rows = torch.arange(count, dtype=torch.int32)
    token_rows[sampled] = count + torch.arange(len(sampled), dtype=torch.int32)
    some = torch.tensor(sampled, dtype=torch.int32)
    of = table.rows(some.long())
    packed = {"penalty": table.penalty, "token_rows": token_rows, "sampled_rows": some}
    packed |= {"inv_temp": of.inv_temperature, "top_k": of.top_k, "top_p": of.top_p}
    assert made == draw_some(logits, seen, banned, packed, uniform[some.long()], IDS).tolist()

    for i, sampling in enumerate(rows):
        known = {j for j in range(IDS) if seen[i, j]}, {j for j in range(IDS) if banned[j]}
        assert made[i] == by_hand(logits[i].tolist(), *known, sampling, uniforms[i])


def test_a_row_draws_the_same_beside_one_that_sorts_every_id() -> None:
    """Many logits are equal, as those of bfloat16 are; which of them a sort puts first depends on its width."""
    ids, count = 4000, 64
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(count, ids, generator=generator) * 3).bfloat16().float()
    none, uniform = torch.zeros(ids, dtype=torch.bool), torch.rand(count, generator=generator)
    table = SamplingTable.create(count, CPU)
    for slot in range(count):
        table.put(slot, Sampling(temperature=1.0, top_k=50 if slot % 2 else 0), ids)
    together = draw(logits, none.expand(count, ids), none, table, uniform, ids).tolist()
    for i in range(count):
        row, width = slice(i, i + 1), NARROW if i % 2 else ids
        alone = draw(logits[row], none[None], none, SamplingTable(*(x[row] for x in table)), uniform[row], width)
        assert together[i] == int(alone)


@given(samplings)
def test_few_widths_cover_every_request(sampling: Sampling) -> None:
    width = candidates(sampling, IDS)
    assert width in (1, NARROW, IDS)
    assert sampling.greedy or (sampling.top_k or IDS) <= width


def test_a_draw_just_below_one_takes_the_last_candidate_with_mass() -> None:
    table = SamplingTable.create(1, CPU)
    table.put(0, Sampling(temperature=1.0, top_k=2), 4)
    logits, none = torch.tensor([[0.0, 5.0, 5.0, -1.0]]), torch.zeros(4, dtype=torch.bool)
    made = draw(logits, none[None], none, table, torch.tensor([1.0]), 4)
    assert int(made) in (1, 2)


@pytest.mark.parametrize("width", [1, 20, 300])
def test_padding_may_hold_anything(width: int) -> None:
    """Rows that no stream reads may be NaN (memory as it was found): their draws still index what is there.

    Seen on a GPU: in bfloat16 a warm-up drew index -1, and the device ended the process.
    """
    table = SamplingTable.create(2, torch.device("cpu"))
    table.put(0, Sampling(temperature=1.0, top_k=20, top_p=0.9), 300)
    logits = torch.full((2, 300), torch.nan)
    logits[1] = torch.arange(300.0)
    seen, banned = torch.zeros(2, 300, dtype=torch.bool), torch.zeros(300, dtype=torch.bool)
    rows = table.rows(torch.tensor([0, 1]))
    made = draw(logits, seen, banned, rows, torch.tensor([0.5, 0.5]), width)
    assert 0 <= int(made[0]) < 300
    assert int(made[1]) == 299
