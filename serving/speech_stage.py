"""The stage `speech`: language model and audio decoder in one process, so that a GPU has them in one CUDA context.

Both stages are the ones that have a process each (`speech_lm_stage.py`, `audio_decoder_stage.py`), with the same
threads. What Triton carries between them there is a call here: Deltas to the decoder, Cancel and Released back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from serving.audio_decoder_stage import AudioDecoderStage
from serving.heartbeat import Heartbeats
from serving.metrics.recorder import Recorder
from serving.speech_lm_stage import SpeechLmStage
from vita_audio.contract.errors import BadMessage
from vita_audio.contract.messages import Cancel, Delta, Message, Ping, Probe, Start
from vita_audio.decoding.served_stream import DecodedChunk

#: Sends a part of the answer to one request, a Probe for its client, or none; True with the last.
Send = Callable[[DecodedChunk | Probe | None, bool], None]


class SpeechStage:
    """Answers the messages that `speech` gets.

    Args:
        language_model, decoder: closed with the stage; Cancel and Released of `decoder` go to `language_model`.
        recorder: of both.
    """

    def __init__(self, language_model: SpeechLmStage, decoder: AudioDecoderStage, recorder: Recorder) -> None:
        self.language_model, self._decoder, self.recorder = language_model, decoder, recorder
        self.refusals, self.most_rows_bytes = language_model.refusals, language_model.most_rows_bytes

    @classmethod
    def serve(cls, worker: str, heartbeats: Heartbeats) -> SpeechStage:
        """Open the engines of this server and warm them up.

        Raises:
            EngineError: one cannot be opened, or the warm-up failed.
        """
        recorder = Recorder()
        # First: on a CPU the language model yields to it, and threads that exist by then do not (`NICENESS`).
        decoder = AudioDecoderStage.serve(
            worker, lambda message: stage.language_model.accept(message, _nothing), heartbeats, recorder
        )
        stage = cls(SpeechLmStage.serve(worker, heartbeats, recorder), decoder, recorder)
        return stage

    def accept(self, message: Message, send: Send, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Take a message in; `send` gets what it leads to, on any thread and one after the other.

        Args:
            cancelled: whether the client is gone, as far as Triton shows it; not asked after the last answer.

        Raises:
            InvalidRequest, ServerFull, ServerStopping, ServerUnhealthy: the stream is not taken.
            BadMessage: `speech` takes no such message.
        """
        if isinstance(message, Start):
            self.language_model.accept(message, _Answer(self._decoder, send).take, cancelled)
        elif isinstance(message, Cancel):
            # The decoder cancels the language model's part.
            self._decoder.accept(lambda: Probe(message.stream), _nothing, cancelled=lambda: True)
            send(None, True)
        elif isinstance(message, Ping):  # both loops turn, or there is no answer
            answer = partial(send, None, True)
            ask_decoder = partial(self._decoder.accept, lambda: message, lambda chunk: answer(), lambda: False)
            self.language_model.accept(message, lambda nothing, final: ask_decoder())
        else:
            raise BadMessage(f"kind: speech takes no {type(message).__name__}", field="kind")

    def measure(self) -> None:
        """Bring gauges and totals up to date."""
        self.language_model.measure()
        self._decoder.measure()

    def close(self) -> None:
        """End every stream and the threads."""
        self.language_model.close()
        self._decoder.close()


class _Answer:
    """The answer to one request: it is over when the language model has ended it and each of its Deltas is answered."""

    def __init__(self, decoder: AudioDecoderStage, send: Send) -> None:
        self._decoder, self._send = decoder, send
        self._lock = threading.Lock()
        self._due, self._ended, self._over = 0, False, False

    def take(self, message: Delta | Probe | None, last: bool) -> None:
        """What the language model sends."""
        with self._lock:
            self._ended |= last
            self._due += isinstance(message, Delta)
            if not isinstance(message, Delta):
                self._hand_out(message)
        if isinstance(message, Delta):
            self._decoder.accept(lambda: message, self._reply, lambda: False)

    def _reply(self, chunk: DecodedChunk | None) -> None:
        """What the decoder answers to a Delta."""
        with self._lock:
            self._due -= chunk is None or chunk.complete
            self._hand_out(chunk)

    def _hand_out(self, content: DecodedChunk | Probe | None) -> None:
        last = self._ended and not self._due
        if not self._over and (content is not None or last):
            self._over = last
            self._send(content, last)


def _nothing(*answer: object) -> None:
    """For an answer that is not waited for."""
