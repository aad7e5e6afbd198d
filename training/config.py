"""The configuration of a whole training: YAML into typed settings of every part; one error names every fault."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from training.audio.flow import FlowTraining
from training.audio.speech_tokenizer import SpeechTokenizerTraining
from training.audio.vocoder import VocoderTraining
from training.data.settings import DataConfig
from training.errors import TrainingError
from training.language_model.settings import LanguageModelTraining

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Everything `python -m training` needs. `name` and `about` go on the checkpoint's card."""

    name: str
    about: str
    data: DataConfig
    speech_tokenizer: SpeechTokenizerTraining
    vocoder: VocoderTraining
    flow: FlowTraining
    language_model: LanguageModelTraining

    def __post_init__(self) -> None:
        """Raises TrainingError when parts do not fit each other."""
        codes = self.speech_tokenizer.model.quantize_vocab_size
        faults = []
        if self.flow.model.vocab_size != codes:
            faults.append(f"flow.model.vocab_size {self.flow.model.vocab_size} must be the tokenizer's {codes} codes")
        if self.flow.model.output_size != self.vocoder.model.in_channels:
            faults.append(f"flow.model.output_size must be vocoder.model.in_channels {self.vocoder.model.in_channels}")
        voices = {part.output_voice for part in (self.data, self.speech_tokenizer, self.vocoder, self.flow)}
        if len(voices) > 1:
            faults.append(f"output_voice must be the same everywhere, not {', '.join(sorted(voices))}")
        if faults:
            raise TrainingError("\n".join(faults))


def load_config(name: str, changes: Sequence[str] = ()) -> TrainingConfig:
    """Read `training/configs/NAME.yaml`, or a YAML file by its path.

    Args:
        changes: "KEY=VALUE" with dots in the key and YAML in the value: "language_model.stage1.run.steps=100".

    Raises:
        TrainingError: no such configuration, not YAML, or unknown, missing or wrong keys; all are named.
    """
    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
        raise TrainingError(f"--config: {name!r} is neither one of {known} nor a readable file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: not YAML ({error})") from error
    faults: list[str] = []
    for change in changes:
        _change(content, change)
    config = read_fields(TrainingConfig, content, "", faults)
    if faults:
        raise TrainingError(f"{path}:\n  " + "\n  ".join(faults))
    return config


def read_fields(kind: Any, values: Any, place: str, faults: list[str]) -> Any:
    """Build a dataclass from plain data, nested ones too; faults are added to the list and make the result None."""
    if not isinstance(values, Mapping):
        faults.append(f"{place or 'the file'}: must be a mapping of {', '.join(field.name for field in fields(kind))}")
        return None
    prefix, before = f"{place}." if place else "", len(faults)
    known = {field.name: field for field in fields(kind)}
    for name in values:
        if name not in known:
            faults.append(f"{prefix}{name}: unknown key; known are {', '.join(known)}")
    hints = get_type_hints(kind)
    built = {}
    for name, field in known.items():
        if name in values:
            built[name] = _read(hints[name], values[name], prefix + name, faults)
        elif field.default is MISSING and field.default_factory is MISSING:
            faults.append(f"{prefix}{name}: missing")
    if len(faults) > before:
        return None
    try:
        return kind(**built)
    except TrainingError as error:
        faults += str(error).splitlines()
        return None


def _change(content: Any, change: str) -> None:
    key, equals, value = change.partition("=")
    *parents, name = key.split(".")
    try:
        for parent in parents:
            content = content[parent]
        content[name] = yaml.safe_load(value)
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise TrainingError(f"--set: {change!r} must be KEY=VALUE with a key of the configuration ({error})") from error
    if not equals:
        raise TrainingError(f"--set: {change!r} has no value; write {change}=VALUE")


def _read(hint: Any, value: Any, place: str, faults: list[str]) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return read_fields(hint, value, place, faults)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _read(next(part for part in parts if part is not type(None)), value, place, faults)
    if origin is tuple and isinstance(value, list):
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        if len(kinds) != len(value):
            faults.append(f"{place}: {value!r} must have {len(kinds)} values")
            return None
        return tuple(
            _read(kind, item, f"{place}[{i}]", faults) for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {str(name): _read(parts[1], item, f"{place}.{name}", faults) for name, item in value.items()}
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML takes 1e-4 for text
        except ValueError:
            pass
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    faults.append(f"{place}: {value!r} must be {_wanted(hint)}")
    return None


def _wanted(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, "a list" if get_origin(hint) is tuple else str(hint))
