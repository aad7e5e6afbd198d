"""The stage `speech_lm` without Triton: one last answer a request, probes while a stream is quiet, nothing left."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from language_models import request
from served_engines_double import (
    CHUNK,
    CONTEXT,
    END_TOKENS,
    QUEUE,
    RESTARTS,
    SLOTS,
    NamedHeartbeats,
    serve_with_doubles,
)
from serving import admission, speech_lm_stage
from serving.admission import AdmissionRecord, Load
from serving.speech_lm_stage import SpeechLmStage
from speech_lm_bench import Answers, Bench
from vita_audio.contract.errors import BadMessage, InvalidRequest, ServerFull, ServerStopping
from vita_audio.contract.messages import Cancel, Delta, Probe, Released, Start, decode, encode, no_embeddings
from vita_audio.engines.interface import ExtendRow
from vita_audio.generation.prefix_cache import PrefixStats
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.service import GenerationStats
from waiting import until


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(slots=1, queue=1)
    yield bench
    bench.engine.gate.set()
    bench.stage.close()


def test_a_stream_stays_until_it_is_released(bench: Bench) -> None:
    answers = bench.start()
    until(lambda: answers.complete)
    assert (answers.deltas[-1].state, answers.closed) == ("done", False)
    assert bench.load == Load(0, 0, 1)
    bench.send(Released(answers.stream))
    assert (answers.sent[-1], answers.closed) == (None, True)
    assert bench.load.taken == 0
    bench.send(Released(answers.stream))


def test_a_full_server_refuses_and_a_draining_one_too(bench: Bench) -> None:
    done, second = bench.start(), bench.start()
    until(lambda: done.complete and second.complete)  # streams that only decode need no slot, but count
    with pytest.raises(ServerFull, match=r"server is full \(2 running, 0 waiting\)"):
        bench.start()
    bench.send(Released(done.stream))
    third = bench.start()
    until(lambda: third.complete)
    bench.send(Released(second.stream))
    bench.record.drain()
    with pytest.raises(ServerStopping):
        bench.start()
    assert bench.load == Load(0, 0, 1)


@pytest.mark.parametrize("complete", [False, True])
def test_a_client_that_sent_its_start_itself_and_is_gone_leaves(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, complete: bool
) -> None:
    monkeypatch.setattr(speech_lm_stage, "CLIENT_CHECK_S", 0.02)
    gone, asked = threading.Event(), threading.Event()
    answers, generation = Answers(), request([5] * 3, (8192, 0), 4)

    def cancelled() -> bool:
        assert not answers.closed, "Triton has forgotten a request that is answered"
        asked.set()
        return gone.is_set()

    if not complete:
        bench.engine.gate.clear()
    bench.stage.accept(Start(generation.settings, generation.prompt), answers, cancelled)
    until(lambda: answers.complete == complete)
    asked.clear()
    assert asked.wait(10)
    assert bench.load.taken == 1
    gone.set()
    until(lambda: bench.load.taken == 0)
    bench.engine.gate.set()
    until(lambda: answers.closed)


def test_what_cannot_run_is_refused_and_counts_nothing(bench: Bench) -> None:
    settings = request([5], (1, 10)).settings
    with pytest.raises(InvalidRequest, match="PROMPT_IDS"):
        bench.stage.accept(Start(settings, []), Answers())
    with pytest.raises(BadMessage, match="speech_lm takes no Probe"):
        bench.stage.accept(Probe("a"), Answers())
    assert bench.load.taken == 0


def test_a_client_that_is_gone_before_is_not_admitted(bench: Bench) -> None:
    answers = bench.start(cancelled=True)
    assert (answers.sent, answers.closed) == ([None], True)
    assert bench.load.taken == 0


def test_quiet_streams_are_probed_and_cancelled_ones_leave_at_once(bench: Bench) -> None:
    bench.engine.gate.clear()  # the first is on its prompt, the second waits for the slot
    reading, queued = bench.start(), bench.start()
    until(lambda: len(reading.probes) >= 3 and len(queued.probes) >= 3)
    gaps = [later - earlier for earlier, later in zip(queued.times, queued.times[1:], strict=False)]
    assert min(gaps) >= 0.9 * speech_lm_stage.WAITING_PROBE_S
    assert {probe.stream for probe in queued.probes} == {queued.stream}
    for answers, left in ((queued, 1), (reading, 0)):
        bench.send(Cancel(answers.stream))
        assert bench.load.taken == left  # although the engine is still in its step
        bench.send(Cancel(answers.stream))
    bench.engine.gate.set()
    until(lambda: queued.closed and reading.closed)
    assert [answers.deltas[-1].state for answers in (queued, reading)] == ["cancelled", "cancelled"]
    assert bench.start().stream


def test_a_stream_that_is_only_decoded_is_probed_and_can_be_cancelled(bench: Bench) -> None:
    answers = bench.start()
    until(lambda: answers.complete)
    until(lambda: answers.probes)
    bench.send(Cancel(answers.stream))
    assert (answers.sent[-1], answers.closed) == (None, True)
    assert bench.load.taken == 0


def test_released_ends_no_stream_that_is_still_generating(bench: Bench) -> None:
    bench.engine.gate.clear()
    answers = bench.start()
    bench.send(Released(answers.stream))
    assert not answers.closed
    assert bench.load == Load(1, 0, 0)


def test_a_stream_that_is_not_released_leaves_after_a_while(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "LONGEST_DECODING_S", 0.05)
    monkeypatch.setattr(admission, "SLOWEST", 0.0)
    answers = bench.start()
    until(lambda: answers.closed)
    assert bench.load.taken == 0


def test_a_sender_that_raises_costs_its_stream_only(bench: Bench) -> None:
    generation, broken = request([5] * 3, (8192, 0), 4000), Answers(fails=True)
    bench.stage.accept(Start(generation.settings, generation.prompt), broken)
    fine = bench.start()
    until(lambda: fine.complete)
    until(lambda: bench.load == Load(0, 0, 1))


def test_a_sender_that_raises_at_a_probe_costs_its_stream_only(bench: Bench) -> None:
    bench.engine.gate.clear()
    generation, broken = request([5] * 3, (8192, 0), 4000), Answers(fails=True)
    bench.stage.accept(Start(generation.settings, generation.prompt), broken)
    until(lambda: broken.probes and bench.load.taken == 0)
    queued = bench.start()
    until(lambda: len(queued.probes) > 1)
    bench.engine.gate.set()
    until(lambda: queued.complete)


def test_a_stream_whose_probe_was_not_sent_is_not_generated_any_more(bench: Bench) -> None:
    bench.engine.gate.clear()
    generation, broken = request([5] * 3, (8192, 0), 4000), Answers(fails=True)
    bench.stage.accept(Start(generation.settings, generation.prompt), broken)
    until(lambda: broken.probes and bench.load.taken == 0)
    broken.fails = False  # Triton takes messages again
    bench.engine.gate.set()
    until(lambda: broken.closed)
    assert broken.deltas[-1].state == "cancelled"


def test_a_probe_that_was_not_sent_while_the_sound_is_made_costs_nothing(bench: Bench) -> None:
    answers = bench.start()
    until(lambda: answers.complete)
    answers.fails, probes = True, len(answers.probes)
    until(lambda: len(answers.probes) > probes)
    answers.fails = False
    assert bench.load.taken == 1
    bench.send(Released(answers.stream))
    assert (answers.sent[-1], answers.closed, bench.load.taken) == (None, True, 0)


def test_a_long_reason_of_a_failure_still_fits_a_message(bench: Bench) -> None:
    def extend(rows: Sequence[ExtendRow]) -> list[int | None]:
        raise RuntimeError("x" * 100_000)

    bench.engine.extend = extend  # type: ignore[method-assign]
    answers = bench.start()
    until(lambda: answers.closed)
    (delta,) = (message for message in answers.sent if isinstance(message, Delta))
    assert decode(*encode(delta)) == delta
    assert (delta.status.state, delta.status.code) == ("failed", "engine_error")


def test_metrics_of_the_stage(bench: Bench) -> None:
    bench.engine.gate.clear()
    bench.start()
    bench.start()
    bench.stage.measure()
    gauges = bench.stage.recorder.take().gauges
    assert gauges["vita_places_taken", ()] == 2
    assert gauges["vita_streams", ("speech_lm", "running", "")] == 1
    assert gauges["vita_streams", ("speech_lm", "waiting", "")] == 1


def test_the_gauges_are_their_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    done = bench.start()
    until(lambda: done.complete)
    bench.engine.gate.clear()
    bench.start(4)
    stage, name = bench.stage, "speech_lm"
    counted = GenerationStats(3, 5, 7, 11, 13.0, {"end_token": 17}, PrefixStats(23, 2, 310, 37, 41))
    monkeypatch.setattr(stage._service, "stats", lambda: counted)
    monkeypatch.setattr(stage._meter, "_cached", {"a": 19})
    taken: list[int] = []
    monkeypatch.setattr(bench.admission, "refresh", lambda: taken.append(bench.load.taken))
    stage.measure()
    changes = stage.recorder.take()
    gauges = {key: value for key, value in changes.gauges.items() if key[0] != "vita_slots"}
    assert gauges == {
        ("vita_streams", (name, "running", "")): 3,
        ("vita_streams", (name, "waiting", "")): 5,
        ("vita_places_taken", ()): 2,
        ("vita_kv_tokens", ()): 19,
    }
    assert changes.counters["vita_busy_ms_total", (name,)] == 13.0
    assert changes.counters["vita_streams_ended_total", (name, "end_token")] == 17
    prompts = {key: value for key, value in changes.counters.items() if "prompt" in key[0] or "prefix" in key[0]}
    assert prompts == {
        ("vita_prompts_total", ("hit",)): 2,
        ("vita_prompts_total", ("miss",)): 21,
        ("vita_prompt_tokens_total", ("reused",)): 37,
        ("vita_prompt_tokens_total", ("read",)): 273,
        ("vita_prefix_evicted_tokens_total", ()): 41,
    }
    assert taken == [2]


def test_the_meter_gets_every_delta_and_the_length_of_the_prompt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[Delta, int]] = []
    monkeypatch.setattr(bench.stage._meter, "delta", lambda *arguments: measured.append(arguments))
    answers = bench.start(100)
    until(lambda: answers.complete)
    sent = [message for message in answers.sent if isinstance(message, Delta)]
    assert measured == [(delta, 3) for delta in sent]


def test_the_longer_a_quiet_stream_may_last_the_rarer_are_its_probes() -> None:
    stage = speech_lm_stage
    assert 0 < stage.TICK_S < stage.WAITING_PROBE_S < stage.RUNNING_PROBE_S < stage.DECODING_PROBE_S
    assert stage.DECODING_PROBE_S < stage.CLIENT_CHECK_S


def test_a_stream_with_complete_tokens_is_probed_at_its_own_interval(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, interval_s in (("WAITING_PROBE_S", 3600.0), ("RUNNING_PROBE_S", 3600.0), ("DECODING_PROBE_S", 0.01)):
        monkeypatch.setattr(speech_lm_stage, name, interval_s)
    answers = bench.start()
    until(lambda: answers.complete and len(answers.probes) > 3)


def test_a_message_puts_off_the_next_probe(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.engine.gate.clear()
    answers = bench.start()
    until(lambda: answers.probes)
    opened = bench.stage._open[answers.stream]
    opened.probe_s = 3600.0
    with opened.lock:
        opened.last_s, opened.checked_s = 0.0, 0.0
    bench.engine.gate.set()
    until(lambda: answers.complete)
    assert time.monotonic() - opened.last_s < 60
    until(lambda: time.monotonic() - opened.checked_s < 60)
    assert opened.checked_s <= time.monotonic()


def test_embeddings_stand_in_the_places_of_their_ids(bench: Bench) -> None:
    taken: list[GenerationRequest] = []
    service = SimpleNamespace(submit=lambda stream, request, emit: taken.append(request), close=lambda: None)
    stage = SpeechLmStage(service, bench.admission, speech_id=9)  # type: ignore[arg-type]
    settings, rows = request([5] * 3, (8192, 0), 4).settings, np.ones((2, 3), np.float32)
    stage.accept(Start(settings, [5, 9, 9, 6], rows), Answers())
    (embedded,) = [each.embedded for each in taken]
    assert embedded is not None
    assert embedded.places.tolist() == [1, 2]
    assert embedded.rows is rows
    for tokens, sent in (([5, 9, 6], rows), ([5, 9], no_embeddings()), ([5, 6], rows)):
        with pytest.raises(BadMessage, match=r"EMBEDDINGS: \d rows are not valid"):
            stage.accept(Start(settings, tokens, sent), Answers())
    bench.stage.accept(Start(settings, [0, 1, 2]), Answers())  # a base checkpoint has no such id
    with pytest.raises(BadMessage, match="0 ids stand for one"):
        bench.stage.accept(Start(settings, [9, 9], rows), Answers())
    assert bench.load.taken == 2
    stage.close()


@pytest.mark.parametrize(("gpu", "niceness"), [(None, [10]), (object(), [])])
def test_a_stage_is_what_the_settings_of_its_server_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: object, niceness: list[int]
) -> None:
    source = serve_with_doubles(speech_lm_stage, monkeypatch, tmp_path, gpu)
    called: dict[str, Any] = {}

    class Service:
        def __init__(self, *arguments: object) -> None:
            called["service"] = arguments

        def close(self) -> None: ...

    engine = SimpleNamespace(embedded_size=6)

    def open_engine(opened: object, slots: int) -> object:
        called["engine"] = (opened, slots)
        return engine

    nice: list[int] = []
    monkeypatch.setattr(speech_lm_stage.os, "nice", nice.append)
    monkeypatch.setattr(speech_lm_stage, "open_language_model", open_engine)
    monkeypatch.setattr(speech_lm_stage, "GenerationService", Service)
    monkeypatch.setattr(speech_lm_stage, "warm_up_generation", lambda *arguments: called.update(warm=arguments))
    entered: list[tuple[str, bool]] = []

    def share(settings: object, given: object, model: str, alone: bool) -> Callable[[], None]:
        assert "engine" not in called
        return partial(entered.append, (model, alone))

    monkeypatch.setattr(speech_lm_stage, "share_gpu", share)
    heartbeats = NamedHeartbeats()
    stage = SpeechLmStage.serve("speech_lm_0", heartbeats)
    assert nice == niceness
    *_, enter = called["service"]
    enter()
    assert entered == [("speech_lm", True)] * 2  # where it is opened, and on the service's thread
    assert called["engine"] == (source, SLOTS)
    assert called["service"] == (engine, END_TOKENS, CHUNK, heartbeats.pulses["generation"], True, enter)
    assert heartbeats.pulses.keys() == {"generation", "prober"}
    assert called["warm"][0] is stage._service  # type: ignore[index]
    assert called["warm"][2] == 6  # type: ignore[index]
    assert stage.most_rows_bytes == 4 * 6 * CONTEXT
    gauges = stage.recorder.take().gauges
    assert gauges == {
        ("vita_restarts", ()): RESTARTS,
        ("vita_slots", ()): SLOTS,
        ("vita_queue_limit", ()): QUEUE,
        ("vita_kv_capacity_tokens", ()): SLOTS * CONTEXT,
    }
    record = AdmissionRecord(tmp_path / "admission")
    for _ in range(SLOTS + QUEUE):
        record.check()
        stage._admission.admit()
    with pytest.raises(ServerFull, match=rf"\({SLOTS} running, {QUEUE} waiting\)"):
        record.check()
    stage.close()


def test_close_answers_every_request_to_its_end() -> None:
    bench = Bench(slots=1, queue=2)
    done = bench.start()
    until(lambda: done.complete)
    bench.engine.gate.clear()
    running, queued = bench.start(1000), bench.start()
    threading.Timer(0.05, bench.engine.gate.set).start()
    bench.stage.close()
    assert [answers.closed for answers in (done, running, queued)] == [True] * 3
    assert [answers.deltas[-1].state for answers in (running, queued)] == ["cancelled"] * 2
    assert bench.load.taken == 0


def test_close_ends_every_stream_although_one_cannot_be_answered() -> None:
    bench = Bench(slots=1, queue=2)
    broken, fine = bench.start(), bench.start()
    until(lambda: broken.complete and fine.complete)
    broken.fails = True
    bench.stage.close()
    assert [answers.closed for answers in (broken, fine)] == [True, True]
    assert bench.load.taken == 0


def test_random_cancels_and_releases_leave_nothing() -> None:
    chance, bench = random.Random(0), Bench(slots=3, queue=3)
    kept: list[Answers] = []
    for _ in range(300):
        try:
            kept.append(bench.start(chance.choice([1, 30, 4000])))
        except ServerFull:
            assert bench.load.taken == 6
        for answers in chance.sample(kept, min(len(kept), 2)):
            if answers.sent and not answers.closed:
                kind = Released if answers.complete and chance.random() < 0.5 else Cancel
                bench.send(kind(answers.stream))
        assert bench.load.taken <= 6
        time.sleep(chance.choice([0, 0, 0.002]))
    for answers in kept:
        if not answers.closed:
            bench.send(Cancel(answers.stream))
    until(lambda: all(answers.closed for answers in kept))
    assert bench.load.taken == 0
    until(lambda: not bench.stage._open)
    assert len(kept) > 50
    bench.stage.close()
