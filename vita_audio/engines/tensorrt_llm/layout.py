"""Sizes and limits that a pair of engines, their shared pool and every packed step have to agree on."""

from __future__ import annotations

from dataclasses import dataclass

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.tensorrt_llm.memory import TOKENS_PER_BLOCK


@dataclass(frozen=True, slots=True)
class Layout:
    """One backbone engine, one MCTP engine, one pool.

    Attributes:
        slots: streams that may be open at once; at most the engines' max_batch_size.
        context: tokens a slot holds; at most the engines' max_seq_len.
        max_num_tokens: new tokens of one engine call, all streams together, as the engines were built.
        candidates: the largest top_k that is drawn from, as the MCTP engine was built; a request that asks for more,
            or for all, gets this many.
        head_first_id: first id of the MCTP head (0: full head; docs/model.md, "The audio-only head").
        embedded: the backbone takes rows of embeddings in place of ids (a Plus checkpoint).

    Raises:
        EngineError: the values do not fit together.
    """

    config: LanguageModelConfig
    slots: int
    context: int
    max_num_tokens: int
    candidates: int
    head_first_id: int = 0
    tokens_per_block: int = TOKENS_PER_BLOCK
    embedded: bool = False

    def __post_init__(self) -> None:
        size = self.tokens_per_block
        if size < 1 or size & (size - 1):
            raise EngineError(f"tokens_per_block: {size} is not a power of two; build the engines with 32")
        # 31 bits: the top one of an offset would mean the secondary pool.
        if self.blocks * self.pool_layers * 2 >= 1 << 31:
            raise EngineError(
                f"blocks: {self.blocks} of {self.pool_layers} layers cannot be addressed by 31-bit offsets; lower slots"
            )
        if not 1 <= self.candidates <= self.head_rows:
            raise EngineError(
                f"candidates: {self.candidates} is not valid: 1 to {self.head_rows}, the rows of the MCTP head"
            )
        # Otherwise a step of one token for every stream would not fit into one call.
        if self.max_num_tokens < self.slots:
            raise EngineError(f"max_num_tokens: {self.max_num_tokens} is below slots {self.slots}; rebuild with more")

    @property
    def pool_layers(self) -> int:
        """Attention layers of the pool: the backbone's, then one for each MCTP module."""
        return self.config.num_hidden_layers

    @property
    def blocks(self) -> int:
        """Blocks of the pool: as many as the longest streams in all slots need."""
        return self.slots * self.blocks_per_slot

    @property
    def blocks_per_slot(self) -> int:
        return -(-self.context // self.tokens_per_block)

    @property
    def head_rows(self) -> int:
        return self.config.vocab_size - self.head_first_id

    @property
    def prompt_rows(self) -> int:
        """Rows of the prompt table: each token of a step may be of a clip."""
        return self.max_num_tokens if self.embedded else 0

    @property
    def block_shape(self) -> tuple[int, int, int]:
        """Keys (or values) of one layer in one block: [kv_heads, tokens, head_size], the unit of a block offset."""
        return self.config.num_key_value_heads, self.tokens_per_block, self.config.head_dim


def layout_for(
    config: LanguageModelConfig,
    slots: int,
    context: int,
    max_num_tokens: int,
    candidates: int | None = None,
    head_first_id: int = 0,
    tokens_per_block: int = TOKENS_PER_BLOCK,
    embedded: bool = False,
) -> Layout:
    """A layout that draws from the whole head by default."""
    drawn_from = config.vocab_size - head_first_id if candidates is None else candidates
    return Layout(config, slots, context, max_num_tokens, drawn_from, head_first_id, tokens_per_block, embedded)
