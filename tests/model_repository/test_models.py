"""What Triton loads: each model hands its requests to its stage and the stage's answers back, on a stand-in stub."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from serving.seal import REFUSAL, new_secret
from triton_stub import InferenceRequest, InferenceResponse, Tensor, triton_stub
from vita_audio.contract.errors import InvalidRequest, ServerFull
from vita_audio.contract.fields import INPUTS
from vita_audio.contract.messages import Cancel, Delta, GenerationSettings, Probe, Start, Status
from vita_audio.decoding.served_stream import DecodedChunk

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
SETTINGS = GenerationSettings("chat", "vanilla", (8192, 0), 50, 0.0, 0, 1.0, 1.0, 1)
DELTA = Delta(Status("s1", 0, "running"), [5, 6])


class Stage:
    """Stands for any stage; `act` is what a test has it do."""

    recorder, output, most_rows_bytes = "recorder", "CODES", 1000

    def __init__(self, act: Callable[..., Any] | None = None) -> None:
        self.act, self.closed = act, False
        self.served: tuple[Any, ...] = ()
        self.counted: list[Exception] = []
        self.refusals = self
        self.accept = self.prepare = self.read = lambda *given: self.act(*given)

    def count(self, error: Exception) -> None:
        self.counted.append(error)

    def measure(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class Publisher:
    made: list[tuple]

    def __init__(self, *given: object) -> None:
        Publisher.made.append(given)

    def close(self) -> None:
        Publisher.made.clear()


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Stage], Any]]:
    """Loads a model of the repository around a stage and initializes it as Triton does."""
    monkeypatch.setenv("VITA_ENGINES", "engines")
    monkeypatch.setenv("VITA_SECRET", new_secret())
    stub, publisher = triton_stub(lambda request: InferenceResponse()), ModuleType("serving.metrics.publisher")
    publisher.MetricsPublisher = Publisher  # type: ignore[attr-defined]
    Publisher.made = []
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    monkeypatch.setitem(sys.modules, publisher.__name__, publisher)
    monkeypatch.delitem(sys.modules, "serving.adapter", raising=False)

    def loaded(name: str, stage: Stage) -> Any:
        spec = importlib.util.spec_from_file_location(f"model_{name}", REPOSITORY / name / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

        class Served:
            """What is imported as the stage's class."""

            def __new__(cls, *given: object) -> Stage:  # type: ignore[misc]
                stage.served = given
                return stage

            @classmethod
            def serve(cls, *given: object) -> Stage:
                stage.served = given
                return stage

        (kind,) = [entry for entry in vars(module) if entry.endswith("Stage")]
        monkeypatch.setattr(module, kind, Served)
        monkeypatch.setattr(module, "start_logging", lambda model: None)
        model = module.TritonPythonModel()
        model.initialize({"model_name": name, "model_instance_name": f"{name}_0"})
        assert Publisher.made[0][0] == "recorder"
        return model

    yield loaded
    sys.modules.pop("serving.adapter", None)


def sealed(model: Any, message: Any) -> InferenceRequest:
    return InferenceRequest(inputs=model._calls.tensors(message))


def test_prompt_hands_over_every_input_and_the_id_and_answers_with_a_start(load: Callable) -> None:
    given: list[tuple] = []

    def prepare(inputs: dict, request_id: str) -> Start:
        given.append((inputs, request_id))
        return Start(SETTINGS, [7, 8])

    stage = Stage(prepare)
    model = load("prompt", stage)
    assert stage.served[:2] == ("prompt_0", model._calls.ask_speech_tokenizer)
    tensors = [Tensor(spec.name, np.array([number])) for number, spec in enumerate(INPUTS)]
    (answer,) = model.execute([InferenceRequest(inputs=tensors, own_id="mine")])
    assert ({name: value.tolist() for name, value in given[0][0].items()}, given[0][1]) == (
        {spec.name: [number] for number, spec in enumerate(INPUTS)},
        "mine",
    )
    assert model._calls.read(InferenceRequest(inputs=answer.tensors.values())) == Start(SETTINGS, [7, 8])
    model.finalize()
    assert Publisher.made == []


def test_prompt_and_tokenizer_answer_an_error_with_its_line_and_count_it(load: Callable) -> None:
    error = InvalidRequest("TOP_P", 7, "it is at most 1")

    def broken(*_: object) -> None:
        raise error

    stage = Stage(broken)
    answers = load("prompt", stage).execute([InferenceRequest(), InferenceRequest()])
    assert [str(error) in answer.error().message() for answer in answers] == [True, True]
    assert stage.counted == [error, error]
    other = Stage(broken)
    (answer,) = load("speech_tokenizer", other).execute([InferenceRequest()])
    assert answer.error().message().endswith(REFUSAL)
    assert len(other.counted) == 1


def test_the_tokenizer_answers_with_codes(load: Callable) -> None:
    model = load("speech_tokenizer", Stage(lambda speech: np.array([len(speech), 9], np.int32)))
    speech = np.zeros(5, np.float32)
    seal = Tensor("SEAL", np.array([model._calls._seal.seal(b"", speech.tobytes())], np.object_))
    (answer,) = model.execute([InferenceRequest(inputs=[Tensor("AUDIO", speech), seal])])
    assert answer.tensors["CODES"].as_numpy().tolist() == [5, 9]


def test_the_language_model_streams_messages_and_answers_an_error_to_the_end(load: Callable) -> None:
    asked: list[Callable[[], bool]] = []

    def accept(message: Any, send: Callable, cancelled: Callable[[], bool]) -> None:
        asked.append(cancelled)
        if message == Start(SETTINGS, [1]):
            raise ServerFull(1, 2)
        send(DELTA, False)
        send(Probe("s1"), False)
        send(None, True)

    stage = Stage(accept)
    model = load("speech_lm", stage)
    requests = [sealed(model, Start(SETTINGS, [1, 2])), sealed(model, Start(SETTINGS, [1])), InferenceRequest()]
    requests.append(requests[0])  # each message is accepted once
    model.execute(requests)
    first, full, none = (request.sender.sent for request in requests[:3])
    assert [flags for _, flags in first] == [0, 0, 1, 1]
    read = load("audio_decoder", Stage())._calls.read
    assert [read(InferenceRequest(inputs=part.tensors.values())) for part, _ in first[:2]] == [DELTA, Probe("s1")]
    assert first[2][0] is None
    for sent, words in ((full, "server is full"), (none, REFUSAL), (first[3:], REFUSAL)):
        assert [(words in part.error().message(), flags) for part, flags in sent] == [(True, 1)]
    assert len(stage.counted) == 3
    assert not asked[0]()
    requests[0].sender.cancelled = True
    assert asked[0]()
    model.finalize()
    assert stage.closed


def test_the_decoder_answers_in_parts_by_name(load: Callable) -> None:
    asked: list[tuple] = []

    def accept(read: Callable, send: Callable, cancelled: Callable[[], bool]) -> None:
        asked.append((read(), cancelled))
        if isinstance(asked[-1][0], Probe):
            send(None)
            return
        tokens, pcm = np.array([5, 6], np.int64), np.array([7, 8, 9], np.int16)
        send(DecodedChunk("é", tokens, pcm, Status("s1", 0, "running"), complete=False, prompt=(3, 4)))
        send(DecodedChunk("", tokens[:0], pcm[:0], Status("s1", 1, "done")))

    stage = Stage(accept)
    model = load("audio_decoder", stage)
    assert stage.served[:2] == ("audio_decoder_0", model._calls.notify_language_model)
    requests = [sealed(model, DELTA), sealed(model, Probe("s1"))]
    model.execute(requests)
    parts, silent = (request.sender.sent for request in requests)
    assert [flags for _, flags in parts] == [0, 1]
    values = {name: (part.as_numpy().dtype, part.as_numpy().tolist()) for name, part in parts[0][0].tensors.items()}
    assert values.pop("STATUS")[1] == [Status("s1", 0, "running").to_json().encode()]
    assert values == {
        "TEXT_DELTA": (np.object_, ["é".encode()]),
        "TOKENS": (np.int32, [5, 6]),
        "PROMPT": (np.int32, [3, 4]),
        "PCM": (np.int16, [7, 8, 9]),
    }
    assert silent == [(None, 1)]
    assert [message for message, _ in asked] == [DELTA, Probe("s1")]
    requests[0].sender.cancelled = True
    assert asked[0][1]()
    assert not asked[1][1]()
    model._calls.notify_language_model(Cancel("s1"))
    model.finalize()
    assert stage.closed


def test_speech_streams_to_delivery_and_delivery_to_the_client(load: Callable) -> None:
    chunk = DecodedChunk("é", np.array([5], np.int32), np.array([7], np.int16), Status("s1", 0, "done"))

    def generate(message: Any, send: Callable, cancelled: Callable[[], bool]) -> None:
        if message == Start(SETTINGS, [1]):
            raise ServerFull(1, 2)
        send(Probe("s1"), False)
        send(chunk, True)

    def passing(read: Callable, deliver: Callable, refuse: Callable, cancelled: Callable[[], bool]) -> None:
        assert read() == Probe("s1")
        refuse(None) if cancelled() else deliver()

    speech_stage, delivery_stage = Stage(generate), Stage(passing)
    speech = load("speech", speech_stage)
    requests = [sealed(speech, Start(SETTINGS, [1, 2])), sealed(speech, Start(SETTINGS, [1]))]
    requests.append(requests[0])  # each message is accepted once
    speech.execute(requests)
    probe, answer, again = requests[0].sender.sent
    assert [flags for _, flags in (probe, answer, again)] == [0, 1, 1]
    assert REFUSAL in again[0].error().message()
    assert "server is full" in requests[1].sender.sent[0][0].error().message()
    assert len(speech_stage.counted) == 2

    delivery = load("delivery", delivery_stage)
    assert [notify.keywords for notify in delivery_stage.served[:1]] == [{"model": "speech"}]
    steps = [InferenceRequest(inputs=part.tensors.values()) for part, _ in (probe, answer, answer)]
    steps[2].sender.cancelled = True
    delivery.execute(steps)
    assert [step.sender.sent[0][1] for step in steps] == [1, 1, 1]
    silent, passed, gone = (step.sender.sent[0][0] for step in steps)
    assert (silent, gone) == (None, None)
    assert passed.tensors["TEXT_DELTA"].as_numpy().tolist() == ["é".encode()]
    assert passed.tensors.keys() == {"TEXT_DELTA", "TOKENS", "PCM", "STATUS", "PROMPT"}
    speech.finalize()
    delivery.finalize()
    assert speech_stage.closed
    assert delivery_stage.closed
