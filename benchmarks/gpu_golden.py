"""Golden language model cases through the fixed-shape engine on this machine's device, and how far bf16 agrees.

    python -m benchmarks.gpu_golden tests/golden/language_model

Float32 must give every golden token, alone and batched; bf16 is reported as the share of cases and of tokens before the
first difference.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper_setting import greedy_request
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.settings import Settings
from vita_audio.engines.torch_cuda.weights import load_weights
from vita_audio.generation.scheduler import Scheduler

SLOTS = 8


def generate(engine: TorchCudaLanguageModel, cases: list[dict[str, Any]]) -> list[list[int]]:
    """All cases together, as many at once as there are slots."""
    scheduler = Scheduler(engine, end_tokens=())
    streams = []
    for case in cases:
        request = greedy_request(
            case["prompt"], tuple(case["pattern"]), len(case["tokens"]), case["repetition_penalty"]
        )
        streams.append(scheduler.submit("", request))
    while not scheduler.idle:
        scheduler.step()
    return [stream.tokens[stream.prompt_tokens :] for stream in streams]


def agreement(made: list[int], expected: list[int]) -> int:
    """Tokens before the first difference."""
    return next((i for i, (a, b) in enumerate(zip(made, expected, strict=True)) if a != b), len(expected))


def check(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """(equal cases, cases, tokens before the first difference, tokens) of one golden checkpoint, batched."""
    config, tensors = load_language_model(folder)
    cases = json.loads((folder / "greedy_tokens.json").read_text())
    weights = load_weights(config, tensors, device, dtype)
    made = generate(TorchCudaLanguageModel(config, weights, Settings(SLOTS, 512)), cases)
    same = [agreement(tokens, case["tokens"]) for tokens, case in zip(made, cases, strict=True)]
    equal = sum(count == len(case["tokens"]) for count, case in zip(same, cases, strict=True))
    return equal, len(cases), sum(same), sum(len(case["tokens"]) for case in cases)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("golden", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    folders = sorted(path.parent for path in options.golden.rglob("greedy_tokens.json"))
    if not folders:
        parser.error(f"{options.golden}: no greedy_tokens.json below it")
    exact = True
    for folder in folders:
        for dtype in (torch.float32, torch.bfloat16):
            equal, cases, same, tokens = check(folder, torch.device(options.device), dtype)
            exact &= dtype is not torch.float32 or equal == cases
            name = str(dtype).removeprefix("torch.")
            print(f"{folder.name}, {options.device}, {name}: {equal} of {cases} cases equal, {same} of {tokens} tokens")
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
