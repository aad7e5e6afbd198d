"""The TensorRT-LLM engine over the reference executor: tokens of the reference engine, however streams come and go."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from generation_doubles import generate
from language_models import random_weights, request
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import BurstRow, ExtendRow, LanguageModelEngine, Sampling
from vita_audio.engines.tensorrt_llm.executor import Tensors
from vita_audio.engines.tensorrt_llm.language_model import TensorRtLlmLanguageModel
from vita_audio.engines.tensorrt_llm.layout import layout_for
from vita_audio.engines.tensorrt_llm.reference_executor import ReferenceExecutor
from vita_audio.engines.tensorrt_llm.session import SessionExecutor
from vita_audio.engines.torch.language_model import TorchLanguageModel
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.scheduler import Scheduler
from vita_audio.generation.stream import Stream

CONFIG = LanguageModelConfig(300, 32, 48, 2 + 10, 4, 2, 10, 512)
TENSORS = random_weights(CONFIG)
PATTERNS = {
    "vanilla": (8192, 0),
    "balance": (1, 4, 3, 8, 4, 10),
    "boost": (1, 10, 4, 10),
    "turbo": (1, 10),
    "odd": (2, 3, 1, 7),
}


def engine_of(
    config: LanguageModelConfig = CONFIG,
    tensors: dict[str, Tensor] = TENSORS,
    slots: int = 4,
    context: int = 160,
    max_num_tokens: int = 48,
    tokens_per_block: int = 8,
    banned: tuple[int, ...] = (),
    **limits: int,
) -> TensorRtLlmLanguageModel:
    """Small blocks and few tokens per call: streams cross blocks often, and a full step takes several calls."""
    layout = layout_for(config, slots, context, max_num_tokens, tokens_per_block=tokens_per_block, **limits)
    return TensorRtLlmLanguageModel(ReferenceExecutor(layout, tensors, banned), banned)


def run(engine: LanguageModelEngine, requests: list[GenerationRequest], chunk: int = 32, end: tuple = ()) -> list:
    return generate(engine, requests, chunk, end)


def test_golden_tokens(golden: Path) -> None:
    """All cases together in 8 slots; the conformance command also runs each alone."""
    folder = golden / "language_model" / "mctp4"
    config, tensors = load_language_model(folder)
    cases = json.loads((folder / "greedy_tokens.json").read_text())
    context = max(len(c["prompt"]) + len(c["tokens"]) for c in cases) + 1
    engine = engine_of(config, tensors, slots=8, context=context, max_num_tokens=64, tokens_per_block=4)
    requests = [
        request(c["prompt"], tuple(c["pattern"]), len(c["tokens"]), repetition_penalty=c["repetition_penalty"])
        for c in cases
    ]
    assert run(engine, requests, chunk=13) == [c["tokens"] for c in cases]


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())
def test_same_samples_as_the_reference(pattern: tuple[int, ...]) -> None:
    requests = [
        request([5, 6, 7], pattern, 40, temperature=0.9, top_k=20, top_p=0.9, seed=11),
        request([9] * 30, pattern, 40, temperature=1.3, top_p=0.7, seed=12, repetition_penalty=1.3),
        request([1, 2], pattern, 40, temperature=0.7, seed=2**64 - 1),
        request([1, 2], pattern, 40, repetition_penalty=0.8),
    ]
    expected = run(TorchLanguageModel(CONFIG, TENSORS, 4, 160), requests)
    assert run(engine_of(), requests) == expected
    assert len({tuple(tokens) for tokens in expected}) == len(requests)


def test_greedy_streams_sort_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = [request([5, 6, 7], PATTERNS["boost"], 40), request([9] * 30, (1, 10), 40, repetition_penalty=1.3)]
    sampled = request([1, 2], PATTERNS["boost"], 40, temperature=1.0, seed=3)
    expected = run(TorchLanguageModel(CONFIG, TENSORS, 4, 160), [*greedy, sampled])
    sorted_rows: list[int] = []
    topk = Tensor.topk

    def note(tensor: Tensor, count: int) -> object:
        sorted_rows.append(len(tensor))
        return topk(tensor, count)

    monkeypatch.setattr(Tensor, "topk", note)
    assert run(engine_of(), greedy) == expected[:2]
    assert sorted_rows == []
    assert run(engine_of(), [*greedy, sampled]) == expected
    assert set(sorted_rows) == {1}  # the one stream that samples, never its company


REFERENCE = TorchLanguageModel(CONFIG, TENSORS, 1, 160)
token_ids = st.integers(0, CONFIG.vocab_size - 1)
any_request = st.builds(
    request,
    prompt=st.lists(token_ids, min_size=1, max_size=70),
    pattern=st.sampled_from(list(PATTERNS.values())),
    max_tokens=st.integers(1, 45),
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
    top_k=st.sampled_from([0, 1, 50]),
    seed=st.integers(0, 2**64 - 1),
)


@settings(max_examples=10, deadline=None)
@given(
    requests=st.lists(any_request, min_size=2, max_size=6),
    delays=st.lists(st.integers(0, 6), min_size=6, max_size=6),
    cancelled=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 12)), max_size=2),
    end=st.lists(token_ids, max_size=12).map(tuple),
)
def test_in_flight_batching_equals_the_reference_alone(
    requests: list[GenerationRequest], delays: list[int], cancelled: list[tuple[int, int]], end: tuple[int, ...]
) -> None:
    """Streams of any mode that join at different steps, stop in the middle of a burst, or are cancelled, over slots
    and blocks that others have used before."""
    alone = [run(REFERENCE, [r], end=end)[0] for r in requests]
    engine = engine_of(slots=3)
    scheduler = Scheduler(engine, end, prefill_chunk=32)
    streams: list[Stream] = []
    step = 0
    cancel_at = {at: index for index, at in cancelled}

    def take_step() -> None:
        nonlocal step
        scheduler.step()
        step += 1
        if cancel_at.get(step, len(streams)) < len(streams):
            scheduler.end(streams[cancel_at[step]], "cancelled", "cancelled")

    for r, delay in zip(requests, delays, strict=False):
        streams.append(scheduler.submit("x", r))
        for _ in range(delay):
            take_step()
    while not scheduler.idle:
        take_step()
    for stream, expected in zip(streams, alone, strict=True):
        made = stream.tokens[stream.prompt_tokens :]
        assert made == expected[: len(made)]
        assert stream.state == "cancelled" or len(made) == len(expected)
    assert engine._blocks.free + sum(len(engine._blocks.owned(slot)) for slot in range(3)) == engine.layout.blocks


def test_backing_up_runs_on_from_there() -> None:
    """Rows that start before the end of the cache replace what was there, and give back blocks behind them."""
    engine = engine_of(slots=2)
    for slot in (0, 1):
        engine.begin(slot, Sampling())
    prompt, other = list(range(40, 70)), [7, 8, 9]
    engine.extend([ExtendRow(0, 0, prompt, 0), ExtendRow(1, 0, prompt[:10] + other, 0)])
    assert len(engine._blocks.owned(0)) == 4
    first, second = engine.extend([ExtendRow(0, 10, other, 0), ExtendRow(1, 10, other, 0)])
    assert first is not None
    assert first == second
    assert len(engine._blocks.owned(0)) == 2
    bursts = engine.burst([BurstRow(s, 0, 13, [*prompt[1:10], *other, first], 10, 1) for s in (0, 1)])
    assert bursts[0] == bursts[1]
    again = engine.burst([BurstRow(0, 5, 13, [*prompt[6:10], *other, first], 4, 1)])
    assert again == [bursts[1][:4]]


@pytest.mark.parametrize("first_id", [0, 200])
def test_audio_only_head_and_banned_ids(first_id: int) -> None:
    """A head cut to the ids from `first_id` on draws as the full one does, when nothing before them may come out."""
    banned = tuple(i for i in range(CONFIG.vocab_size) if i < 200 or i % 3)
    requests = [request([1, 2, 3], (1, 10), 30, temperature=2.0, top_p=0.9, seed=s) for s in range(2)]
    requests.append(request([4], (1, 4, 3, 8), 30, repetition_penalty=1.4))
    made = run(engine_of(banned=banned, head_first_id=first_id), requests)
    assert made == run(TorchLanguageModel(CONFIG, TENSORS, 4, 160, banned), requests)
    assert all(token % 3 == 0 and token >= 200 for tokens in made for token in tokens)


def test_top_k_is_cut_to_the_candidates_of_the_engine() -> None:
    def ask(top_k: int) -> list[GenerationRequest]:
        return [request([1, 2], (1, 10), 40, temperature=1.5, top_k=top_k, seed=3)]

    reference = TorchLanguageModel(CONFIG, TENSORS, 4, 160)
    limited = engine_of(candidates=12)
    assert run(limited, ask(0)) == run(limited, ask(200)) == run(reference, ask(12)) != run(reference, ask(0))
    assert run(limited, ask(5)) == run(reference, ask(5))


@pytest.mark.parametrize(
    "config",
    [
        LanguageModelConfig(97, 40, 56, 1 + 1, 5, 1, 1, 64),  # one layer, one module
        LanguageModelConfig(64, 60, 64, 4, 6, 3, 0, 64, rms_norm_eps=1e-5, rope_theta=1e4),  # K = 0
        LanguageModelConfig(64, 32, 64, 2 + 2, 4, 4, 2, 64, tie_word_embeddings=True),
    ],
    ids=["tiny", "no_mctp", "tied"],
)
def test_other_sizes(config: LanguageModelConfig) -> None:
    tensors = random_weights(config, seed=3)
    modules = config.mctp_modules
    pattern = (1, modules, 2, max(0, modules - 1))
    requests = [request([3, 1, 4, 1, 5], pattern, 30), request([9, 2], (8192, 0), 30, temperature=1.0, seed=5)]
    engine = engine_of(config, tensors, slots=2, context=64)
    assert run(engine, requests, 16) == run(TorchLanguageModel(config, tensors, 2, 64), requests, 16)


class Corrupted:
    """An executor whose inputs have been tampered with on the way."""

    def __init__(self, inner: ReferenceExecutor, change: Callable[[str, dict[str, Tensor]], None]) -> None:
        self.inner, self.change, self.layout = inner, change, inner.layout
        self.device, self.hidden_dtype, self.kv_dtype = inner.device, inner.hidden_dtype, inner.kv_dtype
        self.stream = inner.stream

    def _tampered(self, engine: str, inputs: Tensors) -> dict[str, Tensor]:
        copies = {name: tensor.clone() for name, tensor in inputs.items()}
        self.change(engine, copies)
        return copies

    def backbone(self, inputs: Tensors) -> tuple[Tensor, Tensor]:
        return self.inner.backbone(self._tampered("backbone", inputs))

    def mctp(self, inputs: Tensors) -> Tensor:
        return self.inner.mctp(self._tampered("mctp", inputs))


def add(name: str, amount: int, engine: str | None = None) -> Callable[[str, dict[str, Tensor]], None]:
    def change(at: str, inputs: dict[str, Tensor]) -> None:
        if engine in (None, at):
            inputs[name] += amount

    return change


def swap_streams(at: str, inputs: dict[str, Tensor]) -> None:
    inputs["kv_cache_block_offsets"] = inputs["kv_cache_block_offsets"].flip(1)


def swap_keys_and_values(at: str, inputs: dict[str, Tensor]) -> None:
    if 1 in inputs["host_request_types"]:  # decode steps alone: exchanged for good they would do no harm
        inputs["kv_cache_block_offsets"] = inputs["kv_cache_block_offsets"].flip(2)


def cascade_over_the_backbone(at: str, inputs: dict[str, Tensor]) -> None:
    if at == "mctp":
        inputs["host_kv_cache_pool_mapping"][:, 1] -= CONFIG.backbone_layers


def unshifted(at: str, inputs: dict[str, Tensor]) -> None:
    if at == "mctp":
        inputs["shift_index"] = torch.arange(len(inputs["shift_index"]))


def unforced(at: str, inputs: dict[str, Tensor]) -> None:
    if at == "mctp":
        inputs["forced_tokens"].fill_(-1)


def never_drawn(at: str, inputs: dict[str, Tensor]) -> None:
    if at == "mctp":
        inputs["token_rows"] = torch.arange(len(inputs["token_rows"]))


def generation_first(at: str, inputs: dict[str, Tensor]) -> None:
    inputs["host_request_types"] = inputs["host_request_types"].flip(0)


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (add("input_ids", -1), ""),
        (add("last_token_ids", -1, "mctp"), ""),
        (add("sequence_length", 1), "lengths contradict"),
        (add("host_past_key_value_lengths", 1), "lengths contradict"),
        (add("host_context_lengths", 1), "lengths contradict"),
        (generation_first, "context rows .* come before"),
        (swap_streams, ""),
        (swap_keys_and_values, ""),
        (cascade_over_the_backbone, ""),
        (unshifted, ""),
        (unforced, ""),
        (add("top_k", 5, "mctp"), ""),
        (never_drawn, ""),
        (add("seen", True, "mctp"), ""),
    ],
)
def test_the_reference_executor_notices_wrong_metadata(
    change: Callable[[str, dict[str, Tensor]], None], refused: str
) -> None:
    """Otherwise its equality with the reference would say nothing about the packer."""
    layout = layout_for(CONFIG, 2, 120, 64, tokens_per_block=8)
    requests = [
        request(list(range(10, 60)), (1, 4, 3, 8), 40, temperature=0.8, top_k=6, seed=1),
        request([3, 4], (1, 4, 3, 8), 40, repetition_penalty=1.3),
    ]
    engine = TensorRtLlmLanguageModel(Corrupted(ReferenceExecutor(layout, TENSORS), change))
    expected = run(TorchLanguageModel(CONFIG, TENSORS, 2, 120), requests, 16)
    if refused:
        with pytest.raises(EngineError, match=refused):
            run(engine, requests, 16)
    else:
        assert run(engine, requests, 16) != expected


LAYOUT = layout_for(CONFIG, 8, 1024, 256, tokens_per_block=32)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_llm") is not None, reason="tensorrt_llm is installed")
def test_without_tensorrt_llm_the_session_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"tensorrt_llm 1\.2\.1 is not installed.*container"):
        SessionExecutor(tmp_path, LAYOUT)
