"""How a checkpoint takes speech in: as ids of its speech tokenizer, or, in the Plus variant, through SenseVoice."""

from __future__ import annotations

from pathlib import Path

from vita_audio.checkpoint.cmvn import CMVN_FILE
from vita_audio.checkpoint.configs import LANGUAGE_MODEL, SENSEVOICE, SPEECH_TOKENIZER, ConfigFields
from vita_audio.checkpoint.language_model import MODEL_TYPES, NOT_LANGUAGE_MODEL
from vita_audio.checkpoint.weight_files import open_folder, read_text
from vita_audio.contract.errors import CheckpointError
from vita_audio.text.vocabulary import Vocabulary


def speech_input_of(config: Path) -> str:
    """SPEECH_TOKENIZER or SENSEVOICE, by `model_type` of a language model's config.json.

    Raises:
        CheckpointError: the file is missing or not JSON.
    """
    fields = ConfigFields.from_json(read_text(config), str(config))
    return SENSEVOICE if fields.values.get("model_type") == MODEL_TYPES[SENSEVOICE] else SPEECH_TOKENIZER


def check_speech_input(bundle: Path) -> str:
    """As `speech_input_of` for a bundle, none of whose files belongs to the other kind of speech input.

    Raises:
        CheckpointError: base and Plus files are mixed: names all that do not fit; or files are missing.
    """
    folder = bundle / LANGUAGE_MODEL
    config = folder / "config.json"
    speech_input = speech_input_of(config)
    with open_folder(folder) as weights:
        stored = sum(key.startswith(NOT_LANGUAGE_MODEL) for key in weights.shapes)
    continuous = Vocabulary.from_tokenizer(folder / "tokenizer.json").context_of_audio is not None
    if speech_input == SENSEVOICE:
        model_type, meaning = MODEL_TYPES[SENSEVOICE], "Plus: speech through SenseVoice"
        wrong = {
            f"{folder / 'tokenizer.json'} has no <|context_of_audio|>": not continuous,
            f"the weights have no tensors {' or '.join(f'{key}*' for key in NOT_LANGUAGE_MODEL)}": not stored,
            f"{bundle / SPEECH_TOKENIZER} is of a base checkpoint": (bundle / SPEECH_TOKENIZER).exists(),
        }
    else:
        model_type, meaning = "not " + MODEL_TYPES[SENSEVOICE], f"base: speech through {SPEECH_TOKENIZER}/"
        wrong = {
            f"{folder / 'tokenizer.json'} has <|context_of_audio|>": continuous,
            f"the weights have {stored} tensors {' or '.join(f'{key}*' for key in NOT_LANGUAGE_MODEL)}": stored > 0,
            f"{folder / CMVN_FILE} is of a Plus checkpoint": (folder / CMVN_FILE).exists(),
        }
    if faults := [fault for fault, found in wrong.items() if found]:
        raise CheckpointError(
            f"{config}: model_type is {model_type} ({meaning}), but {', '.join(faults)}; "
            "take all files from one release"
        )
    return speech_input
