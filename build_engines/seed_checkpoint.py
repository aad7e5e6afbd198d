"""Write a small checkpoint in the released layout, with seeded random weights.

    python -m build_engines.seed_checkpoint --out checkpoints/seed --seed 0

It has the real architecture, keys and files, so everything that takes a released checkpoint takes it; it sounds like
noise. A trained checkpoint of the same layout replaces it without a change of code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from safetensors.torch import save_file

from build_engines.seed_tokenizer import write_tokenizer
from build_engines.seed_weights import flow_weights, language_model_weights, speech_tokenizer_weights, vocoder_weights
from vita_audio.audio_decoder_config import write_audio_decoder_yaml
from vita_audio.configs import FlowConfig, LanguageModelConfig, SpeechTokenizerConfig, VocoderConfig
from vita_audio.errors import CheckpointError
from vita_audio.modes import NAMED_MODES
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
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=12 + 10,
        num_attention_heads=6,
        num_key_value_heads=2,
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
        channels=(64, 64),
        attention_head_dim=32,
        n_blocks=1,
        num_mid_blocks=2,
        num_heads=2,
    ),
    vocoder=VocoderConfig(base_channels=96, f0_channels=64),
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
    _write_speech_tokenizer(temporary / "speech_tokenizer", size.speech_tokenizer, seed)
    _write_audio_decoder(temporary / "audio_decoder", size, seed)
    if folder.exists():
        folder.rmdir()
    temporary.rename(folder)


def _write_language_model(folder: Path, size: SeedSize, seed: int) -> None:
    folder.mkdir(parents=True)
    tokens = write_tokenizer(folder, size.merges, size.audio_codes, seed)
    vocabulary = Vocabulary.from_tokenizer(folder / "tokenizer.json")
    config = replace(size.language_model, vocab_size=-(-tokens // 8) * 8)  # padded as the released ones
    architecture = {
        "architectures": ["Qwen2MTPForCausalLM"],
        "model_type": "qwen2_mtp",
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "bos_token_id": vocabulary.end_of_text,
        "eos_token_id": vocabulary.im_end,
    }
    _write_json(folder / "config.json", {**architecture, **asdict(config)})
    generation = {
        "bos_token_id": vocabulary.end_of_text,
        "pad_token_id": vocabulary.end_of_text,
        "eos_token_id": list(vocabulary.end_tokens),
        "repetition_penalty": 1.05,
        "mtp_inference_mode": list(NAMED_MODES["boost"]),
    }
    _write_json(folder / "generation_config.json", generation)
    _save_tensors(language_model_weights(config, vocabulary, seed), folder / "model.safetensors")


def _write_speech_tokenizer(folder: Path, config: SpeechTokenizerConfig, seed: int) -> None:
    folder.mkdir(parents=True)
    architecture = {
        "architectures": ["WhisperVQEncoder"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "encoder_layers": config.layers,
        "pooling_type": "avg",
        "pooling_position": config.quantize_position,
        "quantize_encoder_only": True,
        "encoder_causal_convolution": True,
        "encoder_causal_attention": False,
        "quantize_causal_encoder": False,
        "scale_embedding": False,
        "torch_dtype": "float32",
    }
    _write_json(folder / "config.json", {**architecture, **asdict(config)})
    preprocessor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config.num_mel_bins,
        "sampling_rate": 16_000,
        "n_fft": 400,
        "hop_length": 160,
        "chunk_length": 30,
        "n_samples": 480_000,
        "nb_max_frames": 3_000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }
    _write_json(folder / "preprocessor_config.json", preprocessor)
    _save_tensors(speech_tokenizer_weights(config, seed), folder / "model.safetensors")


def _write_audio_decoder(folder: Path, size: SeedSize, seed: int) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(write_audio_decoder_yaml(size.flow, size.vocoder), encoding="utf-8")
    torch.save(flow_weights(size.flow, seed), folder / "flow.pt")
    torch.save(vocoder_weights(size.vocoder, seed), folder / "hift.pt")


def _save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it private to this user; a server may be another


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


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
