"""Loaders of the released layouts: what they accept, and one error that names everything wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vita_audio.checkpoint.audio_decoder import fold_weight_norm, load_flow, load_vocoder, split_weight_norm
from vita_audio.checkpoint.audio_decoder_config import write_audio_decoder_yaml
from vita_audio.checkpoint.configs import (
    ConfigFields,
    FlowConfig,
    LanguageModelConfig,
    SenseVoiceConfig,
    SpeechTokenizerConfig,
    VocoderConfig,
)
from vita_audio.checkpoint.language_model import language_model_shapes, load_language_model
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.checkpoint.weight_files import open_torch_file
from vita_audio.contract.errors import CheckpointError
from vita_audio.models.flow import Flow
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.models.vocoder import Vocoder

LANGUAGE_MODEL = LanguageModelConfig(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, num_nextn_predict_layers=2, max_position_embeddings=64,
)  # fmt: skip
SPEECH_TOKENIZER = SpeechTokenizerConfig(
    d_model=16, encoder_attention_heads=2, encoder_ffn_dim=24, num_mel_bins=8, quantize_position=2,
    quantize_vocab_size=20, max_source_positions=40,
)  # fmt: skip
FLOW = FlowConfig(
    vocab_size=30, input_size=16, encoder_output_size=16, encoder_heads=2, encoder_linear_units=24,
    encoder_blocks=1, channels=(16, 16), attention_head_dim=8, n_blocks=1, num_mid_blocks=1, num_heads=2,
)  # fmt: skip
VOCODER = VocoderConfig(base_channels=16, f0_channels=8)


def write_language_model(
    folder: Path, tensors: dict[str, Tensor] | None = None, shards: int = 1, **fields: object
) -> dict[str, Tensor]:
    """A checkpoint in the released layout; with more than one shard, an index."""
    folder.mkdir(exist_ok=True)
    names = LANGUAGE_MODEL.__slots__
    config = {name: getattr(LANGUAGE_MODEL, name) for name in names} | {"model_type": "qwen2_mtp"} | fields
    (folder / "config.json").write_text(json.dumps(config))
    if tensors is None:
        parsed = LanguageModelConfig.from_json(json.dumps(config))
        tensors = {key: torch.randn(shape) for key, shape in language_model_shapes(parsed).items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    keys, placed = sorted(tensors), {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({key: tensors[key] for key in keys[shard::shards]}, folder / name)
        placed |= dict.fromkeys(keys[shard::shards], name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return tensors


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(got[key], value), key


def fault(load: Callable[[Path], object], folder: Path, *parts: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
    return text


# Language model


@pytest.mark.parametrize("shards", [1, 3])
def test_language_model_single_and_sharded(tmp_path: Path, shards: int) -> None:
    tensors = write_language_model(tmp_path, shards=shards)
    config, loaded = load_language_model(tmp_path)
    assert config == LANGUAGE_MODEL
    assert_equal(loaded, tensors)


def test_language_model_without_mctp(tmp_path: Path) -> None:
    tensors = write_language_model(tmp_path, num_nextn_predict_layers=0)
    config, loaded = load_language_model(tmp_path)
    assert (config.mctp_modules, config.backbone_layers) == (0, 4)
    assert_equal(loaded, tensors)


def test_language_model_dtype(tmp_path: Path) -> None:
    tensors = {key: value.bfloat16() for key, value in write_language_model(tmp_path).items()}
    write_language_model(tmp_path, tensors)
    assert {value.dtype for value in load_language_model(tmp_path)[1].values()} == {torch.float32}
    assert_equal(load_language_model(tmp_path, dtype=None)[1], tensors)


def test_language_model_tied_and_plus_parts(tmp_path: Path) -> None:
    tensors = write_language_model(tmp_path, tie_word_embeddings=True)
    speech_encoder = {
        "model.audio_model.model.embed.weight": torch.zeros(2),
        "model.audio_projection.mlp.0.weight": torch.zeros(2),
    }
    write_language_model(tmp_path, tensors | speech_encoder, tie_word_embeddings=True)
    _, loaded = load_language_model(tmp_path)
    assert_equal(loaded, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})


def test_language_model_golden(golden: Path) -> None:
    config, tensors = load_language_model(golden / "language_model" / "mctp4")
    assert (config.mctp_modules, config.backbone_layers) == (4, 3)
    assert len(tensors) == 99


def test_language_model_all_faults_at_once(tmp_path: Path) -> None:
    tensors = write_language_model(tmp_path)
    del tensors["lm_head.weight"], tensors["mtp_projs.1.weight"]
    tensors["model.norm.weight"] = torch.zeros(3)
    tensors["stranger"] = torch.zeros(1)
    write_language_model(tmp_path, tensors)
    fault(
        load_language_model,
        tmp_path,
        "2 missing tensors: lm_head.weight, mtp_projs.1.weight",
        "1 unexpected tensor: stranger",
        "1 wrong shape: model.norm.weight is [3], must be [16]",
        str(tmp_path),
        "download",
    )


def test_long_lists_are_cut_with_a_count(tmp_path: Path) -> None:
    write_language_model(tmp_path, {"stranger": torch.zeros(1)})
    text = fault(load_language_model, tmp_path, f"({len(language_model_shapes(LANGUAGE_MODEL))} in all)")
    assert len(text) < 800


def test_shards_missing_and_truncated(tmp_path: Path) -> None:
    write_language_model(tmp_path, shards=3)
    (tmp_path / "model-00001-of-00003.safetensors").unlink()
    cut = tmp_path / "model-00002-of-00003.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    fault(load_language_model, tmp_path, "model-00001-of-00003", "model-00002-of-00003", "truncated", "missing tensors")


def test_shards_of_a_clone_without_git_lfs(tmp_path: Path) -> None:
    write_language_model(tmp_path, shards=3)
    name = "model-00002-of-00003.safetensors"
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    fault(load_language_model, tmp_path, f"{name} is a Git LFS pointer, not the file: run git lfs pull")


def test_shard_that_contradicts_its_index(tmp_path: Path) -> None:
    write_language_model(tmp_path, shards=2)
    index = tmp_path / "model.safetensors.index.json"
    placed = json.loads(index.read_text())
    placed["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    placed["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps(placed))
    fault(load_language_model, tmp_path, "does not hold what model.safetensors.index.json says")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"weight_map": {"a": "../../elsewhere.safetensors"}}', '{"weight_map": {"a": 3}}']
)
def test_bad_index(tmp_path: Path, text: str) -> None:
    write_language_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    fault(load_language_model, tmp_path, "model.safetensors.index.json", "not a weight index")


def test_missing_files(tmp_path: Path) -> None:
    fault(load_language_model, tmp_path, "config.json", "missing")
    write_language_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    fault(load_language_model, tmp_path, "model.safetensors", "truncated")
    (tmp_path / "model.safetensors").unlink()
    fault(load_language_model, tmp_path, "neither model.safetensors nor model.safetensors.index.json")
    (tmp_path / "config.json").write_text("{broken")
    fault(load_language_model, tmp_path, "config.json", "not valid JSON")


def test_language_model_config_names_every_fault() -> None:
    good = {name: getattr(LANGUAGE_MODEL, name) for name in LANGUAGE_MODEL.__slots__}
    bad = good | {"vocab_size": "many", "hidden_size": 0, "rope_theta": -1.0, "hidden_act": "relu"}
    del bad["intermediate_size"]
    with pytest.raises(CheckpointError) as caught:
        LanguageModelConfig.from_json(json.dumps(bad))
    for part in (
        "vocab_size is 'many'",
        "hidden_size is 0",
        "rope_theta",
        "hidden_act",
        "intermediate_size is missing",
    ):
        assert part in str(caught.value)
    for change, part in (
        ({"num_nextn_predict_layers": 4}, "num_hidden_layers 4"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"hidden_size": 20}, "hidden_size 20"),
    ):
        with pytest.raises(CheckpointError, match=part):
            LanguageModelConfig.from_json(json.dumps(good | change))


def language_model_config(**fields: object) -> LanguageModelConfig:
    good = {name: getattr(LANGUAGE_MODEL, name) for name in LANGUAGE_MODEL.__slots__}
    del good["rope_theta"]
    return LanguageModelConfig.from_json(json.dumps(good | fields))


def test_rotary_settings_as_transformers_5_writes_them() -> None:
    assert language_model_config().rope_theta == 1e6
    assert language_model_config(rope_parameters={"rope_theta": 1e4, "rope_type": "default"}).rope_theta == 1e4
    assert language_model_config(rope_parameters={"rope_theta": 1e4}, rope_theta=1e4).rope_theta == 1e4
    assert language_model_config(rope_parameters=None, rope_theta=1e4).rope_theta == 1e4
    for fields, part in (
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type is 'yarn', only 'default'"),
        ({"rope_parameters": {"rope_theta": 1e4}, "rope_theta": 1e6}, "rope_theta is 1000000.0 but rope_parameters"),
        ({"rope_parameters": {"rope_theta": "fast"}}, "rope_theta is 'fast', must be a finite number"),
        ({"rope_parameters": 1e4}, "rope_parameters is 10000.0, must be a JSON object"),
    ):
        with pytest.raises(CheckpointError, match=re.escape(part)):
            language_model_config(**fields)


def test_heads_of_another_width_are_refused() -> None:
    assert language_model_config(head_dim=4) == language_model_config(head_dim=None) == LANGUAGE_MODEL
    with pytest.raises(CheckpointError, match="head_dim is 8, only hidden_size / num_attention_heads = 4"):
        language_model_config(head_dim=8)


@pytest.mark.parametrize("value", [0, -4])
@pytest.mark.parametrize(
    ("read", "config", "name"),
    [
        (LanguageModelConfig.from_json, LANGUAGE_MODEL, "hidden_size"),
        (LanguageModelConfig.from_json, LANGUAGE_MODEL, "num_attention_heads"),
        (LanguageModelConfig.from_json, LANGUAGE_MODEL, "num_key_value_heads"),
        (SpeechTokenizerConfig.from_json, SPEECH_TOKENIZER, "encoder_attention_heads"),
        (FlowConfig.from_fields, FLOW, "encoder_heads"),
        (VocoderConfig.from_fields, VOCODER, "istft_hop"),
    ],
)
def test_a_size_of_zero_is_named(read: Callable[..., object], config: object, name: str, value: int) -> None:
    values = {each: getattr(config, each) for each in config.__slots__} | {name: value}
    source = ConfigFields(values, "config") if read.__name__ == "from_fields" else json.dumps(values)
    with pytest.raises(CheckpointError, match=f"{name} is {value}, must be an integer >= 1") as caught:
        read(source)
    assert str(caught.value).count(" must be ") == 1, "nothing that follows from it"


def test_heads_of_sensevoice_are_not_zero() -> None:
    values = {name: getattr(SenseVoiceConfig(), name) for name in SenseVoiceConfig.__slots__} | {"attention_heads": 0}
    with pytest.raises(CheckpointError, match="attention_heads is 0, must be an integer >= 1"):
        SenseVoiceConfig.from_fields(ConfigFields(values, "encoder_conf"), 16)


def test_a_number_beyond_those_of_a_float_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"rope_theta is 10+, must be a finite number"):
        language_model_config(rope_theta=10**400)
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
        LanguageModelConfig.from_json('{"rope_theta": 1' + 5000 * "0" + "}")


# Speech tokenizer


def write_speech_tokenizer(folder: Path, tensors: dict[str, Tensor]) -> None:
    fields = {name: getattr(SPEECH_TOKENIZER, name) for name in SPEECH_TOKENIZER.__slots__}
    (folder / "config.json").write_text(json.dumps(fields | {"encoder_layers": 4, "pooling_position": 2}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": 8, "hop_length": 160, "n_fft": 400}))
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def speech_tokenizer_state() -> dict[str, Tensor]:
    return {key: torch.randn_like(value) for key, value in SpeechTokenizer(SPEECH_TOKENIZER).state_dict().items()}


def test_speech_tokenizer_plain_keys(tmp_path: Path, speech_tokenizer_state: dict[str, Tensor]) -> None:
    averages = {"ema_count": torch.zeros(20), "ema_weight": torch.zeros(20, 16)}
    write_speech_tokenizer(tmp_path, speech_tokenizer_state | averages)
    config, loaded = load_speech_tokenizer(tmp_path)
    assert config == SPEECH_TOKENIZER
    assert_equal(loaded, speech_tokenizer_state)
    SpeechTokenizer(config).load_state_dict(loaded)


def test_speech_tokenizer_whole_whisper_keys(tmp_path: Path, speech_tokenizer_state: dict[str, Tensor]) -> None:
    later = {
        key.replace("layers.1.", "layers.3."): value
        for key, value in speech_tokenizer_state.items()
        if "layers.1." in key
    }
    encoder = (
        speech_tokenizer_state | later | {"layer_norm.weight": torch.zeros(16), "layer_norm.bias": torch.zeros(16)}
    )
    stored = {"model.encoder." + key: value.clone() for key, value in encoder.items()}
    stored |= {"model.encoder.ema_count": torch.zeros(20), "model.decoder.layers.0.fc1.weight": torch.zeros(2)}
    stored |= {"proj_out.weight": torch.zeros(2)}
    write_speech_tokenizer(tmp_path, stored)
    assert_equal(load_speech_tokenizer(tmp_path)[1], speech_tokenizer_state)


def test_speech_tokenizer_faults(tmp_path: Path, speech_tokenizer_state: dict[str, Tensor]) -> None:
    del speech_tokenizer_state["codebook.weight"]
    speech_tokenizer_state["conv1.bias"] = torch.zeros(4)
    write_speech_tokenizer(tmp_path, speech_tokenizer_state)
    fault(load_speech_tokenizer, tmp_path, "1 missing tensor: codebook.weight", "conv1.bias is [4], must be [16]")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"feature_size": 128, "hop_length": 200}))
    fault(load_speech_tokenizer, tmp_path, "feature_size is 128, only 8", "hop_length is 200")


# Flow and vocoder


@pytest.fixture
def audio_decoder(tmp_path: Path) -> Path:
    """A folder in the released layout: config.yaml, flow.pt, hift.pt with weight norm."""
    torch.manual_seed(0)
    (tmp_path / "config.yaml").write_text(write_audio_decoder_yaml(FLOW, VOCODER))
    torch.save(Flow(FLOW).state_dict(), tmp_path / "flow.pt")
    torch.save(split_weight_norm(Vocoder(VOCODER).state_dict()), tmp_path / "hift.pt")
    return tmp_path


def test_flow_and_vocoder_released_layout(audio_decoder: Path) -> None:
    config, tensors = load_flow(audio_decoder)
    assert config == FLOW
    assert_equal(tensors, torch.load(audio_decoder / "flow.pt", weights_only=True))
    vocoder_config, vocoder_tensors = load_vocoder(audio_decoder)
    assert vocoder_config == VOCODER
    Vocoder(vocoder_config).load_state_dict(vocoder_tensors)


def test_weight_norm_round_trip() -> None:
    """split then fold gives the weights back; the norm runs over all axes but the first, also of transposed convs."""
    state = Vocoder(VOCODER).state_dict()
    split = split_weight_norm(state)
    assert split["ups.0.weight_g"].shape == (16, 1, 1)  # input channels of the transposed convolution
    assert "source_downs.0.weight" in split
    for key in (key for key in split if key.endswith("_v")):
        direction, magnitude = split[key] * 3.0, split[key[:-1] + "g"]  # the length of v does not matter
        torch.testing.assert_close(fold_weight_norm(direction, magnitude), state[key[:-2]])
        module = torch.nn.Conv1d(1, 1, 1)
        module.weight = torch.nn.Parameter(state[key[:-2]].clone())
        reference = torch.nn.utils.parametrizations.weight_norm(module, dim=0)
        torch.testing.assert_close(reference.parametrizations.weight.original0, magnitude)


def test_folded_vocoder_is_accepted(audio_decoder: Path) -> None:
    folded = load_vocoder(audio_decoder)[1]
    torch.save(folded, audio_decoder / "hift.pt")
    assert_equal(load_vocoder(audio_decoder)[1], folded)


def test_vocoder_golden_layout(golden: Path) -> None:
    config, tensors = load_vocoder(golden / "audio_decoder")
    stored = load_file(golden / "audio_decoder" / "hift.safetensors")
    assert (config.base_channels, config.f0_channels, config.nb_harmonics, config.in_channels) == (32, 32, 8, 80)
    assert not any(key.endswith(("_g", "_v")) for key in tensors)
    assert torch.equal(tensors["source_downs.0.weight"], stored["source_downs.0.weight"])


def test_sizes_that_a_flat_config_leaves_out_are_those_of_the_weights(tmp_path: Path) -> None:
    other = VocoderConfig(base_channels=16, f0_channels=8, nb_harmonics=3, in_channels=20)
    (tmp_path / "hift.json").write_text(json.dumps({"base_channels": 16}))
    save_file(split_weight_norm(Vocoder(other).state_dict()), tmp_path / "hift.safetensors")
    assert load_vocoder(tmp_path)[0] == other


def test_flow_faults(audio_decoder: Path) -> None:
    state = torch.load(audio_decoder / "flow.pt", weights_only=True)
    del state["encoder_proj.weight"]
    state["decoder.estimator.final_proj.bias"] = torch.zeros(3)
    state["epoch"] = 7
    torch.save(state, audio_decoder / "flow.pt")
    fault(
        load_flow,
        audio_decoder,
        "flow.pt",
        "1 entry that is not a tensor: epoch",
        "1 missing tensor: encoder_proj.weight",
        "final_proj.bias is [3], must be [80]",
    )


def test_vocoder_half_a_weight_norm(audio_decoder: Path) -> None:
    state = torch.load(audio_decoder / "hift.pt", weights_only=True)
    del state["conv_pre.weight_g"]
    torch.save(state, audio_decoder / "hift.pt")
    fault(load_vocoder, audio_decoder, "1 missing tensor: conv_pre.weight_g")


def test_truncated_and_missing_torch_files(audio_decoder: Path) -> None:
    path = audio_decoder / "flow.pt"
    path.write_bytes(path.read_bytes()[:-2000])
    fault(load_flow, audio_decoder, "flow.pt", "truncated")
    path.write_bytes(b"")
    fault(load_flow, audio_decoder, "flow.pt", "truncated")
    path.unlink()
    fault(load_flow, audio_decoder, "flow.pt", "missing")
    path.mkdir()
    fault(load_flow, audio_decoder, "flow.pt")
    shutil.rmtree(path)
    torch.save([torch.zeros(1)], path)
    fault(load_flow, audio_decoder, "flow.pt", "holds a list")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html>not found</html>", "not a torch file, it begins with b'<!DOCTYPE html>"),
        (b"just words", "not a torch file, it begins with b'just words'"),
    ],
)
def test_what_a_download_left_in_place_of_a_torch_file(audio_decoder: Path, content: bytes, told: str) -> None:
    for name, load in (("flow.pt", load_flow), ("hift.pt", load_vocoder)):
        (audio_decoder / name).write_bytes(content)
        text = fault(load, audio_decoder, name, told)
        assert "more than tensors" not in text


def test_torch_files_of_the_older_form_that_were_cut(audio_decoder: Path) -> None:
    path = audio_decoder / "cut.pt"
    torch.save({"weight": torch.zeros(30)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    assert open_torch_file(path).shapes == {"weight": (30,)}
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        fault(open_torch_file, path, "cut.pt", "download")


class _Code:
    """Unpickling this would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.marker,))


def test_torch_file_with_code_is_refused_and_not_run(audio_decoder: Path) -> None:
    marker = audio_decoder / "executed"
    torch.save({"weight": _Code(marker)}, audio_decoder / "hift.pt")
    text = fault(load_vocoder, audio_decoder, "hift.pt", "more than tensors", "Unsupported global")
    assert "weights_only" not in text, "advice to run the code"
    assert not marker.exists()


def test_config_yaml_missing(tmp_path: Path) -> None:
    fault(load_flow, tmp_path, "config.yaml", "missing")
    fault(load_vocoder, tmp_path, "config.yaml", "missing")
