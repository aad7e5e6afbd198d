"""Every metric of this project: name, kind, labels, buckets, meaning. `docs/metrics.md` is held against it by a test.

Milliseconds throughout, as in STATUS and in Triton's own histograms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vita_audio.contract.modes import NAMED_MODES

Kind = Literal["counter", "gauge", "histogram"]

#: Label `mode` of patterns that have no name: clients may write any number of them, a metric may not.
CUSTOM_MODE = "custom"

_TIMES_MS = (5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 150.0, 200.0, 300.0, 500.0, 800.0, 1500.0, 3000.0, 10000.0)
_STAGES_MS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0)
_RATIOS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 5.0)
_TOKEN_RATES = (5.0, 10.0, 12.5, 20.0, 40.0, 80.0, 120.0, 200.0, 300.0, 500.0, 800.0, 1200.0, 2000.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `buckets`: upper bounds of a histogram."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


_STREAM = ("task", "mode")
_TABLE = (
    Metric("vita_streams", "gauge", ("stage", "state", "worker"), "Streams by stage and state (running, waiting)"),
    Metric("vita_slots", "gauge", (), "Streams that can generate at the same time"),
    Metric("vita_queue_limit", "gauge", (), "Streams admitted beyond the slots"),
    Metric("vita_places_taken", "gauge", (), "Streams that count against slots and queue: until their sound is made"),
    Metric("vita_restarts", "gauge", (), "Times the launcher has started the server again after a failure"),
    Metric("vita_heartbeat_age_ms", "gauge", ("stage", "thread", "worker"), "Time since a worker thread last turned"),
    Metric("vita_kv_tokens", "gauge", (), "Positions of the KV cache that running streams have filled"),
    Metric("vita_kv_capacity_tokens", "gauge", (), "Positions of the KV cache"),
    Metric("vita_prompts_total", "counter", ("prefix",), "Prompts by whether a slot held their beginning (hit, miss)"),
    Metric("vita_prompt_tokens_total", "counter", ("source",), "Tokens of prompts: read, or reused from a slot"),
    Metric("vita_prefix_evicted_tokens_total", "counter", (), "Cached tokens given up for another stream"),
    Metric("vita_decoder_waiting_requests", "gauge", (), "Messages of the language model that wait for the decoder"),
    Metric("vita_tokens_total", "counter", _STREAM, "Generated tokens"),
    Metric("vita_audio_ms_total", "counter", _STREAM, "Milliseconds of sound that have left the decoder"),
    Metric("vita_busy_ms_total", "counter", ("stage",), "Milliseconds in engine steps by stage"),
    Metric("vita_streams_ended_total", "counter", ("stage", "reason"), "Streams that have ended, by stage and reason"),
    Metric("vita_requests_refused_total", "counter", ("stage", "reason", "field"), "Requests answered with an error"),
    Metric("vita_decoder_batches_total", "counter", ("streams",), "Decodes by the number of streams in them"),
    Metric("vita_decoder_faults_total", "counter", ("kind",), "Answers (reply) and calls (stop) that were not sent"),
    Metric("vita_underruns_total", "counter", _STREAM, "Times a listener without a buffer ran out of sound"),
    Metric("vita_underrun_ms_total", "counter", _STREAM, "Milliseconds such a listener waited"),
    Metric("vita_ttfa_ms", "histogram", _STREAM, "Time to first audio inside the server", _TIMES_MS),
    Metric("vita_ttfa_stage_ms", "histogram", ("stage",), "Time of each stage before the first audio", _STAGES_MS),
    Metric("vita_first_text_ms", "histogram", _STREAM, "Time to the first text inside the server", _TIMES_MS),
    Metric("vita_chunk_gap_ms", "histogram", _STREAM, "Time between chunks of sound of a stream", _TIMES_MS),
    Metric("vita_real_time_factor", "histogram", _STREAM, "Seconds spent for each second of sound", _RATIOS),
    Metric("vita_tokens_per_second", "histogram", _STREAM, "Speed of a stream in its slot", _TOKEN_RATES),
    Metric("vita_queue_ms", "histogram", ("stage",), "Wait for a slot or for the decoder, by stage", _STAGES_MS),
)  # fmt: skip

METRICS = {metric.name: metric for metric in _TABLE}


def mode_label(mode: str) -> str:
    """A name of a mode, or `custom`."""
    return mode if mode in NAMED_MODES else CUSTOM_MODE
