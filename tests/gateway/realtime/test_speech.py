"""Spoken turns: by turn detection and by hand, interruption, what was heard, reading ahead, transcription, silence."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
import pytest

from client_protocol_double import ProtocolDouble
from gateway.realtime.session import TranscriptionSession
from realtime_session import Peer, pcm24, question, session
from waiting import until

BY_HAND: dict[str, Any] = {"audio": {"input": {"turn_detection": None}}}
SECOND = question()[8000:24_000]


def vad(**rules: Any) -> dict[str, Any]:
    return {"audio": {"input": {"turn_detection": {"type": "server_vad", **rules}}}}


def talk(double: ProtocolDouble, scenario: Any, begins: TranscriptionSession | None = None, **changes: Any) -> None:
    """Run a scenario, a coroutine function of a peer, over the double."""

    async def run() -> None:
        async with session(double.url, begins, **changes) as peer:
            await scenario(peer)

    asyncio.run(run())


def seconds(inputs: dict[str, Any]) -> float:
    return len(inputs["AUDIO"]) / 16_000


@pytest.mark.parametrize("detection", [{"type": "server_vad"}, {"type": "semantic_vad", "eagerness": "high"}])
def test_a_spoken_turn_is_found_and_answered(double: ProtocolDouble, detection: dict[str, Any]) -> None:
    double.spoken = "turn 3"

    async def scenario(peer: Peer) -> None:
        await peer.speak(question())
        await peer.until("response.done")
        kinds = [kind for kind in dict.fromkeys(peer.kinds) if not kind.startswith("session")]
        assert kinds[:6] == [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            "response.created",
        ]
        by_kind = {event["type"]: event for event in reversed(peer.events)}
        item_id = by_kind["input_audio_buffer.speech_started"]["item_id"]
        assert by_kind["input_audio_buffer.speech_stopped"]["item_id"] == item_id
        assert by_kind["input_audio_buffer.committed"]["item_id"] == item_id
        assert by_kind["conversation.item.added"]["item"]["id"] == item_id
        begin_ms = by_kind["input_audio_buffer.speech_started"]["audio_start_ms"]
        end_ms = by_kind["input_audio_buffer.speech_stopped"]["audio_end_ms"]
        assert seconds(double.inputs[0]) == pytest.approx((end_ms - begin_ms) / 1000, abs=0.01)
        assert 300 < begin_ms < 700

    talk(double, scenario, audio={"input": {"turn_detection": detection}})


def test_the_pieces_of_the_sound_change_nothing(double: ProtocolDouble) -> None:
    double.spoken = "turn 1"

    async def scenario(peer: Peer) -> None:
        await peer.speak(question(), piece_s=10)
        await peer.until("response.done")
        await peer.speak(question(), piece_s=0.013)
        await peer.until("response.done")
        whole, pieces = (seconds(inputs) for inputs in double.inputs)
        assert pieces == pytest.approx(whole, abs=0.07)

    talk(double, scenario)


def test_speech_interrupts_the_answer_and_cuts_it_to_what_was_heard(double: ProtocolDouble) -> None:
    double.spoken = "turn 1000 0.05"

    async def scenario(peer: Peer) -> None:
        await peer.speak(question())
        await peer.until("response.output_audio.delta")
        double.spoken = "turn 1"
        await asyncio.sleep(0.3)
        await peer.speak(question()[8000:], pace=0.2)
        truncated = await peer.until("conversation.item.truncated")
        done = next(event["response"] for event in peer.events if event["type"] == "response.done")
        assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        assert truncated["item_id"] == done["output"][0]["id"]
        assert 200 < truncated["audio_end_ms"] < 3000
        started = max(i for i, kind in enumerate(peer.kinds) if kind == "input_audio_buffer.speech_started")
        assert peer.kinds[started + 1 :][:1] == ["response.output_audio.done"]
        await asyncio.to_thread(until, double.cancelled.is_set)
        await peer.until("response.done")
        answered = next(inputs for inputs in double.inputs[1:] if not inputs.get("READ_ONLY"))
        assert answered["HEARD"] == pytest.approx(truncated["audio_end_ms"] / 80, abs=1)

    talk(double, scenario)


def test_sound_that_still_plays_is_cut_after_the_answer_is_complete(double: ProtocolDouble) -> None:
    double.spoken = "turn 100"  # 10 s of sound at once

    async def scenario(peer: Peer) -> None:
        await peer.speak(question())
        await peer.until("response.done")
        await peer.speak(question())
        truncated = await peer.until("conversation.item.truncated")
        assert truncated["audio_end_ms"] < 9000
        assert [event["response"]["status"] for event in peer.events if event["type"] == "response.done"] == [
            "completed"
        ]

    talk(double, scenario)


def test_the_listener_knows_better_what_was_heard(double: ProtocolDouble) -> None:
    double.spoken = "turn 100"

    async def scenario(peer: Peer) -> None:
        await peer.speak(question())
        answer = (await peer.until("response.done"))["response"]["output"][0]
        await peer.speak(question()[:24_000])
        await peer.until("conversation.item.truncated")
        await peer.send("conversation.item.truncate", item_id=answer["id"], content_index=0, audio_end_ms=80)
        assert (await peer.until("conversation.item.truncated"))["audio_end_ms"] <= 80
        await peer.speak(question()[24_000:])
        await peer.until("response.done")
        assert double.inputs[-1]["HEARD"] <= 1

    talk(double, scenario)


def test_an_answer_that_may_not_be_interrupted_goes_on(double: ProtocolDouble) -> None:
    double.spoken = "turn 20 0.02"

    async def scenario(peer: Peer) -> None:
        await peer.speak(question())
        await peer.until("response.output_audio.delta")
        await peer.speak(question()[8000:])
        assert (await peer.error())["code"] == "conversation_already_has_active_response"
        assert (await peer.until("response.done"))["response"]["status"] == "completed"
        await peer.send("response.create")
        await peer.until("response.done")
        assert "HEARD" not in double.inputs[-1]
        assert seconds(double.inputs[-1]) > 1

    talk(double, scenario, **vad(interrupt_response=False))


def test_turn_detection_may_leave_the_answer_to_the_client(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        await peer.speak(question())
        await peer.until("conversation.item.done")
        await asyncio.sleep(0.1)
        assert not double.inputs
        assert "response.created" not in peer.kinds

    talk(double, scenario, **vad(create_response=False))


def test_a_long_turn_is_read_ahead_and_the_answer_is_to_the_same_sound(double: ProtocolDouble) -> None:
    double.spoken = "turn 1"
    speech = np.concatenate([question()[8000:-16_000]] * 5)

    async def scenario(peer: Peer) -> None:
        await peer.speak(np.concatenate([speech, np.zeros(16_000, np.float32)]), pace=0.05)
        await peer.until("response.done")
        ahead = [inputs for inputs in double.inputs if inputs.get("READ_ONLY")]
        whole = np.asarray(double.inputs[-1]["AUDIO"])
        assert ahead
        for inputs in ahead:
            begin = np.asarray(inputs["AUDIO"])
            assert np.array_equal(begin, whole[: len(begin)])

    talk(double, scenario, **vad(silence_duration_ms=800))


def test_by_hand_a_turn_is_what_was_appended(double: ProtocolDouble) -> None:
    double.spoken = "turn 1"

    async def scenario(peer: Peer) -> None:
        await peer.speak(SECOND)
        await peer.send("input_audio_buffer.clear")
        await peer.until("input_audio_buffer.cleared")
        await peer.speak(SECOND[:8000])
        await peer.send("input_audio_buffer.commit")
        first = (await peer.until("input_audio_buffer.committed"))["item_id"]
        await peer.speak(SECOND[:4800])
        await peer.send("input_audio_buffer.commit")
        assert (await peer.until("input_audio_buffer.committed"))["previous_item_id"] == first
        await peer.send("response.create")
        await peer.until("response.done")
        assert seconds(double.inputs[0]) == pytest.approx(0.8, abs=0.01)
        await peer.speak(SECOND[:800])
        await peer.send("input_audio_buffer.commit")
        assert (await peer.error())["code"] == "input_audio_buffer_commit_empty"

    talk(double, scenario, **BY_HAND)


def test_pipecats_order_of_an_interruption_by_hand(double: ProtocolDouble) -> None:
    """Clear, the onset again, cancel, truncate; later commit and create: none of these may be an error."""
    double.spoken = "turn 1000 0.02"

    async def scenario(peer: Peer) -> None:
        await peer.speak(SECOND)
        await peer.send("input_audio_buffer.commit")
        await peer.send("response.create")
        for _ in range(3):
            item_id = (await peer.until("response.output_audio.delta"))["item_id"]
        double.spoken = "turn 1"
        await peer.send("input_audio_buffer.clear")
        await peer.speak(SECOND[:6400])
        await peer.send("response.cancel")
        await peer.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=80)
        await peer.until("conversation.item.truncated")
        await peer.speak(SECOND[6400:])
        await peer.send("input_audio_buffer.commit")
        await peer.send("response.create")
        assert (await peer.until("response.done"))["response"]["status"] == "completed"
        first = next(event["response"] for event in peer.events if event["type"] == "response.done")
        assert first["status"] == "cancelled"
        assert (double.inputs[-1]["HEARD"], seconds(double.inputs[-1])) == (1, pytest.approx(1, abs=0.01))
        assert "error" not in peer.kinds

    talk(double, scenario, **BY_HAND)


def test_a_microphone_left_open_by_hand_stays_bounded(double: ProtocolDouble) -> None:
    double.spoken = "turn 1"

    async def scenario(peer: Peer) -> None:
        for _ in range(13):
            await peer.speak(np.zeros(160_000, np.float32), piece_s=10)
        await peer.send("input_audio_buffer.commit")
        await peer.send("response.create")
        assert (await peer.until("response.done"))["response"]["status"] == "completed"
        assert 110 < seconds(double.inputs[-1]) <= 120

    talk(double, scenario, **BY_HAND)


@pytest.mark.parametrize("name", ["audio/pcmu", "audio/pcma"])
def test_telephone_sound_goes_both_ways(double: ProtocolDouble, name: str) -> None:
    double.spoken = "turn 5"

    async def scenario(peer: Peer) -> None:
        silence = base64.b64encode(bytes([0xFF if name == "audio/pcmu" else 0xD5]) * 8000).decode()
        await peer.send("input_audio_buffer.append", audio=silence)
        await peer.send("input_audio_buffer.commit")
        await peer.send("response.create")
        await peer.until("response.done")
        assert seconds(double.inputs[0]) == pytest.approx(1, abs=0.001)
        assert np.abs(double.inputs[0]["AUDIO"]).max() < 0.001
        sound = b"".join(
            base64.b64decode(event["delta"]) for event in peer.events if event["type"] == "response.output_audio.delta"
        )
        assert len(sound) == pytest.approx(4000, abs=2)

    form = {"format": {"type": name}}
    talk(double, scenario, audio={"input": {"turn_detection": None, **form}, "output": form})


def test_an_item_may_be_speech(double: ProtocolDouble) -> None:
    double.spoken = "turn 1"

    async def scenario(peer: Peer) -> None:
        content = [{"type": "input_audio", "audio": base64.b64encode(pcm24(SECOND)).decode()}]
        await peer.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        item = (await peer.until("conversation.item.done"))["item"]
        assert item["content"] == [{"type": "input_audio", "transcript": None}]
        await peer.send("response.create")
        await peer.until("response.done")
        assert seconds(double.inputs[0]) == pytest.approx(1, abs=0.001)

    talk(double, scenario)


def test_a_turn_is_written_down_too(double: ProtocolDouble) -> None:
    double.spoken = "turn 2"

    async def scenario(peer: Peer) -> None:
        await peer.speak(question())
        completed = await peer.until("conversation.item.input_audio_transcription.completed")
        assert completed["transcript"] == "s0c0 é s0c1 é"
        assert completed["usage"]["seconds"] > 1
        assert {inputs["TASK"] for inputs in double.inputs} == {"asr", "chat"}
        await peer.send("conversation.item.retrieve", item_id=completed["item_id"])
        item = (await peer.until("conversation.item.retrieved"))["item"]
        assert item["content"][0]["transcript"] == "s0c0 é s0c1 é"

    talk(double, scenario, audio={"input": {"transcription": {"model": "whisper-1", "language": "en"}}})


def test_a_transcription_that_fails_is_told_and_changes_nothing(double: ProtocolDouble) -> None:
    double.spoken = "abort UNAVAILABLE gone"

    async def scenario(peer: Peer) -> None:
        await peer.speak(question())
        failed = await peer.until("conversation.item.input_audio_transcription.failed")
        assert failed["error"]["code"] == "unavailable"

    transcription = {"transcription": {"model": "whisper-1"}}
    talk(double, scenario, audio={"input": {**transcription, **vad(create_response=False)["audio"]["input"]}})


def test_a_transcription_session_writes_down_and_answers_nothing(double: ProtocolDouble) -> None:
    double.spoken = "turn 2"

    async def scenario(peer: Peer) -> None:
        assert peer.events[0]["session"]["type"] == "transcription"
        rules = {"type": "server_vad", "silence_duration_ms": 300}
        audio = {"input": {"turn_detection": rules, "transcription": {"model": "x", "language": "en"}}}
        await peer.send("session.update", session={"type": "transcription", "audio": audio})
        await peer.until("session.updated")
        await peer.speak(question())
        await peer.until("conversation.item.input_audio_transcription.completed")
        assert [inputs["TASK"] for inputs in double.inputs] == ["asr"]
        await peer.send("response.create")
        assert (await peer.error())["code"] == "invalid_value"

    talk(double, scenario, TranscriptionSession(id="sess_1"))


def test_silence_in_a_transcription_session_is_nothing(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        audio = {"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 1000}}}
        await peer.send("session.update", session={"type": "transcription", "audio": audio})
        await asyncio.sleep(1.5)
        assert peer.kinds == ["session.created", "session.updated"]

    talk(double, scenario, TranscriptionSession(id="sess_1"))


def test_silence_after_an_answer_is_answered_when_that_was_asked_for(double: ProtocolDouble) -> None:
    double.spoken = "turn 1"

    async def scenario(peer: Peer) -> None:
        await peer.speak(question())
        await peer.until("response.done")
        await peer.speak(np.zeros(16_000, np.float32))
        triggered = await peer.until("input_audio_buffer.timeout_triggered")
        committed = await peer.until("input_audio_buffer.committed")
        assert triggered["item_id"] == committed["item_id"]
        await peer.until("response.done")
        assert seconds(double.inputs[1]) == pytest.approx(0.5, abs=0.01)

    talk(double, scenario, **vad(idle_timeout_ms=1000))


def spoken_message(*seconds: float) -> dict[str, Any]:
    sounds = [base64.b64encode(pcm24(np.zeros(round(each * 16_000), np.float32))).decode() for each in seconds]
    return {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": each} for each in sounds]}


@pytest.mark.parametrize(("seconds", "place"), [((120.1,), 0), ((70.0, 60.0), 1)])
def test_a_message_with_more_speech_than_a_turn_has_is_refused(
    double: ProtocolDouble, seconds: tuple[float, ...], place: int
) -> None:
    async def scenario(peer: Peer) -> None:
        await peer.send("conversation.item.create", item=spoken_message(*seconds))
        error = await peer.error()
        assert (error["code"], error["param"]) == ("invalid_value", f"item.content.{place}.audio")
        assert f"{sum(seconds):.1f} s of speech; a turn has at most 120 s" in error["message"]
        assert "conversation.item.added" not in peer.kinds
        await peer.send("conversation.item.create", item=spoken_message(60, 60))
        await peer.send("response.create")
        assert (await peer.until("response.done"))["response"]["status"] == "completed"
        assert len(double.inputs[-1]["AUDIO"]) == 120 * 16_000  # type: ignore[arg-type]

    double.spoken = "turn 1"
    talk(double, scenario, **BY_HAND)
