"""What a GPU build refuses before it compiles: machines, sizes of memory and disk, checkpoints."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from build_engines import machine as machine_checks
from build_engines.options import GpuOptions
from build_engines.pipeline import Build
from build_engines.stages import run_build
from gpu_builds import LLM, TORCH, Compilers, ran, refusal
from gpu_machines import CONTAINER, H100
from vita_audio.engines.gpu_machine import Gpu, GpuMachine
from vita_audio.engines.manifest import check_manifest

pytestmark = pytest.mark.usefixtures("machine")


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        ({"tensorrt_llm": "none"}, LLM, "tensorrt_llm 1.2.1 is needed and it is not installed: build in nvcr.io/"),
        ({"tensorrt_llm": "none"}, LLM, "or with --engine torch_cuda, which needs PyTorch alone"),
        ({"tensorrt_llm": "1.1.0"}, LLM, "tensorrt_llm 1.2.1 is needed and it is 1.1.0"),
        ({"tensorrt": "10.13.3.9"}, LLM, "tensorrt 10.14 is needed and it is 10.13.3.9"),
        ({"gpus": ()}, LLM, "no GPU: nvidia-smi lists none"),
        ({"gpus": (Gpu("Tesla V100", "7.0", 32 << 30),)}, LLM, "Tesla V100 has compute capability 7.0, TensorRT-LLM"),
        ({"gpus": (Gpu("Tesla V100", "7.0", 32 << 30),)}, TORCH, "7.0: bfloat16 needs 8.0 (Ampere)"),
        ({"gpus": (Gpu("Future", "13.0", 80 << 30),)}, LLM, "take such a GPU, or --engine torch_cuda"),
        (
            {"gpus": (Gpu("NVIDIA A100", "8.0", 80 << 30),)},
            replace(LLM, format="fp8"),
            "fp8 needs compute capability 8.9 (Ada), NVIDIA A100 has 8.0; take w4a16 or bf16, or --engine torch_cuda",
        ),
        ({}, replace(LLM, step_tokens=10), "--step-tokens: 10 is not valid: at least K + 1 = 11"),
        ({}, replace(TORCH, step_tokens=10), "--step-tokens: 10 is not valid: at least K + 1 = 11"),
        ({}, replace(LLM, candidates=1000), "--candidates: 1000 is not valid: the MCTP head has"),
    ],
)
def test_machines_that_are_refused(
    checkpoint: Path,
    tmp_path: Path,
    compilers: Compilers,
    machine: Callable[[GpuMachine], None],
    change: dict[str, object],
    options: GpuOptions,
    told: str,
) -> None:
    machine(replace(CONTAINER, **change))  # type: ignore[arg-type]
    assert told in refusal(Build(checkpoint, tmp_path / "gpu", "gpu", gpu=options))
    assert compilers.asked == []


def test_too_little_memory_says_how_many_streams_fit(
    checkpoint: Path, tmp_path: Path, compilers: Compilers, machine: Callable[[GpuMachine], None]
) -> None:
    machine(replace(CONTAINER, gpus=(replace(H100, memory_bytes=(3 << 30) + (200 << 20)),)))
    text = refusal(Build(checkpoint, tmp_path / "gpu", "gpu", gpu=replace(LLM, streams=2000, step_tokens=2000)))
    fit = int(text.split("; ")[1].split()[0])
    assert 0 < fit < 2000
    options = replace(LLM, streams=fit, step_tokens=2000)
    assert ran(Build(checkpoint, tmp_path / "gpu", "gpu", gpu=options))[-1] == 12
    machine(replace(CONTAINER, gpus=(replace(H100, memory_bytes=2 << 30),)))
    text = refusal(Build(checkpoint, tmp_path / "small", "gpu", gpu=LLM))
    assert "0 fit: weights and buffers alone are too large" in text


def test_too_little_disk_and_too_little_memory_of_the_host(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Build(checkpoint, tmp_path / "gpu", "gpu", gpu=LLM)
    with monkeypatch.context() as patch:
        usage = namedtuple("usage", "total used free")
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
        assert "--out: 0.0 GiB are free at" in refusal(build)
    with monkeypatch.context() as patch:
        patch.setattr(machine_checks, "memory_available", lambda: 1 << 20)
        assert "memory: 0.0 GiB are free on this machine, the build takes up to" in refusal(build)
    assert machine_checks.memory_available() > 1 << 20


def edit(path: str, **fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps({**content, **fields}))

    return change


def _no_mctp(folder: Path) -> None:
    path = folder / "language_model" / "model.safetensors"
    kept = {
        key: value
        for key, value in load_file(path).items()
        if not key.startswith("mtp_") and not (key.startswith("model.layers.") and int(key.split(".")[2]) >= 3)
    }
    save_file(kept, path)
    edit("language_model/config.json", num_hidden_layers=3, num_nextn_predict_layers=0)(folder)
    (folder / "language_model" / "generation_config.json").unlink()


def _missing_shard(folder: Path) -> None:
    path = folder / "language_model" / "model.safetensors"
    keys = list(load_file(path))
    index = {"weight_map": dict.fromkeys(keys[:-1], "model-1.safetensors") | {keys[-1]: "model-2.safetensors"}}
    path.rename(path.with_name("model-1.safetensors"))
    path.with_name("model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_no_mctp, "num_nextn_predict_layers is 0: there are no MCTP modules for an MCTP engine; --engine torch_cuda"),
        (
            edit("language_model/config.json", num_nextn_predict_layers=4, num_hidden_layers=13),
            "num_nextn_predict_layers is 4 but the weights hold 10 MCTP modules",
        ),
        (_missing_shard, "model-2.safetensors is missing"),
        (edit("language_model/config.json", vocab_size=700), "vocab_size is 700 but model.embed_tokens.weight has"),
        (lambda folder: (folder / "language_model" / "config.json").unlink(), "config.json: file is missing"),
        (lambda folder: shutil.rmtree(folder / "speech_tokenizer"), "speech_tokenizer"),
    ],
)
def test_checkpoints_that_are_refused(
    checkpoint: Path, tmp_path: Path, compilers: Compilers, damage: Callable[[Path], None], told: str
) -> None:
    folder = tmp_path / "random"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    assert told in refusal(Build(folder, tmp_path / "gpu", "gpu", gpu=LLM))
    assert compilers.asked == []


def test_torch_cuda_takes_a_checkpoint_without_mctp(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "random"
    shutil.copytree(checkpoint, folder)
    _no_mctp(folder)
    run_build(Build(folder, tmp_path / "gpu", "gpu", gpu=TORCH))
    assert check_manifest(tmp_path / "gpu", folder, "gpu", CONTAINER).limits.default_pattern == (8192, 0)
