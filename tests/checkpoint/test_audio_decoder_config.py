"""The released config.yaml is read as plain data: sizes, references, faults; nothing in it is executed."""

from __future__ import annotations

from pathlib import Path

import pytest

from vita_audio.checkpoint.audio_decoder_config import parse_audio_decoder_yaml, write_audio_decoder_yaml
from vita_audio.checkpoint.configs import FlowConfig, SpeechTokenizerConfig, VocoderConfig
from vita_audio.contract.errors import CheckpointError

# The released file's structure: seeds by !apply, an unused language model, references, YAML 1.1 numbers as text.
RELEASED = """\
__set_seed1: !apply:random.seed [1986]
__set_seed2: !apply:torch.manual_seed [1986]
sample_rate: 22050
llm_input_size: 1024
spk_embed_dim: 192
llm: !new:cosyvoice.llm.llm.TransformerLM
  llm_input_size: !ref <llm_input_size>
  sampling: !name:cosyvoice.utils.common.ras_sampling
    top_p: 0.8
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
  input_size: 512
  output_size: 80
  spk_embed_dim: !ref <spk_embed_dim>
  output_type: 'mel'
  vocab_size: 16384
  input_frame_rate: 12.5
  only_mask_loss: True
  encoder: !new:cosyvoice.transformer.encoder.BlockConformerEncoder
    output_size: 512
    attention_heads: 8
    linear_units: 2048
    num_blocks: 6
    dropout_rate: 0.1
    normalize_before: True
    input_layer: 'linear'
    pos_enc_layer_type: 'rel_pos_espnet'
    selfattention_layer_type: 'block_rel_selfattn'
    input_size: 512
    use_cnn_module: False
    macaron_style: False
    block_size: 10
  length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
    channels: 80
    sampling_ratios: [1, 1, 1, 1]
  decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
    in_channels: 240
    n_spks: 1
    spk_emb_dim: 80
    cfm_params: !new:omegaconf.DictConfig
      content:
        sigma_min: 1e-06
        solver: 'euler'
        t_scheduler: 'cosine'
        training_cfg_rate: 0.2
        inference_cfg_rate: 0.7
        reg_loss_type: 'l1'
    estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
      in_channels: 320
      out_channels: 80
      channels: [256, 256]
      dropout: 0.0
      attention_head_dim: 64
      n_blocks: 4
      num_mid_blocks: 12
      num_heads: 8
      act_fn: 'gelu'
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
  in_channels: 80
  base_channels: 512
  nb_harmonics: 8
  sampling_rate: !ref <sample_rate>
  nsf_alpha: 0.1
  nsf_sigma: 0.003
  nsf_voiced_threshold: 10
  upsample_rates: [8, 8]
  upsample_kernel_sizes: [16, 16]
  istft_params:
    n_fft: 16
    hop_len: 4
  resblock_kernel_sizes: [3, 7, 11]
  resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
  source_resblock_kernel_sizes: [7, 11]
  source_resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5]]
  lrelu_slope: 0.1
  audio_limit: 0.99
  f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
    num_class: 1
    in_channels: 80
    cond_channels: 512
"""


def test_released_file() -> None:
    flow, vocoder = parse_audio_decoder_yaml(RELEASED)
    assert flow == FlowConfig()
    assert vocoder == VocoderConfig()


def test_write_and_read_back() -> None:
    flow = FlowConfig(vocab_size=2048, input_size=128, encoder_output_size=96, channels=(64, 96), regulator_convs=2)
    vocoder = VocoderConfig(base_channels=96, upsample_rates=(8, 4), nb_harmonics=4, f0_channels=32)
    assert parse_audio_decoder_yaml(write_audio_decoder_yaml(flow, vocoder)) == (flow, vocoder)


def test_nothing_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    hostile = (
        f"a: !apply:os.system ['touch {marker}']\n"
        f"b: !new:pathlib.Path ['{marker}']\n"
        f"c: !module:antigravity\nd: !include:/etc/passwd\n"
    )
    assert parse_audio_decoder_yaml(hostile + RELEASED)[0] == FlowConfig()
    assert not marker.exists()
    with pytest.raises(CheckpointError, match="not valid YAML"):  # not an unknown tag but Python's own: refused
        parse_audio_decoder_yaml(f"a: !!python/object/apply:os.system ['touch {marker}']\n" + RELEASED)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("vocab_size: 16384", "vocab_size: -3", ["vocab_size is -3"]),
        ("BlockConformerEncoder", "ConformerEncoder", ["flow.encoder is a ConformerEncoder"]),
        ("ConditionalCFM", "CausalConditionalCFM", ["flow.decoder is a CausalConditionalCFM"]),
        ("t_scheduler: 'cosine'", "t_scheduler: 'linear'", ["t_scheduler", "'linear'"]),
        ("channels: [256, 256]", "channels: [250, x]", ["channels is [250, 'x']"]),
        ("channels: [256, 256]", "channels: [250, 256]", ["multiple of 8"]),
        ("attention_heads: 8", "attention_heads: 7", ["encoder_heads", "7"]),
        ("upsample_rates: [8, 8]", "upsample_rates: [8]", ["upsample_kernel_sizes"]),
        ("  istft_params:", "  other_params:", ["hift.istft_params is missing"]),
        ("spk_embed_dim: !ref <spk_embed_dim>", "spk_embed_dim: !ref <nowhere>", ["spk_embed_dim", "<nowhere>"]),
        ("hop_len: 4", "hop_len: 5", ["multiple of 2 x hop_len"]),
        ("flow: !new", "flaw: !new", ["section flow is missing"]),
    ],
)
def test_faults_are_named(old: str, new: str, told: list[str]) -> None:
    assert old in RELEASED
    with pytest.raises(CheckpointError) as caught:
        parse_audio_decoder_yaml(RELEASED.replace(old, new, 1), "some/config.yaml")
    assert "\n" not in str(caught.value)
    for part in ["some/config.yaml", *told]:
        assert part in str(caught.value)


def test_faults_of_both_networks_in_one_error() -> None:
    text = RELEASED.replace("num_blocks: 6", "num_blocks: 0").replace("base_channels: 512", "base_channels: many")
    with pytest.raises(CheckpointError, match=r"encoder_blocks is 0.*base_channels is 'many'"):
        parse_audio_decoder_yaml(text)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "", "a: &x [*x]\n"])
def test_not_a_config(text: str) -> None:
    with pytest.raises(CheckpointError):
        parse_audio_decoder_yaml(text)


def test_speech_tokenizer_config_names_every_fault() -> None:
    text = '{"d_model": 0, "encoder_attention_heads": true, "encoder_ffn_dim": 8, "pooling_type": "max"}'
    with pytest.raises(CheckpointError) as caught:
        SpeechTokenizerConfig.from_json(text, "config.json")
    for part in ("d_model is 0", "encoder_attention_heads is True", "num_mel_bins is missing", "pooling_type is 'max'"):
        assert part in str(caught.value)
