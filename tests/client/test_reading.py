"""Long texts read aloud, of both clients: one stream out of a request for each sentence, the next one ahead."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from client_protocol_double import CHUNK_SAMPLES, ProtocolDouble, chunk_pcm, chunk_text
from client_twins import run
from vita_audio.contract.errors import InvalidRequest, ServerFull, to_wire
from vita_client import (
    AsyncClient,
    AsyncReading,
    Client,
    GenerationFailed,
    Pcm,
    ServerUnavailable,
    StatusUpdate,
    TextDelta,
)
from waiting import until

#: Each paragraph is a script of the server: so many chunks of sound.
PAGE = "chunks 2\n\nchunks 3\n\nchunks 1"
PAUSE = int(0.4 * 22_050)


def seeds(double: ProtocolDouble) -> list[int]:
    return [int(inputs["SEED"]) for inputs in double.inputs]  # type: ignore[call-overload]


def loud(pcm: np.ndarray) -> np.ndarray:
    return pcm[pcm != 0]


def test_a_page_is_one_stream(client: Any, double: ProtocolDouble) -> None:
    reading = client.read(PAGE, mode="turbo", seed=7)
    reply = reading.collect()
    assert [inputs["TEXT"] for inputs in double.inputs] == ["chunks 2", "chunks 3", "chunks 1"]
    assert {(inputs["TASK"], inputs["MODE"]) for inputs in double.inputs} == {("tts", "turbo")}
    sent = list(zip(seeds(double), (2, 3, 1), strict=True))
    pieces = [chunk_pcm(seed, index) for seed, count in sent for index in range(count)]
    np.testing.assert_array_equal(loud(reply.pcm), loud(np.concatenate(pieces)))
    texts = ["".join(chunk_text(seed, index) for index in range(count)) for seed, count in sent]
    assert reply.text == " ".join(texts)
    assert (reply.status.state, reply.status.reason, reply.status.seed) == ("done", "end_token", 7)
    assert reply.metrics.audio_s == pytest.approx(len(reply.pcm) / 22_050)
    assert reply.metrics.responses == 6
    assert reply.metrics.ttfa_ms < reply.metrics.last_audio_ms <= reply.metrics.elapsed_ms


def test_there_is_one_final_status_and_the_responses_count_on(client: Any) -> None:
    statuses = [event.status for event in client.read(PAGE) if isinstance(event, StatusUpdate)]
    assert [status.final for status in statuses] == [False] * (len(statuses) - 1) + [True]
    indices = [status.index for status in statuses]
    assert indices == sorted(set(indices))


def test_the_seed_makes_the_whole_reproducible(client: Any, double: ProtocolDouble) -> None:
    for seed in (3, 3, 4, 2**64 - 1):
        client.read(PAGE, seed=seed).collect()
    drawn = seeds(double)
    assert drawn[:3] == drawn[3:6]
    assert [drawn[0], drawn[6], drawn[9]] == [3, 4, 2**64 - 1]
    assert len(set(drawn)) == 9
    reply = client.read(PAGE).collect()  # the server draws the first one, and reports it
    assert "SEED" not in double.inputs[12]
    assert client.read(PAGE, seed=reply.status.seed).collect().tokens == reply.tokens


def test_the_next_sentence_is_sent_while_this_one_comes_and_no_more(client: Any, double: ProtocolDouble) -> None:
    reading = client.read("chunks 20 0.02\n\nchunks 20 0.02\n\nchunks 1")
    assert double.inputs == []
    first = next(reading)
    assert isinstance(first, TextDelta)
    assert len(double.inputs) == 1
    for event in reading:
        if isinstance(event, StatusUpdate):
            break
    until(lambda: len(double.inputs) == 2)
    for _ in range(30):
        next(reading)
    assert len(double.inputs) == 2
    reading.collect()
    assert len(double.inputs) == 3


def test_sound_of_the_next_sentence_is_there_when_this_one_ends(client: Any) -> None:
    """A server that takes 0.3 s to the first sound is not waited for."""
    reading = client.read("chunks 4 0.2\n\nchunks 1 0", seed=5)
    pieces = [event for event in reading if isinstance(event, Pcm)]
    assert len(pieces) == 6  # a pause is one of them
    assert reading.metrics.elapsed_ms < 2000


def test_there_is_a_pause_between_sentences(client: Any) -> None:
    page = client.read("chunks 2\n\nchunks 2", seed=5).collect()
    assert len(page.pcm) == 4 * CHUNK_SAMPLES + PAUSE
    assert not page.pcm[2 * CHUNK_SAMPLES : 2 * CHUNK_SAMPLES + PAUSE].any()


@pytest.mark.parametrize("text", ["...", " * — \n", "", " \n "])
def test_a_text_without_words_is_refused(client: Any, double: ProtocolDouble, text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^TEXT: .*(no letter and no digit|only white space)"):
        client.read(text).collect()
    with pytest.raises(InvalidRequest, match=r"^TEXT: 'the text' is not valid: it has no letter and no digit"):
        client.read(character for character in text).collect()
    assert double.inputs == []


def test_what_cannot_be_read_aloud_is_left_out(client: Any, double: ProtocolDouble) -> None:
    client.read("chunks 1\n\n" + "*" * 320 + "\n\nchunks 2\n\n***").collect()
    assert [inputs["TEXT"] for inputs in double.inputs] == ["chunks 1", "chunks 2"]


@pytest.mark.parametrize(
    ("text", "fields", "words"),
    [
        ("hi", {"top_p": 2.0}, "TOP_P: 2.0"),
        ("hi", {"task": "chat"}, "TASK: 'chat'"),
        ("hi", {"audio": np.zeros(16_000, np.float32)}, "AUDIO"),
        ("hi", {"timeout_s": 0}, "timeout_s"),
        ("hi", {"seed": -1}, "SEED"),
        (b"hi", {}, "decode bytes"),
        (None, {}, "it is a string, or strings"),
        (object(), {}, "^TEXT: 'type object' is not valid"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(
    client: Any, double: ProtocolDouble, text: Any, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        client.read(text, **fields)
    assert double.inputs == []


def test_a_chunk_that_is_no_text_is_refused(client: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^TEXT: 'a part of type int' is not valid: its parts are strings"):
        client.read(["chunks 1", 7]).collect()


def test_an_error_names_the_sentence(client: Any, double: ProtocolDouble) -> None:
    reading, events = client.read("chunks 2\n\nfail\n\nchunks 1"), []
    with pytest.raises(GenerationFailed, match=r"^sentence 2 of 3: ") as failure:
        events.extend(reading)
    assert "\n" not in str(failure.value)
    assert len([event for event in events if isinstance(event, Pcm)]) >= 2
    assert reading.status.state == "failed"
    with pytest.raises(StopIteration):
        next(reading)
    with pytest.raises(GenerationFailed, match=r"^sentence 2: "):
        client.read(["chunks 2\n\n", "fail\n\n", "chunks 1"]).collect()
    with pytest.raises(GenerationFailed, match=r"^the server failed"):
        client.read("fail").collect()


def test_a_place_that_was_taken_by_the_sentence_before_is_asked_for_again(client: Any, double: ProtocolDouble) -> None:
    """A server with one place: the sentence ahead is refused, and sent again when the first is over."""
    full = f"message-only {to_wire(ServerFull(1, 0))}"
    double.once = {"chunks 2": full}
    reply = client.read("chunks 3\n\nchunks 2\n\nchunks 1", seed=5).collect()
    assert [inputs["TEXT"] for inputs in double.inputs] == ["chunks 3", "chunks 2", "chunks 2", "chunks 1"]
    assert len(reply.pcm) == 6 * CHUNK_SAMPLES + 2 * PAUSE
    with pytest.raises(ServerUnavailable, match=r"^sentence 2: server is full"):
        client.read(["chunks 1\n\n", f"{full}\n\n", "chunks 1"]).collect()


def test_cancel_ends_both_on_the_server(client: Any, double: ProtocolDouble) -> None:
    reading = client.read("chunks 100000 0.01\n\nchunks 100000 0.01\n\nchunks 1")
    for event in reading:
        if isinstance(event, StatusUpdate):
            break
    until(lambda: len(double.inputs) == 2)
    reading.cancel()
    assert list(reading) == []
    assert reading.cancelled
    until(lambda: double.running == 0)


@pytest.mark.parametrize(("begun", "sent"), [("", []), ("chunks 2\n\n.", ["chunks 2"])])
def test_cancel_from_another_thread_while_more_text_is_waited_for_sends_nothing_more(
    double: ProtocolDouble, begun: str, sent: list[str]
) -> None:
    waits, cancelled = threading.Event(), threading.Event()

    def written() -> Iterator[str]:
        yield begun
        waits.set()
        cancelled.wait(20)
        yield "chunks 100000 0.01"

    def cancel() -> None:
        waits.wait(20)
        reading.cancel()
        cancelled.set()

    with Client(double.url) as client:
        reading = client.read(written())
        threading.Thread(target=cancel).start()
        events = list(reading)
        time.sleep(0.2)
    assert [inputs["TEXT"] for inputs in double.inputs] == sent
    assert not any(isinstance(event, StatusUpdate) and event.status.final for event in events)


@pytest.mark.parametrize("end", ["", "..."])
def test_a_text_that_ends_after_the_cancel_is_no_error(double: ProtocolDouble, end: str) -> None:
    def written() -> Iterator[str]:
        reading.cancel()
        yield end

    with Client(double.url) as client:
        reading = client.read(written())
        assert list(reading) == []


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_request_that_goes_out_while_another_thread_cancels_is_cancelled(
    double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The first sentence, the one ahead, and that one again when the server was full."""
    full = f"message-only {to_wire(ServerFull(1, 0))}"
    double.once = {"chunks 100000 0.02": full}
    with Client(double.url) as client:
        reading, send, sent = client.read(["chunks 3\n\n", "chunks 100000 0.02"]), client.send, list[Any]()

        def send_and_cancel(*arguments: Any, **options: Any) -> Any:
            sent.append(send(*arguments, **options))
            if len(sent) == number:
                reading.cancel()
            return sent[-1]

        monkeypatch.setattr(client, "send", send_and_cancel)
        list(reading)
        assert len(sent) == number
        assert sent[-1].cancelled
        until(lambda: double.running == 0)


@pytest.mark.parametrize(("begun", "sent"), [("", []), ("chunks 2\n\n.", ["chunks 2"])])
def test_cancel_of_an_async_reading_that_waits_for_text_sends_nothing_more(
    double: ProtocolDouble, begun: str, sent: list[str]
) -> None:
    more = asyncio.Event()

    async def written() -> AsyncIterator[str]:
        yield begun
        await more.wait()
        yield "chunks 100000 0.01"

    async def work() -> None:
        async with AsyncClient(double.url) as client:
            reading = client.read(written())
            task = asyncio.ensure_future(reading.collect())
            await asyncio.sleep(0.3)
            reading.cancel()
            more.set()
            await task
            await asyncio.sleep(0.2)

    run(work(), timeout_s=10)
    assert [inputs["TEXT"] for inputs in double.inputs] == sent


def test_a_reading_that_outlives_its_loop_is_dropped_in_silence(
    double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)

    async def written() -> AsyncIterator[str]:
        yield "."
        await asyncio.Event().wait()

    async def scenario() -> Any:
        reading = AsyncClient(double.url).read(written())
        waiting = asyncio.ensure_future(anext(reading))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        return reading

    loop = asyncio.new_event_loop()
    reading = loop.run_until_complete(scenario())
    loop.close()
    del reading
    gc.collect()
    assert [str(complaint.exc_value) for complaint in complaints if complaint.object == AsyncReading.__del__] == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a task cannot tell there that it is being cancelled")
@pytest.mark.parametrize("begun", ["stall\n\n.", "."])
def test_a_task_cancelled_twice_ends_as_cancelled(double: ProtocolDouble, begun: str) -> None:
    """A reading that its own `cancel()` ended must not swallow the cancelling of the task that reads it."""

    async def written() -> AsyncIterator[str]:
        yield begun
        await asyncio.Event().wait()

    async def work() -> None:
        async with AsyncClient(double.url) as client:
            reading = client.read(written())
            task = asyncio.create_task(reading.collect())
            await asyncio.sleep(0.3)
            task.cancel()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(work(), timeout_s=10)
    until(lambda: double.running == 0)


def test_leaving_the_block_cancels(client: Any, double: ProtocolDouble) -> None:
    with client.read("chunks 100000 0.01\n\nchunks 1") as reading:
        next(reading)
    until(lambda: double.running == 0)
    with client.read("chunks 1") as reading:
        reading.collect()
    assert not reading.cancelled


def test_an_error_of_the_text_itself_is_raised_and_nothing_runs_on(client: Any, double: ProtocolDouble) -> None:
    def chunks() -> Iterator[str]:
        yield "chunks 3 0.1\n\n"
        yield "chunks 2"
        raise OSError("the page is torn")

    events = list[Any]()
    with pytest.raises(OSError, match="torn"):
        events.extend(client.read(chunks()))
    until(lambda: double.running == 0)
    assert len([event for event in events if isinstance(event, Pcm)]) == 3, "what was sent before is read to its end"


def test_text_that_is_still_being_written(double: ProtocolDouble) -> None:
    """A sentence is sent when the next one begins; sound comes before the text is complete."""
    more = asyncio.Event()

    async def writer() -> AsyncIterator[str]:
        for chunk in ("chu", "nks 2\n", "\nch"):
            yield chunk
        await more.wait()
        yield "unks 3"

    async def work() -> list[int]:
        async with AsyncClient(double.url) as client:
            reading, sizes = client.read(writer(), seed=5), list[int]()
            async for event in reading:
                if isinstance(event, Pcm):
                    sizes.append(len(event.samples))
                if len(sizes) == 2:
                    more.set()
            return sizes

    assert sum(run(work())) == 5 * CHUNK_SAMPLES + PAUSE
    assert [inputs["TEXT"] for inputs in double.inputs] == ["chunks 2", "chunks 3"]


@pytest.mark.parametrize("how", ["cancel", "task", "drop"])
def test_a_reading_that_waits_for_text_can_be_ended(double: ProtocolDouble, how: str) -> None:
    async def writer() -> AsyncIterator[str]:
        yield "chunks 2\n\nc"
        await asyncio.Event().wait()

    async def work() -> str:
        async with AsyncClient(double.url) as client:
            reading = client.read(writer())
            for _ in range(7):
                await anext(reading)
            if how == "drop":
                return "dropped"
            task = asyncio.ensure_future(anext(reading, "the end"))
            await asyncio.sleep(0.1)
            assert not task.done()
            if how == "cancel":
                reading.cancel()
                return await task
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert reading.cancelled
            return "cancelled"

    run(work(), timeout_s=10)
