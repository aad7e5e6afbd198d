"""The benchmark for short GPU sessions: its arithmetic, and a whole run on a CPU with a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_serving
from benchmarks.gpu_serving import main, summarise
from benchmarks.mps import mps
from benchmarks.stream_clients import Part, StreamResult
from build_engines.gpu_options import GpuOptions
from build_engines.manifest import MANIFEST
from build_engines.pipeline import Build
from build_engines.random_engines import write_random_engines
from build_engines.seed_sizes import TINY
from gpu_machines import CONTAINER

STAGES = {"prompt": 1.0, "speech_tokenizer": 4.0, "lm_queue": 0.0, "lm": 20.0, "decode_queue": 5.0, "decode": 60.0}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("random") / "engines"
    gpu = GpuOptions(engine="torch_cuda", streams=2, head="audio")
    build = Build(Path("random"), out, "gpu", context_tokens=256, gpu=gpu)
    write_random_engines(build, TINY, device=torch.device("cpu"), machine=CONTAINER)
    return out


def stream(sample_ms: float | None, warm_up: bool = False, outcome: str = "done", underruns: int = 0) -> StreamResult:
    return StreamResult(
        outcome,
        warm_up,
        sample_ms,
        None if sample_ms is None else sample_ms + 50,
        0.0 if sample_ms is None else 2.0,
        30,
        None if sample_ms is None else 0.5,
        underruns,
        0.1 * underruns,
        {} if sample_ms is None else STAGES,
    )


def test_a_row() -> None:
    part = Part([stream(1000, warm_up=True), stream(100), stream(200, underruns=2), stream(300, outcome="cut")])
    part.streams.append(stream(None, outcome="failed"))
    part.tokens, part.audio_s = 500, 20.0
    part.errors["ServerUnavailable: server is full"] += 1
    row = summarise(part, 10.0, 0.06)
    assert (row["streams_counted"], row["done"], row["cut"], row["failed"], row["no_sound"]) == (4, 2, 1, 1, 1)
    assert (row["ttfa_sample_ms_p50"], row["ttfa_audible_ms_p50"]) == (200, 250)  # the warm-up does not count
    assert row["ttfa_sample_ms_p95"] == pytest.approx(290)
    assert (row["underruns"], row["underrun_streams"], row["underrun_s"]) == (2, 0.25, 0.2)
    assert (row["tokens_per_s"], row["audio_s_per_s"], row["rtf_p50"]) == (50, 2, 0.5)
    assert (row["first_decode_ms"], row["first_hops_ms"]) == (60, 110)
    assert row["errors"] == {"ServerUnavailable: server is full": 1}


def test_a_row_without_any_sound() -> None:
    row = summarise(Part([stream(None, outcome="cut")]), 10.0, 0.06)
    assert row["ttfa_audible_ms_p50"] is row["rtf_p95"] is row["first_hops_ms"] is None
    row |= {"task": "tts", "mode": "boost", "streams": 1, "left_behind": 0, "all_gone_ms": 9.0}
    assert "TTFA audible -/- ms" in gpu_serving._line(row)


def test_without_an_mps_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with mps(True) as state:
        assert state == "no MPS daemon here"


def test_an_mps_daemon_is_started_and_quit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon is a script that notes how it was called: no GPU is needed to see that it is ended."""
    notes = tmp_path / "notes"
    script = tmp_path / "nvidia-cuda-mps-control"
    script.write_text(f'#!/bin/sh\necho "$1 $CUDA_MPS_PIPE_DIRECTORY" >> {notes}\n[ "$1" ] || cat >> {notes}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    states = []

    def fails() -> None:
        with mps(True) as state:
            states.append(state)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert states == ["on"]
    started, ended, word = notes.read_text().splitlines()
    assert started.startswith("-d /")
    assert ended.strip() == started.removeprefix("-d ")  # the same daemon
    assert word == "quit"


def test_a_server_that_does_not_start_is_explained(engines: Path, tmp_path: Path) -> None:
    out = tmp_path / "serving.json"
    (tmp_path / MANIFEST).write_text((engines / MANIFEST).read_text())
    arguments = ["--engines", str(tmp_path), "--device", "cpu", "--slots", "2", "--processes", "1", "--out", str(out)]
    assert main(arguments) == 1
    record = json.loads(out.read_text())
    assert "the file is missing" in record["error"]
    assert "rows" not in record


@pytest.mark.server
def test_a_whole_run(engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "serving.json"
    arguments = (
        f"--engines {engines} --device cpu --slots 2 --streams 1 2 --modes boost --tasks tts chat --seconds 2.5 "
        f"--budget 120 --max-tokens 40 --processes 2 --threads 1 --mps --out {out}"
    )
    assert main(arguments.split()) == 0
    record = json.loads(out.read_text())
    assert record["command"].startswith("python -m benchmarks.gpu_serving --engines")
    assert record["server"]["ready_s"] > 0
    rows = record["rows"]
    assert [(row["task"], row["streams"]) for row in rows] == [("tts", 1), ("tts", 2), ("chat", 1), ("chat", 2)]
    for row in rows:
        assert row["streams_counted"] > 0
        assert row["failed"] == 0, row["errors"]
        assert row["tokens_per_s"] > 0
        assert 0 < row["ttfa_sample_ms_p50"] <= row["ttfa_audible_ms_p50"]
        assert row["first_lm_ms"] > 0
        assert row["first_decode_ms"] > 0
        assert (row["first_speech_tokenizer_ms"] > 0) == (row["task"] == "chat")
    cancel = record["cancel"]
    assert (cancel["streams"], cancel["cancelled"], cancel["new_sounding"], cancel["left_behind"]) == (2, 1, 1, 0)
    assert cancel["others_went_on"] == cancel["others"] == 1
    assert cancel["errors"] == []
    assert capsys.readouterr().out.count("TTFA audible") == 4
