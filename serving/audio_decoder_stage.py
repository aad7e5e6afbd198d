"""The stage `audio_decoder`: answers Deltas with text, sound and status, and Probes whose client is gone with Cancel.

After a decoupled model, an error would leave the ensemble's request in flight for ever (docs/triton.md), so a failure
is a STATUS, and `speech_lm` gets a Cancel.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from serving.gpu_share import share_gpu
from serving.heartbeat import Heartbeats
from serving.metrics.playout import PlayoutMeter
from serving.metrics.recorder import Recorder
from serving.metrics.refusals import Refusals
from serving.settings import served_engines
from vita_audio.contract.errors import BadMessage, VitaError
from vita_audio.contract.messages import Cancel, Delta, Message, Ping, Probe, Released, Status
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.decoding.served_stream import DecodedChunk, Ending
from vita_audio.decoding.service import DecodingService
from vita_audio.engines.registry import open_audio_decoder
from vita_audio.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

#: Streams that have ended while their last decode is under way.
ENDING_STREAMS = 32

#: Sends a part of the answer to one request; None is an answer without content.
Send = Callable[[DecodedChunk | None], None]


class AudioDecoderStage:
    """Answers the messages that `audio_decoder` gets.

    Args:
        service: decodes; closed with the stage.
        worker: this model instance, for metrics.
        recorder: of the process.
    """

    def __init__(self, service: DecodingService, worker: str = "", recorder: Recorder | None = None) -> None:
        self._service, self._worker = service, worker
        self.recorder = recorder or Recorder()
        self.refusals = Refusals(self.recorder, "audio_decoder")
        self._meter, self._meter_lock = PlayoutMeter(self.recorder), threading.Lock()

    @classmethod
    def serve(
        cls,
        worker: str,
        notify: Callable[[Cancel | Released], None],
        heartbeats: Heartbeats,
        recorder: Recorder | None = None,
    ) -> AudioDecoderStage:
        """Open the engines of this server and warm them up.

        Args:
            notify: sends a message to the language model.
            recorder: of the process, if it has other engines too.

        Raises:
            EngineError: they cannot be opened.
        """
        settings, manifest, source = served_engines()
        enter = share_gpu(settings, source, "audio_decoder", alone=recorder is None)
        enter()
        max_streams = 2 * (settings.slots + settings.queue)  # of the ensemble come at most half
        decoder = StreamingDecoder(*open_audio_decoder(source), streams=max_streams + ENDING_STREAMS)
        # ONNX Runtime keeps nothing for a shape: two seconds of decoding would save the first stream nothing.
        decoder.warm_up(source.decoder_batch, first_chunk_only=source.gpu is None)
        tokenizer = TextTokenizer(settings.engines / "tokenizer.json")
        service = DecodingService(
            decoder,
            manifest.vocabulary,
            tokenizer.detokenizer,
            notify,
            source.decoder_batch,
            max_streams=max_streams,
            pulse=heartbeats.pulse("decoding"),
            notifier_pulse=heartbeats.pulse("notifier"),
            enter=enter,
        )
        return cls(service, worker, recorder)

    def accept(self, read: Callable[[], Message], send: Send, cancelled: Callable[[], bool]) -> None:
        """Take in the message that `read` returns; what is wrong with it becomes its answer."""
        try:
            message = read()
            if not isinstance(message, (Delta, Probe, Ping)):
                raise BadMessage(f"kind: audio_decoder takes no {type(message).__name__}", field="kind")
        except Exception as error:
            log.warning("refused a message: %s", error, exc_info=not isinstance(error, VitaError))
            self.refusals.count(error)
            send(DecodedChunk.empty(Status("", 0, **Ending.of(error)._asdict())))
            return
        if isinstance(message, Ping):
            self._service.ping(partial(send, None))
            return
        if isinstance(message, Delta):
            self._service.submit(message, partial(self._reply, send), cancelled)
            return
        if cancelled():
            self._service.cancel(message.stream)
        send(None)

    def measure(self) -> None:
        """Bring gauges and totals up to date."""
        stats, recorder, stage = self._service.stats(), self.recorder, "audio_decoder"
        recorder.set("vita_streams", stats.live_streams, stage=stage, state="running", worker=self._worker)
        recorder.set("vita_decoder_waiting_requests", stats.waiting_requests)
        recorder.total("vita_busy_ms_total", stats.busy_ms, stage=stage)
        recorder.total("vita_decoder_faults_total", stats.notify_errors, kind="stop")
        recorder.total("vita_decoder_faults_total", stats.reply_errors, kind="reply")
        for streams, count in stats.batches.items():
            recorder.total("vita_decoder_batches_total", count, streams=str(streams))
        for reason, count in stats.ended.items():
            recorder.total("vita_streams_ended_total", count, stage=stage, reason=reason)

    def close(self) -> None:
        """Answer what waits and end the threads."""
        self._service.close()

    def _reply(self, send: Send, chunk: DecodedChunk) -> None:
        """Send and measure; runs on the service's threads."""
        send(chunk)
        with self._meter_lock:
            self._meter.chunk(chunk.status, len(chunk.pcm), bool(chunk.text), time.perf_counter())
