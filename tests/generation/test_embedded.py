"""Prompts with rows of embeddings, on every engine: golden tokens, any company, reuse by content, wrong rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from build_engines.conformance.language_model import check_language_model, run_cases
from build_engines.conformance.language_model_cases import Mistake, read_cases
from language_models import ENGINES, make_engine, random_weights, request
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import Embedded, ExtendRow, LanguageModelEngine, Sampling
from vita_audio.engines.torch.language_model import TorchLanguageModel
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.scheduler import Scheduler

CONFIGS = {K: LanguageModelConfig(90, 32, 48, 2 + K, 4, 2, K, 512) for K in (0, 10)}
TENSORS = {K: random_weights(config) for K, config in CONFIGS.items()}
SPEECH, SLOTS, CONTEXT = 80, 3, 256
PATTERNS = {0: ((8192, 0),), 10: ((8192, 0), (1, 10, 4, 10), (1, 10), (2, 3))}
#: Clips of which two are equal and one differs from them in one value; then one of another length.
ROWS = [np.random.default_rng(seed).standard_normal((length, 32), np.float32) for seed, length in ((1, 34), (2, 7))]
CLIPS = [ROWS[0], ROWS[0].copy(), np.where(np.arange(34 * 32).reshape(34, 32) == 33 * 32, -3, ROWS[0]), ROWS[1]]
IDS = [[5, 6, 7], list(range(20)), [9] * 41, []]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], LanguageModelEngine]:
    folders = {K: tmp_path_factory.mktemp(f"engines{K}") for K in CONFIGS}
    return {
        (kind, K): make_engine(kind, config, TENSORS[K], folders[K], SLOTS, CONTEXT, plus=True)
        for kind in ENGINES
        for K, config in CONFIGS.items()
    }


@pytest.mark.parametrize("name", ["plus_mctp4", "plus_vanilla"])
def test_golden_tokens_in_small_chunks(golden: Path, name: str) -> None:
    """By the reference; `build_engines.conformance` runs them on every engine, a prompt in two chunks at most."""
    folder = golden / "plus" / name
    config, tensors = load_language_model(folder, torch.float32)
    cases = read_cases(folder, config.mctp_modules)
    assert sum(case.embedded is not None for case in cases) == (25 if config.mctp_modules else 4)
    cases = cases[::3]
    engine = TorchLanguageModel(config, tensors, 4, 192, embedded=True)
    assert run_cases(engine, cases, prefill_chunk=5) == [list(case.tokens) for case in cases]


@pytest.mark.parametrize("mistake", ["no_speech", "speech_in_mctp"])
@pytest.mark.parametrize("name", ["plus_mctp4", "plus_vanilla"])
def test_golden_tokens_notice_a_mistake(golden: Path, name: str, mistake: Mistake) -> None:
    results = list(check_language_model(golden / "plus" / name, mistake, families=("torch",)))
    assert len(results) == (25 if name == "plus_mctp4" else 4)
    for result in results:
        notices = mistake == "no_speech" or ",0]" not in result.case  # without MCTP tokens there is nothing to notice
        assert result.passed != notices, result


def spoken(parts: Sequence[tuple[int, int | None]], pattern: tuple[int, ...], **sampling: object) -> GenerationRequest:
    """A prompt of pieces of IDS, each with a clip of CLIPS behind it or none."""
    prompt, places, rows = [3], list[int](), list[np.ndarray]()
    for ids, clip in parts:
        prompt += IDS[ids]
        if clip is not None:
            places += range(len(prompt), len(prompt) + len(CLIPS[clip]))
            rows.append(CLIPS[clip])
            prompt += [SPEECH] * len(CLIPS[clip])
    plain = request([*prompt, 4], pattern, 12, **sampling)  # type: ignore[arg-type]
    return GenerationRequest(
        plain.prompt, plain.settings, Embedded(np.array(places), np.concatenate(rows)) if rows else None
    )


def finish(scheduler: Scheduler) -> None:
    while not scheduler.idle:
        scheduler.step()


@cache
def reference(
    modules: int, parts: tuple[tuple[int, int | None], ...], pattern: tuple[int, ...], temperature: float
) -> list[int]:
    """Alone, from its beginning, in one chunk."""
    engine = TorchLanguageModel(CONFIGS[modules], TENSORS[modules], 1, CONTEXT, embedded=True)
    scheduler = Scheduler(engine, (), CONTEXT, reuse_prefixes=False)
    stream = scheduler.submit("", spoken(parts, pattern, temperature=temperature))
    finish(scheduler)
    return stream.tokens


@pytest.mark.parametrize("modules", CONFIGS)
@pytest.mark.parametrize("kind", ENGINES)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_tokens_are_those_of_a_stream_alone(
    engines: dict[tuple[str, int], LanguageModelEngine], kind: str, modules: int, data: st.DataObject
) -> None:
    """Prompts that begin alike or differ in a clip alone, in any order, with chunks and slots of any state."""
    part = st.tuples(st.integers(0, len(IDS) - 1), st.sampled_from([*range(len(CLIPS)), None]))
    one = st.tuples(
        st.lists(part, min_size=1, max_size=3).map(tuple),
        st.sampled_from(PATTERNS[modules]),
        st.sampled_from([0.0, 1.0]),
    )
    chunk, reuse = data.draw(st.sampled_from([modules + 1, 16, 64])), data.draw(st.booleans())
    scheduler = Scheduler(engines[kind, modules], (), chunk, reuse)
    streams = []
    for drawn in data.draw(st.lists(one, min_size=1, max_size=5)):
        parts, pattern, temperature = drawn
        wanted = spoken(parts, pattern, temperature=temperature)
        scheduler.check(wanted)
        streams.append((scheduler.submit("", wanted), drawn))
        for _ in range(data.draw(st.integers(0, 12))):
            scheduler.step()
    finish(scheduler)
    for stream, drawn in streams:
        assert stream.tokens == reference(modules, *drawn)


@pytest.mark.parametrize("modules", CONFIGS)
def test_a_clip_is_found_again_by_what_is_in_it(
    engines: dict[tuple[str, int], LanguageModelEngine], modules: int
) -> None:
    scheduler = Scheduler(engines["torch", modules], (), 16)
    cached = []
    for clip in (0, 1, 2):
        stream = scheduler.submit("", spoken([(1, clip)], PATTERNS[modules][-1]))
        finish(scheduler)
        cached.append(stream.cached)
        assert stream.tokens == reference(modules, ((1, clip),), PATTERNS[modules][-1], 0.0)
    assert cached == [0, stream.prompt_tokens - 1, stream.prompt_tokens - 2]  # all but the last row of the clip


@pytest.mark.parametrize("kind", ENGINES)
def test_single_rows_of_several_streams(engines: dict[tuple[str, int], LanguageModelEngine], kind: str) -> None:
    """A clip's last row may be a step of its own, beside those of streams that answer."""

    def tokens(engine: LanguageModelEngine) -> list[int | None]:
        made = []
        for slot in range(SLOTS):
            engine.begin(slot, Sampling())
            engine.extend(
                [ExtendRow(slot, 0, [3, SPEECH, 4], None, Embedded(np.array([1]), CLIPS[0][slot : slot + 1]))]
            )
        for at in range(3, 6):
            ones = [Embedded(np.array([0]), CLIPS[3][at : at + 1]) if slot != 1 else None for slot in range(SLOTS)]
            made += engine.extend([ExtendRow(slot, at, [SPEECH], at, one) for slot, one in enumerate(ones)])
        for slot in range(SLOTS):
            engine.release(slot)
        return made

    made = tokens(engines[kind, 0])
    assert made == tokens(engines["torch", 0])
    assert len(set(made)) > 3


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (Embedded(np.array([0]), np.zeros((1, 31), np.float32)), r"shape \[1, 31\] for places \[1\]"),
        (Embedded(np.array([0, 1]), np.zeros((1, 32), np.float32)), r"one row of 32 values for each place"),
        (Embedded(np.array([2]), np.zeros((1, 32), np.float32)), r"places from 2 to 2 are not valid: .*in \[0, 2\)"),
        (Embedded(np.array([0]), np.full((1, 32), np.nan, np.float32)), "a value is not finite"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    engines: dict[tuple[str, int], LanguageModelEngine], kind: str, wrong: Embedded, named: str
) -> None:
    engine = engines[kind, 0]
    engine.begin(0, Sampling())
    try:
        with pytest.raises(EngineError, match=named):
            engine.extend([ExtendRow(0, 0, [SPEECH, 4], None, wrong)])
        assert engine.extend([ExtendRow(0, 0, [3], 0)]) != [None]  # nothing has changed
    finally:
        engine.release(0)


def test_a_request_that_does_not_fit_the_engine_is_refused_before_it_runs() -> None:
    base = Scheduler(TorchLanguageModel(CONFIGS[0], TENSORS[0], 1, CONTEXT), ())
    with pytest.raises(EngineError, match="reads speech as tokens and takes none; serve a Plus checkpoint"):
        base.check(spoken([(0, 0)], (8192, 0)))
