"""New speech codes start from the rows of the old codes that stood for the same sounds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from training.language_model.recode import mixed_rows, recode, together

from training.errors import TrainingError
from training_lm_data import write_checkpoint, write_conversations
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.text.tokenizer import TextTokenizer


def test_rows_are_mixed_as_often_as_codes_stood_together() -> None:
    counts = together([[0, 0, 1], [2]], [[3, 3, 3], [1]], 4)
    assert counts.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [2, 1, 0, 0]]
    rows = torch.tensor([[3.0, 0.0], [0.0, 6.0], [5.0, 5.0], [8.0, 9.0]])
    mean = rows.mean(0).tolist()
    assert mixed_rows(rows, counts).tolist() == [mean, [5.0, 5.0], mean, [2.0, 2.0]]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        together([[0]], [], 4)


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
