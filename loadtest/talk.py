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

    def speak(self, request: Request, begin_s: float, closing: Event) -> tuple[float, float] | None:
        """Append the speech of a turn in real time from `begin_s` (`loadtest.clock`) on; the server reads ahead.

        Returns:
            when it should have ended, and when the caller has finished speaking: later by the generator's own lateness,
            and not by the time that appending waited for the server. None where the run was over before.
        """
        speech = request.values["AUDIO"]
        due_s = spoken_s = free_s = begin_s
        for start in range(0, len(speech), _PIECE):
            piece = speech[start : start + _PIECE]
            due_s = begin_s + (start + len(piece)) / INPUT_SAMPLE_RATE_HZ
            if closing.wait(max(0.0, due_s - now_s())):
                return None
            spoken_s = max(due_s, spoken_s) + now_s() - max(due_s, free_s)
            self._conversation.append_audio(piece)
            free_s = now_s()
        return due_s, spoken_s

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
        first_sample_s = now_s() - (stream.total_ms - stream.first_pcm_ms) / 1e3
        listens_s = self._prebuffer_s + stream.audio_s + stream.underrun_s
        if barge_in_s is not None and (stream.outcome == "interrupted" or barge_in_s < listens_s):
            listens_s, think_s = barge_in_s, 0.0
            if self._conversation.history:
                silent_s = _silent_s(stream, stream.first_pcm_ms / 1e3 + barge_in_s)
                self._conversation.heard(max(0.0, barge_in_s - self._prebuffer_s - silent_s))
        return max(now_s(), first_sample_s + listens_s + think_s)


def _silent_s(stream: StreamRecord, until_s: float) -> float:
    """How long the player had nothing to play until then, in seconds since sending."""
    breaks = [(at_s + lead_s, at_s) for at_s, lead_s in stream.lead if lead_s < 0]
    return sum(max(0.0, min(until_s, end_s) - begin_s) for begin_s, end_s in breaks)
