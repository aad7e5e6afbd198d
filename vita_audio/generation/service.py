"""The thread around the scheduler: takes requests from any thread, hands every stream's tokens to its callback."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from vita_audio.contract.errors import EngineError, ServerStopping, ServerUnhealthy, in_one_line
from vita_audio.contract.messages import MAX_REASON, Delta, State, Status
from vita_audio.engines.gpu_fault import gpu_is_lost
from vita_audio.engines.interface import LanguageModelEngine
from vita_audio.generation.prefix_cache import PrefixStats
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.scheduler import Scheduler
from vita_audio.generation.stream import Stream
from vita_audio.pulse import IDLE_TURN_S, Pulse, answer_ping

log = logging.getLogger(__name__)

Emit = Callable[[Delta], None]

#: Each delta costs a hop through the server, so tokens travel in company: the first and the last leave at once, the
#: others when this many tokens have gathered or one has waited too long. Once the sound has had its start (the eager
#: deltas bring the decoder its first chunk), there is a shortest gap as well: a fast engine would only make hops.
TOKENS_PER_DELTA = 8
EAGER_DELTAS = 3
SHORTEST_GAP_MS = 20.0
LONGEST_WAIT_MS = 40.0


@dataclass(slots=True)
class _Live:
    id: str
    request: GenerationRequest
    emit: Emit
    submitted: float
    stream: Stream | None = None  # once the thread has taken it in
    admitted: float | None = None
    last_emit: float | None = None
    deltas: int = 0


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """A snapshot for metrics and tests; counts since the start, `busy_ms` the time spent in engine steps."""

    running: int
    waiting: int
    steps: int
    tokens: int
    busy_ms: float
    finished: dict[str, int]  # by reason
    prefixes: PrefixStats = field(default_factory=PrefixStats)


class GenerationService:
    """Continuous batching behind three calls: `submit`, `cancel`, `close`. Callbacks run on the service's thread.

    Args:
        engine: backbone + MCTP; used by this service's thread alone.
        end_tokens: ids that end a stream.
        prefill_chunk: prompt tokens one step takes in at most.
        pulse: of the service's thread.
        reuse_prefixes: see `Scheduler`.
        enter: called by the thread before it does anything.
    """

    def __init__(
        self,
        engine: LanguageModelEngine,
        end_tokens: Collection[int],
        prefill_chunk: int = 64,
        pulse: Pulse | None = None,
        reuse_prefixes: bool = True,
        enter: Callable[[], None] = lambda: None,
    ) -> None:
        self._scheduler = Scheduler(
            engine, end_tokens, prefill_chunk, reuse_prefixes
        )  # touched by the thread alone, but for `check`
        self._slots, self._pulse = engine.slots, pulse or Pulse()
        self._changed = threading.Condition()  # guards what `submit`, `cancel` and `stats` share with the thread
        self._live: dict[str, _Live] = {}
        self._inbox: list[_Live] = []
        self._cancels: list[str] = []
        self._pings: list[Callable[[], None]] = []
        self._closing = self._broken = False
        self._steps = self._tokens = 0
        self._busy_ms = 0.0
        self._finished: dict[str, int] = {}
        self._enter = enter
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, stream_id: str, request: GenerationRequest, emit: Emit) -> None:
        """Start or queue a stream; `emit` gets its Deltas in order, exactly one of them final.

        How many may wait is for the caller to bound.

        Raises:
            InvalidRequest, EngineError: the engine can never serve the request (`Scheduler.check`).
            ServerStopping: the service is closing.
            ServerUnhealthy: its thread has ended by a fault.
        """
        self._scheduler.check(request)
        with self._changed:
            if self._broken:
                raise ServerUnhealthy
            if self._closing:
                raise ServerStopping
            self._live[stream_id] = live = _Live(stream_id, request, emit, time.perf_counter())
            self._inbox.append(live)
            self._changed.notify_all()

    def cancel(self, stream_id: str) -> bool:
        """Ask for the end of a stream; its last delta has state `cancelled`. False when it has ended already."""
        with self._changed:
            if stream_id not in self._live:
                return False
            self._cancels.append(stream_id)
            self._changed.notify_all()
            return True

    def ping(self, answer: Callable[[], None]) -> None:
        """Have `answer` called by the thread in its next turn; once the thread has ended, it is not called."""
        with self._changed:
            self._pings.append(answer)
            self._changed.notify_all()

    def stats(self) -> GenerationStats:
        with self._changed:
            running = min(len(self._live), self._slots)
            waiting = len(self._live) - running
            counts = self._steps, self._tokens, self._busy_ms, dict(self._finished)
            return GenerationStats(running, waiting, *counts, self._scheduler.prefixes.stats)

    def count_from_here(self) -> None:
        """All counts of `stats` begin at zero again, and no slot holds a prompt: a warm-up is no caller's stream."""
        with self._changed:
            self._steps = self._tokens = 0
            self._busy_ms, self._finished = 0.0, {}
            self._scheduler.prefixes.reset()  # what a warm-up has read is no caller's prompt either

    def close(self) -> None:
        """Refuse new streams, cancel the running ones, end the thread."""
        with self._changed:
            self._closing = True
            self._cancels.extend(self._live)
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._enter()
            while self._take_in():
                for live in self._step():
                    self._hand_out(live)
        except Exception as error:
            # A fault of this loop itself: no caller may be left waiting for a thread that is gone.
            log.exception("generation thread failed")
            with self._changed:
                self._closing = self._broken = True
                left = list(self._live.values())
            for live in left:  # not through the scheduler: it may be what is broken
                tokens = live.stream.take_new() if live.stream else []
                reason = f"generation failed: {in_one_line(error)}"
                self._emit(live, tokens, "failed", reason, ServerUnhealthy.default_code)
            self._pulse.broken()

    def _take_in(self) -> bool:
        """Wait for work; take in new streams and cancels. False when the service is closed and empty."""
        with self._changed:
            while not (self._inbox or self._cancels or self._pings or self._closing or not self._scheduler.idle):
                self._pulse.beat()
                self._changed.wait(IDLE_TURN_S)
            self._pulse.beat()
            inbox, self._inbox = self._inbox, []
            cancels, self._cancels = self._cancels, []
            pings, self._pings = self._pings, []
            cancelled = [self._live[i] for i in dict.fromkeys(cancels) if i in self._live]
            if self._closing and not self._live:
                return False
        for answer in pings:
            answer_ping(answer)
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
            with self._pulse.call():
                self._scheduler.step()
        except Exception as error:  # a broken step fails its streams, not the service
            if gpu_is_lost(error):
                raise
            log.exception("language model step failed")
            for live in taking_part:
                self._end(live, "failed", f"language model failed: {in_one_line(error)}")
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

    def _emit(self, live: _Live, tokens: list[int], state: State, reason: str, code: str = "") -> None:
        now = time.perf_counter()
        admitted = live.admitted or now
        timings = {
            **live.request.settings.timings_ms,
            "lm_queue": (admitted - live.submitted) * 1e3,
            "lm": (now - admitted) * 1e3,
        }
        code = code or {"failed": EngineError.default_code, "cancelled": "cancelled"}.get(state, "")
        settings, index = live.request.settings, live.deltas
        reason = reason[:MAX_REASON]
        about = settings.task, settings.mode, settings.seed, timings, code
        prompt = live.request.prompt
        cached = live.stream.cached if live.stream else 0
        status = Status(live.id, index, state, reason, *about, len(prompt), cached, settings.history_clips)
        live.deltas, live.last_emit = live.deltas + 1, now
        self._tokens += len(tokens)
        if status.final:
            with self._changed:
                if self._live.pop(live.id, None) is None:
                    return
                kind = reason if state == "done" else state
                self._finished[kind] = self._finished.get(kind, 0) + 1
                self._changed.notify_all()
        try:
            live.emit(Delta(status, tokens, () if index else prompt))
        except Exception:  # the receiver is gone: stop producing for it
            log.exception("stream %s: handing out tokens failed", live.id)
            self.cancel(live.id)
