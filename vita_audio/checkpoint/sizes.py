"""Sizes of whole checkpoints by name: small ones, whose streams end by themselves, and the released ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from vita_audio.checkpoint.configs import (
    SENSEVOICE,
    SPEECH_TOKENIZER,
    FlowConfig,
    LanguageModelConfig,
    SenseVoiceConfig,
    SpeechTokenizerConfig,
    VocoderConfig,
)
from vita_audio.text.vocabulary import BASE

RELEASED_SENSEVOICE = SenseVoiceConfig()


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Sizes of all networks. A `vocab_size` of 0 follows from the tokenizer (`for_tokens`).

    The rest is of a random-weight checkpoint of this size.

    Attributes:
        merges: of its tokenizer.
        text_tokens: entries of its tokenizer before the control tokens; 0 is what the merges make.
        ends: whether its streams end by themselves; else they go on up to MAX_TOKENS, as measurements want it.
        dtype: name of the type in which its language model is stored.
        encoder: SenseVoice's sizes where the speech input is that; see `sensevoice`.
    """

    language_model: LanguageModelConfig
    speech_tokenizer: SpeechTokenizerConfig
    flow: FlowConfig
    vocoder: VocoderConfig
    merges: int = 2000
    text_tokens: int = 0
    ends: bool = True
    dtype: str = "float32"
    encoder: SenseVoiceConfig = RELEASED_SENSEVOICE

    @property
    def sensevoice(self) -> SenseVoiceConfig:
        """`encoder` with a projector as wide as the language model."""
        return replace(self.encoder, embedding_size=self.language_model.hidden_size)

    @property
    def audio_codes(self) -> int:
        return self.flow.vocab_size

    @property
    def networks(self) -> tuple[LanguageModelConfig, SpeechTokenizerConfig, FlowConfig, VocoderConfig]:
        return self.language_model, self.speech_tokenizer, self.flow, self.vocoder

    def for_tokens(self, tokens: int) -> ModelSize:
        """The same for a tokenizer of so many tokens; rows are padded as the released ones."""
        return replace(self, language_model=replace(self.language_model, vocab_size=-(-tokens // 8) * 8))


#: Deep and narrow, so that MCTP pays as it does at 7B: a burst costs K layers and K heads against L layers per token.
SMALL = ModelSize(
    language_model=LanguageModelConfig(
        vocab_size=0,
        hidden_size=160,
        intermediate_size=480,
        num_hidden_layers=24 + 10,
        num_attention_heads=5,
        num_key_value_heads=1,
        num_nextn_predict_layers=10,
        max_position_embeddings=4096,
    ),
    speech_tokenizer=SpeechTokenizerConfig(
        d_model=256,
        encoder_attention_heads=4,
        encoder_ffn_dim=1024,
        num_mel_bins=80,
        quantize_position=4,
        quantize_vocab_size=2048,
    ),
    flow=FlowConfig(
        vocab_size=2048,
        input_size=128,
        spk_embed_dim=64,
        encoder_output_size=128,
        encoder_heads=2,
        encoder_linear_units=256,
        encoder_blocks=3,
        channels=(80, 80),
        attention_head_dim=32,
        n_blocks=1,
        num_mid_blocks=4,
        num_heads=4,
    ),
    vocoder=VocoderConfig(base_channels=128, f0_channels=64),
    encoder=SenseVoiceConfig(output_size=256, attention_heads=4, linear_units=1024, num_blocks=3, tp_blocks=1),
)

#: For tests: everything a few layers deep, 256 audio codes.
TINY = ModelSize(
    language_model=replace(
        SMALL.language_model,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3 + 10,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    ),
    speech_tokenizer=replace(
        SMALL.speech_tokenizer,
        d_model=64,
        encoder_attention_heads=2,
        encoder_ffn_dim=128,
        quantize_position=2,
        quantize_vocab_size=256,
    ),
    flow=replace(
        SMALL.flow,
        vocab_size=256,
        input_size=64,
        encoder_output_size=64,
        encoder_linear_units=128,
        encoder_blocks=1,
        channels=(32, 32),
        attention_head_dim=16,
        num_mid_blocks=1,
    ),
    vocoder=VocoderConfig(base_channels=32, f0_channels=32),
    merges=300,
    encoder=SenseVoiceConfig(output_size=32, attention_heads=2, linear_units=64, num_blocks=2, tp_blocks=1),
)

#: The released 7B (docs/model.md): 20.6 GB in bfloat16, and 1.8 GB of audio networks in float32.
RELEASED = ModelSize(
    language_model=LanguageModelConfig(
        vocab_size=168_072,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28 + 10,
        num_attention_heads=28,
        num_key_value_heads=4,
        num_nextn_predict_layers=10,
        max_position_embeddings=32_768,
    ),
    speech_tokenizer=SpeechTokenizerConfig(),
    flow=FlowConfig(),
    vocoder=VocoderConfig(),
    text_tokens=BASE.text_tokens,
    ends=False,
    dtype="bfloat16",
)

#: The paper's 0.5B, taken to be Qwen2.5-0.5B (tied head) with the audio vocabulary.
HALF_B = replace(
    RELEASED,
    language_model=replace(
        RELEASED.language_model,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24 + 10,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
)


class SizeName(str, Enum):
    small = "small"
    tiny = "tiny"
    half_b = "0.5b"
    seven_b = "7b"


class SpeechInput(str, Enum):
    speech_tokenizer = SPEECH_TOKENIZER
    sensevoice = SENSEVOICE


SIZES = {"small": SMALL, "tiny": TINY, "0.5b": HALF_B, "7b": RELEASED}
