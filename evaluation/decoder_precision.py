"""What the number formats of the torch_cuda audio decoder cost in word errors, on a CPU: same codes, same noise.

    python -m evaluation.decoder_precision --data DATA --engines engines/cpu --checkpoint checkpoints/small --out FILE

A server with CPU engines reads sentences aloud in boost; each format decodes the codes of its answers as a server does,
chunk by chunk. Half precision is
PyTorch's own on the CPU: it rounds as a GPU does, but sums in another order. A CPU has no TF32.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.__main__ import make_evaluators
from evaluation.asr_evaluators import EVALUATORS
from evaluation.case import Case
from evaluation.held_out import load_cases
from evaluation.serving import ask_all
from server.launch import TritonServer
from server.options import ServerOptions
from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder
from vita_audio.checkpoint.configs import AUDIO_DECODER
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.engines.audio_precision import BF16, FLOAT32, FP16
from vita_audio.engines.manifest import load_manifest
from vita_audio.engines.torch_cuda.audio import TorchCudaFlow, TorchCudaVocoder
from vita_audio.machine import describe_machine

CPU = torch.device("cpu")


def decode(checkpoint: Path, precision: str, codes: list[list[int]], cases: list[Case]) -> list[NDArray[np.int16]]:
    """Each case's codes with the noise of its seed."""
    decoder = StreamingDecoder(
        TorchCudaFlow(*load_flow(checkpoint / AUDIO_DECODER), CPU, precision),
        TorchCudaVocoder(*load_vocoder(checkpoint / AUDIO_DECODER), CPU, precision),
        streams=2,
    )
    made = []
    for case, own in zip(cases, codes, strict=True):
        state = decoder.init(case.seed)
        made.append(np.concatenate([decoder.push(state, own), decoder.finish(state)]))
    return made


def measure(data: Path, engines: Path, checkpoint: Path, limit: int) -> dict[str, object]:
    """The record: word error rates by format and evaluator, and how far samples are from float32's."""
    cases = [case for case in load_cases(data, limit) if case.kind == "tts"]
    vocabulary = load_manifest(engines).vocabulary
    with TritonServer(ServerOptions(engines=engines, grpc_port=0, metrics_port=0)) as server:
        outcomes = list(ask_all(server.grpc_url, cases, "boost", None))
    codes = [
        [code for token in outcome.tokens if (code := vocabulary.audio_code(token)) is not None] for outcome in outcomes
    ]
    rows, exact = [], None
    with make_evaluators(data, processes=1) as asr:
        for precision in (FLOAT32, FP16, BF16):
            start = time.perf_counter()
            made = decode(checkpoint, precision, codes, cases)
            exact = exact or made
            pairs = [(one.astype(float), other.astype(float)) for one, other in zip(made, exact, strict=True)]
            row: dict[str, object] = {
                "precision": precision,
                "difference_rms": float(np.sqrt(np.mean([np.mean((a - b) ** 2) for a, b in pairs]))) / 32767,
                "signal_rms": float(np.sqrt(np.mean([np.mean(b**2) for _, b in pairs]))) / 32767,
                "seconds": time.perf_counter() - start,
            }
            waves = [(one.astype(np.float32) / 32768, OUTPUT_SAMPLE_RATE_HZ) for one in made]
            for evaluator in EVALUATORS:
                texts = asr.transcribe(waves, evaluator)
                errors = [asr.errors(case.reference, text) for case, text in zip(cases, texts, strict=True)]
                row[evaluator] = sum(one.edits for one in errors) / sum(one.words for one in errors)
            rows.append(row)
            print(json.dumps(row), flush=True)
    words = sum(len(case.reference.split()) for case in cases)
    options = f"--data DATA --engines {engines} --checkpoint {checkpoint} --limit {limit} --out FILE"
    command = f"python -m evaluation.decoder_precision {options}"
    machine, today = describe_machine(), date.today().isoformat()
    return {
        "command": command,
        "machine": machine,
        "date": today,
        "sentences": len(cases),
        "words": words,
        "rows": rows,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.decoder_precision")
    parser.add_argument("--data", type=Path, required=True, help="data folder of a training (docs/training.md)")
    parser.add_argument("--engines", type=Path, default=Path("engines/cpu"), help="CPU engines of the checkpoint")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=24, help="sentences")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    record = measure(options.data, options.engines, options.checkpoint, options.limit)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
