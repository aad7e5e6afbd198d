"""The stage `prompt` without Triton: what it refuses and when, what it measures, what its Start holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from serving import prompt_stage
from serving.admission import Admission, AdmissionRecord
from serving.heartbeat import Heartbeats
from serving.prompt_stage import MAX_REQUEST_ID, PromptStage
from vita_audio.contract.errors import InvalidRequest, ServerFull, ServerStopping
from vita_audio.engines.interface import Floats
from vita_audio.engines.manifest import load_manifest
from vita_audio.text.tokenizer import TextTokenizer

SPEECH = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)


class Tokenizer:
    """Stands for the model `speech_tokenizer`."""

    def __init__(self) -> None:
        self.clips: list[Floats] = []
        self.stage: PromptStage | None = None

    def __call__(self, clip: Floats) -> Sequence[int]:
        self.clips.append(clip)
        if self.stage is not None:
            self.stage.measure()
        return [5, 6, 7]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer()


@pytest.fixture
def record() -> AdmissionRecord:
    return AdmissionRecord(None)


@pytest.fixture
def stage(engines: Path, tokenizer: Tokenizer, record: AdmissionRecord) -> PromptStage:
    limits = load_manifest(engines).limits
    return PromptStage(TextTokenizer(engines / "tokenizer.json"), limits, tokenizer, record, "prompt_0")


def test_settings_and_prompt_are_those_of_the_request(stage: PromptStage) -> None:
    start = stage.prepare({"TEXT": "Hello.", "TASK": "tts", "MODE": "boost", "MAX_TOKENS": 7, "TOP_P": 0.5, "SEED": 9})
    settings = start.settings
    assert (settings.task, settings.mode, settings.pattern) == ("tts", "boost", (1, 10, 4, 10))
    assert (settings.max_tokens, settings.top_p, settings.seed) == (7, 0.5, 9)
    assert list(settings.timings_ms) == ["prompt"]
    assert start.tokens != stage.prepare({"TEXT": "Hello.", "TASK": "chat"}).tokens


def test_speech_is_tokenized_at_16_khz_and_its_time_is_apart(
    stage: PromptStage, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([1.0, 2.0, 5.0, 5.5])  # taken in, speech begins, speech is tokenized, prompt is written
    monkeypatch.setattr(prompt_stage.time, "perf_counter", lambda: next(clock))
    start = stage.prepare({"AUDIO": SPEECH, "SAMPLE_RATE": 8000})
    assert tokenizer.clips[0].shape == (16_000,)
    assert start.settings.timings_ms == {"speech_tokenizer": 3000.0, "prompt": 1500.0}


def test_the_gauge_counts_the_request_that_is_running(stage: PromptStage, tokenizer: Tokenizer) -> None:
    series = ("vita_streams", ("prompt", "running", "prompt_0"))
    tokenizer.stage = stage
    stage.prepare({"AUDIO": SPEECH})
    assert stage.recorder.take().gauges[series] == 1
    with pytest.raises(InvalidRequest):
        stage.prepare({"TEXT": ""})
    stage.measure()
    assert stage.recorder.take().gauges[series] == 0


def test_a_draining_server_refuses_before_it_checks(stage: PromptStage, record: AdmissionRecord) -> None:
    record.drain()
    with pytest.raises(ServerStopping):
        stage.prepare({"TEXT": ""})


def test_a_full_server_tokenizes_no_speech_but_still_finds_the_fault(
    stage: PromptStage, tokenizer: Tokenizer, record: AdmissionRecord
) -> None:
    admission = Admission(record, slots=1, queue=0)
    stream = admission.admit()
    with pytest.raises(ServerFull):
        stage.prepare({"AUDIO": SPEECH})
    assert tokenizer.clips == []
    with pytest.raises(InvalidRequest, match="SAMPLE_RATE"):
        stage.prepare({"AUDIO": SPEECH, "SAMPLE_RATE": 1})
    assert stage.prepare({"TEXT": "Hello."}).tokens  # text is refused by speech_lm, which decides
    admission.release(stream)
    assert stage.prepare({"AUDIO": SPEECH}).tokens


def test_a_prompt_that_leaves_no_room_names_its_input(stage: PromptStage, monkeypatch: pytest.MonkeyPatch) -> None:
    for field, inputs in (("TEXT", {"TEXT": "a"}), ("AUDIO", {"AUDIO": SPEECH})):
        monkeypatch.setattr(stage._builder, "build", lambda *_: [0] * stage._limits.context_tokens)
        with pytest.raises(InvalidRequest, match="tokens fit into the context") as caught:
            stage.prepare(inputs)
        assert caught.value.field == field


@pytest.mark.parametrize("request_id", ["x" * (MAX_REQUEST_ID + 1), "a\nb", "\x1b[31m", "\u2028"])
def test_a_request_id_that_could_harm_a_log_is_refused(stage: PromptStage, request_id: str) -> None:
    with pytest.raises(InvalidRequest, match=r"request id: .* at most 128 characters") as caught:
        stage.prepare({"TEXT": "Hello."}, request_id)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250
    assert stage.prepare({"TEXT": "Hello."}, "é" * MAX_REQUEST_ID)


def test_a_stage_follows_the_admission_of_its_server(
    engines: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "admission"
    monkeypatch.setenv("VITA_ENGINES", str(engines))
    monkeypatch.setenv("VITA_ADMISSION", str(path))
    stage = PromptStage.serve("prompt_1", tokenizer, Heartbeats())
    assert stage.prepare({"TEXT": "Hello.", "AUDIO": SPEECH}).tokens
    assert len(tokenizer.clips[-1]) == len(SPEECH)
    stage.measure()
    assert ("vita_streams", ("prompt", "running", "prompt_1")) in stage.recorder.take().gauges
    AdmissionRecord(path).drain()
    with pytest.raises(ServerStopping):
        stage.prepare({"TEXT": "Hello."})
