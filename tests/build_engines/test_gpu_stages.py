"""`python -m build_engines --target gpu` as far as no GPU is needed: all stages of both engines, checks, resuming.

TensorRT-LLM and TensorRT do the compiling in two calls, which are replaced here; conversion, exporting and everything
around them are real.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from build_engines import machine as machine_checks
from build_engines.options import GpuOptions
from build_engines.pipeline import Build
from build_engines.stages import run_build
from build_engines.tensorrt_audio.build import plan_engines
from build_engines.tensorrt_llm import engines as tensorrt_llm_engines
from build_engines.tensorrt_llm.config_file import check_part
from build_engines.tensorrt_llm.networks.options import NetworkOptions
from gpu_machines import CONTAINER, H100, with_nvidia_smi, without_onnx
from vita_audio.checkpoint.audio_decoder import load_flow
from vita_audio.checkpoint.file_records import file_sha256
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.checkpoint.random_weights.__main__ import write_random_checkpoint
from vita_audio.checkpoint.sizes import TINY
from vita_audio.contract.errors import EngineError, VitaError
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.engines.gpu_machine import Gpu, GpuMachine, find_machine
from vita_audio.engines.manifest import MANIFEST, check_manifest, load_manifest, schedule_fields
from vita_audio.engines.tensorrt_audio.plan import AudioPlan, load_plan
from vita_audio.engines.torch.weights import FLOW_FILE, WEIGHTS_FILE, StoredTensors, load_weights_file

ROOT = Path(__file__).resolve().parents[2]
TORCH = GpuOptions(engine="torch_cuda", streams=4)
LLM = GpuOptions(streams=4, step_tokens=64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "random"
    write_random_checkpoint(folder, TINY, seed=0)
    return folder


class Compilers:
    """In place of TensorRT-LLM and TensorRT: write what they write, note what they were asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, NetworkOptions]] = []
        self.killed_at = ""

    def language_model(self, part: str, checkpoint: Path, out: Path, options: NetworkOptions, rank: int = 0) -> None:
        if part == self.killed_at:
            (out / f"rank{rank}.engine").write_text("half")
            raise KeyboardInterrupt
        check_part(checkpoint)
        self.asked.append((part, rank, options))
        (out / "config.json").write_text(part)
        (out / f"rank{rank}.engine").write_text(f"{part} {options.max_batch_size}")

    def audio(self, graphs: Path, out: Path, config: DecoderConfig, max_batch: int) -> AudioPlan:
        planned = plan_engines(graphs, config, max_batch)
        out.mkdir()
        for name in planned:
            (out / f"{name}.engine").write_text(name)
        plan = AudioPlan("10.14.1.48", "9.0", max_batch, {name: plan for name, (plan, _) in planned.items()})
        (out / "tensorrt_audio.json").write_text(plan.to_json())
        return plan


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch) -> Compilers:
    made = Compilers()
    monkeypatch.setattr(tensorrt_llm_engines, "build_engine", made.language_model)
    monkeypatch.setattr("build_engines.tensorrt_audio.build.build_audio_engines", made.audio)
    return made


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[GpuMachine], None]:
    """Builds run on one H100 in the container, unless a test says otherwise."""

    def be(machine: GpuMachine) -> None:
        monkeypatch.setattr("build_engines.pipeline.find_machine", lambda: machine)

    be(CONTAINER)
    return be


def ran(build: Build, **options: object) -> list[int]:
    """Numbers of the stages that a build ran, not skipped."""
    numbers: list[int] = []
    run_build(build, on_end=lambda stage, record: numbers.append(stage.number) if record else None, **options)  # type: ignore[arg-type]
    return numbers


def refusal(build: Build) -> str:
    with pytest.raises(VitaError) as caught:
        run_build(build)
    text = str(caught.value)
    assert "\n" not in text
    assert not (build.out / MANIFEST).exists()
    return text


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


def test_the_machine_is_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Gpu("NVIDIA L4", "8.9", 23_034 << 20)
    monkeypatch.setenv("PATH", with_nvidia_smi(tmp_path / "bin", H100, small)["PATH"])
    monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", "26.07")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert find_machine().gpus == (H100, small)
    assert find_machine().container == "tritonserver 26.07"
    assert find_machine().compute_capability == "9.0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert find_machine().gpus == (small,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_machine().gpus == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    assert find_machine().gpus == (H100, small)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_machine().gpus == ()
    assert find_machine().compute_capability == "none"


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
            "fp8 needs compute capability 8.9 (Ada), NVIDIA A100 has 8.0; take w4a16 or bf16",
        ),
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
    assert "0 fit: the weights alone are too large" in text


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


@pytest.fixture(scope="module")
def engines(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engines") / "gpu"
    with pytest.MonkeyPatch.context() as patch:
        made = Compilers()
        patch.setattr("build_engines.pipeline.find_machine", lambda: CONTAINER)
        patch.setattr(tensorrt_llm_engines, "build_engine", made.language_model)
        patch.setattr("build_engines.tensorrt_audio.build.build_audio_engines", made.audio)
        run_build(Build(checkpoint, out, "gpu", gpu=LLM))
    return out


L40S = Gpu("NVIDIA L40S", "8.9", 46_068 << 20)


@pytest.mark.parametrize(
    ("fields", "machine", "told"),
    [
        ({}, replace(CONTAINER, gpus=(L40S,)), "gpu.compute_capability is '9.0' but NVIDIA L40S has 8.9"),
        ({}, replace(CONTAINER, tensorrt="10.13"), "gpu.tensorrt is '10.14.1.48' but 10.13 is installed"),
        ({}, replace(CONTAINER, tensorrt_llm="none"), "gpu.tensorrt_llm is '1.2.1' but none is installed"),
        ({}, replace(CONTAINER, container="tritonserver 26.06"), "'tritonserver 26.07' but this is tritonserver 26.06"),
        ({"engine": "vllm"}, CONTAINER, "gpu.engine is 'vllm' but this version knows tensorrt_llm and torch_cuda"),
        ({"tp": 2}, CONTAINER, "gpu.tp is 2 but this server drives one GPU"),
        ({"banned_ids": [1]}, CONTAINER, "gpu.banned_ids is '1 ids' but its vocabulary bans"),
        ({"head_first_id": 10**6}, CONTAINER, "gpu.head_first_id is 1000000 but the model has"),
        ({"candidates": 0}, CONTAINER, "gpu.candidates is 0 but the MCTP head has"),
    ],
)
def test_the_server_refuses_by_field(
    engines: Path, tmp_path: Path, fields: dict[str, object], machine: GpuMachine, told: str
) -> None:
    out = tmp_path / "gpu"
    shutil.copytree(engines, out)
    content = json.loads((out / MANIFEST).read_text())
    content["gpu"].update(fields)
    (out / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(EngineError) as error:
        check_manifest(out, target="gpu", machine=machine)
    text = str(error.value)
    assert told in text
    assert "build the engines again" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("gpus", "found"),
    [
        ((), "there is no GPU here (nvidia-smi lists none)"),
        ((Gpu("V100", "7.0", 1),), "V100 has compute capability 7.0, below 8.0"),
    ],
)
@pytest.mark.parametrize(("engine", "more"), [("tensorrt_llm", ""), ("torch_cuda", " or with --device cpu")])
def test_a_machine_for_no_build_of_them(
    engines: Path, tmp_path: Path, engine: str, more: str, gpus: tuple[Gpu, ...], found: str
) -> None:
    """Building again, which other refusals advise, would not help."""
    content = json.loads((engines / MANIFEST).read_text())
    content["gpu"]["engine"] = engine
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(EngineError) as error:
        check_manifest(tmp_path, target="gpu", machine=replace(CONTAINER, gpus=gpus))
    told = f"{engine} engines need a GPU and {found}; start on a machine with one{more}"
    assert str(error.value) == f"{tmp_path / MANIFEST}: {told}"


def test_a_cpu_is_asked_for(engines: Path, checkpoint: Path, tmp_path: Path) -> None:
    """`--device cpu` needs no GPU, but engines that can run there."""
    nothing = GpuMachine((), "none", "none", "none")
    with pytest.raises(EngineError, match=r"gpu\.engine is 'tensorrt_llm' but only torch_cuda engines run on --device"):
        check_manifest(engines, target="gpu", machine=nothing, device="cpu")
    out = tmp_path / "gpu"
    run_build(Build(checkpoint, out, "gpu", gpu=TORCH))
    assert check_manifest(out, target="gpu", machine=nothing, device="cpu").gpu is not None
    with pytest.raises(EngineError, match="there is no GPU here"):
        check_manifest(out, target="gpu", machine=nothing)


def test_packages_of_the_builder_alone_are_not_pinned(engines: Path, tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    shutil.copytree(engines, out)
    content = json.loads((out / MANIFEST).read_text())
    content["versions"] = dict.fromkeys(content["versions"], "0.0")
    (out / MANIFEST).write_text(json.dumps(content))
    assert check_manifest(out, target="gpu", machine=CONTAINER).versions["onnxruntime"] == "0.0"


def test_engines_of_another_schedule_are_refused_and_made_again(
    checkpoint: Path, tmp_path: Path, compilers: Compilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Build(checkpoint, tmp_path / "gpu", "gpu", gpu=LLM)
    run_build(build)
    ours, other = (schedule_fields(config) for config in (DecoderConfig(), DecoderConfig(context_tokens=40)))
    assert check_manifest(build.out, checkpoint, "gpu", CONTAINER, schedule=ours).schedule == ours
    with pytest.raises(EngineError, match=r"schedule\.context_tokens is 30 but this version decodes with 40; build"):
        check_manifest(build.out, checkpoint, "gpu", CONTAINER, schedule=other)

    for package in ("build_engines", "vita_audio"):
        shutil.copytree(ROOT / package, tmp_path / "tree" / package)
    source = tmp_path / "tree" / "vita_audio" / "decoding" / "schedule.py"
    source.write_text(source.read_text().replace("context_tokens: int = 30", "context_tokens: int = 40"))
    monkeypatch.setattr("build_engines.sources.ROOT", tmp_path / "tree")
    assert ran(Build(checkpoint, build.out, "gpu", gpu=LLM)) == [1, 11, 12]

    content = json.loads((build.out / MANIFEST).read_text())
    del content["schedule"]
    (build.out / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(EngineError, match="schedule is None but TensorRT's audio engines are built for the shapes of"):
        check_manifest(build.out, checkpoint, "gpu", CONTAINER, schedule=ours)


def test_a_record_that_is_missing_or_unknown_is_refused(engines: Path, tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    shutil.copytree(engines, out)
    content = json.loads((out / MANIFEST).read_text())

    def told(gpu: object) -> str:
        changed = {key: value for key, value in content.items() if key != "gpu"} | ({"gpu": gpu} if gpu else {})
        (out / MANIFEST).write_text(json.dumps(changed))
        with pytest.raises(EngineError) as error:
            check_manifest(out, target="gpu", machine=CONTAINER)
        return str(error.value)

    assert "gpu is None but a GPU target records what it was built for" in told(None)
    assert "unknown" in told({**content["gpu"], "more": 1})
    assert "'banned_ids'" in told({key: value for key, value in content["gpu"].items() if key != "banned_ids"})


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "short.safetensors").write_bytes(b"x" * 10)
    for name in ("short.safetensors", "missing.safetensors"):
        for read in (StoredTensors, load_weights_file):
            with pytest.raises(EngineError, match=f"{name}: not readable weights .*build the engines again"):
                read(tmp_path / name)
