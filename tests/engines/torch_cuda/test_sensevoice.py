"""SenseVoice of torch_cuda on the CPU: everything but the capture itself, against the golden data and the reference."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from sensevoice_golden import CLIPS, golden_embeddings, golden_features, golden_sensevoice, relative
from vita_audio.contract.errors import EngineError
from vita_audio.contract.limits import MAX_AUDIO_SECONDS
from vita_audio.engines.torch_cuda.sensevoice import SLOT_COUNTS, TorchCudaSenseVoice, prepared_slots
from vita_audio.models.sensevoice import SenseVoice
from vita_audio.sensevoice_features import slot_count

TABLES = {"feature_shift": torch.full((560,), 2.0), "feature_scale": torch.full((560,), 3.0)}


def make(model: SenseVoice, precision: str = "float32") -> TorchCudaSenseVoice:
    return TorchCudaSenseVoice(model.config, model.state_dict() | TABLES, torch.device("cpu"), precision)


@pytest.fixture(scope="module")
def plus(golden: Path) -> Path:
    return golden / "plus"


@pytest.fixture(scope="module")
def model(plus: Path) -> SenseVoice:
    return golden_sensevoice(plus)


@pytest.fixture(scope="module", params=[False, True], ids=["as it comes", "padded"])
def engine(model: SenseVoice, request: pytest.FixtureRequest) -> TorchCudaSenseVoice:
    made = make(model)
    if request.param:
        assert made.prepare(300) == 6  # 64 to 384
    return made


def noise(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 560), np.float32)


@pytest.mark.parametrize("clip", CLIPS)
def test_golden_embeddings(plus: Path, engine: TorchCudaSenseVoice, clip: str) -> None:
    assert relative(engine.embeddings(golden_features(plus)[clip].numpy()), golden_embeddings(plus)[clip]) < 1e-4


@pytest.mark.parametrize("rows", [1, 59, 60, 61, 200, 380, 381, 1200])
def test_equals_the_reference_at_any_length(model: SenseVoice, engine: TorchCudaSenseVoice, rows: int) -> None:
    """At both sides of a prepared length, and beyond all of them."""
    features = noise(rows)
    wanted = model(torch.from_numpy(features)[None], torch.tensor([rows]))[0]
    assert relative(engine.embeddings(features), wanted.numpy()) < 1e-5


def test_a_clip_changes_nothing_of_the_next_one(model: SenseVoice, engine: TorchCudaSenseVoice) -> None:
    """A shorter one is put where a longer one was."""
    long, short = noise(60), noise(7)
    alone = engine.embeddings(short)
    engine.embeddings(1e3 * long)
    np.testing.assert_array_equal(engine.embeddings(short), alone)


@pytest.mark.parametrize(("precision", "error"), [("fp16", 5e-3), ("bf16", 3e-2)])
def test_half_precision_is_close(model: SenseVoice, precision: str, error: float) -> None:
    features = noise(100)
    wanted = model(torch.from_numpy(features)[None], torch.tensor([100]))[0]
    assert 1e-5 < relative(make(model, precision).embeddings(features), wanted.numpy()) < error


def test_memory_that_looks_further_ahead(model: SenseVoice) -> None:
    """An even kernel and a shift: other zeros before than after."""
    config = model.config
    torch.manual_seed(0)
    shifted = SenseVoice(replace(config, kernel_size=8, sanm_shift=2)).eval().requires_grad_(False)
    features = noise(20)
    wanted = shifted(torch.from_numpy(features)[None], torch.tensor([20]))[0]
    made = make(shifted)
    made.prepare(64)
    assert relative(made.embeddings(features), wanted.numpy()) < 1e-5


def test_lengths_that_are_prepared() -> None:
    """Every clip of a request has one, and little of it is padding; no more than a stream has room for."""
    assert slot_count(int(16_000 * MAX_AUDIO_SECONDS)) <= SLOT_COUNTS[-1]
    assert all(longer <= 1.5 * count for count, longer in pairwise(SLOT_COUNTS))
    assert all(count % 16 == 0 for count in SLOT_COUNTS)
    assert prepared_slots(4096) == SLOT_COUNTS
    assert prepared_slots(96) == (64, 96)
    assert prepared_slots(97) == (64, 96, 128)
    assert prepared_slots(1) == (64,)


def test_what_the_engine_says_of_itself(engine: TorchCudaSenseVoice) -> None:
    assert (engine.feature_shift[0], engine.feature_scale[0], engine.embedding_size) == (2, 3, 48)
    assert len(engine.feature_shift) == 560


def test_bad_input_is_refused(model: SenseVoice, engine: TorchCudaSenseVoice) -> None:
    for features, fault in (
        (np.zeros((3, 80), np.float32), r"shape \[3, 80\], must be \[at least 1, 560\]"),
        (np.zeros((0, 560), np.float32), r"shape \[0, 560\]"),
        (np.full((2, 560), np.nan, np.float32), "not finite"),
        (np.zeros((2045, 560), np.float32), "features have 2045 rows, must be at most 2044; cut the speech first"),
    ):
        with pytest.raises(EngineError, match=fault):
            engine.embeddings(features)
    with pytest.raises(EngineError, match="precision: 'int8' is not valid"):
        make(model, "int8")
