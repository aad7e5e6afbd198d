"""The conformance command: passes on the golden data; fails and says where on data that differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from build_engines.conformance.__main__ import main, run_checks
from build_engines.conformance.result import compare_tokens, compare_values

ENGINES = {"torch", "onnxruntime"}
LANGUAGE_MODELS = ENGINES | {"torch_cuda", "tensorrt_llm"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the command does: the networks are tiny, and threads would wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.timeout(900)  # a minute of two free cores
@pytest.mark.usefixtures("one_thread")
def test_every_golden_case_passes_on_every_engine(golden: Path) -> None:
    results = list(run_checks(golden))
    assert [r for r in results if not r.passed] == []
    made_by: dict[str, set[str]] = {}
    for r in results:
        made_by.setdefault(r.case.split()[0], set()).add(r.implementation)
    assert made_by["mctp10"] == made_by["mctp4"] == LANGUAGE_MODELS | {f"{name} batched" for name in LANGUAGE_MODELS}
    assert made_by["plus_mctp4"] == made_by["plus_vanilla"] == made_by["mctp4"]
    assert made_by["plus"] == ENGINES | {"numpy", "torch_cuda"}
    spoken = [r.implementation for r in results if "speech" in r.case and r.case.startswith("plus_")]
    assert {name: spoken.count(f"{name} batched") for name in LANGUAGE_MODELS} == dict.fromkeys(LANGUAGE_MODELS, 29)
    heard = [r.implementation for r in results if r.case.endswith("from the waveform")]
    assert {name: heard.count(name) for name in heard} == dict.fromkeys((*ENGINES, "torch_cuda"), 24)
    assert made_by["flow"] == made_by["vocoder"] == ENGINES | {"torch_cuda"}
    assert made_by["speech"] == ENGINES | {"numpy", "torch_cuda"}
    assert len(results) > 500


@pytest.mark.usefixtures("one_thread")
def test_a_mistake_with_speech_fails_on_every_engine(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(golden / "plus" / "plus_vanilla"), "--mistake", "no_speech"]) == 1
    assert "0 passed, 16 failed" in capsys.readouterr().out


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    shutil.copytree(golden / "audio_decoder", tmp_path / "audio_decoder")
    shutil.copy(golden / "language_model" / "interleaving.json", tmp_path)
    for path in tmp_path.rglob("*"):
        path.chmod(0o755)
    (tmp_path / "audio_decoder" / "flow_io.safetensors").unlink()
    return tmp_path


def test_a_wrong_token_and_a_wrong_sample_fail(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = json.loads((copy / "interleaving.json").read_text())
    cases[3]["interleaved"][2] += 1
    (copy / "interleaving.json").write_text(json.dumps(cases))
    arrays = load_file(copy / "audio_decoder" / "hift_io.safetensors")
    arrays["40.wave"] = arrays["40.wave"] + np.float32(2e-3)
    save_file(arrays, copy / "audio_decoder" / "hift_io.safetensors")
    assert main([str(copy), "--failures"]) == 1
    printed = capsys.readouterr().out
    assert "interleaving 3" in printed
    assert "token 2" in printed
    assert "4 failed" in printed  # one rule, one waveform by three engines


def test_a_broken_case_is_a_failure_and_the_others_still_run(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = copy / "audio_decoder" / "hift.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main([str(copy)]) == 1
    printed = capsys.readouterr().out
    assert "CheckpointError" in printed
    assert "33 passed, 1 failed" in printed


def test_nothing_to_run_is_not_a_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path / "missing")]) == 2
    assert "no such folder" in capsys.readouterr().out


def test_comparisons_name_what_differs() -> None:
    assert "token 1: 5, expected 6" in compare_tokens("c", "i", [1, 5], [1, 6]).detail
    assert "1 tokens, expected 2" in compare_tokens("c", "i", [1], [1, 6]).detail
    assert not compare_values("c", "i", np.zeros((1, 2)), np.zeros((2, 1)), 1.0).passed
    assert not compare_values("c", "i", [np.nan], [0.0], 1.0).passed
    assert compare_values("c", "i", [10.05], [10.0], 1e-2, relative=True).passed
