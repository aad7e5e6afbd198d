"""Sizes of a checkpoint from its small files alone (config.json, config.yaml): enough to plan, no weights needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from vita_audio.checkpoint.audio_decoder_config import parse_audio_decoder_yaml
from vita_audio.checkpoint.check import (
    AUDIO_DECODER,
    GENERATION_CONFIG_FILE,
    LANGUAGE_MODEL,
    SPEECH_TOKENIZER,
    TOKENIZER_FILE,
    default_pattern,
)
from vita_audio.checkpoint.configs import (
    SENSEVOICE,
    FlowConfig,
    LanguageModelConfig,
    SenseVoiceConfig,
    SpeechTokenizerConfig,
    VocoderConfig,
)
from vita_audio.checkpoint.sensevoice import CONFIG_FILE, read_sensevoice_config
from vita_audio.checkpoint.sizes import RELEASED
from vita_audio.checkpoint.speech_input import speech_input_of
from vita_audio.checkpoint.weight_files import read_text
from vita_audio.contract.errors import CheckpointError
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of every network.

    `text_tokens`: ids below are text. `pattern`: the checkpoint's own mode. `sensevoice`: of a Plus checkpoint, which
    has no speech tokenizer; None of others.
    """

    source: str
    language_model: LanguageModelConfig
    speech_tokenizer: SpeechTokenizerConfig
    flow: FlowConfig
    vocoder: VocoderConfig
    text_tokens: int
    pattern: tuple[int, ...]
    sensevoice: SenseVoiceConfig | None = None


#: Rows of the language model that the Plus variant is trained from, in the authors' config for K = 0; the training adds
#: those of the audio tokens.
_ROWS_BEFORE_TRAINING = 152_064


def released_sizes(speech_input: str = SPEECH_TOKENIZER) -> Sizes:
    """The released 7B (of SENSEVOICE: Plus-Boost) with its speech tokenizer and decoder."""
    sizes = Sizes("the released 7B", *RELEASED.networks, RELEASED.text_tokens, NAMED_MODES["boost"])
    if speech_input == SPEECH_TOKENIZER:
        return sizes
    return replace(sizes, source="the released 7B Plus", sensevoice=RELEASED.sensevoice)


def read_sizes(checkpoint: Path) -> Sizes:
    """Sizes of a bundle, of a language model's folder or of its config.json; what is not there is as released.

    Raises:
        CheckpointError: config.json is missing, or a file that is there cannot be read.
    """
    path = _config_file(checkpoint)
    language_model = LanguageModelConfig.from_json(read_text(path), str(path))
    plus = speech_input_of(path) == SENSEVOICE
    if plus and language_model.vocab_size == _ROWS_BEFORE_TRAINING:
        language_model = replace(language_model, vocab_size=RELEASED.language_model.vocab_size)
    bundle = path.parent.parent if path.parent.name == LANGUAGE_MODEL else path.parent
    sizes = released_sizes()
    sizes = replace(
        sizes,
        source=str(checkpoint),
        language_model=language_model,
        text_tokens=min(sizes.text_tokens, language_model.vocab_size),
        pattern=_pattern(bundle, language_model),
    )
    if (file := bundle / TOKENIZER_FILE).exists():
        sizes = replace(sizes, text_tokens=Vocabulary.from_tokenizer(file).text_tokens)
    if (file := bundle / SPEECH_TOKENIZER / "config.json").exists():
        sizes = replace(sizes, speech_tokenizer=SpeechTokenizerConfig.from_json(read_text(file), str(file)))
    if (file := bundle / AUDIO_DECODER / "config.yaml").exists():
        flow, vocoder = parse_audio_decoder_yaml(read_text(file), str(file))
        sizes = replace(sizes, flow=flow, vocoder=vocoder)
    if plus:
        sensevoice = replace(RELEASED.encoder, embedding_size=language_model.hidden_size)
        if (path.parent / CONFIG_FILE).exists():
            sensevoice = read_sensevoice_config(path.parent)
        sizes = replace(sizes, sensevoice=sensevoice)
    return sizes


def _pattern(bundle: Path, config: LanguageModelConfig) -> tuple[int, ...]:
    """A faulty one counts as none: the check of the whole checkpoint names it, beside what may have caused it."""
    try:
        return default_pattern(bundle / GENERATION_CONFIG_FILE, config)
    except CheckpointError:
        return default_pattern(bundle / "none", config)


def _config_file(checkpoint: Path) -> Path:
    if checkpoint.is_file():
        return checkpoint
    inside = checkpoint / LANGUAGE_MODEL / "config.json"
    plain = checkpoint / "config.json"
    return plain if plain.exists() and not inside.exists() else inside
