"""Any events of a client in any order: every event of the server is valid, responses are whole, nothing hangs or leaks.

A state machine that sends random events, right and wrong, to a session over the double; the server fails, hangs or is
slow as the texts say.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from client_protocol_double import ProtocolDouble
from realtime_session import Peer, pcm24, question, session

SCRIPTS = (
    "turn 1",
    "turn 3 0.01",
    "turn 200 0.005",
    "ends failed engine_error broke",
    "ends failed server_full full",
    "abort UNAVAILABLE gone",
    "short",
    "hang",
    "chunks 2",
)
QUESTION = pcm24(question())
SOUNDS = {"question": QUESTION, "silence": bytes(48_000), "odd": b"\x01", "none": b""}
NONSENSE: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "id", "audio"]), inner),
    max_leaves=4,
)
KINDS = (
    "session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "conversation.item.create",
    "conversation.item.truncate",
    "response.create",
    "response.cancel",
)
DETECTION = (
    None,
    {"type": "server_vad", "silence_duration_ms": 200},
    {"type": "server_vad", "interrupt_response": False, "idle_timeout_ms": 1000},
    {"type": "server_vad", "create_response": False},
    {"type": "semantic_vad", "eagerness": "high"},
)


@pytest.fixture(scope="module")
def server() -> Iterator[ProtocolDouble]:
    double = ProtocolDouble()
    yield double
    double.close()


class AnyOrder(RuleBasedStateMachine):
    """One session; `double` is set by the test."""

    double: ProtocolDouble

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()

    def run(self, something: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(something, 30))

    @initialize()
    def connect(self) -> None:
        self.peer: Peer = self.run(self.stack.enter_async_context(session(self.double.url)))

    def send(self, kind: str, **fields: Any) -> None:
        self.run(self.peer.send(kind, **fields))

    def item(self) -> str:
        """The id of the last item, or of none."""
        added = [event["item"]["id"] for event in self.peer.events if event["type"] == "conversation.item.added"]
        return added[-1] if added else "none"

    @rule(script=st.sampled_from(SCRIPTS))
    def the_server_behaves(self, script: str) -> None:
        self.double.spoken = script

    @rule(script=st.sampled_from(SCRIPTS), role=st.sampled_from(["user", "user", "system", "assistant"]))
    def write(self, script: str, role: str) -> None:
        content = [{"type": "output_text" if role == "assistant" else "input_text", "text": script}]
        self.send("conversation.item.create", item={"type": "message", "role": role, "content": content})

    @rule(name=st.sampled_from(list(SOUNDS)))
    def append(self, name: str) -> None:
        self.send("input_audio_buffer.append", audio=base64.b64encode(SOUNDS[name]).decode())

    @rule(kind=st.sampled_from(["input_audio_buffer.commit", "input_audio_buffer.clear", "response.cancel"]))
    def order(self, kind: str) -> None:
        self.send(kind)

    @rule(detection=st.sampled_from(DETECTION), transcribed=st.booleans())
    def update(self, detection: Any, transcribed: bool) -> None:
        transcription = {"model": "whisper-1"} if transcribed else None
        audio = {"input": {"turn_detection": detection, "transcription": transcription}}
        self.send("session.update", session={"type": "realtime", "audio": audio})

    @rule(
        aside=st.booleans(),
        modality=st.sampled_from(["audio", "text"]),
        instructions=st.sampled_from([None, "turn 1"]),
    )
    def respond(self, aside: bool, modality: str, instructions: str | None) -> None:
        conversation = "none" if aside else "auto"
        asked = {"conversation": conversation, "output_modalities": [modality], "instructions": instructions}
        self.send("response.create", response=asked)

    @rule(kind=st.sampled_from(["retrieve", "delete", "truncate"]), end_ms=st.integers(0, 3000), known=st.booleans())
    def touch(self, kind: str, end_ms: int, known: bool) -> None:
        self.send(f"conversation.item.{kind}", item_id=self.item() if known else "none", audio_end_ms=end_ms)

    @rule(kind=st.sampled_from(KINDS), fields=st.dictionaries(st.sampled_from(["session", "item", "audio"]), NONSENSE))
    def nonsense(self, kind: str, fields: dict[str, Any]) -> None:
        self.send(kind, **fields)

    @rule(text=st.text(max_size=10) | NONSENSE.map(json.dumps))
    def noise(self, text: str) -> None:
        self.run(self.peer.protocol.handle(text))

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.1]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    def teardown(self) -> None:
        try:
            if not hasattr(self, "peer"):
                return
            self.run(self.stack.aclose())
            left = [task for task in asyncio.all_tasks(self.loop) if "grpc" not in repr(task)]
            assert not left, left
            check_responses(self.peer.events)
        finally:
            self.run(self.loop.shutdown_asyncgens())
            self.loop.close()


def check_responses(events: list[dict[str, Any]]) -> None:
    """Nothing of a response comes before its beginning or after its end, and it has one of each at most."""
    running: set[str] = set()
    ended: set[str] = set()
    in_conversation: set[str] = set()
    for event in events:
        response_id = event.get("response_id") or event.get("response", {}).get("id")
        if event["type"] == "response.created":
            assert response_id not in running | ended
            running.add(response_id)
            if event["response"]["conversation_id"]:
                in_conversation.add(response_id)
                assert len(running & in_conversation) == 1
        elif response_id is not None:
            assert response_id in running, event
        if event["type"] == "response.done":
            running.remove(response_id)
            ended.add(response_id)
            assert event["response"]["status"] != "in_progress"
            started = [other for other in events if other.get("response_id") == response_id]
            kinds = [other["type"] for other in started]
            for kind in ("output_item", "content_part"):
                assert kinds.count(f"response.{kind}.added") == kinds.count(f"response.{kind}.done") <= 1


def test_any_events_in_any_order(server: ProtocolDouble) -> None:
    AnyOrder.double = server
    sizes = settings(
        max_examples=10,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(AnyOrder, settings=sizes)  # type: ignore[no-untyped-call]
