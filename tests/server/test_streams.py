"""Many streams on a real Triton: together as alone; cancelled or killed, they leave nothing; a full server says so."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from server.launch import TritonServer
from server.options import ROOT, ServerOptions
from server.processes import descendants
from triton_probe import in_flight, long_request, metrics, wait_idle
from vita_client import Client, RequestRejected, ServerUnavailable
from waiting import until

pytestmark = pytest.mark.server

SPEECH = np.random.default_rng(7).normal(0, 0.1, 24_000).astype(np.float32)
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


def test_eight_streams_together_are_the_same_as_alone(server: TritonServer) -> None:
    """Different tasks, modes and sampling, 5 times over in shuffled order: token for token, letter for letter."""

    def ask(index: int) -> tuple:
        with Client(server.grpc_url) as client:
            reply = client.collect(**EIGHT[index], max_tokens=120, seed=index, timeout_s=60)
        return reply.tokens, reply.text, len(reply.pcm), reply.status.reason

    alone = [ask(index) for index in range(8)]
    assert len({tokens for tokens, *_ in alone}) == 8
    for shuffle in range(5):
        order = random.Random(shuffle).sample(range(8), 8)
        with ThreadPoolExecutor(8) as threads:
            together = dict(zip(order, threads.map(ask, order), strict=True))
        for index in range(8):
            assert together[index] == alone[index], EIGHT[index]
    assert set(wait_idle(server).values()) == {0.0}


#: A client that streams from five threads until it is killed.
CLIENT_TO_KILL = """
import json, sys, threading
from vita_client import Client
def run():
    with Client(sys.argv[1]) as client:
        while True:
            for event in client.stream(**json.loads(sys.argv[2])): pass
for _ in range(5):
    threading.Thread(target=run).start()
print("streaming", flush=True)
"""


def test_two_hundred_streams_cancelled_at_random_moments_leave_nothing(engines: Path) -> None:
    options = ServerOptions(engines=engines, grpc_port=0, metrics_port=0, slots=4, queue=150)
    chance = random.Random(0)
    with TritonServer(options) as server:
        with Client(server.grpc_url) as client:
            requests = [long_request(client, mode, at_least=200) for mode in ("vanilla", "boost", "turbo")]
        plan = [(chance.uniform(0, 0.6), chance.choice(requests)) for _ in range(200)]

        def cancelled(delay_s: float, request: dict) -> str:
            with Client(server.grpc_url) as client:
                stream = client.stream(**request)
                timer = threading.Timer(delay_s, stream.cancel)
                timer.start()
                for _ in stream:
                    pass
                timer.cancel()
                return "cancelled" if stream.cancelled else "ended"

        killed = [
            subprocess.Popen(
                [sys.executable, "-c", CLIENT_TO_KILL, server.grpc_url, json.dumps(request)],
                cwd=ROOT,
                env={"PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"},
                stdout=subprocess.PIPE,
            )
            for request in chance.choices(requests, k=5)
        ]
        with ThreadPoolExecutor(12) as threads:
            outcomes = threads.map(lambda item: cancelled(*item), plan)
            for process in killed:
                assert process.stdout is not None
                assert process.stdout.readline() == b"streaming\n"
                time.sleep(chance.uniform(0.05, 0.5))
                process.send_signal(signal.SIGKILL)
                process.wait()
                process.stdout.close()
            counted = Counter(outcomes)
        assert counted["cancelled"] > 160, counted
        assert set(wait_idle(server).values()) == {0.0}
        ended = {key: value for key, value in metrics(server).items() if "ended_total" in key}
        # Streams cancelled before they were handed to the language model never show there, nor those it had finished.
        assert ended['vita_streams_ended_total{reason="cancelled",stage="speech_lm"}'] > 30, ended
        assert not any("failed" in key or "evicted" in key for key in ended), ended
        assert in_flight(server) == 0
        processes = descendants(server.pid)
        asked = time.monotonic()
    assert time.monotonic() - asked < 8  # 10 s would be the limit of a thread that hangs
    assert not any(descendants(pid) for pid in processes)


def test_refused_requests_leave_no_memory_behind(server: TritonServer) -> None:
    """Our client reads a refused call to its end; cancelled ones would stay in this Triton with their inputs."""
    speech = np.full(500_000, 0.1, np.float32)  # 2 MB

    def refuse(times: int) -> None:
        with Client(server.grpc_url) as client:
            for _ in range(times):
                with pytest.raises(RequestRejected, match="K = 10"):
                    client.collect(audio=speech, mode="1,12", timeout_s=10)

    refuse(20)
    before = server.resident_bytes()
    refuse(150)
    assert server.resident_bytes() - before < 20 << 20


def test_a_full_server_says_so_at_once_and_serves_on(engines: Path) -> None:
    options = ServerOptions(engines=engines, grpc_port=0, metrics_port=0, slots=1, queue=1)
    with TritonServer(options) as server, Client(server.grpc_url) as client:
        request = long_request(client)

        def ask(number: int) -> tuple[int, float, str]:
            """Tokens, seconds and error of a long stream."""
            asked = time.monotonic()
            try:
                reply = client.collect(**request)
                return len(reply.tokens), time.monotonic() - asked, ""
            except ServerUnavailable as error:
                return 0, time.monotonic() - asked, str(error)

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(ask, range(8)))
        served = [(tokens, seconds) for tokens, seconds, error in answers if not error]
        refused = [(seconds, error) for _, seconds, error in answers if error]
        assert [tokens for tokens, _ in served] == [900, 900]
        assert len(refused) == 6
        # A stream whose tokens are complete and whose sound is still being made runs without a slot.
        full = re.compile(r".*server is full \((1 running, 1 waiting|2 running, 0 waiting)\)")
        assert all(full.fullmatch(error) for _, error in refused)
        assert max(seconds for seconds, _ in refused) < min(seconds for _, seconds in served) / 2
        assert set(wait_idle(server).values()) == {0.0}
        assert ask(8)[0] == 900


def test_speech_is_not_tokenized_while_the_server_is_full(engines: Path) -> None:
    options = ServerOptions(engines=engines, grpc_port=0, metrics_port=0, slots=1, queue=1)
    with TritonServer(options) as server, Client(server.grpc_url) as client:
        request = long_request(client)
        with client.stream(**request) as first, client.stream(**request) as second:
            next(iter(first))
            until(lambda: metrics(server)["vita_places_taken"] == 2, 60)
            with pytest.raises(ServerUnavailable, match="server is full"):
                client.collect(audio=SPEECH, timeout_s=10)
            assert next(iter(first)) is not None  # both places were still taken
            first.cancel()
            second.cancel()
        wait_idle(server)
        assert metrics(server)['vita_requests_refused_total{field="",reason="server_full",stage="prompt"}'] == 1
        assert client.collect(audio=SPEECH, max_tokens=20, timeout_s=30).tokens
