"""The thread around the scheduler: takes requests from any thread, hands every stream's tokens to its callback."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from vita_audio.contract.errors import ServerFull
from vita_audio.contract.messages import State
from vita_audio.engines.interface import LanguageModelEngine
from vita_audio.generation.request import GenerationRequest, TokenDelta
from vita_audio.generation.scheduler import Scheduler
from vita_audio.generation.stream import Stream

log = logging.getLogger(__name__)

Emit = Callable[[TokenDelta], None]

#: Each delta costs a hop through the server, so tokens travel in company: the first and the last leave at once, the
#: others when this many tokens have gathered or one has waited too long. Once the sound has had its start (the eager
#: deltas bring the decoder its first chunk), there is a shortest gap as well: a fast engine would only make hops.
TOKENS_PER_DELTA = 8
EAGER_DELTAS = 3
SHORTEST_GAP_MS = 20.0
LONGEST_WAIT_MS = 40.0

#: A stream whose text and tokens are complete keeps its place until its sound is made; if nobody says so, so long.
LONGEST_SOUNDING_S = 60.0


@dataclass(slots=True)
class _Live:
    id: str
    request: GenerationRequest
    emit: Emit
    stream: Stream | None = None  # once the thread has taken it in
    submitted: float = field(default_factory=time.perf_counter)
    admitted: float | None = None
    last_emit: float | None = None
    deltas: int = 0


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """A snapshot for metrics and tests; counts since the start, `busy_ms` the time spent in engine steps.

    `sounding`: streams whose tokens are complete and whose sound is still being made.
    """

    running: int
    waiting: int
    sounding: int
    slots: int
    steps: int
    tokens: int
    busy_ms: float
    finished: dict[str, int]  # by reason


class GenerationService:
    """Continuous batching behind three calls: `submit`, `cancel`, `close`. Callbacks run on the service's thread.

    Args:
        engine: backbone + MCTP; used by this service's thread alone.
        end_tokens: ids that end a stream.
        queue_limit: streams that may wait for a slot.
        prefill_chunk: prompt tokens one step takes in at most.
        awaits_release: a stream keeps its place, though not its slot, until `release`. The language model is seconds
            ahead of the decoder: without this, a server whose decoder falls behind would go on taking streams.
        on_full: told (streams running, waiting) when the last place is taken, None when one is free again; it is called
            with the service's lock held and must be quick.
    """

    def __init__(
        self,
        engine: LanguageModelEngine,
        end_tokens: Collection[int],
        queue_limit: int = 32,
        prefill_chunk: int = 64,
        awaits_release: bool = False,
        on_full: Callable[[tuple[int, int] | None], None] = lambda _: None,
    ) -> None:
        self._scheduler = Scheduler(engine, end_tokens, prefill_chunk)  # touched by the thread alone, but for `check`
        self._slots, self._queue_limit = engine.slots, queue_limit
        self._changed = threading.Condition()  # guards what `submit`, `cancel` and `stats` share with the thread
        self._live: dict[str, _Live] = {}
        self._awaits_release = awaits_release
        self._sounding: dict[str, float] = {}  # not released yet, and when they are forgotten
        self._inbox: list[_Live] = []
        self._cancels: list[str] = []
        self._on_full, self._full = on_full, False
        self._closing = False
        self._submitted = 0
        self._steps = self._tokens = 0
        self._busy_ms = 0.0
        self._finished: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, emit: Emit) -> str:
        """Start or queue a stream; `emit` gets its deltas in order, exactly one of them final.

        Returns:
            The stream's id, unique in this service.

        Raises:
            InvalidRequest: the engine can never serve the request.
            ServerFull: slots and queue hold all they can, streams not released included, or the service is closing.
        """
        self._scheduler.check(request)
        with self._changed:
            running, waiting, sounding = self._load()
            if self._closing or self._has_no_place(running + waiting + sounding):
                raise ServerFull(running + sounding, waiting)
            self._submitted += 1
            # Whoever knows an id can stop the stream (STOP of speech_lm), so it must not be guessable.
            live = _Live(f"s{self._submitted}-{secrets.token_hex(8)}", request, emit)
            self._live[live.id] = live
            if self._awaits_release:
                self._sounding[live.id] = math.inf
            self._inbox.append(live)
            self._tell_whether_full()
            self._changed.notify_all()
            return live.id

    def cancel(self, stream_id: str) -> bool:
        """Ask for the end of a stream; its last delta has state `cancelled`. False when it has ended already."""
        with self._changed:
            if stream_id not in self._live:
                return False
            self._cancels.append(stream_id)
            self._changed.notify_all()
            return True

    def release(self, stream_id: str) -> bool:
        """The sound of a stream is made, or nobody wants it: its place is free once it has ended. False: not known."""
        with self._changed:
            known = self._sounding.pop(stream_id, None) is not None
            self._tell_whether_full()
            return known

    def stats(self) -> GenerationStats:
        with self._changed:
            self._tell_whether_full()  # a place may have been forgotten since
            counts = (*self._load(), self._slots, self._steps, self._tokens)
            return GenerationStats(*counts, self._busy_ms, dict(self._finished))

    def close(self, drain_s: float = 0.0) -> None:
        """Refuse new streams, let running ones go on for `drain_s` seconds, cancel the rest, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._live, timeout=drain_s)
            self._cancels.extend(self._live)
            self._changed.notify_all()
        self._thread.join()

    def _load(self) -> tuple[int, int, int]:
        """Streams (running, waiting, sounding): those beyond the slots wait, those that only sound need no slot."""
        now = time.perf_counter()
        for stream_id in [stream_id for stream_id, end in self._sounding.items() if end < now]:
            log.warning("stream %s: nobody released it for %s s, its place is free", stream_id, LONGEST_SOUNDING_S)
            del self._sounding[stream_id]
        running = min(len(self._live), self._slots)
        return running, len(self._live) - running, len(self._sounding.keys() - self._live.keys())

    def _has_no_place(self, streams: int) -> bool:
        return streams >= self._slots + self._queue_limit

    def _tell_whether_full(self) -> None:
        running, waiting, sounding = self._load()
        full = self._has_no_place(running + waiting + sounding)
        if full != self._full:
            self._full = full
            self._on_full((running + sounding, waiting) if full else None)

    def _run(self) -> None:
        try:
            while self._take_in():
                for live in self._step():
                    self._hand_out(live)
        except Exception as error:
            # A fault of this loop itself: nobody may be left waiting for a thread that is gone.
            log.exception("generation thread failed")
            with self._changed:
                self._closing = True
                left = list(self._live.values())
            for live in left:  # not through the scheduler: it may be what is broken
                tokens = live.stream.take_new() if live.stream else []
                self._emit(live, tokens, "failed", f"generation failed: {type(error).__name__}: {error}")

    def _take_in(self) -> bool:
        """Wait for work; take in new streams and cancels. False when the service is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._cancels or self._closing or not self._scheduler.idle)
            inbox, self._inbox = self._inbox, []
            cancels, self._cancels = self._cancels, []
            cancelled = [self._live[i] for i in dict.fromkeys(cancels) if i in self._live]
            if self._closing and not self._live:
                return False
        for live in inbox:
            live.stream = self._scheduler.submit(live.id, live.request)
        for live in cancelled:
            self._end(live, "cancelled", "cancelled")
        return True

    def _step(self) -> list[_Live]:
        start = time.perf_counter()
        streams = list(self._scheduler.running)
        taking_part = [self._live[stream.id] for stream in streams]
        for live in taking_part:
            live.admitted = live.admitted or start
        try:
            self._scheduler.step()
        except Exception as error:  # a broken step fails its streams, not the service
            log.exception("language model step failed")
            for live in taking_part:
                self._end(live, "failed", f"language model failed: {type(error).__name__}: {error}")
            taking_part = []
        else:
            self._steps += 1
            self._busy_ms += (time.perf_counter() - start) * 1e3
        refused = [self._live.get(stream.id) for stream in self._scheduler.take_refused()]
        return taking_part + [live for live in refused if live is not None]  # None: cancelled meanwhile

    def _end(self, live: _Live, state: State, reason: str) -> None:
        tokens: list[int] = []
        if live.stream is not None:
            self._scheduler.end(live.stream, state, reason)
            tokens = live.stream.take_new()
        self._emit(live, tokens, state, reason)

    def _hand_out(self, live: _Live) -> None:
        stream = live.stream
        assert stream is not None
        waiting = stream.generated - stream.emitted
        since_ms = (time.perf_counter() - live.last_emit) * 1e3 if live.last_emit else LONGEST_WAIT_MS
        gap_ms = SHORTEST_GAP_MS if live.deltas >= EAGER_DELTAS else 0.0
        enough = waiting >= TOKENS_PER_DELTA and since_ms >= gap_ms
        if stream.ended or enough or (waiting and since_ms >= LONGEST_WAIT_MS):
            self._emit(live, stream.take_new(), stream.state, stream.reason)

    def _emit(self, live: _Live, tokens: list[int], state: State, reason: str) -> None:
        now = time.perf_counter()
        admitted = live.admitted or now
        timings = {
            **live.request.settings.timings_ms,
            "lm_queue": (admitted - live.submitted) * 1e3,
            "lm": (now - admitted) * 1e3,
        }
        delta = TokenDelta(live.id, live.deltas, tokens, state, reason, timings)
        live.deltas, live.last_emit = live.deltas + 1, now
        self._tokens += len(tokens)
        if delta.final:
            with self._changed:
                if self._live.pop(live.id, None) is None:
                    return
                if live.id in self._sounding:
                    self._sounding[live.id] = now + LONGEST_SOUNDING_S
                kind = reason if state == "done" else state
                self._finished[kind] = self._finished.get(kind, 0) + 1
                self._tell_whether_full()
                self._changed.notify_all()
        try:
            live.emit(delta)
        except Exception:  # the receiver is gone: stop producing for it
            log.exception("stream %s: handing out tokens failed", live.id)
            self.cancel(live.id)
