"""The fixed-shape engine on the CPU: everything but the capture itself, against the reference (the golden tokens:
tests/generation/test_engines.py)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generation_doubles import generate
from language_models import random_weights, request
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.engines.interface import BurstRow, ExtendRow, Sampling
from vita_audio.engines.torch.language_model import TorchLanguageModel
from vita_audio.engines.torch_cuda import engine as engine_module
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.shapes import Limits, power_of_two, prepared_shapes, round_rows, round_stream_rows
from vita_audio.engines.torch_cuda.weights import load_weights
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.scheduler import Scheduler

CONFIG = LanguageModelConfig(300, 64, 96, 3 + 10, 4, 2, 10, 512)
TENSORS = random_weights(CONFIG)
PATTERNS = {**NAMED_MODES, "odd": (2, 3, 1, 7)}
SEVEN_B = LanguageModelConfig(168072, 3584, 18944, 28 + 10, 28, 4, 10, 32768)


def make(
    config: LanguageModelConfig = CONFIG,
    tensors: dict[str, torch.Tensor] = TENSORS,
    slots: int = 4,
    context: int = 256,
    banned: list[int] | None = None,
    **options: object,
) -> TorchCudaLanguageModel:
    weights = load_weights(config, tensors, torch.device("cpu"), torch.float32)
    return TorchCudaLanguageModel(config, weights, Settings(slots, context, **options), banned or [])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine() -> TorchCudaLanguageModel:
    return make()


def mixed_requests(pattern: tuple[int, ...]) -> list[GenerationRequest]:
    return [
        request([5, 6, 7], pattern, 50, temperature=0.9, top_k=20, top_p=0.9, seed=11),
        request([9] * 90, pattern, 50, temperature=1.3, top_p=0.7, seed=12, repetition_penalty=1.3),
        request([1, 2], pattern, 50, temperature=0.7, seed=2**64 - 1),
        request([1, 2], pattern, 50, repetition_penalty=0.8),
    ]


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())
def test_samples_as_the_reference(engine: TorchCudaLanguageModel, pattern: tuple[int, ...]) -> None:
    requests = mixed_requests(pattern)
    expected = generate(TorchLanguageModel(CONFIG, TENSORS, 4, 256), requests)
    assert generate(engine, requests) == expected
    assert len({tuple(tokens) for tokens in expected}) == len(requests)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_batched_equals_single(engine: TorchCudaLanguageModel, data: st.DataObject) -> None:
    """Streams of any mode, length and sampling that join, leave and are cancelled at different steps."""
    one = st.builds(
        request,
        prompt=st.lists(st.integers(0, CONFIG.vocab_size - 1), min_size=1, max_size=90),
        pattern=st.sampled_from(list(PATTERNS.values())),
        max_tokens=st.integers(1, 40),
        temperature=st.sampled_from([0.0, 1.0]),
        top_k=st.sampled_from([0, 1, 50]),
        seed=st.integers(0, 2**64 - 1),
    )
    requests = data.draw(st.lists(one, min_size=2, max_size=6))
    delays = data.draw(st.lists(st.integers(0, 6), min_size=len(requests), max_size=len(requests)))
    cancelled = data.draw(st.sets(st.integers(0, len(requests) - 1), max_size=2))
    scheduler = Scheduler(engine, (), prefill_chunk=32)
    streams = []
    for number, (r, delay) in enumerate(zip(requests, delays, strict=True)):
        streams.append(scheduler.submit("x", r))
        for _ in range(delay):
            scheduler.step()
        if number in cancelled and not streams[-1].ended:
            scheduler.end(streams[-1], "cancelled", "test")
    while not scheduler.idle:
        scheduler.step()
    for r, stream in zip(requests, streams, strict=True):
        made = stream.tokens[stream.prompt_tokens :]
        assert made == generate(engine, [r], chunk=32)[0][: len(made)]


def test_a_shorter_burst_is_run_again(engine: TorchCudaLanguageModel) -> None:
    """Rewind: after committing n < K tokens of a burst, the same rows with more committed give what one burst gives."""
    reference = TorchLanguageModel(CONFIG, TENSORS, 4, 256)
    for commit in (1, 4, 9):
        made = []
        for one in (engine, reference):
            one.begin(2, Sampling(temperature=1.0, top_k=30, seed=5, repetition_penalty=1.2))
            (token,) = one.extend([ExtendRow(2, 0, [4, 8, 15], 0)])
            assert token is not None
            (first,) = one.burst([BurstRow(2, 0, 3, [8, 15, token], commit, 1)])
            (again,) = one.burst([BurstRow(2, 0, 3, [8, 15, token], 10, 1)])
            made.append((token, first, again))
            one.release(2)
        assert made[0] == made[1]
        assert len(made[0][1]) == commit


@pytest.mark.parametrize(
    "config",
    [
        LanguageModelConfig(97, 40, 56, 1 + 1, 5, 1, 1, 64),  # one layer, one module, head 8
        LanguageModelConfig(64, 60, 64, 4, 6, 3, 0, 64, rms_norm_eps=1e-5, rope_theta=1e4),  # K = 0, head 10
        LanguageModelConfig(64, 32, 64, 2 + 2, 4, 4, 2, 64, tie_word_embeddings=True),
    ],
    ids=["tiny", "no_mctp", "tied"],
)
def test_other_sizes(config: LanguageModelConfig) -> None:
    tensors, modules = random_weights(config, seed=3), config.mctp_modules
    pattern = (1, modules, 2, max(0, modules - 1))
    requests = [request([3, 1, 4, 1, 5], pattern, 30), request([9, 2], (8192, 0), 30, temperature=1.0, seed=5)]
    made = generate(make(config, tensors, 2, 64), requests, chunk=16)
    assert made == generate(TorchLanguageModel(config, tensors, 2, 64), requests, chunk=16)


def test_long_prompts_are_cut(monkeypatch: pytest.MonkeyPatch, engine: TorchCudaLanguageModel) -> None:
    requests = [request(list(range(150)), (1, 10), 30), request(list(range(99, 20, -1)), (8192, 0), 10)]
    longest: list[int] = []  # rows of one stream in each call
    shape_of = engine._shape

    def note(spans: np.ndarray, *arguments: Any, **named: Any) -> Any:
        longest.append(int((spans[:, 2] - spans[:, 1]).max()))
        return shape_of(spans, *arguments, **named)

    monkeypatch.setattr(engine, "_shape", note)
    expected = generate(engine, requests, chunk=200)
    assert max(longest) == 150
    longest.clear()
    monkeypatch.setattr(engine_module, "MAX_STREAM_ROWS", 24)
    assert generate(engine, requests, chunk=200) == expected
    assert max(longest) == 24


def test_audio_only_head_equals_banning_the_text() -> None:
    """Sliced to the ids from 120 on, MCTP modules say what the full head says when all others are forbidden to it."""
    text = list(range(120))
    requests = mixed_requests((1, 10))
    made = generate(make(banned=text, first_mctp_id=120), requests)
    assert made == generate(make(banned=text), requests)
    free = generate(make(first_mctp_id=120), requests)
    assert all(token >= 120 for tokens in free for i, token in enumerate(tokens) if i % 11)
    assert any(token < 120 for tokens in free for token in tokens[::11])


def test_padding_changes_nothing_a_stream_owns() -> None:
    """What capturing relies on: every program, run on neutral inputs, leaves caches, hidden states and seen ids."""
    engine = make()
    generate(engine, mixed_requests((1, 10, 4, 10)))
    state = engine.forward
    before = [state.cache[:, :-1].clone(), state.hidden[:-1].clone(), state.seen[:-1].clone()]
    assert len(engine._programs) > 6
    with torch.inference_mode():
        for program in engine._programs.values():
            program.reset()
            program.run()
    after = [state.cache[:, :-1], state.hidden[:-1], state.seen[:-1]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_prepared_programs_cover_what_streams_run() -> None:
    """Every mode, prompts of every length that matters, any sampling, streams that join at any time."""
    engine = make(slots=3)
    assert engine.prepare() == len(engine._programs)
    prepared = set(engine._programs)
    lengths = [1, 2, 10, 11, 12, 15, 16, 17, 20, 21, 63, 64, 65, 80, 130]
    loads = [
        request(list(range(length)), pattern, 30, temperature=float(i % 2), top_k=(20, 0, 100)[i % 3])
        for i, length in enumerate(lengths)
        for pattern in PATTERNS.values()
    ]
    generate(engine, loads)
    assert set(engine._programs) == prepared


@pytest.mark.parametrize(
    ("sampled", "chunk"), [(True, 64), (False, 200)], ids=["a draw from all ids", "a longer chunk than was prepared"]
)
def test_nothing_is_captured_while_streams_run(sampled: bool, chunk: int) -> None:
    """However a request samples, its programs were prepared; what was not runs eagerly. Both as the reference."""
    engine = make()
    captured: list[object] = []

    class Recorder:
        def capture(self, function: Callable[[], torch.Tensor | None]) -> tuple[None, torch.Tensor | None]:
            captured.append(function)
            return None, None

    engine._capturer = Recorder()  # type: ignore[assignment]
    engine.prepare()
    engine._prepared = True  # as with the kernel of a GPU; the rectangle's shapes grow with the streams
    before = len(captured)
    assert before == len(engine._programs)
    temperature = 1.0 if sampled else 0.0
    requests = [
        request([5, 6, 7] if sampled else [5] * 150, (1, 10), 20, temperature=temperature, seed=3),
        request([9], (1, 10), 20, temperature=temperature, top_k=100, top_p=0.9),
    ]
    assert generate(engine, requests, chunk) == generate(TorchLanguageModel(CONFIG, TENSORS, 4, 256), requests, chunk)
    assert (len(engine._programs) == before) == sampled
    assert len(captured) == before


@pytest.mark.parametrize("slots", [1, 2, 3, 8, 64, 97, 100, 128, 256])
def test_every_decode_step_has_a_program(slots: int) -> None:
    """However many of the slots run, with however many rows each: the shape that a step is padded to was prepared."""
    limits = Limits(slots, 10, 4096)
    prepared = {(kind, s.rows, s.streams, s.stream_rows) for kind, s in prepared_shapes(limits, 256)}
    for running in range(1, slots + 1):
        streams = min(slots, power_of_two(running))
        for kind, most in (("extend", 11), ("burst", 14)):
            for rows in {running, 2 * running, running + most - 1, running * most - 1, running * most}:
                per_stream = 1 if rows == running and kind == "extend" else most
                if rows >= max(running, per_stream, 2 if kind == "burst" else 1):
                    shape = (kind, round_rows(rows), streams, round_stream_rows(per_stream))
                    assert shape in prepared, (running, rows)


def test_the_largest_program_is_prepared_first() -> None:
    shapes = prepared_shapes(Limits(64, 10, 4096), 256)
    rows = [shape.rows for _, shape in shapes]
    assert rows == sorted(rows, reverse=True)
    assert len(shapes) == len(set(shapes))
    assert all(kind == "extend" for kind, _ in prepared_shapes(Limits(64, 0, 4096), 256))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"slots": 0}, "slots is 0"), ({"context": 513}, "1..512"), ({"first_mctp_id": 300}, "0..299")],
)
def test_wrong_settings_are_named(change: dict[str, int], named: str) -> None:
    with pytest.raises(EngineError, match=named):
        make(**change)  # type: ignore[arg-type]


@given(st.integers(1, 5000))
def test_rows_are_rounded_up_by_little(count: int) -> None:
    rounded = round_rows(count)
    assert count <= rounded
    assert count == 1 or count <= 64 or rounded <= 1.5 * count
    assert round_rows(rounded) == rounded


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="the GPU language Triton is not installed")
def test_split_attention_interpreted() -> None:
    """The GPU kernel, interpreted on the CPU (in a process of its own: the switch is read at import)."""
    script = Path(__file__).parents[2] / "helpers" / "torch_cuda_split_attention.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, str(script)], env=environment, check=True, timeout=280)
