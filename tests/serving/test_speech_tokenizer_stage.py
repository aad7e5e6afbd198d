"""The stage `speech_tokenizer` without Triton: the length of what it takes, and what it makes of it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pulses import RecordedPulse
from serving import speech_tokenizer_stage
from serving.heartbeat import Heartbeats
from serving.speech_tokenizer_stage import SpeechTokenizerStage
from vita_audio.contract.errors import InvalidRequest
from vita_audio.speech_features import FeatureBlocks, speech_tokens

MANIFEST = SimpleNamespace(speech_input="speech_tokenizer")


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> SpeechTokenizerStage:
    source = SimpleNamespace()
    warmed: list[object] = []

    def opened(given: object) -> str:
        assert given is source
        return "engine"

    monkeypatch.setattr(speech_tokenizer_stage, "served_engines", lambda: ("settings", MANIFEST, source))
    monkeypatch.setattr(speech_tokenizer_stage, "open_speech_tokenizer", opened)
    monkeypatch.setattr(speech_tokenizer_stage, "warm_up_speech", warmed.append)
    monkeypatch.setattr(speech_tokenizer_stage, "speech_tokens", lambda engine, speech, made: np.array([len(speech)]))
    stage = SpeechTokenizerStage(Heartbeats())
    assert warmed == [stage._read]
    return stage


@pytest.mark.parametrize("samples", [1, 16_000, 120 * 16_000 + 1])
def test_codes_are_32_bit(stage: SpeechTokenizerStage, samples: int) -> None:
    codes = stage.read(np.zeros(samples, np.float32))
    assert (codes.dtype, codes.tolist()) == (np.int32, [samples])


def test_features_are_kept_from_one_request_to_the_next(
    stage: SpeechTokenizerStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SimpleNamespace(num_mel_bins=8, tokens=lambda features, valid: np.zeros(valid // 8, np.int64))
    kept: list[int] = []

    def tokens(unused: object, speech: np.ndarray, made: FeatureBlocks) -> np.ndarray:
        ids = speech_tokens(engine, speech, made)  # type: ignore[arg-type]
        kept.append(len(made))
        return ids

    monkeypatch.setattr(speech_tokenizer_stage, "speech_tokens", tokens)
    speech = np.random.default_rng(0).normal(0, 0.1, 9 * 16_000).astype(np.float32)
    for seconds in (5, 9, 9):
        stage.read(speech[: seconds * 16_000])
    assert kept == [2, 4, 4]  # blocks of 4 s and rests: the first block is the same


@pytest.mark.parametrize(
    "speech",
    [
        np.zeros(0, np.float32),
        np.zeros(120 * 16_000 + 2, np.float32),
        np.array([0, np.nan], np.float32),
        np.array([-np.inf, 0], np.float32),
    ],
)
def test_what_no_request_may_have_is_refused(stage: SpeechTokenizerStage, speech: np.ndarray) -> None:
    with pytest.raises(InvalidRequest, match="AUDIO"):
        stage.read(speech)


@pytest.mark.parametrize("lost", [False, True])
def test_a_lost_gpu_ends_the_process(stage: SpeechTokenizerStage, monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    def fault(*given: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    pulse = RecordedPulse()
    monkeypatch.setattr(stage, "_pulse", pulse)
    monkeypatch.setattr(speech_tokenizer_stage, "speech_tokens", fault)
    monkeypatch.setattr(speech_tokenizer_stage, "gpu_is_lost", lambda error: lost)
    with pytest.raises(RuntimeError, match="launch failure"):
        stage.read(np.zeros(100, np.float32))
    assert pulse.ended.is_set() == lost


def test_embeddings_of_a_clip_that_comes_again_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def made(engine: object, speech: np.ndarray) -> np.ndarray:
        runs.append(len(speech))
        return np.full((5, 3), speech[0], np.float64)

    manifest = SimpleNamespace(speech_input="sensevoice")
    monkeypatch.setattr(speech_tokenizer_stage, "served_engines", lambda: ("settings", manifest, "source"))
    monkeypatch.setattr(speech_tokenizer_stage, "open_speech_encoder", lambda source: "engine")
    monkeypatch.setattr(speech_tokenizer_stage, "speech_embeddings", made)
    stage = SpeechTokenizerStage(Heartbeats())
    assert (stage.output, runs) == ("EMBEDDINGS", [6 * 16_000])  # the warm-up
    first, other = (np.full(800, value, np.float32) for value in (0.1, 0.2))
    rows = [stage.read(clip) for clip in (first, other, first.copy())]
    assert [each.dtype for each in rows] == [np.float32] * 3
    assert [each[0, 0] for each in rows] == [first[0], other[0], first[0]]
    assert runs[1:] == [800, 800]
    with pytest.raises(InvalidRequest, match="AUDIO"):
        stage.read(np.zeros(0, np.float32))
