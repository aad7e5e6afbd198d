"""What a GPU can do at most, computed before anything is measured: tokens/s from a token's bytes and arithmetic.

    python -m benchmarks.roofline --bandwidth 3.35 --tflops 700

Every backbone step reads all backbone weights and the head, every MCTP module its own layer and the head, and both the
caches of their layers; every row is multiplied with all of them but the head, which takes the last row of a stream. A
call takes as long as the larger of both: bytes by bandwidth, or operations by the speed of a large product. Launches
and everything else count as free, so no measured number is above these.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.sizes import HALF_B, RELEASED
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.text.vocabulary import BASE


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A language model as the paper measures it. `first_audio_id`: where the audio-only head begins."""

    config: LanguageModelConfig
    first_audio_id: int


#: The sizes of the paper, and one for tests.
SIZES: dict[str, ModelSize] = {
    "7b": ModelSize(RELEASED.language_model, BASE.text_tokens),
    "0.5b": ModelSize(HALF_B.language_model, BASE.text_tokens),
    "tiny": ModelSize(LanguageModelConfig(600, 64, 96, 3 + 10, 4, 2, 10, 1024), 400),
}

#: Paper, Table 5: tokens/s of Hugging Face code with FlashAttention-2, 4096 tokens, one 148-TFLOPS (bf16) GPU.
PAPER_TOKENS_PER_S: dict[str, dict[str, float]] = {
    "7b": {"vanilla": 64.6, "balance": 171.1, "boost": 170.9, "turbo": 305.0},
    "0.5b": {"vanilla": 76.0, "balance": 197.8, "boost": 198.4, "turbo": 346.2},
}


#: What of a model FP8 weights may be kept of; the rest stays bf16.
FP8_PARTS = ("backbone", "modules", "head")
#: Bytes of a weight, and of each output of its matrix (the scale of an FP8 row).
WEIGHT_BYTES = {"float32": (4, 0), "bf16": (2, 0), "fp8": (1, 4)}


class Formats(NamedTuple):
    """Numbers that matrices are kept in; everything else (norms, biases, caches, rows) has `state`'s."""

    backbone: str = "bf16"  # layers
    modules: str = "bf16"  # MCTP layers and projections
    head: str = "bf16"  # of the MCTP modules
    backbone_head: str = "bf16"
    state: str = "bf16"


#: As a checkpoint is served by default; on a CPU all numbers are float32.
BF16, FLOAT32 = Formats(), Formats(*["float32"] * 5)


class Cost(NamedTuple):
    """What a call must do: bytes of weights and caches, and floating-point operations (a multiply-add is two)."""

    moved: float
    operations: float

    def times(self, count: int) -> Cost:
        return Cost(count * self.moved, count * self.operations)


class Peaks(NamedTuple):
    """What the device reached in this run: bytes/s of a copy, and operations/s of a large matrix product."""

    bandwidth: float
    operations: float

    def seconds(self, cost: Cost) -> float:
        """The least a call can take: no part of it overlaps another call."""
        return max(cost.moved / self.bandwidth, cost.operations / self.operations)

    def bound(self, cost: Cost) -> str:
        """What limits a call."""
        return "memory" if cost.moved / self.bandwidth >= cost.operations / self.operations else "compute"


class _Part(NamedTuple):
    """A group of matrices and vectors: bytes to read, and multiply-adds of each row."""

    stored: int
    weights: int


@dataclass(frozen=True, slots=True)
class Work:
    """One forward of each part. Bytes are those of any number of rows."""

    backbone: _Part  # all layers and the final norm, without the head
    module: _Part  # one MCTP module with the final norm, without the head
    head: _Part
    mctp_head: _Part
    audio_head: _Part
    modules: int
    cache: int  # bytes of one token in the cache of one layer
    layers: int  # of the backbone
    attended: int  # multiply-adds of one row and one token in the cache of one layer

    def step(self, streams: int = 1, rows: int = 1, context: float = 0) -> Cost:
        """One backbone step of `rows` rows of each stream, which samples."""
        return self._forward(self.backbone, self.head, self.layers, streams, rows, context)

    def burst(self, streams: int = 1, rows: int = 1, context: float = 0, audio_head: bool = False) -> Cost:
        """One run of all modules over `rows` rows of each stream."""
        head = self.audio_head if audio_head else self.mctp_head
        return self._forward(self.module, head, 1, streams, rows, context).times(self.modules)

    def _forward(self, part: _Part, head: _Part, layers: int, streams: int, rows: int, context: float) -> Cost:
        read = streams * context * layers
        moved = part.stored + head.stored + read * self.cache
        multiplied = streams * (rows * part.weights + head.weights) + rows * read * self.attended
        return Cost(moved, 2 * multiplied)

    def cycle(self, mode: str, streams: int, context: float, audio_head: bool) -> tuple[tuple[Cost, int], ...]:
        """The calls of the pair of a mode that repeats for ever, each with how often; see `cycle_tokens`.

        The first backbone step reads the tokens of the burst before, and a burst every token since the last one.
        """
        backbone, burst = NAMED_MODES[mode][-2:]
        if not burst:
            return ((self.step(streams, 1, context), 1),)
        return (
            (self.step(streams, burst + 1, context), 1),
            (self.step(streams, 1, context), backbone - 1),
            (self.burst(streams, backbone + burst, context, audio_head), 1),
        )


def cycle_tokens(mode: str) -> int:
    """Tokens that a stream makes in `Work.cycle`."""
    backbone, burst = NAMED_MODES[mode][-2:]
    return backbone + burst if burst else 1


def work(size: ModelSize, formats: Formats) -> Work:
    """Bytes and operations of a model's parts."""
    c = size.config
    hidden, kv, state = c.hidden_size, c.num_key_value_heads * c.head_dim, WEIGHT_BYTES[formats.state][0]
    queries = c.num_attention_heads * c.head_dim
    layer = ((queries + 2 * kv, hidden), (hidden, queries), (2 * c.intermediate_size, hidden),
             (hidden, c.intermediate_size))  # fmt: skip
    vectors = (queries + 2 * kv) + 2 * hidden  # biases of q, k and v, two norms

    def part(matrices: tuple[tuple[int, int], ...], form: str, times: int = 1, others: int = 0) -> _Part:
        each, output = WEIGHT_BYTES[form]
        weights = times * sum(rows * columns for rows, columns in matrices)
        outputs = times * sum(rows for rows, _ in matrices)
        return _Part(each * weights + output * outputs + state * others, weights)

    return Work(
        backbone=part(layer, formats.backbone, c.backbone_layers, c.backbone_layers * vectors + hidden),
        # Two more norms at the entry, and the shared final norm is read again.
        module=part((*layer, (hidden, 2 * hidden)), formats.modules, 1, vectors + 3 * hidden),
        head=part(((c.vocab_size, hidden),), formats.backbone_head),
        mctp_head=part(((c.vocab_size, hidden),), formats.head),
        audio_head=part(((c.vocab_size - size.first_audio_id, hidden),), formats.head),
        modules=c.mctp_modules,
        cache=2 * kv * state,
        layers=c.backbone_layers,
        attended=2 * queries,
    )


def tokens_per_s(
    parts: Work, mode: str, peaks: Peaks, streams: int = 1, context: float = 0, audio_head: bool = False
) -> float:
    """The most tokens/s of all streams together, `context` tokens in each cache on average."""
    seconds = sum(times * peaks.seconds(cost) for cost, times in parts.cycle(mode, streams, context, audio_head))
    return streams * cycle_tokens(mode) / seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bandwidth", type=float, default=3.35, help="TB/s (H100 SXM: 3.35, H200: 4.8)")
    parser.add_argument("--tflops", type=float, default=700.0, help="TFLOP/s in bf16 that a large product reaches")
    parser.add_argument("--size", choices=[name for name in SIZES if name != "tiny"], default="7b")
    parser.add_argument("--context", type=int, default=0, help="tokens in each stream's cache on average")
    parser.add_argument("--fp8", nargs="*", choices=FP8_PARTS, default=[], help="parts that are kept in FP8")
    options = parser.parse_args()
    parts = work(SIZES[options.size], BF16._replace(**dict.fromkeys(options.fp8, "fp8")))
    peaks = Peaks(options.bandwidth * 1e12, options.tflops * 1e12)
    table = Table("streams", "mode", "full head tok/s", "audio-only head tok/s", "/ vanilla (audio-only)")
    for streams in (1, 8, 32, 64):
        for mode in NAMED_MODES:
            full, sliced, vanilla = (
                tokens_per_s(parts, m, peaks, streams, options.context, audio)
                for m, audio in ((mode, False), (mode, True), ("vanilla", False))
            )
            table.add_row(str(streams), mode, f"{full:.0f}", f"{sliced:.0f}", f"{sliced / vanilla:.2f}x")
    console = Console()
    kept = f"FP8: {', '.join(options.fp8) or 'nothing'}, the rest bf16"
    console.print(
        f"{options.size}, {kept}, {options.bandwidth} TB/s, {options.tflops:g} TFLOP/s, {options.context} tokens of "
        "context: upper bounds"
    )
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
