"""Packer: every tensor of a step, for any batch, against a plain row-by-row account; and their trip through staging."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import BurstRow, ExtendRow, Sampling
from vita_audio.engines.sampling import uniforms
from vita_audio.engines.tensorrt_llm.block_manager import BlockManager
from vita_audio.engines.tensorrt_llm.layout import Layout, layout_for
from vita_audio.engines.tensorrt_llm.packer import PackedStep, Packer
from vita_audio.engines.tensorrt_llm.staging import Staging
from vita_audio.engines.tensorrt_llm.tensors import BACKBONE_STEP, DECODER, MCTP_STEP, check_arrays

CONFIG = LanguageModelConfig(300, 64, 96, 3 + 4, 4, 2, 4, 512)
SLOTS, CONTEXT, SIZE, K = 5, 60, 8, CONFIG.mctp_modules
POINTER = 0x7F00_0000_1000


def sizes(layout: Layout, streams: int, tokens: int, layers: int, draws: int, sampled: int = 0) -> dict[str, int]:
    return {
        "streams": streams,
        "sampled": sampled,
        "tokens": tokens,
        "layers": layers,
        "draws": draws,
        "modules": K,
        "blocks": layout.blocks_per_slot,
        "context": CONTEXT,
    }


def make(max_num_tokens: int = 200, candidates: int | None = None) -> tuple[Layout, BlockManager, Packer]:
    layout = layout_for(CONFIG, SLOTS, CONTEXT, max_num_tokens, candidates, tokens_per_block=SIZE)
    blocks = BlockManager(SLOTS, layout.blocks, SIZE, layout.blocks_per_slot)
    return layout, blocks, Packer(layout, blocks, POINTER)


def grow_unevenly(blocks: BlockManager, stops: dict[int, int]) -> None:
    """Block by block in turn, so that no table is a run of neighbours."""
    for tokens in range(SIZE, CONTEXT + SIZE, SIZE):
        for slot, stop in stops.items():
            blocks.resize(slot, min(tokens, stop))


token = st.integers(0, CONFIG.vocab_size - 1)
slots = st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=SLOTS, unique=True)


@st.composite
def extend_rows(draw: st.DrawFn) -> list[ExtendRow]:
    rows = []
    for slot in draw(slots):
        decode = draw(st.booleans())
        count = 1 if decode else draw(st.integers(1, 20))
        start = draw(st.integers(1 if decode else 0, CONTEXT - count))
        index = draw(st.integers(1, 99)) if decode else draw(st.sampled_from([None, 0, 1, 50]))
        rows.append(ExtendRow(slot, start, draw(st.lists(token, min_size=count, max_size=count)), index))
    return rows


@st.composite
def burst_rows(draw: st.DrawFn) -> list[BurstRow]:
    rows = []
    for slot in draw(slots):
        count = draw(st.integers(1, 20))
        start = draw(st.integers(0, CONTEXT - count))
        index = draw(st.sampled_from([None, 1, 40]))
        known = count if index is not None else count + K - 1
        tokens = draw(st.lists(token, min_size=known, max_size=known))
        rows.append(BurstRow(slot, start, start + count, tokens, 0 if index is None else K, index))
    return rows


def check_decoder(
    step: PackedStep, layout: Layout, blocks: BlockManager, rows: list[tuple[int, int, list[int], bool, int]]
) -> None:
    """`rows`: (slot, start, new tokens, generation phase, context_lengths) in the order of the batch."""
    a, first = step.arrays, 0
    types = a["host_request_types"].tolist()
    assert types == sorted(types)  # context phase first
    for b, (slot, start, tokens, generation, length) in enumerate(rows):
        stop, end = start + len(tokens), first + len(tokens)
        assert types[b] == int(generation)
        assert a["slots"][b] == slot
        assert a["input_ids"][first:end].tolist() == tokens
        assert a["position_ids"][first:end].tolist() == list(range(start, stop))
        assert a["last_token_ids"][b] == end
        assert a["context_lengths"][b] == a["host_context_lengths"][b] == length
        assert a["sequence_length"][b] == stop
        assert a["host_past_key_value_lengths"][b] == (start if generation else stop)
        assert a["seen_index"][first:end].tolist() == [slot * CONFIG.vocab_size + t for t in tokens]
        owned = blocks.owned(slot)
        for field in (0, 1):
            offsets = a["kv_cache_block_offsets"][0, b, field, : len(owned)].tolist()
            assert offsets == [block * layout.pool_layers * 2 + field for block in owned]
        places = [(owned[p // SIZE], p % SIZE) for p in range(start, stop)]
        assert a["hidden_rows"][first:end].tolist() == [block * SIZE + within for block, within in places]
        first = end
    assert first == len(a["input_ids"])
    assert (a["host_kv_cache_block_offsets"] == a["kv_cache_block_offsets"]).all()
    assert len(set(a["hidden_rows"].tolist())) == first  # no two tokens of a step share a place


@settings(max_examples=60, deadline=None)
@given(rows=extend_rows(), prompt=st.integers(1, CONTEXT))
def test_backbone_step(rows: list[ExtendRow], prompt: int) -> None:
    layout, blocks, packer = make()
    grow_unevenly(blocks, {row.slot: max(prompt, row.start + len(row.tokens)) for row in rows})
    for row in rows:
        packer.begin(row.slot, Sampling(seed=row.slot))
        if row.index:  # its prompt was read in an earlier step
            packer.extend([ExtendRow(row.slot, 0, [1] * prompt, 0)])
    step = packer.extend(rows)
    tokens = sum(len(row.tokens) for row in rows)
    check_arrays(step.arrays, BACKBONE_STEP, sizes(layout, len(rows), tokens, CONFIG.backbone_layers, 1))
    assert sorted(step.order) == list(range(len(rows)))
    expected = []
    for row in (rows[i] for i in step.order):
        generation = len(row.tokens) == 1 and row.index not in (None, 0)
        length = prompt if generation else len(row.tokens)
        expected.append((row.slot, row.start, list(row.tokens), generation, length))
    check_decoder(step, layout, blocks, expected)
    assert step.samples == any(row.index is not None for row in rows)


@settings(max_examples=60, deadline=None)
@given(rows=burst_rows())
def test_mctp_step(rows: list[BurstRow]) -> None:
    layout, blocks, packer = make()
    grow_unevenly(blocks, {row.slot: row.stop for row in rows})
    for row in rows:
        packer.begin(row.slot, Sampling())
    step = packer.burst(rows)
    counts = [row.stop - row.start for row in rows]
    check_arrays(step.arrays, MCTP_STEP, sizes(layout, len(rows), sum(counts), K, K))
    assert step.order == list(range(len(rows)))
    expected = [(row.slot, row.start, list(row.tokens[:n]), False, n) for row, n in zip(rows, counts, strict=True)]
    check_decoder(step, layout, blocks, expected)
    # The cascade as the engine does it: each module reads its ids, then they move up by one and take a new token.
    ids, forced = step.arrays["input_ids"], step.arrays["forced_tokens"]
    known = [list(row.tokens) for row in rows]
    for k in range(K):
        windows = [tokens[k : k + n] for tokens, n in zip(known, counts, strict=True)]
        assert ids.tolist() == [t for window in windows for t in window]
        new = np.array([1000 + 10 * b + k for b in range(len(rows))])  # what a module would have sampled
        new = np.where(forced[:, k] >= 0, forced[:, k], new)
        for row, tokens, n, drawn in zip(rows, known, counts, new.tolist(), strict=True):
            if row.index is not None:
                assert drawn >= 1000  # a sampling burst is never told what to say
            if len(tokens) <= n + k:
                tokens.append(drawn)
        ids = np.concatenate([ids, new])[step.arrays["shift_index"]]


def test_by_hand() -> None:
    """One step with a decode, a prefill chunk and a catch-up, written out as in docs/tensorrt_llm.md 3.2."""
    _, blocks, packer = make()
    for slot in range(3):
        packer.begin(slot, Sampling())
    grow_unevenly(blocks, {0: 21, 1: 5, 2: 14})  # blocks 0 1 2 go to slots 0 1 2, then 3 4 to 0 2, then 5 to 0
    packer.extend([ExtendRow(0, 0, [7] * 6, 0)])
    step = packer.extend(
        [ExtendRow(0, 20, [50], 9), ExtendRow(1, 0, [1, 2, 3, 4, 5], None), ExtendRow(2, 11, [60, 61, 62], 4)]
    )
    expected = {
        "input_ids": [1, 2, 3, 4, 5, 60, 61, 62, 50],
        "position_ids": [0, 1, 2, 3, 4, 11, 12, 13, 20],
        "last_token_ids": [5, 8, 9],
        "host_request_types": [0, 0, 1],
        "context_lengths": [5, 3, 6],
        "host_context_lengths": [5, 3, 6],
        "sequence_length": [5, 14, 21],
        "host_past_key_value_lengths": [5, 14, 20],
        "slots": [1, 2, 0],
    }
    assert {name: step.arrays[name].tolist() for name in expected} == expected
    assert step.order == [1, 2, 0]
    keys = step.arrays["kv_cache_block_offsets"][0, :, 0]
    assert keys[:, :3].tolist() == [[1 * 14, 0, 0], [2 * 14, 4 * 14, 0], [0, 3 * 14, 5 * 14]]
    assert step.arrays["hidden_rows"].tolist() == [8, 9, 10, 11, 12, 35, 36, 37, 44]


def test_constants() -> None:
    layout, _, packer = make()
    backbone, mctp = packer.backbone_constants, packer.mctp_constants
    assert set(backbone) == set(mctp) == {name for name, spec in DECODER.items() if spec.constant}
    assert backbone["host_kv_cache_pool_mapping"].tolist() == [[0, 0], [0, 1], [0, 2]]
    assert mctp["host_kv_cache_pool_mapping"].tolist() == [[0, 3], [0, 4], [0, 5], [0, 6]]
    assert backbone["host_kv_cache_pool_pointers"].tolist() == [[POINTER, 0]]
    assert backbone["host_max_attention_window_sizes"].tolist() == [CONTEXT] * 3
    assert backbone["host_runtime_perf_knobs"].tolist() == [1, 1] + [-1] * 14
    assert backbone["cache_indirection"].shape == (layout.slots, 1, CONTEXT)


@settings(max_examples=40, deadline=None)
@given(
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    top_k=st.integers(0, 60),
    seed=st.integers(0, 2**64 - 1),
    index=st.integers(1, 999),
)
def test_how_a_row_samples(temperature: float, top_k: int, seed: int, index: int) -> None:
    _, blocks, packer = make(candidates=40)
    blocks.resize(3, 30)
    packer.begin(3, Sampling(temperature, top_k, 0.9, 1.05, seed))
    a = packer.burst([BurstRow(3, 20, 22, [5, 6], 2, index)]).arrays
    assert a["penalty"].tolist() == [np.float32(1.05)]
    if temperature == 0 or top_k == 1:
        expected: dict[str, list] = {"token_rows": [0], "sampled_rows": [], "top_k": [], "inv_temp": [], "uniform": []}
    else:
        expected = {"token_rows": [1], "sampled_rows": [0], "top_k": [min(top_k or 40, 40)]}
        expected |= {"inv_temp": [np.float32(1 / temperature)], "top_p": [np.float32(0.9)]}
        expected["uniform"] = [uniforms(seed, index, K).tolist()]
    assert {name: a[name].tolist() for name in expected} == expected
    one = packer.extend([ExtendRow(3, 22, [7], index)]).arrays
    assert one["uniform"].tolist() == a["uniform"][:, :1].tolist()
    chunk = packer.extend([ExtendRow(3, 22, [7], None)])
    assert not chunk.samples
    assert chunk.arrays["uniform"].shape == (0, 1)


def test_rows_that_sample_among_others() -> None:
    """Rows of one step in another order than the caller's: which of them sample, and where each finds its token."""
    _, blocks, packer = make()
    for slot, temperature in enumerate((0.5, 0.0, 2.0, 1.0)):
        blocks.resize(slot, 30)
        packer.begin(slot, Sampling(temperature, seed=slot))
    rows = [ExtendRow(0, 20, [5], 9), *(ExtendRow(slot, 20, [5, 6], 9) for slot in (1, 2)), ExtendRow(3, 0, [1], None)]
    step = packer.extend(rows)
    assert step.order == [1, 2, 3, 0]  # greedy, sampling, a prefill chunk, sampling
    expected = {"sampled_rows": [1, 3], "token_rows": [0, 4, 2, 5], "inv_temp": [0.5, 2.0]}
    assert {name: step.arrays[name].tolist() for name in expected} == expected
    assert step.arrays["uniform"].tolist() == [uniforms(seed, 9, 1).tolist() for seed in (2, 0)]


def test_rows_that_fit_nothing_are_refused() -> None:
    _, blocks, packer = make(max_num_tokens=12)
    blocks.resize(0, CONTEXT)
    with pytest.raises(EngineError, match=r"slot 0: positions \[58, 61\).*context 60"):
        packer.extend([ExtendRow(0, 58, [1, 2, 3], None)])
    with pytest.raises(EngineError, match=r"13 tokens in one call.*max_num_tokens 12"):
        packer.extend([ExtendRow(0, 0, [1] * 13, None)])
    with pytest.raises(EngineError, match=r"13 rows in one call.*max_num_tokens 12"):
        packer.burst([BurstRow(0, 0, 13, [1] * 13, 4, 1)])
    with pytest.raises(EngineError, match=r"slot 0 has 3 tokens for rows \[4, 6\), must have 2"):
        packer.burst([BurstRow(0, 4, 6, [1, 2, 3], 4, 1)])
    with pytest.raises(EngineError, match="must have 5"):
        packer.burst([BurstRow(0, 4, 6, [1, 2], 0, None)])


@settings(max_examples=20, deadline=None)
@given(batches=st.lists(burst_rows(), min_size=1, max_size=5))
def test_staging_gives_back_every_tensor(batches: list[list[BurstRow]]) -> None:
    """More steps than pinned buffers, of any size up to the largest, one after the other in the same memory."""
    layout, blocks, packer = make(max_num_tokens=SLOTS * 20)
    largest = sizes(layout, SLOTS, layout.max_num_tokens, K, K, sampled=SLOTS)
    staging = Staging(MCTP_STEP, largest, packer.mctp_constants, torch.device("cpu"), depth=2)
    for slot in range(SLOTS):
        blocks.resize(slot, CONTEXT)
        packer.begin(slot, Sampling(temperature=float(slot > 1), seed=slot))
    for rows in batches:
        arrays = packer.burst(rows).arrays
        tensors = staging.put(arrays)
        assert set(tensors) == set(arrays)
        for name, array in arrays.items():
            assert np.array_equal(tensors[name].numpy(), array), name  # without rows that sample, some are empty
            assert tensors[name].numpy().dtype == array.dtype
            assert tensors[name].is_contiguous(), name


def test_staging_names_what_does_not_fit() -> None:
    layout, blocks, packer = make()
    blocks.resize(0, CONTEXT)
    packer.begin(0, Sampling())
    largest = sizes(layout, SLOTS, layout.max_num_tokens, CONFIG.backbone_layers, 1, sampled=SLOTS)
    staging = Staging(BACKBONE_STEP, largest, packer.backbone_constants, torch.device("cpu"))
    arrays = packer.extend([ExtendRow(0, 0, [1, 2, 3], None)]).arrays
    arrays["position_ids"] = arrays["position_ids"].astype(np.int64)
    arrays["slots"] = np.zeros(2, np.int64)
    arrays["extra"] = arrays.pop("top_p")
    with pytest.raises(EngineError) as error:
        staging.put(arrays)
    for fault in ("position_ids is int64 [3], must be int32 [3]", "slots is int64 [2]", "top_p is missing", "extra is"):
        assert fault in str(error.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_steps_enqueued_without_waiting_keep_their_own_tensors() -> None:
    """Not run on a GPU yet. Many more steps in flight than pinned buffers, the device kept busy."""
    layout, blocks, packer = make()
    blocks.resize(0, CONTEXT)
    packer.begin(0, Sampling())
    largest = sizes(layout, SLOTS, layout.max_num_tokens, CONFIG.backbone_layers, 1, sampled=SLOTS)
    stream, kept = torch.cuda.Stream(), []
    with torch.cuda.stream(stream):
        staging = Staging(BACKBONE_STEP, largest, packer.backbone_constants, torch.device("cuda"))
        busy = torch.rand(2048, 2048, device="cuda")
        for step in range(50):
            busy = (busy @ busy).softmax(1)
            tensors = staging.put(packer.extend([ExtendRow(0, 0, [step, step + 1], None)]).arrays)
            kept.append(tensors["input_ids"].clone())
    assert [ids.tolist() for ids in kept] == [[step, step + 1] for step in range(50)]
