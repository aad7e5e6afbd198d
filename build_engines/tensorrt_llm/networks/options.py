"""What a TensorRT-LLM engine is built for: batch, lengths, head, sampling. No tensorrt_llm here."""

from __future__ import annotations

from dataclasses import dataclass

from vita_audio.contract.errors import EngineError

#: Tokens of one KV block; the block manager of the runtime counts in the same unit.
TOKENS_PER_BLOCK = 32
#: TensorRT's top-k layer takes no more (3840), and an in-graph sort of so many is slow long before.
MAX_CANDIDATES = 1024


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """Limits and choices of one engine pair.

    Attributes:
        max_batch_size: streams of one step.
        max_seq_len: tokens of one stream, prompt and answer.
        max_num_tokens: tokens of one step, all streams together; bounds a prefill chunk too.
        prompt_table_rows: backbone only; rows of the table that ids from vocab_size on index (speech of Plus).
        head_first_id: MCTP only; the head's first token id. 0 is the full head; the first control token gives the
            audio-only head, a tenth of the bytes (docs/model.md).
        candidates: MCTP only; the largest top_k of a sampled row. Rows that ask for more, or for all, get this many.
        banned_ids: MCTP only; ids that never come out (padding rows of the vocabulary).

    Raises:
        EngineError: a value is out of its range.
    """

    max_batch_size: int = 64
    max_seq_len: int = 4096
    max_num_tokens: int = 2048
    prompt_table_rows: int = 0
    head_first_id: int = 0
    candidates: int = 64
    banned_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check("max_batch_size", self.max_batch_size, 1, 2048)
        _check("max_seq_len", self.max_seq_len, TOKENS_PER_BLOCK, 1 << 20)
        _check("max_num_tokens", self.max_num_tokens, self.max_batch_size, 1 << 16)
        _check("prompt_table_rows", self.prompt_table_rows, 0, 1 << 20)
        _check("head_first_id", self.head_first_id, 0, 1 << 24)
        _check("candidates", self.candidates, 1, MAX_CANDIDATES)

    def head_rows(self, vocab_size: int) -> int:
        """Rows of the MCTP head. Raises EngineError when the head would be too small to sample from."""
        rows = vocab_size - self.head_first_id
        if rows < self.candidates:
            raise EngineError(
                f"head_first_id {self.head_first_id} leaves {rows} of {vocab_size} ids, fewer than the "
                f"{self.candidates} candidates; lower one of them"
            )
        return rows

    def banned_rows(self, vocab_size: int) -> list[int]:
        """Rows of the MCTP head that never win."""
        return [i - self.head_first_id for i in self.banned_ids if self.head_first_id <= i < vocab_size]


def _check(field: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise EngineError(f"network option {field}: {value} is not valid: {lowest} to {highest}")
