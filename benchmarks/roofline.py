"""What a GPU can do at most, computed before anything is measured: tokens/s from the bytes a token must move.

    python -m benchmarks.roofline --bandwidth 3.35

Every backbone step reads all backbone weights and the head, every MCTP module its own layer and the head, and both the
caches of their layers. Arithmetic, launches and everything else count as free, so no measured number is above these.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes read by one forward of each part, whatever the number of rows; caches per token of context and stream."""

    backbone: int  # all layers, without the head
    module: int  # one MCTP module, without the head
    head: int
    audio_head: int
    backbone_cache: int  # per context token
    module_cache: int  # per context token, one module
    modules: int

    def step(self, streams: int = 1, context: float = 0) -> float:
        """One backbone step."""
        return self.backbone + self.head + streams * context * self.backbone_cache

    def burst(self, streams: int = 1, context: float = 0, audio_head: bool = False) -> float:
        """One run of all modules."""
        head = self.audio_head if audio_head else self.head
        return self.modules * (self.module + head + streams * context * self.module_cache)


def traffic(size: ModelSize, element_size: int = 2) -> Traffic:
    """Bytes of a model's parts; `element_size` 2 is bf16."""
    c = size.config
    hidden, kv = c.hidden_size, c.num_key_value_heads * c.head_dim
    queries = c.num_attention_heads * c.head_dim
    attention = hidden * (queries + 2 * kv) + (queries + 2 * kv) + queries * hidden
    layer = attention + 3 * hidden * c.intermediate_size + 2 * hidden
    module = layer + 2 * hidden * hidden + 2 * hidden
    return Traffic(
        backbone=(c.backbone_layers * layer + hidden) * element_size,
        module=(module + hidden) * element_size,  # the shared final norm is read again
        head=c.vocab_size * hidden * element_size,
        audio_head=(c.vocab_size - size.first_audio_id) * hidden * element_size,
        backbone_cache=c.backbone_layers * 2 * kv * element_size,
        module_cache=2 * kv * element_size,
        modules=c.mctp_modules,
    )


def bytes_per_cycle(
    parts: Traffic, mode: str, streams: int = 1, context: float = 0, audio_head: bool = False
) -> tuple[float, int]:
    """(bytes, tokens of one stream) of the pair of a mode that repeats for ever."""
    backbone, burst = NAMED_MODES[mode][-2:]
    if not burst:
        return parts.step(streams, context), 1
    moved = backbone * parts.step(streams, context) + parts.burst(streams, context, audio_head)
    return moved, backbone + burst


def tokens_per_s(
    parts: Traffic, mode: str, bandwidth: float, streams: int = 1, context: float = 0, audio_head: bool = False
) -> float:
    """The most tokens/s of all streams together at `bandwidth` bytes/s, `context` tokens in each cache on average."""
    moved, tokens = bytes_per_cycle(parts, mode, streams, context, audio_head)
    return streams * tokens * bandwidth / moved


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bandwidth", type=float, default=3.35, help="TB/s (H100 SXM: 3.35, H200: 4.8)")
    parser.add_argument("--size", choices=[name for name in SIZES if name != "tiny"], default="7b")
    parser.add_argument("--context", type=int, default=0, help="tokens in each stream's cache on average")
    options = parser.parse_args()
    parts = traffic(SIZES[options.size])
    table = Table("streams", "mode", "full head tok/s", "audio-only head tok/s", "/ vanilla (audio-only)")
    for streams in (1, 8, 32, 64):
        for mode in NAMED_MODES:
            full, sliced, vanilla = (
                tokens_per_s(parts, m, options.bandwidth * 1e12, streams, options.context, audio)
                for m, audio in ((mode, False), (mode, True), ("vanilla", False))
            )
            table.add_row(str(streams), mode, f"{full:.0f}", f"{sliced:.0f}", f"{sliced / vanilla:.2f}x")
    console = Console()
    console.print(f"{options.size}, bf16, {options.bandwidth} TB/s, {options.context} tokens of context: upper bounds")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
