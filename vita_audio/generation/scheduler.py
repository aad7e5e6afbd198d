"""Continuous batching: streams join and leave at any step; backbone and burst phases of all streams run together.

A step runs the backbone once for every stream that wants it, then every burst that is due. Prompts are read in order of
admission, by chunks of `prefill_chunk` tokens; one step takes in as many whole chunks as together have no more than
`prefill_chunk` tokens (several short prompts, or one chunk of a long one), through the backbone and as many through the
cascade (besides the rows of the bursts that end the reading, no more either), so that is what a running stream waits
for. Chunk borders depend on the prompt and on what the slot held of it, never on load: a request computes the same in
any company.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Sequence

from vita_audio.contract.errors import InvalidRequest, in_one_line
from vita_audio.contract.messages import State
from vita_audio.engines.cached_tokens import check_embedded
from vita_audio.engines.gpu_fault import gpu_is_lost
from vita_audio.engines.interface import BurstRow, LanguageModelEngine
from vita_audio.generation.prefix_cache import PrefixCache
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.stream import Stream

log = logging.getLogger(__name__)


class Scheduler:
    """Drives one engine; single-threaded (see `service.py` for the thread around it).

    Args:
        engine: backbone + MCTP.
        end_tokens: ids that end a stream.
        prefill_chunk: prompt tokens one step takes in at most.
        reuse_prefixes: a prompt goes on from a free slot that holds its beginning (`prefix_cache.py`).
    """

    def __init__(
        self,
        engine: LanguageModelEngine,
        end_tokens: Collection[int],
        prefill_chunk: int = 64,
        reuse_prefixes: bool = True,
    ) -> None:
        # A decode step extends by up to K + 1 tokens at once; a smaller chunk would cut it in two.
        if prefill_chunk < engine.mctp_modules + 1:
            raise ValueError(f"prefill_chunk: {prefill_chunk} is below K + 1 = {engine.mctp_modules + 1}")
        self.engine = engine
        self.end_tokens = frozenset(end_tokens)
        self.prefill_chunk = prefill_chunk
        self.running: list[Stream] = []
        self.waiting: deque[Stream] = deque()
        self._refused: list[Stream] = []
        self.prefixes = PrefixCache(engine.slots, reuse_prefixes)

    def check(self, request: GenerationRequest) -> None:
        """Whether this engine can serve the request.

        Raises:
            InvalidRequest: its prompt or mode cannot be served.
            EngineError: its embeddings do not fit the prompt or the engine.
        """
        prompt, engine = request.prompt, self.engine
        if len(prompt) == 0:
            raise InvalidRequest("PROMPT_IDS", [], "at least one token")
        if len(prompt) >= engine.context:
            raise InvalidRequest(
                "TEXT", f"a prompt of {len(prompt)} tokens", f"at most {engine.context - 1} tokens fit", "shorten it"
            )
        if not 0 <= min(prompt) <= max(prompt) < engine.vocab_size:
            raise InvalidRequest("PROMPT_IDS", [min(prompt), max(prompt)], f"ids in [0, {engine.vocab_size})")
        embedded = request.embedded  # checked when the request was made, but against no engine
        if embedded is not None and embedded.rows.shape[-1] != engine.embedded_size:  # in a step all would fail
            check_embedded(embedded, len(prompt), engine.embedded_size)
        most = max(request.settings.pattern[1::2])
        if most > engine.mctp_modules:
            raise InvalidRequest("MODE", request.settings.mode, f"this model has {engine.mctp_modules} MCTP modules")

    def submit(self, stream_id: str, request: GenerationRequest) -> Stream:
        """Queue a stream for the next free slot. The caller has run `check` and bounds how many may wait."""
        stream = Stream(stream_id, request, self.engine.mctp_modules, self.engine.context, self.end_tokens)
        self.waiting.append(stream)
        self._admit()
        return stream

    def end(self, stream: Stream, state: State, reason: str) -> None:
        """End a stream now, running or waiting; its slot is free at once."""
        stream.end(state, reason)
        self._leave(stream)

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    def take_refused(self) -> list[Stream]:
        """Streams that the engine could not begin since the last call; they have ended as `failed`."""
        refused, self._refused = self._refused, []
        return refused

    def _admit(self) -> None:
        while self.prefixes and self.waiting:
            stream = self.waiting[0]
            slot, keep = self.prefixes.choose(stream.request.keys)
            try:
                cascaded = self.engine.begin(slot, stream.request.sampling, keep)
            except Exception as error:  # this stream's fault or bad luck: the others go on, the slot stays free
                if gpu_is_lost(error):
                    raise
                log.exception("stream %s: the engine cannot begin in slot %d", stream.id, slot)
                self.prefixes.forget(slot)
                stream.end("failed", f"language model failed: {in_one_line(error)}")
                self._refused.append(self.waiting.popleft())
                continue
            self.prefixes.take(slot, stream.prompt_tokens, keep)
            stream.begin(slot, keep, cascaded)
            self.running.append(self.waiting.popleft())

    def _leave(self, stream: Stream) -> None:
        if stream in self.waiting:
            self.waiting.remove(stream)
        elif stream in self.running:
            self.running.remove(stream)
            self.engine.release(stream.slot)
            # After a failed step an engine's caches are not what its account says.
            self.prefixes.put(stream.slot, () if stream.state == "failed" else stream.keys[: stream.consumed])
        self._admit()

    def step(self) -> None:
        """Run one backbone phase and one burst phase; streams that end in it give up their slot."""
        active = list(self.running)
        reading = self._choose_reading(active)
        extending = [s for s in active if not s.wants_burst and (s in reading or not self._is_reading(s))]
        self._extend(
            [s for s in extending if s.consumed < len(s.tokens)]
        )  # but not where the cascade alone has to read
        self._read_cascade([s for s in reading if s.uses_mctp and not s.ended])
        self._burst([s for s in active if s.wants_burst and not s.ended])
        for stream in active:
            stream.read()
            if stream.ended:
                self._leave(stream)

    def _choose_reading(self, active: Sequence[Stream]) -> list[Stream]:
        """Streams whose next chunk is read in this step: the first ones on their prompts that fit `prefill_chunk`."""
        chosen: list[Stream] = []
        left = self.prefill_chunk
        for stream in active:
            if not self._is_reading(stream):
                continue
            read = stream.cascaded if stream.uses_mctp else stream.consumed  # the cascade is never ahead
            left -= min(self.prefill_chunk, max(stream.prompt_tokens, stream.consumed) - read)
            if left < 0 and chosen:
                break
            chosen.append(stream)
        return chosen

    def _is_reading(self, stream: Stream) -> bool:
        """Still on its prompt: backbone or cascade has more than a decode step's worth of rows to run."""
        if stream.consumed < stream.prompt_tokens or stream.reads_only:
            return True
        return stream.wants_burst and self._cascade_lag(stream) > 0

    def _cascade_lag(self, stream: Stream) -> int:
        """Whole chunks of cascade rows that can be run before the burst that samples, in rows."""
        lag = stream.cascade_rows_known - stream.cascaded
        return lag if stream.consumed - stream.cascaded > self.prefill_chunk else 0

    def _extend(self, streams: list[Stream]) -> None:
        rows = []
        for s in streams:
            stop = min(len(s.tokens), s.consumed + self.prefill_chunk)
            index = s.generated if stop == len(s.tokens) and not s.reads_only else None
            rows.append(s.extend_row(stop, index))
        if not rows:
            return
        for s, row, token in zip(streams, rows, self.engine.extend(rows), strict=True):
            s.extended(row.start + len(row.tokens), token)

    def _read_cascade(self, streams: Sequence[Stream]) -> None:
        """Run the cascade over prompt rows that need no sampled token, at most one chunk of each stream."""
        rows = []
        for s in streams:
            known = s.cascade_rows_known
            if self._cascade_lag(s) == 0 and known - s.cascaded < (1 if s.reads_only else self.prefill_chunk):
                continue
            stop = min(known, s.cascaded + self.prefill_chunk)
            tokens = s.tokens[s.cascaded + 1 : stop + self.engine.mctp_modules]
            rows.append((s, BurstRow(s.slot, s.cascaded, stop, tokens, 0, None)))
        if rows:
            self.engine.burst([row for _, row in rows])
        for s, row in rows:
            s.cascaded = row.stop

    def _burst(self, streams: list[Stream]) -> None:
        due = [s for s in streams if self._cascade_lag(s) == 0]
        rows = [
            BurstRow(s.slot, s.cascaded, s.consumed, s.tokens[s.cascaded + 1 :], s.burst_size, s.generated) for s in due
        ]
        if not rows:
            return
        for s, tokens in zip(due, self.engine.burst(rows), strict=True):
            s.burst_done(tokens)
