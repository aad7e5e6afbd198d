"""Which products of few rows run by our kernel, and how it cuts them: measured on the GPU when an engine first starts.

cuBLAS and each tiling multiply matrices of a kind one after the other, captured as one CUDA graph, so that weights come
from memory as they do in a program, and launches cost what they cost there. What a kind takes is chosen by its time
with 1 row and with FEW_ROWS together: one choice for both, so that a row is the same alone and in company. A tiling
whose numbers are off, or that does not run, is never taken; where none is left the reference is, until the next start.

A measurement takes some milliseconds; compiling what is measured takes up to half a minute in all, once, since the
GPU language Triton keeps it. After BUDGET_S the kinds that are left take the first tiling until the next start. The
table is a file of the engines' folder, or beside the compiled kernels where that cannot be written.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vita_audio.engines.manifest import package_version
from vita_audio.engines.torch_cuda.cuda_graphs import Capturer
from vita_audio.engines.torch_cuda.fp8 import Fp8Matrix, Matrix, part
from vita_audio.engines.torch_cuda.kernels import linear
from vita_audio.engines.torch_cuda.kernels.compile_cache import cache_folder
from vita_audio.engines.torch_cuda.kernels.linear import Launches
from vita_audio.engines.torch_cuda.kernels.linear_tiling import FEW_ROWS, Product, Tiling, few_rows
from vita_audio.engines.torch_cuda.kernels.operations import Operations
from vita_audio.engines.torch_cuda.kernels.self_check import disagreement
from vita_audio.engines.torch_cuda.weights import Weights

logger = logging.getLogger(__name__)

FILE, FORMAT = "linear_table.json", 1
BUDGET_S = 60.0
#: What a measurement reads at least, where there is as much: several times the L2 cache of a GPU.
_BYTES = 256 << 20
_REPEATS = 5
#: Rows of a matrix that a tiling is compared on.
_COMPARED = 2048

Table = dict[Product, Tiling | None]  # None: the reference, which is cuBLAS
#: x times a matrix, with what follows it, by cuBLAS (None) or a tiling.
Multiply = Callable[[Product, Tensor, Matrix, Tensor | None, Tiling | None], Tensor]
#: Seconds that the GPU takes for what a function launches.
Timer = Callable[[Callable[[], object]], float]


def kinds(weights: Weights, first_mctp_id: int) -> dict[Product, list[Matrix]]:
    """The matrices of each kind of product; the head of MCTP modules begins at row `first_mctp_id`."""
    made: dict[Product, list[Matrix]] = {}

    def add(matrix: Matrix, gate: bool = False, residual: bool = False) -> None:
        fp8 = isinstance(matrix, Fp8Matrix)
        n, k = (matrix.values if isinstance(matrix, Fp8Matrix) else matrix).shape
        made.setdefault(Product(n, k, fp8, gate, residual), []).append(matrix)

    for layer in (*weights.layers, *(module.layer for module in weights.modules)):
        add(layer.qkv)
        add(layer.output, residual=True)
        add(layer.gate_up, gate=True)
        add(layer.down, residual=True)
    for module in weights.modules:
        add(module.projection)
    add(weights.head)
    if weights.modules and (first_mctp_id or weights.mctp_head is not weights.head):
        add(part(weights.mctp_head, first_mctp_id - len(weights.head)))
    return made


def tuned(launches: Launches, operations: Operations, weights: Weights, first_mctp_id: int, folder: Path) -> Launches:
    """`launches` with the tilings of `weights` on their GPU: measured as `operations` launch, or kept in `folder`."""

    def multiply(product: Product, x: Tensor, weight: Matrix, residual: Tensor | None, tiling: Tiling | None) -> Tensor:
        if tiling is None:
            return linear.reference(x, weight, None, residual, product.gate, operations.gate)
        return linear.launch(x, weight, None, residual, product.gate, launches, tiling, operations.pdl)

    device = weights.embedding.device
    if weights.embedding.dtype != torch.bfloat16:
        return launches
    gpu = gpu_key(torch.cuda.get_device_name(device))
    with torch.inference_mode():
        made = table(kinds(weights, first_mctp_id), launches.processors, folder, gpu, multiply, GraphTimer(device))
    return replace(launches, tilings=made)


def table(
    matrices: dict[Product, list[Matrix]], processors: int, folder: Path, gpu: str, multiply: Multiply, timer: Timer
) -> Table:
    """What each kind takes: as it was kept for this `gpu` (see `gpu_key`), or measured now and kept."""
    known = {
        product: tiling
        for product, tiling in read(folder, gpu).items()
        if product in matrices and tiling in choices(product, processors)
    }
    missing = {product: of_kind for product, of_kind in matrices.items() if product not in known}
    if not missing:
        return known
    began = time.monotonic()
    found = measure(missing, processors, multiply, timer)
    path = write(folder, gpu, known | found)
    where = f"kept in {path}" if path else "kept nowhere, so measured again at the next start"
    took = time.monotonic() - began
    logger.info("%d of %d kinds of matrix products measured in %.1f s, %s", len(found), len(missing), took, where)
    return known | found


def choices(product: Product, processors: int) -> list[Tiling | None]:
    """What a kind may take; for FP8 cuBLAS is none, since it would write the weights out each time."""
    tilings: list[Tiling | None] = [*few_rows(product, processors)]
    return tilings if product.fp8 else [None, *tilings]


def measure(
    matrices: dict[Product, list[Matrix]],
    processors: int,
    multiply: Multiply,
    timer: Timer,
    clock: Callable[[], float] = time.monotonic,
) -> Table:
    """The fastest for each kind that is reached within BUDGET_S.

    A kind without any tiling that is right takes the reference. Where memory ran out nothing is known of it.
    """
    found: Table = {}
    end = clock() + BUDGET_S
    for product, of_kind in matrices.items():
        if clock() > end:
            break
        taken = _taken(of_kind)
        seconds: dict[Tiling | None, float] = {}
        memory_lacked = False
        for choice in choices(product, processors):
            try:
                fault = _fault(product, taken[0], choice, multiply) if choice else ""
                if not fault:
                    times = (_seconds(product, rows, taken, choice, multiply, timer) for rows in (1, FEW_ROWS))
                    seconds[choice] = sum(times)
            except Exception as error:  # noqa: BLE001 - whatever a compiler or a driver raises: the others are left
                fault = " ".join(str(error).split())[:300]
                memory_lacked |= "out of memory" in fault.lower()  # of PyTorch's allocator, or of the driver
            if fault:
                logger.warning("%s is not multiplied by %s: %s", product, choice or "cuBLAS", fault)
        if seconds:
            found[product] = min(seconds, key=lambda choice: seconds[choice])
        elif not memory_lacked:
            logger.warning("%s has no tiling that is right: its reference runs, which is slower", product)
            found[product] = None
    return found


def _taken(matrices: Sequence[Matrix]) -> list[Matrix]:
    """The first ones, until they are _BYTES."""
    made: list[Matrix] = []
    size = 0
    for matrix in matrices:
        values = matrix.values if isinstance(matrix, Fp8Matrix) else matrix
        made.append(matrix)
        size += values.nbytes
        if size >= _BYTES:
            break
    return made


def _operands(product: Product, rows: int, matrix: Matrix) -> tuple[Tensor, Tensor | None]:
    """Random rows of both types, alike each time."""
    device = (matrix.values if isinstance(matrix, Fp8Matrix) else matrix).device
    random = torch.Generator(device).manual_seed(rows)
    x = torch.randn(rows, product.k, device=device, generator=random).bfloat16()
    if not product.residual:
        return x, None
    return x, torch.randn(rows, product.columns, device=device, generator=random).bfloat16()


def _seconds(
    product: Product, rows: int, matrices: Sequence[Matrix], choice: Tiling | None, multiply: Multiply, timer: Timer
) -> float:
    x, residual = _operands(product, rows, matrices[0])
    return timer(lambda: [multiply(product, x, matrix, residual, choice) for matrix in matrices])


def _fault(product: Product, matrix: Matrix, tiling: Tiling, multiply: Multiply) -> str:
    """Where a tiling multiplies by some rows of a matrix otherwise than its reference; "" where it does not."""
    some = product._replace(n=min(product.n, _COMPARED))
    matrix = part(matrix, 0, some.n)

    def made(rows: int, choice: Tiling | None) -> Tensor:
        x, residual = _operands(some, rows, matrix)
        return multiply(some, x, matrix, residual, choice)

    faults = (disagreement(made(rows, tiling), made(rows, None)) for rows in (1, FEW_ROWS))
    return next(filter(None, faults), "")


class GraphTimer:
    """Seconds of the launches of a function, as a CUDA graph on `device`."""

    def __init__(self, device: torch.device) -> None:
        self._capturer = Capturer(device)

    def __call__(self, function: Callable[[], object]) -> float:
        graph, _ = self._capturer.capture(function)
        times = []
        for _ in range(_REPEATS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1000)
        return min(times)


def gpu_key(name: str) -> str:
    """What a table holds for: the GPU, and what compiles and multiplies on it."""
    return f"{name}, torch {torch.__version__}, triton {package_version('triton')}"


def read(folder: Path, gpu: str) -> Table:
    """What is kept for a GPU; nothing where there is no file, or one that is not a table."""
    for path in (folder / FILE, cache_folder() / FILE):
        kept = _stored(path).get(gpu)
        try:
            if kept is not None:
                return {_product(entry): entry["tiling"] and Tiling(*entry["tiling"]) for entry in kept}
        except (KeyError, TypeError, ValueError) as error:
            logger.warning("%s is not a table of matrix products (%s), and measured again", path, error)
    return {}


def _product(entry: dict[str, Any]) -> Product:
    return Product(**{name: entry[name] for name in Product._fields})


def _stored(path: Path) -> dict[str, Any]:
    """The file as it is: GPU -> entries."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s), and is measured again", path, type(error).__name__)
        return {}
    gpus = content.get("gpus") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(gpus, dict):
        logger.warning("%s is not a table of matrix products of format %d, and measured again", path, FORMAT)
        return {}
    return gpus


def write(folder: Path, gpu: str, made: Table) -> Path | None:
    """Keep a table beside those of other GPUs; the file, None where none can be written."""
    entries = [{**product._asdict(), "tiling": tiling} for product, tiling in sorted(made.items())]
    for path in (folder / FILE, cache_folder() / FILE):
        text = json.dumps({"format": FORMAT, "gpus": {**_stored(path), gpu: entries}}, indent=1) + "\n"
        scratch = path.with_name(f".{FILE}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(path)
        except OSError:
            continue
        return path
    return None
