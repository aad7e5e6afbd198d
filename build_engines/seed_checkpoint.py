"""Write a small checkpoint in the released layout, with seeded random weights.

    python -m build_engines.seed_checkpoint --out checkpoints/seed --seed 0

It has the real architecture, keys and files, so everything that takes a released checkpoint takes it; it sounds like
noise. A trained checkpoint of the same layout replaces it without a change of code.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from build_engines.released_layout import write_audio_decoder, write_language_model, write_speech_tokenizer
from build_engines.seed_tokenizer import write_tokenizer
from build_engines.seed_weights import flow_weights, language_model_weights, speech_tokenizer_weights, vocoder_weights
from vita_audio.configs import FlowConfig, LanguageModelConfig, SpeechTokenizerConfig, VocoderConfig
from vita_audio.errors import CheckpointError
from vita_audio.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class SeedSize:
    """All sizes of a seed checkpoint. The language model's vocabulary follows from the tokenizer."""

    merges: int
    language_model: LanguageModelConfig
    speech_tokenizer: SpeechTokenizerConfig
    flow: FlowConfig
    vocoder: VocoderConfig

    @property
    def audio_codes(self) -> int:
        return self.flow.vocab_size


#: Deep and narrow, so that MCTP pays as it does at 7B: a burst costs K layers and K heads against L layers per token.
SMALL = SeedSize(
    merges=2000,
    language_model=LanguageModelConfig(
        vocab_size=0,
        # Deep and narrow: MCTP pays by what the backbone costs over ten modules and heads (28 layers at 7B).
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
)

#: For tests: everything a few layers deep, 256 audio codes.
TINY = SeedSize(
    merges=300,
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
)


class SizeName(str, Enum):
    small = "small"
    tiny = "tiny"


SIZES = {SizeName.small: SMALL, SizeName.tiny: TINY}


def write_seed_checkpoint(folder: Path, size: SeedSize = SMALL, seed: int = 0) -> None:
    """Write the whole bundle; the same size and seed give the same bytes.

    The bundle is complete or not there: it is written beside its place and then moved.

    Raises:
        CheckpointError: there is already something in `folder`.
    """
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder}: not empty; delete it or choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    _write_language_model(temporary / "language_model", size, seed)
    tokenizer = speech_tokenizer_weights(size.speech_tokenizer, seed)
    write_speech_tokenizer(temporary / "speech_tokenizer", size.speech_tokenizer, tokenizer)
    flow, vocoder = flow_weights(size.flow, seed), vocoder_weights(size.vocoder, seed)
    write_audio_decoder(temporary / "audio_decoder", size.flow, flow, size.vocoder, vocoder)
    if folder.exists():
        folder.rmdir()
    temporary.rename(folder)


def _write_language_model(folder: Path, size: SeedSize, seed: int) -> None:
    folder.mkdir(parents=True)
    tokens = write_tokenizer(folder, size.merges, size.audio_codes, seed)
    vocabulary = Vocabulary.from_tokenizer(folder / "tokenizer.json")
    config = replace(size.language_model, vocab_size=-(-tokens // 8) * 8)  # padded as the released ones
    write_language_model(folder, config, vocabulary, language_model_weights(config, vocabulary, seed))


def main(
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of all weights.")] = 0,
    size: Annotated[SizeName, typer.Option(help="small is served; tiny is for tests.")] = SizeName.small,
) -> None:
    """Write a small checkpoint with seeded random weights in the released layout."""
    try:
        write_seed_checkpoint(out, SIZES[size], seed)
    except (CheckpointError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    Console().print(f"wrote {out} ({sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 1e6:.1f} MB)")


if __name__ == "__main__":
    typer.run(main)
