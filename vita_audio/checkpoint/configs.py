"""Typed sizes of every network, read from the released configuration files."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field
from dataclasses import fields as fields_of
from typing import Any, TypeVar

from vita_audio.contract.errors import CheckpointError

#: Folders and files of a checkpoint bundle.
LANGUAGE_MODEL, SPEECH_TOKENIZER, AUDIO_DECODER = "language_model", "speech_tokenizer", "audio_decoder"
#: The speech input of a Plus checkpoint, in place of SPEECH_TOKENIZER; its files lie in LANGUAGE_MODEL.
SENSEVOICE = "sensevoice"
TOKENIZER_FILE = f"{LANGUAGE_MODEL}/tokenizer.json"
GENERATION_CONFIG_FILE = f"{LANGUAGE_MODEL}/generation_config.json"

Config = TypeVar("Config")
_OR_ZERO = {"zero": True}  # metadata of a number that may be 0


class ConfigFields:
    """Reads typed fields of one configuration and collects every fault, so that one error names them all."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values, self.source, self.faults = values, source, []  # type: Mapping[str, Any], str, list[str]

    @classmethod
    def from_json(cls, text: str, source: str) -> ConfigFields:
        """Raises CheckpointError when the text is not a JSON object."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # a number of 5000 digits is a ValueError
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
            return minimum  # what follows from it is computed before all faults are told
        return value

    def number(self, name: str, default: object = MISSING, zero: bool = False) -> float:
        """A finite number > 0 (or >= 0). Text such as 1e-06, which YAML does not take for a number, is accepted."""
        wanted = f"a finite number {'>= 0' if zero else '> 0'}"
        value = self._get(name, default, (int, float, str), wanted)
        if value is MISSING:
            return 1.0
        try:
            number = float(value)
        except (ValueError, OverflowError):  # JSON's integers have no end
            number = math.nan
        if not (number > 0 or (zero and number == 0)) or number == math.inf:
            self.faults.append(f"{name} is {value!r}, must be {wanted}")
            return 1.0
        return number

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

    def read(self, config: type[Config], required: Collection[str] = (), **defaults: object) -> Config:
        """A config dataclass, every field read by its type and within the limits of its metadata.

        Args:
            required: fields that must be there, though the dataclass has a default.
            defaults: of fields for which the dataclass has none.
        """
        readers = {
            "int": self.integer,
            "float": self.number,
            "bool": self.flag,
            "tuple[int, ...]": self.integers,
            "tuple[tuple[int, ...], ...]": self.integer_lists,
        }
        values: dict[str, Any] = {}
        for each in fields_of(config):  # type: ignore[arg-type]
            default = MISSING if each.name in required else defaults.get(each.name, each.default)
            values[each.name] = readers[str(each.type)](each.name, default, **each.metadata)  # type: ignore[operator]
        return config(**values)

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

    vocab_size: int = field(metadata={"minimum": 2})
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    num_nextn_predict_layers: int = field(metadata={"minimum": 0})
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
        _read_rope_parameters(fields)
        config = fields.read(cls, num_nextn_predict_layers=0)
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
        stated = fields.values.get("head_dim")
        fields.check(
            stated is None or stated == config.head_dim,
            f"head_dim is {stated!r}, only hidden_size / num_attention_heads = {config.head_dim} is supported",
        )
        fields.check(
            heads % kv_heads == 0,
            f"num_attention_heads {heads} must be a multiple of num_key_value_heads {kv_heads}",
        )
        fields.finish()
        return config


def _read_rope_parameters(fields: ConfigFields) -> None:
    """Settings of the rotation as transformers 5 writes them, in the place where the released files have them."""
    rope = fields.values.get("rope_parameters")
    if rope is None:
        return
    if not isinstance(rope, dict):
        fields.faults.append(f"rope_parameters is {rope!r}, must be a JSON object")
        return
    if (kind := rope.get("rope_type", "default")) != "default":
        fields.faults.append(f"rope_parameters.rope_type is {kind!r}, only 'default' is supported")
    if (theta := rope.get("rope_theta")) is None:
        return
    stated = fields.values.get("rope_theta")
    if stated is not None and stated != theta:
        fields.faults.append(f"rope_theta is {stated!r} but rope_parameters.rope_theta is {theta!r}, must be the same")
    fields.values = {**fields.values, "rope_theta": theta}


_SPEECH_TOKENIZER_REQUIRED = (
    "d_model",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "num_mel_bins",
    "quantize_vocab_size",
)


@dataclass(frozen=True, slots=True)
class SpeechTokenizerConfig:
    """WhisperVQ encoder (`config.json` of glm-4-voice-tokenizer, docs/audio.md 1); names as released."""

    d_model: int = 1280
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    num_mel_bins: int = 128
    max_source_positions: int = 1500
    pooling_kernel_size: int = 4
    quantize_position: int = 16
    quantize_vocab_size: int = 16384
    quantize_causal_block_size: int = 200

    @property
    def layers(self) -> int:
        """Encoder layers in use: later ones of the stored Whisper encoder are never run."""
        return self.quantize_position

    @property
    def frames_per_token(self) -> int:
        """Mel frames of one token: the second convolution halves the rate, then the pool."""
        return 2 * self.pooling_kernel_size

    @classmethod
    def from_json(cls, text: str, source: str = "config.json") -> SpeechTokenizerConfig:
        """Parse a released `config.json`. Raises CheckpointError naming every faulty field."""
        fields = ConfigFields.from_json(text, source)
        config = fields.read(cls, required=_SPEECH_TOKENIZER_REQUIRED)
        fields.only("activation_function", "gelu")
        fields.only("pooling_type", "avg")
        fields.only("pooling_position", config.quantize_position)
        fields.only("encoder_causal_convolution", True)
        fields.only("encoder_causal_attention", False)
        fields.only("quantize_causal_encoder", False)
        fields.only("scale_embedding", False)
        layers = fields.integer("encoder_layers", default=config.quantize_position)
        fields.check(
            layers >= config.quantize_position,
            f"encoder_layers {layers} must be at least quantize_position {config.quantize_position}",
        )
        fields.check(
            config.d_model % (2 * config.encoder_attention_heads) == 0,
            f"d_model {config.d_model} must be a multiple of 2 x encoder_attention_heads "
            f"({config.encoder_attention_heads})",
        )
        fields.finish()
        return config


@dataclass(frozen=True, slots=True)
class SenseVoiceConfig:
    """SenseVoice encoder and projector of the Plus variant (docs/plus.md); names and defaults as released.

    `input_size` is 80 mel bins of 7 frames. `embedding_size` is the hidden_size of the language model that reads its
    rows. `sanm_shift` is released as `sanm_shfit`.
    """

    input_size: int = 560
    output_size: int = 512
    attention_heads: int = 4
    linear_units: int = 2048
    num_blocks: int = 50
    tp_blocks: int = field(default=20, metadata={"minimum": 0})
    kernel_size: int = 11
    sanm_shift: int = field(default=0, metadata={"minimum": 0})
    embedding_size: int = 3584

    @classmethod
    def from_fields(cls, fields: ConfigFields, embedding_size: int) -> SenseVoiceConfig:
        """Read `encoder_conf` of a released config.yaml. Raises CheckpointError naming every faulty field."""
        sizes = ("output_size", "attention_heads", "linear_units", "num_blocks", "tp_blocks", "kernel_size")
        fields.values = {
            **fields.values,
            "sanm_shift": fields.values.get("sanm_shfit", 0),
            "embedding_size": embedding_size,
        }
        config = fields.read(cls, required=sizes)
        fields.only("input_size", 560)
        fields.only("input_layer", "pe")
        fields.only("pos_enc_class", "SinusoidalPositionEncoder")
        fields.only("normalize_before", True)
        fields.only("selfattention_layer_type", "sanm")
        fields.check(
            config.output_size % config.attention_heads == 0,
            f"output_size {config.output_size} must be a multiple of attention_heads ({config.attention_heads})",
        )
        fields.check(
            config.memory_pads[1] >= 0,
            f"sanm_shfit {config.sanm_shift} must be at most half of kernel_size ({config.kernel_size})",
        )
        fields.finish()
        return config

    @property
    def memory_pads(self) -> tuple[int, int]:
        """Zeros before and after the rows that an attention layer's memory convolution sees."""
        left = (self.kernel_size - 1) // 2 + self.sanm_shift
        return left, self.kernel_size - 1 - left


@dataclass(frozen=True, slots=True)
class FlowConfig:
    """Token encoder, length regulator and flow estimator (docs/audio.md 2); defaults are the released sizes."""

    vocab_size: int = 16384
    input_size: int = 512
    output_size: int = 80  # mel channels
    spk_embed_dim: int = 192
    encoder_output_size: int = 512
    encoder_heads: int = 8
    encoder_linear_units: int = 2048
    encoder_blocks: int = 6
    block_size: int = 10  # tokens
    regulator_convs: int = 4  # len(sampling_ratios)
    channels: tuple[int, ...] = (256, 256)
    attention_head_dim: int = 64
    n_blocks: int = 4
    num_mid_blocks: int = 12
    num_heads: int = 8
    inference_cfg_rate: float = field(default=0.7, metadata=_OR_ZERO)
    training_cfg_rate: float = field(default=0.2, metadata=_OR_ZERO)
    sigma_min: float = field(default=1e-6, metadata=_OR_ZERO)

    @classmethod
    def from_fields(cls, fields: ConfigFields) -> FlowConfig:
        """Read flat fields (`flow.json`); absent ones take the defaults. Raises CheckpointError naming every fault."""
        values = fields.values
        if isinstance(values.get("channels"), int):  # one width for every level
            values = {**values, "channels": [values["channels"]] * 2}
        if values.get("encoder_output_size") is None:
            values = {**values, "encoder_output_size": values.get("input_size")}
        fields.values = values
        config = fields.read(cls)
        fields.check(
            config.encoder_output_size % (2 * config.encoder_heads) == 0,
            f"the token encoder's width {config.encoder_output_size} must be a multiple of 2 x encoder_heads "
            f"({config.encoder_heads})",
        )
        for width in config.channels:
            fields.check(width % 8 == 0, f"channels {width} must be a multiple of 8 (group norm groups)")
        fields.finish()
        return config


@dataclass(frozen=True, slots=True)
class VocoderConfig:
    """HiFT generator (docs/audio.md 3); names and defaults as released."""

    in_channels: int = 80
    base_channels: int = 512
    nb_harmonics: int = field(default=8, metadata={"minimum": 0})
    sampling_rate: int = 22050
    nsf_alpha: float = 0.1
    nsf_sigma: float = field(default=0.003, metadata=_OR_ZERO)
    nsf_voiced_threshold: float = field(default=10.0, metadata=_OR_ZERO)
    upsample_rates: tuple[int, ...] = (8, 8)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16)
    istft_n_fft: int = field(default=16, metadata={"minimum": 2})
    istft_hop: int = 4
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    source_resblock_kernel_sizes: tuple[int, ...] = (7, 11)
    source_resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5))
    lrelu_slope: float = field(default=0.1, metadata=_OR_ZERO)
    audio_limit: float = 0.99
    f0_channels: int = 512

    @property
    def samples_per_frame(self) -> int:
        """PCM samples of one mel frame (256 in the released model)."""
        return math.prod(self.upsample_rates) * self.istft_hop

    @classmethod
    def from_fields(cls, fields: ConfigFields) -> VocoderConfig:
        """Read flat fields (`hift.json`); absent ones take the defaults. Raises CheckpointError naming every fault."""
        config = fields.read(cls)
        levels = len(config.upsample_rates)
        fields.check(
            len(config.upsample_kernel_sizes) == levels
            and len(config.source_resblock_kernel_sizes) == levels
            and len(config.source_resblock_dilation_sizes) == levels,
            f"upsample_kernel_sizes and source_resblock_* must have one entry for each of the {levels} upsample_rates",
        )
        fields.check(
            len(config.resblock_kernel_sizes) == len(config.resblock_dilation_sizes),
            "resblock_kernel_sizes and resblock_dilation_sizes must have equal lengths",
        )
        fields.check(
            config.base_channels % 2**levels == 0,
            f"base_channels {config.base_channels} must be a multiple of {2**levels}",
        )
        fields.check(
            config.istft_n_fft % (2 * config.istft_hop) == 0,
            f"istft n_fft {config.istft_n_fft} must be a multiple of 2 x hop_len ({config.istft_hop})",
        )
        fields.finish()
        return config
