"""Plus checkpoints: SenseVoice beside the language model, of the authors' layout and our own; base and Plus are told
apart in one place; one error names what is missing or does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vita_audio.checkpoint.check import check_checkpoint
from vita_audio.checkpoint.cmvn import read_cmvn
from vita_audio.checkpoint.configs import SENSEVOICE, SPEECH_TOKENIZER
from vita_audio.checkpoint.file_records import checkpoint_sha256
from vita_audio.checkpoint.language_model import language_model_shapes, load_language_model, open_language_model
from vita_audio.checkpoint.random_weights.__main__ import write_random_checkpoint
from vita_audio.checkpoint.random_weights.audio import sensevoice_weights
from vita_audio.checkpoint.random_weights.tokenizer import control_tokens, write_tokenizer
from vita_audio.checkpoint.sensevoice import CTC_PREFIX, check_sensevoice, load_sensevoice, sensevoice_shapes
from vita_audio.checkpoint.sizes import RELEASED, TINY
from vita_audio.checkpoint.speech_input import speech_input_of
from vita_audio.checkpoint.weight_files import Weights
from vita_audio.contract.errors import CheckpointError
from vita_audio.models.sensevoice import SenseVoice
from vita_audio.text.vocabulary import Vocabulary

#: K = 0.
VANILLA = replace(
    TINY, language_model=replace(TINY.language_model, num_hidden_layers=3, num_nextn_predict_layers=0), dtype="bfloat16"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plus` and `base`, tiny."""
    folder = tmp_path_factory.mktemp("checkpoints")
    write_random_checkpoint(folder / "plus", TINY, speech_input=SENSEVOICE)
    write_random_checkpoint(folder / "base", TINY)
    return folder


@pytest.fixture
def plus(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "plus", tmp_path / "plus"))


@pytest.fixture
def base(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "base", tmp_path / "base"))


def edit(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refusal(folder: Path, read: Callable[[Path], object] = check_checkpoint) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("checkpoint", ["plus_mctp4", "plus_vanilla"])
def test_the_authors_layout(golden: Path, tmp_path: Path, checkpoint: str) -> None:
    """What they stored computes what they computed; the language model beside it is read without SenseVoice."""
    folder = tmp_path / "language_model"
    shutil.copytree(golden / "plus" / checkpoint, folder)
    shutil.copytree(golden / "plus" / "sensevoice", folder, dirs_exist_ok=True)
    (folder / "tokens.json").unlink()  # of the CTC head
    parts = load_sensevoice(folder)
    assert check_sensevoice(folder) == parts.config
    assert (parts.config.num_blocks, parts.config.tp_blocks, parts.config.embedding_size) == (3, 2, 48)
    model = SenseVoice(parts.config).eval()
    model.load_state_dict(parts.tensors)
    if checkpoint == "plus_vanilla":
        io, fronts = (load_file(golden / "plus" / f"{name}_io.safetensors") for name in ("encoder", "frontend"))
        features = fronts["1.37.features"]
        with torch.inference_mode():
            made = model(features[None], torch.tensor([len(features)]))[0]
        torch.testing.assert_close(made, io["1.37.embeddings"], rtol=0, atol=1e-4 * float(made.abs().max()))
    shift, scale = read_cmvn(golden / "plus" / "sensevoice" / "am.mvn")
    assert (parts.feature_shift == shift).all()
    assert (parts.feature_scale == scale).all()
    config, tensors = load_language_model(folder)
    assert tensors.keys() == language_model_shapes(config).keys()
    assert open_language_model(folder).config == config
    assert speech_input_of(folder / "config.json") == SENSEVOICE


def test_of_the_weights_only_its_own_are_read(plus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added: dict[str, Callable[[], Tensor]] = {}
    read: list[str] = []

    def add(weights: Weights, key: str, shape: list[int], reader: Callable[[], Tensor]) -> None:
        weights.shapes[key], added[key] = tuple(shape), reader

        def noted() -> Tensor:
            read.append(key)
            return added[key]()

        weights.readers[key] = noted

    monkeypatch.setattr(Weights, "add", add)
    parts = load_sensevoice(plus / "language_model", torch.bfloat16)
    assert sorted(read) == sorted(sensevoice_shapes(TINY.sensevoice))
    assert {tensor.dtype for tensor in parts.tensors.values()} == {torch.bfloat16}
    assert len(added) > len(read)


def test_shards(plus: Path, tmp_path: Path) -> None:
    """Tower and projector anywhere among the files of an index."""
    folder = plus / "language_model"
    tensors = load_file(folder / "model.safetensors")
    placed: dict[str, str] = {}
    whole = load_sensevoice(folder)
    (folder / "model.safetensors").unlink()
    for shard in range(2):
        name = f"model-{shard + 1:05}-of-00002.safetensors"
        part = {key: value for index, (key, value) in enumerate(sorted(tensors.items())) if index % 2 == shard}
        save_file(part, folder / name)
        placed |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    for key, value in load_sensevoice(folder).tensors.items():
        assert torch.equal(value, whole.tensors[key]), key
    assert check_checkpoint(plus).sensevoice == TINY.sensevoice


def test_a_random_plus_checkpoint(written: Path, tmp_path: Path) -> None:
    """Layout as released, every part fits, same seed, same bytes; embeddings as large as those of ids."""
    found = check_checkpoint(written / "plus")
    assert (found.speech_input, found.sensevoice, found.speech_tokenizer) == (SENSEVOICE, TINY.sensevoice, None)
    assert found.sizes().keys() == {"language_model", SENSEVOICE, "flow", "vocoder"}
    assert found.vocabulary.context_of_audio == found.vocabulary.end_of_audio + 1
    names = {path.relative_to(written / "plus").as_posix() for path in (written / "plus").rglob("*") if path.is_file()}
    assert {f"language_model/{name}" for name in ("configuration.json", "config.yaml", "am.mvn")} < names
    assert not any(name.startswith("speech_tokenizer/") for name in names)
    config = json.loads((written / "plus" / "language_model" / "config.json").read_text())
    assert config["model_type"] == "qwen2_mtp_sensevoice"
    assert config["architectures"] == ["Qwen2MTPSenseVoiceForCausalLM"]
    write_random_checkpoint(tmp_path / "same", TINY, speech_input=SENSEVOICE)
    assert checkpoint_sha256(tmp_path / "same") == checkpoint_sha256(written / "plus")

    parts = load_sensevoice(written / "plus" / "language_model")
    model = SenseVoice(parts.config).eval()
    model.load_state_dict(parts.tensors)
    with torch.inference_mode():
        rows = model(torch.randn(1, 50, 560), torch.tensor([50]))[0]
    assert 0.3 < float(rows.std()) < 3


def test_a_base_checkpoint(written: Path) -> None:
    found = check_checkpoint(written / "base")
    assert (found.speech_input, found.sensevoice) == (SPEECH_TOKENIZER, None)
    assert speech_input_of(written / "base" / "language_model" / "config.json") == SPEECH_TOKENIZER


def test_without_mctp_modules(tmp_path: Path) -> None:
    """The Plus-Vanilla kind."""
    write_random_checkpoint(tmp_path / "vanilla", VANILLA, speech_input=SENSEVOICE)
    found = check_checkpoint(tmp_path / "vanilla")
    assert (found.language_model.mctp_modules, found.sensevoice) == (0, TINY.sensevoice)
    assert found.default_pattern == (8192, 0)
    with safe_open(tmp_path / "vanilla" / "language_model" / "model.safetensors", framework="pt") as file:
        assert {str(file.get_slice(key).get_dtype()) for key in file.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.parametrize(("modules", "tensors", "parameters"), [(0, 1260, 7_979_042_111), (10, 1410, 10_566_592_831)])
def test_released_size(modules: int, tensors: int, parameters: int) -> None:
    """Counted by the authors' own code (docs/plus.md)."""
    config = replace(RELEASED.language_model, num_hidden_layers=28 + modules, num_nextn_predict_layers=modules)
    shapes = language_model_shapes(config) | sensevoice_shapes(RELEASED.sensevoice)
    count = {key: torch.Size(shape).numel() for key, shape in shapes.items()}
    projector = sum(value for key, value in count.items() if key.startswith("model.audio_projection."))
    tower = sum(value for key, value in count.items() if key.startswith("model.audio_model."))
    assert (projector, tower) == (14_681_088, 233_999_167 - 12_853_215)
    drawn = sensevoice_weights(RELEASED.sensevoice, 0, torch.device("meta"))
    assert drawn.keys() - shapes.keys() == {f"{CTC_PREFIX}ctc_lo.{name}" for name in ("weight", "bias")}
    assert len(shapes.keys() | drawn.keys()) == tensors
    assert sum(count.values()) + 12_853_215 == parameters


def test_ids_of_the_released_layout(tmp_path: Path) -> None:
    text_tokens, context_of_audio = 151_643, 151_676  # docs/audio.md 7
    controls = control_tokens(text_tokens, plus=True)
    assert text_tokens + controls.index("<|context_of_audio|>") == context_of_audio
    assert text_tokens + controls.index("<|audio|>") == 151_685
    assert text_tokens + len(controls) == 151_686
    write_tokenizer(tmp_path, 100, 8, 0, text_tokens=400, plus=True)
    made = Vocabulary.from_tokenizer(tmp_path / "tokenizer.json")
    assert made.context_of_audio == 400 + context_of_audio - text_tokens


def test_a_base_checkpoint_with_plus_files(base: Path, plus: Path) -> None:
    shutil.copy(plus / "language_model" / "am.mvn", base / "language_model")
    text = refusal(base)
    assert "model_type is not qwen2_mtp_sensevoice (base: speech through speech_tokenizer/)" in text
    assert "am.mvn is of a Plus checkpoint; take all files from one release" in text
    shutil.copy(plus / "language_model" / "tokenizer.json", base / "language_model")
    shutil.copy(plus / "language_model" / "model.safetensors", base / "language_model")
    text = refusal(base)
    assert "tokenizer.json has <|context_of_audio|>, the weights have " in text
    assert "tensors model.audio_model.* or model.audio_projection.*" in text


def test_a_plus_checkpoint_with_base_files(base: Path, plus: Path) -> None:
    shutil.copytree(base / "speech_tokenizer", plus / "speech_tokenizer")
    text = refusal(plus)
    assert "model_type is qwen2_mtp_sensevoice (Plus: speech through SenseVoice), but " in text
    assert "speech_tokenizer is of a base checkpoint" in text
    shutil.copy(base / "language_model" / "model.safetensors", plus / "language_model")
    shutil.copy(base / "language_model" / "tokenizer.json", plus / "language_model")
    text = refusal(plus)
    assert "tokenizer.json has no <|context_of_audio|>, the weights have no tensors model.audio_model.*" in text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "am.mvn").unlink(), ["am.mvn: file is missing"]),
        (lambda folder: (folder / "config.yaml").unlink(), ["config.yaml: file is missing"]),
        (
            lambda folder: [(folder / name).unlink() for name in ("am.mvn", "config.yaml")],
            ["config.yaml: file is missing", "am.mvn: file is missing"],
        ),
        (lambda folder: (folder / "config.yaml").write_text("encoder_conf: ["), ["config.yaml: not valid YAML"]),
        (lambda folder: (folder / "config.yaml").write_text("a: 1"), ["encoder_conf is missing or no mapping"]),
        (lambda folder: swap(folder, "lfr_m: 7", "lfr_m: 5"), ["frontend_conf: lfr_m is 5, only 7 is supported"]),
        (lambda folder: swap(folder, "output_size: 32", "output_size: 0"), ["encoder_conf: output_size is 0"]),
        (lambda folder: swap(folder, "linear_units: 64", "linear_units: 48"), ["w_1.bias is [64], must be [48]"]),
        (
            lambda folder: swap(folder, "num_blocks: 2", "num_blocks: 3"),
            ["13 missing tensors: model.audio_model.model.encoder.encoders.1.", "config.yaml and the weights"],
        ),
        (lambda folder: swap(folder, "num_blocks: 2", "num_blocks: 1"), ["unexpected tensors"]),
        (
            lambda folder: edit(
                folder / "model.safetensors",
                lambda tensors: tensors.update({"model.audio_projection.mlp.2.weight": torch.zeros(3)}),
            ),
            ["model.audio_projection.mlp.2.weight is [3], must be [64, 64]"],
        ),
        (
            lambda folder: edit(folder / "model.safetensors", lambda tensors: tensors.pop(EMBED)),
            ["1 missing tensor: model.audio_model.model.embed.weight"],
        ),
    ],
)
def test_what_is_missing_or_disagrees(plus: Path, change: Callable[[Path], object], told: list[str]) -> None:
    change(plus / "language_model")
    for read, folder in ((check_checkpoint, plus), (load_sensevoice, plus / "language_model")):
        text = refusal(folder, read)
        assert all(part in text for part in told), text


EMBED = "model.audio_model.model.embed.weight"


def swap(folder: Path, old: str, new: str) -> None:
    path = folder / "config.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_the_vocabulary_before_training(plus: Path) -> None:
    """The repository's config for K = 0 has 152 064 rows, the trained weights more."""
    path = plus / "language_model" / "config.json"
    config = json.loads(path.read_text())
    rows = config["vocab_size"]
    path.write_text(json.dumps(config | {"vocab_size": 64}))
    assert f"vocab_size is 64 but model.embed_tokens.weight has {rows} rows" in refusal(plus)


def test_the_ctc_head_is_not_needed(plus: Path) -> None:
    path = plus / "language_model" / "model.safetensors"
    edit(path, lambda tensors: [tensors.pop(key) for key in list(tensors) if key.startswith(CTC_PREFIX)])
    assert check_checkpoint(plus).sensevoice == TINY.sensevoice
