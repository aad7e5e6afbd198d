"""Typed sizes of every network, read from the released configuration files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LanguageModelConfig:
    """Backbone + MCTP (`config.json`, model_type qwen2_mtp). `num_hidden_layers` counts both, as released."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    num_nextn_predict_layers: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    tie_word_embeddings: bool = False

    @property
    def mctp_modules(self) -> int:
        return self.num_nextn_predict_layers

    @property
    def backbone_layers(self) -> int:
        return self.num_hidden_layers - self.num_nextn_predict_layers

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads
