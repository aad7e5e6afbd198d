"""--init-from and --train: what is asked for, what is copied, every fault named; and rows for new speech codes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from training.config import TrainingConfig, load_config
from training.errors import TrainingError
from training.init_from import (
    PARTS,
    InitFrom,
    code_pairs,
    init_folder,
    init_training,
    mixed_rows,
    recode,
)
from training.pipeline import parts_of
from training_lm_data import write_checkpoint, write_conversations
from vita_audio.checkpoint.check import check_checkpoint
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.text.tokenizer import TextTokenizer


def test_rows_are_mixed_as_often_as_codes_stood_code_pairs() -> None:
    counts = code_pairs([[0, 0, 1], [2]], [[3, 3, 3], [1]], 4)
    assert counts.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [2, 1, 0, 0]]
    rows = torch.tensor([[3.0, 0.0], [0.0, 6.0], [5.0, 5.0], [8.0, 9.0]])
    mean = rows.mean(0).tolist()
    assert mixed_rows(rows, counts).tolist() == [mean, [5.0, 5.0], mean, [2.0, 2.0]]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        code_pairs([[0]], [], 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_conversations(tmp_path / "data")
    write_checkpoint(tmp_path / "checkpoint")
    return tmp_path


def with_codes(old: Path, new: Path, places: torch.Tensor) -> Path:
    """A copy of a tokenizer whose codebook holds these codes of the old one."""
    shutil.copytree(old, new)
    weights = load_file(new / "model.safetensors")
    key = next(name for name in weights if name.endswith("codebook.weight"))
    weights[key] = weights[key][places].contiguous()
    save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
    return new


def test_a_tokenizer_whose_codes_changed_places(folder: Path) -> None:
    """The same sounds in the same codes under other numbers: rows move with their codes, all else stays."""
    source, old = folder / "checkpoint" / "language_model", folder / "checkpoint" / "speech_tokenizer"
    places = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    new = with_codes(old, folder / "new", places)  # new code c is what places[c] was
    made = recode(source, old, new, folder / "data", folder / "out", device="cpu")
    vocabulary = TextTokenizer(made / "tokenizer.json").vocabulary
    first, count = vocabulary.audio_offset, vocabulary.audio_codes
    (_, before), (_, after) = load_language_model(source), load_language_model(made)
    rows = slice(first, first + count)
    moved = 0
    for code in range(count):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if not torch.allclose(after[name][rows][code], before[name][rows].mean(0), atol=1e-6):
                assert torch.allclose(after[name][rows][code], before[name][rows][places[code]], atol=1e-6)
                moved += 1
    assert moved > 2  # codes that occur in the sounds
    for name in before:
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            outside = np.r_[0:first, first + count : len(before[name])]
            assert torch.equal(after[name][outside], before[name][outside])
        else:
            assert torch.equal(after[name], before[name])


def test_tokenizers_of_another_size_are_refused(folder: Path) -> None:
    source, old = folder / "checkpoint" / "language_model", folder / "checkpoint" / "speech_tokenizer"
    new = with_codes(old, folder / "new", torch.arange(100))
    config = (new / "config.json").read_text()
    (new / "config.json").write_text(config.replace('"quantize_vocab_size": 256', '"quantize_vocab_size": 100'))
    with pytest.raises(TrainingError, match="has 100 codes, the language model 256"):
        recode(source, old, new, folder / "data", folder / "out", device="cpu")


CHECKPOINT = Path("checkpoints/any")


def starts(train: str) -> dict[str, str]:
    asked = InitFrom.parse(CHECKPOINT, train)
    assert asked is not None
    return {name: how for name, how in asked.starts.items() if how != "unchanged"}


def test_what_is_trained() -> None:
    assert starts("flow") == {"flow": "continued"}
    assert starts(" vocoder, language_model") == {"vocoder": "continued", "language_model": "continued"}
    assert starts("language_model:scratch,flow") == {"language_model": "scratch", "flow": "continued"}
    assert starts("all") == dict.fromkeys(PARTS, "continued")
    assert starts("all,vocoder:scratch") == {**dict.fromkeys(PARTS, "continued"), "vocoder": "scratch"}
    assert InitFrom.parse(None, None) is None


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ("flows,vocoder,decoder", "'flows', 'decoder' unknown; --train takes all, or any of speech_tokenizer, vocoder"),
        ("flow:new", "'flow:new' unknown"),
        ("", "'' unknown"),
        ("speech_tokenizer", "flow and language_model must follow; add flow,language_model"),
        ("speech_tokenizer,flow", "which language_model must follow"),
        ("speech_tokenizer:scratch,language_model", "which flow must follow"),
    ],
)
def test_what_cannot_be_trained(train: str, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        InitFrom.parse(CHECKPOINT, train)


@pytest.mark.parametrize(("checkpoint", "train"), [(CHECKPOINT, None), (None, "flow")])
def test_one_option_without_the_other(checkpoint: Path | None, train: str | None) -> None:
    with pytest.raises(TrainingError, match="need each other"):
        InitFrom.parse(checkpoint, train)


RECORD = {"steps": 7, "elapsed_s": 1.0, "machine": "a machine", "last": {}}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint with records, of the sizes of `config_of`."""
    checkpoint = write_checkpoint(tmp_path / "source")
    names = ("speech_tokenizer", "vocoder", "flow", "stage1", "stage2", "stage3", "stage4", "tokens")
    (checkpoint / "training.json").write_text(json.dumps(dict.fromkeys(names, RECORD)))
    return checkpoint


def config_of(checkpoint: Path) -> TrainingConfig:
    """The tiny configuration with the sizes of a checkpoint."""
    tiny = load_config("tiny")
    sizes = check_checkpoint(checkpoint)
    model = sizes.language_model
    return replace(
        tiny,
        speech_tokenizer=replace(tiny.speech_tokenizer, model=sizes.speech_tokenizer),
        vocoder=replace(tiny.vocoder, model=sizes.vocoder),
        flow=replace(tiny.flow, model=sizes.flow),
        language_model=replace(
            tiny.language_model,
            model=replace(
                tiny.language_model.model,
                **{
                    name: getattr(model, name)
                    for name in (
                        "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
                        "backbone_layers", "mctp_modules", "max_position_embeddings", "rope_theta",
                    )
                },
            ),
        ),
    )  # fmt: skip


def names_of(config: TrainingConfig, train: str, source: Path, out: Path) -> list[str]:
    init = init_training(InitFrom.parse(source, train), config, out)
    return [part.name for part in parts_of(config, init, out, out / "checkpoint", "command")]


@pytest.mark.parametrize(
    ("train", "names"),
    [
        ("flow", ["flow"]),
        ("vocoder:scratch", ["vocoder"]),
        ("language_model", ["tokens", "stage4"]),
        ("language_model:scratch", ["tokens", "stage1", "stage2", "stage3", "stage4"]),
        ("speech_tokenizer,flow,language_model", ["speech_tokenizer", "flow", "tokens", "recode", "stage4"]),
        ("all:scratch", ["speech_tokenizer", "vocoder", "flow", "tokens", "stage1", "stage2", "stage3", "stage4"]),
    ],
)
def test_parts_that_are_left_to_do(source: Path, tmp_path: Path, train: str, names: list[str]) -> None:
    assert names_of(config_of(source), train, source, tmp_path / "out") == ["data", *names, "checkpoint"]


def test_what_is_there_stays_and_needs_no_options(source: Path, tmp_path: Path) -> None:
    config, out = config_of(source), tmp_path / "out"
    asked = InitFrom.parse(source, "flow,language_model:scratch")
    assert init_training(asked, config, out) == asked
    weights = init_folder(out, "flow") / "flow.pt"
    assert weights.read_bytes() == (source / "audio_decoder" / "flow.pt").read_bytes()
    assert not init_folder(out, "language_model").exists()
    shutil.rmtree(source)
    assert init_training(None, config, out) == InitFrom.read(out) == init_training(asked, config, out) == asked
    with pytest.raises(TrainingError, match=r"holds another training started from .*flow continued"):
        init_training(InitFrom.parse(source, "flow"), config, out)
    (tmp_path / "begun" / "stage2").mkdir(parents=True)
    with pytest.raises(TrainingError, match=r"holds another training \(stage2\)"):
        init_training(asked, config, tmp_path / "begun")
    assert init_training(None, config, tmp_path / "empty").checkpoint == ""


def test_every_part_that_does_not_fit_is_named(source: Path, tmp_path: Path) -> None:
    config = config_of(source)
    config = replace(
        config,
        vocoder=replace(config.vocoder, model=replace(config.vocoder.model, base_channels=48)),
        language_model=replace(config.language_model, model=replace(config.language_model.model, backbone_layers=2)),
    )
    shutil.rmtree(source / "speech_tokenizer")
    with pytest.raises(TrainingError, match="does not fit the configuration") as caught:
        init_training(InitFrom.parse(source, "language_model"), config, tmp_path / "out")
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert [line.split(":")[0] for line in lines if ":" in line][:1] == ["speech_tokenizer"]
    assert any(line.startswith("vocoder: VocoderConfig(") and "base_channels=48" in line for line in lines)
    assert any(line.startswith("language_model: LanguageModelConfig(") for line in lines)
    assert not any(line.startswith("flow") for line in lines)
    assert not (tmp_path / "out").exists()


def test_parts_from_random_weights_need_none(source: Path, tmp_path: Path) -> None:
    shutil.rmtree(source / "language_model")
    asked = InitFrom.parse(source, "language_model:scratch")
    assert init_training(asked, config_of_audio(source), tmp_path / "out") == asked


def config_of_audio(checkpoint: Path) -> TrainingConfig:
    """As `config_of`, of a checkpoint without a language model."""
    whole = write_checkpoint(checkpoint.parent / "whole")
    return config_of(whole)


def test_a_checkpoint_without_records_is_refused(source: Path, tmp_path: Path) -> None:
    config = config_of(source)
    (source / "training.json").write_text(json.dumps({"flow": RECORD, "vocoder": RECORD}))
    with pytest.raises(TrainingError, match=r"not the records of a training .*speech_tokenizer, stage1, .*tokens"):
        init_training(InitFrom.parse(source, "flow"), config, tmp_path / "out")
    (source / "training.json").unlink()
    with pytest.raises(TrainingError, match="take a checkpoint that this program made"):
        init_training(InitFrom.parse(source, "flow"), config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
