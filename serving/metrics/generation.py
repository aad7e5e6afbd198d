"""Measures the language model's streams from what it hands out: tokens, waits, speed, filled KV positions."""

from __future__ import annotations

from serving.metrics.recorder import Recorder
from serving.metrics.table import mode_label
from vita_audio.contract.messages import Delta


class GenerationMeter:
    """Gets every Delta, in the order of each stream; used by one thread."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._cached: dict[str, int] = {}  # live stream -> prompt and tokens handed out

    @property
    def cached_tokens(self) -> int:
        """Positions of the KV cache that streams with a first token have filled, as far as they were handed out."""
        return sum(list(self._cached.values()))

    def delta(self, delta: Delta, prompt_tokens: int) -> None:
        """Tokens of a stream are about to leave."""
        recorder, status = self._recorder, delta.status
        labels = {"task": status.task, "mode": mode_label(status.mode)}
        if status.index == 0:
            recorder.observe("vita_queue_ms", status.timings_ms["lm_queue"], stage="speech_lm")
        cached = self._cached.pop(status.stream, prompt_tokens) + len(delta.tokens)
        recorder.add("vita_tokens_total", len(delta.tokens), **labels)
        if not status.final:
            self._cached[status.stream] = cached
        elif status.state == "done" and cached > prompt_tokens and status.timings_ms["lm"] > 0:  # else it only read
            speed = (cached - prompt_tokens) / status.timings_ms["lm"] * 1e3
            recorder.observe("vita_tokens_per_second", speed, **labels)
