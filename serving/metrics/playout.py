"""Measures streams where they leave the server: first samples (`vita_ttfa_ms`), first text, gaps, underruns, real-time
factor. How that relates to the TTFA of a caller: docs/metrics.md.

A stream's clock starts when `prompt` took the request in: the stages before its first message report their times, and
up to there they run one after the other. The hops between the models and the network are not in it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from serving.metrics.recorder import Recorder
from serving.metrics.table import mode_label
from vita_audio.contract.messages import Status
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ

#: A stream that is dropped without an answer never ends here; beyond so many the oldest are forgotten.
MAX_STREAMS = 4096


@dataclass(slots=True)
class _Playout:
    """One stream; times in seconds of the caller's clock. `plays_until`: when a listener without a buffer runs out."""

    start_s: float
    decode_queue_ms: float = 0.0
    last_sound_s: float = 0.0
    plays_until_s: float = 0.0
    samples: int = 0
    has_text: bool = False


class PlayoutMeter:
    """Gets every answer of the audio decoder, in the order of each stream; used by one thread at a time."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._streams: OrderedDict[str, _Playout] = OrderedDict()

    def chunk(self, status: Status, samples: int, has_text: bool, now_s: float) -> None:
        """An answer with `samples` of sound has left at `now_s`."""
        if status.index == 0:
            self._streams[status.stream] = _Playout(now_s - sum(status.timings_ms.values()) / 1e3)
            if len(self._streams) > MAX_STREAMS:
                self._streams.popitem(last=False)
        stream = self._streams.get(status.stream)
        if stream is None:  # an answer to a message that belongs to no stream
            return
        labels = {"task": status.task, "mode": mode_label(status.mode)}
        self._queue(stream, status)
        if has_text and not stream.has_text:
            stream.has_text = True
            self._recorder.observe("vita_first_text_ms", (now_s - stream.start_s) * 1e3, **labels)
        if samples:
            self._sound(stream, status, samples, labels, now_s)
        if status.final:
            del self._streams[status.stream]
            if stream.samples and status.state == "done":
                spent_s = stream.last_sound_s - stream.start_s
                factor = spent_s * OUTPUT_SAMPLE_RATE_HZ / stream.samples
                self._recorder.observe("vita_real_time_factor", factor, **labels)

    def _queue(self, stream: _Playout, status: Status) -> None:
        waited_ms = status.timings_ms.get("decode_queue")
        if waited_ms is not None:
            self._recorder.observe("vita_queue_ms", waited_ms - stream.decode_queue_ms, stage="audio_decoder")
            stream.decode_queue_ms = waited_ms

    def _sound(self, stream: _Playout, status: Status, samples: int, labels: dict[str, str], now_s: float) -> None:
        recorder, late_s = self._recorder, now_s - stream.plays_until_s
        if not stream.samples:
            recorder.observe("vita_ttfa_ms", (now_s - stream.start_s) * 1e3, **labels)
            for stage, took_ms in status.timings_ms.items():
                recorder.observe("vita_ttfa_stage_ms", took_ms, stage=stage)
            recorder.add("vita_underruns_total", 0, **labels)
            recorder.add("vita_underrun_ms_total", 0, **labels)
        else:
            recorder.observe("vita_chunk_gap_ms", (now_s - stream.last_sound_s) * 1e3, **labels)
            if late_s > 0:
                recorder.add("vita_underruns_total", 1, **labels)
                recorder.add("vita_underrun_ms_total", late_s * 1e3, **labels)
        recorder.add("vita_audio_ms_total", samples / OUTPUT_SAMPLE_RATE_HZ * 1e3, **labels)
        stream.last_sound_s = now_s
        stream.plays_until_s = max(stream.plays_until_s, now_s) + samples / OUTPUT_SAMPLE_RATE_HZ
        stream.samples += samples
