"""The fault campaign: what was seen, and its rules, on made-up records; its record; the short form on real servers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.faults import __main__ as campaign
from benchmarks.faults import interruptions, kills, overload, signals
from benchmarks.faults.bench import Bench, always, restarted, survived, survived_or_restarted
from benchmarks.faults.nonsense import inner_message, public_message
from benchmarks.faults.rows import Limits, Row, beyond, telling, words
from benchmarks.faults.seen import Seen
from benchmarks.faults.table import table
from loadtest.driver import Record
from vita_audio.contract.messages import Status
from vita_client import Metrics, Reply, build_request

BENCH = Bench(Path("engines"))
FAULT_S = 100.0


def ended(code: str, sent_s: float, end_s: float) -> Record:
    """One stream; moments count from the fault."""
    return Record(FAULT_S + sent_s, FAULT_S + end_s, code=code, error="" if code == "done" else f"{code}: gone")


def seen(streams: list[Record], probes: list[Record] = (), changes: list[tuple[float, bool]] = ()) -> Seen:  # type: ignore[assignment]
    readiness = [(FAULT_S - 5, True), *((FAULT_S + at_s, ready) for at_s, ready in changes)]
    return Seen(FAULT_S, [ended("done", -9, -1), *streams], list(probes), readiness)


#: A model process was killed at 0, noticed at 0.5 and replaced at 6.
RESTART = seen(
    [ended("stream_broken", -2, 0.6), ended("done", -3, 0.2), ended("unavailable", 1, 1.1), ended("done", 7, 9)],
    [ended("done", 0.1, 0.3), ended("unavailable", 0.7, 0.7), ended("done", 6.2, 6.6)],
    [(0.5, False), (6.0, True)],
)


def test_a_restart_as_it_should_be() -> None:
    assert (RESTART.not_ready_s, RESTART.ended_s, RESTART.back_s) == pytest.approx((0.5, 0.6, 6.6))
    assert (len(RESTART.running), RESTART.failed, len(RESTART.later)) == (2, 1, 5)
    assert restarted(BENCH, RESTART) == survived_or_restarted(BENCH, RESTART) == always(RESTART) == []
    assert not RESTART.harmless
    assert "it was noticed" in survived(BENCH, RESTART)[0]


def test_nothing_noticed() -> None:
    quiet = seen([ended("done", -1, 2)], [ended("done", 1, 2)])
    assert survived(BENCH, quiet) == survived_or_restarted(BENCH, quiet) == []
    assert quiet.back_s is None
    assert restarted(BENCH, quiet) == ["not ready: never", "back: never"]


@pytest.mark.parametrize(
    ("watched", "complaint"),
    [
        (seen([ended("stream_broken", -1, 0.5)], [], [(0.4, False)]), "back: never"),
        (seen([], [ended("done", 17, 17.5)], [(0.4, False), (16, True)]), "back: 17.5 s, at most 15"),
        (seen([], [ended("done", 7, 7.5)], [(2.4, False), (6, True)]), "not ready: 2.4 s, at most 2"),
        (
            seen([ended("unhealthy", -1, 3)], [ended("done", 7, 7.5)], [(0.4, False), (6, True)]),
            "the streams in flight ended: 3.0 s, at most 2",
        ),
        (
            seen([ended("unavailable", 1, 4)], [ended("done", 7, 7.5)], [(0.4, False), (6, True)]),
            "1 later streams failed after more than 2 s",
        ),
    ],
)
def test_what_is_wrong_with_a_restart(watched: Seen, complaint: str) -> None:
    assert restarted(BENCH, watched) == [complaint]
    assert restarted(Bench(Path("engines"), patience=2), watched) == ([complaint] if "never" in complaint else [])


def test_without_readiness_the_service_is_back_after_the_first_failure() -> None:
    assert seen([ended("unavailable", 1, 2)], [ended("done", 1, 1.5), ended("done", 3, 4)]).back_s == pytest.approx(4)


def test_a_fault_that_is_over_before_the_next_health_check_costs_only_streams_in_flight() -> None:
    watched = seen([ended("stream_broken", -1, 0.1)], [ended("done", 0.05, 0.4), ended("done", 0.2, 0.6)])
    assert (watched.not_ready_s, watched.ended_s, watched.back_s) == pytest.approx((None, 0.1, 0.6))


@pytest.mark.parametrize("code", ["deadline_exceeded", "server_full", "internal_error", "bad_response"])
def test_ends_that_callers_cannot_make_sense_of(code: str) -> None:
    assert always(seen([ended(code, -1, 1)])) == [f"callers saw 1 {code}"]


@pytest.mark.parametrize("text", ["a\nb", "Traceback", "region vita_audio_1_2", "x" * 1001])
def test_texts_that_tell_too_much(text: str) -> None:
    assert telling(["server is full", text])
    assert not telling(["server is full"])


def test_a_drain() -> None:
    fair = [ended("done", -1, 4), ended("shutting_down", 1, 1.1), ended("unavailable", 4.5, 4.6)]
    assert signals.judged(seen(fair), 0, 4.0) == []
    assert signals.judged(seen(fair), 1, 4.0) == ["it ended with 1"]
    assert signals.judged(seen(fair), None, 4.0) == ["it did not end"]
    assert signals.judged(seen(fair), 0, 5.0) == ["callers saw 1 unavailable"]  # while it should have said why
    assert signals.judged(seen([ended("stream_broken", -1, 4)]), 0, 3.0) == ["callers saw 1 stream_broken"]


def test_overload_limits() -> None:
    good = {
        "refused_ms_p95": 50.0, "ttfa_ms_p95": 149.0, "ttfa_ms_p95_capacity": 100.0, "memory_mib_before": 100.0,
        "memory_mib_after": 104.0,
    }  # fmt: skip
    assert overload.judged(good) == []
    for name, value in {"refused_ms_p95": 51.0, "ttfa_ms_p95": 151.0, "memory_mib_after": 106.0}.items():
        assert len(overload.judged({**good, name: value})) == 1
    assert overload.judged({**good, "refused_ms_p95": None}) == ["nothing was refused, or nothing was served"]


def test_every_stream_has_one_end() -> None:
    streams = [ended("done", 1, 2), ended("stream_broken", 2, 3)]
    assert kills.every_stream_ended(SimpleNamespace(streams=streams, sent=2), streams) == []  # type: ignore[arg-type]
    lost = kills.every_stream_ended(SimpleNamespace(streams=streams, sent=3), [ended("deadline_exceeded", 1, 21)])  # type: ignore[arg-type]
    assert lost == ["3 streams were sent and 2 ended", "callers saw 1 deadline_exceeded"]
    assert kills.worst([{"back_s": 3.0}, {"back_s": None}, {"back_s": 4.0}], "back_s") == 4.0
    assert kills.worst([{"back_s": None}], "back_s") is None


def test_a_random_kill_spares_the_launcher() -> None:
    gone: list[str] = []

    def process(name: str) -> Any:
        return SimpleNamespace(kill=lambda: gone.append(name))

    server: Any = SimpleNamespace(processes=lambda: {"launcher": [process("launcher")], "prompt": [process("prompt")]})
    assert kills.kill_one(server, Random(1).choice) == "prompt"
    assert gone == ["prompt"]
    server.processes = lambda: {"launcher": [process("launcher")]}
    assert kills.kill_one(server, Random(1).choice) == ""


def test_words() -> None:
    assert words({"processes": [], "files": []}) == ""
    assert words({"processes": ["b", "a", "a"], "files": ["x"]}) == "3 processes (a, b); 1 files (x)"
    assert Limits().times(3) == Limits(6, 6, 45, 15)
    assert beyond("x", 2.0, 2.0) == []


@given(st.integers(0, 2**32))
def test_nonsense_is_the_same_for_a_seed_and_can_be_sent(seed: int) -> None:
    for make in (public_message, inner_message):
        made = make(Random(seed))
        assert made.SerializeToString()
        assert made == make(Random(seed))
    assert inner_message(Random(seed)).model_name != "vita_audio"


def turn(after: tuple[int, ...], code: str = "cancelled") -> interruptions.Turn:
    return interruptions.Turn(build_request("Hello."), (1,), after, code)


def test_a_turn_is_like_its_undisturbed_run_up_to_its_cut() -> None:
    alone = Reply("", (7, 8, 9), np.zeros(0, np.int16), 22_050, None, Metrics(), prompt=(1, 2, 3))
    for after in ((1, 2, 3), (1, 2, 3, 7), (1, 2, 3, 7, 8, 9)):
        assert interruptions.difference(turn(after), alone) == ""
    assert interruptions.difference(turn((1, 2, 3, 7, 8, 9), "done"), alone) == ""
    assert interruptions.difference(turn((1,)), None) == ""
    wrong = {
        turn((1, 2, 3, 7), "done"): "(done) differs from its undisturbed run at id 3 of its answer",
        turn((1, 2, 3, 7, 6)): "at id 1 of its answer",
        turn((1, 5, 3, 7)): "at id 1 of its prompt",
        turn((1, 2)): "(cancelled) differs",
        turn((1, 2, 3, 7, 8, 9, 9)): "(cancelled) differs",
    }
    for each, words_ in wrong.items():
        assert words_ in interruptions.difference(each, alone)
    assert interruptions.difference(turn((1,), "done"), None) == "a turn ended as done and left nothing"


def test_what_is_counted_of_interruptions() -> None:
    found = Status("s", 0, "running", cached_tokens=60, prompt_tokens=100)
    slow = dataclasses.replace(turn((1, 2)), status=found, slot_ms=30.0)
    counts = interruptions.counts([slow, turn((1,)), turn((1, 2), "done")])
    assert (counts["turns"], counts["cut"], counts["cut_in_the_answer"]) == (3, 2, 1)
    assert (counts["later_turns"], counts["found"], counts["slot_free_ms_p50"]) == (1, 1, 30.0)
    assert interruptions.counts([])["slot_free_ms_max"] is None


def rows_of(made: list[str], monkeypatch: pytest.MonkeyPatch, revision: str = "abc") -> None:
    """Parts whose rows say that they were made; `bad` is wrong, `broken` cannot be made."""

    def row(fault: str) -> Any:
        def make(bench: Bench) -> Row:
            made.append(fault)
            if fault == "broken":
                raise OSError("no more files")
            return Row("p", fault, "all | done", back_s=3.25, wrong=("slow",) if fault == "bad" else ())

        return make

    monkeypatch.setattr(campaign, "PARTS", {"p": lambda: [(f, row(f)) for f in ("good", "bad", "broken")]})
    monkeypatch.setattr(campaign, "revision", lambda: revision)
    monkeypatch.setattr("benchmarks.record.revision", lambda: revision)


def test_a_campaign_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    rows_of(made, monkeypatch)
    out = ["--only", "p", "--out", str(tmp_path / "faults.json")]
    assert campaign.main([*out, "--fault", "good"]) == 0
    assert campaign.main(out) == 1
    assert made == ["good", "bad", "broken"]
    assert "| good | all / done | - | - | 3.2 | 0 | nothing | yes |" in capsys.readouterr().out
    rows = json.loads((tmp_path / "faults.json").read_text())["rows"]
    assert rows["bad"]["wrong"] == ["slow"]
    assert rows["broken"]["wrong"] == ["not measured: OSError: no more files"]
    assert campaign.main(out) == 1  # what is wrong stays wrong
    assert campaign.main([*out, "--kills", "2", "--fault", "good"]) == 0  # another size: all rows again
    assert campaign.main([*out, "--kills", "2", "--fault", "good", "--again"]) == 0
    assert made == ["good", "bad", "broken", "good", "good"]


@pytest.mark.parametrize("other", [["--engines", "engines/other"], ["--seed", "2"], ["--patience", "3"]])
def test_rows_of_other_settings_are_made_again(
    other: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    rows_of(made, monkeypatch)
    command = ["--only", "p", "--fault", "good", "--out", str(tmp_path / "faults.json")]
    for arguments in (command, command, [*command, *other], [*command, *other]):
        assert campaign.main(arguments) == 0
    assert made == ["good"] * 2


@pytest.mark.parametrize("revision", ["abc-dirty", "unknown"])
def test_rows_of_code_that_no_revision_names_are_made_again(
    revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    rows_of(made, monkeypatch, revision)
    for _ in range(2):
        assert campaign.main(["--only", "p", "--fault", "good", "--out", str(tmp_path / "faults.json")]) == 0
    assert made == ["good"] * 2


@pytest.mark.parametrize("words_", [("--kills", "0"), ("--overload-s", "nan"), ("--patience", "-1")])
def test_a_size_that_is_none(words_: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        campaign.main([*words_, "--list"])
    assert f"{words_[0]}: {words_[1]} is not valid: above 0" in capsys.readouterr().err


def test_a_table_of_what_was_not_seen() -> None:
    killed = {"kills": 1, "minutes": 2.0, "by_process": {"prompt": 1}, "back_s_p50": None}
    flooded = {
        "capacity_per_s": 2.0, "offered_per_s": 10.0, "refused_ms_p95": None, "ttfa_ms_p95": 149.0,
        "ttfa_ms_p95_capacity": None, "memory_mib_before": 100.0, "memory_mib_after": 104.0,
    }  # fmt: skip
    rows = [Row("kills", "1 kill", "-", figures=killed), Row("overload", "5 x", "-", figures=flooded)]
    printed = table({"rows": {row.fault: row.to_dict() for row in rows}})
    assert "back after - s in the median" in printed
    assert "TTFA P95 - ms at capacity, 149 ms in the flood; refusals P95 - ms" in printed


def test_a_row_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        campaign.main(["--fault", "prompt SIGFPE"])
    assert "prompt SIGFPE is not a row" in capsys.readouterr().err


def test_rows_have_names_of_their_own() -> None:
    names = [fault for _, fault, _ in campaign.chosen(list(campaign.PARTS), [], False)]
    assert len(names) == len(set(names)) > 50
    assert set(campaign.SHORT_FAULTS) <= set(names)


@pytest.mark.server
@pytest.mark.timeout(900)
def test_the_short_form_on_real_servers(engines: Path, tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    status = campaign.main(["--engines", str(engines), "--short", "--patience", "6", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert {fault: row["wrong"] for fault, row in rows.items() if row["wrong"]} == {}
    assert set(rows) == campaign.SHORT_FAULTS
    assert status == 0
