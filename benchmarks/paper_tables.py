"""The paper's speed tables on this machine: Table 5 (tokens/s of the modes) and Table E7 (time to the first sound);
beside them what explains them: single calls, their kernels, what each kernel is worth, and what a server prepares.

    python -m benchmarks.paper_tables --size 7b --out benchmarks/results      (one GPU, under 10 minutes)
    python -m benchmarks.paper_tables --size tiny --out DIR                   (any CPU, seconds: shows that it runs)

Random weights: speed does not depend on them. The engine is the one that serves, with a server's slots, context and
shapes, in one or several variants (`--variants`) and beside an eager baseline, over the same weights in the same run;
every number stands beside what this run's memory bandwidth and matrix products allow. What does not fit the time budget
is reported as not measured.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.gpu_device import copy_bandwidth, datasheet_peaks, product_speed
from benchmarks.paper_audio import audio_rows
from benchmarks.paper_language_model import HEADS, LanguageModelBench, Row, Served
from benchmarks.paper_report import kernels, render
from benchmarks.paper_variants import VARIANTS, Variants
from benchmarks.record import record_head
from benchmarks.roofline import SIZES, Peaks
from vita_audio.checkpoint.random_weights.language_model import RandomLanguageModel
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.engines.torch_cuda.kernels.names import NAMES
from vita_audio.machine import describe_device

PARTS = (
    "steps",
    "bisect",
    "host",
    "profile",
    "table5",
    "first_chunk",
    "audio",
    "prepare",
    "baseline",
    "batch",
    "heads",
)


@dataclass(slots=True)
class Budget:
    """Seconds a run may take: a measurement is started while there are any, and lasts `each_s` at most."""

    total_s: float
    each_s: float
    start: float

    @property
    def over(self) -> bool:
        return time.perf_counter() - self.start > self.total_s

    @property
    def limit_s(self) -> float:
        return max(1.0, min(self.each_s, self.total_s - (time.perf_counter() - self.start)))

    def take(self, rows: Iterator[Row], blanks: Sequence[Row]) -> Iterator[Row]:
        """Measured rows while the budget lasts, then the blanks that stand for the others."""
        for blank in blanks:
            yield blank if self.over else next(rows)


def measure(
    options: argparse.Namespace, device: torch.device, budget: Budget, folder: Path
) -> Iterator[dict[str, Any]]:
    """The record as plain data, again after each row; a part that fails is noted and the others still run."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    peaks = Peaks(copy_bandwidth(device), product_speed(device, dtype))
    datasheet = datasheet_peaks(device)
    served = Served(max(options.slots, *options.streams), options.slot_context, options.prefill_chunk, folder)
    record: dict[str, Any] = {
        **record_head("benchmarks.paper_tables", machine=describe_device(device)),
        "size": options.size,
        "name": options.name,
        "dtype": str(dtype).removeprefix("torch."),
        "variants": options.variants,
        "kernels_off": options.kernels_off,
        "slots": served.slots,
        "slot_context": served.context,
        "copy_tb_s": peaks.bandwidth / 1e12,
        "product_tflop_s": peaks.operations / 1e12,
        "datasheet_tb_s": datasheet[0] if datasheet else None,
        "datasheet_tflop_s": datasheet[1] if datasheet else None,
        "tokens": options.tokens,
        "baseline_tokens": options.baseline_tokens,
        "faults": {},
    }
    variants = None
    if options.parts != ["audio"]:
        size, off = SIZES[options.size], frozenset(options.kernels_off)
        source = RandomLanguageModel(size.config, device)
        variants = Variants(options.variants, size, source, device, peaks, served, off)
        forward = variants.first.engine(False).forward
        record |= {"attention": forward.attention, "kernels_found_off": sorted(forward.kernels_off)}
    for part in options.parts:
        record[part] = []
        try:
            for row in _PARTS[part](variants, options, budget):
                record[part].append(row)
                yield record
        except Exception as error:  # noqa: BLE001 - noted in the record; a GPU session must not lose its other numbers
            record["faults"][part] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        print(f"{part}: {time.perf_counter() - budget.start:.0f} s", file=sys.stderr, flush=True)
        yield record


def _table_5(variants: Variants, options: argparse.Namespace, budget: Budget) -> Iterator[Row]:
    for bench in variants:
        yield from _modes(bench, options.tokens, 1, budget)


def _batch(variants: Variants, options: argparse.Namespace, budget: Budget) -> Iterator[Row]:
    for streams in options.streams:
        for bench in variants:
            yield from _modes(bench, options.batch_tokens, streams, budget)


def _modes(bench: LanguageModelBench, tokens: int, streams: int, budget: Budget) -> Iterator[Row]:
    for audio_head, head in enumerate(HEADS):
        # Vanilla runs no module; where the budget ends early, the modes that the paper is about come first.
        modes = [mode for mode in ("turbo", "boost", "vanilla", "balance") if not (audio_head and mode == "vanilla")]
        rows = bench.table_5(modes, tokens, streams, bool(audio_head), budget.limit_s)
        blank = {"implementation": bench.variant, "streams": streams, "head": head}
        yield from budget.take(rows, [{**blank, "mode": mode} for mode in modes])


def _baseline(variants: Variants, options: argparse.Namespace, budget: Budget) -> Iterator[Row]:
    modes = list(NAMED_MODES)[::-1]  # the slowest last: the budget may end
    rows = variants.first.baseline(modes, options.baseline_tokens, budget.limit_s)
    blank = {"implementation": "eager baseline", "streams": 1, "head": "full"}
    yield from budget.take(rows, [{**blank, "mode": mode} for mode in modes])


def _steps(variants: Variants, options: argparse.Namespace, budget: Budget) -> Iterator[Row]:
    for streams in sorted({1, *options.streams}):
        for bench in variants:
            rows = bench.steps(streams, options.context, options.repeats)
            yield from budget.take(rows, [{"call": "-", "implementation": bench.variant, "streams": streams}] * 5)


def _bisect(variants: Variants, options: argparse.Namespace, budget: Budget) -> Iterator[Row]:
    for name, bench in variants.one_off():
        row = {"off": name, "implementation": variants.names[0]}
        yield row if budget.over else row | bench.step_and_burst(options.context, options.repeats)


def _host(variants: Variants, options: argparse.Namespace, budget: Budget) -> Iterator[Row]:
    for streams in sorted({1, *options.streams}):
        rows = variants.first.host_shares(streams, options.context, options.repeats)
        yield from budget.take(rows, [{"call": "-", "streams": streams}] * 5)


def _profile(variants: Variants, options: argparse.Namespace, budget: Budget) -> Iterator[Row]:
    for streams in sorted({1, min(options.streams)}):
        for bench in variants:
            rows = bench.profiles(streams, options.context)
            yield from budget.take(rows, [{"call": "-", "implementation": bench.variant, "streams": streams}] * 4)


def _prepare(variants: Variants, options: argparse.Namespace, budget: Budget) -> Iterator[Row]:
    slots = max(options.slots, *options.streams)
    yield {"slots": slots} if budget.over else variants.first.prepare(slots, True)


def _first_chunk(variants: Variants, options: argparse.Namespace, budget: Budget) -> Iterator[Row]:
    for bench in variants:
        for audio_head, head in reversed(list(enumerate(HEADS))):
            for mode in ("boost", "turbo", "vanilla", "balance"):
                if not (audio_head and mode == "vanilla"):
                    took = None if budget.over else bench.first_chunk_ms(mode, bool(audio_head), options.repeats)
                    yield {"implementation": bench.variant, "mode": mode, "head": head, "ms": took}
    for mode in ("vanilla", "boost"):
        took = None if budget.over else variants.first.baseline_first_chunk_ms(mode, max(1, options.repeats // 4))
        yield {"implementation": "eager baseline", "mode": mode, "head": "full", "ms": took}


def _audio(_: Variants | None, options: argparse.Namespace, budget: Budget) -> Iterator[Row]:
    rows = audio_rows(
        torch.device(options.device), options.size == "tiny", max(1, options.repeats // 2), min(options.streams)
    )
    for row in rows:
        yield row
        if budget.over:
            return


def _heads(variants: Variants, options: argparse.Namespace, budget: Budget) -> Iterator[Row]:
    for mode in ("boost", "turbo"):
        for text_banned in (True, False):
            blank = {"mode": mode, "full_head": "audio ids only" if text_banned else "free"}
            yield blank if budget.over else variants.first.head_agreement(mode, options.bursts, text_banned)


_PARTS: dict[str, Callable[..., Iterator[Row]]] = {
    "steps": _steps,
    "bisect": _bisect,
    "host": _host,
    "profile": _profile,
    "table5": _table_5,
    "first_chunk": _first_chunk,
    "audio": _audio,
    "prepare": _prepare,
    "batch": _batch,
    "heads": _heads,
    "baseline": _baseline,
}


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tokens", type=int, default=4096, help="output of Table 5, batch 1")
    parser.add_argument("--baseline-tokens", type=int, default=1024, help="output of the eager baseline")
    parser.add_argument("--streams", type=int, nargs="+", default=[8, 32, 64], help="batches beside 1")
    parser.add_argument("--batch-tokens", type=int, default=512, help="output of each stream of a batch")
    parser.add_argument("--context", type=int, default=2048, help="cache length of the single steps")
    parser.add_argument("--prefill-chunk", type=int, default=256, help="prompt tokens of a step, for what is prepared")
    parser.add_argument("--slots", type=int, default=64, help="of the engine, as a server has them")
    parser.add_argument("--slot-context", type=int, default=4096, help="tokens of a slot")
    parser.add_argument("--variants", nargs="+", default=["kernels"], choices=VARIANTS, help="measured side by side")
    parser.add_argument("--bursts", type=int, default=100, help="bursts compared between the two heads")
    parser.add_argument("--repeats", type=int, default=20, help="of each short measurement (median)")
    parser.add_argument(
        "--kernels-off", nargs="+", default=[], choices=NAMES, help="run these as their references, always"
    )
    parser.add_argument("--budget", type=float, default=540.0, help="seconds; later measurements are left out")
    parser.add_argument("--each", type=float, default=60.0, help="seconds one mode of a table may take")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--name", default="", help="ends the names of the files, so that runs do not replace each other"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for the JSON and Markdown of this run")
    options = parser.parse_args(arguments)
    if options.size == "tiny":  # a model of this size holds 1024 tokens
        for name, most in (
            ("tokens", 64),
            ("baseline_tokens", 24),
            ("batch_tokens", 24),
            ("context", 128),
            ("prefill_chunk", 16),
            ("slots", 2),
            ("slot_context", 256),
        ):
            setattr(options, name, min(getattr(options, name), most))
    elif torch.device(options.device).type == "cpu":
        parser.error(f"--size {options.size} needs a CUDA device; --size tiny runs on a CPU")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    console = Console(width=max(140, Console().width))
    budget = Budget(options.budget, options.each, time.perf_counter())
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vita-paper-tables-") as folder:
        for record in measure(options, torch.device(options.device), budget, Path(folder)):
            if options.out:
                _save(record, options.out)
    console.print(Markdown(render(record)))
    return 1 if record["faults"] else 0


def _save(record: dict[str, Any], folder: Path) -> None:
    """Write JSON and Markdown, named after size, device and what is switched off."""
    folder.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "_", record["machine"].split(",")[0].lower()).strip("_")
    stem = f"paper_tables_{record['size'].replace('.', '_')}_{device}" + "_some_off" * bool(record["kernels_off"])
    stem += f"_{record['name']}" if record["name"] else ""
    (folder / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{stem}.md").write_text(render(record))
    if "profile" in record:
        (folder / f"{stem.replace('paper_tables', 'kernels')}.txt").write_text(kernels(record))


if __name__ == "__main__":
    sys.exit(main())
