"""The thread around the streaming decoder: messages of many streams in, exactly one answer to each, in parts."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from vita_audio.contract.errors import BadMessage, ServerStopping, ServerUnhealthy, VitaError
from vita_audio.contract.messages import Cancel, Delta, Released
from vita_audio.decoding.cancel_notifier import CancelNotifier
from vita_audio.decoding.decoder import Decoding, Pcm, StreamingDecoder
from vita_audio.decoding.served_stream import (
    CANCELLED,
    DecodedChunk,
    Detokenizer,
    Ending,
    Request,
    ServedStream,
    TokenClassifier,
)
from vita_audio.engines.gpu_fault import gpu_is_lost
from vita_audio.pulse import IDLE_TURN_S, Pulse, answer_ping

log = logging.getLogger(__name__)

#: Ended streams whose late messages are still answered with how they ended.
_REMEMBERED_STREAMS = 1024
_CLOSE_TIMEOUT_S = 2.0
#: Batches on a GPU at a time: one that runs, and one that the thread makes ready meanwhile.
_MOST_UNDER_WAY = 2
#: How often the thread looks whether a batch is through, and how long until it does nothing but wait for it, so that
#: its pulse shows a GPU that hangs.
_LOOK_S, _PATIENCE_S = 0.00025, 1.0
_CLOSED = Ending("failed", "the audio decoder has been shut down", ServerStopping.default_code)
_UNSENT = Ending("failed", "an answer could not be sent", VitaError.default_code)


@dataclass(frozen=True, slots=True)
class DecodingStats:
    """A snapshot for metrics and tests; counts since the start."""

    live_streams: int
    waiting_requests: int
    batches: dict[int, int]  # decodes by number of streams
    busy_ms: float  # in engine steps
    ended: dict[str, int]  # streams by done, cancelled, failed, evicted
    cancels: int  # sent to the language model
    notify_errors: int
    reply_errors: int


@dataclass(frozen=True, slots=True)
class _Batch:
    """Streams whose decodes are under way; `start` in seconds of `time.perf_counter`."""

    streams: list[ServedStream]
    decoding: Decoding
    start: float

    @property
    def through(self) -> bool:
        """Whether to wait for it: not for long, or there is nothing better to do."""
        return self.decoding.ready or time.perf_counter() - self.start > _PATIENCE_S


class DecodingService:
    """Batches the decodes of different streams in one thread; keeps each stream's order, frees each stream's state.

    The stream whose listener runs out of audio first goes first; a first chunk overtakes later chunks of others unless
    these are about to break off. While a GPU works on a batch, the thread takes in messages, makes the next batch ready
    and sends what the last one made.

    Every request gets exactly one answer: its part of the stream, as soon as a decode has made some of it and complete
    at last; or, empty, the state "cancelled" (its client is gone) or "failed" (decoding broke, in one line); in both
    cases the language model gets a Cancel. Of a stream decoded to its end it gets a Released, and only then does the
    last answer leave: so the answer to the language model's own last request is there before it, and Triton sends the
    two to the client as one.

    Args:
        decoder: used by this service's thread alone.
        vocabulary: separates text ids from audio codes.
        detokenizer: makes the text state of one stream.
        notify: sends a message to the language model, on a thread of its own; may block, may raise (logged, counted).
        max_batch: streams in one engine call.
        idle_timeout_s: a stream that gets no message for so long is freed and cancelled.
        max_streams: with so many, the stream that has been idle longest makes room for a new one.
        pulse, notifier_pulse: of the threads that decode and that send messages.
        enter: called by the thread that decodes before it does anything.
    """

    def __init__(
        self,
        decoder: StreamingDecoder,
        vocabulary: TokenClassifier,
        detokenizer: Callable[[], Detokenizer],
        notify: Callable[[Cancel | Released], None],
        max_batch: int = 8,
        idle_timeout_s: float = 60.0,
        max_streams: int = 1024,
        pulse: Pulse | None = None,
        notifier_pulse: Pulse | None = None,
        enter: Callable[[], None] = lambda: None,
    ) -> None:
        self._decoder, self._vocabulary, self._detokenizer = decoder, vocabulary, detokenizer
        self._max_batch, self._idle_timeout_s, self._max_streams = max_batch, idle_timeout_s, max_streams
        self._changed = threading.Condition()  # guards the three fields below
        self._inbox: list[Request] = []
        self._cancels: list[str] = []
        self._pings: list[Callable[[], None]] = []
        self._closed, self._ending = False, _CLOSED
        self._pulse = pulse or Pulse()
        # Touched by the thread alone, but for snapshots.
        self._streams: dict[str, ServedStream] = {}
        self._ended: OrderedDict[str, Ending] = OrderedDict()
        self._under_way: deque[_Batch] = deque()  # in the order of their starts
        self._collected = 0.0  # when the last one was through
        self._batches: Counter[int] = Counter()
        self._endings: Counter[str] = Counter()
        self._busy_ms = 0.0
        self._reply_errors = 0
        self._notifier = CancelNotifier(notify, notifier_pulse)
        self._enter = enter
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    def submit(
        self,
        delta: Delta,
        reply: Callable[[DecodedChunk], None],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Queue one message of the language model; returns at once and raises nothing.

        Args:
            delta: index 0 opens the stream, a final state ends it.
            reply: gets the answer's parts, of which the last is complete, one after the other, on a thread of the
                service (after `close`: on this one).
            cancelled: whether the client has gone; asked before decoding and before answering.
        """
        request = Request(delta.status, delta.tokens, reply, cancelled, time.perf_counter(), delta.prompt)
        with self._changed:
            closed = self._closed
            if not closed:
                self._inbox.append(request)
                self._changed.notify()
        if closed:
            self._notifier.cancel(delta.status.stream)  # of a thread that broke: the language model has not ended
            self._reply(request, request.empty(self._ending))

    def cancel(self, stream_id: str) -> None:
        """The client of a stream is gone, whether or not a message of it has come yet; returns at once."""
        self._notifier.cancel(stream_id)
        with self._changed:
            if not self._closed:
                self._cancels.append(stream_id)
                self._changed.notify()

    def ping(self, answer: Callable[[], None]) -> None:
        """Have `answer` called by the thread in its next turn; once the thread has ended, it is not called."""
        with self._changed:
            self._pings.append(answer)
            self._changed.notify()

    def stats(self) -> DecodingStats:
        with self._changed:
            waiting = len(self._inbox)
        streams = list(self._streams.values())
        return DecodingStats(
            live_streams=len(streams),
            waiting_requests=waiting + sum(len(stream.requests) for stream in streams),
            batches=dict(self._batches),
            busy_ms=self._busy_ms,
            ended=dict(self._endings),
            cancels=self._notifier.cancels,
            notify_errors=self._notifier.errors,
            reply_errors=self._reply_errors,
        )

    def close(self) -> None:
        """End the threads. Requests not answered yet get the state "failed"; so do later ones."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        if not self._notifier.close(_CLOSE_TIMEOUT_S):
            log.warning("a call of the language model did not return within %s s", _CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        try:
            self._enter()
            while self._take_in():
                self._evict_idle()
                for stream in list(self._streams.values()):
                    self._progress(stream)
                batch = self._choose()
                if batch:
                    self._start(batch)
                while self._under_way and self._under_way[0].through:
                    self._collect()
            while self._under_way:  # closed: what has been begun is answered
                self._collect()
        except Exception as error:
            # A fault of this loop itself: no caller may be left waiting for a thread that is gone.
            log.exception("decoding thread failed")
            self._ending = Ending.of(error)._replace(code=ServerUnhealthy.default_code)
        ending = self._ending
        with self._changed:
            self._closed = True
            left, self._inbox = self._inbox, []
        for stream in list(self._streams.values()):
            self._end(stream, ending, cancel=ending is not _CLOSED)  # in a shutdown the language model ends as well
        for request in left:
            self._reply(request, request.empty(ending))
        if ending is not _CLOSED:
            self._pulse.broken()

    def _take_in(self) -> bool:
        """Wait for something to do and hand new requests to their streams. False when the service is closed."""
        with self._changed:
            self._pulse.beat()
            self._wait()
            if self._closed:
                return False
            inbox, self._inbox = self._inbox, []
            cancels, self._cancels = self._cancels, []
            pings, self._pings = self._pings, []
        for answer in pings:
            answer_ping(answer)
        for request in inbox:
            stream = self._streams.get(request.status.stream)
            if stream is not None:
                stream.requests.append(request)
            elif request.status.stream in self._ended:
                self._reply(request, request.empty(self._ended[request.status.stream]))
            elif request.status.index == 0:
                self._open(request)
            else:
                number = request.status.index
                error = BadMessage(f"message {number} belongs to no stream of the audio decoder")
                self._refuse(request, error)
        for stream_id in cancels:
            stream = self._streams.get(stream_id)
            if stream is not None:
                self._end(stream, CANCELLED, cancel=False)
        return True

    def _wait(self) -> None:
        """Until there is something to do: a message, a stream whose decode can start, a batch that is through."""
        if len(self._under_way) < _MOST_UNDER_WAY:
            if any(stream.requests and not stream.decoding for stream in self._streams.values()):
                return
            if not (self._under_way or self._news):
                self._changed.wait(min(IDLE_TURN_S, self._idle_timeout_s / 4))
        while self._under_way and not (self._news or self._under_way[0].through):
            self._changed.wait(_LOOK_S)

    @property
    def _news(self) -> bool:
        return bool(self._inbox or self._cancels or self._pings or self._closed)

    def _open(self, request: Request) -> None:
        status = request.status
        if len(self._streams) >= self._max_streams:
            idle = [stream for stream in self._streams.values() if not stream.requests]
            for stream in sorted(idle, key=lambda stream: stream.last_seen)[:1]:
                self._evict(stream, f"made room for another stream: {self._max_streams} are decoded")
        try:
            audio = self._decoder.init(status.seed)
            stream = ServedStream(status.stream, audio, self._detokenizer(), last_seen=request.submitted)
        except Exception as error:
            log.exception("stream %s: cannot be opened", status.stream)
            self._refuse(request, error)
            return
        stream.requests.append(request)
        self._streams[stream.id] = stream

    def _refuse(self, request: Request, error: Exception) -> None:
        """A message that finds no stream: the rest of it is of no use."""
        self._notifier.cancel(request.status.stream)
        self._reply(request, request.empty(Ending.of(error)))

    def _progress(self, stream: ServedStream) -> None:
        """Answer a stream's requests up to the first that waits for a decode; a fault here ends this one only."""
        try:
            while stream.requests and self._answer_first(stream):
                pass
        except Exception as error:
            log.exception("stream %s: decoding failed", stream.id)
            self._end(stream, Ending.of(error))

    def _answer_first(self, stream: ServedStream) -> bool:
        """Answer the first request; False if it waits for a decode, or the stream has ended with it."""
        request = stream.requests[0]
        if stream.requests[-1].cancelled():  # only those sent after the client went show it (docs/triton.md)
            self._end(stream, CANCELLED)
            return False
        if not stream.begun:
            stream.begin(self._decoder, self._vocabulary)
        if stream.decoding or self._decoder.due(stream.audio) is not None:
            if stream.has_sound and not self._reply(request, stream.answer(time.perf_counter(), complete=False)):
                self._end(stream, _UNSENT)
            return False
        chunk = stream.answer(time.perf_counter(), complete=True)
        stream.requests.popleft()
        if chunk.status.final:
            self._end(stream, Ending(chunk.status.state, chunk.status.reason, chunk.status.code), cancel=False)
            self._notifier.release(stream.id, then=partial(self._reply, request, chunk))
            return False
        if not self._reply(request, chunk):
            self._end(stream, _UNSENT)
            return False
        return True

    def _choose(self) -> list[ServedStream]:
        """The waiting stream with the least time left, and others whose decode has the same geometry."""
        if len(self._under_way) == _MOST_UNDER_WAY:
            return []
        now = time.perf_counter()
        waiting = sorted(
            (stream for stream in self._streams.values() if stream.begun and not stream.decoding),
            key=lambda stream: stream.time_left_s(now),
        )
        geometry = self._decoder.due(waiting[0].audio) if waiting else None
        return [stream for stream in waiting if self._decoder.due(stream.audio) == geometry][: self._max_batch]

    def _start(self, batch: list[ServedStream]) -> None:
        start = time.perf_counter()
        try:
            with self._pulse.call():
                decoding = self._decoder.start([stream.audio for stream in batch])
        except Exception as error:
            if gpu_is_lost(error):
                raise
            log.exception("decoding failed for %s", ", ".join(stream.id for stream in batch))
            if len(batch) == 1:
                self._end(batch[0], Ending.of(error))
            else:
                for stream in batch:  # no state has changed: find out whose fault it was
                    self._start([stream])
            return
        for stream in batch:
            stream.decoding = True
        self._under_way.append(_Batch(batch, decoding, start))

    def _collect(self) -> None:
        """Wait for the batch that was started first; what it made goes to its streams, errors to those at fault."""
        batch = self._under_way.popleft()
        try:
            with self._pulse.call():
                results: Sequence[Pcm | Exception] = batch.decoding.results()
        except Exception as error:
            if gpu_is_lost(error):
                raise
            log.exception("decoding failed for %s", ", ".join(stream.id for stream in batch.streams))
            results = [error] * len(batch.streams)
        now = time.perf_counter()
        self._batches[len(batch.streams)] += 1
        self._busy_ms += (now - max(batch.start, self._collected)) * 1e3
        self._collected = now
        for stream, made in zip(batch.streams, results, strict=True):
            stream.decoding = False
            if self._streams.get(stream.id) is not stream:
                continue  # cancelled meanwhile
            if isinstance(made, Exception):
                log.error("stream %s: decoding failed: %s", stream.id, made)
                self._end(stream, Ending.of(made))
                continue
            stream.add(made, (now - batch.start) * 1e3)
            self._progress(stream)

    def _end(self, stream: ServedStream, ending: Ending, cancel: bool = True, kind: str = "") -> None:
        """Free a stream and answer what still waits; `cancel` unless the language model has ended it."""
        del self._streams[stream.id]
        self._endings[kind or ending.state] += 1
        self._ended[stream.id] = ending
        while len(self._ended) > _REMEMBERED_STREAMS:
            self._ended.popitem(last=False)
        if cancel:
            self._notifier.cancel(stream.id)
        for index, request in enumerate(stream.requests, stream.responses):
            self._reply(request, request.empty(ending, index))

    def _evict_idle(self) -> None:
        oldest = time.perf_counter() - self._idle_timeout_s
        for stream in list(self._streams.values()):
            if not stream.requests and stream.last_seen < oldest:
                self._evict(stream, f"no message for {self._idle_timeout_s} s")

    def _evict(self, stream: ServedStream, reason: str) -> None:
        log.warning("stream %s: freed, %s", stream.id, reason)
        self._end(stream, Ending("failed", reason, "idle_timeout"), kind="evicted")

    def _reply(self, request: Request, chunk: DecodedChunk) -> bool:
        """Send a part of the one answer; an error of the receiver is counted, never raised and never answered again."""
        try:
            request.reply(chunk)
        except Exception:
            self._reply_errors += 1
            log.exception("stream %s: sending an answer failed", request.status.stream)
            return False
        return True
