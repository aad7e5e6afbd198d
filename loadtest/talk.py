"""A user's conversation: speech is appended while it is spoken, the answer is listened to, then comes the next turn."""

from __future__ import annotations

from gevent.event import Event

from loadtest.clock import now_s
from loadtest.record import StreamRecord
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_client import Client, Request, Stream

#: A microphone's piece.
_PIECE_S = 0.25
_PIECE = round(_PIECE_S * INPUT_SAMPLE_RATE_HZ)


class Talk:
    """One conversation with a server; a `Sender` of its turns.

    Args:
        timeout_s: deadline of each answer.
        prebuffer_s: how long the player waits before it plays.
    """

    def __init__(self, client: Client, timeout_s: float, prebuffer_s: float) -> None:
        self._conversation = client.conversation(timeout_s=timeout_s)
        self._prebuffer_s = prebuffer_s

    def speak(self, request: Request, begin_s: float, closing: Event) -> float | None:
        """Append the speech of a turn in real time from `begin_s` (`loadtest.clock`) on; the server reads ahead.

        Returns:
            when it should have ended; None where the run was over before.
        """
        speech = request.values["AUDIO"]
        for start in range(0, len(speech), _PIECE):
            piece = speech[start : start + _PIECE]
            if closing.wait(max(0.0, begin_s + (start + len(piece)) / INPUT_SAMPLE_RATE_HZ - now_s())):
                return None
            self._conversation.append_audio(piece)
        return begin_s + len(speech) / INPUT_SAMPLE_RATE_HZ

    def send(self, request: Request, *, timeout_s: float) -> Stream:
        """The turn that was spoken, with the other fields of its request."""
        fields = {name.lower(): value for name, value in request.values.items() if name != "AUDIO"}
        return self._conversation.respond(**fields)  # type: ignore[misc]

    def listen(self, stream: StreamRecord, barge_in_s: float | None, think_s: float) -> float:
        """What was heard of an answer that has just ended, and when the next turn begins (`loadtest.clock`).

        Args:
            barge_in_s: seconds after the first sound at which the user cuts in, if the answer is as long.
        """
        if stream.first_pcm_ms is None:
            return now_s() + think_s
        heard_from_s = now_s() - (stream.total_ms - stream.first_pcm_ms) / 1e3 + self._prebuffer_s
        heard_s = stream.audio_s
        if barge_in_s is not None and (stream.outcome == "interrupted" or barge_in_s < stream.audio_s):
            heard_s, think_s = max(0.0, barge_in_s - self._prebuffer_s), 0.0
            if self._conversation.history:
                self._conversation.heard(heard_s)
        return max(now_s(), heard_from_s + heard_s + think_s)
