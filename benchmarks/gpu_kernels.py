"""The GPU kernels of the torch_cuda engine, compiled ahead of time: registers, shared memory and spills of each.

    python -m benchmarks.gpu_kernels
    python -m benchmarks.gpu_kernels --size 0.5b --slots 16

Needs no GPU: the compiler package `triton` brings NVIDIA's assembler along (`pip install -e '.[gpu-check]'`). The
engine runs every program that it prepares on tensors without memory, and what it launches is compiled instead of run:
so these are the kernels of a server, specialised as Triton's own launcher does it. Exits with 1 where a GPU cannot run
one well.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks.roofline import SIZES
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import language_model_shapes
from vita_audio.engines.torch_cuda.cuda_graphs import Program
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.fp8 import Fp8Matrix
from vita_audio.engines.torch_cuda.kernels.language import DEPENDENT_LAUNCH
from vita_audio.engines.torch_cuda.kernels.linear import Launches, launch
from vita_audio.engines.torch_cuda.kernels.linear_tiling import FEW_ROWS, Product, few_rows, many_rows
from vita_audio.engines.torch_cuda.kernels.operations import kernels
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.shapes import Limits, prepared_shapes
from vita_audio.engines.torch_cuda.weights import load_weights

META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A kind of GPU: compute capability (90 is sm_90), multiprocessors, most shared memory of a block in bytes."""

    name: str
    capability: int
    processors: int
    shared_bytes: int


GPUS = (
    Gpu("A100", 80, 108, 163 * 1024),
    Gpu("H100", 90, 132, 227 * 1024),
    Gpu("RTX 5090", 120, 170, 99 * 1024),
)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One compiled specialisation.

    Attributes:
        name: the function's.
        constants: name -> value of what it is compiled for.
        unaligned: pointers that are not multiples of 16 bytes.
        registers: of a thread.
        shared_bytes: shared memory of a block.
        spilled_bytes: local memory of a thread, which holds what found no register.
        hasty: it may begin before the kernel ahead has ended (programmatic dependent launch), and writes before it
            waits for that.
    """

    name: str
    constants: dict[str, Any]
    unaligned: tuple[str, ...]
    registers: int
    shared_bytes: int
    spilled_bytes: int
    hasty: bool


def compiled_kernels(
    config: LanguageModelConfig,
    gpu: Gpu,
    slots: int,
    prefill_chunk: int = 256,
    alignments: bool = True,
    first_mctp_id: int = 0,
) -> list[Kernel]:
    """Every kernel that a prepared engine of `slots` slots launches, in bfloat16, once for each specialisation.

    Without `alignments` all pointers count as multiples of 16 bytes: fewer kernels, alike but for their loads.
    `first_mctp_id`: see `Settings`; the backbone draws from the full head in any case.
    """
    context = min(4096, config.max_position_embeddings)
    limits = Limits(slots, config.mctp_modules, context)
    # Layers are alike, and modules but for the first: these launch what all of them do.
    modules = min(2, config.mctp_modules)
    one_layer = replace(config, num_hidden_layers=1 + modules, num_nextn_predict_layers=modules)
    engine = engine_without_memory(one_layer, slots, context, gpu, first_mctp_id)
    with _compiling(gpu, alignments) as made, torch.inference_mode():
        # Packed rows are 1 or a multiple of 16: a launch is specialised for no more than that.
        shapes = {
            (kind, replace(one, rows=min(one.rows, 16))): one for kind, one in prepared_shapes(limits, prefill_chunk)
        }
        for (kind, _), shape in shapes.items():
            Program(*engine.forward.function(kind, shape), META, None).run()
    return sorted((_kernel(one) for one in made), key=lambda one: (one.name, str(one.constants), one.unaligned))


def linear_kernels(gpu: Gpu, products: Sequence[Product]) -> list[Kernel]:
    """Every kernel that these matrix products may run by: all tilings of few rows, and those of more rows of FP8."""
    launches = Launches.on(META, gpu.processors, gpu.capability)
    with _compiling(gpu, alignments=True) as made:
        for product in products:
            values = torch.empty(product.n, product.k, dtype=torch.bfloat16, device=META)
            scale = torch.empty(product.n, device=META)
            weight = Fp8Matrix(values.to(torch.float8_e4m3fn), scale) if product.fp8 else values
            tilings = [(FEW_ROWS, one) for one in few_rows(product, gpu.processors)]
            if product.fp8:
                tilings += [(rows, many_rows(product, rows, gpu.processors)) for rows in (32, 64, 704)]
            for rows, tiling in tilings:
                x = torch.empty(rows, product.k, dtype=torch.bfloat16, device=META)
                residual = x.new_empty(rows, product.n) if product.residual else None
                pdl = gpu.capability >= DEPENDENT_LAUNCH
                launch(x, weight, None, residual, product.gate, launches, tiling, pdl)
    return [_kernel(one) for one in made]


def engine_without_memory(
    config: LanguageModelConfig, slots: int, context: int, gpu: Gpu, first_mctp_id: int = 0
) -> TorchCudaLanguageModel:
    """An engine in bfloat16 on PyTorch's "meta" device, as it would be on a GPU."""
    tensors = {key: torch.empty(shape, device=META) for key, shape in language_model_shapes(config).items()}
    weights = load_weights(config, tensors, META, torch.bfloat16)
    engine = TorchCudaLanguageModel(config, weights, Settings(slots, context, first_mctp_id, attention="split"), [1, 2])
    forward = engine.forward
    forward.processors, forward.capability = gpu.processors, gpu.capability
    launches = Launches.on(META, gpu.processors, gpu.capability)
    forward.operations = kernels(pdl=gpu.capability >= DEPENDENT_LAUNCH, launches=launches)
    return engine


def shortcomings(kernel: Kernel, gpu: Gpu) -> list[str]:
    """Why a GPU runs a kernel badly or not at all; empty where it does not."""
    found = []
    if kernel.spilled_bytes:
        found.append(
            f"{kernel.spilled_bytes} bytes of a thread's registers spill to memory: use more warps, fewer rows"
        )
    if kernel.shared_bytes > gpu.shared_bytes:
        found.append(f"{kernel.shared_bytes} bytes of shared memory, {gpu.name} has {gpu.shared_bytes}: use fewer keys")
    if kernel.hasty:
        found.append("writes before the kernel ahead has ended: call wait_for_previous first")
    return found


class _Target:
    """Stands for Triton's driver of a GPU that is not here: all that its launcher asks before it compiles."""

    def __init__(self, gpu: Gpu) -> None:
        self._capability = gpu.capability

    def get_current_device(self) -> int:
        return self._capability  # kernels are remembered by device: one for each kind of GPU

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)


@contextmanager
def _compiling(gpu: Gpu, alignments: bool) -> Iterator[list[Any]]:
    """Within it a launch only compiles the kernel, for `gpu`; afterwards the list holds what was compiled."""
    run, parse, active, made = JITFunction.run, JITFunction.parse, driver._active, {}
    one_at_a_time = threading.RLock()

    def parse_alone(self: JITFunction) -> Any:
        with one_at_a_time:  # Python before 3.12 counts the depth of all threads' trees together and gives up
            return parse(self)

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        if not alignments:  # the pointer of an empty tensor on the meta device is 0
            args = tuple(arg.new_empty(0) if isinstance(arg, torch.Tensor) else arg for arg in args)
        one = run(self, *args, grid=grid, warmup=True, **options)
        made[id(one)] = one

    compiled: list[Any] = []
    driver.set_active(_Target(gpu))
    try:
        with (
            mock.patch.object(JITFunction, "run", compile_only),
            mock.patch.object(JITFunction, "parse", parse_alone),
            ThreadPoolExecutor(os.cpu_count()) as threads,
            triton.AsyncCompileMode(threads, ignore_errors=True),  # a result below raises them
        ):
            yield compiled
    finally:
        driver._active = active
    # A kernel compiled earlier in this process comes as itself, the others as promises of it.
    compiled += [one.result() if hasattr(one, "result") else one for one in made.values()]


def _kernel(compiled: Any) -> Kernel:
    source = compiled.src
    names = source.fn.arg_names
    pointers = [name for name, kind in source.signature.items() if str(kind).startswith("*")]
    aligned = [names[path[0]] for path, known in source.attrs.items() if ["tt.divisibility", 16] in known]
    registers, spilled = _resources(compiled.asm["cubin"])
    return Kernel(
        name=source.fn.__name__,
        constants={names[path[0]]: value for path, value in source.constants.items()},
        unaligned=tuple(name for name in pointers if name not in aligned),
        registers=registers,
        shared_bytes=compiled.metadata.shared,
        spilled_bytes=spilled,
        hasty=compiled.metadata.launch_pdl and not _waits(compiled.asm["ptx"]),
    )


def _waits(ptx: str) -> bool:
    """Whether a kernel waits for the one ahead before anything that changes memory."""
    wait, write = ptx.find("griddepcontrol.wait"), re.search(r"\b(st|atom|red)\.([a-z_]+\.)*global", ptx)
    return wait >= 0 and (write is None or wait < write.start())


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and local memory of a thread, in bytes, as the assembled kernel itself states them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+)", report)
    return max(int(registers) for registers, _ in found), max(int(stack) for _, stack in found)


def _table(compiled: list[Kernel], gpu: Gpu) -> Table:
    table = Table(title=f"{gpu.name} (sm_{gpu.capability}, {gpu.processors} multiprocessors)")
    for column in ("kernel", "compiled for", "unaligned"):
        table.add_column(column)
    for column in ("registers", "shared KiB", "spilled bytes"):
        table.add_column(column, justify="right")
    for one in compiled:
        constants = " ".join(f"{name}={value}" for name, value in one.constants.items())
        sizes = (str(one.registers), f"{one.shared_bytes / 1024:.1f}", str(one.spilled_bytes))
        table.add_row(one.name.strip("_"), constants, " ".join(one.unaligned), *sizes)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--slots", type=int, default=64)
    args = parser.parse_args()
    if args.slots < 1:
        parser.error(f"argument --slots: {args.slots} is not valid: at least 1")
    console, faults = Console(width=160), 0
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict("os.environ", TRITON_CACHE_DIR=folder):
        for gpu in GPUS:
            compiled = compiled_kernels(SIZES[args.size].config, gpu, args.slots)
            console.print(_table(compiled, gpu))
            faults += sum(bool(shortcomings(one, gpu)) for one in compiled)
    print(f"{faults} kernels spill registers or want more shared memory than there is")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
