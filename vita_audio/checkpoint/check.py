"""Is a checkpoint bundle complete, and do its parts fit each other?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder
from vita_audio.checkpoint.configs import (
    AUDIO_DECODER,
    GENERATION_CONFIG_FILE,
    LANGUAGE_MODEL,
    SENSEVOICE,
    SPEECH_TOKENIZER,
    TOKENIZER_FILE,
    FlowConfig,
    LanguageModelConfig,
    SenseVoiceConfig,
    SpeechTokenizerConfig,
    VocoderConfig,
)
from vita_audio.checkpoint.language_model import open_language_model
from vita_audio.checkpoint.sensevoice import check_sensevoice
from vita_audio.checkpoint.speech_input import check_speech_input
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.contract.errors import CheckpointError, InvalidRequest
from vita_audio.contract.limits import DEFAULT_REPETITION_PENALTY, MAX_REPETITION_PENALTY, MIN_REPETITION_PENALTY
from vita_audio.contract.modes import NAMED_MODES, mode_of
from vita_audio.contract.rates import OUTPUT_SAMPLE_RATE_HZ
from vita_audio.text.normalization import NONE, TEXT_NORMALIZATIONS
from vita_audio.text.tokenizer import TextTokenizer
from vita_audio.text.vocabulary import Vocabulary

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class CheckpointSizes:
    """A checked bundle.

    `default_pattern`: the mode it was trained for; `samples`: see `default_sampling`; `repetition_penalty`: what it is
    asked with by default; `text_normalization`: see there. Of `speech_tokenizer` and `sensevoice` one is there.
    """

    language_model: LanguageModelConfig
    speech_tokenizer: SpeechTokenizerConfig | None
    flow: FlowConfig
    vocoder: VocoderConfig
    vocabulary: Vocabulary
    default_pattern: tuple[int, ...]
    samples: bool
    repetition_penalty: float
    text_normalization: str
    sensevoice: SenseVoiceConfig | None = None

    @property
    def speech_input(self) -> str:
        """SPEECH_TOKENIZER or SENSEVOICE."""
        return SPEECH_TOKENIZER if self.sensevoice is None else SENSEVOICE

    def sizes(self) -> dict[str, dict[str, Any]]:
        """Part -> fields of its config, for the manifest."""
        parts = ("language_model", self.speech_input, "flow", "vocoder")
        return {part: asdict(getattr(self, part)) for part in parts}


def check_checkpoint(folder: Path) -> CheckpointSizes:
    """Check every file of a bundle, and that the parts belong together; weights of the language model are not loaded.

    Raises:
        CheckpointError: one error with the faults of all parts.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; make one with python -m vita_audio.checkpoint.random_weights")
    faults: list[str] = []

    def part(read: Callable[[], _Part]) -> _Part | None:
        try:
            return read()
        except CheckpointError as error:
            faults.append(str(error))
            return None

    speech_input = part(lambda: check_speech_input(folder))
    language_model = part(lambda: open_language_model(folder / LANGUAGE_MODEL).config)
    vocabulary = part(lambda: TextTokenizer(folder / TOKENIZER_FILE).vocabulary)
    pattern = part(lambda: default_pattern(folder / GENERATION_CONFIG_FILE, language_model))
    samples = part(lambda: default_sampling(folder / GENERATION_CONFIG_FILE))
    penalty = part(lambda: default_repetition_penalty(folder / GENERATION_CONFIG_FILE))
    normalization = part(lambda: text_normalization(folder / GENERATION_CONFIG_FILE))
    speech_tokenizer, sensevoice = None, None
    if speech_input == SENSEVOICE:
        sensevoice = part(lambda: check_sensevoice(folder / LANGUAGE_MODEL))
    else:
        speech_tokenizer = part(lambda: load_speech_tokenizer(folder / SPEECH_TOKENIZER)[0])
    flow = part(lambda: load_flow(folder / AUDIO_DECODER)[0])
    vocoder = part(lambda: load_vocoder(folder / AUDIO_DECODER)[0])
    if language_model and vocabulary and pattern and flow and vocoder and not faults:
        assert samples is not None
        assert penalty is not None
        assert normalization is not None
        faults += _contradictions(language_model, vocabulary, speech_tokenizer, flow, vocoder)
        if not faults:
            return CheckpointSizes(
                language_model, speech_tokenizer, flow, vocoder, vocabulary, pattern, samples, penalty, normalization,
                sensevoice,
            )  # fmt: skip
    raise CheckpointError("; ".join(dict.fromkeys(faults)))


def default_pattern(path: Path, config: LanguageModelConfig | None) -> tuple[int, ...]:
    """`mtp_inference_mode` of a generation_config.json; without one, boost, or vanilla where K is too small for it.

    Where K = 0 it is vanilla, whatever the file says: the authors' training writes the interleaving of its data there
    for every model, and their code gives the tokens of missing modules to the backbone.

    Raises:
        CheckpointError: the file is not JSON, or the mode is no pattern or asks for more than K tokens.
    """
    modules = None if config is None else config.mctp_modules
    boost, vanilla = NAMED_MODES["boost"], NAMED_MODES["vanilla"]
    numbers = _generation_setting(path, "mtp_inference_mode", None)
    if numbers is None:
        return vanilla if modules is not None and max(boost[1::2]) > modules else boost
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise CheckpointError(f"{path}: mtp_inference_mode: {numbers!r} must be a list of integers such as [1, 10]")
    try:
        pattern = mode_of(numbers, modules or None).pattern
    except InvalidRequest as error:
        most = "K" if modules is None else modules
        raise CheckpointError(
            f"{path}: mtp_inference_mode: {numbers!r} is not valid: {error.limit}; set it to {list(vanilla)} in this "
            f"file, or to pairs m, n with every m at least 1 and every n at most {most}"
        ) from error
    return vanilla if modules == 0 else pattern


def default_sampling(path: Path) -> bool:
    """Whether text is read aloud with sampling by default, as the authors do; `"do_sample": false` says no.

    Raises:
        CheckpointError: the file is not JSON, or do_sample is neither true nor false.
    """
    value = _generation_setting(path, "do_sample", True)
    if not isinstance(value, bool):
        raise CheckpointError(f"{path}: do_sample: {value!r} must be true or false")
    return value


def default_repetition_penalty(path: Path) -> float:
    """`repetition_penalty` of a generation_config.json; without one, the authors' 1.05.

    Raises:
        CheckpointError: the file is not JSON, or the penalty is no number above 0 up to the contract's limit.
    """
    value = _generation_setting(path, "repetition_penalty", DEFAULT_REPETITION_PENALTY)
    low, high = MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise CheckpointError(f"{path}: repetition_penalty: {value!r} must be a number from {low:g} to {high:g}")
    return float(value)


def text_normalization(path: Path) -> str:
    """`text_normalization` of a generation_config.json, one of TEXT_NORMALIZATIONS; without it, "none".

    Raises:
        CheckpointError: the file is not JSON, or it is another value.
    """
    value = _generation_setting(path, "text_normalization", NONE)
    if value not in TEXT_NORMALIZATIONS:
        raise CheckpointError(f"{path}: text_normalization: {value!r} must be {' or '.join(TEXT_NORMALIZATIONS)}")
    return str(value)


def _generation_setting(path: Path, name: str, default: object) -> Any:
    """One value of a generation_config.json; `default` where it, or the file, is not there."""
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8")).get(name, default)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a readable generation_config.json ({error})") from error


def _contradictions(
    language_model: LanguageModelConfig,
    vocabulary: Vocabulary,
    speech_tokenizer: SpeechTokenizerConfig | None,
    flow: FlowConfig,
    vocoder: VocoderConfig,
) -> list[str]:
    """What each part says that another one contradicts."""
    codes = {f"{TOKENIZER_FILE} has audio tokens": vocabulary.audio_codes}
    if speech_tokenizer:
        codes[f"{SPEECH_TOKENIZER} has codes"] = speech_tokenizer.quantize_vocab_size
    codes[f"{AUDIO_DECODER} flow takes codes"] = flow.vocab_size
    faults = []
    if len(set(codes.values())) > 1:
        faults.append("audio vocabularies differ: " + ", ".join(f"{what} {count}" for what, count in codes.items()))
    if vocabulary.tokens > language_model.vocab_size:
        faults.append(
            f"{TOKENIZER_FILE} has {vocabulary.tokens} tokens, {LANGUAGE_MODEL} only {language_model.vocab_size} rows"
        )
    if flow.output_size != vocoder.in_channels:
        faults.append(f"the flow makes {flow.output_size} mel channels but the vocoder takes {vocoder.in_channels}")
    if vocoder.sampling_rate != OUTPUT_SAMPLE_RATE_HZ:
        faults.append(f"the vocoder makes {vocoder.sampling_rate} Hz, only {OUTPUT_SAMPLE_RATE_HZ} Hz is supported")
    return faults
