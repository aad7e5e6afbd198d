"""The stage `speech_lm`: admits a stream, generates it, and keeps its request open until its sound is made.

Triton shows that a client has gone only in a request that it schedules afterwards. So a stream that has nothing to send
(queued, on its prompt, or with complete tokens) sends a Probe now and then, and `audio_decoder` answers a Probe whose
client is gone with Cancel. For that the request of a stream with complete tokens stays open until Released.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from serving.admission import Admission, AdmissionRecord
from serving.gpu_share import share_gpu
from serving.heartbeat import Heartbeats
from serving.metrics.generation import GenerationMeter
from serving.metrics.recorder import Recorder
from serving.metrics.refusals import Refusals
from serving.settings import SWITCH, served_engines
from serving.warm_up import warm_up_generation
from vita_audio.contract.errors import BadMessage
from vita_audio.contract.messages import Cancel, Delta, Message, Ping, Probe, Released, Start
from vita_audio.engines.interface import Embedded
from vita_audio.engines.registry import open_language_model
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.service import GenerationService
from vita_audio.pulse import Pulse

log = logging.getLogger(__name__)

#: On a CPU the language model runs seconds ahead of the sound, the decoder does not: where both want a core, it yields.
NICENESS = 10

#: A stream is probed when it has been quiet for so long: before its first Delta, between Deltas, and after the last. A
#: Probe costs about 0.6 ms of CPU time in all; the first of these is short, the last can be most of a stream's life.
WAITING_PROBE_S = 0.05
RUNNING_PROBE_S = 0.1
DECODING_PROBE_S = 0.25
TICK_S = 0.02
#: A Start that a client got from `prompt` and sent itself (docs/triton.md, "Security") has no decoder that could see
#: that the client is gone. Then, and then only, the request shows it; to ask is a call to Triton.
CLIENT_CHECK_S = 1.0

#: Sends a message to the decoder, or none; the second argument says that it is the last of its request.
Send = Callable[[Delta | Probe | None, bool], None]


@dataclass(slots=True)
class _Open:
    """A request that waits for more responses; `lock` keeps them apart, and after the last there is none."""

    send: Send
    cancelled: Callable[[], bool]
    last_s: float
    checked_s: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    probe_s: float = WAITING_PROBE_S
    tokens: int = 0
    decoding: bool = False
    closed: bool = False


class SpeechLmStage:
    """Answers the messages that `speech_lm` gets.

    Args:
        service: generates; closed with the stage.
        admission: who is in the server.
        worker: this model instance, for metrics.
        pulse: of the stage's own thread.
        recorder: of the process.
        speech_id: <|context_of_audio|> of a Plus checkpoint.

    Attributes:
        most_rows_bytes: of the embeddings in a Start.
    """

    most_rows_bytes = 0

    def __init__(
        self,
        service: GenerationService,
        admission: Admission,
        worker: str = "",
        pulse: Pulse | None = None,
        recorder: Recorder | None = None,
        speech_id: int | None = None,
    ) -> None:
        self._service, self._admission, self._worker = service, admission, worker
        self._speech_id = speech_id
        self.recorder = recorder or Recorder()
        self.refusals = Refusals(self.recorder, "speech_lm")
        self._meter = GenerationMeter(self.recorder)
        self._open: dict[str, _Open] = {}
        self._closing, self._pulse = threading.Event(), pulse or Pulse()
        self._prober = threading.Thread(target=self._probe, name="prober", daemon=True)
        self._prober.start()

    @classmethod
    def serve(cls, worker: str, heartbeats: Heartbeats, recorder: Recorder | None = None) -> SpeechLmStage:
        """Open the engine of this server and warm it up.

        Args:
            recorder: of the process, if it has other engines too.

        Raises:
            EngineError: it cannot be opened, or the warm-up failed.
        """
        settings, manifest, source = served_engines()
        if source.gpu is None:
            os.nice(NICENESS)
        enter = share_gpu(settings, source, "speech_lm", alone=recorder is None)
        enter()
        engine, pulse = open_language_model(source, settings.slots), heartbeats.pulse("generation")
        reuse = settings.prefix_cache == SWITCH[0]
        service = GenerationService(engine, manifest.vocabulary.end_tokens, source.prefill_chunk, pulse, reuse, enter)
        warm_up_generation(service, manifest.limits, engine.embedded_size)
        admission = Admission(AdmissionRecord(settings.admission), settings.slots, settings.queue)
        speech_id = manifest.vocabulary.context_of_audio
        stage = cls(service, admission, worker, heartbeats.pulse("prober"), recorder, speech_id)
        stage.most_rows_bytes = 4 * engine.embedded_size * manifest.limits.context_tokens
        stage.recorder.set("vita_restarts", settings.restarts)
        stage.recorder.set("vita_slots", settings.slots)
        stage.recorder.set("vita_queue_limit", settings.queue)
        stage.recorder.set("vita_kv_capacity_tokens", settings.slots * manifest.limits.context_tokens)
        return stage

    def accept(self, message: Message, send: Send, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Take a message in; `send` gets what it leads to, on any thread and one after the other.

        Args:
            cancelled: whether the client is gone, as far as Triton shows it; not asked after the last answer.

        Raises:
            InvalidRequest, ServerFull, ServerStopping, ServerUnhealthy: the stream is not taken.
            BadMessage: `speech_lm` takes no such message, or its embeddings do not fit its ids.
        """
        if isinstance(message, Start):
            if cancelled():  # no error: Triton 24.10 keeps a refused request whose client is gone
                send(None, True)
            else:
                self._start(message, send, cancelled)
            return
        if isinstance(message, Ping):
            self._service.ping(partial(send, None, True))
            return
        if isinstance(message, Cancel):
            self._cancel(message.stream)
        elif isinstance(message, Released):
            opened = self._open.get(message.stream)
            if opened is not None and opened.decoding:
                self._close(message.stream)
        else:
            raise BadMessage(f"kind: speech_lm takes no {type(message).__name__}", field="kind")
        send(None, True)

    def measure(self) -> None:
        """Bring gauges and totals up to date."""
        stats, load, recorder, stage = self._service.stats(), self._admission.load(), self.recorder, "speech_lm"
        self._admission.refresh()
        recorder.set("vita_streams", stats.running, stage=stage, state="running", worker=self._worker)
        recorder.set("vita_streams", stats.waiting, stage=stage, state="waiting", worker=self._worker)
        recorder.set("vita_places_taken", load.taken)
        recorder.set("vita_kv_tokens", self._meter.cached_tokens)
        recorder.total("vita_busy_ms_total", stats.busy_ms, stage=stage)
        prefixes = stats.prefixes
        recorder.total("vita_prompts_total", prefixes.hits, prefix="hit")
        recorder.total("vita_prompts_total", prefixes.prompts - prefixes.hits, prefix="miss")
        recorder.total("vita_prompt_tokens_total", prefixes.reused, source="reused")
        recorder.total("vita_prompt_tokens_total", prefixes.prompt_tokens - prefixes.reused, source="read")
        recorder.total("vita_prefix_evicted_tokens_total", prefixes.evicted)
        for reason, count in stats.finished.items():
            recorder.total("vita_streams_ended_total", count, stage=stage, reason=reason)

    def close(self) -> None:
        """End every stream and the threads."""
        self._service.close()
        self._closing.set()
        self._prober.join()
        for stream in list(self._open):
            self._guard(stream, partial(self._close, stream))

    def _embedded(self, start: Start) -> Embedded | None:
        """The embeddings of a prompt at their places. Raises BadMessage: there are not as many as places."""
        ids = np.asarray(start.tokens, np.int64)
        places = np.flatnonzero(ids == (-1 if self._speech_id is None else self._speech_id))
        if len(places) != len(start.embeddings):
            raise BadMessage(f"EMBEDDINGS: {len(start.embeddings)} rows are not valid: {len(places)} ids stand for one")
        return Embedded(places, start.embeddings) if len(places) else None

    def _start(self, start: Start, send: Send, cancelled: Callable[[], bool]) -> None:
        embedded = self._embedded(start)
        stream, now = self._admission.admit(), time.monotonic()
        opened = self._open[stream] = _Open(send, cancelled, now, now)
        try:
            request = GenerationRequest(start.tokens, start.settings, embedded)
            self._service.submit(stream, request, partial(self._emit, opened, len(start.tokens)))
        except BaseException:
            self._open.pop(stream, None)  # a Probe that could not be sent may have taken it out
            self._admission.release(stream)
            raise

    def _emit(self, opened: _Open, prompt_tokens: int, delta: Delta) -> None:
        """Measure and send one Delta; runs on the service's thread."""
        self._meter.delta(delta, prompt_tokens)
        stream, state = delta.status.stream, delta.status.state
        opened.tokens += len(delta.tokens)
        decoding = state == "done" and self._admission.start_decoding(stream, opened.tokens)
        over = delta.status.final and not decoding
        try:
            with opened.lock:
                if not opened.closed:
                    opened.decoding, opened.closed, opened.last_s = decoding, over, time.monotonic()
                    opened.probe_s = DECODING_PROBE_S if decoding else RUNNING_PROBE_S
                    opened.send(delta, over)
        finally:
            if over:
                self._open.pop(stream, None)
                self._admission.release(stream)

    def _cancel(self, stream: str) -> None:
        self._admission.release(stream)  # at once, while a step may still be running
        if not self._service.cancel(stream):
            self._close(stream)

    def _close(self, stream: str) -> None:
        """Answer the request of a stream to its end, without another message."""
        self._admission.release(stream)
        opened = self._open.pop(stream, None)
        if opened is not None:
            with opened.lock:
                if not opened.closed:
                    opened.closed = True
                    opened.send(None, True)

    def _probe(self) -> None:
        try:
            while not self._closing.wait(TICK_S):
                self._pulse.beat()
                self._probe_all()
        except Exception:  # without this thread no gone client would be noticed
            log.exception("prober failed")
            self._pulse.broken()

    def _probe_all(self) -> None:
        for stream in self._admission.overdue():
            log.warning("stream %s: the decoder has not released it, it counts no longer", stream)
            self._guard(stream, partial(self._close, stream))
        for stream, opened in list(self._open.items()):
            if time.monotonic() - opened.checked_s >= CLIENT_CHECK_S:
                self._guard(stream, partial(self._check_client, stream, opened))
            if time.monotonic() - opened.last_s >= opened.probe_s:
                self._guard(stream, partial(self._probe_one, stream, opened))

    def _probe_one(self, stream: str, opened: _Open) -> None:
        with opened.lock:
            if not opened.closed:
                opened.last_s = time.monotonic()
                opened.send(Probe(stream), False)

    def _check_client(self, stream: str, opened: _Open) -> None:
        with opened.lock:
            opened.checked_s = time.monotonic()
            gone = not opened.closed and opened.cancelled()
        if gone:
            self._cancel(stream)

    def _guard(self, stream: str, act: Callable[[], None]) -> None:
        """What goes wrong costs this stream, not the thread."""
        try:
            act()
        except Exception:
            log.exception("stream %s: nothing can be sent to its decoder", stream)
            opened = self._open.get(stream)
            if opened is not None and opened.decoding:  # Released, or the end of its time, closes its request
                return
            self._open.pop(stream, None)
            self._admission.release(stream)
            self._service.cancel(stream)
