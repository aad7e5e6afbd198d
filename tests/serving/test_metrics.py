"""Metrics without Triton: the recorder, what the meters measure of known streams, the table of docs/metrics.md."""

from __future__ import annotations

import importlib
import re
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from serving.heartbeat import Heartbeats
from serving.metrics.generation import GenerationMeter
from serving.metrics.playout import MAX_STREAMS, PlayoutMeter
from serving.metrics.recorder import MAX_OBSERVATIONS, Changes, Recorder
from serving.metrics.refusals import Refusals
from serving.metrics.table import METRICS
from vita_audio.contract.errors import BadMessage, InvalidRequest, ServerFull, ServerStopping
from vita_audio.contract.messages import Delta, State, Status
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ

DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(vita_\w+)` \| (\w+) \|([\w, ]*)\|", re.MULTILINE)
BOOST = ("tts", "boost")


def observed(recorder: Recorder) -> dict[str, list[float]]:
    """``name{label values}`` -> the values, in order; times to a tenth of a microsecond."""
    values: dict[str, list[float]] = {}
    for (name, labels), value in recorder.take().observations:
        values.setdefault(f"{name}{{{','.join(labels)}}}", []).append(round(value, 4))
    return values


def test_the_documented_table_is_the_table() -> None:
    documented = {
        name: (kind, tuple(label.strip() for label in labels.split(",") if label.strip()))
        for name, kind, labels in ROW.findall(DOCS.read_text())
    }
    known = {metric.name: (metric.kind, metric.labels) for metric in METRICS.values()}
    assert documented == known


def test_names_and_buckets_follow_the_conventions() -> None:
    for metric in METRICS.values():
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert bool(metric.buckets) == (metric.kind == "histogram"), metric.name
        assert list(metric.buckets) == sorted(set(metric.buckets)), metric.name


def test_recorder_hands_out_every_change_once() -> None:
    recorder = Recorder()
    recorder.add("vita_tokens_total", 3, task="tts", mode="boost")
    recorder.add("vita_tokens_total", 4, task="tts", mode="boost")
    recorder.total("vita_busy_ms_total", 10.0, stage="prompt")
    recorder.set("vita_slots", 8)
    recorder.set("vita_slots", 9)
    recorder.observe("vita_queue_ms", 1.5, stage="speech_lm")
    changes = recorder.take()
    assert changes.counters == {("vita_tokens_total", BOOST): 7, ("vita_busy_ms_total", ("prompt",)): 10.0}
    assert changes.gauges == {("vita_slots", ()): 9}
    assert list(changes.observations) == [(("vita_queue_ms", ("speech_lm",)), 1.5)]
    recorder.total("vita_busy_ms_total", 12.5, stage="prompt")
    assert recorder.take().counters == {("vita_busy_ms_total", ("prompt",)): 2.5}
    assert recorder.take() == Changes()


def test_recorder_loses_nothing_between_threads() -> None:
    recorder, taken = Recorder(), 0.0

    def count() -> None:
        for _ in range(2000):
            recorder.add("vita_tokens_total", 1, task="tts", mode="boost")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken += sum(recorder.take().counters.values())
    assert taken + sum(recorder.take().counters.values()) == 8000


def test_recorder_is_bounded_and_refuses_what_the_table_does_not_know() -> None:
    recorder = Recorder()
    for value in range(MAX_OBSERVATIONS + 5):
        recorder.observe("vita_queue_ms", value, stage="speech_lm")
    kept = recorder.take().observations
    assert (len(kept), kept[0][1]) == (MAX_OBSERVATIONS, 5)
    with pytest.raises(KeyError):
        recorder.set("vita_unknown", 1)
    with pytest.raises(ValueError, match="with labels"):
        recorder.add("vita_tokens_total", 1, task="tts")
    with pytest.raises(ValueError, match="is a gauge"):
        recorder.add("vita_slots", 1)


def playout(recorder: Recorder, mode: str = "boost") -> PlayoutMeter:
    """One stream of four answers: 0.1 s, 0.2 s and 0.05 s of sound leave at 10.15, 10.20 and 10.65 s.

    It began at 10 s: its first message, without sound, left at 10.1 s and reports 100 ms. The sound of the first two
    chunks lasts until 10.45 s, so the third is 200 ms late.
    """
    meter = PlayoutMeter(recorder)
    rate = OUTPUT_SAMPLE_RATE_HZ

    def chunk(
        index: int, now_s: float, samples: int, queue: float, state: State = "running", text: bool = False
    ) -> None:
        timings = {"prompt": 20.0, "lm_queue": 5.0, "lm": 60.0 + 40 * index, "decode_queue": queue, "decode": 5.0}
        status = Status("s1", index, state, task="tts", mode=mode, timings_ms=timings)
        meter.chunk(status, samples, text, now_s)

    chunk(0, 10.1, 0, 10.0, text=True)
    chunk(1, 10.15, rate // 10, 12.0, text=True)
    chunk(2, 10.20, rate // 5, 12.0)
    chunk(3, 10.65, rate // 20, 15.0, state="done")
    return meter


def test_playout_of_a_known_stream() -> None:
    recorder = Recorder()
    playout(recorder)
    with_counts = recorder.take()
    counters = {name: value for (name, labels), value in with_counts.counters.items() if labels == BOOST}
    assert counters.pop("vita_underruns_total") == 1
    assert counters.pop("vita_underrun_ms_total") == pytest.approx(200.0, abs=0.1)
    assert counters.pop("vita_audio_ms_total") == pytest.approx(350.0, abs=0.1)
    assert not counters
    playout(recorder)
    values = observed(recorder)
    assert values["vita_first_text_ms{tts,boost}"] == [100.0]
    assert values["vita_ttfa_ms{tts,boost}"] == [150.0]
    assert values["vita_chunk_gap_ms{tts,boost}"] == [50.0, 450.0]
    assert values["vita_queue_ms{audio_decoder}"] == [10.0, 2.0, 0.0, 3.0]
    assert values["vita_ttfa_stage_ms{lm}"] == [100.0]
    assert values["vita_real_time_factor{tts,boost}"] == [pytest.approx(0.65 / 0.35, rel=1e-3)]


def test_only_named_modes_become_labels() -> None:
    recorder = Recorder()
    for numbers in range(1, 50):
        playout(recorder, mode=f"{numbers},3")
    assert {labels for (_, labels) in recorder.take().counters} == {("tts", "custom")}


def test_playout_ignores_strangers_and_forgets_streams_that_never_end() -> None:
    recorder = Recorder()
    meter = PlayoutMeter(recorder)
    meter.chunk(Status("unknown", 3, "failed", task="tts", mode="boost"), 100, True, 1.0)
    for number in range(MAX_STREAMS + 10):
        meter.chunk(Status(f"s{number}", 0, "running", task="tts", mode="boost"), 0, False, 1.0)
    meter.chunk(Status("s3", 1, "running", task="tts", mode="boost"), 100, False, 2.0)  # forgotten
    assert not observed(recorder)
    meter.chunk(Status("s20", 1, "cancelled", task="tts", mode="boost"), 100, False, 2.0)
    # A stream that was broken off has a first sound, but no speed.
    assert set(observed(recorder)) == {"vita_ttfa_ms{tts,boost}"}


def test_generation_of_a_known_stream() -> None:
    recorder = Recorder()
    meter = GenerationMeter(recorder)

    def delta(stream: str, index: int, tokens: int, lm_ms: float, state: State = "running") -> None:
        timings = {"lm_queue": 7.0, "lm": lm_ms}
        status = Status(stream, index, state, task="chat", mode="turbo", timings_ms=timings)
        meter.delta(Delta(status, list(range(tokens))), 50)

    delta("a", 0, 8, 10.0)
    delta("b", 0, 4, 10.0)
    assert meter.cached_tokens == 58 + 54
    delta("a", 1, 12, 100.0, "done")
    delta("b", 1, 0, 100.0, "cancelled")
    delta("read ahead", 0, 0, 100.0, "done")
    assert meter.cached_tokens == 0
    changes = recorder.take()
    assert changes.counters == {("vita_tokens_total", ("chat", "turbo")): 24}
    assert list(changes.observations) == [
        (("vita_queue_ms", ("speech_lm",)), 7.0),
        (("vita_queue_ms", ("speech_lm",)), 7.0),
        (("vita_tokens_per_second", ("chat", "turbo")), 200.0),
        (("vita_queue_ms", ("speech_lm",)), 7.0),
    ]


def test_refusals_by_reason() -> None:
    recorder = Recorder()
    refusals = Refusals(recorder, "prompt")
    assert set(recorder.take().counters.values()) == {0}
    for error in (
        InvalidRequest("MODE", "x", "no"),
        ServerFull(8, 32),
        ServerStopping(),
        BadMessage("no"),
        RuntimeError("?"),
    ):
        refusals.count(error)
    counted = {labels: value for (_, labels), value in recorder.take().counters.items()}
    assert counted == {
        ("prompt", "invalid_request", "MODE"): 1,
        ("prompt", "server_full", ""): 1,
        ("prompt", "server_stopping", ""): 1,
        ("prompt", "bad_message", ""): 1,
        ("prompt", "internal_error", ""): 1,
    }


def test_the_publisher_goes_on_after_a_round_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A series that Triton refuses costs one round: a drain reads the gauges of the next."""
    published: dict[str, float] = {}

    class Family:
        GAUGE = COUNTER = HISTOGRAM = None

        def __init__(self, name: str, **_: object) -> None:
            self.name = name

        def Metric(self, labels: dict[str, str], **_: object) -> SimpleNamespace:
            if "refused" in labels.values():
                raise RuntimeError("cannot make this metric")
            return SimpleNamespace(set=lambda value: published.update({self.name: value}), increment=lambda step: None)

    triton = ModuleType("triton_python_backend_utils")
    triton.MetricFamily = Family  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, triton.__name__, triton)
    monkeypatch.delitem(sys.modules, "serving.metrics.publisher", raising=False)
    module = importlib.import_module("serving.metrics.publisher")
    monkeypatch.setattr(module, "_INTERVAL_S", 0.005)
    recorder, rounds = Recorder(), iter(range(1, 10**9))
    publisher = module.MetricsPublisher(recorder, lambda: recorder.set("vita_places_taken", next(rounds)), Heartbeats())
    recorder.add("vita_tokens_total", 1, task="refused", mode="boost")
    end = time.monotonic() + 10
    while published["vita_places_taken"] < 20:
        assert time.monotonic() < end, "no more rounds"
        time.sleep(0.001)
    publisher.close()
    del sys.modules["serving.metrics.publisher"]
