"""Before a GPU build: are the GPU, the packages, the disk and the memory there that it needs?"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from build_engines.gpu.options import GpuOptions
from build_engines.gpu.plan import GIB, GpuPlan
from build_engines.gpu.sizes import Sizes
from build_engines.tensorrt_llm.networks.build import TENSORRT_LLM_VERSION
from vita_audio.contract.errors import CheckpointError, EngineError
from vita_audio.engines.gpu_machine import NONE, GpuMachine
from vita_audio.engines.gpu_record import TENSORRT_LLM, TORCH_CUDA

IMAGE = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
#: Ampere, Ada, Hopper, Blackwell. From reading; TensorRT-LLM 1.2.1 has attention kernels with paged context for these.
CAPABILITIES = ("8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0")
#: The first GPU generation that multiplies 8-bit floats.
FP8_CAPABILITY = (8, 9)
_MEMINFO = Path("/proc/meminfo")


def check_mctp(sizes: Sizes, options: GpuOptions) -> None:
    """Raises CheckpointError where an MCTP engine is asked for and K = 0, EngineError where its head is too small."""
    if options.engine == TENSORRT_LLM and not sizes.language_model.mctp_modules:
        raise CheckpointError(
            f"{sizes.source}: num_nextn_predict_layers is 0: there are no MCTP modules for an MCTP engine; "
            f"--engine {TORCH_CUDA} serves it (mode vanilla)"
        )
    rows = sizes.language_model.vocab_size - options.head_first_id(sizes.pattern, sizes.text_tokens)
    if options.engine == TENSORRT_LLM and rows < options.candidates:
        raise EngineError(f"--candidates: {options.candidates} is not valid: the MCTP head has {rows} rows")


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
    if "fp8" in options.formats and numbers < FP8_CAPABILITY:
        raise EngineError(
            f"--format: fp8 needs compute capability 8.9 (Ada), {gpu.name} has {gpu.compute_capability}; "
            "take w4a16 or bf16"
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
