"""Memory arithmetic: the released 7B's numbers, what is really allocated, how many streams fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.tensorrt_llm.device_state import DeviceState
from vita_audio.engines.tensorrt_llm.layout import Layout, layout_for
from vita_audio.engines.tensorrt_llm.memory import PoolSizes

RELEASED = LanguageModelConfig(168072, 3584, 18944, 38, 28, 4, 10, 8192)
TINY = LanguageModelConfig(300, 64, 96, 3 + 10, 4, 2, 10, 512)


def test_the_released_model() -> None:
    sizes = PoolSizes(RELEASED)
    assert sizes.bytes_per_token == (76 + 7) * 1024  # 76 KiB of keys and values, 7 KiB of hidden state
    assert sizes.bytes_per_block == 32 * 83 * 1024
    assert sizes.bytes_per_stream(4096) == 4096 * 83 * 1024 + 6 * 168072
    assert PoolSizes(RELEASED, kv_bytes=1).bytes_per_token == (38 + 7) * 1024
    assert PoolSizes(RELEASED, tensor_parallel=2).bytes_per_token == (38 + 7) * 1024
    eight = PoolSizes(RELEASED, tensor_parallel=8)  # 4 KV heads: each GPU keeps one
    assert eight.bytes_per_token == (19 + 7) * 1024
    assert sizes.streams_that_fit(40 * 2**30, 4096) == 123


def test_what_is_allocated_is_what_was_planned() -> None:
    layout = layout_for(TINY, slots=3, context=50, max_num_tokens=16, tokens_per_block=8)
    state = DeviceState(layout, torch.device("cpu"), torch.float32, torch.float32)
    sizes = PoolSizes(TINY, kv_bytes=4, hidden_bytes=4, tokens_per_block=8)
    assert layout.blocks == 3 * sizes.blocks(50) == 21
    assert state.pool.nbytes + state.hidden.nbytes == layout.blocks * sizes.bytes_per_block
    logits = torch.empty(layout.slots, TINY.vocab_size)
    every = state.pool.nbytes + state.hidden.nbytes + 2 * state.seen.nbytes + logits.nbytes
    assert every == layout.slots * sizes.bytes_per_stream(layout.context)


@given(available=st.integers(-1, 2**40), context=st.integers(1, 8192), kv_bytes=st.sampled_from([1, 2]))
def test_what_fits_fits_and_one_more_does_not(available: int, context: int, kv_bytes: int) -> None:
    sizes = PoolSizes(RELEASED, kv_bytes=kv_bytes)
    fit = sizes.streams_that_fit(available, context)
    assert fit * sizes.bytes_per_stream(context) <= max(available, 0) < (fit + 1) * sizes.bytes_per_stream(context)
    with pytest.raises(EngineError, match=f"{fit} fit: lower slots"):
        sizes.check_fit(fit + 1, context, available)
    if fit:
        sizes.check_fit(fit, context, available)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tokens_per_block": 24}, "tokens_per_block: 24 is not a power of two"),
        ({"max_num_tokens": 2}, "max_num_tokens: 2 is below slots 3"),
        ({"candidates": 301}, "candidates: 301 is not valid: 1 to 300"),
        ({"candidates": 100, "head_first_id": 250}, "candidates: 100 is not valid: 1 to 50"),
        (
            {"slots": 2**24, "max_num_tokens": 2**24},
            "blocks: 117440512 of 13 layers cannot be addressed by 31-bit offsets",
        ),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(change: dict[str, int], told: str) -> None:
    fields = {"slots": 3, "context": 50, "max_num_tokens": 16, "candidates": 300, "tokens_per_block": 8}
    with pytest.raises(EngineError, match=told):
        Layout(TINY, **{**fields, **change})
