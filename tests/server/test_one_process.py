"""`--one-process` on a real Triton: the answers, the bounds and the end of a server whose models are apart."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from foreground import all_gone, foreground
from server.launch import TritonServer
from server.options import ServerOptions
from server.processes import model_processes
from serving.seal import REFUSAL
from triton_probe import LONG, Probe, in_flight, live, metrics, sealed, tensor, wait_idle
from vita_audio.contract.messages import Cancel, Ping, Released, encode
from vita_client import Client, Reply, RequestRejected, ServerUnavailable

pytestmark = pytest.mark.server

SPEECH = np.random.default_rng(7).normal(0, 0.1, 24_000).astype(np.float32)
#: Of a series: its metric and its stage, but for refusals, which other tests cause, and the beats of threads.
_STAGE = re.compile(r'(?!vita_requests_refused|vita_heartbeat)(\w+)\{.*\bstage="(\w+)"')
#: Nearly every token is as likely as the one that would end the stream.
ENDLESS = {"temperature": 2.0, "top_k": 0, "repetition_penalty": 1.0}
EIGHT = (
    {"text": "Hello there.", "mode": "vanilla"},
    {"text": "Hello there.", "mode": "turbo"},
    {"text": "Read this aloud.", "task": "tts", "mode": "boost", "temperature": 1.0, "top_k": 50},
    {"text": "And this one, slowly.", "task": "tts", "mode": "balance", "temperature": 0.8, "top_p": 0.9},
    {"audio": SPEECH, "task": "asr", "mode": "boost"},
    {"audio": SPEECH, "mode": "2,3,1,7", "temperature": 1.0},
    {"text": "Just type.", "task": "text", "temperature": 1.0},
    {"text": "What is said here?", "audio": SPEECH[:9000], "mode": "boost", "repetition_penalty": 1.3},
)


@pytest.fixture(scope="module")
def one(engines: Path) -> Iterator[TritonServer]:
    """A server with one process for language model and decoder, as large as the shared `server`."""
    options = ServerOptions(
        engines=engines, grpc_port=0, metrics_port=0, slots=8, queue=0, one_process=True, gpu_priority="speech_lm"
    )
    with TritonServer(options) as running:
        yield running


def ask(server: TritonServer, index: int) -> Reply:
    with Client(server.grpc_url) as client:
        return client.collect(**EIGHT[index], max_tokens=120, seed=index, timeout_s=60)


def test_eight_streams_at_once_answer_as_with_two_processes(one: TritonServer, server: TritonServer) -> None:
    assert set(model_processes(one.pid).values()) == {"prompt", "speech", "delivery", "speech_tokenizer"}
    apart = [ask(server, index) for index in range(8)]
    order = random.Random(1).sample(range(8), 8)
    with ThreadPoolExecutor(8) as threads:
        together = dict(zip(order, threads.map(lambda index: ask(one, index), order), strict=True))
    for index, expected in enumerate(apart):
        got = together[index]
        assert (got.tokens, got.text, got.history) == (expected.tokens, expected.text, expected.history), EIGHT[index]
        assert np.array_equal(got.pcm, expected.pcm), EIGHT[index]
        assert got.status is not None
        assert expected.status is not None
        assert (got.status.state, got.status.reason) == (expected.status.state, expected.status.reason)
    assert set(wait_idle(one).values()) == {0.0}
    assert in_flight(one) == 0


def test_metrics_are_those_of_two_processes(one: TritonServer, server: TritonServer) -> None:
    for each in (one, server):
        ask(each, 0)
        ask(each, 5)
        wait_idle(each)
    # By metric and stage: the other server is shared, and tests before this one have left further label values in it.
    stages = [{series.groups() for name in metrics(each) if (series := _STAGE.match(name))} for each in (one, server)]
    assert stages[1]
    assert stages[1] <= stages[0]
    beats = {name for name in metrics(one) if name.startswith("vita_heartbeat_age_ms") and "speech_0" in name}
    for thread in ("generation", "prober", "decoding", "notifier", "metrics"):
        assert any(f'thread="{thread}"' in beat for beat in beats), thread


def test_a_client_that_goes_ends_its_stream_and_a_full_server_says_so(one: TritonServer) -> None:
    with Client(one.grpc_url) as client:
        streams = [client.stream(**LONG | ENDLESS | {"seed": seed}) for seed in range(8)]
        for stream in streams:
            next(stream)
        with pytest.raises(ServerUnavailable) as full:
            client.collect("Hello.", max_tokens=8, timeout_s=20)
        assert full.value.code == "server_full"
        gone = time.monotonic()
        for stream in streams[1:]:
            stream.cancel()
        while live(one)["vita_places_taken"] > 1:
            assert time.monotonic() - gone < 10
            time.sleep(0.05)
        next(streams[0])
        streams[0].cancel()
        with pytest.raises(RequestRejected):
            client.collect("Hello.", mode="1,99", timeout_s=20)
    assert set(wait_idle(one).values()) == {0.0}
    assert in_flight(one) == 0


def test_what_clients_send_past_the_ensemble_is_refused_or_does_no_harm(one: TritonServer) -> None:
    bare = [tensor("MESSAGE", "BYTES", [encode(Cancel("s1"))[0]]), tensor("TOKENS", "INT32", [1, 2])]
    outputs = [tensor(name, "BYTES", ["x"]) for name in ("TEXT_DELTA", "STATUS")]
    outputs += [tensor("PROMPT", "INT32", []), ("PCM", "INT16", [2], bytes(4))]
    probe = Probe(one)
    assert REFUSAL in probe.error(bare, "speech")
    assert "speech takes no Released" in probe.error(sealed(one, Released("s1")), "speech")
    again = sealed(one, Ping())
    assert [response.error_message for response in probe.stream(again, "speech")] == [""]  # the final flag
    assert REFUSAL in probe.error(again, "speech")
    for inputs, words in ((bare, REFUSAL), (sealed(one, Ping()), "delivery takes no Ping")):
        (response,) = probe.stream([*inputs, *outputs], "delivery")
        assert words.encode() in b"".join(response.infer_response.raw_output_contents)
    probe.close()
    refused: list[float] = []
    deadline = time.monotonic() + 10
    while sum(refused) < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
        refused = sorted(value for name, value in metrics(one).items() if "bad_message" in name and value)
    assert refused == [2, 3]  # delivery, speech
    assert set(wait_idle(one).values()) == {0.0}


def test_a_process_that_dies_is_replaced_and_a_drain_lets_streams_end(engines: Path, tmp_path: Path) -> None:
    with foreground(engines, tmp_path, "--one-process", "--stall-timeout", "2") as server:
        url = server.url()
        with Client(url) as client:
            streams = [
                client.stream(**LONG | ENDLESS) for _ in range(4)
            ]  # together they take too long to end by themselves
            next(streams[-1])
            (speech,) = [pid for pid, model in model_processes(server.process.pid).items() if model == "speech"]
            os.kill(speech, signal.SIGKILL)
            for stream in streams:
                with pytest.raises(ServerUnavailable):
                    stream.collect()
            assert "a process of speech has ended: restarting" in server.line()
            assert server.url() == url
        time.sleep(4)  # Pings of an idle server are answered, else it is replaced
        with Client(url) as client:
            stream = client.stream(**LONG | {"max_tokens": 200})
            next(stream)
            family = server.family()
            server.process.send_signal(signal.SIGTERM)
            assert "draining" in server.line()
            with pytest.raises(ServerUnavailable) as refused:
                client.collect("Hello.", task="tts", max_tokens=8, timeout_s=20)
            assert refused.value.code == "shutting_down"
            reply = stream.collect()
            assert reply.status is not None
            assert reply.status.state == "done"
        assert server.process.wait(30) == 0
        assert all_gone(family, 5)
