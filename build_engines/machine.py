"""Stage: the GPU, the packages, the disk and the memory that a GPU build needs are there."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from build_engines.options import GpuOptions
from build_engines.plan import GIB, GpuPlan, check_mctp, language_model_plans, plan_build
from build_engines.sizes import read_sizes
from build_engines.tensorrt_llm.engines import network_options
from build_engines.tensorrt_llm.networks.build import TENSORRT_LLM_VERSION
from build_engines.tensorrt_llm.scales import load_scales
from vita_audio.contract.errors import EngineError
from vita_audio.engines.gpu_machine import NONE, GpuMachine
from vita_audio.engines.gpu_record import TENSORRT_LLM, TORCH_CUDA

if TYPE_CHECKING:
    from build_engines.pipeline import Build, Facts, Needed

IMAGE = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
#: Ampere, Ada, Hopper, Blackwell. From reading; TensorRT-LLM 1.2.1 has attention kernels with paged context for these.
CAPABILITIES = ("8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0")
#: The first GPU generation that multiplies 8-bit floats.
FP8_CAPABILITY = (8, 9)
#: Number of a stage -> what it writes, in the plan's words.
_WRITTEN = {
    TENSORRT_LLM: {
        4: "converted backbone",
        5: "converted mctp",
        6: "language_model/backbone",
        7: "language_model/mctp",
    },
    TORCH_CUDA: {4: "language_model/weights.safetensors"},
}
_MEMINFO = Path("/proc/meminfo")


def run(build: Build, folder: Path, needed: Needed) -> Facts:
    """Nothing here is slow: it comes before everything else and runs each time."""
    options, machine = build.gpu, build.machine
    check_packages(options, machine)
    check_gpu(options, machine)
    sizes = read_sizes(build.checkpoint)
    check_mctp(sizes, options)
    network_options(build, sizes.language_model.max_position_embeddings)
    plan = plan_build(sizes, options, build.context_tokens)
    check_gpu_memory(plan, machine)
    if options.engine == TENSORRT_LLM:
        load_scales(options.scales, language_model_plans(sizes, options).values())  # there, and complete
    check_host(plan, build.out, {name for number, name in _WRITTEN[options.engine].items() if build.has_run(number)})
    return machine_facts(options, machine)


def machine_facts(options: GpuOptions, machine: GpuMachine) -> Facts:
    """What later stages need to know of the machine, which may have no GPU."""
    facts = {
        "gpu": machine.gpus[0].name if machine.gpus else NONE,
        "compute_capability": machine.compute_capability,
        "container": machine.container,
    }
    if options.engine == TENSORRT_LLM:
        facts |= {"tensorrt": machine.tensorrt, "tensorrt_llm": machine.tensorrt_llm}
    return facts


def check_packages(options: GpuOptions, machine: GpuMachine) -> None:
    """Raises EngineError when TensorRT-LLM or TensorRT is missing or another one, and names the ways out."""
    if options.engine != TENSORRT_LLM:
        return
    from build_engines.tensorrt_audio.build import TENSORRT_VERSION  # needs onnx, which torch_cuda engines do without

    ways = f"build in {IMAGE} (docker compose run --rm build), or with --engine {TORCH_CUDA}, which needs PyTorch alone"
    if machine.tensorrt_llm != TENSORRT_LLM_VERSION:
        found = "not installed" if machine.tensorrt_llm == NONE else f"{machine.tensorrt_llm}"
        raise EngineError(f"tensorrt_llm {TENSORRT_LLM_VERSION} is needed and it is {found}: {ways}")
    if not machine.tensorrt.startswith(TENSORRT_VERSION):
        raise EngineError(f"tensorrt {TENSORRT_VERSION} is needed and it is {machine.tensorrt}: {ways}")


def check_gpu(options: GpuOptions, machine: GpuMachine) -> None:
    """Raises EngineError when there is no GPU, or one that cannot run what is asked for."""
    if not machine.gpus:
        raise EngineError(
            "no GPU: nvidia-smi lists none, and engines are built on the GPU that serves them; "
            "python -m build_engines plan needs none"
        )
    gpu = machine.gpus[0]
    numbers = tuple(map(int, gpu.compute_capability.split(".")))
    if options.engine == TENSORRT_LLM and gpu.compute_capability not in CAPABILITIES:
        raise EngineError(
            f"{gpu.name} has compute capability {gpu.compute_capability}, TensorRT-LLM {TENSORRT_LLM_VERSION} engines "
            f"are for {', '.join(CAPABILITIES)}; take such a GPU"
            + (f", or --engine {TORCH_CUDA}" if numbers >= (8, 0) else "")
        )
    if numbers < (8, 0):
        raise EngineError(f"{gpu.name} has compute capability {gpu.compute_capability}: bfloat16 needs 8.0 (Ampere)")
    if options.engine == TENSORRT_LLM and "fp8" in options.formats and numbers < FP8_CAPABILITY:
        raise EngineError(
            f"--format: fp8 needs compute capability 8.9 (Ada), {gpu.name} has {gpu.compute_capability}; "
            f"take w4a16 or bf16, or --engine {TORCH_CUDA}"
        )


def check_gpu_memory(plan: GpuPlan, machine: GpuMachine) -> None:
    """Raises EngineError, with the number of streams that fit, when the GPU is too small."""
    gpu = machine.gpus[0]
    plan.check_fit(gpu.memory_bytes, gpu.name)


def check_host(plan: GpuPlan, out: Path, made: Collection[str] = (), available: int | None = None) -> None:
    """Disk for what is still to be written, and memory of this machine.

    Args:
        out: folder of the engines; it, or a folder above it, exists.
        made: parts of `plan.files` and `plan.scratch` that are there already.
        available: bytes of memory that are free; None asks the system.

    Raises:
        EngineError: too little; both numbers are named.
    """
    folder = next(path for path in (out, *out.resolve().parents) if path.exists())
    needed = sum(count for name, count in (plan.files | plan.scratch).items() if name not in made)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EngineError(
            f"--out: {free / GIB:.1f} GiB are free at {out}, {needed / GIB:.1f} GiB are needed; "
            "free the space or name a folder on another disk"
        )
    available = memory_available() if available is None else available
    if available < plan.host_build:
        raise EngineError(
            f"memory: {available / GIB:.1f} GiB are free on this machine, the build takes up to "
            f"{plan.host_build / GIB:.1f} GiB; end other programs, or take a larger machine or a smaller --format"
        )


def memory_available() -> int:
    """Bytes that programs can still take on this machine."""
    for line in _MEMINFO.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise EngineError(f"{_MEMINFO}: has no MemAvailable; a Linux newer than 3.14 has it")
