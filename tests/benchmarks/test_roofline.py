"""What a GPU can do at most: against the facts, real tensors, and arithmetic by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from benchmarks import roofline
from benchmarks.roofline import BF16, FLOAT32, SIZES, Cost, Peaks, cycle_tokens, tokens_per_s, work
from vita_audio.checkpoint.random_weights.language_model import RandomLanguageModel
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.engines.torch_cuda.weights import load_weights

#: The datasheet's bandwidth, and a product as large ones come out.
H100 = Peaks(3.35e12, 700e12)
PARTS = work(SIZES["7b"], BF16)


@pytest.mark.parametrize(
    ("mode", "audio_head", "expected"),
    [
        ("vanilla", False, 233),
        ("boost", False, 630),
        ("boost", True, 730),
        ("turbo", False, 1170),
        ("turbo", True, 1770),
    ],
)
def test_prediction_gives_the_known_rooflines(mode: str, audio_head: bool, expected: float) -> None:
    """7B in bf16 on 3.35 TB/s (docs/model.md, "Physical limits")."""
    assert tokens_per_s(PARTS, mode, H100, audio_head=audio_head) == pytest.approx(expected, rel=0.015)


def test_bytes_of_the_parts() -> None:
    assert PARTS.step().moved / 1e9 == pytest.approx(14.3, rel=0.01)
    assert PARTS.module.stored / 1e9 == pytest.approx(0.52, rel=0.01)
    assert PARTS.head.stored / 1e9 == pytest.approx(1.20, rel=0.01)
    assert PARTS.audio_head.stored / 1e9 == pytest.approx(0.12, rel=0.03)
    turbo = PARTS.step(1, 11).moved + PARTS.burst(1, 11, audio_head=True).moved
    assert turbo / H100.bandwidth == pytest.approx(6.2e-3, rel=0.01)


def test_bytes_are_what_the_weights_hold() -> None:
    """Arithmetic against real tensors."""
    size, cpu = SIZES["tiny"], torch.device("cpu")
    source = RandomLanguageModel(size.config, cpu)
    for dtype, formats in ((torch.bfloat16, BF16), (torch.float32, FLOAT32)):
        weights, parts = load_weights(size.config, source, cpu, dtype), work(size, formats)

        def count(*tensors: object) -> int:
            return sum(tensor.numel() * tensor.element_size() for tensor in tree_leaves(tensors))

        assert parts.backbone.stored == count(weights.layers, weights.norm)
        assert parts.module.stored == count(weights.modules[0], weights.norm)
        assert parts.head.stored == count(weights.head)


def test_arithmetic_of_64_turbo_streams() -> None:
    """704 rows are 14 TFLOP a step, and arithmetic is the limit from there on; one stream's is memory."""
    step, burst = PARTS.step(64, 11), PARTS.burst(64, 11)
    assert (step.operations + burst.operations) / 1e12 == pytest.approx(14, rel=0.03)
    assert H100.bound(step) == H100.bound(burst) == "compute"
    assert H100.bound(PARTS.step(1, 11)) == H100.bound(PARTS.burst(1, 11)) == "memory"
    # By hand: 28 layers of 233 M weights for 704 rows, the head for 64 of them.
    layer = 3584 * (3584 + 2 * 512) + 3584 * 3584 + 3 * 3584 * 18_944
    assert step.operations == 2 * (704 * 28 * layer + 64 * 168_072 * 3584)
    assert tokens_per_s(PARTS, "turbo", H100, 64) < 40_000 < tokens_per_s(PARTS, "turbo", Peaks(3.35e12, 1e20), 64)


def test_fp8_weights_are_half_of_bf16_and_a_scale_for_each_output() -> None:
    """Everything else stays as it was: norms, biases, caches."""
    eight = work(SIZES["7b"], BF16._replace(modules="fp8", head="fp8"))
    outputs = (3584 + 2 * 512) + 3584 + 2 * 18_944 + 3584 + 3584  # q k v, output, gate and up, down, projection
    assert eight.module.stored == PARTS.module.stored - PARTS.module.weights + 4 * outputs
    assert eight.mctp_head.stored == PARTS.head.stored // 2 + 4 * 168_072
    assert (eight.backbone, eight.head, eight.cache) == (PARTS.backbone, PARTS.head, PARTS.cache)
    assert eight.burst(1, 11).operations == PARTS.burst(1, 11).operations
    everything = work(SIZES["7b"], BF16._replace(**dict.fromkeys(roofline.FP8_PARTS, "fp8")))
    assert everything.head == PARTS.head  # the backbone's stays bf16
    assert 1.8 < PARTS.step().moved / everything.step().moved < 1.9


def test_context_and_streams_cost_cache_traffic() -> None:
    more = PARTS.step(8, 1, 1000).moved - PARTS.step().moved
    assert more == 8 * 1000 * 28 * 2 * 4 * 128 * 2
    alone, eight = (tokens_per_s(PARTS, "vanilla", H100, streams, 2000) for streams in (1, 8))
    assert 7 * alone < eight < 8 * alone


@pytest.mark.parametrize("mode", NAMED_MODES)
def test_every_token_passes_the_backbone_once_and_each_module_once(mode: str) -> None:
    """A token of context costs operations for each row that attends to it."""
    cycle = PARTS.cycle(mode, 1, 0.0, False)
    longer = PARTS.cycle(mode, 1, 1.0, False)
    attended = sum(times * (b.operations - a.operations) for (a, times), (b, _) in zip(cycle, longer, strict=True))
    layers = 28 + (10 if mode != "vanilla" else 0)
    assert attended == cycle_tokens(mode) * layers * 2 * 2 * 28 * 128


@given(moved=st.floats(1, 1e13), operations=st.floats(1, 1e16))
def test_the_larger_bound_counts(moved: float, operations: float) -> None:
    cost = Cost(moved, operations)
    assert H100.seconds(cost) == max(moved / 3.35e12, operations / 700e12)
    assert (H100.bound(cost) == "memory") == (H100.seconds(cost) == moved / 3.35e12)
