"""The paper's tables: prediction against the facts, the eager baseline against golden tokens, a tiny run end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import paper_tables
from benchmarks.eager_baseline import EagerLanguageModel
from benchmarks.paper_audio import EAGER, FLOW_STEPS
from benchmarks.paper_report import NOT_MEASURED, render
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.contract.modes import NAMED_MODES, Mode
from vita_audio.engines.torch_cuda.kernels.names import NAMES
from vita_audio.engines.torch_cuda.weights import load_weights


@pytest.mark.parametrize("name", ["mctp10", "mctp4"])
def test_baseline_gives_the_golden_tokens(golden: Path, name: str) -> None:
    folder = golden / "language_model" / name
    config, tensors = load_language_model(folder)
    model = EagerLanguageModel(config, load_weights(config, tensors, torch.device("cpu"), torch.float32))
    cases = json.loads((folder / "greedy_tokens.json").read_text())
    for case in cases[::4]:
        mode = Mode("test", tuple(case["pattern"]))
        made = model.generate(case["prompt"], mode, 40, case["repetition_penalty"])
        assert made == case["tokens"][:40]


TINY = ["--size", "tiny", "--device", "cpu", "--repeats", "1", "--bursts", "2", "--streams", "2", "--tokens", "12"]


def run(folder: Path, *extra: str) -> tuple[dict[str, Any], str]:
    assert paper_tables.main([*TINY, "--out", str(folder), *extra]) == 0
    (record,), (text,) = folder.glob("paper_tables_tiny_*.json"), folder.glob("paper_tables_tiny_*.md")
    return json.loads(record.read_text()), text.read_text()


def test_tiny_run_measures_speeds(tmp_path: Path) -> None:
    """All that is not in the tiny walk of the GPU session (test_gpu_session.py)."""
    parts = ("host", "table5", "first_chunk", "baseline", "batch", "heads")
    record, text = run(tmp_path, "--parts", *parts)
    assert record["command"].startswith("python -m benchmarks.paper_tables")
    assert record["machine"]
    assert record["date"]
    assert record["copy_tb_s"] > 0
    speeds = record["table5"] + record["batch"] + record["baseline"]
    wanted = {(mode, head) for mode in NAMED_MODES for head in ("full", "audio-only")} - {("vanilla", "audio-only")}
    rows = [(r["mode"], r["head"]) for r in record["table5"]]
    assert set(rows) == wanted
    assert len(rows) == len(wanted)
    assert all(r["tokens_per_s"] > 0 and 0 < r["share"] < 1 for r in speeds)
    assert {(r["mode"], r["full_head"]) for r in record["heads"] if r["share"] == 1.0} >= {
        ("boost", "audio ids only"),
        ("turbo", "audio ids only"),
    }
    assert all(r["ms"] > 0 for r in record["first_chunk"])
    assert all(r["ms"] > 0 and r["host_ms"] > 0 for r in record["host"])
    assert text.count(NOT_MEASURED) == 2 * (1 + len(NAMED_MODES))  # the datasheet of a CPU


def test_variants_stand_side_by_side_and_each_kernel_is_taken_away(tmp_path: Path) -> None:
    record, text = run(tmp_path, "--parts", "steps", "bisect", "--variants", "kernels", "references")
    for variant in ("kernels", "references"):
        rows = [r for r in record["steps"] if r["implementation"] == variant]
        assert {(r["call"], r["head"]) for r in rows} >= {
            ("extend, 11 row(s)", "full"), ("burst, 11 row(s)", "full"), ("burst, 11 row(s)", "audio-only"),
        }  # fmt: skip
        assert all(r["ms"] > r["floor_ms"] > 0 for r in rows)
    assert [r["off"] for r in record["bisect"]] == ["nothing", *NAMES, "all of these"]
    assert all(r["extend_ms"] > 0 and r["burst_ms"] > 0 for r in record["bisect"])
    assert "## What each kernel is worth" in text


def test_audio_is_measured_with_the_engines_that_serve(tmp_path: Path) -> None:
    """On a CPU one precision, without graphs; what the served engines make is what the reference makes."""
    record, text = run(tmp_path, "--parts", "audio")
    rows = record["audio"]
    stages = [
        "first chunk",
        "later chunk",
        "later chunk",
        "end",
        *(f"decoder, {steps} step(s)" for steps in FLOW_STEPS),
    ]
    by_kind = {
        kind: [r for r in rows if r["engines"] == kind and "audio_ms" in r] for kind in (EAGER, "graphs, float32")
    }
    for made in by_kind.values():
        assert [r["stage"] for r in made] == stages
        assert all(r["ms"] >= r["host_ms"] > 0 and r["difference"] < 1e-3 for r in made)
    sound = [[r["audio_ms"] for r in made] for made in by_kind.values()]
    assert sound[0] == sound[1]
    assert all(sound[0])
    assert [r["stage"] for r in rows if "audio_ms" not in r] == ["encoder, warm-up", "encoder", "warm-up, batches to 2"]
    assert "| encoder | float32 | 1 |" in text


def test_a_spent_budget_leaves_rows_unmeasured(tmp_path: Path) -> None:
    record, text = run(tmp_path, "--budget", "0", "--parts", "table5", "steps", "heads", "baseline", "first_chunk")
    assert [r.get("tokens_per_s") for r in record["table5"] + record["baseline"]] == [None] * 11
    assert all(r["ms"] is None for r in record["first_chunk"])
    assert "batch" not in record
    assert "## Batches" not in text
    assert text.count(NOT_MEASURED) > 50


def test_a_real_size_on_a_cpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        paper_tables.main(["--size", "7b", "--device", "cpu"])
    assert "needs a CUDA device" in capsys.readouterr().err


def test_report_of_a_real_size_compares_with_eager_code_and_the_paper() -> None:
    """Speed-ups, shares and sums of a 7B record, from round numbers."""

    def row(implementation: str, mode: str, head: str, speed: float) -> dict[str, Any]:
        return {
            "implementation": implementation, "mode": mode, "streams": 1, "head": head, "tokens": 4096,
            "tokens_per_s": speed, "achieved_gb_s": 2000.0, "roofline_tokens_per_s": 2 * speed, "share": 0.5,
            "bound": "memory" if mode == "vanilla" else "compute",
        }  # fmt: skip

    record = {
        "size": "7b", "dtype": "bfloat16", "command": "python", "machine": "GPU", "date": "today", "kernels_off": [],
        "attention": "split", "copy_tb_s": 3.0, "datasheet_tb_s": 3.35, "product_tflop_s": 700.0,
        "datasheet_tflop_s": 989.0, "slots": 64, "slot_context": 4096, "tokens": 4096, "baseline_tokens": 512,
        "faults": {},
        "table5": [row("kernels", "vanilla", "full", 200.0), row("kernels", "turbo", "audio-only", 1300.0)],
        "baseline": [row("eager baseline", "vanilla", "full", 50.0), row("eager baseline", "turbo", "full", 260.0)],
        "first_chunk": [{"implementation": "kernels", "mode": "boost", "head": "full", "ms": 15.0}],
        "audio": [
            {"stage": "first chunk", "engines": "old", "streams": 1, "ms": 25.0, "engine_ms": 24.0, "audio_ms": 290,
             "difference": 4e-4},
            {"stage": "first chunk", "engines": "graphs", "streams": 1, "ms": 15.0, "host_ms": 2.0, "audio_ms": 290,
             "difference": 4e-4},
            {"stage": "encoder", "precision": "TF32", "eager_ms": 30.0, "graph_ms": 5.0},
        ],
    }  # fmt: skip
    text = render(record)
    turbo = (
        "| kernels | 1 | turbo | audio-only | 4096 | 1300 | 6.50x | 5.00x | 2000 | 2600 | 50 % of compute | "
        "305 | 1360 |"
    )
    assert turbo in text
    assert "| 2000 | 400 | 50 % | 64.6 | 178 |" in text
    assert "| datasheet | 3.35 | full | 235 | 632 | 632 | 1171 |" in text
    assert "| kernels | boost | full | 15.0 | 12.8 |" in text
    assert "| paper | boost | full | 53 | - |" in text
    assert "| first chunk | old | 1 | 25.0 | 1.0 | 290 | 4.0e-04 |" in text
    assert "| first chunk | graphs | 1 | 15.0 | 2.0 | 290 | 4.0e-04 |" in text
    assert "| encoder | TF32 | 30.0 | 5.0 |" in text


def test_a_failed_part_is_named_and_the_others_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Iterator[dict[str, Any]]:
        yield {
            "call": "backbone", "implementation": "kernels", "head": "-", "streams": 1, "ms": 1.0, "floor_ms": 0.5,
            "bound": "memory", "share": 0.5,
        }  # fmt: skip
        raise RuntimeError("out of memory")

    monkeypatch.setitem(paper_tables._PARTS, "steps", fails)
    arguments = [*TINY, "--out", str(tmp_path), "--parts", "steps", "baseline", "--budget", "0"]
    assert paper_tables.main(arguments) == 1
    (text,) = tmp_path.glob("*.md")
    assert "This part failed: RuntimeError: out of memory" in text.read_text()
    assert "| backbone | kernels | 1 | - | 1.00 | 0.50 | memory |" in text.read_text()
    assert "## Eager baseline" in text.read_text()
