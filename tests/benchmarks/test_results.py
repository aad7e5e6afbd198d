"""`make results`: records of this revision are kept, all else is measured again; the page names each table's source."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import results, results_page
from benchmarks.results import LONG, MEASUREMENTS, Measurement, command, kept, run
from benchmarks.results_page import page
from benchmarks.serving import STAGES

ABOUT = {"machine": "a machine", "revision": "abc1234", "date": "2026-01-01"}
SOURCE = {
    "command": "python -m benchmarks.x",
    "machine": "a machine",
    "revision": "abc1234",
    "date": "2026-01-01T00:00:00",
}
SERVING = {
    "mode": "boost", "streams": 4, "ttfa_ms_p50": 98.0, "ttfa_ms_p95": 150.0, "rtf_p50": 0.1, "rtf_p95": 0.2,
    "tokens_per_s_stream": 250.0, "lm_tokens_per_s_stream": 900.0, "tokens_per_s_all": 255.0, "audio_s_per_s": 9.7,
    "hop_ms_per_response": 5.0,
    **{f"first_{stage}_ms": 10.0 for stage in (*STAGES, "hops")},
}  # fmt: skip
GROUP = {
    "underrun_rate": 0.0,
    "loss_rate": 0.02,
    "metrics": {"ttfa": {"p50": 120.0, "p95": 280.0}, "rtf": {"p95": 0.5}},
}
RECORDS: dict[str, Any] = {
    "serving": {"start_s": 1.8, "resident_mib_idle": 369.0, "resident_mib_loaded": 467.0, "rows": [SERVING]},
    "load_steps": {
        "phases": [{"offered_per_s": 0.5, "streams": 20, **GROUP}],
        "slo": [
            {"name": "TTFA P95", "value": 310.0, "limit": 300.0, "unit": "ms", "kept": False},
            {"name": "loss rate", "value": None, "limit": 0.01, "unit": "", "kept": False},
        ],
    },
    "soak": {
        "load": {"streams": {"measured": 400}}, "percentiles": GROUP, "threads": {"least": 200, "most": 224},
        "files": {"least": 52, "most": 52}, "left_behind": {"running": 0.0, "waiting": 0.0, "threads": 200},
        "memory": {"tritonserver": {"first_mib": 46.0, "last_mib": 46.9, "share": 0.02}},
    },
    "faults": {
        "rows": {
            fault: {
                "part": part, "fault": fault, "callers": "2 stream_broken", "not_ready_s": 0.5, "ended_s": None,
                "back_s": 4.0, "failed": 2, "left": "", "wrong": wrong, "figures": figures,
            }
            for part, fault, wrong, figures in (
                ("matrix", "prompt SIGKILL", ["back: 16.0 s, at most 15"], {}),
                ("kills", "2 random kills", [],
                 {"kills": 2, "minutes": 1.0, "by_process": {"prompt": 2}, "back_s_p50": 3.5}),
                ("overload", "20 x capacity", [],
                 {"capacity_per_s": 1.0, "offered_per_s": 20.0, "refused_ms_p95": 30.0, "ttfa_ms_p95_capacity": 300.0,
                  "ttfa_ms_p95": 350.0, "memory_mib_before": 400.0, "memory_mib_after": 410.0}),
            )
        }
    },
    "scale_out": {
        "spread": {"streams": {"a": 29, "b": 32}, "failed": 0}, "drained_restart": {"ended": 102, "failed": 0},
        "kill": {"noticed_ms": 78.0, "unharmed": 4, "failed": 4, "new": 34, "new_failed": 0,
                 "new_before_notice": 2, "new_before_notice_failed": 1},
    },
    "gateway": {"first_sound": [{"what": "a text", "direct": {"ms_p50": 100.0, "ms_p95": 120.0},
                                 "gateway": {"ms_p50": 108.0, "ms_p95": 130.0}}]},
    "conversation": {
        cache: {
            "turns": {"ttfa_ms": [100.0, None, 130.4]},
            "questions": [{"seconds": 20.0, "wait_ms": 140.0 + wait}],
            "talkers": [{"conversations": 50, "slots": 4, "rounds": 3, "hit_rate": 0.25, "reused_share": 0.5}],
        }
        for cache, wait in (("on", 0), ("off", 300))
    } | {
        "replicas": {"conversations": 12, "replicas": 2, "equal": 12, "hit_rate": 0.5, "hit_rate_one": 1.0},
        "growing": [{"speech": "as it is", "steps": 24, "run_again": 3, "tokens": 800, "changed": 2}],
    },
    "warm_up": {"start_s": 2.0, "rows": [
        {"request": "tts", "client": "new", "streams": 1, "rounds": 10, "ttfa_ms": [212.0, *[88.0] * 9],
         "rest_ms": [5.0] * 10, "stages_ms": {stage: [10.0] * 10 for stage in STAGES}, "first_to_later": 2.41}]},
    "language_model": {"rows": [{"streams": 1, "tokens_per_s": {"vanilla": 500.0, "turbo": 1500.0}}]},
    "seams": {"rows": [{"setting": "default", "where": "flow seams", "points": 7, "jump": 1.6, "jump_p95": 2.0,
                        "flux_db": 1.0, "flux_db_p95": 2.0, "distance_db": 3.0, "rtf": 0.1}]},
    "conformance": {"rows": [{"implementation": "onnxruntime", "passed": 20, "cases": 21}], "failed": ["case x"]},
}  # fmt: skip
RECORDS["long_soak"] = RECORDS["soak"] | {
    "kills": [{"at_s": 600.0, "process": "prompt", "back_s": 4.0}], "exit_code_of_the_server": 0
}  # fmt: skip


def whole(folder: Path, records: dict[str, Any]) -> str:
    found = {name: {**SOURCE, **record} if "not_run" not in record else record for name, record in records.items()}
    return page(found, ABOUT, results.RECORDS / "gpu", folder, folder)


def test_the_page_has_every_table_with_its_source(tmp_path: Path) -> None:
    (tmp_path / "soak_memory.svg").touch()
    text = whole(tmp_path, RECORDS)
    assert set(results_page._TABLES) == set(RECORDS) == {each.name for each in MEASUREMENTS} | set(LONG)
    assert text.count("`python -m benchmarks.x`  \na machine; revision abc1234, 2026-01-01\n") == len(RECORDS)
    for cell in (
        "| 4 | boost | 98 | 150 |",
        "| 0.50 | 20 | 120 | 280 |",
        "| 3.00x |",
        "29 and 32 streams",
        "| tts | new | 1 | 1 | 212 |",
        "| 20 | 21 |",
    ):
        assert cell in text
    assert "TTFA P95 310 ms (MISSED: at most 300 ms); loss rate - (MISSED: at most 1 %)" in text
    assert "![](soak_memory.svg)" in text
    for revision in ("b7b0b4d", "5fe6271", "bae3f3c"):  # of the GPU tables
        assert f"revision {revision}, 2026-11-27" in text
    for table in text.split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1, table
    assert "/root" not in text
    assert str(results.ROOT) not in text


def test_what_was_not_run_is_said(tmp_path: Path) -> None:
    text = whole(tmp_path, {**RECORDS, "scale_out": {"not_run": "haproxy is not installed"}})
    assert "Not run: haproxy is not installed.\n" in text
    assert "29 and 32 streams" not in text


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("each", MEASUREMENTS, ids=lambda each: each.name)
def test_commands_name_modules_that_exist(each: Measurement, quick: bool) -> None:
    words = command(each, Path("engines"), Path("out/x.json"), quick)
    assert (results.ROOT / "benchmarks" / f"{each.name}.py").is_file()
    assert words[:2] == ["-m", f"benchmarks.{each.name}"]
    assert words[-2:] == ["--out", "out/x.json"]
    assert ("--engines" in words) == each.takes_engines


def test_a_record_counts_for_its_revision_only(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert kept(path, "abc") is None
    for text in ("", "[]", '{"revision": "other"}', "{}"):
        path.write_text(text)
        assert kept(path, "abc") is None
    path.write_text('{"revision": "abc", "rows": []}')
    assert kept(path, "abc") == {"revision": "abc", "rows": []}


def fake(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> Path:
    """Every measurement is a script, which finds the output file in its last argument."""
    monkeypatch.setattr(results, "ROOT", folder)
    monkeypatch.setattr(results, "command", lambda each, engines, out, quick: ["-c", script, str(out)])
    (folder / "out").mkdir()
    return folder / "out"


WRITES = "import sys; open(sys.argv[1], 'w').write('{\"revision\": \"abc\"}')"


def test_a_record_is_moved_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = fake(monkeypatch, tmp_path, WRITES)
    each = Measurement("x", (), (), 20, pictures=("p.svg", "gone.svg"))
    (out / "p.svg").touch()
    assert run(each, Path("engines"), out, tmp_path, False) == ""
    assert json.loads((tmp_path / "x.json").read_text()) == {"revision": "abc"}
    assert (tmp_path / "p.svg").exists()
    assert not (out / "x.json").exists()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (f"{WRITES}; print('error: no engines'); sys.exit(3)", "ended with 3: error: no engines"),
        ("pass", "ended with 0: no output"),
        (f"import time; {WRITES}; time.sleep(60)", "not finished after 3 s"),
    ],
)
def test_a_record_that_is_not_whole_is_not_kept(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = fake(monkeypatch, tmp_path, script)
    assert run(Measurement("x", (), (), 1), Path("engines"), out, tmp_path, False) == reason
    assert not (tmp_path / "x.json").exists()


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def measured(each: Measurement, engines: Path, work: Path, folder: Path, quick: bool) -> str:
        asked.append(each.name)
        (folder / f"{each.name}.json").write_text(json.dumps({**SOURCE, **RECORDS[each.name]}))
        return "" if each.name != "soak" else "ended with 1: server gone"

    for name, value in {
        "ROOT": tmp_path, "run": measured, "revision": lambda: "abc1234", "missing": lambda name: "",
        "PAGE": tmp_path / "p.md",
    }.items():  # fmt: skip
        monkeypatch.setattr(results, name, value)
    assert results.main(["--quick", "--only", "serving", "soak"]) == 1
    assert results.main(["--quick", "--only", "serving", "seams"]) == 0
    assert asked == ["serving", "soak", "seams"]
    assert results.main(["--quick", "--only", "serving", "--again"]) == 0
    assert results.main(["--quick", "--page-only"]) == 0
    assert asked == ["serving", "soak", "seams", "serving"]
    text = (tmp_path / "out" / "results_quick" / "results.md").read_text()
    assert text.count("Not run: not measured on this revision.") == len(MEASUREMENTS) - 3
    assert not (tmp_path / "p.md").exists()  # the page of the repository is left alone


def test_the_newest_long_record_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RECORDS", tmp_path)
    assert "python -m benchmarks.faults --out" in results.newest("faults")["not_run"]
    for date in ("2026-01-02", "2026-01-01"):
        (tmp_path / "cpu" / date).mkdir(parents=True)
        (tmp_path / "cpu" / date / "faults.json").write_text(json.dumps({"revision": date}))
    assert results.newest("faults") == {"revision": "2026-01-02", "folder": str(tmp_path / "cpu" / "2026-01-02")}


def test_haproxy_is_asked_for_once_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.haproxy.shutil", SimpleNamespace(which=lambda *words, **more: None))
    assert "haproxy is not installed" in results.missing("scale_out")
    assert results.missing("serving") == ""


def test_a_wrong_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        results.main(["--only", "nothing"])
    assert "invalid choice: 'nothing'" in capsys.readouterr().err
    assert sys.modules["benchmarks.results"].__file__
