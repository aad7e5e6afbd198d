"""A whole build of a tiny checkpoint: every stage, resuming after a kill, and refusing what does not fit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from build_engines.checked import checked_facts
from build_engines.limits import make_limits
from build_engines.options import GpuOptions
from build_engines.pipeline import Build, is_done, load_record
from build_engines.stages import CPU_STAGES, run_build
from vita_audio.checkpoint.check import (
    check_checkpoint,
    default_pattern,
    default_repetition_penalty,
    text_normalization,
)
from vita_audio.checkpoint.file_records import checkpoint_sha256
from vita_audio.checkpoint.random_weights.__main__ import write_random_checkpoint
from vita_audio.checkpoint.random_weights.audio import vocoder_weights
from vita_audio.checkpoint.sizes import TINY
from vita_audio.contract.errors import CheckpointError, EngineError
from vita_audio.contract.limits import Limits
from vita_audio.engines.manifest import check_manifest, load_manifest
from vita_audio.engines.onnxruntime.audio import OnnxFlow, OnnxVocoder
from vita_audio.engines.onnxruntime.language_model import OnnxLanguageModel
from vita_audio.engines.onnxruntime.speech_tokenizer import OnnxSpeechTokenizer
from vita_audio.text.tokenizer import TextTokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "random"
    write_random_checkpoint(folder, TINY, seed=0)
    return folder


@pytest.fixture(scope="module")
def engines(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engines") / "cpu"
    run_build(Build(checkpoint, out))
    return out


def _ran(build: Build, **options: object) -> list[int]:
    """Numbers of the stages that a build ran, not skipped."""
    ran: list[int] = []
    run_build(build, on_end=lambda stage, record: ran.append(stage.number) if record else None, **options)  # type: ignore[arg-type]
    return ran


def test_engines_fit_their_manifest_and_checkpoint(engines: Path, checkpoint: Path) -> None:
    manifest = check_manifest(engines, checkpoint)
    assert manifest.checkpoint_name == "random"
    assert manifest.checkpoint_sha256 == checkpoint_sha256(checkpoint)
    assert manifest.limits.context_tokens == TINY.language_model.max_position_embeddings
    assert manifest.limits.mctp_modules == 10
    assert manifest.limits.default_pattern == (1, 10, 4, 10)
    assert manifest.sizes["vocoder"]["base_channels"] == TINY.vocoder.base_channels
    assert set(manifest.versions) >= {"python", "torch", "onnx", "onnxruntime"}
    assert set(manifest.files) == {
        "tokenizer.json",
        "speech_tokenizer.onnx",
        "language_model/backbone.onnx",
        "language_model/mctp.onnx",
        "language_model/model.json",
        "flow_condition.onnx",
        "flow_velocity.onnx",
        "vocoder_f0.onnx",
        "vocoder.onnx",
    }


def test_every_engine_opens(engines: Path) -> None:
    manifest = load_manifest(engines)
    tokenizer = TextTokenizer(engines / "tokenizer.json")
    assert tokenizer.vocabulary == manifest.vocabulary
    language_model = OnnxLanguageModel(engines / "language_model", slots=1, context=64)
    assert language_model.mctp_modules == manifest.limits.mctp_modules
    assert OnnxFlow(engines).mel_channels == OnnxVocoder(engines).mel_channels
    features = np.zeros((manifest.sizes["speech_tokenizer"]["num_mel_bins"], 16), np.float32)
    assert OnnxSpeechTokenizer(engines).tokens(features, 16).shape == (2,)


def test_an_unchanged_build_runs_nothing(engines: Path, checkpoint: Path) -> None:
    assert _ran(Build(checkpoint, engines)) == []


def test_only_what_depends_on_a_change_runs(engines: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "cpu"
    shutil.copytree(engines, out)
    assert _ran(Build(checkpoint, out, max_tokens=77)) == [6, 7]
    assert check_manifest(out).limits.max_tokens == 77
    (out / "vocoder.onnx").unlink()
    with pytest.raises(EngineError, match=r"files\.vocoder\.onnx"):
        check_manifest(out)
    assert _ran(Build(checkpoint, out, max_tokens=77))[0] == 5
    check_manifest(out, checkpoint)
    assert _ran(Build(checkpoint, out, max_tokens=77), numbers=[6, 2], force=True) == [2, 6]


def test_what_imports_a_changed_source_is_built_again(
    engines: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, tree = tmp_path / "cpu", tmp_path / "tree"
    shutil.copytree(engines, out)
    for package in ("build_engines", "vita_audio"):
        shutil.copytree(ROOT / package, tree / package)
    monkeypatch.setattr("build_engines.sources.ROOT", tree)
    assert _ran(Build(checkpoint, out)) == []
    for source, stages in (
        ("build_engines/onnxruntime/vocoder.py", [5]),  # the same graphs: nothing to do for the manifest
        ("vita_audio/models/flow.py", [1, 4, 5]),
        ("vita_audio/decoding/schedule.py", [7]),
        ("serving/admission.py", []),
    ):
        (tree / source).parent.mkdir(exist_ok=True)
        with (tree / source).open("a") as file:
            file.write("\nCHANGED = True\n")
        assert _ran(Build(checkpoint, out)) == stages, source


def test_another_checkpoint_is_refused_until_built(engines: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other", tmp_path / "cpu"
    write_random_checkpoint(other, TINY, seed=1)
    with pytest.raises(EngineError, match="checkpoint_sha256"):
        check_manifest(engines, other)
    shutil.copytree(engines, out)
    assert 3 in _ran(Build(other, out))
    check_manifest(out, other)


def test_a_killed_build_is_resumed(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "cpu"
    command = [sys.executable, "-m", "build_engines", "--checkpoint", str(checkpoint), "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[2/7]"):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.stdout.close()
    with pytest.raises(EngineError, match="cannot be read"):
        check_manifest(out)
    resumed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    lines = resumed.stdout.splitlines()
    assert len(lines) == 7
    assert lines[0].endswith("check checkpoint: unchanged")
    assert lines[1].endswith("speech tokenizer: unchanged")
    assert "manifest.json" in lines[6]
    check_manifest(out, checkpoint)


def test_a_stage_that_needs_another_says_so(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="stage 1 has not run"):
        run_build(Build(checkpoint, tmp_path / "cpu"), numbers=[7])


def test_files_changed_behind_the_builder_are_noticed(engines: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "cpu"
    shutil.copytree(engines, out)
    (out / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match="changed or gone since stage 6 made it"):
        run_build(Build(checkpoint, out), numbers=[7], force=True)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"target": "tpu"}, "--target: 'tpu' is not valid: choose one of cpu, gpu"),
        ({"gpu": GpuOptions(mctp_format="fp8")}, "--mctp-format: belongs to --target gpu"),
        ({"context_tokens": 0}, "--context-tokens: 0 is not valid"),
        ({"max_tokens": -1}, "--max-tokens: -1 is not valid"),
    ],
)
def test_bad_options(checkpoint: Path, tmp_path: Path, change: dict[str, object], part: str) -> None:
    with pytest.raises(EngineError, match=part):
        run_build(Build(checkpoint, tmp_path / "cpu", **change))  # type: ignore[arg-type]


def _edit_json(path: str, **fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps({**content, **fields}))

    return edit


def _edit_yaml(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "audio_decoder" / "config.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return edit


def _drop_tensor(folder: Path) -> None:
    path = folder / "language_model" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)


def _truncate(folder: Path) -> None:
    path = folder / "audio_decoder" / "flow.pt"
    path.write_bytes(path.read_bytes()[:1000])


def _smaller_codebook(folder: Path) -> None:
    path = folder / "speech_tokenizer" / "model.safetensors"
    tensors = load_file(path)
    tensors["codebook.weight"] = tensors["codebook.weight"][:128].clone()
    save_file(tensors, path)
    _edit_json("speech_tokenizer/config.json", quantize_vocab_size=128)(folder)


def _other_mels(folder: Path) -> None:
    """A vocoder of 40 mel channels, complete in itself."""
    torch.save(vocoder_weights(replace(TINY.vocoder, in_channels=40), 0), folder / "audio_decoder" / "hift.pt")
    text = (folder / "audio_decoder" / "config.yaml").read_text()
    head, hift = text.split("hift:")
    (folder / "audio_decoder" / "config.yaml").write_text(
        f"{head}hift:{hift.replace('in_channels: 80', 'in_channels: 40')}"
    )


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda folder: shutil.rmtree(folder / "audio_decoder"), r"config\.yaml"),
        (lambda folder: (folder / "language_model" / "tokenizer.json").unlink(), r"tokenizer\.json"),
        (_drop_tensor, r"model\.norm\.weight"),
        (_truncate, r"flow\.pt"),
        (_edit_json("language_model/generation_config.json", mtp_inference_mode=[1, 11]), "mtp_inference_mode.*K = 10"),
        (
            _edit_json("language_model/generation_config.json", mtp_inference_mode="boost"),
            r"generation_config\.json: mtp_inference_mode: 'boost' must be a list of integers",
        ),
        (_edit_json("language_model/generation_config.json", repetition_penalty=0), "repetition_penalty: 0 must be"),
        (
            _edit_json("language_model/generation_config.json", repetition_penalty="1"),
            "repetition_penalty: '1' must be",
        ),
        (_edit_json("language_model/generation_config.json", repetition_penalty=11), "from 0.01 to 10"),
        (_edit_json("language_model/generation_config.json", text_normalization="all"), "must be none or words"),
        (_smaller_codebook, "audio vocabularies differ: .* 256, .* 128, .* 256"),
        (_edit_yaml("sample_rate: 22050", "sample_rate: 24000"), "makes 24000 Hz"),
        (_other_mels, "makes 80 mel channels but the vocoder takes 40"),
    ],
)
def test_checkpoints_that_are_refused(
    checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], part: str
) -> None:
    folder = tmp_path / "random"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=part) as error:
        run_build(Build(folder, tmp_path / "cpu"))
    assert "\n" not in str(error.value)
    assert load_record(Build(folder, tmp_path / "cpu"), 1) is None


def test_one_error_names_the_faults_of_all_parts(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "random"
    shutil.copytree(checkpoint, folder)
    _drop_tensor(folder)
    _truncate(folder)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*flow\.pt"):
        check_checkpoint(folder)
    with pytest.raises(CheckpointError, match="no such folder"):
        check_checkpoint(tmp_path / "nothing")


def test_text_normalization_of_a_checkpoint_reaches_the_engines(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    assert text_normalization(path) == "none"
    path.write_text('{"text_normalization": "words"}')
    assert text_normalization(path) == "words"
    facts = checked_facts(check_checkpoint(checkpoint)) | {"text_normalization": "words"}
    limits = make_limits(Build(checkpoint, tmp_path), facts)
    assert Limits.from_dict(limits.to_dict()).text_normalization == "words"
    assert Limits.from_dict({k: v for k, v in limits.to_dict().items() if k != "text_normalization"}) == replace(
        limits, text_normalization="none"
    ), "engines that were built before"


def test_repetition_penalty_of_a_generation_config(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    assert default_repetition_penalty(path) == 1.05
    path.write_text("{}")
    assert default_repetition_penalty(path) == 1.05
    path.write_text('{"repetition_penalty": 1}')
    assert default_repetition_penalty(path) == 1.0


def test_default_pattern_without_a_generation_config(tmp_path: Path) -> None:
    missing = tmp_path / "generation_config.json"
    assert default_pattern(missing, TINY.language_model) == (1, 10, 4, 10)
    assert default_pattern(missing, replace(TINY.language_model, num_nextn_predict_layers=4)) == (8192, 0)


@pytest.mark.parametrize(
    "text", ["[1.9, 10]", "[true, 10]", "[Infinity, 1]", '"1,10"', "{}", "[[1, 10]]", "7", '["1", 10]']
)
def test_a_mode_of_other_than_integers_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(f'{{"mtp_inference_mode": {text}}}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json: mtp_inference_mode: .* list of integers"):
        default_pattern(path, TINY.language_model)


def test_the_interleaving_that_the_authors_training_writes(tmp_path: Path) -> None:
    """Plus-Vanilla's script writes boost for a model without modules; that model can only be vanilla."""
    path = tmp_path / "generation_config.json"
    path.write_text('{"mtp_inference_mode": [1, 10, 4, 10]}')
    assert default_pattern(path, TINY.language_model) == (1, 10, 4, 10)
    assert default_pattern(path, replace(TINY.language_model, num_nextn_predict_layers=0)) == (8192, 0)
    with pytest.raises(CheckpointError, match=r"K = 1 MCTP modules; set it to \[8192, 0\] in this file.* at most 1"):
        default_pattern(path, replace(TINY.language_model, num_nextn_predict_layers=1))
    path.write_text('{"mtp_inference_mode": [0, 10]}')
    with pytest.raises(CheckpointError, match="at least 1 backbone token, not 0"):
        default_pattern(path, replace(TINY.language_model, num_nextn_predict_layers=0))


def test_a_language_model_without_mctp_builds(checkpoint: Path, tmp_path: Path) -> None:
    """The Plus-Vanilla kind: K = 0, no burst graph, vanilla by default."""
    folder, out = tmp_path / "random", tmp_path / "cpu"
    shutil.copytree(checkpoint, folder)
    path = folder / "language_model" / "model.safetensors"
    tensors = load_file(path)
    kept = {
        key: value
        for key, value in tensors.items()
        if not key.startswith("mtp_") and not (key.startswith("model.layers.") and int(key.split(".")[2]) >= 3)
    }
    save_file(kept, path)
    _edit_json("language_model/config.json", num_hidden_layers=3, num_nextn_predict_layers=0)(folder)
    (folder / "language_model" / "generation_config.json").unlink()
    run_build(Build(folder, out))
    manifest = check_manifest(out, folder)
    assert manifest.limits.default_mode("chat").name == "vanilla"
    assert "language_model/mctp.onnx" not in manifest.files
    assert all(is_done(Build(folder, out), stage) for stage in CPU_STAGES)
