"""The stage `delivery`: what a client gets passes, and of a client that is gone `speech` is told once."""

from __future__ import annotations

from collections.abc import Callable

from serving import delivery_stage
from serving.delivery_stage import DeliveryStage
from serving.heartbeat import Heartbeats
from vita_audio.contract.errors import BadMessage
from vita_audio.contract.messages import Cancel, Message, Ping, Probe
from vita_audio.decoding.served_stream import DecodedChunk
from waiting import until


class Client:
    """One request after the other of a client, and what came of them."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.stage = DeliveryStage(self.told.append, Heartbeats())
        self.delivered, self.refused = 0, list[DecodedChunk | None]()

    def deliver(self) -> None:
        self.delivered += 1

    def send(self, read: Callable[[], Message], gone: bool = False) -> None:
        self.stage.accept(read, self.deliver, self.refused.append, lambda: gone)


def test_what_a_client_gets_passes() -> None:
    client = Client()
    client.send(lambda: Probe("s1"))
    client.stage.close()
    assert (client.delivered, client.refused, client.told) == (1, [], [])


def test_a_client_that_is_gone_is_told_once_and_gets_nothing(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(delivery_stage, "_REMEMBERED_STREAMS", 2)
    client = Client()
    for stream in ("s1", "s1", "s2", "s3", "s1"):  # the first is forgotten by then
        client.send(lambda stream=stream: Probe(stream), gone=True)  # type: ignore[misc]
    until(lambda: len(client.told) == 4)
    client.stage.close()
    assert client.told == [Cancel("s1"), Cancel("s2"), Cancel("s3"), Cancel("s1")]
    assert (client.delivered, client.refused) == (0, [None] * 5)


def test_what_is_no_message_of_speech_is_refused_in_one_line() -> None:
    def unsealed() -> Message:
        raise BadMessage("MESSAGE is not of this server")

    client = Client()
    for read, reason in ((unsealed, "MESSAGE is not of this server"), (Ping, "kind: delivery takes no Ping")):
        client.send(read, gone=True)
        chunk = client.refused.pop()
        assert chunk is not None
        assert chunk.complete
        assert chunk.status.state == "failed"
        assert reason in chunk.status.reason
    client.stage.close()
    assert (client.delivered, client.told) == (0, [])
    counted = {series: step for series, step in client.stage.recorder.take().counters.items() if step}
    assert sum(counted.values()) == 2
