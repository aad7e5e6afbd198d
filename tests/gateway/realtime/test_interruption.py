"""Answers that are cut, deleted or followed by others while they play, and what the model is told of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from client_protocol_double import ProtocolDouble
from gateway.realtime.events import event
from gateway.realtime.items import MAX_ITEMS
from gateway.realtime.outbox import Outbox
from gateway.realtime.talk import Talk, Wish
from realtime_session import Peer, question, session
from vita_client import AsyncClient

BY_HAND: dict[str, Any] = {"audio": {"input": {"turn_detection": None}}}


def talk(double: ProtocolDouble, scenario: Any, **changes: Any) -> None:
    """Run a scenario, a coroutine function of a peer, over the double."""

    async def run() -> None:
        async with session(double.url, **changes) as peer:
            await scenario(peer)

    asyncio.run(run())


async def answered(peer: Peer, text: str) -> str:
    """The id of the answer to a typed turn; all of its sound was sent."""
    item_id: str = (await peer.say(text))["output"][0]["id"]
    while not peer.outbox.empty:
        await asyncio.sleep(0.01)
    return item_id


async def to_the_end(talk: Talk) -> None:
    """The answer to what waits, all of it."""
    answer = await talk.respond(Wish())
    async for _ in answer.events():
        pass
    await answer.close()


async def heard(peer: Peer, double: ProtocolDouble) -> Any:
    """What the next turn says of the answer before it."""
    await peer.say("turn 1")
    return double.inputs[-1].get("HEARD")


def test_an_answer_that_was_cut_is_not_cut_again_by_speech(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        item_id = await answered(peer, "turn 100")
        await peer.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=100)
        assert (await peer.until("conversation.item.truncated"))["audio_end_ms"] == 100
        await asyncio.sleep(0.5)
        await peer.speak(question()[:24_000])
        await peer.until("input_audio_buffer.speech_started")
        assert peer.kinds.count("conversation.item.truncated") == 1
        assert await heard(peer, double) == 1

    talk(double, scenario)


@pytest.mark.parametrize("first_ms", [800, 100_000])
def test_a_second_truncation_never_says_more_than_the_first(double: ProtocolDouble, first_ms: int) -> None:
    async def scenario(peer: Peer) -> None:
        item_id = await answered(peer, "turn 20")
        ends = []
        for end_ms in (first_ms, 400, 1200, 100_000):
            await peer.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=end_ms)
            ends.append((await peer.until("conversation.item.truncated"))["audio_end_ms"])
        assert ends == sorted(ends, reverse=True)
        assert ends[1:] == [400, 400, 400]
        assert await heard(peer, double) == 5

    talk(double, scenario, **BY_HAND)


@pytest.mark.parametrize("speed", [1.0, 0.7, 1.5])
@pytest.mark.parametrize("beyond_ms", [0, 5000])
def test_an_answer_that_was_heard_to_its_end_is_not_cut(double: ProtocolDouble, speed: float, beyond_ms: int) -> None:
    async def scenario(peer: Peer) -> None:
        item_id = await answered(peer, "turn 10")
        end_ms = round(peer.use.seconds * 1000) + beyond_ms
        await peer.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=end_ms)
        assert await heard(peer, double) is None

    talk(double, scenario, audio={"input": BY_HAND["audio"]["input"], "output": {"speed": speed}})


def test_of_an_answer_that_was_broken_off_only_what_was_sent_can_have_been_heard(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        await peer.write("turn 1000 0.05")
        await peer.send("response.create")
        item_id = (await peer.until("response.output_audio.delta"))["item_id"]
        await peer.send("response.cancel")
        await peer.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=90_000)
        end_ms = (await peer.until("conversation.item.truncated"))["audio_end_ms"]
        assert end_ms < 1000
        assert await heard(peer, double) == pytest.approx(end_ms / 80, abs=1)

    talk(double, scenario, **BY_HAND)


def test_the_last_answer_may_be_deleted_while_it_plays(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        item_id = await answered(peer, "turn 100")
        await peer.send("conversation.item.delete", item_id=item_id)
        await peer.speak(question())
        assert "error" not in peer.kinds
        await peer.until("input_audio_buffer.committed")  # the rest of what was appended was not lost
        assert "conversation.item.truncated" not in peer.kinds
        while len(double.inputs) < 2:
            await asyncio.sleep(0.01)
        assert double.inputs[1]["HEARD"] == 0

    double.spoken = "turn 1"
    talk(double, scenario)


def test_an_answer_whose_item_is_no_longer_known_is_cut_all_the_same(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        await answered(peer, "turn 100")
        for _ in range(MAX_ITEMS):
            await peer.send("conversation.item.create", item={"type": "message", "role": "user", "content": []})
        await peer.speak(question())
        await peer.until("input_audio_buffer.committed")
        while len(double.inputs) < 2:
            await asyncio.sleep(0.01)
        assert double.inputs[1]["HEARD"] < 120
        assert "error" not in peer.kinds

    double.spoken = "turn 1"
    talk(double, scenario)


def test_an_interruption_moves_to_another_server_with_the_conversation(double: ProtocolDouble) -> None:
    other = ProtocolDouble()

    async def run() -> None:
        async with AsyncClient(double.url) as first, AsyncClient(other.url) as second:
            clients = [first]

            @asynccontextmanager
            async def connect(before: AsyncClient | None) -> AsyncIterator[AsyncClient]:
                yield clients[-1]

            conversation = Talk(connect)
            conversation.say("1", "turn 30")
            await to_the_end(conversation)
            conversation.heard(0.5)
            clients.append(second)
            for number in "23":
                conversation.say(number, "turn 1")
                await to_the_end(conversation)
            await conversation.close()

    try:
        asyncio.run(run())
    finally:
        other.close()
    assert [inputs.get("HEARD") for inputs in other.inputs] == [6, None]
    assert np.asarray(other.inputs[0]["HISTORY"]).tolist() == [1000, *range(30)]


@pytest.mark.parametrize(("truncation", "overflow"), [("auto", "drop"), ("disabled", "error")])
def test_a_response_beside_the_conversation_knows_what_was_heard_of_it(
    double: ProtocolDouble, truncation: str, overflow: str
) -> None:
    async def scenario(peer: Peer) -> None:
        item_id = await answered(peer, "turn 20")
        await peer.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=400)
        await peer.write("turn 1")
        for beside in ({"conversation": "none"}, {}):
            await peer.send("response.create", response=beside)
            await peer.until("response.done")
        for inputs in double.inputs[1:]:
            assert (len(np.asarray(inputs["HISTORY"])), inputs["HEARD"]) == (21, 5)
            assert inputs["HISTORY_OVERFLOW"] == overflow

    talk(double, scenario, **BY_HAND, truncation=truncation)


def test_silence_is_counted_from_where_an_answer_was_cut(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        item_id = await answered(peer, "turn 200")  # 20 s of sound
        began_s = time.monotonic()
        await peer.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=100)
        await peer.until("input_audio_buffer.timeout_triggered", 10)
        assert 0.9 < time.monotonic() - began_s < 8

    double.spoken = "turn 1"
    detection = {"type": "server_vad", "idle_timeout_ms": 1000}
    talk(double, scenario, audio={"input": {"turn_detection": detection}})


def test_an_answer_that_is_cancelled_late_leaves_the_next_one_alone(double: ProtocolDouble) -> None:
    """The task of the first one ends when the second one is being asked for: nothing is answered twice."""

    async def scenario(peer: Peer) -> None:
        await peer.write("turn 1000 0.01")
        await peer.send("response.create")
        await peer.until("response.output_audio.delta")
        first = peer.protocol._answering._active
        assert first is not None
        assert first.answer is not None
        await peer.send("response.cancel")
        await peer.until("response.done")
        await peer.write("turn 3 0.02")
        await peer.send("response.create")
        await peer.until("response.output_audio.delta")
        first.answer.cancel()  # as its task does at its end
        await peer.until("response.done")
        await peer.say("turn 1")
        assert [inputs["TEXT"] for inputs in double.inputs] == ["turn 1000 0.01", "turn 3 0.02", "turn 1"]

    talk(double, scenario, **BY_HAND)


@pytest.mark.parametrize("fails", [False, True])
def test_instructions_that_change_during_the_first_answer(double: ProtocolDouble, fails: bool) -> None:
    """The answer is part of the conversation; where there is none, the conversation begins with them."""

    async def scenario(peer: Peer) -> None:
        await peer.write("hang" if fails else "turn 20 0.02")
        await peer.send("response.create")
        if fails:
            while not double.inputs:
                await asyncio.sleep(0.01)
        else:
            await peer.until("response.output_audio.delta")
        await peer.send("session.update", session={"type": "realtime", "instructions": "Be brief."})
        if fails:
            await peer.send("response.cancel")
        await peer.until("response.done")
        while peer.protocol._answering._tasks:
            await asyncio.sleep(0.01)
        await peer.write("turn 1" if not fails else "1")
        if fails:
            double.once["hang 1"] = "turn 1"
        await peer.send("response.create")
        await peer.until("response.done")
        asked = double.inputs[-1]
        if fails:
            assert (asked["TEXT"], asked["SYSTEM"]) == ("hang 1", "Be brief.")
        else:
            assert np.asarray(asked["HISTORY"]).tolist() == [1000, *range(20)]
            assert asked["TEXT"] == "Be brief. turn 1"
            assert "SYSTEM" not in asked

    double.otherwise = "turn 1"
    talk(double, scenario, **BY_HAND)


def test_speech_that_nobody_answers_is_bounded(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        conversation, second = peer.protocol._talk, np.zeros(16_000, np.float32)
        conversation._answering = object()  # nothing is given to a server
        for number in range(400):
            if number % 3:
                conversation.hear(0, second)
                conversation.forget()
            else:
                conversation.commit("item", second)
            waiting = sum(len(part.speech) for part in conversation._parts)
            assert waiting <= 120 * 16_000
            assert sum(map(len, conversation._not_given)) <= waiting

    talk(double, scenario)


def test_a_session_is_busy_until_the_last_event_was_sent(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        await answered(peer, "turn 1")
        assert not peer.protocol.busy
        peer.outbox.put(event("input_audio_buffer.cleared"))
        assert peer.protocol.busy
        await peer.until("input_audio_buffer.cleared")
        assert not peer.protocol.busy

    talk(double, scenario, **BY_HAND)


def test_an_event_that_is_being_sent_still_counts() -> None:
    async def run() -> None:
        outbox, gate = Outbox(), asyncio.Event()
        outbox.put({"type": "last"})
        sending = asyncio.create_task(outbox.run(lambda text: gate.wait()))
        await asyncio.sleep(0.01)
        assert not outbox.empty
        gate.set()
        await asyncio.sleep(0.01)
        assert outbox.empty
        sending.cancel()

    asyncio.run(run())
