"""The benchmark for short GPU sessions: its arithmetic, and a whole run on a CPU with a real server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_serving
from benchmarks.cancel_check import cancel_check
from benchmarks.client_processes import Load, Part
from benchmarks.gpu_rows import line, summarise
from benchmarks.gpu_serving import main
from benchmarks.gpu_serving_options import read_options
from benchmarks.record import Results
from build_engines.options import GpuOptions
from build_engines.pipeline import Build
from build_engines.random_engines import write_random_engines
from gpu_machines import CONTAINER
from loadtest.clock import now_s
from loadtest.driver import Record, Response
from server.processes import descendants
from vita_audio.checkpoint.sizes import TINY
from vita_audio.contract.errors import VitaError
from vita_audio.engines.manifest import MANIFEST

MPS_DOUBLE = Path(__file__).resolve().parents[1] / "helpers" / "mps"
STAGES = {"prompt": 1.0, "speech_tokenizer": 4.0, "lm_queue": 0.0, "lm": 20.0, "decode_queue": 5.0, "decode": 60.0}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("random") / "engines"
    gpu = GpuOptions(engine="torch_cuda", streams=2, head="audio")
    build = Build(Path("random"), out, "gpu", context_tokens=256, gpu=gpu)
    write_random_engines(build, TINY, device=torch.device("cpu"), machine=CONTAINER)
    return out


LOAD = Load("localhost:1", "tts", "boost", 3, 1, 100, begin_s=8.0, from_s=10.0, until_s=20.0)


def stream(sample_ms: float | None, sent_s: float = 11.0, code: str = "done", late_s: float = 0.0) -> Record:
    """A stream of 2 s of sound: 0.1 s of silence, 0.05 s later the rest, `late_s` after the sound in hand is over."""
    error = "" if code in ("done", "cancelled") else f"{code}: said so"
    if sample_ms is None:
        return Record(sent_s, sent_s + 1, (), code, error)
    at_s = sent_s + sample_ms / 1e3
    rest_s = at_s + (0.1 + late_s if late_s else 0.05)
    responses = (
        Response(at_s, samples=2205, tokens=10, stages_ms={"lm": 5.0}),
        Response(rest_s, samples=41_895, audible=True, tokens=20, stages_ms=STAGES),
    )
    return Record(sent_s, rest_s, responses, code, error)


def test_a_row() -> None:
    part = Part([stream(1000, sent_s=8.5), stream(100), stream(200, late_s=0.3), stream(300, code="cancelled")])
    part.records.append(stream(None, code="server_full"))
    part.lags_ms = [1.0, 3.0]
    row = summarise(part, LOAD, prebuffer_s=0.06)
    assert (row["streams_counted"], row["done"], row["cut"], row["failed"], row["no_sound"]) == (4, 2, 1, 1, 1)
    assert (row["first_sample_ms_p50"], row["ttfa_ms_p50"]) == pytest.approx((200, 350))  # the warm-up does not count
    assert (row["underruns"], row["underrun_streams"], row["underrun_s"]) == (1, 0.25, pytest.approx(0.24))
    # Of the first stream, everything arrived before the steady time began.
    assert (row["tokens_per_s"], row["audio_s_per_s"]) == pytest.approx((3 * 30 / 10, 3 * 2 / 10))
    assert row["rtf_p50"] == pytest.approx((0.15 + 0.6) / 2 / 2)
    assert (row["first_decode_ms"], row["first_hops_ms"]) == pytest.approx((60, 350 - 90))
    assert row["errors"] == {"server_full: said so": 1}
    assert row["client_lag_ms_p50"] == 2


def test_a_row_without_any_sound() -> None:
    row = summarise(Part([stream(None, code="cancelled")]), LOAD, 0.06)
    assert row["ttfa_ms_p50"] is row["rtf_p95"] is row["first_hops_ms"] is None
    row |= {"task": "tts", "mode": "boost", "streams": 1, "left_behind": 0, "all_gone_ms": 9.0}
    assert "TTFA -/- ms" in line(row)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--slots 2 --streams 9", "--streams: 9 is not valid: a server with --slots 2 and a queue as long admits 4"),
        ("--streams 0", "--streams: 0 is not valid: a whole number, at least 1"),
        ("--processes 0", "--processes: 0 is not valid"),
        ("--modes boost nomode", "--modes: MODE: 'nomode' is not valid"),
        ("--seconds nan", "--seconds: nan is not valid"),
        ("--seconds 0", "--seconds: 0 is not valid: more than 0"),
        ("--budget inf", "--budget: inf is not valid"),
        (
            "--seconds 10 --budget 20",
            "--budget: 20 is not valid: one row of --seconds 10 and the end of a run take 26 s",
        ),
        ("--out .", "--out: . is a folder"),
    ],
)
def test_options_that_are_not_valid(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        read_options(None, f"--engines engines --out serving.json {arguments}".split())
    assert raised.value.code == 2
    assert f"error: argument {said}" in capsys.readouterr().err


def test_streams_that_have_a_slot_are_the_default() -> None:
    assert read_options(None, "--engines engines --out serving.json --slots 8".split()).streams == [1, 8]


def test_a_record_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "serving.json"
    assert main(["--engines", "engines", "--out", str(out)]) == 1
    assert f"error: --out: {out} cannot be written (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("--modes 1,99", "MODE: '1,99' is not valid"), ("--max-tokens 257", "--max-tokens: 257 is not valid")],
)
def test_rows_that_the_engines_cannot_do(engines: Path, tmp_path: Path, arguments: str, said: str) -> None:
    out = tmp_path / "serving.json"
    assert main(f"--engines {engines} --max-tokens 40 --processes 1 --out {out} {arguments}".split()) == 1
    assert said in json.loads(out.read_text())["error"]
    assert not out.with_suffix(".log").exists()  # no server was started


def test_mps_that_is_not_there_is_an_error(engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.mps.shutil.which", lambda program: None)
    out = tmp_path / "serving.json"
    arguments = f"--engines {engines} --device cpu --slots 2 --max-tokens 40 --processes 1 --mps --out {out}"
    assert main(arguments.split()) == 1
    record = json.loads(out.read_text())
    assert record["mps"] == "on"
    assert record["error"].startswith("--mps: nvidia-cuda-mps-control, which comes")


def test_a_server_that_does_not_start_is_explained(engines: Path, tmp_path: Path) -> None:
    out = tmp_path / "serving.json"
    (tmp_path / MANIFEST).write_text((engines / MANIFEST).read_text())
    arguments = f"--engines {tmp_path} --device cpu --slots 2 --max-tokens 40 --processes 1 --out {out}"
    assert main(arguments.split()) == 1
    record = json.loads(out.read_text())
    assert "the file is missing" in record["error"]
    assert "rows" not in record


def test_a_row_whose_streams_all_failed(tmp_path: Path) -> None:
    row = {"task": "tts", "mode": "boost", "streams": 2, "streams_counted": 5, "failed": 5, "errors": {"full": 5}}
    results = Results(tmp_path / "serving.json", {"rows": [row | {"failed": 4}]})
    session = gpu_serving._Session(None, None, None, results, 0.0)  # type: ignore[arg-type]
    session.check_rows()
    results.save(rows=[row | {"failed": 4}, row])
    with pytest.raises(VitaError, match="tts boost, 2 streams: every stream failed: full"):
        session.check_rows()


def test_the_check_of_cancelling_ends_in_time_and_keeps_what_it_had() -> None:
    """Nobody listens at the port, and the streams never leave."""
    server = SimpleNamespace(options=SimpleNamespace(slots=2), grpc_url="127.0.0.1:1", live_streams=lambda: 2)
    saved: list[dict[str, object]] = []
    end_s = now_s() + 4
    asyncio.run(cancel_check(server, "boost", 40, end_s, saved.append))  # type: ignore[arg-type]
    assert 0 <= now_s() - end_s < 1
    before, after = saved
    assert "left_behind" not in before
    assert after["left_behind"] == 2
    assert after == {**before, "left_behind": 2, "all_gone_ms": after["all_gone_ms"]}


@pytest.mark.server
def test_a_budget_too_small_for_the_start_is_named(
    engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "serving.json"
    arguments = f"--engines {engines} --device cpu --slots 2 --streams 1 --max-tokens 40 --processes 1 --threads 1"
    monkeypatch.setattr(gpu_serving, "STOP_S", 118.0)  # of 120: it has 2 s
    assert main(f"{arguments} --seconds 1 --budget 120 --out {out}".split()) == 1
    error = json.loads(out.read_text())["error"]
    assert "was not ready after" in error
    assert error.endswith("--budget 120 leaves no more for the start: give more")


@pytest.mark.server
def test_a_signal_ends_the_server_and_mps_too(engines: Path, tmp_path: Path) -> None:
    arguments = (
        f"--engines {engines} --device cpu --slots 2 --streams 2 --modes boost --tasks tts --seconds 60 "
        f"--max-tokens 200 --processes 1 --threads 1 --mps --one-process --gpu-priority speech_lm "
        f"--out {tmp_path / 'serving.json'}"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu_serving", *arguments.split()],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": f"{MPS_DOUBLE}:{os.environ['PATH']}"},
    )
    assert process.stdout is not None
    assert any(line.startswith("ready") for line in process.stdout)
    time.sleep(3)  # streams run
    below = descendants(process.pid)
    assert any("nvidia-cuda-mps-control" in Path(f"/proc/{pid}/cmdline").read_text() for pid in below)
    assert any("tritonserver" in Path(f"/proc/{pid}/cmdline").read_text() for pid in below)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=15) == 128 + signal.SIGTERM
    assert [pid for pid in below if descendants(pid)] == []


@pytest.mark.server
def test_a_whole_run(
    engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{MPS_DOUBLE}:{os.environ['PATH']}")
    out = tmp_path / "serving.json"
    arguments = (
        f"--engines {engines} --device cpu --slots 2 --streams 1 2 --modes boost --tasks tts chat --seconds 6 "
        f"--budget 120 --max-tokens 40 --processes 2 --threads 1 --mps --out {out}"
    )
    assert main(arguments.split()) == 0
    record = json.loads(out.read_text())
    assert record["command"].startswith("python -m benchmarks.gpu_serving --engines")
    assert record["server"]["ready_s"] > 0
    assert (record["mps"], record["one_process"], record["gpu_priority"]) == ("on", False, "equal")
    rows = record["rows"]
    assert [(row["task"], row["streams"]) for row in rows] == [("tts", 1), ("tts", 2), ("chat", 1), ("chat", 2)]
    for row in rows:
        assert row["streams_counted"] > 0
        assert row["failed"] == 0, row["errors"]
        assert row["tokens_per_s"] > 0
        assert 0 < row["first_sample_ms_p50"] <= row["ttfa_ms_p50"]
        assert row["first_lm_ms"] > 0
        assert row["first_decode_ms"] > 0
        assert (row["first_speech_tokenizer_ms"] > 0) == (row["task"] == "chat")
    cancel = record["cancel"]
    assert (cancel["streams"], cancel["cancelled"], cancel["new_sounding"], cancel["left_behind"]) == (2, 1, 1, 0)
    assert cancel["others_went_on"] == cancel["others"] == 1
    assert cancel["errors"] == []
    assert capsys.readouterr().out.count("TTFA ") == 4
