"""Conversion to TensorRT-LLM checkpoints at the width of the released 7B: time and peak memory.

    python -m benchmarks.convert_tensorrt_llm --layers 2 --modules 1 --out benchmarks/results/convert_tensorrt_llm.json

Makes a checkpoint of random weights with the released widths and few layers, converts it with the command a user runs,
and deletes both. Each conversion is a process of its own, so that its peak memory is its own. No more than one module
is held at a time, so more layers add time, not memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.record import Results, record_head
from build_engines.tensorrt_llm.formats import FORMATS
from build_engines.tensorrt_llm.layout import Part
from build_engines.tensorrt_llm.plan import Plan
from build_engines.tensorrt_llm.scales import save_scales
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import language_model_shapes
from vita_audio.checkpoint.tensor_file import RankFile
from vita_audio.machine import describe_machine

#: As users quantise: (what linear layers become, ranks).
RUNS = (("none", 1), ("none", 4), ("fp8", 1), ("w4a16_awq", 1))


@dataclass(frozen=True, slots=True)
class Row:
    """One conversion, a process of its own."""

    command: str
    linear_layers: str
    tp: int
    seconds: float
    cpu_seconds: float
    peak_gib: float
    written_gb: float


def released_width(layers: int, modules: int) -> LanguageModelConfig:
    """The released 7B sizes with fewer layers (docs/model.md)."""
    return LanguageModelConfig(
        vocab_size=168_072,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=layers + modules,
        num_attention_heads=28,
        num_key_value_heads=4,
        num_nextn_predict_layers=modules,
        max_position_embeddings=32_768,
    )


def write_checkpoint(folder: Path, config: LanguageModelConfig) -> None:
    """Random bf16 weights in the released layout."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_mtp", **asdict(config)}))
    outline = {key: (shape, torch.bfloat16) for key, shape in language_model_shapes(config).items()}
    drawn = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).bfloat16() * 0.02  # repeated: it is quick

    def weight(shape: tuple[int, ...]) -> Tensor:
        return drawn.repeat(-(-prod(shape) // len(drawn)))[: prod(shape)].view(shape)

    with RankFile(folder / "model.safetensors", outline) as file:
        for key, (shape, _) in outline.items():
            file.write(key, weight(shape))


def write_scales(path: Path, config: LanguageModelConfig, form: str) -> None:
    """A plausible number for each scale: conversion takes as long with any."""
    plans = [Plan(part, config, linear_format=FORMATS[form]) for part in Part]
    shapes = {name: shape for plan in plans for name, shape in plan.scale_shapes.items()}
    save_scales(path, {name: torch.full(shape, 0.1 / 7 if len(shape) == 2 else 1.0) for name, shape in shapes.items()})


def measure(checkpoint: Path, form: str, tp: int, folder: Path, config: LanguageModelConfig) -> Row:
    """Convert in a process of its own; the result is deleted."""
    out, scales = folder / "out", folder / "scales.safetensors"
    options = ["--backbone", form, "--mctp", form, "--tp", str(tp)]
    if form != "none":
        write_scales(scales, config, form)
        options += ["--scales", str(scales)]
    command = ["-m", "build_engines.tensorrt_llm.convert", "--checkpoint", str(checkpoint), "--out", str(out), *options]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)}: failed")
    written = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    shutil.rmtree(out)
    shown = shlex.join(["python", *command]).replace(str(folder), "DIR")
    return Row(shown, form, tp, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20, written / 1e9)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="backbone layers (released: 28)")
    parser.add_argument("--modules", type=int, default=1, help="MCTP modules (released: 10)")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is made (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    options = parser.parse_args()
    config = released_width(options.layers, options.modules)
    machine = f"{describe_machine()}, {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s)"
    facts = record_head("benchmarks.convert_tensorrt_llm", machine=machine) | {
        "niceness": os.nice(0),
        "config": asdict(config),
    }
    results = Results(options.out, facts)
    table = Table("linear layers", "GPUs", "s", "CPU s", "peak GiB", "written GB")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        # Beside this process: a child's peak memory counts from that of the process that started it.
        maker = multiprocessing.get_context("spawn").Process(
            target=write_checkpoint, args=(folder / "released", config)
        )
        maker.start()
        maker.join()
        results.save(checkpoint_gb=(folder / "released" / "model.safetensors").stat().st_size / 1e9)
        for form, tp in RUNS:
            row = measure(folder / "released", form, tp, folder, config)
            numbers = (row.seconds, row.cpu_seconds, row.peak_gib, row.written_gb)
            table.add_row(row.linear_layers, str(row.tp), *(f"{number:.2f}" for number in numbers))
            rows.append(row)
            results.save(load_average=os.getloadavg()[0], rows=[asdict(row) for row in rows])
    console = Console(width=max(120, Console().width))
    console.print(facts["command"], f"{machine}, {facts['date']}", table, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
