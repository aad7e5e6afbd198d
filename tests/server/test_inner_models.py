"""Inner models on a real Triton: they answer the models of their own server, and what a client sends does no harm."""

from __future__ import annotations

import json
import math
import random
import re
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from server.launch import TritonServer
from server.options import ServerOptions
from server.processes import descendants
from serving.metrics.table import METRICS
from serving.seal import MAX_BYTES, REFUSAL, Seal, new_secret
from triton_probe import Probe, live, message, metrics, public, sealed, tensor, wait_idle
from vita_audio.contract.fields import INPUTS, TASKS
from vita_audio.contract.messages import STAGES, Cancel, Delta, GenerationSettings, Released, Start, Status, encode
from vita_audio.contract.messages import Probe as ProbeMessage
from vita_client import Client, StatusUpdate

pytestmark = pytest.mark.server

SETTINGS = GenerationSettings("chat", "vanilla", (8192, 0), 50, 0.0, 0, 1.0, 1.0, 1)
START, DELTA = Start(SETTINGS, [1, 2, 3]), Delta(Status("x1", 0, "running", task="chat", mode="vanilla", seed=1), [1])
#: A long stream whatever the weights are: sampled, and warm enough never to end.
LONG = {"TEXT": "Number one.", "TASK": "tts", "MODE": "vanilla", "MAX_TOKENS": 400, "TEMPERATURE": 2.0, "SEED": 1}


@pytest.fixture(scope="module")
def server(engines: Path) -> Iterator[TritonServer]:
    with TritonServer(ServerOptions(engines=engines, grpc_port=0, metrics_port=0, slots=2, queue=0)) as running:
        yield running


@pytest.fixture(scope="module")
def probe(server: TritonServer) -> Iterator[Probe]:
    probe = Probe(server)
    yield probe
    probe.close()


@pytest.fixture(autouse=True)
def _serves_on(server: TritonServer) -> Iterator[None]:
    """After each test: nothing is taken, the engines still compute and say so, no label is of a client's making."""
    yield
    assert set(wait_idle(server, 30).values()) == {0.0}
    before = busy_ms(server)
    with Client(server.grpc_url) as client:
        assert client.collect("Still there?", max_tokens=20, timeout_s=60).tokens
    deadline = time.monotonic() + 20
    while not all(now > then for now, then in zip(busy_ms(server), before, strict=True)):
        assert time.monotonic() < deadline, "the metrics do not move"
        time.sleep(0.1)
    assert odd_labels(server) == []
    assert set(wait_idle(server, 30).values()) == {0.0}


def busy_ms(server: TritonServer) -> list[float]:
    found = metrics(server)
    return [found[f'vita_busy_ms_total{{stage="{stage}"}}'] for stage in ("audio_decoder", "speech_lm")]


def odd_labels(server: TritonServer) -> list[str]:
    """Series whose labels are none of the fixed words."""
    stages = {"prompt", "speech_lm", "audio_decoder", *STAGES}
    words = {
        "task": {*TASKS},
        "stage": stages,
        "state": {"running", "waiting"},
        "field": {"", "request id", *(field.name for field in INPUTS)},
    }
    odd = []
    for series in metrics(server):
        name, _, labels = series.partition("{")
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        values = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels))
        values.pop("le", None)
        known = all(value in words.get(label, {value}) for label, value in values.items())
        if base not in METRICS or values.keys() != {*METRICS[base].labels} or not known:
            odd.append(series)
    return odd


def changed(message: Any, **values: Any) -> list[tuple]:
    """The tensors of a message with other values, or without them (...), not sealed."""
    text, ids = encode(message)
    fields = {name: value for name, value in {**json.loads(text), **values}.items() if value is not ...}
    return [tensor("MESSAGE", "BYTES", [json.dumps(fields)]), tensor("TOKENS", "INT32", ids)]


def raw(text: str | bytes, ids: Iterable[int] = (1,)) -> list[tuple]:
    return [tensor("MESSAGE", "BYTES", [text]), tensor("TOKENS", "INT32", ids)]


def forged(message: Any) -> list[tuple]:
    """A message under another secret."""
    text, ids = encode(message)
    tokens = tensor("TOKENS", "INT32", ids)
    return [tensor("MESSAGE", "BYTES", [Seal(new_secret()).seal(text.encode(), tokens[3])]), tokens]


#: What ended a thread, aborted Triton, forged a line of the log or stopped the metrics before messages were sealed.
UNSEALED: dict[str, tuple[str, list[tuple]]] = {
    **{
        f"start {name}={value!r:.40}": ("speech_lm", changed(START, **{name: value}))
        for name, value in (
            ("max_tokens", "x"),
            ("max_tokens", -5),
            ("timings_ms", [1]),
            ("timings_ms", {"a": "x"}),
            ("task", 'evil"} 9\nvita_fake{x="1'),
            ("pattern", [0, 0]),
            ("pattern", [1]),
            ("pattern", [1, 0, 1]),
            ("pattern", "ab"),
            ("temperature", math.nan),
            ("top_p", 0.0),
            ("seed", 10**400),
            ("seed", ...),
        )
    },
    **{
        f"delta {name}={value!r:.40}": ("audio_decoder", changed(DELTA, **{name: value}))
        for name, value in (
            ("stream", [1]),
            ("stream", None),
            ("seed", "x"),
            ("state", ["x"]),
            ("timings_ms", {"a": "x"}),
            ("task", 5),
            ("index", 2**70),
        )
    },
    "start as it should be": ("speech_lm", changed(START)),
    "delta as it should be": ("audio_decoder", changed(DELTA)),
    "start under another secret": ("speech_lm", forged(START)),
    "delta under another secret": ("audio_decoder", forged(DELTA)),
    "probe": ("audio_decoder", changed(ProbeMessage("x1"))),
    "cancel of no stream": ("speech_lm", changed(Cancel("nobody"))),
    "released of no stream": ("speech_lm", changed(Released("nobody"))),
    "deep JSON": ("speech_lm", raw("[" * 200_000)),
    "no text": ("speech_lm", raw("")),
    "not UTF-8": ("audio_decoder", raw(b"\xff\xfe" * 40)),
    "lines and colours": ("audio_decoder", raw("a" * 64 + "\nINFO forged\x1b[31m")),
    "no tokens": ("speech_lm", raw("a" * 100, [])),
    "tokens below 0": ("audio_decoder", raw("a" * 100, [-5, 2**31 - 1])),
    "more than is hashed": ("speech_lm", raw("a" * 100, [0] * (MAX_BYTES // 4 + 1))),
    "silence": ("speech_tokenizer", [tensor("AUDIO", "FP32", [0.0] * 16_000), tensor("SEAL", "BYTES", ["x" * 64])]),
    "no speech": ("speech_tokenizer", [tensor("AUDIO", "FP32", []), tensor("SEAL", "BYTES", [b"\xff"])]),
    "NaN": ("speech_tokenizer", [tensor("AUDIO", "FP32", [math.nan] * 2000), tensor("SEAL", "BYTES", [""])]),
}


def answer(probe: Probe, inputs: list[tuple], model: str) -> str:
    """The one line with which a call is answered: an error, or the reason in STATUS."""
    lines = []
    for response in probe.stream(inputs, model, timeout_s=60):
        assert not (lines and lines[-1]), "more than one answer"
        lines.append(response.error_message or reason(response))
    assert len(lines) == 1
    return lines[0]


def reason(response: service_pb2.ModelStreamInferResponse) -> str:
    outputs = output_tensors(response)
    return Status.from_json(outputs["STATUS"][3][4:]).reason if "STATUS" in outputs else ""


def output_tensors(response: service_pb2.ModelStreamInferResponse) -> dict[str, tuple]:
    """The outputs of a response, as inputs of the next request."""
    answer = response.infer_response
    pairs = zip(answer.outputs, answer.raw_output_contents, strict=True)
    return {output.name: (output.name, output.datatype, list(output.shape), part) for output, part in pairs}


def test_what_is_not_sealed_is_refused_in_one_line(server: TritonServer, probe: Probe) -> None:
    for name, (model, inputs) in UNSEALED.items():
        line = answer(probe, inputs, model)
        assert line.endswith(REFUSAL), name
        assert line.isprintable(), name
    assert not any(live(server).values())
    assert "Traceback" not in server.log()
    assert not re.search(r"^INFO forged|\x1b", server.log(), re.MULTILINE)
    time.sleep(0.5)  # the metrics are refreshed five times a second
    refused = {key: value for key, value in metrics(server).items() if 'reason="bad_message"' in key}
    told = [model for model, _ in UNSEALED.values()]
    for stage in ("speech_lm", "audio_decoder", "speech_tokenizer"):
        counted = refused[f'vita_requests_refused_total{{field="",reason="bad_message",stage="{stage}"}}']
        assert counted == told.count(stage)


def test_tensors_that_do_not_fit_are_refused_by_triton(probe: Probe) -> None:
    for model, inputs in (
        ("speech_lm", [tensor("MESSAGE", "BYTES", []), tensor("TOKENS", "INT32", [1])]),
        ("speech_lm", [tensor("MESSAGE", "BYTES", ["a", "b"]), tensor("TOKENS", "INT32", [1])]),
        ("speech_lm", [tensor("MESSAGE", "BYTES", ["a"]), tensor("TOKENS", "INT64", [1])]),
        ("speech_lm", [tensor("MESSAGE", "BYTES", ["a"]), tensor("TOKENS", "INT32", [1, 2], [2, 1])]),
        ("speech_lm", [("MESSAGE", "BYTES", [1], struct.pack("<I", 2**31) + b"a"), tensor("TOKENS", "INT32", [1])]),
        ("audio_decoder", [tensor("MESSAGE", "BYTES", ["a"])]),
        ("audio_decoder", [tensor("MESSAGE", "BYTES", ["a"]), ("TOKENS", "INT32", [2**40], b"")]),
        ("speech_tokenizer", [tensor("AUDIO", "FP32", [0.0])]),
        ("prompt", [tensor("SEAL", "BYTES", ["a"])]),
    ):
        assert probe.error(inputs, model)


def test_random_bytes_are_refused(probe: Probe) -> None:
    chance = random.Random(0)
    for _ in range(60):
        inputs = raw(chance.randbytes(chance.choice([0, 1, 63, 64, 65, 300])), [1] * chance.randrange(3))
        assert answer(probe, inputs, chance.choice(["speech_lm", "audio_decoder"])).endswith(REFUSAL)


def test_a_running_stream_cannot_be_touched_from_outside(server: TritonServer, probe: Probe) -> None:
    fields = {"task": "tts", "mode": "vanilla", "max_tokens": 600, "temperature": 2.0, "seed": 1, "timeout_s": 120}
    with Client(server.grpc_url) as client:
        alone = client.collect("Number one.", **fields)
        with client.stream("Number one.", **fields) as stream:
            first = next(event for event in stream if isinstance(event, StatusUpdate))
            name = first.status.stream
            for model, message in (
                ("speech_lm", Cancel(name)),
                ("speech_lm", Released(name)),
                ("audio_decoder", ProbeMessage(name)),
                ("audio_decoder", Delta(Status(name, 1, "failed"), [])),
            ):
                for inputs in (changed(message), forged(message)):
                    assert answer(probe, inputs, model).endswith(REFUSAL)
            last = stream.collect()
    assert (last.status.state, last.status.reason) == (alone.status.state, alone.status.reason)
    assert last.tokens == alone.tokens[-len(last.tokens) :]


def own_start(probe: Probe, **inputs: object) -> list[tuple]:
    """A Start that a client has from `prompt`, called directly."""
    (response,) = probe.stream(public(**{**LONG, **inputs}), "prompt")
    assert not response.error_message
    outputs = output_tensors(response)
    return [outputs["MESSAGE"], outputs["TOKENS"]]


def test_a_start_from_prompt_is_good_for_one_stream(probe: Probe) -> None:
    """With it a client gets what a public request gives, tokens and sound, and no more."""
    start = own_start(probe, MAX_TOKENS=30)
    other = [start[0], tensor("TOKENS", "INT32", [1, 2, 3])]
    assert answer(probe, other, "speech_lm").endswith(REFUSAL)
    assert answer(probe, start, "audio_decoder").endswith("audio_decoder takes no Start")
    deltas = []
    samples = 0
    for response in probe.stream(start, "speech_lm"):
        outputs = output_tensors(response)
        if "MESSAGE" not in outputs:
            continue
        sent = [outputs["MESSAGE"], outputs["TOKENS"]]
        for reply in probe.stream(sent, "audio_decoder"):
            assert not reply.error_message
            samples += len(output_tensors(reply).get("PCM", (0, 0, 0, b""))[3]) // 2
        if b'"delta"' in outputs["MESSAGE"][3]:
            deltas.append(sent)
    assert samples
    assert answer(probe, start, "speech_lm").endswith(REFUSAL)
    assert answer(probe, deltas[0], "speech_lm").endswith("speech_lm takes no Delta")
    # A Delta of a stream that is over is answered with how it ended, and opens nothing.
    for sent in deltas:
        assert answer(probe, sent, "audio_decoder") == "max_tokens"
    mixed = [deltas[0][0], tensor("TOKENS", "INT32", [1] * 50)]
    assert answer(probe, mixed, "audio_decoder").endswith(REFUSAL)


def test_a_client_that_leaves_a_stream_of_its_own_keeps_no_place(server: TritonServer, probe: Probe) -> None:
    calls = [probe.stream(own_start(probe, MAX_TOKENS=1000, SEED=seed), "speech_lm", 120) for seed in (1, 2)]
    for call in calls:
        next(call)
    assert "server is full" in probe.error(public(TEXT="Hello."))
    for call in calls:
        call.cancel()
    assert set(wait_idle(server, 30).values()) == {0.0}


def test_many_calls_at_once_leave_nothing(server: TritonServer) -> None:
    models = [case for case in UNSEALED.values() if sum(len(entry[3]) for entry in case[1]) < 10_000]
    failures: list[str] = []

    def call(number: int) -> None:
        own, chance = Probe(server), random.Random(number)
        for _ in range(25):
            model, inputs = chance.choice(models)
            if not answer(own, inputs, model).endswith(REFUSAL):
                failures.append(model)
        own.close()

    size = len(server.log())
    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    lines = server.log()[size:].count("refused a message")
    assert lines <= time.monotonic() - begin + 2  # one a second


def test_a_request_id_is_bounded_and_forges_nothing(server: TritonServer, probe: Probe) -> None:
    for request_id in ("x" * 129, "a\nINFO forged\x1b[31m"):
        request = message(public(TEXT="Hello."))
        request.id = request_id
        (answer,) = probe.stub.ModelStreamInfer(iter([request]), timeout=30)
        assert "field=request%20id" in answer.error_message
        assert answer.error_message.isprintable()
        assert len(answer.error_message) < 400
    assert "forged" not in server.log()


def test_the_secret_is_in_the_environment_of_the_models_alone(server: TritonServer, probe: Probe) -> None:
    secret = server.secret.encode()
    processes = [server.pid, *descendants(server.pid)]
    stubs = [pid for pid in processes if b"triton_python_backend_stub" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert stubs
    assert all(secret in Path(f"/proc/{pid}/environ").read_bytes() for pid in stubs)
    assert not any(secret in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes)
    shown = [server.log(), repr(metrics(server)), repr(server.options)]
    for model in ("vita_audio", "prompt", "speech_lm", "audio_decoder", "speech_tokenizer"):
        shown.append(str(probe.stub.ModelConfig(service_pb2.ModelConfigRequest(name=model))))
        shown.append(str(probe.stub.ModelMetadata(service_pb2.ModelMetadataRequest(name=model))))
    shown.append(str(probe.stub.ServerMetadata(service_pb2.ServerMetadataRequest())))
    assert not any(server.secret in text for text in shown)


def test_speech_reaches_the_tokenizer_through_the_ensemble_alone(server: TritonServer, probe: Probe) -> None:
    speech = np.random.default_rng(7).normal(0, 0.1, 16_000).astype(np.float32)
    ticket = Seal(server.secret).seal(b"", speech.tobytes())
    mine = [tensor("AUDIO", "FP32", speech), tensor("SEAL", "BYTES", [ticket])]
    assert probe.code(mine, "speech_tokenizer")[1] == ""
    other = [tensor("AUDIO", "FP32", speech[:-1]), tensor("SEAL", "BYTES", [ticket])]
    assert probe.code(other, "speech_tokenizer")[1].endswith(REFUSAL)
    assert answer(probe, sealed(server, Cancel("nobody")), "speech_lm") == ""
