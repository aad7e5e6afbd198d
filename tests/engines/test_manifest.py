"""The manifest says what engines hold, and refuses to serve what does not fit, naming the field."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vita_audio.checkpoint.file_records import checkpoint_sha256, file_records
from vita_audio.contract.errors import EngineError
from vita_audio.contract.limits import Limits
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.engines.manifest import (
    FORMAT,
    MANIFEST,
    Manifest,
    check_manifest,
    load_manifest,
    package_version,
    schedule_fields,
)
from vita_audio.text.vocabulary import BASE

SCHEDULE = schedule_fields(DecoderConfig())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "language_model").mkdir(parents=True)
    (folder / "language_model" / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def engines(tmp_path: Path, checkpoint: Path) -> Path:
    folder = tmp_path / "engines"
    (folder / "language_model").mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "language_model" / "backbone.onnx").write_bytes(b"graph")
    manifest = Manifest(
        target="cpu",
        checkpoint_name="random",
        checkpoint_sha256=checkpoint_sha256(checkpoint),
        versions={"onnxruntime": package_version("onnxruntime"), "python": "3"},
        sizes={
            "language_model": {"vocab_size": 168_072, "num_nextn_predict_layers": 10},
            "speech_tokenizer": {"quantize_vocab_size": 16_384},
            "flow": {"vocab_size": 16_384},
            "vocoder": {},
        },
        vocabulary=BASE,
        limits=Limits(2048, 1024, 512, 10, (1, 10, 4, 10)),
        files=file_records(folder, ["tokenizer.json", "language_model/backbone.onnx"]),
        schedule=SCHEDULE,
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


def _change(engines: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads((engines / MANIFEST).read_text())
    change(fields)
    (engines / MANIFEST).write_text(json.dumps(fields))


def test_engines_that_fit(engines: Path, checkpoint: Path) -> None:
    manifest = check_manifest(engines, checkpoint)
    assert manifest == load_manifest(engines)
    assert manifest.vocabulary == BASE
    assert manifest.limits.default_pattern == (1, 10, 4, 10)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda m: m.update(format=FORMAT + 1), "format: 2, but"),
        (lambda m: m.pop("format"), "format: None, but"),
        (lambda m: m.pop("limits"), "KeyError: 'limits'"),
        (lambda m: m["limits"].update(more=1), "unknown .*more"),
        (lambda m: m.update(more=1), "unknown .*more"),
        (lambda m: m["vocabulary"].pop("im_end"), "im_end"),
        (lambda m: m.update(target="gpu"), "target is 'gpu' but 'cpu' is asked for"),
        (lambda m: m["versions"].update(onnxruntime="0.1"), r"versions\.onnxruntime is '0\.1' but .* is installed"),
        (lambda m: m["limits"].update(mctp_modules=4), r"limits\.mctp_modules is 4 but the engines have 10"),
        (lambda m: m["vocabulary"].update(audio_codes=5), r"vocabulary\.audio_codes is 5 but the engines have 16384"),
        (lambda m: m["sizes"]["flow"].update(vocab_size=5), r"vocabulary\.audio_codes is 16384 but the engines have 5"),
        (lambda m: m["sizes"]["language_model"].update(vocab_size=5), r"vocabulary\.tokens is 168069 but"),
    ],
)
def test_manifests_that_do_not_fit(engines: Path, change: Callable[[dict[str, Any]], object], part: str) -> None:
    _change(engines, change)
    with pytest.raises(EngineError, match=part) as error:
        check_manifest(engines)
    assert "\n" not in str(error.value)
    assert "build the engines" in str(error.value)


def test_engines_of_another_schedule(engines: Path) -> None:
    assert check_manifest(engines, schedule=SCHEDULE).schedule == SCHEDULE
    running = schedule_fields(DecoderConfig(chunk_tokens=(20, 20, 40)))
    told = (
        rf"{MANIFEST}: schedule\.chunk_tokens is \[20, 40\] but this version decodes with \[20, 20, 40\]; "
        "build the engines again"
    )
    with pytest.raises(EngineError, match=told):
        check_manifest(engines, schedule=running)
    assert check_manifest(engines).schedule == SCHEDULE  # where no decoder will run them
    _change(engines, lambda m: m["schedule"].pop("flow_steps"))
    with pytest.raises(EngineError, match=r"schedule\.flow_steps is None but this version decodes with 4"):
        check_manifest(engines, schedule=SCHEDULE)
    _change(engines, lambda m: m["schedule"].update(flow_steps=4, no_longer_known=1))
    with pytest.raises(EngineError, match=r"schedule\.no_longer_known is 1 but this version decodes with None"):
        check_manifest(engines, schedule=SCHEDULE)


def test_older_engines_record_no_schedule(engines: Path) -> None:
    """Those for the CPU take any; engines of TensorRT are refused (test_gpu_manifest.py in tests/build_engines)."""
    _change(engines, lambda m: m.pop("schedule"))
    manifest = check_manifest(engines, schedule=SCHEDULE)
    assert manifest.schedule is None
    assert "schedule" not in json.loads(manifest.to_json())


def test_files_that_do_not_fit(engines: Path) -> None:
    backbone = engines / "language_model" / "backbone.onnx"
    backbone.write_bytes(b"grapH")
    with pytest.raises(EngineError, match=r"files\.language_model/backbone\.onnx\.sha256"):
        check_manifest(engines)
    backbone.write_bytes(b"gra")
    with pytest.raises(EngineError, match=r"backbone\.onnx\.bytes is 5 but the file has 3"):
        check_manifest(engines)
    backbone.unlink()
    with pytest.raises(EngineError, match=r"backbone\.onnx is 'present' but the file is missing"):
        check_manifest(engines)


def test_another_checkpoint(engines: Path, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "language_model" / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(EngineError, match="checkpoint_sha256 is 'random "):
        check_manifest(engines, checkpoint)
    with pytest.raises(EngineError, match="no checkpoint there"):
        check_manifest(engines, tmp_path / "nothing")


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="python -m build_engines"):
        load_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(EngineError, match="not a JSON object"):
        load_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text("[]")
    with pytest.raises(EngineError, match="not a JSON object"):
        load_manifest(tmp_path)


def test_hidden_files_are_no_part_of_a_checkpoint(checkpoint: Path) -> None:
    before = checkpoint_sha256(checkpoint)
    (checkpoint / ".cache").mkdir()
    (checkpoint / ".cache" / "x").write_text("x")
    assert checkpoint_sha256(checkpoint) == before
    (checkpoint / "language_model" / "x").write_text("x")
    assert checkpoint_sha256(checkpoint) != before


def test_the_server_reads_it_without_pytorch() -> None:
    code = "import sys, vita_audio.engines.manifest; print([m for m in ('torch', 'onnx') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
