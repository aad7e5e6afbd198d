"""The released `audio_decoder/config.yaml`: its hyperpyyaml tags read as plain data, nothing is ever executed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from vita_audio.checkpoint.configs import ConfigFields, FlowConfig, VocoderConfig
from vita_audio.contract.errors import CheckpointError

CLASS = "__class__"  # where a mapping keeps the class name of its `!new:` tag
_REFERENCE = re.compile(r"<([A-Za-z_]\w*)>")


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader that turns every unknown tag into plain data and remembers the tag's class name."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Aliases are refused: the released file has none, and they can make data endless or exponentially large."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", self.peek_event().start_mark)
        return super().compose_node(parent, index)


class _Reference(str):
    """The text of a `!ref <name>` that is still to be looked up."""


def _construct_tagged(loader: _PlainLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        # Deep: a nested tag must be complete before the references in it are looked up.
        return {**loader.construct_mapping(node, deep=True), CLASS: suffix.rpartition(":")[2].rpartition(".")[2]}
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    text = str(loader.construct_scalar(node))  # type: ignore[arg-type]
    return _Reference(text) if suffix == "ref" else text


_PlainLoader.add_multi_constructor("!", _construct_tagged)


def _resolve(value: Any, names: Mapping[str, Any]) -> Any:
    """Replace references to plain top-level values; anything cleverer (arithmetic, nesting) stays text."""
    if isinstance(value, _Reference):
        match = _REFERENCE.fullmatch(value.strip())
        found = names.get(match.group(1)) if match else None
        return found if isinstance(found, (int, float, str)) and not isinstance(found, _Reference) else str(value)
    if isinstance(value, dict):
        return {key: _resolve(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, names) for item in value]
    return value


def read_yaml(text: str, source: str) -> dict[str, Any]:
    """A YAML mapping as plain data. Raises CheckpointError when the text is not one."""
    try:
        document = yaml.load(text, Loader=_PlainLoader)  # a SafeLoader: no object is ever built
    except (yaml.YAMLError, RecursionError) as error:
        raise CheckpointError(
            f"{source}: not valid YAML ({' '.join(str(error).split())}); copy the file again"
        ) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{source}: a YAML mapping is expected, got {type(document).__name__}")
    return document


def parse_audio_decoder_yaml(text: str, source: str = "config.yaml") -> tuple[FlowConfig, VocoderConfig]:
    """Sizes of flow and vocoder from the released file (docs/audio.md 2 and 3).

    Raises:
        CheckpointError: not YAML, a section is missing, a field is wrong, or another architecture is described.
    """
    document = read_yaml(text, source)
    document = _resolve(document, document)
    faults: list[str] = []
    configs: list[Any] = []
    for parse, section in ((_flow, "flow"), (_vocoder, "hift")):
        try:
            configs.append(parse(_Section(document, source).section(section), source))
        except CheckpointError as error:
            faults.append(str(error).removeprefix(f"{source}: "))
    if faults:
        raise CheckpointError(f"{source}: {'; '.join(faults)}")
    return configs[0], configs[1]


class _Section:
    """One mapping of the document; a missing or wrongly typed child is named by its path."""

    def __init__(self, values: Mapping[str, Any], source: str, path: str = "") -> None:
        self.values, self.source, self.path = values, source, path

    def section(self, name: str, of_class: str | None = None) -> _Section:
        child, path = self.values.get(name), f"{self.path}{name}"
        if not isinstance(child, dict):
            raise CheckpointError(f"{self.source}: section {path} is missing; use the file that came with the weights")
        if of_class is not None and child.get(CLASS, of_class) != of_class:
            raise CheckpointError(f"{self.source}: {path} is a {child[CLASS]}, only {of_class} is supported")
        return _Section(child, self.source, path + ".")


def _flow(flow: _Section, source: str) -> FlowConfig:
    encoder = flow.section("encoder", of_class="BlockConformerEncoder")
    regulator = flow.section("length_regulator", of_class="InterpolateRegulator")
    decoder = flow.section("decoder", of_class="ConditionalCFM")
    estimator = decoder.section("estimator", of_class="ConditionalDecoder")
    cfm = decoder.section("cfm_params").values
    cfm = cfm["content"] if isinstance(cfm.get("content"), dict) else cfm
    values = {
        **{name: flow.values.get(name) for name in ("vocab_size", "input_size", "output_size", "spk_embed_dim")},
        "encoder_output_size": encoder.values.get("output_size"),
        "encoder_heads": encoder.values.get("attention_heads"),
        "encoder_linear_units": encoder.values.get("linear_units"),
        "encoder_blocks": encoder.values.get("num_blocks"),
        "block_size": encoder.values.get("block_size"),
        **{
            name: estimator.values.get(name)
            for name in ("channels", "attention_head_dim", "n_blocks", "num_mid_blocks", "num_heads")
        },
        **{name: cfm.get(name) for name in ("inference_cfg_rate", "training_cfg_rate", "sigma_min")},
    }
    ratios = regulator.values.get("sampling_ratios")
    if isinstance(ratios, list):
        values["regulator_convs"] = len(ratios)
    fields = ConfigFields(values, source)
    for section, name, supported in (
        (encoder, "normalize_before", True),
        (encoder, "input_layer", "linear"),
        (encoder, "pos_enc_layer_type", "rel_pos_espnet"),
        (encoder, "selfattention_layer_type", "block_rel_selfattn"),
        (encoder, "use_cnn_module", False),
        (encoder, "macaron_style", False),
        (estimator, "act_fn", "gelu"),
        (decoder, "n_spks", 1),
        (regulator, "channels", flow.values.get("output_size")),
        (_Section(cfm, source, "flow.decoder.cfm_params."), "t_scheduler", "cosine"),
    ):
        value = section.values.get(name, supported)
        if value != supported:
            fields.faults.append(f"{section.path}{name} is {value!r}, only {supported!r} is supported")
    return FlowConfig.from_fields(fields)


def _vocoder(hift: _Section, source: str) -> VocoderConfig:
    values = dict(hift.values)
    istft = hift.section("istft_params").values
    values["istft_n_fft"], values["istft_hop"] = istft.get("n_fft"), istft.get("hop_len")
    predictor = hift.section("f0_predictor", of_class="ConvRNNF0Predictor")
    values["f0_channels"] = predictor.values.get("cond_channels")
    return VocoderConfig.from_fields(ConfigFields(values, source))


def write_audio_decoder_yaml(flow: FlowConfig, vocoder: VocoderConfig) -> str:
    """The text of a `config.yaml` in the released form for these sizes (the inverse of the parser)."""

    def lists(rows: tuple[tuple[int, ...], ...]) -> str:
        return str([list(row) for row in rows])

    return f"""\
sample_rate: {vocoder.sampling_rate}
spk_embed_dim: {flow.spk_embed_dim}
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
  input_size: {flow.input_size}
  output_size: {flow.output_size}
  spk_embed_dim: !ref <spk_embed_dim>
  output_type: mel
  vocab_size: {flow.vocab_size}
  input_frame_rate: 12.5
  only_mask_loss: true
  encoder: !new:cosyvoice.transformer.encoder.BlockConformerEncoder
    input_size: {flow.input_size}
    output_size: {flow.encoder_output_size}
    attention_heads: {flow.encoder_heads}
    linear_units: {flow.encoder_linear_units}
    num_blocks: {flow.encoder_blocks}
    normalize_before: true
    input_layer: linear
    pos_enc_layer_type: rel_pos_espnet
    selfattention_layer_type: block_rel_selfattn
    block_size: {flow.block_size}
    use_cnn_module: false
    macaron_style: false
  length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
    channels: {flow.output_size}
    sampling_ratios: {[1] * flow.regulator_convs}
  decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
    in_channels: {3 * flow.output_size}
    n_spks: 1
    spk_emb_dim: {flow.output_size}
    cfm_params: !new:omegaconf.DictConfig
      content:
        sigma_min: {flow.sigma_min}
        solver: euler
        t_scheduler: cosine
        training_cfg_rate: {flow.training_cfg_rate}
        inference_cfg_rate: {flow.inference_cfg_rate}
        reg_loss_type: l1
    estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
      in_channels: {4 * flow.output_size}
      out_channels: {flow.output_size}
      channels: {list(flow.channels)}
      dropout: 0
      attention_head_dim: {flow.attention_head_dim}
      n_blocks: {flow.n_blocks}
      num_mid_blocks: {flow.num_mid_blocks}
      num_heads: {flow.num_heads}
      act_fn: gelu
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
  in_channels: {vocoder.in_channels}
  base_channels: {vocoder.base_channels}
  nb_harmonics: {vocoder.nb_harmonics}
  sampling_rate: !ref <sample_rate>
  nsf_alpha: {vocoder.nsf_alpha}
  nsf_sigma: {vocoder.nsf_sigma}
  nsf_voiced_threshold: {vocoder.nsf_voiced_threshold}
  upsample_rates: {list(vocoder.upsample_rates)}
  upsample_kernel_sizes: {list(vocoder.upsample_kernel_sizes)}
  istft_params:
    n_fft: {vocoder.istft_n_fft}
    hop_len: {vocoder.istft_hop}
  resblock_kernel_sizes: {list(vocoder.resblock_kernel_sizes)}
  resblock_dilation_sizes: {lists(vocoder.resblock_dilation_sizes)}
  source_resblock_kernel_sizes: {list(vocoder.source_resblock_kernel_sizes)}
  source_resblock_dilation_sizes: {lists(vocoder.source_resblock_dilation_sizes)}
  lrelu_slope: {vocoder.lrelu_slope}
  audio_limit: {vocoder.audio_limit}
  f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
    num_class: 1
    in_channels: {vocoder.in_channels}
    cond_channels: {vocoder.f0_channels}
"""
