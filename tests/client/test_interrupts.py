"""Ctrl-C while a stream runs: no KeyboardInterrupt inside of gRPC, and none is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from client_protocol_double import ProtocolDouble
from vita_client import Client, Stream
from vita_client.interrupts import interruptible


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """As in a terminal: a shell starts what runs in its background with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press(after_s: float, times: int = 1) -> None:
    def send() -> None:
        for _ in range(times):
            time.sleep(after_s)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send).start()


def run(double: ProtocolDouble, send: Callable[[Client], Stream], body: Callable[[Stream], object]) -> None:
    with Client(double.url) as client, interruptible(lambda: send(client)) as stream:
        body(stream)


def long(client: Client) -> Stream:
    return client.stream("chunks 500 0.02")


def test_a_signal_cancels_the_stream_and_ends_the_block(double: ProtocolDouble) -> None:
    before, seen = signal.getsignal(signal.SIGINT), list[bool]()

    def body(stream: Stream) -> None:
        press(0.1)
        seen.extend(stream.cancelled for _ in stream)
        seen.append(stream.cancelled)

    with pytest.raises(KeyboardInterrupt):
        run(double, long, body)
    assert len(seen) > 1
    assert seen[-1], "the iteration ends by itself"
    assert double.cancelled.wait(30)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_while_the_request_is_sent_counts_too(double: ProtocolDouble) -> None:
    def send(client: Client) -> Stream:
        os.kill(os.getpid(), signal.SIGINT)
        return long(client)

    ended = list[tuple[int, bool]]()
    with pytest.raises(KeyboardInterrupt):
        run(double, send, lambda stream: ended.append((len(list(stream)), stream.cancelled)))
    ((events, cancelled),) = ended
    assert cancelled
    assert events < 500


@pytest.mark.parametrize("times", [1, 2])
def test_a_block_that_is_stuck_is_interrupted(double: ProtocolDouble, times: int) -> None:
    def body(stream: Stream) -> None:
        press(0.1, times)
        time.sleep(60)
        pytest.fail("it slept on")

    with pytest.raises(KeyboardInterrupt):
        run(double, long, body)


def test_without_a_signal_it_is_a_stream(double: ProtocolDouble) -> None:
    def body(stream: Stream) -> None:
        assert stream.collect().status.state == "done"

    def failing(stream: Stream) -> None:
        raise ValueError("of the block")

    run(double, lambda client: client.stream("chunks 3"), body)
    with pytest.raises(ValueError, match="of the block"):
        run(double, lambda client: client.stream("chunks 3"), failing)
    end_s = time.monotonic() + 30
    while any(thread.name == "interrupts" for thread in threading.enumerate()):
        assert time.monotonic() < end_s, "no thread is left behind"
        time.sleep(0.01)
