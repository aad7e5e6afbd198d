"""What a step of turbo costs the host beside the device: grouping rows, filling the inputs of programs, reading tokens.

    python -m benchmarks.step_on_host --streams 64

The torch_cuda engine with programs that compute nothing, so that what is left is the host's. A step is a burst and an
extend of 11 rows for every stream. A cell is the least of several medians: other processes only ever add.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from unittest import mock

import torch
from torch import Tensor

from benchmarks.record import record_head
from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.language_model import language_model_shapes
from vita_audio.engines.interface import BurstRow, ExtendRow, Sampling
from vita_audio.engines.torch_cuda.cuda_graphs import Program
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.weights import load_weights

CONFIG = LanguageModelConfig(300, 64, 96, 1 + 10, 4, 2, 10, 1024)
SAMPLINGS = {"greedy": Sampling(), "sampled": Sampling(temperature=1.0, top_k=50)}
STEPS = 40


def step_us(engine: TorchCudaLanguageModel, sampling: Sampling) -> float:
    """Median of some steps of all slots."""
    slots, modules, took = range(engine.slots), engine.mctp_modules, []
    for slot in slots:
        engine.begin(slot, replace(sampling, seed=slot))
    engine.extend([ExtendRow(slot, 0, [1] * (modules + 2), 0) for slot in slots])
    for start in range(1, 1 + STEPS * (modules + 1), modules + 1):
        stop, tokens = start + modules + 1, [5] * (modules + 1)
        bursts = [BurstRow(slot, start, stop, tokens, modules, start) for slot in slots]
        extends = [ExtendRow(slot, stop, tokens, start + modules) for slot in slots]
        begin = time.perf_counter()
        engine.burst(bursts)
        engine.extend(extends)
        took.append(1e6 * (time.perf_counter() - begin))
    for slot in slots:
        engine.release(slot)
    return statistics.median(took)


def nothing(program: Program) -> Tensor:
    """In place of `Program.run`: the copy of the inputs, and tokens of that shape."""
    program._buffer.copy_(program._staging)
    return torch.zeros(len(program.inputs["slot"]), CONFIG.mctp_modules, dtype=torch.int64)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args(arguments)
    if options.streams < 1 or options.repeats < 1:
        parser.error("--streams, --repeats: at least 1")
    torch.set_num_threads(1)
    tensors = {key: torch.zeros(shape) for key, shape in language_model_shapes(CONFIG).items()}
    weights = load_weights(CONFIG, tensors, torch.device("cpu"), torch.float32)
    engine = TorchCudaLanguageModel(CONFIG, weights, Settings(options.streams, CONFIG.max_position_embeddings))
    made: dict[str, list[float]] = {name: [] for name in SAMPLINGS}
    with mock.patch.object(Program, "run", nothing):
        for _ in range(options.repeats):
            for name, sampling in SAMPLINGS.items():
                made[name].append(step_us(engine, sampling))
    print(f"{record_head('benchmarks.step_on_host', arguments)['machine']}, {options.streams} streams")
    for name, medians in made.items():
        print(f"{name}: {min(medians):.0f} us a step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
