"""SenseVoice engines of the Plus variant: the golden data, the reference at any length, batches, bad inputs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from build_engines.onnxruntime.sensevoice import run
from build_engines.pipeline import Build, Needed
from sensevoice_golden import CLIPS, golden_embeddings, golden_features, golden_sensevoice, relative
from vita_audio.checkpoint.cmvn import read_cmvn
from vita_audio.checkpoint.configs import LANGUAGE_MODEL
from vita_audio.contract.errors import EngineError
from vita_audio.engines.onnxruntime.sensevoice import OnnxSenseVoice
from vita_audio.engines.registry import open_speech_encoder
from vita_audio.engines.source import EngineSource
from vita_audio.models.sensevoice import SenseVoice
from vita_audio.sensevoice_features import slot_count, speech_embeddings


@pytest.fixture(scope="module")
def plus(golden: Path) -> Path:
    return golden / "plus"


@pytest.fixture(scope="module")
def model(plus: Path) -> SenseVoice:
    return golden_sensevoice(plus)


@pytest.fixture(scope="module")
def engine(plus: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxSenseVoice:
    """Built from a folder such as the authors' code reads, opened as a server does."""
    bundle, out = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("engines")
    (bundle / LANGUAGE_MODEL).mkdir()
    for name in (
        "plus_vanilla/config.json",
        "plus_vanilla/model.safetensors",
        "sensevoice/config.yaml",
        "sensevoice/am.mvn",
    ):
        (bundle / LANGUAGE_MODEL / Path(name).name).symlink_to(plus / name)
    run(Build(bundle, out), out, Needed({}))
    manifest: Any = SimpleNamespace(engines={"sensevoice": "onnxruntime"})
    opened = open_speech_encoder(EngineSource(out, manifest))
    assert isinstance(opened, OnnxSenseVoice)
    return opened


def noise(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 560), np.float32)


@pytest.mark.parametrize("clip", CLIPS)
def test_golden_embeddings_of_features(plus: Path, engine: OnnxSenseVoice, clip: str) -> None:
    got = engine.embeddings(golden_features(plus)[clip].numpy())
    assert got.dtype == np.float32
    assert relative(got, golden_embeddings(plus)[clip]) < 1e-4


@pytest.mark.parametrize("clip", CLIPS)
def test_golden_embeddings_of_the_wave(plus: Path, engine: OnnxSenseVoice, clip: str) -> None:
    wave = load_file(plus / "frontend_io.safetensors")[f"{clip}.wave"]
    got = speech_embeddings(engine, wave, dither=0)
    assert len(got) == slot_count(len(wave))
    assert relative(got, golden_embeddings(plus)[clip]) < 2e-3


@pytest.mark.parametrize("rows", [1, 2, 11, 500, 1200])
def test_equals_the_reference_at_any_length(model: SenseVoice, engine: OnnxSenseVoice, rows: int) -> None:
    features = noise(rows)
    wanted = model(torch.from_numpy(features)[None], torch.tensor([rows]))[0]
    assert relative(engine.embeddings(features), wanted.numpy()) < 1e-5


def test_a_padded_batch_equals_each_clip_alone(engine: OnnxSenseVoice) -> None:
    clips = [noise(rows) for rows in (30, 1, 7, 64)]
    for features, got in zip(clips, engine.embeddings_of(clips), strict=True):
        assert relative(got, engine.embeddings(features)) < 1e-5


def test_what_the_engine_says_of_itself(plus: Path, engine: OnnxSenseVoice) -> None:
    shift, scale = read_cmvn(plus / "sensevoice" / "am.mvn")
    np.testing.assert_array_equal(engine.feature_shift, shift)
    np.testing.assert_array_equal(engine.feature_scale, scale)
    assert engine.embedding_size == 48


@pytest.mark.parametrize(
    ("features", "fault"),
    [
        (np.zeros((3, 80), np.float32), r"features have shape \[3, 80\], must be \[at least 1, 560\]"),
        (np.zeros((0, 560), np.float32), r"features have shape \[0, 560\], must be"),
        (np.zeros(560, np.float32), r"features have shape \[560\], must be"),
        (np.full((2, 560), np.nan, np.float32), "features have a value that is not finite"),
    ],
)
def test_bad_features(engine: OnnxSenseVoice, features: np.ndarray, fault: str) -> None:
    with pytest.raises(EngineError, match=fault):
        engine.embeddings(features)


def test_missing_graph(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"sensevoice\.onnx: ONNX Runtime cannot load it"):
        OnnxSenseVoice(tmp_path)
