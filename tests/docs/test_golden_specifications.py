"""The executable specifications beside the golden data still compute it: a case of each kind (all: run the files)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture(autouse=True)
def one_thread_without_gradients() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["mctp10", "mctp4"])
def test_language_model(golden: Path, name: str) -> None:
    folder = golden / "language_model" / name
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    cases = json.loads((folder / "greedy_tokens.json").read_text())
    bursts = [case for case in cases if case["repetition_penalty"] == 1.0 and max(case["pattern"][1::2]) > 0]
    case = min(bursts, key=lambda case: len(case["prompt"]))
    made, _ = load(golden / "spec.py").generate(config, tensors, case["prompt"], case["pattern"], len(case["tokens"]))
    assert made == case["tokens"]


def test_plus_speech_to_embeddings(golden: Path) -> None:
    folder, spec = golden / "plus", load(golden / "spec_plus.py")
    sounds, expected = load_file(folder / "frontend_io.safetensors"), load_file(folder / "encoder_io.safetensors")
    weights = {key: value.float() for key, value in load_file(folder / "plus_vanilla" / "model.safetensors").items()}
    made = spec.features(sounds["0.5.wave"].numpy(), spec.read_mvn(folder / "sensevoice" / "am.mvn"))
    assert made.shape == sounds["0.5.features"].shape
    assert (torch.from_numpy(made) - sounds["0.5.features"]).abs().max() <= 1e-3
    hidden = spec.encode(
        sounds["0.5.features"], spec.below(weights, "model.audio_model.model."), spec.load_conf(folder)
    )
    embeddings = spec.project(hidden, spec.below(weights, "model.audio_projection."))
    for name, value in (("hidden", hidden), ("embeddings", embeddings)):
        wanted = expected[f"0.5.{name}"]
        assert (value - wanted).abs().max() <= 1e-4 * wanted.abs().max(), name


def test_plus_tokens_of_a_spoken_prompt(golden: Path) -> None:
    """Given the golden embeddings of the speech, which the backbone reads and the MCTP modules do not."""
    folder, spec = golden / "plus" / "plus_mctp4", load(golden / "spec_plus.py")
    weights = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
    model = spec.LanguageModel(json.loads((folder / "config.json").read_text()), weights)
    case, tensors = (
        json.loads((folder / "greedy_tokens.json").read_text())[0],
        load_file(folder / "prompt_io.safetensors"),
    )
    audio = [(span, tensors[f"{case['name']}.audio{k}.embeddings"]) for k, span in enumerate(case["audio_spans"])]
    (run,) = (run for run in case["runs"] if run["pattern"] == [1, 4])
    assert model.generate(case["prompt"], audio, run["pattern"], len(run["tokens"])) == run["tokens"]
    assert model.generate(case["prompt"], [], run["pattern"], len(run["tokens"])) != run["tokens"]
