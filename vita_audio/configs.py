"""Typed sizes of every network, read from the released configuration files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vita_audio.errors import CheckpointError

MISSING = object()


class ConfigFields:
    """Reads typed fields of one configuration and collects every fault, so that one error names them all."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values, self.source, self.faults = values, source, []  # type: Mapping[str, Any], str, list[str]

    @classmethod
    def from_json(cls, text: str, source: str) -> ConfigFields:
        """Raises CheckpointError when the text is not a JSON object."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{source}: not valid JSON ({error}); copy the file again") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{source}: a JSON object is expected, got {type(values).__name__}")
        return cls(values, source)

    def _get(self, name: str, default: object, kinds: tuple[type, ...], wanted: str) -> Any:
        value = self.values.get(name, MISSING)
        if value is MISSING or (value is None and default is not MISSING):
            if default is MISSING:
                self.faults.append(f"{name} is missing ({wanted})")
            return default
        if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, kinds):
            self.faults.append(f"{name} is {value!r}, must be {wanted}")
            return MISSING
        return value

    def integer(self, name: str, default: object = MISSING, minimum: int = 1) -> int:
        value = self._get(name, default, (int,), f"an integer >= {minimum}")
        if value is MISSING:
            return minimum
        if value < minimum:
            self.faults.append(f"{name} is {value}, must be an integer >= {minimum}")
        return value

    def number(self, name: str, default: object = MISSING) -> float:
        """A finite number > 0."""
        value = self._get(name, default, (int, float), "a number > 0")
        if value is MISSING:
            return 1.0
        if not 0 < value < float("inf"):
            self.faults.append(f"{name} is {value}, must be a finite number > 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default, (bool,), "true or false")
        return default if value is MISSING else value

    def integers(self, name: str, default: object = MISSING) -> tuple[int, ...]:
        """A non-empty list of integers >= 1."""
        value = self._get(name, default, (list, tuple), "a list of integers >= 1")
        if value is MISSING:
            return (1,)
        if not value or not all(isinstance(item, int) and not isinstance(item, bool) and item >= 1 for item in value):
            self.faults.append(f"{name} is {value!r}, must be a list of integers >= 1")
            return (1,)
        return tuple(value)

    def integer_lists(self, name: str, default: object = MISSING) -> tuple[tuple[int, ...], ...]:
        """A non-empty list of non-empty lists of integers >= 1."""
        value = self._get(name, default, (list, tuple), "a list of lists of integers >= 1")
        if value is MISSING:
            return ((1,),)
        if not value or not all(
            isinstance(row, (list, tuple)) and row and all(type(item) is int and item >= 1 for item in row)
            for row in value
        ):
            self.faults.append(f"{name} is {value!r}, must be a list of lists of integers >= 1")
            return ((1,),)
        return tuple(tuple(row) for row in value)

    def only(self, name: str, supported: object) -> None:
        """A field that may be absent, but when present must have the one value this project implements."""
        value = self.values.get(name, supported)
        if value != supported:
            self.faults.append(f"{name} is {value!r}, only {supported!r} is supported")

    def check(self, condition: bool, fault: str) -> None:
        """Note a fault about several fields; only meaningful while each of them is right by itself."""
        if not condition and not self.faults:
            self.faults.append(fault)

    def finish(self) -> None:
        """Raise one CheckpointError with every fault found so far."""
        if self.faults:
            raise CheckpointError(f"{self.source}: {'; '.join(self.faults)}; use the file that came with the weights")


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

    @classmethod
    def from_json(cls, text: str, source: str = "config.json") -> LanguageModelConfig:
        """Parse a released `config.json`. Raises CheckpointError naming every faulty field."""
        fields = ConfigFields.from_json(text, source)
        config = cls(
            vocab_size=fields.integer("vocab_size", minimum=2),
            hidden_size=fields.integer("hidden_size"),
            intermediate_size=fields.integer("intermediate_size"),
            num_hidden_layers=fields.integer("num_hidden_layers"),
            num_attention_heads=fields.integer("num_attention_heads"),
            num_key_value_heads=fields.integer("num_key_value_heads"),
            num_nextn_predict_layers=fields.integer("num_nextn_predict_layers", default=0, minimum=0),
            max_position_embeddings=fields.integer("max_position_embeddings"),
            rms_norm_eps=fields.number("rms_norm_eps", default=1e-6),
            rope_theta=fields.number("rope_theta", default=1e6),
            tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
        )
        fields.only("hidden_act", "silu")
        fields.only("rope_scaling", None)
        fields.only("use_sliding_window", False)
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        fields.check(
            config.backbone_layers >= 1,
            f"num_hidden_layers {config.num_hidden_layers} counts backbone and MCTP layers and must be more than "
            f"num_nextn_predict_layers {config.num_nextn_predict_layers}",
        )
        fields.check(
            config.hidden_size % (2 * heads) == 0,
            f"hidden_size {config.hidden_size} must be a multiple of 2 x num_attention_heads ({heads})",
        )
        fields.check(
            heads % kv_heads == 0,
            f"num_attention_heads {heads} must be a multiple of num_key_value_heads {kv_heads}",
        )
        fields.finish()
        return config
