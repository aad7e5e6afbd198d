"""`python -m build_engines --target gpu` as far as no GPU is needed: all stages of both engines, skipping, resuming.

TensorRT-LLM and TensorRT do the compiling in two calls, which are replaced here; conversion, exporting and everything
around them are real.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from build_engines.pipeline import Build
from build_engines.stages import run_build
from build_engines.tensorrt_llm.config_file import check_part
from gpu_builds import LLM, TORCH, Compilers, ran, refusal
from gpu_machines import CONTAINER, H100, with_nvidia_smi, without_onnx
from vita_audio.checkpoint.audio_decoder import load_flow
from vita_audio.checkpoint.file_records import file_sha256
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.contract.errors import EngineError
from vita_audio.engines.gpu_machine import Gpu, GpuMachine
from vita_audio.engines.manifest import check_manifest, load_manifest
from vita_audio.engines.tensorrt_audio.plan import load_plan
from vita_audio.engines.torch.weights import FLOW_FILE, WEIGHTS_FILE, StoredTensors, load_weights_file

pytestmark = pytest.mark.usefixtures("machine")

ROOT = Path(__file__).resolve().parents[2]


def test_tensorrt_llm_from_checkpoint_to_manifest(checkpoint: Path, tmp_path: Path, compilers: Compilers) -> None:
    out = tmp_path / "gpu"
    build = Build(checkpoint, out, "gpu", context_tokens=256, gpu=LLM)
    assert ran(build) == list(range(1, 13))
    manifest = check_manifest(out, checkpoint, "gpu", CONTAINER)
    gpu = manifest.gpu
    assert gpu is not None
    assert (gpu.engine, gpu.gpu, gpu.compute_capability) == ("tensorrt_llm", H100.name, "9.0")
    assert (gpu.tensorrt, gpu.tensorrt_llm, gpu.container) == ("10.14.1.48", "1.2.1", "tritonserver 26.07")
    assert (gpu.max_streams, gpu.max_num_tokens, gpu.candidates, gpu.tp) == (4, 64, 64, 1)
    assert gpu.options == {
        "format": "bf16",
        "mctp_format": "bf16",
        "fp8_kv_cache": False,
        "head": "auto",
        "scales_sha256": "",
    }
    vocabulary = manifest.vocabulary
    assert gpu.head_first_id == vocabulary.text_tokens // 8 * 8 > 0  # boost: the modules make audio alone
    assert gpu.banned_ids == tuple(vocabulary.banned_ids(manifest.sizes["language_model"]["vocab_size"]))
    assert [(part, rank) for part, rank, _ in compilers.asked] == [("backbone", 0), ("mctp", 0)]
    for _, _, options in compilers.asked:
        assert (options.max_batch_size, options.max_seq_len, options.max_num_tokens) == (4, 256, 64)
        assert options.banned_ids == gpu.banned_ids
    assert set(manifest.files) == {
        "tokenizer.json",
        "audio/tensorrt_audio.json",
        *(f"audio/{name}.engine" for name in load_plan(out / "audio").engines),
        *(f"language_model/{part}/{file}" for part in ("backbone", "mctp") for file in ("config.json", "rank0.engine")),
    }
    converted = out / ".build" / "tensorrt_llm"
    assert check_part(converted / "mctp").head_first_id == gpu.head_first_id
    # Nothing is made again, but the machine is looked at each time.
    assert ran(Build(checkpoint, out, "gpu", context_tokens=256, gpu=LLM)) == [1]
    # Engines for more streams from the same conversions, which may be gone by then.
    shutil.rmtree(converted)
    more = replace(LLM, streams=8)
    assert ran(Build(checkpoint, out, "gpu", context_tokens=256, gpu=more)) == [1, 6, 7, 12]
    assert (out / "language_model" / "mctp" / "rank0.engine").read_text() == "mctp 8"


def test_another_gpu_needs_other_engines(
    checkpoint: Path, tmp_path: Path, compilers: Compilers, machine: Callable[[GpuMachine], None]
) -> None:
    out = tmp_path / "gpu"
    run_build(Build(checkpoint, out, "gpu", gpu=LLM))
    machine(replace(CONTAINER, gpus=(Gpu("NVIDIA L40S", "8.9", 46_068 << 20),)))
    assert ran(Build(checkpoint, out, "gpu", gpu=LLM)) == [1, 6, 7, 11, 12]


def test_formats_and_ranks_reach_the_conversion(checkpoint: Path, tmp_path: Path, compilers: Compilers) -> None:
    out = tmp_path / "gpu"
    run_build(Build(checkpoint, out, "gpu", gpu=replace(LLM, tp=2, head="full")))
    assert check_part(out / ".build" / "tensorrt_llm" / "mctp").tp == 2
    assert check_part(out / ".build" / "tensorrt_llm" / "mctp").head_first_id == 0
    assert [(part, rank) for part, rank, _ in compilers.asked] == [
        ("backbone", 0),
        ("backbone", 1),
        ("mctp", 0),
        ("mctp", 1),
    ]
    with pytest.raises(EngineError, match=r"gpu\.tp is 2 but this server drives one GPU; build with --tp 1"):
        check_manifest(out, checkpoint, "gpu", CONTAINER)
    quantised = Build(checkpoint, tmp_path / "fp8", "gpu", gpu=replace(LLM, format="fp8"))
    assert "--scales: " in refusal(quantised)
    missing = Build(checkpoint, tmp_path / "fp8", "gpu", gpu=replace(LLM, format="fp8", scales=tmp_path / "none.json"))
    assert "none.json is not a file; make one with python -m build_engines.tensorrt_llm.calibrate" in refusal(missing)


def test_a_killed_build_goes_on(checkpoint: Path, tmp_path: Path, compilers: Compilers) -> None:
    out = tmp_path / "gpu"
    compilers.killed_at = "mctp"
    with pytest.raises(KeyboardInterrupt):
        run_build(Build(checkpoint, out, "gpu", gpu=LLM))
    assert not (out / "language_model" / "mctp").exists()
    with pytest.raises(EngineError, match=r"cannot be read .*--target gpu"):
        check_manifest(out, target="gpu", machine=CONTAINER)
    compilers.killed_at = ""
    assert ran(Build(checkpoint, out, "gpu", gpu=LLM)) == [1, *range(7, 13)]
    check_manifest(out, checkpoint, "gpu", CONTAINER)


def command(checkpoint: Path, out: Path, *more: str) -> list[str]:
    options = ("--target", "gpu", "--engine", "torch_cuda", "--streams", "4", *more)
    return [sys.executable, "-m", "build_engines", "--checkpoint", str(checkpoint), "--out", str(out), *options]


def test_torch_cuda_by_the_command_killed_and_resumed(checkpoint: Path, tmp_path: Path) -> None:
    """Where neither ONNX nor ONNX Runtime is installed: these engines are made of neither."""
    out, environment = tmp_path / "gpu", without_onnx(tmp_path, with_nvidia_smi(tmp_path / "bin", H100))
    process = subprocess.Popen(command(checkpoint, out), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[2/6] check checkpoint"):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.stdout.close()
    made = subprocess.run(command(checkpoint, out), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    lines = made.stdout.splitlines()
    assert len(lines) == 6
    assert lines[1] == "[2/6] check checkpoint: unchanged"
    machine = GpuMachine((H100,), "none", "none", "none")
    manifest = check_manifest(out, checkpoint, "gpu", machine)
    assert manifest.gpu is not None
    assert (manifest.gpu.engine, manifest.gpu.tensorrt_llm) == ("torch_cuda", "none")

    _, tensors = load_language_model(checkpoint / "language_model", dtype=None)
    stored = StoredTensors(out / WEIGHTS_FILE)
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[key], tensors[key].to(torch.bfloat16)) for key in tensors)
    flow, kept = load_flow(checkpoint / "audio_decoder")[1], load_weights_file(out / FLOW_FILE)
    assert flow.keys() == kept.keys()
    assert all(torch.equal(flow[key], kept[key]) for key in flow)
    assert load_manifest(out) == manifest


def test_a_large_file_is_hashed_once(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines have tens of gigabytes: a build reads what it wrote once, and a change in between is still seen."""
    read: list[str] = []

    def note(path: Path) -> str:
        read.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr("build_engines.pipeline.file_sha256", note)
    weights = tmp_path / "gpu" / WEIGHTS_FILE
    run_build(Build(checkpoint, tmp_path / "gpu", "gpu", gpu=TORCH))
    assert read.count(weights.name) == 1
    # Another build that makes only limits and manifest again reads it to know that it is as it was.
    read.clear()
    assert ran(Build(checkpoint, tmp_path / "gpu", "gpu", max_tokens=64, gpu=TORCH)) == [1, 3, 6]
    assert read.count(weights.name) == 1
    assert check_manifest(tmp_path / "gpu", checkpoint, "gpu", CONTAINER).limits.max_tokens == 64

    build = Build(checkpoint, tmp_path / "gpu", "gpu", max_tokens=64, gpu=TORCH)
    assert ran(build) == [1]
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(
        EngineError, match=r"weights\.safetensors: changed or gone since stage 4 made it: run --stage 4"
    ):
        run_build(build, [6], force=True)
    weights.unlink()
    with pytest.raises(EngineError, match=r"weights\.safetensors: changed or gone"):
        run_build(build, [6], force=True)


def test_without_a_gpu_the_command_says_so(checkpoint: Path, tmp_path: Path) -> None:
    environment = with_nvidia_smi(tmp_path / "bin")
    made = subprocess.run(
        command(checkpoint, tmp_path / "gpu"), cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert made.returncode == 1
    assert made.stderr.startswith("error: no GPU: nvidia-smi lists none")
    assert len(made.stderr.splitlines()) == 1
