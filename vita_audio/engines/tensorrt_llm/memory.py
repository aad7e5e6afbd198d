"""Bytes of the paged pool, and how many streams fit into given bytes: plain arithmetic, for planning without a GPU.

A block holds `tokens_per_block` positions of one stream: keys and values of every layer of both engines, and the
backbone's hidden state of each position, which the MCTP modules read later.
"""

from __future__ import annotations

from dataclasses import dataclass

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError

#: Positions of one block; TensorRT-LLM 1.x builds engines for 32 (its default) and wants a power of two.
TOKENS_PER_BLOCK = 32


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """What one stream costs on one GPU.

    Attributes:
        config: sizes of the language model.
        kv_bytes: of one key or value number: 2 for bf16, 1 for FP8.
        hidden_bytes: of one hidden number: 2 for bf16.
        tensor_parallel: GPUs the heads are split over; fewer KV heads than GPUs are duplicated.
    """

    config: LanguageModelConfig
    kv_bytes: int = 2
    hidden_bytes: int = 2
    tokens_per_block: int = TOKENS_PER_BLOCK
    tensor_parallel: int = 1

    @property
    def bytes_per_token(self) -> int:
        c = self.config
        kv_heads = -(-c.num_key_value_heads // self.tensor_parallel)
        keys_and_values = 2 * c.num_hidden_layers * kv_heads * c.head_dim * self.kv_bytes
        return keys_and_values + c.hidden_size * self.hidden_bytes

    @property
    def bytes_per_block(self) -> int:
        return self.tokens_per_block * self.bytes_per_token

    def blocks(self, tokens: int) -> int:
        """Blocks that hold `tokens` positions of one stream."""
        return -(-tokens // self.tokens_per_block)

    def bytes_per_stream(self, context: int) -> int:
        """A stream of `context` tokens: its blocks, and the step buffers that grow with the number of streams."""
        vocab = self.config.vocab_size
        seen, seen_of_step, logits = vocab, vocab, 4 * vocab
        return self.blocks(context) * self.bytes_per_block + seen + seen_of_step + logits

    def streams_that_fit(self, available: int, context: int) -> int:
        """Streams of `context` tokens that `available` bytes hold; may be 0."""
        return max(0, available) // self.bytes_per_stream(context)

    def check_fit(self, streams: int, context: int, available: int) -> None:
        """Raises EngineError, with the number that does fit, when `streams` of `context` tokens do not."""
        needed = streams * self.bytes_per_stream(context)
        if needed > available:
            fit = self.streams_that_fit(available, context)
            raise EngineError(
                f"slots: {streams} streams of {context} tokens need {_gib(needed)} for their KV cache, "
                f"{_gib(available)} are free; {fit} fit: lower slots or context, or use FP8 KV or more GPUs"
            )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
