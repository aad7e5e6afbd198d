"""All comparisons in one command: which runs, beside which, and what is held out; the runs themselves are doubles."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from evaluation import comparisons
from evaluation.comparisons import MOST, RECORD, held_out_config, main
from training.config import load_config
from training.data.plan import plan


def test_the_cases_are_those_that_trainings_leave_out() -> None:
    config = load_config("small").data
    kept = {planned.sample.answer for planned in plan(held_out_config(MOST)) if planned.sample.task in ("asr", "tts")}
    few = plan(held_out_config(3))
    assert {planned.sample.task for planned in few} == {"asr", "tts", "chat"}
    assert all(planned.sample.split == "test" for planned in few)
    assert len(few) == 9
    assert len(kept) == config.test_tts + config.test_asr == 2 * MOST


def test_each_run_is_compared_with_its_own_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[argparse.Namespace] = []

    def asked(options: argparse.Namespace, console: object) -> None:
        runs.append(options)
        options.out.mkdir(parents=True)
        changes = [{"measure": "WER", "value": 0.1}] if options.compare else []
        (options.out / "suite.json").write_text(json.dumps({"changes": changes, "skipped": {}}))

    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "weights").write_text("w")
    (tmp_path / "out" / "suites-5").mkdir(parents=True)
    built: list[tuple[str, ...]] = []
    monkeypatch.setattr(comparisons, "_module", lambda *words: built.append(words))
    monkeypatch.setattr(comparisons.suite_command, "run", asked)
    arguments = ["--checkpoint", str(tmp_path / "bundle"), "--out", str(tmp_path / "out"), "--limit", "5"]
    assert main([*arguments, "--suites", "libritts", "--note", "busy"]) == 0
    assert [words[0].rpartition(".")[2] for words in built] == ["simulate_fp8", "build_engines", "build_engines"]
    assert [(run.mode, run.engines.name, run.compare and run.compare.parent.name) for run in runs] == [
        ("boost", "engines-float32", None), ("turbo", "engines-float32", "boost"), ("boost", "engines-fp8", "boost"),
    ]  # fmt: skip
    assert all(run.note == ["busy"] and run.suite == "libritts" for run in runs)
    (record,) = (tmp_path / "out").glob(f"*/{RECORD}")
    assert [(change["run"], change["value"]) for change in json.loads(record.read_text())["changes"]] == [
        ("turbo", 0.1), ("fp8", 0.1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"), [(["--limit", "401"], "1 to 400"), (["--checkpoint", "nowhere"], "no checkpoint there")]
)
def test_a_wrong_use_is_one_line(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path), *given]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_build_that_fails_is_named(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "weights").write_text("none")
    (tmp_path / "suites-200").mkdir()
    assert main(["--checkpoint", str(tmp_path / "bundle"), "--out", str(tmp_path)]) == 1
    assert "error: python -m build_engines.torch_cuda.simulate_fp8 failed" in capfd.readouterr().err
