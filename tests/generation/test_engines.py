"""Every language model engine: golden tokens, sampling, batch = single, rewind, chunked prefill, odd sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from build_engines.onnxruntime.language_model import export_language_model
from generation_doubles import generate
from language_models import ENGINES, make_engine, random_weights, request
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import LanguageModelEngine
from vita_audio.engines.onnxruntime.language_model import OnnxLanguageModel
from vita_audio.engines.sampling import uniforms
from vita_audio.engines.torch.language_model import TorchLanguageModel
from vita_audio.generation.scheduler import Scheduler

CONFIG = LanguageModelConfig(300, 64, 96, 3 + 10, 4, 2, 10, 512)
TENSORS = random_weights(CONFIG)
PATTERNS = {
    "vanilla": (8192, 0),
    "balance": (1, 4, 3, 8, 4, 10),
    "boost": (1, 10, 4, 10),
    "turbo": (1, 10),
    "odd": (2, 3, 1, 7),
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LanguageModelEngine]:
    folder = tmp_path_factory.mktemp("engines")
    return {kind: make_engine(kind, CONFIG, TENSORS, folder, slots=4, context=256) for kind in ENGINES}


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("name", ["mctp10", "mctp4"])
def test_golden_tokens_of_prompts_in_small_chunks(golden: Path, tmp_path: Path, name: str, kind: str) -> None:
    """In chunks of the usual size: tests/build_engines/test_conformance.py."""
    folder = golden / "language_model" / name
    config, tensors = load_language_model(folder)
    engine = make_engine(kind, config, tensors, tmp_path, slots=8, context=1024)
    cases = json.loads((folder / "greedy_tokens.json").read_text())
    requests = [
        request(c["prompt"], tuple(c["pattern"]), len(c["tokens"]), repetition_penalty=c["repetition_penalty"])
        for c in cases
    ]
    assert generate(engine, requests, chunk=13) == [c["tokens"] for c in cases]


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())
def test_engines_agree_when_sampling(engines: dict[str, LanguageModelEngine], pattern: tuple[int, ...]) -> None:
    requests = [
        request([5, 6, 7], pattern, 50, temperature=0.9, top_k=20, top_p=0.9, seed=11),
        request([9] * 30, pattern, 50, temperature=1.3, top_p=0.7, seed=12, repetition_penalty=1.3),
        request([1, 2], pattern, 50, temperature=0.7, seed=2**64 - 1),
        request([1, 2], pattern, 50, repetition_penalty=0.8),
    ]
    expected = generate(engines["torch"], requests)
    for kind in ENGINES:
        assert generate(engines[kind], requests) == expected, kind
    assert len({tuple(tokens) for tokens in expected}) == len(requests)


@pytest.mark.parametrize("kind", ENGINES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_batched_equals_single(engines: dict[str, LanguageModelEngine], kind: str, data: st.DataObject) -> None:
    """Streams of any mode, length and sampling that join and leave at different steps."""
    engine = engines[kind]
    token = st.integers(0, CONFIG.vocab_size - 1)
    one = st.builds(
        request,
        prompt=st.lists(token, min_size=1, max_size=90),
        pattern=st.sampled_from(list(PATTERNS.values())),
        max_tokens=st.integers(1, 60),
        temperature=st.sampled_from([0.0, 0.0, 1.0]),
        top_k=st.sampled_from([0, 1, 50]),
        seed=st.integers(0, 2**64 - 1),
    )
    requests = data.draw(st.lists(one, min_size=2, max_size=7))
    delays = data.draw(st.lists(st.integers(0, 6), min_size=len(requests), max_size=len(requests)))
    alone = [generate(engine, [r], chunk=32)[0] for r in requests]
    scheduler = Scheduler(engine, (), prefill_chunk=32)
    streams = []
    for r, delay in zip(requests, delays, strict=True):
        streams.append(scheduler.submit("x", r))
        for _ in range(delay):
            scheduler.step()
    while not scheduler.idle:
        scheduler.step()
    assert [s.tokens[s.prompt_tokens :] for s in streams] == alone


@pytest.mark.parametrize(
    "config",
    [
        LanguageModelConfig(97, 40, 56, 1 + 1, 5, 1, 1, 64),  # one layer, one module, head 8
        LanguageModelConfig(130, 48, 40, 2 + 3, 2, 2, 3, 64),  # head 24: padded to 32
        LanguageModelConfig(64, 60, 64, 4, 6, 3, 0, 64, rms_norm_eps=1e-5, rope_theta=1e4),  # K = 0, head 10
        LanguageModelConfig(64, 32, 64, 2 + 2, 4, 4, 2, 64, tie_word_embeddings=True),
    ],
    ids=["tiny", "head24", "no_mctp", "tied"],
)
def test_other_sizes(config: LanguageModelConfig, tmp_path: Path) -> None:
    tensors = random_weights(config, seed=3)
    modules = config.mctp_modules
    pattern = (1, modules, 2, max(0, modules - 1))
    requests = [request([3, 1, 4, 1, 5], pattern, 30), request([9, 2], (8192, 0), 30, temperature=1.0, seed=5)]
    made = [generate(make_engine(kind, config, tensors, tmp_path, 2, 64), requests, chunk=16) for kind in ENGINES]
    assert all(tokens == made[0] for tokens in made)


def test_banned_ids_never_come_out(tmp_path: Path) -> None:
    banned = [i for i in range(CONFIG.vocab_size) if i % 3]
    export_language_model(CONFIG, TENSORS, tmp_path, banned)
    requests = [request([1], (1, 10), 60, temperature=5.0, seed=s) for s in range(4)]
    made = generate(OnnxLanguageModel(tmp_path, 4, 128), requests)
    assert all(token % 3 == 0 for tokens in made for token in tokens)
    assert made == generate(TorchLanguageModel(CONFIG, TENSORS, 4, 128, banned), requests)


def test_missing_engine_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"model\.json"):
        OnnxLanguageModel(tmp_path, 1, 64)
    export_language_model(CONFIG, TENSORS, tmp_path)
    (tmp_path / "mctp.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"mctp\.onnx"):
        OnnxLanguageModel(tmp_path, 1, 64)


@given(seed=st.integers(0, 2**64 - 1), index=st.integers(0, 5000), split=st.integers(0, 12))
def test_uniforms_depend_on_seed_and_index_alone(seed: int, index: int, split: int) -> None:
    whole = uniforms(seed, index, 12)
    parts = np.concatenate([uniforms(seed, index, split), uniforms(seed, index + split, 12 - split)])
    assert np.array_equal(whole, parts)
    assert ((whole >= 0) & (whole < 1)).all()


def test_uniforms_are_uniform() -> None:
    draws = uniforms(7, 0, 20_000)
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.02
