"""Builds of a Plus checkpoint: SenseVoice in place of the speech tokenizer, noted in the manifest."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from build_engines import __main__ as command
from build_engines.pipeline import Build
from build_engines.stages import run_build, stages_of
from gpu_builds import LLM, TORCH, Compilers
from gpu_machines import CONTAINER
from server.checks import check_engines
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.checkpoint.random_weights.__main__ import write_random_checkpoint
from vita_audio.checkpoint.sensevoice import load_sensevoice
from vita_audio.checkpoint.sizes import TINY
from vita_audio.contract.errors import CheckpointError, EngineError
from vita_audio.engines.interface import Floats
from vita_audio.engines.manifest import MANIFEST, check_manifest
from vita_audio.engines.onnxruntime.sensevoice import OnnxSenseVoice
from vita_audio.engines.registry import open_language_model, open_speech_encoder
from vita_audio.engines.source import EngineSource
from vita_audio.engines.tensorrt_llm.reference_executor import ReferenceExecutor
from vita_audio.engines.torch.weights import SENSEVOICE_FILE, SPEECH_TOKENIZER_FILE, load_weights_file
from vita_audio.models.sensevoice import SenseVoice


@pytest.fixture(scope="module")
def plus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "plus"
    write_random_checkpoint(folder, TINY, speech_input="sensevoice")
    return folder


@pytest.fixture(scope="module")
def engines(plus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engines") / "cpu"
    run_build(Build(plus, out))
    return out


def noise(rows: int) -> Floats:
    return np.random.default_rng(0).standard_normal((rows, 560), np.float32)


def reference(plus: Path, features: Floats) -> Floats:
    """The checkpoint's embeddings of a clip."""
    parts = load_sensevoice(plus / "language_model")
    model = SenseVoice(parts.config).eval()
    model.load_state_dict(parts.tensors)
    with torch.inference_mode():
        return model(torch.from_numpy(features)[None], torch.tensor([len(features)]))[0].numpy()


def test_for_a_cpu(plus: Path, engines: Path) -> None:
    manifest = check_manifest(engines, plus)
    assert manifest.speech_input == "sensevoice"
    assert manifest.engines == dict.fromkeys(("language_model", "sensevoice", "flow", "vocoder"), "onnxruntime")
    assert manifest.sizes["sensevoice"] == asdict(TINY.sensevoice)
    assert "speech_tokenizer" not in manifest.sizes
    assert "sensevoice.onnx" in manifest.files
    assert "speech_tokenizer.onnx" not in manifest.files
    assert manifest.vocabulary.context_of_audio is not None

    features = noise(9)
    np.testing.assert_allclose(OnnxSenseVoice(engines).embeddings(features), reference(plus, features), atol=1e-4)


def test_the_server_takes_them(engines: Path) -> None:
    check_engines(engines, None, "cpu")


def test_for_a_gpu(plus: Path, tmp_path: Path, machine: object) -> None:
    build = Build(plus, tmp_path, "gpu", context_tokens=256, gpu=TORCH)
    run_build(build)
    manifest = check_manifest(tmp_path, plus, "gpu", CONTAINER)
    assert (manifest.speech_input, manifest.engines["sensevoice"]) == ("sensevoice", "torch_cuda")
    assert SPEECH_TOKENIZER_FILE not in manifest.files
    stored, parts = load_weights_file(tmp_path / SENSEVOICE_FILE), load_sensevoice(plus / "language_model")
    assert stored.keys() == parts.tensors.keys() | {"feature_shift", "feature_scale"}
    assert (stored["feature_scale"].numpy() == parts.feature_scale).all()
    source = EngineSource(tmp_path, manifest, device="cpu")
    features = noise(9)
    np.testing.assert_allclose(open_speech_encoder(source).embeddings(features), reference(plus, features), atol=1e-4)
    language_model = open_language_model(source, 2)
    assert language_model.embedded_size == TINY.language_model.hidden_size


@pytest.mark.usefixtures("machine")
def test_for_tensorrt_llm(plus: Path, tmp_path: Path, compilers: Compilers) -> None:
    """A row of the prompt table for each token of a step, in the backbone alone, and SenseVoice beside the decoder."""
    build = Build(plus, tmp_path, "gpu", context_tokens=256, gpu=LLM)
    assert [stage.name for stage in stages_of(build)][7] == "SenseVoice graph"
    run_build(build)
    manifest = check_manifest(tmp_path, plus, "gpu", CONTAINER)
    assert (manifest.speech_input, manifest.engines["sensevoice"]) == ("sensevoice", "tensorrt_audio")
    assert "audio/sensevoice.engine" in manifest.files
    assert "audio/speech_tokenizer.engine" not in manifest.files
    table_rows = {part: options.prompt_table_rows for part, _, options in compilers.asked}
    assert table_rows == {"backbone": LLM.step_tokens, "mctp": LLM.step_tokens}  # the latter is built without
    _, tensors = load_language_model(plus / "language_model")
    with mock.patch(
        "vita_audio.engines.tensorrt_llm.session.SessionExecutor",
        lambda folder, layout, bytes_beside: ReferenceExecutor(layout, tensors),
    ):
        opened = open_language_model(EngineSource(tmp_path, manifest), 4)
    assert opened.embedded_size == TINY.language_model.hidden_size


def test_the_command_names_the_encoder(
    plus: Path, engines: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--checkpoint", str(plus), "--out", str(engines)]
    monkeypatch.setattr(sys, "argv", ["build_engines", *arguments])
    with pytest.raises(SystemExit):
        command.run()
    assert "[2/7] SenseVoice: unchanged" in capsys.readouterr().out


def test_a_manifest_whose_parts_disagree(engines: Path, tmp_path: Path) -> None:
    fields = json.loads((engines / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(fields | {"speech_input": "speech_tokenizer"}))
    with pytest.raises(EngineError, match=r"speech_input is 'speech_tokenizer' but the engines have .*sensevoice"):
        check_manifest(tmp_path)


def test_a_checkpoint_that_does_not_fit_stops_the_build(plus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plus"
    folder.mkdir()
    for part in ("language_model", "audio_decoder"):
        (folder / part).mkdir()
        for file in (plus / part).iterdir():
            if file.name != "am.mvn":
                (folder / part / file.name).symlink_to(file)
    with pytest.raises(CheckpointError, match=r"am\.mvn: file is missing"):
        run_build(Build(folder, tmp_path / "out"))
