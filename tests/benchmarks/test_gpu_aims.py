"""What is to be reached, beside what was measured: nothing is made up, and the newest record counts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import gpu_aims
from benchmarks.gpu_aims import AIMS, NOT_MEASURED, Records, table


def test_nothing_measured_is_said_of_every_aim(tmp_path: Path) -> None:
    text = table(Records.read(tmp_path))
    assert text.count(f"| {NOT_MEASURED} | - |") == len(AIMS)


def test_measured_numbers_stand_beside_their_aims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def speed(mode: str, head: str, per_s: float | None) -> dict[str, object]:
        return {"implementation": "kernels", "streams": 1, "mode": mode, "head": head, "tokens_per_s": per_s}

    tables = {
        "old": [speed("vanilla", "full", 100.0)],
        "new": [speed("vanilla", "full", 180.0), speed("turbo", "audio-only", 1000.0), speed("turbo", "full", None)],
    }
    for age, (name, rows) in enumerate(tables.items()):
        path = tmp_path / f"paper_tables_7b_{name}.json"
        path.write_text(json.dumps({"size": "7b", "table5": rows}))
        os.utime(path, (age, age))
    (tmp_path / "paper_tables_tiny_cpu.json").write_text(
        json.dumps({"size": "tiny", "table5": [speed("turbo", "full", 9e9)]})
    )
    for name, p95 in (("serving_7b", 90.0), ("serving_7b_mps", 45.0)):
        rows = [{"streams": 1, "ttfa_ms_p50": 40.0, "ttfa_ms_p95": 40.0}, {"streams": 32, "ttfa_ms_p95": p95},
                {"streams": 64, "skipped": "not run: out of time"}]  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    assert gpu_aims.main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| vanilla, full head, bf16, 1 stream | at least 178 tokens/s | 180 | yes |" in text
    assert "| turbo, audio-only head, bf16, 1 stream | at least 1360 tokens/s | 1000 | NO |" in text
    assert f"| turbo, full head, bf16, 1 stream | at least 890 tokens/s | {NOT_MEASURED} | - |" in text
    assert "| turbo / vanilla, 1 stream | at least 5.00 x | 5.56 | yes |" in text
    assert "| TTFA P95, 32 streams | at most 100 ms | 45 | yes |" in text
    assert "| TTFA P95, 32 streams by 1 stream | at most 1.25 x | 1.12 | yes |" in text  # of the same server
    assert f"| real-time factor P95, 64 streams | at most 1.00 | {NOT_MEASURED} | - |" in text


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_aims.main([str(tmp_path / "gone")])
    assert "is no folder" in capsys.readouterr().err
