"""The language model alone: tokens/s of the four modes, as the paper's Table 5 measures it, on the served CPU engine.

    python -m benchmarks.language_model --engines engines/cpu

No Triton, no decoder: the scheduler over ONNX Runtime, greedy, a fixed output length; prefill is not counted.
Repeats go over all modes in turn and a cell is their median, so that a noisy machine touches all modes alike.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.decode_speed import tokens_per_s
from benchmarks.record import Results, record_head
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.engines.manifest import load_manifest
from vita_audio.engines.onnxruntime.language_model import OnnxLanguageModel


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=Path, default=Path("engines/cpu"))
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5, help="of every cell, modes in turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the rows as JSON here")
    options = parser.parse_args()
    results = Results(options.out, {**record_head("benchmarks.language_model"), "threads": options.threads, "rows": []})
    context = load_manifest(options.engines).limits.context_tokens
    folder = options.engines / "language_model"
    engine = OnnxLanguageModel(folder, max(options.streams), context, options.threads)
    table = Table("streams", *NAMED_MODES, *(f"{mode} / vanilla" for mode in NAMED_MODES if mode != "vanilla"))
    for streams in options.streams:
        made = [
            {mode: tokens_per_s(engine, mode, options.tokens, streams).per_s for mode in NAMED_MODES}
            for _ in range(options.repeats)
        ]
        speed = {mode: float(np.median([r[mode] for r in made])) for mode in NAMED_MODES}
        ratios = [np.median([r[mode] / r["vanilla"] for r in made]) for mode in NAMED_MODES if mode != "vanilla"]
        results.save(rows=[*results.fields["rows"], {"streams": streams, "tokens_per_s": speed}])
        table.add_row(str(streams), *(f"{speed[m]:.0f} tok/s" for m in NAMED_MODES), *(f"{r:.2f}x" for r in ratios))
    console = Console(width=max(120, Console().width))
    record = results.fields
    console.print(f"{record['command']}\n{record['machine']}, {options.threads} thread(s), {record['date']}", table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
